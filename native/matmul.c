/* Matrix products: packed panels and a register-blocked micro-kernel (Goto & van de Geijn 2008).
 *
 * op(B) is packed once, by all threads, into panels of NR columns. The micro-kernel multiplies MR rows of op(A) by a panel of
 * B. Rows that lie in memory as the kernel reads them are read where they are; others (transposed ones, and those whose
 * addresses would all meet in one set of the first-level cache) are packed first, MC rows at a time, by the thread that
 * uses them. Long sums are cut into blocks of KC, so that what the kernel reads stays in the caches; between blocks the
 * accumulators wait in fp32, so every result is one chain of sums in the order of k, rounded once, however it was cut.
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

/* Row i of A begins at a + i * line bytes, wherever it lies. Kernels step through it by few pointers: three rows each, the
 * others by what an address can add (line, 2 * line). */
#define ROW_GROUPS(MR) (((MR) + 2) / 3)
#define ROW(pointers, i, line) ((pointers)[(i) / 3] + (i) % 3 * (line))

/* out[MR32][NR32], rows ldo apart, = (first ? 0 : out) + A B over K. line 0: A is a packed panel. */
static inline __attribute__((always_inline)) void fp32_rows(int64_t K, const char *a, int64_t line, int64_t step, const float *b, float *out, int64_t ldo, int first) {
  vec acc[MR32][2];
  const char *p[ROW_GROUPS(MR32)];
#pragma GCC unroll 14
  for (int i = 0; i < ROW_GROUPS(MR32); i++) p[i] = a + 3 * i * line;
#pragma GCC unroll 14
  for (int i = 0; i < MR32; i++) {
    acc[i][0] = first ? (vec){0} : *(const vec *)(out + i * ldo);
    acc[i][1] = first ? (vec){0} : *(const vec *)(out + i * ldo + VL);
  }
  for (int64_t k = 0; k < K; k++, b += NR32) {
    vec b0 = *(const vec *)b, b1 = *(const vec *)(b + VL);
#pragma GCC unroll 14
    for (int i = 0; i < MR32; i++) {
      float x = *(const float *)ROW(p, i, line);
      acc[i][0] += x * b0; acc[i][1] += x * b1;
    }
#pragma GCC unroll 14
    for (int i = 0; i < ROW_GROUPS(MR32); i++) p[i] += step;
  }
#pragma GCC unroll 14
  for (int i = 0; i < MR32; i++) { *(vec *)(out + i * ldo) = acc[i][0]; *(vec *)(out + i * ldo + VL) = acc[i][1]; }
}
static void kernel_f32(int64_t K, const void *a, int64_t line, const void *b, float *out, int64_t ldo, int first) {
  if (line) fp32_rows(K, a, line, 4, b, out, ldo, first);
  else fp32_rows(K, a, 4, 4 * MR32, b, out, ldo, first);
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
static inline __attribute__((always_inline)) void bf16_rows(int64_t K, const char *a, int64_t line, int64_t step, const bf16 *b, float *out, int64_t ldo, int first) {
  __m512 acc[MR16][2];
  const char *p[ROW_GROUPS(MR16)];
#pragma GCC unroll 14
  for (int i = 0; i < ROW_GROUPS(MR16); i++) p[i] = a + 3 * i * line;
#pragma GCC unroll 14
  for (int i = 0; i < MR16; i++) {
    acc[i][0] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + i * ldo);
    acc[i][1] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + i * ldo + 16);
  }
  for (int64_t k = 0; k < K; k += 2, b += 2 * NR16) {
    __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 32);
#pragma GCC unroll 14
    for (int i = 0; i < MR16; i++) {
      int32_t pair;
      memcpy(&pair, ROW(p, i, line), 4);
      __m512bh ai = (__m512bh)_mm512_set1_epi32(pair);
      acc[i][0] = _mm512_dpbf16_ps(acc[i][0], ai, b0);
      acc[i][1] = _mm512_dpbf16_ps(acc[i][1], ai, b1);
    }
#pragma GCC unroll 14
    for (int i = 0; i < ROW_GROUPS(MR16); i++) p[i] += step;
  }
#pragma GCC unroll 14
  for (int i = 0; i < MR16; i++) { _mm512_storeu_ps(out + i * ldo, acc[i][0]); _mm512_storeu_ps(out + i * ldo + 16, acc[i][1]); }
}
static void kernel_bf16(int64_t K, const void *a, int64_t line, const void *b, float *out, int64_t ldo, int first) {
  if (line) bf16_rows(K, a, line, 4, b, out, ldo, first);
  else bf16_rows(K, a, 4, 4 * MR16, b, out, ldo, first);
}
#else
#define HAS_BF16 0
enum { MR16 = MR32, NR16 = NR32, KSTEP = 1 };
#endif
enum { MAX_MR = (int)MR32 > (int)MR16 ? (int)MR32 : (int)MR16, MAX_NR = (int)NR32 > (int)NR16 ? (int)NR32 : (int)NR16 };
/* How much of k the kernel passes over at a time. Tiles take in 4 KiB in 64 cycles, so their operands must come from the
 * first-level cache; vector registers are content with the second (measured: shorter blocks only cost). */
