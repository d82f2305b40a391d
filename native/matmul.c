/* Matrix products: packed panels and a register-blocked micro-kernel (Goto & van de Geijn 2008).
 *
 * op(B) is packed once, by all threads, into panels of NR columns. The micro-kernel multiplies MR rows of op(A) by a panel of
 * B. Rows that lie in memory as the kernel reads them are read where they are; others (transposed ones, and those whose
 * addresses would all meet in one set of the first-level cache) are packed first, MC rows at a time, by the thread that
 * uses them. Long sums are cut into blocks of KC, so that what the kernel reads stays in the caches; between blocks the
 * accumulators wait in fp32, so every result is one chain of sums in the order of k, rounded once, however it was cut.
 * Tiles multiply sixteen times as fast as vectors, so that what follows a block of sums (scaling, adding, rounding, storing) would
 * take as long as the sums: it is done in small parts while the tiles work on the next block.
 *
 *   fp32 panels  A[k][MR]        B[k][NR]
 *   bf16 panels  A[k/2][16][2]   B[k/2][NR][2]    (vdpbf16ps multiplies pairs along k; MR of A's 16 are used)
 *   AMX panels   A[k/32][MR][32] B[k/2][NR][2]    (a tile of A is 16 rows x 32 of k, of B 16 pairs x 16 columns)
 */
#include "pack.h"

#if defined(LY_ISA_AVX512) || defined(LY_ISA_AVX512BF16) || defined(LY_ISA_AMX)
enum { VL = 16, MR32 = 14 };
#elif defined(LY_ISA_AVX2)
enum { VL = 8, MR32 = 6 };
#elif defined(__aarch64__)
enum { VL = 4, MR32 = 10 }; /* 20 sums of 32 registers: four multipliers with results after four cycles want 16 at least */
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

/* A block of sums that is not in C yet: its place there, and how many of its rows are. */
typedef struct Product Product;
typedef struct { const Product *t; const float *sums; int64_t row, rows, col, cols, stored, next; /* elements from here to the block that follows, 0: none */ } Pending;
static void store_some(Pending *p, int64_t rows);
/* Where a block of sums goes: to out, whose rows are ldo apart, after what is there already unless it is the first. From vectors of bf16 it may go to its place
 * at once: to c, rounded, together with r (NULL: nothing), rows ldc apart; c is NULL where not. */
typedef struct { float *out; int64_t ldo; int first; bf16 *c; const bf16 *r; int64_t ldc; Pending *before; /* what tiles put into its place meanwhile */ } Sums;

#if defined(LY_ISA_AMX)
#include "matmul_amx.h"
#define HAS_BF16 1
enum { MR16 = AMX_MR, WIDTH16 = MR16, NR16 = 32, KSTEP = 32 };
#define kernel_bf16 kernel_amx
#elif defined(LY_ISA_AVX512BF16)
#include <immintrin.h>
#define HAS_BF16 1
enum { MR16 = 14, WIDTH16 = 16 /* so that a row is one line of memory */, NR16 = 32, KSTEP = 2 };
static inline __m512 widened(const bf16 *x) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16); }
static inline __attribute__((always_inline)) void bf16_rows(int64_t K, const char *a, int64_t line, int64_t step, const bf16 *b, const Sums *s) {
  __m512 acc[MR16][2];
  float *out = s->out; int64_t ldo = s->ldo;
  const char *p[ROW_GROUPS(MR16)];
#pragma GCC unroll 14
  for (int i = 0; i < ROW_GROUPS(MR16); i++) p[i] = a + 3 * i * line;
#pragma GCC unroll 14
  for (int i = 0; i < MR16; i++) {
    acc[i][0] = s->first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + i * ldo);
    acc[i][1] = s->first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + i * ldo + 16);
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
  bf16 *c = s->c; const bf16 *r = s->r; int64_t ldc = s->ldc;
  if (!c) {
#pragma GCC unroll 14
    for (int i = 0; i < MR16; i++) { _mm512_storeu_ps(out + i * ldo, acc[i][0]); _mm512_storeu_ps(out + i * ldo + 16, acc[i][1]); }
    return;
  }
  if (r) {
#pragma GCC unroll 14
    for (int i = 0; i < MR16; i++) { acc[i][0] = _mm512_add_ps(acc[i][0], widened(r + i * ldc)); acc[i][1] = _mm512_add_ps(acc[i][1], widened(r + i * ldc + 16)); }
  }
