/* What Llama's relatives do to queries, keys and values before attention: Qwen2 adds biases, Qwen3 has an RMSNorm for each head of queries and keys. */
#include "rows.h"

/* ---- biases ---- */

typedef struct { void *x; const void *bias, *dy; float *partial; int64_t N, M; int dt; } Bias;
/* A block of rows of x. */
static void add_body(void *ctx, int64_t block, int thread) {
  const Bias *t = ctx; int64_t M = t->M;
  float *b = ly_scratch(thread, 0, (size_t)M * 8), *x = b + M;
  load_row(b, t->bias, 0, M, t->dt);
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    load_row(x, t->x, i * M, M, t->dt);
    for (int64_t m = 0; m < M; m++) x[m] += b[m];
    store_row(t->x, i * M, x, M, t->dt);
  }
}
void ly_add_bias(void *x, const void *bias, int64_t N, int64_t M, int dt) {
  Bias t = {.x = x, .bias = bias, .N = N, .M = M, .dt = dt};
  ly_parallel(blocks_of(N), add_body, &t);
}
static void sum_body(void *ctx, int64_t block, int thread) {
  const Bias *t = ctx; int64_t M = t->M;
  float *x = ly_scratch(thread, 0, (size_t)M * 4), *sum = t->partial + block * M;
  memset(sum, 0, (size_t)M * 4);
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    load_row(x, t->dy, i * M, M, t->dt);
    for (int64_t m = 0; m < M; m++) sum[m] += x[m];
  }
}
void ly_bias_backward(const void *dy, void *dbias, int64_t N, int64_t M, int dt) {
  int64_t blocks = blocks_of(N);
  float *partial = ly_scratch(-1, 0, (size_t)((blocks + 1) * M) * 4), *sum = partial + blocks * M;
  Bias t = {.dy = dy, .partial = partial, .N = N, .M = M, .dt = dt};
  ly_parallel(blocks, sum_body, &t);
  memset(sum, 0, (size_t)M * 4);
  for (int64_t b = 0; b < blocks; b++) for (int64_t m = 0; m < M; m++) sum[m] += partial[b * M + m];
  add_to_row(dbias, 0, sum, M, dt);
}

/* ---- norms ---- */

typedef struct { const void *x, *wq, *wk, *dy; void *y; float *rstd, *partial; int64_t N; int H, KV, D, dt; float eps; } HeadNorm;
static void norm_body(void *ctx, int64_t block, int thread) {
  const HeadNorm *t = ctx; int64_t D = t->D, heads = t->H + t->KV, width = (heads + t->KV) * D, values = t->KV * D;
  float *w = ly_scratch(thread, 0, (size_t)(3 * D + values) * 4), *x = w + 2 * D;
  load_row(w, t->wq, 0, D, t->dt); load_row(w + D, t->wk, 0, D, t->dt);
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    for (int64_t h = 0; h < heads; h++) {
      const float *weight = h < t->H ? w : w + D; float sum = 0;
      load_row(x, t->x, i * width + h * D, D, t->dt);
      for (int64_t d = 0; d < D; d++) sum += x[d] * x[d];
      float rstd = 1.0f / sqrtf(sum / (float)D + t->eps);
      t->rstd[i * heads + h] = rstd;
      for (int64_t d = 0; d < D; d++) x[d] = x[d] * rstd * weight[d];
      store_row(t->y, i * width + h * D, x, D, t->dt);
    }
    if (t->y == t->x) continue;
    load_row(x, t->x, i * width + heads * D, values, t->dt);
    store_row(t->y, i * width + heads * D, x, values, t->dt);
  }
}
void ly_head_norm_forward(const void *qkv, const void *wq, const void *wk, void *y, float *rstd, int64_t N, int H, int KV, int D, float eps, int dt) {
  HeadNorm t = {.x = qkv, .wq = wq, .wk = wk, .y = y, .rstd = rstd, .N = N, .H = H, .KV = KV, .D = D, .dt = dt, .eps = eps};
  ly_parallel(blocks_of(N), norm_body, &t);
}

/* As in norm.c, with n = x rstd and g = dy w:  dx = rstd (g - n mean(g n)),  dw = sum over rows and heads of dy n. */
static void norm_backward_body(void *ctx, int64_t block, int thread) {
  const HeadNorm *t = ctx; int64_t D = t->D, heads = t->H + t->KV, width = (heads + t->KV) * D, values = t->KV * D;
  float *w = ly_scratch(thread, 0, (size_t)(4 * D + values) * 4), *n = w + 2 * D, *g = n + D, *sums = t->partial + block * 2 * D;
  load_row(w, t->wq, 0, D, t->dt); load_row(w + D, t->wk, 0, D, t->dt);
  memset(sums, 0, (size_t)D * 8);
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    for (int64_t h = 0; h < heads; h++) {
      int64_t at = i * width + h * D, key = h < t->H ? 0 : D;
      const float *weight = w + key; float *dw = sums + key, rstd = t->rstd[i * heads + h], dot = 0;
      load_row(n, t->x, at, D, t->dt); load_row(g, t->dy, at, D, t->dt);
      for (int64_t d = 0; d < D; d++) { n[d] *= rstd; dw[d] += g[d] * n[d]; g[d] *= weight[d]; dot += g[d] * n[d]; }
      dot /= (float)D;
      for (int64_t d = 0; d < D; d++) g[d] = rstd * (g[d] - n[d] * dot);
      store_row(t->y, at, g, D, t->dt);
    }
    if (t->y == t->dy) continue;
    load_row(g, t->dy, i * width + heads * D, values, t->dt);
    store_row(t->y, i * width + heads * D, g, values, t->dt);
  }
}
void ly_head_norm_backward(const void *dy, const void *qkv, const void *wq, const void *wk, const float *rstd, void *dx, void *dwq, void *dwk, int64_t N, int H, int KV, int D, int dt) {
  int64_t blocks = blocks_of(N);
  float *partial = ly_scratch(-1, 0, (size_t)((blocks + 1) * 2 * D) * 4);
  HeadNorm t = {.x = qkv, .wq = wq, .wk = wk, .dy = dy, .y = dx, .rstd = (float *)rstd, .partial = partial, .N = N, .H = H, .KV = KV, .D = D, .dt = dt};
  ly_parallel(blocks, norm_backward_body, &t);
  if (!dwq) return;
  float *sum = partial + blocks * 2 * D;
  memset(sum, 0, (size_t)D * 8);
  for (int64_t b = 0; b < blocks; b++) for (int64_t d = 0; d < 2 * D; d++) sum[d] += partial[b * 2 * D + d];
  add_to_row(dwq, 0, sum, D, dt); add_to_row(dwk, 0, sum + D, D, dt);
}
