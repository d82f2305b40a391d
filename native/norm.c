/* RMSNorm (Zhang & Sennrich 2019), forward and backward. */
#include "rows.h"

typedef struct {
  const void *x, *extra, *weight, *dy; void *h, *y, *dx; float *rstd, *partial; int64_t N, D, rows; float eps; int dt;
} Norm;

static void forward_body(void *ctx, int64_t block, int thread) {
  const Norm *t = ctx; int64_t D = t->D;
  float *x = ly_scratch(thread, 0, (size_t)D * 12), *w = x + D, *r = w + D;
  load_row(w, t->weight, 0, D, t->dt);
  for (int64_t i = block * t->rows; i < smaller(t->N, (block + 1) * t->rows); i++) {
    load_row(x, t->x, i * D, D, t->dt);
    if (t->extra) { load_row(r, t->extra, i * D, D, t->dt); for (int64_t d = 0; d < D; d++) x[d] += r[d]; }
    if (t->h) { store_row(t->h, i * D, x, D, t->dt); load_row(x, t->h, i * D, D, t->dt); } /* y is of the h that backward will see */
    float sum = 0;
    for (int64_t d = 0; d < D; d++) sum += x[d] * x[d];
    float rstd = 1.0f / sqrtf(sum / (float)D + t->eps);
    t->rstd[i] = rstd;
    for (int64_t d = 0; d < D; d++) x[d] = x[d] * rstd * w[d];
    store_row(t->y, i * D, x, D, t->dt);
  }
}
void ly_rmsnorm_forward(const void *x, const void *residual, const void *weight, void *h, void *y, float *rstd, int64_t N, int64_t D, float eps, int dt) {
  Norm t = {.x = x, .extra = residual, .weight = weight, .h = h, .y = y, .rstd = rstd, .N = N, .D = D, .eps = eps, .dt = dt};
  int64_t each = (N + ly_threads() - 1) / ly_threads(); /* decoding has few rows: something for each thread, if it is worth the way */
  t.rows = each < 8 ? 8 : smaller(each, ROW_BLOCK);
  ly_parallel((N + t.rows - 1) / t.rows, forward_body, &t);
}

/* With n = h rstd and g = dy w:  dh = rstd (g - n mean(g n)),  dw = sum over rows of dy n. */
static void backward_body(void *ctx, int64_t block, int thread) {
  const Norm *t = ctx; int64_t D = t->D;
  float *n = ly_scratch(thread, 0, (size_t)D * 16), *w = n + D, *g = w + D, *e = g + D, *dw = t->partial + block * D;
  load_row(w, t->weight, 0, D, t->dt);
  memset(dw, 0, (size_t)D * 4);
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    float rstd = t->rstd[i], dot = 0;
    load_row(n, t->x, i * D, D, t->dt);
    load_row(g, t->dy, i * D, D, t->dt);
    for (int64_t d = 0; d < D; d++) { n[d] *= rstd; dw[d] += g[d] * n[d]; g[d] *= w[d]; dot += g[d] * n[d]; }
    dot /= (float)D;
    if (t->y) { for (int64_t d = 0; d < D; d++) e[d] = n[d] * w[d]; store_row(t->y, i * D, e, D, t->dt); }
    for (int64_t d = 0; d < D; d++) g[d] = rstd * (g[d] - n[d] * dot);
    if (t->extra) { load_row(e, t->extra, i * D, D, t->dt); for (int64_t d = 0; d < D; d++) g[d] += e[d]; }
    store_row(t->dx, i * D, g, D, t->dt);
  }
}
void ly_rmsnorm_backward(const void *dy, const void *h, const void *weight, const float *rstd, const void *dh_extra, void *dx, void *dweight, void *y, int64_t N, int64_t D, int dt) {
  int64_t blocks = blocks_of(N);
  float *partial = ly_scratch(-1, 0, (size_t)((blocks + 1) * D) * 4), *sum = partial + blocks * D;
  Norm t = {.x = h, .extra = dh_extra, .weight = weight, .dy = dy, .dx = dx, .y = y, .rstd = (float *)rstd, .partial = partial, .N = N, .D = D, .dt = dt};
  ly_parallel(blocks, backward_body, &t);
  if (!dweight) return;
  memset(sum, 0, (size_t)D * 4);
  for (int64_t b = 0; b < blocks; b++) for (int64_t d = 0; d < D; d++) sum[d] += partial[b * D + d];
  add_to_row(dweight, 0, sum, D, dt);
}
