/* Packing: operands of a product copied into panels, in the order in which the micro-kernel reads them.
 * `count` (<= width) lines, line j at X[j * line], element k of it k * step further; what is left of the panel is zero.
 * Everything is inlined, so that each width is compiled as the constant that it is. */
#ifndef LYCEUM_PACK_H
#define LYCEUM_PACK_H
#include "rows.h"

#if defined(LY_ISA_AVX512) || defined(LY_ISA_AVX512BF16) || defined(LY_ISA_AMX)
#define LY_WORDS 1
#ifdef __AVX512F__
#include <immintrin.h>
#endif
/* Sixteen words side by side: one register. (In the language of vectors, not of one processor: the tiles' test compiles it for any.) */
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint32_t words_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t halves_at __attribute__((vector_size(32), aligned(2), may_alias));
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

/* r[i] word j becomes r[j] word i: in steps that exchange neighbours 1, 2, 4 and 8 apart, as every wide transpose does; each is one instruction that every
 * port for shuffles has (pairs of words are one word of twice the length, quarters are taken two and two). */
typedef uint64_t word_pairs __attribute__((vector_size(64)));
#ifdef __clang__
#define PICK_PAIRS(a, b, ...) (words)__builtin_shufflevector((word_pairs)(a), (word_pairs)(b), __VA_ARGS__)
#else
#define PICK_PAIRS(a, b, ...) (words)__builtin_shuffle((word_pairs)(a), (word_pairs)(b), (word_pairs){__VA_ARGS__})
#endif
#define EVEN_QUARTERS(a, b) PICK_PAIRS(a, b, 0, 1, 4, 5, 8, 9, 12, 13)
#define ODD_QUARTERS(a, b) PICK_PAIRS(a, b, 2, 3, 6, 7, 10, 11, 14, 15)
static inline __attribute__((always_inline)) void transpose16(words r[16]) {
  words s[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    s[i] = PICK(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    s[i + 1] = PICK(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
  /* r[4 b + c], quarter q: column 4 q + c of rows 4 b .. 4 b + 3 */
#pragma GCC unroll 4
  for (int b = 0; b < 16; b += 4) {
    r[b] = PICK_PAIRS(s[b], s[b + 2], 0, 8, 2, 10, 4, 12, 6, 14);
    r[b + 1] = PICK_PAIRS(s[b], s[b + 2], 1, 9, 3, 11, 5, 13, 7, 15);
    r[b + 2] = PICK_PAIRS(s[b + 1], s[b + 3], 0, 8, 2, 10, 4, 12, 6, 14);
    r[b + 3] = PICK_PAIRS(s[b + 1], s[b + 3], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  /* Of two such their even quarters, or odd ones; and of two of these again: a quarter of each of the four. */
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    words even0 = EVEN_QUARTERS(r[c], r[4 + c]), odd0 = ODD_QUARTERS(r[c], r[4 + c]);
    words even1 = EVEN_QUARTERS(r[8 + c], r[12 + c]), odd1 = ODD_QUARTERS(r[8 + c], r[12 + c]);
    s[c] = EVEN_QUARTERS(even0, even1); s[8 + c] = ODD_QUARTERS(even0, even1);
    s[4 + c] = EVEN_QUARTERS(odd0, odd1); s[12 + c] = ODD_QUARTERS(odd0, odd1);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = s[i];
}

/* Sixteen pairs (x[0][j], x[1][j]): the two of a pair lie in two lines of the source. */
static inline __attribute__((always_inline)) words pair_rows(const bf16 *even, const bf16 *odd) {
#ifdef __AVX512F__ /* the same in one instruction a line */
  return (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)even)) |
         (words)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)odd)), 16);
#else
  return __builtin_convertvector(*(const halves_at *)even, words) | __builtin_convertvector(*(const halves_at *)odd, words) << 16;
#endif
}

/* The first `count` of these pairs, zeros behind; no odd line: zeros for it. */
static inline __attribute__((always_inline)) words pair_columns(const bf16 *even, const bf16 *odd, int64_t count) {
#ifdef __AVX512BW__
  __mmask16 some = (__mmask16)((1u << count) - 1);
  __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, even));
  return (words)low | (words)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd ? some : 0, odd)), 16);