#pragma GCC unroll 14
  for (int i = 0; i < MR16; i++) _mm512_storeu_si512(c + i * ldc, (__m512i)_mm512_cvtne2ps_pbh(acc[i][1], acc[i][0]));
}
static void kernel_bf16(int64_t K, const void *a, int64_t line, const void *b, const Sums *s) {
  if (s->c) for (int i = 0; i < MR16; i++) { __builtin_prefetch(s->c + i * s->ldc, 1); if (s->r) __builtin_prefetch(s->r + i * s->ldc); }
  if (line) bf16_rows(K, a, line, 4, b, s);
  else bf16_rows(K, a, 4, 4 * WIDTH16, b, s);
}
#else
#define HAS_BF16 0
enum { MR16 = MR32, WIDTH16 = MR32, NR16 = NR32, KSTEP = 1 };
#endif
enum { MAX_MR = (int)MR32 > (int)MR16 ? (int)MR32 : (int)MR16, MAX_NR = (int)NR32 > (int)NR16 ? (int)NR32 : (int)NR16 };
/* How much of k is passed over at a time. Tiles read their panels from the second-level cache nearly as fast as from the first, so that k is cut
 * only where it is long, or where rows are packed (transposed): then an item shall have all columns, or rows would be packed for each part
 * of them. Vector code is content with whole panels of bf16 (shorter ones only cost), and with 1,024 of fp32. ROWS_FIRST: rows stay, and panels of B pass by, or the other way round. */
#ifdef LY_ISA_AMX
enum { KC16 = 2304, LONG16 = 512, ROWS_FIRST = 1 };
#else
enum { KC16 = 4096, LONG16 = 4096, ROWS_FIRST = 0 };
#endif
enum { KC32 = 1024 };

/* How one product is carried out: in which element type its panels are, and their sizes. */
typedef struct { int half; int64_t mr, width /* of a packed panel of A */, nr, K, Kp, kc; size_t size; } Plan;
static Plan plan_of(int dtA, int dtB, int64_t K, int transposed) {
  if (HAS_BF16 && dtA == LY_BF16 && dtB == LY_BF16) return (Plan){1, MR16, WIDTH16, NR16, K, (K + KSTEP - 1) / KSTEP * KSTEP, K > KC16 || transposed ? LONG16 : KC16, 2};
  return (Plan){0, MR32, MR32, NR32, K, K, KC32, 4};
}
static void run_kernel(int half, int64_t K, const void *a, int64_t line, const void *b, const Sums *s) {
#if defined(LY_ISA_AMX)
  if (half) { kernel_amx(K, a, line, b, s->out, s->ldo, s->first, s->before); return; }
#elif HAS_BF16
  if (half) { kernel_bf16(K, a, line, b, s); return; }
#endif
  (void)half;
  kernel_f32(K, a, line, b, s->out, s->ldo, s->first);
}

/* ---- packing (pack.h), in the form that the plan asks for ---- */

static const char *element(const void *base, int dt, int64_t index) { return (const char *)base + index * (dt == LY_F32 ? 4 : 2); }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }

