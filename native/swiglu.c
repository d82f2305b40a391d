/* SwiGLU (Shazeer 2020): silu(gate) * up, silu(x) = x / (1 + exp(-x)). */
#include "rows.h"
typedef struct { const void *gu, *dy; void *out; int64_t N, F; int dt; } Glu;

static void forward_body(void *ctx, int64_t block, int thread) {
  const Glu *t = ctx; int64_t F = t->F;
  float *g = ly_scratch(thread, 0, (size_t)F * 8), *u = g + F;
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    load_row(g, t->gu, i * 2 * F, 2 * F, t->dt);
    for (int64_t f = 0; f < F; f++) g[f] = g[f] / (1.0f + fast_expf(-g[f])) * u[f];
    store_row(t->out, i * F, g, F, t->dt);
  }
}
void ly_swiglu_forward(const void *gu, void *y, int64_t N, int64_t F, int dt) {
  Glu t = {gu, NULL, y, N, F, dt};
  ly_parallel(blocks_of(N), forward_body, &t);
}

static void backward_body(void *ctx, int64_t block, int thread) {
  const Glu *t = ctx; int64_t F = t->F;
  float *g = ly_scratch(thread, 0, (size_t)F * 12), *u = g + F, *dy = u + F;
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    load_row(g, t->gu, i * 2 * F, 2 * F, t->dt);
    load_row(dy, t->dy, i * F, F, t->dt);
    for (int64_t f = 0; f < F; f++) {
      float s = 1.0f / (1.0f + fast_expf(-g[f])), x = g[f], up = u[f];
      u[f] = dy[f] * x * s;
      g[f] = dy[f] * up * s * (1.0f + x * (1.0f - s));
    }
    store_row(t->out, i * 2 * F, g, 2 * F, t->dt);
  }
}
void ly_swiglu_backward(const void *dy, const void *gu, void *dgu, int64_t N, int64_t F, int dt) {
  Glu t = {gu, dy, dgu, N, F, dt};
  ly_parallel(blocks_of(N), backward_body, &t);
}
