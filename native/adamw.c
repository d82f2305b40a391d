/* AdamW (Loshchilov & Hutter 2019) in one pass over flat buffers, and the norm that clipping needs. */
#include "rows.h"
enum { PIECE = 16384 };
typedef struct {
  int64_t n; float *master, *m, *v; const void *grad; void *param; int dt; double lr, b1, b2, eps, wd, c1, c2, gscale, *partial;
} Adam;

static void adam_body(void *ctx, int64_t piece, int thread) {
  const Adam *t = ctx;
  int64_t at = piece * PIECE, n = smaller(PIECE, t->n - at);
  float *g = ly_scratch(thread, 0, PIECE * 4), *restrict p = t->master + at, *restrict m = t->m + at, *restrict v = t->v + at;
  /* The factors are rounded once, as PyTorch rounds them: 1 - 0.999 of floats would be wrong in the fifth digit. */
  float decay = (float)(1 - t->lr * t->wd), rate = (float)(t->lr / t->c1), root = (float)(1 / sqrt(t->c2)), eps = (float)t->eps;
  float b1 = (float)t->b1, b2 = (float)t->b2, rest1 = (float)(1 - t->b1), rest2 = (float)(1 - t->b2), gscale = (float)t->gscale;
  load_row(g, t->grad, at, n, t->dt);
  for (int64_t i = 0; i < n; i++) {
    float x = g[i] * gscale;
    m[i] = b1 * m[i] + rest1 * x;
    v[i] = b2 * v[i] + rest2 * x * x;
    p[i] = p[i] * decay - rate * m[i] / (sqrtf(v[i]) * root + eps);
  }
  if (t->dt != LY_F32 || (void *)t->master != t->param) store_row(t->param, at, p, n, t->dt);
}
void ly_adamw(int64_t n, float *master, float *m, float *v, const void *grad, void *param, int dt, double lr, double b1, double b2,
              double eps, double weight_decay, double c1, double c2, double gscale) {
  Adam t = {n, master, m, v, grad, param, dt, lr, b1, b2, eps, weight_decay, c1, c2, gscale, NULL};
  ly_parallel((n + PIECE - 1) / PIECE, adam_body, &t);
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
