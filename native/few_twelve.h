/* The same products of weights in twelve bits where bf16 is widened (SPLIT): four rows at a time, a strip, become bf16 again tile by tile and go on as SPLIT does, so
 * that the sums are the same. It is for few rows of x: each LANES / 4 of them make the tiles once more. */
enum { SOON = 5120 };
static int64_t few_strips_stride(int64_t K) { return (K + 31) / 32 * 128; }

/* LANES sums as in few_block. Strips lie one behind the other: what comes next is what follows in memory. */
ALWAYS void twelve_block(int C, const char *W, int64_t ldw, int64_t row, int64_t rows, const Strip *strip, const char *x, int64_t ldx, float *out, int64_t ld) {
  enum { R = STRIP, STEPS = 32 / (2 * LANES) };
  _Alignas(64) bf16 made[R * 32];
  const char *w[4] = {(const char *)made, (const char *)(made + 32), (const char *)(made + 64), (const char *)(made + 96)};
  vec v[LANES];
  int height = LANES / C;
#pragma GCC unroll 4
  for (int s = 0; s < height; s += R) {
    const char *own = W + smaller(row + s, (rows - 1) / R * R) * ldw, *at = x;
    const uint32_t *patch = bf12_patches(own, strip);
    vec a[16];
#pragma GCC unroll 16
    for (int i = 0; i < R * C; i++) a[i] = (vec){0};
    for (int64_t t = 0; t < strip->steps; t++, at += STEPS * 8 * LANES) {
      const char *next = own + strip->head + t * BF12_TILE + SOON;
      __builtin_prefetch(next); __builtin_prefetch(next + 64); __builtin_prefetch(next + 128);
      patch = bf12_tile(own, strip, t, patch, made);
#pragma GCC unroll 2
      for (int i = 0; i < STEPS; i++) few_step(SPLIT, R, C, w, i * 4 * LANES, at + i * 8 * LANES, ldx, NULL, NULL, a);
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) v[c * height + s + r] = a[c * R + r];
    }
  }
  vec sums = sum_each(v);
#pragma GCC unroll 4
  for (int c = 0; c < C; c++) memcpy(out + c * ld + row, (const float *)&sums + c * height, 4 * (size_t)height);
}
static void few_twelve(const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, float *out, int64_t ld) {
  Strip strip = strip_of(K);
  int64_t ldx = few_strips_stride(K), b = 0;
  for (; b + MOST_X <= B; b += MOST_X)
    for (int64_t r = 0; r < rows; r += 4) twelve_block(MOST_X, W, ldw, r, rows, &strip, x + b * ldx, ldx, out + b * ld, ld);
#if LANES == 16
  for (; b + 2 <= B; b += 2)
    for (int64_t r = 0; r < rows; r += 8) twelve_block(2, W, ldw, r, rows, &strip, x + b * ldx, ldx, out + b * ld, ld);
#endif
  for (; b < B; b++)
    for (int64_t r = 0; r < rows; r += LANES) twelve_block(1, W, ldw, r, rows, &strip, x + b * ldx, ldx, out + b * ld, ld);
}