static void pack_a(void *out, const Plan *p, int64_t rows, const void *A, int dt, int64_t ars, int64_t acs) {
#ifdef LY_ISA_AMX
  if (p->half) { pack_amx(out, rows, p->K, p->Kp, A, ars, acs); return; }
#elif HAS_BF16
  if (p->half) { pack_pairs(out, WIDTH16, MR16, rows, p->K, p->Kp, A, ars, acs); return; }
#endif
  pack_f32(out, MR32, rows, p->K, A, dt, ars, acs);
}
static void pack_b(void *out, const Plan *p, int64_t cols, const void *B, int dt, int64_t brs, int64_t bcs) {
#if HAS_BF16
  if (p->half) { pack_pairs(out, NR16, NR16, cols, p->K, p->Kp, B, bcs, brs); return; }
#endif
  pack_f32(out, NR32, cols, p->K, B, dt, bcs, brs);
}
/* All panels of these rows, `panel` bytes apart. */
static void pack_rows(char *out, size_t panel, const Plan *p, int64_t rows, const void *A, int dt, int64_t ars, int64_t acs) {
#if HAS_BF16 && !defined(LY_ISA_AMX)
  if (p->half && ars == 1) { pack_side_by_side((uint32_t *)out, (int64_t)panel / 4, WIDTH16, MR16, rows, p->K, p->Kp, A, acs); return; }
#endif
  /* Stored transposed, a cache line holds one k of several panels: all of them take their part of it while it is there. */
  Plan part = *p;
  int64_t piece = acs == 1 || rows <= p->mr ? p->Kp : acs % 1024 == 0 && KSTEP <= 16 ? 16 /* lines of one cache set */ : 32;
  for (int64_t at = 0; at < p->Kp; at += piece) {
    part.K = min64(piece, p->K - at); part.Kp = min64(piece, p->Kp - at);
    for (int64_t i = 0; i * p->mr < rows; i++)
      pack_a(out + i * panel + (size_t)(at * p->width) * p->size, &part, min64(p->mr, rows - i * p->mr), element(A, dt, i * p->mr * ars + at * acs), dt, ars, acs);
  }
}
/* All panels of these columns. */
static void pack_columns(char *out, size_t panel, const Plan *p, int64_t cols, const void *B, int dt, int64_t brs, int64_t bcs) {
#if HAS_BF16
  if (p->half && bcs == 1) { pack_side_by_side((uint32_t *)out, (int64_t)panel / 4, NR16, NR16, cols, p->K, p->Kp, B, brs); return; }
#endif
  Plan part = *p;
  int64_t piece = brs == 1 || cols <= p->nr ? p->Kp : 32;
  for (int64_t at = 0; at < p->Kp; at += piece) {
    part.K = min64(piece, p->K - at); part.Kp = min64(piece, p->Kp - at);
    for (int64_t j = 0; j * p->nr < cols; j++)
      pack_b(out + j * panel + (size_t)(at * p->nr) * p->size, &part, min64(p->nr, cols - j * p->nr), element(B, dt, j * p->nr * bcs + at * brs), dt, brs, bcs);
  }
}

/* ---- A block of A, as the kernel reads it: where it lies, or packed ---- */

typedef struct { const char *a; int64_t line; /* bytes; 0: packed panels */ size_t panel; const char *tail; /* rows that fill no panel, packed */ } Rows;

/* Whether rows are read where they lie. Tiles always do. Vectors not when rows lie a multiple of 4 KiB apart: they would share one set of the
 * first-level cache, which has fewer places than the kernel has rows. Nor when they are read many times (N columns): packed, they
 * are one stream of memory and not many, which then pays for itself. */
