/* Matrix products: packed panels and a register-blocked micro-kernel (Goto & van de Geijn 2008).
 *
 * op(B) is packed once, by all threads, into panels of NR columns; each thread packs MC rows of op(A) at a time into
 * panels of MR rows, and the micro-kernel multiplies an A panel by a B panel over the whole of K, so that every result
 * is rounded once. K is never split over threads: results do not depend on their number.
 *
 *   fp32 panels  A[k][MR]        B[k][NR]
 *   bf16 panels  A[k/2][MR][2]   B[k/2][NR][2]    (vdpbf16ps multiplies pairs along k)
 *   AMX panels   A[k/32][MR][32] B[k/2][NR][2]    (a tile of A is 16 rows x 32 of k, of B 16 pairs x 16 columns)
 */
#include "pack.h"

#if defined(LY_ISA_AVX512) || defined(LY_ISA_AVX512BF16) || defined(LY_ISA_AMX)
enum { VL = 16, MR32 = 14 };
#elif defined(LY_ISA_AVX2)
enum { VL = 8, MR32 = 6 };
#else
enum { VL = 4, MR32 = 6 };
#endif
typedef float vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
enum { NR32 = 2 * VL };

static void kernel_f32(int64_t K, const void *pa, const void *pb, float *out /* [MR32][NR32] */) {
  const float *a = pa, *b = pb;
  vec acc[MR32][2] = {0};
  for (int64_t k = 0; k < K; k++, a += MR32, b += NR32) {
    vec b0 = *(const vec *)b, b1 = *(const vec *)(b + VL);
#pragma GCC unroll 14
    for (int i = 0; i < MR32; i++) { acc[i][0] += a[i] * b0; acc[i][1] += a[i] * b1; }
  }
#pragma GCC unroll 14
  for (int i = 0; i < MR32; i++) { *(vec *)(out + i * NR32) = acc[i][0]; *(vec *)(out + i * NR32 + VL) = acc[i][1]; }
}

#if defined(LY_ISA_AMX)
#include "matmul_amx.h"
#define HAS_BF16 1
enum { MR16 = AMX_MR, NR16 = 32, KSTEP = 32 };
#define kernel_bf16 kernel_amx
#elif defined(LY_ISA_AVX512BF16)
#include <immintrin.h>
#define HAS_BF16 1
enum { MR16 = 14, NR16 = 32, KSTEP = 2 };
static void kernel_bf16(int64_t K, const void *pa, const void *pb, float *out) {
  const int32_t *a = pa; const bf16 *b = pb;
  __m512 acc[MR16][2];
#pragma GCC unroll 14
  for (int i = 0; i < MR16; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < K; k += 2, a += MR16, b += 2 * NR16) {
    __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 32);
#pragma GCC unroll 14
    for (int i = 0; i < MR16; i++) {
      __m512bh ai = (__m512bh)_mm512_set1_epi32(a[i]);
      acc[i][0] = _mm512_dpbf16_ps(acc[i][0], ai, b0);
      acc[i][1] = _mm512_dpbf16_ps(acc[i][1], ai, b1);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < MR16; i++) { _mm512_storeu_ps(out + i * NR16, acc[i][0]); _mm512_storeu_ps(out + i * NR16 + 16, acc[i][1]); }
}
#else
#define HAS_BF16 0
enum { MR16 = MR32, NR16 = NR32, KSTEP = 1 };
#endif
enum { MAX_MR = (int)MR32 > (int)MR16 ? (int)MR32 : (int)MR16, MAX_NR = (int)NR32 > (int)NR16 ? (int)NR32 : (int)NR16 };

/* How one product is carried out: in which element type its panels are, and their sizes. */
typedef struct { int half; int64_t mr, nr, K, Kp; size_t size; } Plan;
static Plan plan_of(int dtA, int dtB, int64_t K) {
  if (HAS_BF16 && dtA == LY_BF16 && dtB == LY_BF16) return (Plan){1, MR16, NR16, K, (K + KSTEP - 1) / KSTEP * KSTEP, 2};
  return (Plan){0, MR32, NR32, K, K, 4};
}
static void run_kernel(const Plan *p, const void *a, const void *b, float *out) {
#if HAS_BF16
  if (p->half) { kernel_bf16(p->Kp, a, b, out); return; }
#endif
  kernel_f32(p->Kp, a, b, out);
}

/* ---- packing (pack.h), in the form that the plan asks for ---- */

