/* Row kernels compute in fp32 whatever the storage type: a row is widened into a buffer, worked on, and rounded back. */
#ifndef LYCEUM_ROWS_H
#define LYCEUM_ROWS_H
#include "internal.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif
/* Rounds to nearest even. The processor's own instruction takes numbers below 1e-38 for zero; no sum here notices. */
static inline __attribute__((always_inline)) void round_row(bf16 *restrict y, const float *restrict x, int64_t n) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  for (; i + 16 <= n; i += 16) _mm256_storeu_si256((void *)(y + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
#endif
  for (; i < n; i++) y[i] = f32_to_bf16(x[i]);
}
static inline void load_row(float *restrict out, const void *x, int64_t at, int64_t n, int dt) {
  if (dt == LY_F32) memcpy(out, (const float *)x + at, (size_t)n * 4);
  else { const bf16 *s = (const bf16 *)x + at; for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(s[i]); }
}
static inline void store_row(void *y, int64_t at, const float *restrict x, int64_t n, int dt) {
  if (dt == LY_F32) memcpy((float *)y + at, x, (size_t)n * 4);
  else round_row((bf16 *)y + at, x, n);
}
/* A number in fp32 as two halves, as in Split-SGD (Kalamkar et al. 2020): the upper one is the number rounded to bf16, and `low`, -32768 to
 * 32767, what is to be added to its bits to have the number's. Ties are rounded away from 0: to even, two numbers would come to the same
 * pair, one half below an even upper half and one half above it. */
static inline float join(bf16 high, int16_t low) {
  union { uint32_t bits; float x; } whole = {((uint32_t)high << 16) + (uint32_t)(int32_t)low};
  return whole.x;
}
static inline void split(float x, bf16 *high, int16_t *low) {
  union { float x; uint32_t bits; } whole = {x};
  uint32_t bits = (whole.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : whole.bits; /* a NaN that is rounded may become 0 */
  *high = (bf16)((bits + 0x8000) >> 16);
  *low = (int16_t)bits;
}
/* Asks for a row before it is needed: what goes on in another place with every row, processors do not foresee. */
static inline __attribute__((always_inline)) void fetch_row(const void *x, int64_t at, int64_t n, int dt) {
  int64_t size = dt == LY_F32 ? 4 : 2;
  for (int64_t b = 0; b < n * size; b += 64) __builtin_prefetch((const char *)x + at * size + b);
}
/* The same of a row that will be written. */
static inline __attribute__((always_inline)) void claim_row(const void *y, int64_t at, int64_t n, int dt) {
  int64_t size = dt == LY_F32 ? 4 : 2;
  for (int64_t b = 0; b < n * size; b += 64) __builtin_prefetch((const char *)y + at * size + b, 1);
}
static inline void add_to_row(void *y, int64_t at, const float *restrict x, int64_t n, int dt) {
  if (dt == LY_F32) { float *d = (float *)y + at; for (int64_t i = 0; i < n; i++) d[i] += x[i]; }
  else { bf16 *d = (bf16 *)y + at; for (int64_t i = 0; i < n; i++) d[i] = f32_to_bf16(bf16_to_f32(d[i]) + x[i]); }
}
#ifdef __AVX512F__
/* fast_exp2f of sixteen: the same numbers, with the instructions that split a number and put it together again. 0 below 2^-126: a subnormal
 * result takes as long as a hundred others. NaN stays. */
static inline __m512 exp2_lanes(__m512 t) {
  __mmask16 large = _mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);
  __m512 n = _mm512_roundscale_ps(t, 0), r = _mm512_sub_ps(t, n), p = _mm512_set1_ps(1.5353360271e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3398874872e-3f)); p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6184373679e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5503324697e-2f)); p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022647913e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314720286e-1f)); p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(large, p, n);
}
#endif
/* out[n] = 2^((a x - b) c), out may be x; NULL: only their sum, which is returned. */
static inline __attribute__((always_inline)) float exp2_row(float *out, const float *x, int64_t n, float a, float b, float c) {
  int64_t i = 0; float sum = 0;
#ifdef __AVX512F__
  __m512 all = _mm512_setzero_ps();
  for (; i + 16 <= n; i += 16) {
    __m512 e = exp2_lanes(_mm512_mul_ps(_mm512_fmsub_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(a), _mm512_set1_ps(b)), _mm512_set1_ps(c)));
    if (out) _mm512_storeu_ps(out + i, e);
    all = _mm512_add_ps(all, e);
  }
  sum = _mm512_reduce_add_ps(all);
#endif
  for (; i < n; i++) {
    float e = fast_exp2f((x[i] * a - b) * c);
    if (out) out[i] = e;
    sum += e;
  }
  return sum;
}
static inline float sum_lanes(const float lane[16]) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(_mm512_loadu_ps(lane));
#else
  float sum = 0;
  for (int j = 0; j < 16; j++) sum += lane[j];
  return sum;
#endif
}
/* The largest of n, -inf of none; NaN is passed over. In lanes, because compilers leave a comparison that may meet NaN serial. */
static inline float row_max(const float *x, int64_t n) {
  float max = -INFINITY;
  int64_t i = 0;
#ifdef __AVX512F__
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (; i + 16 <= n; i += 16) most = _mm512_max_ps(_mm512_loadu_ps(x + i), most); /* of a NaN and `most`: `most` */
  max = _mm512_reduce_max_ps(most);
#else
  float lane[16];
  for (int j = 0; j < 16; j++) lane[j] = max;
  for (; i + 16 <= n; i += 16) for (int j = 0; j < 16; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  for (int j = 0; j < 16; j++) max = lane[j] > max ? lane[j] : max;
#endif
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
/* The cut of n rows into blocks is the same for any number of threads. */
#define ROW_BLOCK 32
static inline int64_t blocks_of(int64_t n) { return (n + ROW_BLOCK - 1) / ROW_BLOCK; }
#endif