static int readable(const Plan *p, int64_t N, int dt, int64_t ars, int64_t acs) {
  int64_t size = (int64_t)p->size;
  if (acs != 1 || (dt == LY_F32 ? 4 : 2) != size || p->Kp != p->K) return 0;
#ifdef LY_ISA_AMX
  if (p->half) return 1;
#endif
  return ars * size % 4096 != 0 && N <= 1536;
}
/* From element k on, K of them (of p->K in all). */
static Rows rows_of(const Plan *p, int thread, int64_t N, int64_t rows, const void *A, int dt, int64_t ars, int64_t acs, int64_t k, int64_t K) {
  size_t panel = (size_t)(p->width * K) * p->size;
  int64_t blocks = parts(rows, p->mr), whole = rows / p->mr;
  Plan part = *p;
  part.K = min64(K, p->K - k); part.Kp = K;
  if (readable(p, N, dt, ars, acs)) {
    Rows r = {element(A, dt, k), ars * (int64_t)p->size, (size_t)(p->mr * ars) * p->size, NULL};
    if (whole < blocks) {
      char *tail = ly_scratch(thread, 18, panel);
      pack_a(tail, &part, rows - whole * p->mr, element(A, dt, whole * p->mr * ars + k), dt, ars, acs);
      r.tail = tail;
    }
    return r;
  }
  panel += 64; /* or all panels would begin in the same set of the first-level cache */
  char *a = ly_scratch(thread, 18, panel * (size_t)blocks);
  pack_rows(a, panel, &part, rows, element(A, dt, k * acs), dt, ars, acs);
  return (Rows){a, 0, panel, NULL};
}
/* Panel i of them by the same K elements of a panel of B, which begin at b. */
static void multiply(const Plan *p, const Rows *r, int64_t i, int64_t rows, int64_t K, const char *b, const Sums *s) {
  int packed = !r->line || (r->tail && (i + 1) * p->mr > rows);
  const char *a = r->line && packed ? r->tail : r->a + i * r->panel;
  run_kernel(p->half, K, a, packed ? 0 : r->line, b, s);
}

/* ---- the serial product, of a B that is packed already ---- */

ly_block ly_gemm_block(int dt) { Plan p = plan_of(dt, dt, 1, 0); return (ly_block){p.mr, p.nr, p.Kp}; }
ly_packed ly_pack(int thread, int slot, int64_t N, int64_t K, const void *B, int64_t brs, int64_t bcs, int dt) {
  Plan p = plan_of(dt, dt, K, 0);
  size_t panel = (size_t)(p.nr * p.Kp) * p.size;
  int64_t panels = parts(N, p.nr);
  char *b = ly_scratch(thread, slot, panel * (size_t)panels);
  pack_columns(b, panel, &p, N, B, dt, brs, bcs);
  return (ly_packed){b, panel, p.Kp, dt};
}
void ly_gemm(int thread, int64_t M, int64_t N, int64_t K, float alpha, const void *A, int64_t ars, int64_t acs,
             const ly_packed *B, int64_t n0, int64_t k0, float *C, int64_t ldc, int accumulate) {
  Plan p = plan_of(B->dt, B->dt, K, 0);
  /* Past K there are zeros in the panels of B, and what A has there must be zero or numbers too: so it is packed, unless K is whole. */
  Rows a = rows_of(&p, thread, N, M, A, B->dt, ars, acs, 0, p.Kp);
  Pending none = {0};
  _Alignas(64) float tile[MAX_MR * MAX_NR];
  for (int64_t j = 0; j < N; j += p.nr) {
    const char *b = B->panels + (n0 + j) / p.nr * B->panel + (size_t)(k0 * p.nr) * p.size;
    int64_t cols = min64(p.nr, N - j);
    for (int64_t i = 0; i < M; i += p.mr) {
      if (alpha == 1.0f && cols == p.nr && M - i >= p.mr) { multiply(&p, &a, i / p.mr, M, p.Kp, b, &(Sums){.out = C + i * ldc + j, .ldo = ldc, .first = !accumulate, .before = &none}); continue; }
      multiply(&p, &a, i / p.mr, M, p.Kp, b, &(Sums){.out = tile, .ldo = p.nr, .first = 1, .before = &none});
      for (int64_t r = 0; r < min64(p.mr, M - i); r++) {
        float *restrict c = C + (i + r) * ldc + j; const float *restrict t = tile + r * p.nr;
        if (accumulate) for (int64_t x = 0; x < cols; x++) c[x] += alpha * t[x];
        else for (int64_t x = 0; x < cols; x++) c[x] = alpha * t[x];
      }
    }
  }
}

/* ---- the parallel product ---- */

enum { GROUP = 4, PIECE = 128 }; /* panels of B, and elements of k, that are packed as one item; KC and LEG are whole pieces */
struct Product {
  Plan p; int64_t M, N; float alpha, beta;
  const void *A; int dtA; int64_t ars, acs; const void *B; int dtB; int64_t brs, bcs;
  char *C; int dtC; int64_t ldc; const char *R;
  char *packed; int64_t mc, panels, groups /* of GROUP panels */, chunk /* B panels an item takes */, chunks;
  int64_t from, to; float *sums; /* the part of k that all items go through together, and where all sums wait for the next; NULL: there is one part */
};

