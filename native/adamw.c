/* AdamW (Loshchilov & Hutter 2019) in one pass over flat buffers, and the norm that clipping needs.
 * Beside bf16 parameters, master weights are in halves (rows.h): a parameter is its master's upper one. */
#include "rows.h"
enum { PIECE = 16384 };
typedef struct {
  int64_t n; void *param; int16_t *low; float *m, *v, *ema; const void *grad; int dt;
  double lr, b1, b2, eps, wd, c1, c2, gscale, ema_decay, *partial;
} Adam;

/* `halves`: parameters and gradients are bf16. A constant where this is called, so that each type has a loop of its own. */
static inline __attribute__((always_inline)) void update(const Adam *t, int64_t at, int64_t n, int halves) {
  float *restrict m = t->m + at, *restrict v = t->v + at, *restrict p = (float *)t->param + at;
  bf16 *restrict high = (bf16 *)t->param + at; int16_t *restrict low = t->low + at;
  const float *restrict grad = (const float *)t->grad + at; const bf16 *restrict short_grad = (const bf16 *)t->grad + at;
  /* The factors are rounded once, as PyTorch rounds them: 1 - 0.999 of floats would be wrong in the fifth digit. */
  float decay = (float)(1 - t->lr * t->wd), rate = (float)(t->lr / t->c1), root = (float)(1 / sqrt(t->c2)), eps = (float)t->eps;
  float b1 = (float)t->b1, b2 = (float)t->b2, rest1 = (float)(1 - t->b1), rest2 = (float)(1 - t->b2), gscale = (float)t->gscale;
  for (int64_t i = 0; i < n; i++) {
    float x = (halves ? bf16_to_f32(short_grad[i]) : grad[i]) * gscale, w = halves ? join(high[i], low[i]) : p[i];
    m[i] = b1 * m[i] + rest1 * x;
    v[i] = b2 * v[i] + rest2 * x * x;
    w = w * decay - rate * m[i] / (sqrtf(v[i]) * root + eps);
    if (halves) split(w, high + i, low + i);
    else p[i] = w;
  }
  if (!t->ema) return;
  float *restrict average = t->ema + at, old = (float)t->ema_decay, new = (float)(1 - t->ema_decay);
  for (int64_t i = 0; i < n; i++) average[i] = old * average[i] + new * (halves ? join(high[i], low[i]) : p[i]);
}
static void adam_body(void *ctx, int64_t piece, int thread) {
  const Adam *t = ctx; (void)thread;
  int64_t at = piece * PIECE, n = smaller(PIECE, t->n - at);
  if (t->dt == LY_BF16) update(t, at, n, 1);
  else update(t, at, n, 0);
}
void ly_adamw(int64_t n, void *param, int16_t *low, float *m, float *v, float *ema, const void *grad, int dt, double lr, double b1, double b2,
              double eps, double weight_decay, double c1, double c2, double gscale, double ema_decay) {
  Adam t = {n, param, low, m, v, ema, grad, dt, lr, b1, b2, eps, weight_decay, c1, c2, gscale, ema_decay, NULL};
  ly_parallel((n + PIECE - 1) / PIECE, adam_body, &t);
}

void ly_join_master(const void *param, const int16_t *low, float *master, int64_t n) {
  const bf16 *restrict high = param;
  for (int64_t i = 0; i < n; i++) master[i] = join(high[i], low[i]);
}
void ly_split_master(const float *master, void *param, int16_t *low, int64_t n) {
  bf16 *restrict high = param;
  for (int64_t i = 0; i < n; i++) split(master[i], high + i, low + i);
}

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
