/* bf16 in twelve bits, without loss. Eight of a number's bits, the sign and the upper seven of its exponent, take few values in a matrix of weights: here
 * four bits say which of sixteen, and the other eight stay as they are. (DFloat11, Zhang et al. 2025, arXiv:2504.11651, has a Huffman code
 * for the same bits, which is shorter by one and far slower to read.)
 *
 * W[N,K] is cut into strips of 32 rows (4, where bf16 is widened), a strip into tiles of 32 columns: [head][tiles]. A tile has its numbers in the order in which they are multiplied, as rows of 32, in
 * groups of 4 rows: 64 bytes of pairs of codes, 64 of low bytes of two rows, 64 of the other two. The head has for each tile the least of its exponents that a code can mean, the number of its
 * exceptions, and then all exceptions of the strip, (number << 16 | place in the tile), for which it has little room: a strip that has more of them
 * does not fit. Places outside of W hold some finite number. */
#ifndef LYCEUM_BF12_H
#define LYCEUM_BF12_H
#include "pack.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(LY_ISA_AMX) || defined(LY_ISA_AVX512BF16)
enum { STRIP = 32 };
#else
enum { STRIP = 4 };
#endif
enum { GROUP_BYTES = 192, BF12_TILE = STRIP / 4 * GROUP_BYTES };
typedef struct { int64_t steps, patches, head, bytes, room; } Strip; /* tiles, where exceptions begin, where tiles begin, all; how many exceptions */
static inline Strip strip_of(int64_t K) {
  int64_t steps = (K + 31) / 32, patches = (2 * steps + 3) / 4 * 4, room = STRIP + steps * STRIP / 32, head = (patches + 4 * room + 63) / 64 * 64;
  return (Strip){steps, patches, head, head + steps * BF12_TILE, room};
}

/* Byte i of a pair of rows: 8 bytes of one, 8 of the other, and so on, so that two bytes are put together within the lanes of a register. */
static inline int bf12_row(int i) { return i >> 3 & 1; }
static inline int bf12_column(int i) { return (i >> 4) * 8 + (i & 7); }

static inline const uint8_t *bf12_at(const char *strip, const Strip *t, int64_t s) { return (const uint8_t *)strip + t->head + s * BF12_TILE; }
static inline int bf12_base(const char *strip, int64_t s) { return ((const uint8_t *)strip)[s]; }
static inline int bf12_exceptions(const char *strip, const Strip *t, int64_t s) { return ((const uint8_t *)strip)[t->steps + s]; }

#ifdef __AVX512BW__
/* The upper byte that each code means. */
static inline __m512i bf12_high(int base) {
  __m512i codes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121));
  return _mm512_add_epi8(codes, _mm512_set1_epi8((char)base));
}
/* A pair of rows of a tile, but for its exceptions. */
static inline __attribute__((always_inline)) void bf12_rows(const uint8_t *tile, int pair, __m512i high, __m512i rows[2]) {
  const uint8_t *group = tile + pair / 2 * GROUP_BYTES;
  __m512i codes = _mm512_loadu_si512(group), l = _mm512_loadu_si512(group + 64 + pair % 2 * 64);
  __m512i h = _mm512_shuffle_epi8(high, _mm512_and_si512(pair % 2 ? _mm512_srli_epi16(codes, 4) : codes, _mm512_set1_epi8(15)));
  rows[0] = _mm512_unpacklo_epi8(l, h);
  rows[1] = _mm512_unpackhi_epi8(l, h);
}
#endif

