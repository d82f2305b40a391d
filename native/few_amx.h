/* The same products on AMX tiles: sixteen rows of W, as they lie in memory, are a tile of the first factor; x is packed once
 * as pairs along k, so that sixteen rows of it are a tile of the second. A result does not depend on how many there are. */
#include "amx.h"

/* Packed x: for every 32 rows, for every 32 of k, two tiles [16 pairs][16 rows][2]. Where there is no row, a tile holds anything:
 * it only meets results that nobody takes. */
enum { TILE_BYTES = 1024 };
static void few_amx_pack(char *out, const bf16 *x, int64_t first, int64_t rows, int64_t K) {
  int64_t steps = (K + 31) / 32;
  for (int64_t b = first; b < first + rows; b++) {
    char *tile = out + (b / 32 * steps * 2 + b / 16 % 2) * TILE_BYTES;
    for (int64_t k = 0; k < steps * 32; k += 2) {
      uint32_t pair = 0;
      if (k < K) memcpy(&pair, x + b * K + k, k + 1 < K ? 4 : 2);
      memcpy(tile + k / 32 * 2 * TILE_BYTES + k % 32 / 2 * 64 + b % 16 * 4, &pair, 4);
    }
  }
}

/* `rows` (at most 32) rows of W by all of x -> out[b * ld + r]. What a tile would read past the end of W is copied first. */
static void few_amx_block(const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, float *out, int64_t ld) {
  _Alignas(64) char edge[32][64];
  _Alignas(64) float sums[2][2][16][16];
  int64_t steps = (K + 31) / 32;
  amx_configure();
  for (int64_t b = 0; b < B; b += 32) {
    int wide = B - b > 16, high = rows > 16;
    const char *packed = x + b / 32 * steps * 2 * TILE_BYTES;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t s = 0; s < steps; s++) {
      const char *w = W + s * 64; int64_t stride = ldw;
      if (rows % 16 || (s + 1) * 32 > K) {
        memset(edge, 0, sizeof edge);
        for (int64_t r = 0; r < rows; r++) memcpy(edge[r], w + r * ldw, (size_t)smaller(64, (K - s * 32) * 2));
        w = edge[0]; stride = 64;
      } else if (b == 0) for (int64_t r = 0; r < rows; r++) __builtin_prefetch(w + (r + rows) * ldw);
      _tile_loadd(4, w, stride);
      _tile_loadd(6, packed + s * 2 * TILE_BYTES, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (wide) { _tile_loadd(7, packed + (s * 2 + 1) * TILE_BYTES, 64); _tile_dpbf16ps(1, 4, 7); }
      if (high) {
        _tile_loadd(5, w + 16 * stride, stride);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums[0][0], 64); _tile_stored(1, sums[0][1], 64); _tile_stored(2, sums[1][0], 64); _tile_stored(3, sums[1][1], 64);
    for (int64_t i = 0; i < smaller(32, B - b); i++)
      for (int64_t r = 0; r < rows; r++) out[(b + i) * ld + r] = sums[r / 16][i / 16][r % 16][i % 16];
  }
}
