/* Rotary position embedding (Su et al. 2021), halves paired as in Hugging Face Llama; its inverse is the backward pass. */
#include "rows.h"

/* One head: a pair of halves at a time, in place. */
#define TURN(type, load, store)                                                                   \
  type *restrict a = (type *)x + at, *restrict b = a + half;                                      \
  for (int d = 0; d < half; d++) {                                                                \
    float p = load(a[d]), q = load(b[d]), sn = sign * s[d];                                       \
    a[d] = store(p * c[d] - q * sn);                                                              \
    b[d] = store(q * c[d] + p * sn);                                                              \
  }

void ly_rotate(void *x, int64_t ldx, const ly_angles *angles, int64_t row, int64_t N, int heads, int D, float sign, int dt) {
  int half = D / 2;
  for (int64_t i = 0; i < N; i++) {
    int64_t position = (int64_t)angles->pos[row + i] * half;
    const float *restrict c = angles->cos + position, *restrict s = angles->sin + position;
    for (int h = 0; h < heads; h++) {
      int64_t at = i * ldx + (int64_t)h * D;
      if (dt == LY_F32) { TURN(float, , ) } else { TURN(bf16, bf16_to_f32, f32_to_bf16) }
    }
  }
}

typedef struct { char *x; int64_t ldx; ly_angles angles; int64_t N; int heads, D, dt; float sign; } Rope;
static void rope_body(void *ctx, int64_t block, int thread) {
  const Rope *t = ctx; int64_t row = block * ROW_BLOCK; (void)thread;
  ly_rotate(t->x + row * t->ldx * (t->dt == LY_F32 ? 4 : 2), t->ldx, &t->angles, row, smaller(ROW_BLOCK, t->N - row), t->heads, t->D, t->sign, t->dt);
}
void ly_rope(void *x, int64_t ldx, const int32_t *pos, const float *cos, const float *sin, int64_t N, int heads, int D, int inverse, int dt) {
  Rope t = {x, ldx, {pos, cos, sin}, N, heads, D, dt, inverse ? -1.0f : 1.0f};
  ly_parallel(blocks_of(N), rope_body, &t);
}
