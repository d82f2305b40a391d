/* AdamW (Loshchilov & Hutter 2019) in one pass over flat buffers, and the norm that clipping needs. */
#include "rows.h"
enum { PIECE = 16384 };
typedef struct {
  int64_t n; float *master, *m, *v; const void *grad; void *param; int dt; float lr, b1, b2, eps, wd, c1, c2, gscale; double *partial;
} Adam;

static void adam_body(void *ctx, int64_t piece, int thread) {
  const Adam *t = ctx;
  int64_t at = piece * PIECE, n = smaller(PIECE, t->n - at);
  float *g = ly_scratch(thread, 0, PIECE * 4), *restrict p = t->master + at, *restrict m = t->m + at, *restrict v = t->v + at;
  float decay = 1.0f - t->lr * t->wd, rate = t->lr / t->c1, root = 1.0f / sqrtf(t->c2), b1 = t->b1, b2 = t->b2, eps = t->eps, gscale = t->gscale;
  load_row(g, t->grad, at, n, t->dt);
  for (int64_t i = 0; i < n; i++) {
    float x = g[i] * gscale;
    m[i] = b1 * m[i] + (1.0f - b1) * x;
    v[i] = b2 * v[i] + (1.0f - b2) * x * x;
    p[i] = p[i] * decay - rate * m[i] / (sqrtf(v[i]) * root + eps);
  }
  if (t->dt != LY_F32 || (void *)t->master != t->param) store_row(t->param, at, p, n, t->dt);
}
void ly_adamw(int64_t n, float *master, float *m, float *v, const void *grad, void *param, int dt, float lr, float b1, float b2,
              float eps, float weight_decay, float c1, float c2, float gscale) {
  Adam t = {n, master, m, v, grad, param, dt, lr, b1, b2, eps, weight_decay, c1, c2, gscale, NULL};
  ly_parallel((n + PIECE - 1) / PIECE, adam_body, &t);
}

static void squares_body(void *ctx, int64_t piece, int thread) {
  const Adam *t = ctx;
  int64_t at = piece * PIECE, n = smaller(PIECE, t->n - at);
  float *x = ly_scratch(thread, 0, PIECE * 4), sum = 0;
  load_row(x, t->grad, at, n, t->dt);
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
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
