/* Rotary position embedding (Su et al. 2021), halves paired as in Hugging Face Llama; its inverse is the backward pass. */
#include "rows.h"
typedef struct { void *x; int64_t ldx; const int32_t *pos; const float *cos, *sin; int64_t N; int heads, D, dt; float sign; } Rope;

/* One head: a pair of halves at a time, in place. */
#define TURN(type, load, store)                                                                   \
  type *restrict x = (type *)t->x + at, *restrict y = x + half;                                   \
  for (int d = 0; d < half; d++) {                                                                \
    float a = load(x[d]), b = load(y[d]), sn = t->sign * s[d];                                    \
    x[d] = store(a * c[d] - b * sn);                                                              \
    y[d] = store(b * c[d] + a * sn);                                                              \
  }

static void rope_body(void *ctx, int64_t block, int thread) {
  const Rope *t = ctx; int half = t->D / 2; (void)thread;
  for (int64_t i = block * ROW_BLOCK; i < smaller(t->N, (block + 1) * ROW_BLOCK); i++) {
    const float *restrict c = t->cos + (int64_t)t->pos[i] * half, *restrict s = t->sin + (int64_t)t->pos[i] * half;
    for (int h = 0; h < t->heads; h++) {
      int64_t at = i * t->ldx + (int64_t)h * t->D;
      if (t->dt == LY_F32) { TURN(float, , ) } else { TURN(bf16, bf16_to_f32, f32_to_bf16) }
    }
  }
}
void ly_rope(void *x, int64_t ldx, const int32_t *pos, const float *cos, const float *sin, int64_t N, int heads, int D, int inverse, int dt) {
  Rope t = {x, ldx, pos, cos, sin, N, heads, D, dt, inverse ? -1.0f : 1.0f};
  ly_parallel(blocks_of(N), rope_body, &t);
}
