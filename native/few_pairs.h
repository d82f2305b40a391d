/* The same products by vdpbf16ps, which multiplies pairs along k: a tile, 32 rows of W by 32 of k, becomes pairs that lie side by side, 32 of them for each
 * of 16 pairs of k, and meets one pair of x after the other. So a sum is one chain in the order of k, the one that matmul.c makes, whatever the number of rows. */
#include "bf12.h"
#include "pack.h"

enum { TILE_K = 32, PART = 8 /* tiles at most that stay in the first-level cache while rows of x pass by */, ROWS = 64 /* of these, at a time */ };

/* Rows of x as they lie, but not so far apart that they share a set of the cache; zeros up to a whole tile. */
static int64_t few_strips_stride(int64_t K) {
  int64_t bytes = (K + TILE_K - 1) / TILE_K * TILE_K * 2;
  return bytes % 1024 == 0 ? bytes + 64 : bytes;
}
static int few_strips_as_is(int64_t K) { return few_strips_stride(K) == 2 * K; }
static void few_strips_prepare(char *out, const bf16 *x, int64_t first, int64_t rows, int64_t B, int64_t K) {
  int64_t stride = few_strips_stride(K); (void)B;
  for (int64_t b = first; b < first + rows; b++) {
    memcpy(out + b * stride, x + b * K, (size_t)K * 2);
    memset(out + b * stride + K * 2, 0, (size_t)(stride - K * 2));
  }
}

/* `height` rows of W from column k on -> to[16][32][2], zeros for those that are not there; of sixteen or fewer the first half only. */
static inline __attribute__((always_inline)) void few_pairs_tile(const char *W, int64_t ldw, int64_t height, int64_t k, int64_t K, bf16 *to) {
  _Alignas(64) bf16 edge[STRIP][TILE_K];
  const char *from = W + k * 2;
  int halves = height > 16 ? 2 : 1;
  if (height < halves * 16 || k + TILE_K > K) {
    memset(edge, 0, sizeof edge);
    for (int64_t i = 0; i < height; i++) memcpy(edge[i], from + i * ldw, (size_t)smaller(TILE_K, K - k) * 2);
    from = (const char *)edge; ldw = sizeof edge[0];
  }
  for (int half = 0; half < halves; half++) {
    words r[16];
    turned_lines(r, 16, from + half * 16 * ldw, ldw);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) *(words *)(to + i * 64 + half * 32) = r[i];
  }
}

/* Where tiles come from; `next`: what is asked for meanwhile, `pace` bytes of it with each pair of k, evenly: many lines at once would keep those waiting that are wanted now. */
typedef struct { const char *W; int64_t ldw, height, K; const Strip *strip; const uint32_t *patch; const char *next; int64_t pace; } Source;