static void pack_a(void *out, const Plan *p, int64_t rows, const void *A, int dt, int64_t ars, int64_t acs) {
#ifdef LY_ISA_AMX
  if (p->half) { pack_amx(out, rows, p->K, p->Kp, A, ars, acs); return; }
#elif HAS_BF16
  if (p->half) { pack_pairs(out, MR16, rows, p->K, p->Kp, A, ars, acs); return; }
#endif
  pack_f32(out, MR32, rows, p->K, A, dt, ars, acs);
}
static void pack_b(void *out, const Plan *p, int64_t cols, const void *B, int dt, int64_t brs, int64_t bcs) {
#if HAS_BF16
  if (p->half) { pack_pairs(out, NR16, cols, p->K, p->Kp, B, bcs, brs); return; }
#endif
  pack_f32(out, NR32, cols, p->K, B, dt, bcs, brs);
}

static const char *element(const void *base, int dt, int64_t index) { return (const char *)base + index * (dt == LY_F32 ? 4 : 2); }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- the serial product ---- */

void ly_gemm_serial(int thread, int64_t M, int64_t N, int64_t K, float alpha, const void *A, int64_t ars, int64_t acs,
                    const void *B, int64_t brs, int64_t bcs, int dt, float *C, int64_t ldc, int accumulate) {
  Plan p = plan_of(dt, dt, K);
  size_t pa = (size_t)(p.mr * p.Kp) * p.size, pb = (size_t)(p.nr * p.Kp) * p.size;
  int64_t npb = (N + p.nr - 1) / p.nr;
  char *a = ly_scratch(thread, 16, pa), *b = ly_scratch(thread, 17, pb * (size_t)npb);
  _Alignas(64) float tile[MAX_MR * MAX_NR];
  for (int64_t j = 0; j < npb; j++) pack_b(b + j * pb, &p, min64(p.nr, N - j * p.nr), element(B, dt, j * p.nr * bcs), dt, brs, bcs);
  for (int64_t i = 0; i < M; i += p.mr) {
    int64_t rows = min64(p.mr, M - i);
    pack_a(a, &p, rows, element(A, dt, i * ars), dt, ars, acs);
    for (int64_t j = 0; j < npb; j++) {
      int64_t cols = min64(p.nr, N - j * p.nr);
      run_kernel(&p, a, b + j * pb, tile);
      for (int64_t r = 0; r < rows; r++) {
        float *c = C + (i + r) * ldc + j * p.nr; const float *t = tile + r * p.nr;
        if (accumulate) for (int64_t x = 0; x < cols; x++) c[x] += alpha * t[x];
        else for (int64_t x = 0; x < cols; x++) c[x] = alpha * t[x];
      }
    }
  }
}

/* ---- the parallel product ---- */

typedef struct {
  Plan p; int64_t M, N; float alpha, beta;
  const void *A; int dtA; int64_t ars, acs; const void *B; int dtB; int64_t brs, bcs;
  char *C; int dtC; int64_t ldc; const char *R;
  char *packed; size_t panel; int64_t mc, panels, chunk /* B panels an item takes */, chunks;
} Product;

static void pack_b_body(void *ctx, int64_t j, int thread) {
  Product *t = ctx; (void)thread;
  pack_b(t->packed + j * t->panel, &t->p, min64(t->p.nr, t->N - j * t->p.nr), element(t->B, t->dtB, j * t->p.nr * t->bcs), t->dtB, t->brs, t->bcs);
}

/* Alpha, the old value or the residual, and the one rounding. */
static void store_tile(const Product *t, const float *tile, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  for (int64_t r = 0; r < rows; r++) {
    const float *x = tile + r * t->p.nr;
    int64_t at = (row + r) * t->ldc + col;
    if (t->dtC == LY_F32) {
      float *c = (float *)t->C + at; const float *add = t->R ? (const float *)t->R + at : NULL;
      if (t->beta != 0 && add) for (int64_t j = 0; j < cols; j++) c[j] += t->alpha * x[j] + add[j];
      else if (t->beta != 0) for (int64_t j = 0; j < cols; j++) c[j] += t->alpha * x[j];
      else if (add) for (int64_t j = 0; j < cols; j++) c[j] = t->alpha * x[j] + add[j];
      else for (int64_t j = 0; j < cols; j++) c[j] = t->alpha * x[j];
    } else {
      bf16 *c = (bf16 *)t->C + at; const bf16 *add = t->R ? (const bf16 *)t->R + at : NULL;
      if (t->beta != 0 && add) for (int64_t j = 0; j < cols; j++) c[j] = f32_to_bf16(t->alpha * x[j] + bf16_to_f32(c[j]) + bf16_to_f32(add[j]));
      else if (t->beta != 0) for (int64_t j = 0; j < cols; j++) c[j] = f32_to_bf16(t->alpha * x[j] + bf16_to_f32(c[j]));
      else if (add) for (int64_t j = 0; j < cols; j++) c[j] = f32_to_bf16(t->alpha * x[j] + bf16_to_f32(add[j]));
      else for (int64_t j = 0; j < cols; j++) c[j] = f32_to_bf16(t->alpha * x[j]);
    }
  }
}