/* Packed B, for each block of k all its panels: what an item reads at a time lies together, and in all sets of the cache. */
static char *panel_of(const Product *t, int64_t k, int64_t K, int64_t j) { return t->packed + (size_t)(((k - t->from) * t->panels + j * K) * t->p.nr) * t->p.size; }
static void pack_b_body(void *ctx, int64_t item, int thread) {
  const Product *t = ctx; Plan part = t->p; (void)thread;
  int64_t at = t->from + item / t->groups * PIECE, from = item % t->groups * GROUP, block = t->from + (at - t->from) / t->p.kc * t->p.kc, K = min64(t->p.kc, t->to - block);
  part.Kp = min64(PIECE, t->to - at); part.K = min64(part.Kp, t->p.K - at);
  pack_columns(panel_of(t, block, K, from) + (size_t)((at - block) * part.nr) * part.size, (size_t)(K * part.nr) * part.size, &part, min64(GROUP * part.nr, t->N - from * part.nr),
               element(t->B, t->dtB, from * part.nr * t->bcs + at * t->brs), t->dtB, t->brs, t->bcs);
}

/* Alpha, the old value, the residual, and the one rounding of `cols` elements. What is known where it is called decides which loops there are. */
static inline __attribute__((always_inline)) void store_line(const Product *t, const float *restrict x, int64_t at, int64_t cols, int half, int add, int64_t next) {
  float y[MAX_NR];
  for (int64_t j = 0; j < cols; j++) y[j] = t->alpha * x[j];
  if (half) {
    bf16 *c = (bf16 *)t->C + at; const bf16 *r = (const bf16 *)t->R + at;
    if (add && t->beta != 0) for (int64_t j = 0; j < cols; j++) y[j] += bf16_to_f32(c[j]);
    if (add && t->R) for (int64_t j = 0; j < cols; j++) y[j] += bf16_to_f32(r[j]);
    round_row(c, y, cols);
    if (next) { __builtin_prefetch(c + next, 1); if (add && t->R) __builtin_prefetch(r + next); }
  } else {
    float *c = (float *)t->C + at; const float *r = (const float *)t->R + at;
    if (add && t->beta != 0) for (int64_t j = 0; j < cols; j++) y[j] += c[j];
    if (add && t->R) for (int64_t j = 0; j < cols; j++) y[j] += r[j];
    for (int64_t j = 0; j < cols; j++) c[j] = y[j];
    if (next) { __builtin_prefetch(c + next, 1); __builtin_prefetch(c + next + 16, 1); }
  }
}
/* The next `rows` rows of a block. */
static void store_some(Pending *p, int64_t rows) {
  const Product *t = p->t;
  if (!t) return;
  int64_t from = p->stored, to = min64(p->rows, from + rows), at = (p->row + from) * t->ldc + p->col;
  const float *x = p->sums + from * t->p.nr;
  int half = t->dtC == LY_BF16, add = t->beta != 0 || t->R;
  p->stored = to;
  if (p->cols == MAX_NR && t->p.nr == MAX_NR) {
    if (half && !add) for (; from < to; from++, x += MAX_NR, at += t->ldc) store_line(t, x, at, MAX_NR, 1, 0, p->next);
    else if (half) for (; from < to; from++, x += MAX_NR, at += t->ldc) store_line(t, x, at, MAX_NR, 1, 1, p->next);
    else if (!add) for (; from < to; from++, x += MAX_NR, at += t->ldc) store_line(t, x, at, MAX_NR, 0, 0, p->next);
    else for (; from < to; from++, x += MAX_NR, at += t->ldc) store_line(t, x, at, MAX_NR, 0, 1, p->next);
  } else for (; from < to; from++, x += t->p.nr, at += t->ldc) store_line(t, x, at, p->cols, half, 1, p->next);
}