/* Sums of C rows of x with pair k of a tile. */
static inline __attribute__((always_inline)) void few_pairs_add(int C, __m512 a[8][2], __m512i w0, __m512i w1, const char *x, int64_t ldx) {
#pragma GCC unroll 8
  for (int c = 0; c < C; c++) {
    int32_t pair;
    memcpy(&pair, x + c * ldx, 4);
    __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
    a[c][0] = _mm512_dpbf16_ps(a[c][0], (__m512bh)w0, v);
    a[c][1] = _mm512_dpbf16_ps(a[c][1], (__m512bh)w1, v);
  }
}
/* C rows of x by `tiles` tiles from `first` on, which are made on the way if `make`, and kept for others if `keep`; the sums, in out[C][32], go on from those of the tiles before. */
static inline __attribute__((always_inline)) void few_pairs_block(int C, int twelve, int make, int keep, Source *w, int64_t first, int64_t tiles, bf16 *panel, const char *x, int64_t ldx, float *out) {
  __m512 a[8][2];
#pragma GCC unroll 8
  for (int c = 0; c < C; c++) {
    a[c][0] = first ? _mm512_load_ps(out + c * 32) : _mm512_setzero_ps();
    a[c][1] = first ? _mm512_load_ps(out + c * 32 + 16) : _mm512_setzero_ps();
  }
  const char *ahead = w->next;
  int64_t pace = w->pace, ldw = w->ldw;
  for (int64_t s = first; s < first + tiles; s++, panel += STRIP * TILE_K) {
    const char *from = x + s * TILE_K * 2, *row = w->W + (s + 2) * TILE_K * 2;
    if (make && twelve && !keep && bf12_exceptions(w->W, w->strip, s) == 0) { /* from register to register */
      const uint8_t *tile = bf12_at(w->W, w->strip, s);
      __m512i high = bf12_high(bf12_base(w->W, s));
#pragma GCC unroll 2
      for (int k = 0; k < 16; k++) {
        __builtin_prefetch(ahead); __builtin_prefetch(ahead + 64);
        ahead += pace;
        __m512i rows[2];
        bf12_rows(tile, k, high, rows);
        few_pairs_add(C, a, rows[0], rows[1], from + 4 * k, ldx);
      }
      continue;
    }
    if (make && twelve) w->patch = bf12_tile(w->W, w->strip, s, w->patch, panel);
    else if (make) few_pairs_tile(w->W, ldw, w->height, s * TILE_K, w->K, panel);
#pragma GCC unroll 2
    for (int k = 0; k < 16; k++) {
      __builtin_prefetch(ahead);
      if (make) __builtin_prefetch(ahead + 64);
      ahead += pace;
      if (make && !twelve) { __builtin_prefetch(row); if (w->height > 16) __builtin_prefetch(row + 16 * ldw); row += ldw; }
      few_pairs_add(C, a, _mm512_load_si512(panel + k * 64), _mm512_load_si512(panel + k * 64 + 32), from + 4 * k, ldx);
    }
  }
  w->next = ahead;
#pragma GCC unroll 8
  for (int c = 0; c < C; c++) { _mm512_store_ps(out + c * 32, a[c][0]); _mm512_store_ps(out + c * 32 + 16, a[c][1]); }
}
static inline __attribute__((always_inline)) int64_t few_pairs_some(int twelve, int make, int64_t rows, Source *w, int64_t first, int64_t tiles, bf16 *panel, const char *x, int64_t ldx, float *out) {
  if (rows >= 8) { few_pairs_block(8, twelve, make, rows > 8, w, first, tiles, panel, x, ldx, out); return 8; }
  if (rows >= 4) { few_pairs_block(4, twelve, make, rows > 4, w, first, tiles, panel, x, ldx, out); return 4; }
  if (rows >= 2) { few_pairs_block(2, twelve, make, rows > 2, w, first, tiles, panel, x, ldx, out); return 2; }
  few_pairs_block(1, twelve, make, rows > 1, w, first, tiles, panel, x, ldx, out);
  return 1;
}

/* Long rows as they are, by few rows of x, go sixteen at a time: with 32 of them processors read ahead so badly that half the arithmetic for nothing is the lesser evil. */
enum { LONG_ROW = 1024 };
static inline __attribute__((always_inline)) void few_strips(int twelve, const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, int asked, Ahead after, float *out, int64_t ld) {
  _Alignas(64) bf16 panel[PART * STRIP * TILE_K];
  _Alignas(64) float sums[ROWS * STRIP];
  Strip strip = strip_of(K);
  (void)asked;
  int64_t ldx = few_strips_stride(K), part = B < 8 ? PART / 2 : PART, high = !twelve && B < 8 && ldw >= LONG_ROW ? 16 : STRIP;
  int64_t bytes = twelve ? BF12_TILE : high * TILE_K * 2;
  if (high < STRIP) memset(panel, 0, (size_t)part * STRIP * TILE_K * 2); /* what the other half of each tile stays */
  for (int64_t r = 0; r < rows; r += high) {
    const char *here = W + r * ldw, *then = r + high < rows ? here + high * ldw : after.at ? after.at : here;
    for (int64_t b0 = 0; b0 < B; b0 += ROWS) {
      int64_t n = smaller(ROWS, B - b0);
      Source w = {here, ldw, smaller(high, rows - r), K, &strip, bf12_patches(here, &strip), NULL, bytes / 2 / (n < 8 ? 8 : n)};
      for (int64_t s = 0; s < strip.steps; s += part) {
        int64_t tiles = smaller(part, strip.steps - s), b;
        /* bf12 is read as it lies, so the next part is asked for; of rows that lie apart all of the next strip, in the order of memory. */
        w.next = !twelve ? then + s * bytes : s + part < strip.steps ? here + strip.head + (s + part) * bytes : then;
        b = few_pairs_some(twelve, 1, n, &w, s, tiles, panel, x + b0 * ldx, ldx, sums);
        while (b < n) b += few_pairs_some(twelve, 0, n - b, &w, s, tiles, panel, x + (b0 + b) * ldx, ldx, sums + b * STRIP);
      }
      for (int64_t b = 0; b < n; b++) memcpy(out + (b0 + b) * ld + r, sums + b * STRIP, (size_t)smaller(high, ld - r) * 4);
    }
  }
}