#ifdef LY_ISA_AMX
enum { KC16 = 512 };
#else
enum { KC16 = 4096 };
#endif
enum { KC32 = 4096, ABREAST = 4 /* panels of B whose sums wait at the same time */ };

/* How one product is carried out: in which element type its panels are, and their sizes. */
typedef struct { int half; int64_t mr, nr, K, Kp, kc; size_t size; } Plan;
static Plan plan_of(int dtA, int dtB, int64_t K) {
  if (HAS_BF16 && dtA == LY_BF16 && dtB == LY_BF16) return (Plan){1, MR16, NR16, K, (K + KSTEP - 1) / KSTEP * KSTEP, KC16, 2};
  return (Plan){0, MR32, NR32, K, K, KC32, 4};
}
static void run_kernel(int half, int64_t K, const void *a, int64_t line, const void *b, float *out, int64_t ldo, int first) {
#if HAS_BF16
  if (half) { kernel_bf16(K, a, line, b, out, ldo, first); return; }
#endif
  (void)half;
  kernel_f32(K, a, line, b, out, ldo, first);
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

/* ---- A block of A, as the kernel reads it: where it lies, or packed ---- */

typedef struct { const char *a; int64_t line; /* bytes; 0: packed panels */ size_t panel; const char *tail; /* rows that fill no panel, packed */ } Rows;

/* Whether rows are read where they lie. Not when they lie a multiple of 4 KiB apart: they would share one set of the first-level
 * cache, which has fewer places than the kernel has rows. Nor when they are read many times (N columns): packed, they
 * are one stream of memory and not many, which then pays for itself. */
static int readable(const Plan *p, int64_t N, int dt, int64_t ars, int64_t acs) {
  int64_t size = (int64_t)p->size;
  return acs == 1 && (dt == LY_F32 ? 4 : 2) == size && p->Kp == p->K && ars * size % 4096 != 0 && N <= 1536;
}
static Rows rows_of(const Plan *p, int thread, int64_t N, int64_t rows, const void *A, int dt, int64_t ars, int64_t acs) {
  size_t panel = (size_t)(p->mr * p->Kp) * p->size;
  int64_t blocks = (rows + p->mr - 1) / p->mr, whole = rows / p->mr;
  if (readable(p, N, dt, ars, acs)) {
    Rows r = {A, ars * (int64_t)p->size, (size_t)(p->mr * ars) * p->size, NULL};
    if (whole < blocks) {
      char *tail = ly_scratch(thread, 18, panel);
      pack_a(tail, p, rows - whole * p->mr, element(A, dt, whole * p->mr * ars), dt, ars, acs);
      r.tail = tail;
    }
    return r;
  }
  panel += 64; /* or all panels would begin in the same set of the first-level cache */
  char *a = ly_scratch(thread, 18, panel * (size_t)blocks);
  /* Stored transposed, a cache line holds one k of several panels: all of them take their part of it while it is there. */
  int64_t piece = acs == 1 || blocks == 1 ? p->Kp : acs % 1024 == 0 && KSTEP <= 16 ? 16 /* lines of one cache set */ : 32;
  for (int64_t k = 0; k < p->Kp; k += piece) {
    Plan part = *p;
    part.K = min64(piece, p->K - k); part.Kp = min64(piece, p->Kp - k);
    for (int64_t i = 0; i < blocks; i++)
      pack_a(a + i * panel + (size_t)(k * p->mr) * p->size, &part, min64(p->mr, rows - i * p->mr), element(A, dt, i * p->mr * ars + k * acs), dt, ars, acs);
  }
  return (Rows){a, 0, panel, NULL};
}
/* Panel i of them, from element k on, times K elements of a panel of B. */
static void multiply(const Plan *p, const Rows *r, int64_t i, int64_t rows, int64_t k, int64_t K, const char *b, float *out, int64_t ldo, int first) {
  int packed = !r->line || (r->tail && (i + 1) * p->mr > rows);
  const char *a = r->line && packed ? r->tail : r->a + i * r->panel;
  run_kernel(p->half, K, a + (size_t)(packed ? k * p->mr : k) * p->size, packed ? 0 : r->line, b + (size_t)(k * p->nr) * p->size, out, ldo, first);
}

/* ---- the serial product, of a B that is packed already ---- */

int64_t ly_gemm_rows(int dt) { return plan_of(dt, dt, 1).mr; }
ly_packed ly_pack(int thread, int slot, int64_t N, int64_t K, const void *B, int64_t brs, int64_t bcs, int dt) {
  Plan p = plan_of(dt, dt, K);
  size_t panel = (size_t)(p.nr * p.Kp) * p.size;
  int64_t panels = (N + p.nr - 1) / p.nr;
  char *b = ly_scratch(thread, slot, panel * (size_t)panels);
  for (int64_t j = 0; j < panels; j++) pack_b(b + j * panel, &p, min64(p.nr, N - j * p.nr), element(B, dt, j * p.nr * bcs), dt, brs, bcs);
  return (ly_packed){b, panel, p.Kp, dt};
}
void ly_gemm(int thread, int64_t M, int64_t N, int64_t K, float alpha, const void *A, int64_t ars, int64_t acs,
             const ly_packed *B, int64_t n0, int64_t k0, float *C, int64_t ldc, int accumulate) {
  Plan p = plan_of(B->dt, B->dt, K);
  /* Past K there are zeros in the panels of B, and what A has there must be zero or numbers too: so it is packed, unless K is whole. */
  Rows a = rows_of(&p, thread, N, M, A, B->dt, ars, acs);
  _Alignas(64) float tile[MAX_MR * MAX_NR];
  for (int64_t j = 0; j < N; j += p.nr) {
    const char *b = B->panels + (n0 + j) / p.nr * B->panel + (size_t)(k0 * p.nr) * p.size;
    int64_t cols = min64(p.nr, N - j);
    for (int64_t i = 0; i < M; i += p.mr) {
      if (alpha == 1.0f && cols == p.nr && M - i >= p.mr) { multiply(&p, &a, i / p.mr, M, 0, p.Kp, b, C + i * ldc + j, ldc, !accumulate); continue; }
      multiply(&p, &a, i / p.mr, M, 0, p.Kp, b, tile, p.nr, 1);
      for (int64_t r = 0; r < min64(p.mr, M - i); r++) {
        float *restrict c = C + (i + r) * ldc + j; const float *restrict t = tile + r * p.nr;
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

/* Alpha, the old value, the residual, and the one rounding of `cols` elements. */
static inline __attribute__((always_inline)) void store_line(const Product *t, const float *restrict x, int64_t at, int64_t cols) {
  float y[MAX_NR];
  for (int64_t j = 0; j < cols; j++) y[j] = t->alpha * x[j];
  if (t->dtC == LY_F32) {
    float *c = (float *)t->C + at; const float *add = (const float *)t->R + at;
    if (t->beta != 0) for (int64_t j = 0; j < cols; j++) y[j] += c[j];
    if (t->R) for (int64_t j = 0; j < cols; j++) y[j] += add[j];
    for (int64_t j = 0; j < cols; j++) c[j] = y[j];
  } else {
    bf16 *c = (bf16 *)t->C + at; const bf16 *add = (const bf16 *)t->R + at;
    if (t->beta != 0) for (int64_t j = 0; j < cols; j++) y[j] += bf16_to_f32(c[j]);
    if (t->R) for (int64_t j = 0; j < cols; j++) y[j] += bf16_to_f32(add[j]);
    round_row(c, y, cols);
  }
}
static void store_tile(const Product *t, const float *tile, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  int64_t at = row * t->ldc + col;
  if (cols == MAX_NR && t->p.nr == MAX_NR) for (int64_t r = 0; r < rows; r++) store_line(t, tile + r * MAX_NR, at + r * t->ldc, MAX_NR);
  else for (int64_t r = 0; r < rows; r++) store_line(t, tile + r * t->p.nr, at + r * t->ldc, cols);
}

static void product_body(void *ctx, int64_t item, int thread) {
  Product *t = ctx; Plan *p = &t->p;
  int64_t row0 = item / t->chunks * t->mc, rows = min64(t->mc, t->M - row0), blocks = (rows + p->mr - 1) / p->mr;
  int64_t j0 = item % t->chunks * t->chunk, j1 = min64(j0 + t->chunk, t->panels), tile = p->mr * p->nr;
  Rows a = rows_of(p, thread, t->N, rows, element(t->A, t->dtA, row0 * t->ars), t->dtA, t->ars, t->acs);
  _Alignas(64) float one[MAX_MR * MAX_NR];
  float *waiting = p->Kp > p->kc ? ly_scratch(thread, 20, (size_t)(blocks * ABREAST * tile) * 4) : NULL;
  for (int64_t from = j0; from < j1; from += ABREAST) {
    int64_t to = min64(from + ABREAST, j1), k = 0;
    do { /* once even when K is 0 */
      int64_t K = min64(p->kc, p->Kp - k), last = k + K == p->Kp;
      for (int64_t j = from; j < to; j++)
        for (int64_t i = 0; i < blocks; i++) {
          float *out = waiting ? waiting + (i * ABREAST + j - from) * tile : one;
          multiply(p, &a, i, rows, k, K, t->packed + j * t->panel, out, p->nr, k == 0);
          if (last) store_tile(t, out, row0 + i * p->mr, min64(p->mr, rows - i * p->mr), j * p->nr, min64(p->nr, t->N - j * p->nr));
        }
      k += K;
    } while (k < p->Kp);
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
    /* About 384 KiB of A at a time: it stays in the second-level cache while all of B passes by. */
    int64_t blocks = (int64_t)(384 * 1024) / (t.p.mr * (t.p.Kp > 0 ? min64(t.p.Kp, t.p.kc) : 1) * (int64_t)t.p.size);
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