#else
  words w = {0};
  for (int64_t j = 0; j < count; j++) w[j] = (uint32_t)even[j] | (odd ? (uint32_t)odd[j] << 16 : 0);
  return w;
#endif
}

/* The same of 32 elements of each line, in the order that is cheap: low has columns 0-3, 8-11, 16-19, 24-27, high those between. */
static inline __attribute__((always_inline)) void pair_lines(const bf16 *even, const bf16 *odd, words *low, words *high) {
#ifdef __AVX512BW__
  __m512i e = _mm512_loadu_si512(even), o = _mm512_loadu_si512(odd);
  *low = (words)_mm512_unpacklo_epi16(e, o); *high = (words)_mm512_unpackhi_epi16(e, o);
#else
  words first = pair_rows(even, odd), second = pair_rows(even + 16, odd + 16);
  *low = PICK(first, second, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  *high = PICK(first, second, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#endif
}

/* Sixteen words of each of `lines` lines, which are `line` bytes apart; zeros where there are fewer than sixteen. r[k] word j is word k of line j. */
static inline __attribute__((always_inline)) void turned_lines(words r[16], int64_t lines, const char *x, int64_t line) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    if (i < lines) r[i] = *(const words_at *)(x + i * line);
    else r[i] = (words){0};
  transpose16(r);
}

/* Words of `count` lines (`line` bytes apart), zeros for those up to width, as out[k][width], sixteen k at a time; returns how many of n it has
 * done. `rows` is the panel's length: a row is stored sixteen words at a time, and what runs over its end is written again by the next,
 * so the last row of the panel may not run over. */
static inline __attribute__((always_inline)) int64_t pack_transposed(uint32_t *out, int64_t width, int64_t count, int64_t n, int64_t rows, const char *x, int64_t line) {
  int64_t k = 0;
  for (; k + 16 <= n; k += 16)
    for (int64_t j = 0; j < width; j += 16) {
      words r[16];
      turned_lines(r, count - j, x + j * line + 4 * k, line);
      uint32_t *o = out + k * width + j;
#pragma GCC unroll 15
      for (int i = 0; i < 15; i++) *(words_at *)(o + i * width) = r[i];
      if (j + 16 <= width || k + 16 < rows) *(words_at *)(o + 15 * width) = r[15];
      else memcpy(o + 15 * width, &r[15], 4 * (size_t)(width - j));
    }
  return k;
}

/* The same of bf16 that is widened: out[k][width], thirty-two k at a time. */
static inline __attribute__((always_inline)) int64_t pack_widened(uint32_t *out, int64_t width, int64_t K, const char *x, int64_t line) {
  int64_t k = 0;
  for (; k + 32 <= K; k += 32)
    for (int64_t j = 0; j < width; j += 16) {
      words r[16];
      turned_lines(r, width - j, x + j * line + 2 * k, line);
      uint32_t *o = out + k * width + j;
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        words low = r[i] << 16, high = r[i] & 0xffff0000u;
        *(words_at *)(o + 2 * i * width) = low;
        if (i < 15 || j + 16 <= width || k + 32 < K) *(words_at *)(o + (2 * i + 1) * width) = high;
        else memcpy(o + 31 * width, &high, 4 * (size_t)(width - j));
      }
    }
  return k;
}

/* Pairs along k as words: out[k / 2][width], of which `each` are used. K elements of each line, Kp >= K of them in the panel. */
static inline __attribute__((always_inline)) void pack_pairs(uint32_t *out, int64_t width, int64_t each, int64_t count, int64_t K, int64_t Kp, const bf16 *x, int64_t line, int64_t step) {
  int64_t pairs = K / 2, rows = Kp / 2, k = 0;
  if (count < each || K < Kp) memset(out, 0, 4 * (size_t)(width * rows));
  if (step == 1) {
    k = count == each ? pack_transposed(out, width, each, pairs, rows, (const char *)x, 2 * line) : pack_transposed(out, width, count, pairs, rows, (const char *)x, 2 * line);
    for (int64_t j = 0; j < count; j++) for (int64_t i = k; i < pairs; i++) memcpy(&out[i * width + j], x + j * line + 2 * i, 4);
  } else
    for (int64_t i = 0; i < pairs; i++) {
      const bf16 *even = x + 2 * i * step, *odd = even + step;
      for (int64_t j = 0; j < count; j++) out[i * width + j] = (uint32_t)even[j * line] | (uint32_t)odd[j * line] << 16;
    }
  if (K & 1) for (int64_t j = 0; j < count; j++) out[pairs * width + j] = x[j * line + (K - 1) * step];
}

