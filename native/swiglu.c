/* SwiGLU (Shazeer 2020): y = silu(gate) * up, silu(x) = x / (1 + exp(-x)). */
#include "rows.h"

#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define GLU_LANES 16
static inline __m512 glu_load(const bf16 *x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16)); }
static inline void glu_store(bf16 *y, __m512 x) { _mm256_storeu_si256((void *)y, (__m256i)_mm512_cvtneps_pbh(x)); }
/* To 3e-6, which is a thousandth of what rounding to bf16 takes: 2^t by a shorter polynomial, and a reciprocal by one step of Newton's. */
static inline __m512 glu_sigmoid(__m512 x) {
  __m512 t = _mm512_min_ps(_mm512_set1_ps(120.0f), _mm512_mul_ps(x, _mm512_set1_ps(-LOG2E))); /* in this order NaN stays */
  __m512 r = _mm512_reduce_ps(t, 0), p = _mm512_set1_ps(9.58280e-3f); /* t less the nearest whole number */
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.590631e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4024099e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9312421e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  __m512 d = _mm512_add_ps(_mm512_scalef_ps(p, _mm512_sub_ps(t, r)), _mm512_set1_ps(1.0f)), s = _mm512_rcp14_ps(d);
  return _mm512_fmadd_ps(s, _mm512_fnmadd_ps(d, s, _mm512_set1_ps(1.0f)), s);
}
#endif

static inline void glu_forward(const void *gate, const void *up, void *y, int64_t n, int dt) {
  int64_t i = 0;
#ifdef GLU_LANES
  if (dt == LY_BF16)
    for (; i + GLU_LANES <= n; i += GLU_LANES) {
      __m512 x = glu_load((const bf16 *)gate + i);
      glu_store((bf16 *)y + i, _mm512_mul_ps(_mm512_mul_ps(x, glu_sigmoid(x)), glu_load((const bf16 *)up + i)));
    }
#endif
  enum { PART = 256 }; /* at a time, so that what is widened stays in the first-level cache */
  float g[PART], u[PART];
  for (; i < n; i += PART) {
    int64_t m = smaller(PART, n - i);
    load_row(g, gate, i, m, dt); load_row(u, up, i, m, dt);
    for (int64_t f = 0; f < m; f++) g[f] = g[f] * fast_sigmoid(g[f]) * u[f];
    store_row(y, i, g, m, dt);
  }
}
/* dy is y's gradient; y (unless NULL) is made again, and may lie in its place, as dgate and dup may in gate's and up's. */
static inline void glu_backward(const void *gate, const void *up, const void *dy, void *dgate, void *dup, void *y, int64_t n, int dt) {
  int64_t i = 0;
#ifdef GLU_LANES
  if (dt == LY_BF16)
    for (; i + GLU_LANES <= n; i += GLU_LANES) {
      __m512 x = glu_load((const bf16 *)gate + i), u = glu_load((const bf16 *)up + i), d = glu_load((const bf16 *)dy + i), s = glu_sigmoid(x), silu = _mm512_mul_ps(x, s);
      __m512 slope = _mm512_fnmadd_ps(silu, s, _mm512_add_ps(s, silu)); /* s (1 + x (1 - s)) */
      if (y) glu_store((bf16 *)y + i, _mm512_mul_ps(silu, u));
      glu_store((bf16 *)dup + i, _mm512_mul_ps(silu, d));
      glu_store((bf16 *)dgate + i, _mm512_mul_ps(slope, _mm512_mul_ps(d, u)));
    }
#endif
  enum { PART = 256 };
  float g[PART], u[PART], d[PART];
  for (; i < n; i += PART) {
    int64_t m = smaller(PART, n - i);
    load_row(g, gate, i, m, dt); load_row(u, up, i, m, dt); load_row(d, dy, i, m, dt);
    for (int64_t f = 0; f < m; f++) {
      float x = g[f], s = fast_sigmoid(x), v = u[f], e = d[f];
      d[f] = x * s * v;
      u[f] = e * x * s;
      g[f] = e * v * s * (1.0f + x * (1.0f - s));
    }
    store_row(dgate, i, g, m, dt); store_row(dup, i, u, m, dt);
    if (y) store_row(y, i, d, m, dt);
  }
}

/* ---- rows of a matrix ---- */

typedef struct { const char *gu, *dy; char *out, *y; int64_t N, F; int dt; } Glu;

static void forward_body(void *ctx, int64_t block, int thread) {
  const Glu *t = ctx; int64_t F = t->F, row = F * (t->dt == LY_F32 ? 4 : 2); (void)thread;
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    const char *gate = t->gu + i * 2 * row;
    fetch_row(t->gu, (i + 1) * 2 * F, 2 * F, t->dt);
    glu_forward(gate, gate + row, t->out + i * row, F, t->dt);
  }
}
void ly_swiglu_forward(const void *gu, void *y, int64_t N, int64_t F, int dt) {
  Glu t = {.gu = gu, .out = y, .N = N, .F = F, .dt = dt};
  ly_parallel(blocks_of(N), forward_body, &t);
}

static void backward_body(void *ctx, int64_t block, int thread) {
  const Glu *t = ctx; int64_t F = t->F, row = F * (t->dt == LY_F32 ? 4 : 2); (void)thread;
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    const char *gate = t->gu + i * 2 * row;
    char *dgate = t->out + i * 2 * row;
    fetch_row(t->gu, (i + 1) * 2 * F, 2 * F, t->dt); fetch_row(t->dy, (i + 1) * F, F, t->dt);
    glu_backward(gate, gate + row, t->dy + i * row, dgate, dgate + row, t->y ? t->y + i * row : NULL, F, t->dt);
  }
}
void ly_swiglu_backward(const void *dy, const void *gu, void *dgu, void *y, int64_t N, int64_t F, int dt) {
  Glu t = {gu, dy, dgu, y, N, F, dt};
  ly_parallel(blocks_of(N), backward_body, &t);
}