/* Tile s of a strip -> to[STRIP][32]. `patch`: the strip's exceptions from this tile's on; returns the next tile's. */
static inline __attribute__((always_inline)) const uint32_t *bf12_tile(const char *strip, const Strip *t, int64_t s, const uint32_t *patch, bf16 *to) {
  const uint8_t *from = bf12_at(strip, t, s);
  int base = bf12_base(strip, s), exceptions = bf12_exceptions(strip, t, s);
#ifdef __AVX512BW__
  __m512i high = bf12_high(base);
#pragma GCC unroll 16
  for (int pair = 0; pair < STRIP / 2; pair++) {
    __m512i rows[2];
    bf12_rows(from, pair, high, rows);
    _mm512_storeu_si512(to + pair * 64, rows[0]);
    _mm512_storeu_si512(to + pair * 64 + 32, rows[1]);
  }
#elif defined(__AVX2__)
  __m256i codes = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121));
  __m256i high = _mm256_add_epi8(codes, _mm256_set1_epi8((char)base)), low = _mm256_set1_epi8(15);
  for (int pair = 0; pair < STRIP / 2; pair++)
    for (int half = 0; half < 2; half++) {
      const uint8_t *group = from + pair / 2 * GROUP_BYTES + half * 32;
      __m256i c = _mm256_loadu_si256((const void *)group), l = _mm256_loadu_si256((const void *)(group + 64 + pair % 2 * 64));
      __m256i h = _mm256_shuffle_epi8(high, _mm256_and_si256(pair % 2 ? _mm256_srli_epi16(c, 4) : c, low));
      _mm256_storeu_si256((void *)(to + pair * 64 + half * 16), _mm256_unpacklo_epi8(l, h));
      _mm256_storeu_si256((void *)(to + pair * 64 + 32 + half * 16), _mm256_unpackhi_epi8(l, h));
    }
#else
  for (int pair = 0; pair < STRIP / 2; pair++) {
    const uint8_t *group = from + pair / 2 * GROUP_BYTES, *l = group + 64 + pair % 2 * 64;
    for (int i = 0; i < 64; i++) {
      int code = pair % 2 ? group[i] >> 4 : group[i] & 15;
      to[(pair * 2 + bf12_row(i)) * 32 + bf12_column(i)] = (bf16)((((code & 7) + base) | (code & 8) << 4) << 8 | l[i]);
    }
  }
#endif
  for (; exceptions > 0; exceptions--, patch++) to[*patch & 1023] = (bf16)(*patch >> 16);
  return patch;
}
static inline const uint32_t *bf12_patches(const char *strip, const Strip *t) { return (const uint32_t *)(strip + t->patches); }

/* Two rows with this least exponent -> their low bytes and codes, which come into the lower or upper half of the bytes of `codes`. Bit i of the result: byte i is an exception. */
static inline uint64_t bf12_pair(const bf16 *rows, int base, int upper, uint8_t *codes, uint8_t *low) {
#ifdef __AVX512BW__
  __m512i a = _mm512_loadu_si512(rows), b = _mm512_loadu_si512(rows + 32), bytes = _mm512_set1_epi16(255);
  __m512i high = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8)), exponent = _mm512_and_si512(high, _mm512_set1_epi8(127));
  __m512i sign = _mm512_and_si512(_mm512_srli_epi16(high, 4), _mm512_set1_epi8(8)), least = _mm512_set1_epi8((char)base);
  __m512i code = _mm512_or_si512(_mm512_and_si512(_mm512_sub_epi8(exponent, least), _mm512_set1_epi8(7)), sign);
  _mm512_storeu_si512(low, _mm512_packus_epi16(_mm512_and_si512(a, bytes), _mm512_and_si512(b, bytes)));
  _mm512_storeu_si512(codes, upper ? _mm512_or_si512(_mm512_loadu_si512(codes), _mm512_slli_epi16(code, 4)) : code);
  return _mm512_cmplt_epu8_mask(exponent, least);
#elif defined(__AVX2__)
  __m256i bytes = _mm256_set1_epi16(255), least = _mm256_set1_epi8((char)base);
  uint64_t exceptions = 0;
  for (int half = 0; half < 2; half++) {
    __m256i a = _mm256_loadu_si256((const void *)(rows + half * 16)), b = _mm256_loadu_si256((const void *)(rows + 32 + half * 16));
    __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)), exponent = _mm256_and_si256(high, _mm256_set1_epi8(127));
    __m256i sign = _mm256_and_si256(_mm256_srli_epi16(high, 4), _mm256_set1_epi8(8));
    __m256i code = _mm256_or_si256(_mm256_and_si256(_mm256_sub_epi8(exponent, least), _mm256_set1_epi8(7)), sign), *to = (__m256i *)(codes + half * 32);
    _mm256_storeu_si256((__m256i *)(low + half * 32), _mm256_packus_epi16(_mm256_and_si256(a, bytes), _mm256_and_si256(b, bytes)));
    _mm256_storeu_si256(to, upper ? _mm256_or_si256(_mm256_loadu_si256(to), _mm256_slli_epi16(code, 4)) : code);
    uint32_t enough = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(exponent, least), exponent));
    exceptions |= (uint64_t)~enough << half * 32;
  }
  return exceptions;