/* A whole block of vectors' sums that are results, or are when they are rounded, goes to its place at once; returns whether it does. */
static int at_once(const Product *t, int64_t row, int64_t rows, int64_t col, Sums *s) {
  const Plan *p = &t->p;
  int64_t place = row * t->ldc + col;
  if ((ROWS_FIRST && p->half) || t->alpha != 1.0f || t->beta != 0 || rows < p->mr || t->N - col < p->nr) return 0;
  if (t->dtC == LY_F32 && !t->R && s->first) { s->out = (float *)t->C + place; s->ldo = t->ldc; return 1; }
  if (t->dtC == LY_BF16 && HAS_BF16 && p->half) { s->c = (bf16 *)t->C + place; s->r = t->R ? (const bf16 *)t->R + place : NULL; s->ldc = t->ldc; return 1; }
  return 0;
}

/* An item: `rows` rows by `chunk` panels of B. */
static void product_body(void *ctx, int64_t item, int thread) {
  Product *t = ctx; Plan *p = &t->p;
  int64_t row0 = item / t->chunks * t->mc, rows = min64(t->mc, t->M - row0), blocks = parts(rows, p->mr);
  int64_t j0 = item % t->chunks * t->chunk, panels = min64(t->chunk, t->panels - j0), k = t->from;
  int rowsFirst = ROWS_FIRST && p->half;
  _Alignas(64) float block[2][MAX_MR * MAX_NR];
  float *waiting = p->Kp > p->kc && !t->sums ? ly_scratch(thread, 20, (size_t)(blocks * panels * p->mr * p->nr) * 4) : NULL;
  Pending before = {0};
  do { /* once even when K is 0 */
    int64_t K = min64(p->kc, t->to - k);
    int last = k + K >= p->Kp;
    Rows a = rows_of(p, thread, t->N, rows, element(t->A, t->dtA, row0 * t->ars), t->dtA, t->ars, t->acs, k, K);
    for (int64_t n = 0; n < blocks * panels; n++) {
      int64_t i = rowsFirst ? n / panels : n % blocks, j = j0 + (rowsFirst ? n % panels : n / blocks);
      float *sums = t->sums ? t->sums + ((row0 / p->mr + i) * t->panels + j) * p->mr * p->nr : waiting ? waiting + n * p->mr * p->nr : block[n & 1];
      Sums s = {.out = sums, .ldo = p->nr, .first = k == 0, .before = &before};
      int there = last && at_once(t, row0 + i * p->mr, rows - i * p->mr, j * p->nr, &s);
      multiply(p, &a, i, rows, K, panel_of(t, k, K, j), &s);
      if (!last) continue;
      store_some(&before, before.rows); /* what the kernel has not */
      before = there ? (Pending){0} : (Pending){t, sums, row0 + i * p->mr, min64(p->mr, rows - i * p->mr), j * p->nr, min64(p->nr, t->N - j * p->nr), 0, 0};
      if (n + 1 < blocks * panels) {
        int64_t down = rowsFirst ? (n + 1) / panels : (n + 1) % blocks, right = j0 + (rowsFirst ? (n + 1) % panels : (n + 1) / blocks);
        before.next = (down - i) * p->mr * t->ldc + (right - j) * p->nr;
      }
    }
    k += K;
  } while (k < t->to);
  store_some(&before, before.rows);
}

/* Transposed products have long sums and few results (gradients of weights, whose k are tokens): panels of B for all of k would pass by from memory for every item.
 * All items go through this much of k before any goes on; panels of B and a thread's share of the sums stay in the second-level cache. 0: of no use. */
enum { LEG = 1024 };
static int64_t leg_of(const Product *t, int packs) {
  int64_t sums = parts(t->M, t->p.mr) * t->panels * t->p.mr * t->p.nr * 4;
  return ROWS_FIRST && t->p.half && packs && t->p.Kp > LEG && sums <= ly_threads() * ((int64_t)1 << 20) ? LEG : 0;
}

