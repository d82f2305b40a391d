/* SwiGLU (Shazeer 2020): silu(gate) * up, silu(x) = x / (1 + exp(-x)). */
#include "rows.h"
typedef struct { const void *gu, *dy; void *out, *y; int64_t N, F; int dt; } Glu;
enum { PART = 256 }; /* of a row at a time, so that what is widened stays in the first-level cache */

static void forward_body(void *ctx, int64_t block, int thread) {
  const Glu *t = ctx; int64_t F = t->F; (void)thread;
  float g[PART], u[PART];
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++)
    for (int64_t at = 0; at < F; at += PART) {
      int64_t n = smaller(PART, F - at);
      fetch_row(t->gu, (i + 1) * 2 * F + at, n, t->dt);
      fetch_row(t->gu, (i + 1) * 2 * F + F + at, n, t->dt);
      load_row(g, t->gu, i * 2 * F + at, n, t->dt);
      load_row(u, t->gu, i * 2 * F + F + at, n, t->dt);
      for (int64_t f = 0; f < n; f++) g[f] = g[f] * fast_sigmoid(g[f]) * u[f];
      store_row(t->out, i * F + at, g, n, t->dt);
    }
}
void ly_swiglu_forward(const void *gu, void *y, int64_t N, int64_t F, int dt) {
  Glu t = {.gu = gu, .out = y, .N = N, .F = F, .dt = dt};
  ly_parallel(blocks_of(N), forward_body, &t);
}

static void backward_body(void *ctx, int64_t block, int thread) {
  const Glu *t = ctx; int64_t F = t->F; (void)thread;
  float g[PART], u[PART], dy[PART];
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++)
    for (int64_t at = 0; at < F; at += PART) {
      int64_t n = smaller(PART, F - at);
      fetch_row(t->gu, (i + 1) * 2 * F + at, n, t->dt);
      fetch_row(t->gu, (i + 1) * 2 * F + F + at, n, t->dt);
      fetch_row(t->dy, (i + 1) * F + at, n, t->dt);
      load_row(g, t->gu, i * 2 * F + at, n, t->dt);
      load_row(u, t->gu, i * 2 * F + F + at, n, t->dt);
      load_row(dy, t->dy, i * F + at, n, t->dt);
      for (int64_t f = 0; f < n; f++) {
        float x = g[f], s = fast_sigmoid(x), up = u[f], d = dy[f];
        dy[f] = x * s * up;
        u[f] = d * x * s;
        g[f] = d * up * s * (1.0f + x * (1.0f - s));
      }
      store_row(t->out, i * 2 * F + at, g, n, t->dt);
      store_row(t->out, i * 2 * F + F + at, u, n, t->dt);
      if (t->y) store_row(t->y, i * F + at, dy, n, t->dt);
    }
}
void ly_swiglu_backward(const void *dy, const void *gu, void *dgu, void *y, int64_t N, int64_t F, int dt) {
  Glu t = {gu, dy, dgu, y, N, F, dt};
  ly_parallel(blocks_of(N), backward_body, &t);
}
