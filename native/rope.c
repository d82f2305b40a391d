/* Rotary position embedding (Su et al. 2021), halves paired as in Hugging Face Llama; its inverse is the backward pass. */
#include "rows.h"

/* One head, in place: each of the first half with its partner in the second. */
static inline __attribute__((always_inline)) void turn(void *x, int64_t at, const float *restrict c, const float *restrict s, int64_t half, float sign, int dt) {
  enum { PART = 64 };
  float a[PART], b[PART], p[PART], q[PART];
  for (int64_t d = 0; d < half; d += PART) {
    int64_t n = smaller(PART, half - d);
    load_row(p, x, at + d, n, dt); load_row(q, x, at + half + d, n, dt);
    for (int64_t i = 0; i < n; i++) {
      float sn = sign * s[d + i];
      a[i] = p[i] * c[d + i] - q[i] * sn;
      b[i] = q[i] * c[d + i] + p[i] * sn;
    }
    store_row(x, at + d, a, n, dt); store_row(x, at + half + d, b, n, dt);
  }
}

void ly_rotate(void *x, int64_t ldx, const ly_angles *angles, int64_t row, int64_t N, int heads, int D, float sign, int dt) {
  int half = D / 2;
  for (int64_t i = 0; i < N; i++) {
    int64_t position = (int64_t)angles->pos[row + i] * half;
    const float *c = angles->cos + position, *s = angles->sin + position;
    for (int h = 0; h < heads; h++) {
      int64_t at = i * ldx + (int64_t)h * D;
      fetch_row(x, at + 8 * ldx, D, dt);
      if (half == 32) turn(x, at, c, s, 32, sign, dt); /* the usual head: all in registers */
      else turn(x, at, c, s, half, sign, dt);
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
