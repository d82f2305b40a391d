/* AdamW (Loshchilov & Hutter 2019) in one pass over flat buffers, and the norm that clipping needs.
 * Beside bf16 parameters, master weights are split as in Split-SGD (Kalamkar et al. 2020): a parameter is its master's upper half, rounded,
 * and `low` what is to be added to its bits to have the master's, -32768 to 32767. That takes ties to be rounded away from 0: of two masters
 * that an even upper half could stand for, to even, both would have the same low. */
#include "rows.h"
enum { PIECE = 16384 };
typedef struct {
  int64_t n; void *param; int16_t *low; float *m, *v, *ema; const void *grad; int dt;
  double lr, b1, b2, eps, wd, c1, c2, gscale, ema_decay, *partial;
} Adam;

static inline __attribute__((always_inline)) void join_row(float *restrict p, const bf16 *restrict high, const int16_t *restrict low, int64_t n) {
  uint32_t *restrict bits = (uint32_t *)p;
  for (int64_t i = 0; i < n; i++) bits[i] = ((uint32_t)high[i] << 16) + (uint32_t)(int32_t)low[i];
}
static inline __attribute__((always_inline)) void split_row(const float *restrict p, bf16 *restrict high, int16_t *restrict low, int64_t n) {
  const uint32_t *restrict bits = (const uint32_t *)p;
  for (int64_t i = 0; i < n; i++) {
    uint32_t x = (bits[i] & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : bits[i]; /* a NaN that is rounded may become 0 */
    high[i] = (bf16)((x + 0x8000) >> 16);
    low[i] = (int16_t)x;
  }
}

static void adam_body(void *ctx, int64_t piece, int thread) {
  const Adam *t = ctx;
  int64_t at = piece * PIECE, n = smaller(PIECE, t->n - at);
  float *g = ly_scratch(thread, 0, PIECE * 8), *restrict p = t->low ? g + PIECE : (float *)t->param + at, *restrict m = t->m + at, *restrict v = t->v + at;
  /* The factors are rounded once, as PyTorch rounds them: 1 - 0.999 of floats would be wrong in the fifth digit. */
  float decay = (float)(1 - t->lr * t->wd), rate = (float)(t->lr / t->c1), root = (float)(1 / sqrt(t->c2)), eps = (float)t->eps;
  float b1 = (float)t->b1, b2 = (float)t->b2, rest1 = (float)(1 - t->b1), rest2 = (float)(1 - t->b2), gscale = (float)t->gscale;
  load_row(g, t->grad, at, n, t->dt);
  if (t->low) join_row(p, (const bf16 *)t->param + at, t->low + at, n);
  for (int64_t i = 0; i < n; i++) {
    float x = g[i] * gscale;
    m[i] = b1 * m[i] + rest1 * x;
    v[i] = b2 * v[i] + rest2 * x * x;
    p[i] = p[i] * decay - rate * m[i] / (sqrtf(v[i]) * root + eps);
  }
  if (t->low) split_row(p, (bf16 *)t->param + at, t->low + at, n);
  if (!t->ema) return;
  float *restrict average = t->ema + at, old = (float)t->ema_decay, new = (float)(1 - t->ema_decay);
  for (int64_t i = 0; i < n; i++) average[i] = old * average[i] + new * p[i];
}
void ly_adamw(int64_t n, void *param, int16_t *low, float *m, float *v, float *ema, const void *grad, int dt, double lr, double b1, double b2,
              double eps, double weight_decay, double c1, double c2, double gscale, double ema_decay) {
  Adam t = {n, param, low, m, v, ema, grad, dt, lr, b1, b2, eps, weight_decay, c1, c2, gscale, ema_decay, NULL};
  ly_parallel((n + PIECE - 1) / PIECE, adam_body, &t);
}

void ly_join_master(const void *param, const int16_t *low, float *master, int64_t n) { join_row(master, param, low, n); }
void ly_split_master(const float *master, void *param, int16_t *low, int64_t n) { split_row(master, param, low, n); }

static void squares_body(void *ctx, int64_t piece, int thread) {
  const Adam *t = ctx;
  int64_t at = piece * PIECE, n = smaller(PIECE, t->n - at);
  float *x = ly_scratch(thread, 0, PIECE * 4); double sum = 0; /* fp64: gradients of 1e20 are clipped, not infinite */
  load_row(x, t->grad, at, n, t->dt);
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
  t->partial[piece] = sum;
}
double ly_sum_squares(const void *x, int64_t n, int dt) {
  int64_t pieces = (n + PIECE - 1) / PIECE;
  Adam t = {.n = n, .grad = x, .dt = dt, .partial = ly_scratch(-1, 0, (size_t)(pieces + 1) * 8)};
  ly_parallel(pieces, squares_body, &t);
  double sum = 0;
  for (int64_t i = 0; i < pieces; i++) sum += t.partial[i];
  return sum;
}
