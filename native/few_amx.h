/* The same products on AMX tiles: sixteen rows of W, as they lie in memory, are a tile of the first factor; x is packed once
 * as pairs along k, so that sixteen rows of it are a tile of the second. A result does not depend on how many there are. */
#include "amx.h"
#include "pack.h"

/* Packed x: for every 32 rows, for every 32 of k, two tiles [16 pairs][16 rows][2]. Zero where there is no row. */
enum { TILE_BYTES = 1024 };
static void few_amx_pack(char *out, const bf16 *x, int64_t first, int64_t rows, int64_t K) {
  int64_t steps = (K + 31) / 32;
  for (int64_t b = first; b < first + rows; b += 16)
    for (int64_t s = 0; s < steps; s++) {
      char *tile = out + ((b / 32 * steps + s) * 2 + b / 16 % 2) * TILE_BYTES;
      int64_t lines = smaller(16, first + rows - b), k = smaller(32, K - s * 32);
      words r[16] = {{0}};
      for (int64_t i = 0; i < lines; i++) memcpy(&r[i], x + (b + i) * K + s * 32, (size_t)k * 2);
      transpose16(r);
      memcpy(tile, r, TILE_BYTES);
    }
}

/* Sums [W][x] of two times two tiles -> out[(x) * ld + W], n of x. */
static void few_amx_turn(float sums[2][2][16][16], int high, int64_t n, float *out, int64_t ld) {
  for (int r = 0; r <= high; r++)
    for (int64_t b = 0; b < n; b += 16) {
      words t[16];
      memcpy(t, sums[r][b / 16], sizeof t);
      transpose16(t);
      for (int64_t i = 0; i < smaller(16, n - b); i++) memcpy(out + (b + i) * ld + r * 16, &t[i], 64);
    }
}

/* `rows` (at most 32) rows of W by all of x -> out[b * ld + r]. A tile takes a line of memory of each of 16 rows, which no processor foresees: meanwhile
 * `next`, the block that follows, is fetched in the order of memory. What a tile would read past the end of W is copied first. */
static void few_amx_block(const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, const char *next, int64_t fetch, float *out, int64_t ld) {
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
      }
      if (b == 0) for (int64_t at = s * 2048; at < smaller(fetch, (s + 1) * 2048); at += 64) __builtin_prefetch(next + at, 0, 2);
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
    few_amx_turn(sums, high, smaller(32, B - b), out + b * ld, ld);
  }
}
static void few_amx_all(const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, float *out, int64_t ld) {
  for (int64_t at = 0; at < smaller(32, rows) * ldw; at += 64) __builtin_prefetch(W + at, 0, 2);
  for (int64_t r = 0; r < rows; r += 32) {
    const char *w = W + r * ldw, *next = w + 32 * ldw;
    few_amx_block(w, ldw, smaller(32, rows - r), K, x, B, next, smaller(32, rows - r - 32) * ldw, out + r, ld);
  }
}
