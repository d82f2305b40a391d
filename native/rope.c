/* Rotary position embedding (Su et al. 2021), halves paired as in Hugging Face Llama; its inverse is the backward pass. */
#include "rows.h"
typedef struct { void *x; int64_t ldx; const int32_t *pos; const float *cos, *sin; int64_t N; int heads, D, dt; float sign; } Rope;

static void rope_body(void *ctx, int64_t block, int thread) {
  const Rope *t = ctx; int half = t->D / 2;
  float *x = ly_scratch(thread, 0, (size_t)t->D * 8), *y = x + t->D;
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    const float *c = t->cos + (int64_t)t->pos[i] * half, *s = t->sin + (int64_t)t->pos[i] * half;
    for (int h = 0; h < t->heads; h++) {
      int64_t at = i * t->ldx + (int64_t)h * t->D;
      load_row(x, t->x, at, t->D, t->dt);
      for (int d = 0; d < half; d++) {
        float sn = t->sign * s[d];
        y[d] = x[d] * c[d] - x[d + half] * sn;
        y[d + half] = x[d + half] * c[d] + x[d] * sn;
      }
      store_row(t->x, at, y, t->D, t->dt);
    }
  }
}
void ly_rope(void *x, int64_t ldx, const int32_t *pos, const float *cos, const float *sin, int64_t N, int heads, int D, int inverse, int dt) {
  Rope t = {x, ldx, pos, cos, sin, N, heads, D, dt, inverse ? -1.0f : 1.0f};
  ly_parallel(blocks_of(N), rope_body, &t);
}