static void product_body(void *ctx, int64_t item, int thread) {
  Product *t = ctx; Plan *p = &t->p;
  int64_t row0 = item / t->chunks * t->mc, rows = min64(t->mc, t->M - row0);
  int64_t j0 = item % t->chunks * t->chunk, j1 = min64(j0 + t->chunk, t->panels);
  size_t pa = (size_t)(p->mr * p->Kp) * p->size;
  int64_t blocks = (rows + p->mr - 1) / p->mr;
  char *a = ly_scratch(thread, 18, pa * (size_t)blocks);
  _Alignas(64) float tile[MAX_MR * MAX_NR];
  /* Stored transposed, a cache line holds one k of several panels: all of them take their part of it while it is there. */
  int64_t piece = t->acs == 1 || blocks == 1 ? p->Kp : 64;
  for (int64_t k = 0; k < p->Kp; k += piece) {
    Plan part = *p;
    part.K = min64(piece, p->K - k); part.Kp = min64(piece, p->Kp - k);
    for (int64_t i = 0; i < blocks; i++)
      pack_a(a + i * pa + (size_t)(k * p->mr) * p->size, &part, min64(p->mr, rows - i * p->mr),
             element(t->A, t->dtA, (row0 + i * p->mr) * t->ars + k * t->acs), t->dtA, t->ars, t->acs);
  }
  for (int64_t j = j0; j < j1; j++)
    for (int64_t i = 0; i < blocks; i++) {
      run_kernel(p, a + i * pa, t->packed + j * t->panel, tile);
      store_tile(t, tile, row0 + i * p->mr, min64(p->mr, rows - i * p->mr), j * p->nr, min64(p->nr, t->N - j * p->nr));
    }
}

void ly_matmul(int transA, int transB, int64_t M, int64_t N, int64_t K, float alpha, const void *A, int dtA, int64_t lda,
               const void *B, int dtB, int64_t ldb, float beta, void *C, int dtC, int64_t ldc, const void *R,
               int64_t batch, int64_t sA, int64_t sB, int64_t sC) {
  if (M <= 0 || N <= 0) return;
  for (int64_t s = 0; s < batch; s++) {
    Product t = {.p = plan_of(dtA, dtB, K), .M = M, .N = N, .alpha = alpha, .beta = beta,
                 .A = element(A, dtA, s * sA), .dtA = dtA, .ars = transA ? 1 : lda, .acs = transA ? lda : 1,
                 .B = element(B, dtB, s * sB), .dtB = dtB, .brs = transB ? 1 : ldb, .bcs = transB ? ldb : 1,
                 .C = (char *)element(C, dtC, s * sC), .dtC = dtC, .ldc = ldc, .R = R ? element(R, dtC, s * sC) : NULL};
    t.panels = (N + t.p.nr - 1) / t.p.nr;
    t.panel = (size_t)(t.p.nr * t.p.Kp) * t.p.size;
    t.packed = ly_scratch(-1, 19, t.panel * (size_t)t.panels);
    /* About 384 KiB of packed A at a time: it stays in the second-level cache while all of B passes by. */
    int64_t blocks = (int64_t)(384 * 1024) / (t.p.mr * (t.p.Kp > 0 ? t.p.Kp : 1) * (int64_t)t.p.size);
    /* Rather shorter pieces than several items that each pack the same rows. */
    int64_t most = M / (8 * t.p.mr) < 8 ? M / (8 * t.p.mr) : 8;
    t.mc = t.p.mr * (blocks < 1 || most < 1 ? 1 : blocks > most ? most : blocks);
    int64_t rowItems = (M + t.mc - 1) / t.mc;
    int64_t want = rowItems >= 8 ? 1 : (8 + rowItems - 1) / rowItems;
    t.chunk = (t.panels + want - 1) / want;
    t.chunks = (t.panels + t.chunk - 1) / t.chunk;
    ly_parallel(t.panels, pack_b_body, &t);
    ly_parallel(rowItems * t.chunks, product_body, &t);
  }
}
