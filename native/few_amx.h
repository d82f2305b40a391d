/* The same products on AMX tiles: sixteen rows of W, as they lie in memory, are a tile of the first factor; x is packed once
 * as pairs along k, so that sixteen rows of it are a tile of the second. A result does not depend on how many there are. */
#include "amx.h"
#include "bf12.h"
#include "pack.h"

/* Packed x: for every 32 of B rows, for every 32 of k, two tiles [16 pairs][16 rows][2]; one, where no more than 16 rows are left. Zero where there is no row. */
enum { TILE_BYTES = 1024 };
static int64_t few_strips_stride(int64_t K) { return (K + 31) / 32 * 64; }
static int few_strips_as_is(int64_t K) { (void)K; return 0; }
static void few_strips_prepare(char *out, const bf16 *x, int64_t first, int64_t rows, int64_t B, int64_t K) {
  int64_t steps = (K + 31) / 32;
  for (int64_t b = first; b < first + rows; b += 16)
    for (int64_t s = 0; s < steps; s++) {
      char *tile = out + (b / 32 * steps * 2 + (B - b / 32 * 32 > 16 ? s * 2 + b / 16 % 2 : s)) * TILE_BYTES;
      int64_t lines = smaller(16, first + rows - b), k = smaller(32, K - s * 32);
      words r[16] = {{0}};
      for (int64_t i = 0; i < lines; i++) memcpy(&r[i], x + (b + i) * K + s * 32, (size_t)k * 2);
      transpose16(r);
      memcpy(tile, r, TILE_BYTES);
    }
}

/* Sums [W][x] of two times two tiles that are to be turned: out[(x) * ld + W], n of x. A tile at a time, while the processor's tiles work on the next. */
typedef struct { float (*sums)[2][16][16]; int64_t n, ld; float *out; int at, end; } Turn;
static void few_amx_turn(Turn *t) {
  int r = t->at / 2; int64_t b = t->at++ % 2 * 16, n = smaller(16, t->n - b);
  float *out = t->out + b * t->ld + r * 16;
  if (n <= 0) return;
  float (*from)[16] = t->sums[r][b / 16];
  if (n <= 2) { for (int64_t i = 0; i < n; i++) for (int j = 0; j < 16; j++) out[i * t->ld + j] = from[j][i]; return; }
  words rows[16];
  memcpy(rows, from, sizeof rows);
  transpose16(rows);
  for (int64_t i = 0; i < n; i++) memcpy(out + i * t->ld, &rows[i], 64);
}

/* Asking for what comes, a share of it in each of `steps` steps. Eight places of it at a time: processors look ahead within a page of memory, each for itself. */
enum { PLACES = 8, PARTS = 1 << 16 };
typedef struct { Ahead a; int64_t place, share; } Asking; /* bytes of a place; of that PARTS lines a step */
static Asking few_amx_asking(Ahead a, int64_t steps) {
  int64_t lines = (a.bytes + PLACES * 64 - 1) / (PLACES * 64);
  return (Asking){a, lines * 64, (lines * PARTS + steps - 1) / steps};
}
static inline void few_amx_ask(const Asking *t, int64_t s) {
  int64_t from = s * t->share / PARTS * 64, to = smaller(t->place, (s + 1) * t->share / PARTS * 64);
  for (int64_t p = 0; p < t->a.bytes; p += t->place)
    for (int64_t at = from; at < to; at += 64) __builtin_prefetch(t->a.at + p + at, 0, 2);
}

/* A tile takes a line of memory of each of 16 rows, which no processor foresees: while 32 rows are multiplied, the 32 that follow are fetched in the
 * order of memory; behind the last ones `after`, when there is something. What a tile would read past the end of W is copied first. Where W is in twelve bits,
 * its tiles are made on the way, a step ahead and in two places in turns, so that nobody waits for what is being stored. */
static inline __attribute__((always_inline)) void few_strips(int twelve, const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, int asked, Ahead after, float *out, int64_t ld) {
  _Alignas(64) char edge[32][64];
  _Alignas(64) bf16 made[2][32][32];
  Strip strip = strip_of(K);
  _Alignas(64) float sums[2][2][2][16][16];
  Turn before = {0};
  int64_t steps = (K + 31) / 32, n = 0;
  amx_configure();
  Asking next = few_amx_asking((Ahead){W, smaller(32, rows) * ldw}, steps);
  if (!asked) for (int64_t s = 0; s < steps; s++) few_amx_ask(&next, s);
  for (int64_t r = 0; r < rows; r += 32) {
    const char *block = W + r * ldw;
    next = few_amx_asking(r + 32 < rows ? (Ahead){block + 32 * ldw, smaller(32, rows - r - 32) * ldw} : after, steps);
    int64_t height = smaller(32, rows - r);
    for (int64_t b = 0; b < B; b += 32, n++) {
      int wide = B - b > 16, high = height > 16;
      const char *packed = x + b / 32 * steps * 2 * TILE_BYTES;
      const uint32_t *patch = bf12_patches(block, &strip);
      if (twelve) patch = bf12_tile(block, &strip, 0, patch, made[0][0]);
      _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
      for (int64_t s = 0; s < steps; s++) {
        const char *w = block + s * 64; int64_t stride = ldw;
        if (twelve) { w = (const char *)made[s & 1]; stride = 64; }
        else if (height % 16 || (s + 1) * 32 > K) {
          memset(edge, 0, sizeof edge);
          for (int64_t i = 0; i < height; i++) memcpy(edge[i], w + i * ldw, (size_t)smaller(64, (K - s * 32) * 2));
          w = edge[0]; stride = 64;
        }
        if (b == 0) few_amx_ask(&next, s);
        _tile_loadd(4, w, stride);
        _tile_loadd(6, packed + s * (1 + wide) * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) { _tile_loadd(7, packed + (s * 2 + 1) * TILE_BYTES, 64); _tile_dpbf16ps(1, 4, 7); }
        if (high) {
          _tile_loadd(5, w + 16 * stride, stride);
          _tile_dpbf16ps(2, 5, 6);
          if (wide) _tile_dpbf16ps(3, 5, 7);
        }
        if (twelve && s + 1 < steps) patch = bf12_tile(block, &strip, s + 1, patch, made[(s + 1) & 1][0]);
        if (before.at < before.end) few_amx_turn(&before);
      }
      while (before.at < before.end) few_amx_turn(&before);
      float (*place)[2][16][16] = sums[n & 1];
      _tile_stored(0, place[0][0], 64); _tile_stored(1, place[0][1], 64); _tile_stored(2, place[1][0], 64); _tile_stored(3, place[1][1], 64);
      before = (Turn){place, smaller(32, B - b), ld, out + b * ld + r, 0, high ? 4 : 2};
    }
  }
  while (before.at < before.end) few_amx_turn(&before);
}