#else
  uint64_t exceptions = 0;
  for (int i = 0; i < 64; i++) {
    int x = rows[bf12_row(i) * 32 + bf12_column(i)], code = (x >> 8 & 127) - base;
    low[i] = (uint8_t)x;
    codes[i] = (uint8_t)((upper ? codes[i] : 0) | ((code & 7) | (x >> 12 & 8)) << (upper ? 4 : 0));
    exceptions |= (uint64_t)(code < 0) << i;
  }
  return exceptions;
#endif
}

/* A tile in the order in which it is multiplied: rows of k on tiles, which take them as they are; for vectors pairs of k side by side. */
static inline void bf12_turn(bf16 *tile) {
#ifdef LY_ISA_AVX512BF16
  words r[2][16];
  turned_lines(r[0], 16, (const char *)tile, 64); turned_lines(r[1], 16, (const char *)(tile + 16 * 32), 64);
  for (int i = 0; i < 16; i++) { memcpy(tile + i * 64, &r[0][i], 64); memcpy(tile + i * 64 + 32, &r[1][i], 64); }
#else
  (void)tile;
#endif
}

/* The first `rows` rows of a strip from W[..., K]; whether they fit. Asks for the rows behind them, whose lines processors do not foresee. */
static inline int bf12_strip(const bf16 *W, int64_t rows, int64_t K, char *strip) {
  Strip t = strip_of(K);
  uint8_t *head = (uint8_t *)strip;
  uint32_t *patch = (uint32_t *)(strip + t.patches), *end = patch + t.room;
  memset(strip, 0, (size_t)t.head);
  for (int64_t s = 0; s < t.steps; s++) {
    int64_t columns = smaller(32, K - s * 32);
    _Alignas(64) bf16 tile[STRIP * 32];
    for (int64_t i = 0; i < STRIP; i++) __builtin_prefetch(W + STRIP * K + (s * STRIP + i) * 32, 0, 2);
    if (rows < STRIP || columns < 32) memset(tile, 0, sizeof tile);
    for (int64_t r = 0; r < rows; r++) memcpy(tile + r * 32, W + r * K + s * 32, (size_t)columns * 2);
    uint16_t most = 0;
    for (int i = 0; i < STRIP * 32; i++) { uint16_t e = tile[i] & 0x7fff; most = e > most ? e : most; }
    int base = most >> 8 > 7 ? (most >> 8) - 7 : 0, first = (int)(end - patch);
    /* What is not there shall be no exception. */
    for (int64_t r = 0; r < STRIP; r++) for (int64_t c = r < rows ? columns : 0; c < 32; c++) tile[r * 32 + c] = (bf16)(base << 8);
    bf12_turn(tile);
    for (int pair = 0; pair < STRIP / 2; pair++) {
      uint8_t *group = head + t.head + s * BF12_TILE + pair / 2 * GROUP_BYTES;
      uint64_t exceptions = bf12_pair(tile + pair * 64, base, pair % 2, group, group + 64 + pair % 2 * 64);
      for (; exceptions; exceptions &= exceptions - 1) {
        int i = __builtin_ctzll(exceptions), place = (pair * 2 + bf12_row(i)) * 32 + bf12_column(i);
        if (patch == end) return 0;
        *patch++ = (uint32_t)tile[place] << 16 | (uint32_t)place;
      }
    }
    int count = first - (int)(end - patch);
    if (count > 255) return 0;
    head[s] = (uint8_t)base;
    head[t.steps + s] = (uint8_t)count;
  }
  return 1;
}
#endif