/* The same where elements of a k lie side by side (line 1), for all panels, which are `panel` words apart: a line of memory holds elements of several, which all
 * take their part while it is there. Lines of later k, which no processor foresees, are asked for; so many of them that they do not push each other out. */
static inline __attribute__((always_inline)) void pack_side_by_side(uint32_t *out, int64_t panel, int64_t width, int64_t each, int64_t count, int64_t K, int64_t Kp, const bf16 *x, int64_t step) {
  enum { FETCHED = 192 };
  int64_t ahead = FETCHED / ((count + 31) / 32) / 2 * 2 + 2;
  for (int64_t k = 0; k < Kp; k += 2) {
    const bf16 *even = x + k * step, *odd = k + 1 < K ? even + step : NULL;
    uint32_t *o = out + k / 2 * width;
    if (k + ahead + 1 < K) for (int64_t j = 0; j < count; j += 32) { __builtin_prefetch(even + ahead * step + j); __builtin_prefetch(even + (ahead + 1) * step + j); }
    int64_t done = 0;
    if (odd)
      for (; done + each <= count; done += each, o += panel)
        for (int64_t j = 0; j < each; j += 16) *(words_at *)(o + j) = pair_columns(even + done + j, odd + done + j, smaller(each - j, 16));
    for (; done < count; done += each, o += panel)
      for (int64_t j = 0; j < width; j += 16) {
        int64_t some = k < K ? smaller(smaller(count - done, each) - j, 16) : 0;
        *(words_at *)(o + j) = some > 0 ? pair_columns(even + done + j, odd ? odd + done + j : NULL, some) : (words){0};
      }
  }
}

#endif

/* fp32 panels out[k][width], of either storage type. */
static inline __attribute__((always_inline)) void pack_f32(float *out, int64_t width, int64_t count, int64_t K, const void *X, int dt, int64_t line, int64_t step) {
  if (count < width) memset(out, 0, sizeof(float) * (size_t)(width * K));
  if (dt == LY_F32) {
    const float *x = X;
    int64_t k = 0;
    if (line == 1 && count == width) { /* a length that is known is copied in registers; what lies rows further is not foreseen */
      for (; k < K; k++) { __builtin_prefetch(x + (k + 32) * step); memcpy(out + k * width, x + k * step, sizeof(float) * (size_t)width); }
      return;
    }
    if (line == 1) { for (; k < K; k++) for (int64_t j = 0; j < count; j++) out[k * width + j] = x[k * step + j]; return; }
#ifdef LY_WORDS
    if (step == 1 && count == width) k = pack_transposed((uint32_t *)out, width, width, K, K, X, 4 * line);
#endif
    for (int64_t j = 0; j < count; j++) for (int64_t i = k; i < K; i++) out[i * width + j] = x[j * line + i * step];
  } else {
    const bf16 *x = X;
    int64_t k = 0;
    if (line == 1 && count == width)
      for (; k < K; k++) { __builtin_prefetch(x + (k + 32) * step); for (int64_t j = 0; j < width; j++) out[k * width + j] = bf16_to_f32(x[k * step + j]); }
    if (line == 1) { for (; k < K; k++) for (int64_t j = 0; j < count; j++) out[k * width + j] = bf16_to_f32(x[k * step + j]); return; }
#ifdef LY_WORDS
    if (step == 1 && count == width) k = pack_widened((uint32_t *)out, width, K, X, 2 * line);
#endif
    for (int64_t j = 0; j < count; j++) for (int64_t i = k; i < K; i++) out[i * width + j] = bf16_to_f32(x[j * line + i * step]);
  }
}
#endif