/* What an item takes; results do not depend on it. Returns how many items there are for the rows. */
static int64_t cut(Product *t, int packs, int legs) {
  const Plan *p = &t->p;
  int64_t kc = p->Kp > 0 ? min64(p->Kp, p->kc) : 1, line = kc * (int64_t)p->size, blocks = parts(t->M, p->mr);
  if (ROWS_FIRST && p->half) {
    /* Panels of B stay in the second-level cache. Of all cuts that leave them there, the one that reads the least: each part of the columns
     * reads all of A (and packs it, which is as much again), each part of the rows all of B, unless it stays there between items. */
    int64_t items = 8 * ly_threads(), least = INT64_MAX;
    for (int64_t c = parts(t->panels * p->nr * line, 1 << 20); c <= t->panels; c++) {
      int64_t chunk = parts(t->panels, c), most = packs ? (384 << 10) / (p->mr * line) : blocks;
      if (p->Kp > kc) most = min64(most, (768 << 10) / (p->mr * p->nr * chunk * 4)); /* sums that wait */
      int64_t rows = parts(blocks, most < 1 ? 1 : most);
      if (rows * c < items) rows = min64(parts(items, c), blocks);
      int64_t reads = c * t->M * (1 + packs) + (legs ? 0 : rows * t->N);
      if (reads < least) { least = reads; t->chunk = chunk; t->mc = parts(blocks, rows) * p->mr; }
      if (c >= items) break;
    }
  } else {
    /* About 384 KiB of A stay in the second-level cache while all of B passes by. Rather shorter pieces than several items that each pack the same rows. */
    int64_t fit = (384 << 10) / (p->mr * line), most = min64(t->M / (8 * p->mr), 8);
    t->mc = p->mr * (fit < 1 || most < 1 ? 1 : min64(fit, most));
    int64_t rows = parts(t->M, t->mc);
    t->chunk = parts(t->panels, rows >= 8 ? 1 : parts(8, rows));
  }
  t->chunks = parts(t->panels, t->chunk);
  return parts(t->M, t->mc);
}

void ly_matmul(int transA, int transB, int64_t M, int64_t N, int64_t K, float alpha, const void *A, int dtA, int64_t lda,
               const void *B, int dtB, int64_t ldb, float beta, void *C, int dtC, int64_t ldc, const void *R,
               int64_t batch, int64_t sA, int64_t sB, int64_t sC) {
  if (M <= 0 || N <= 0) return;
  for (int64_t s = 0; s < batch; s++) {
    Product t = {.p = plan_of(dtA, dtB, K, transA), .M = M, .N = N, .alpha = alpha, .beta = beta,
                 .A = element(A, dtA, s * sA), .dtA = dtA, .ars = transA ? 1 : lda, .acs = transA ? lda : 1,
                 .B = element(B, dtB, s * sB), .dtB = dtB, .brs = transB ? 1 : ldb, .bcs = transB ? ldb : 1,
                 .C = (char *)element(C, dtC, s * sC), .dtC = dtC, .ldc = ldc, .R = R ? element(R, dtC, s * sC) : NULL};
    t.panels = parts(N, t.p.nr);
    t.groups = parts(t.panels, GROUP);
    int packs = !readable(&t.p, N, dtA, t.ars, t.acs);
    int64_t leg = leg_of(&t, packs);
    if (leg) {
      t.p.kc = leg;
      t.sums = ly_scratch(-1, 21, (size_t)(parts(M, t.p.mr) * t.panels * t.p.mr * t.p.nr) * 4);
    } else leg = t.p.Kp;
    int64_t rowItems = cut(&t, packs, leg < t.p.Kp);
    t.packed = ly_scratch(-1, 19, (size_t)(t.panels * t.p.nr * leg) * t.p.size);
    do { /* once even when K is 0 */
      t.to = min64(t.from + leg, t.p.Kp);
      ly_in_order(t.groups * parts(t.to - t.from, PIECE), pack_b_body, &t);
      ly_parallel(rowItems * t.chunks, product_body, &t);
      t.from = t.to;
    } while (t.from < t.p.Kp);
  }
}
