/* Philox 4x32-10 (Salmon et al. 2011): draw i is a function of (seed, stream, i), on any thread, in any order. */
#include "rows.h"
static void philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t c[4]) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  c[0] = (uint32_t)index; c[1] = (uint32_t)(index >> 32); c[2] = (uint32_t)stream; c[3] = (uint32_t)(stream >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t x0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, x2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
    c[1] = (uint32_t)b; c[3] = (uint32_t)a; c[0] = x0; c[2] = x2;
  }
}
static float unit(uint32_t x) { return (float)(x >> 8) * 0x1p-24f; } /* 24 bits: [0, 1) exactly */

typedef struct { void *out; int64_t n; uint64_t seed, stream; float mean, std; int dt, normal; } Draw;
static void draw_body(void *ctx, int64_t block, int thread) {
  const Draw *t = ctx; (void)thread;
  for (int64_t i = block * 1024; i < smaller(t->n, (block + 1) * 1024); i += 4) {
    uint32_t c[4]; float x[4];
    philox(t->seed, t->stream, (uint64_t)(i / 4), c);
    for (int j = 0; j < 4; j += 2) { /* Box & Muller 1958; 1 - u is in (0, 1], so its logarithm is finite */
      if (!t->normal) { x[j] = unit(c[j]); x[j + 1] = unit(c[j + 1]); continue; }
      double r = sqrt(-2.0 * log(1.0 - unit(c[j]))), angle = 6.283185307179586 * unit(c[j + 1]);
      x[j] = t->mean + t->std * (float)(r * cos(angle)); x[j + 1] = t->mean + t->std * (float)(r * sin(angle));
    }
    store_row(t->out, i, x, smaller(4, t->n - i), t->dt);
  }
}
void ly_random_normal(void *out, int64_t n, uint64_t seed, uint64_t stream, float mean, float std, int dt) {
  Draw t = {out, n, seed, stream, mean, std, dt, 1};
  ly_parallel((n + 1023) / 1024, draw_body, &t);
}
void ly_random_uniform(float *out, int64_t n, uint64_t seed, uint64_t stream) {
  Draw t = {out, n, seed, stream, 0, 0, LY_F32, 0};
  ly_parallel((n + 1023) / 1024, draw_body, &t);
}
