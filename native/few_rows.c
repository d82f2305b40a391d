/* Dot products of a few rows x with the rows of a matrix W[N,K], which are read once, from where they lie.
 *
 * A block is as many sums as a register has lanes: sixteen are 4 rows of W by 4 of x, 8 by 2 or 16 by 1. Each is made in a register
 * of its own; at the end they are added up into one register with a result a lane. Each sum
 * takes its products in the same order whatever block it is in, so a result does not depend on how many rows there are. */
#include "few_rows.h"
#include "bf12.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef int32_t lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
enum { MOST_X = LANES / 4, AHEAD = 8192 };
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS int64_t step_of(Form f) { return f == HALF || f == BYTES ? 64 : f == WIDE ? LANES : 4 * LANES; }
ALWAYS int64_t xstep_of(Form f) { return f == HALF || f == BYTES ? 64 : f == SPLIT ? 8 * LANES : 4 * LANES; }
ALWAYS int64_t width_of(Form f) { return f == FULL ? 4 : f == BYTES || f == WIDE ? 1 : 2; }
static int64_t grouped(int64_t K) { return (K + GROUP - 1) / GROUP * GROUP; }

/* x y + z in one instruction where there is one, which compilers do not put in another order: the sums of weights in twelve bits are to be the same as those of the weights. */
ALWAYS vec fused(vec x, vec y, vec z) {
#ifdef __AVX512F__
  return (vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__FMA__)
  return (vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
  return x * y + z;
#endif
}

/* One step: C rows of x, R of W. Sum (r, c) is a[c * R + r]. `less` and `scale` (BYTES): of the group, for each row of x. */
ALWAYS void few_step(Form f, int R, int C, const char *const w[4], int64_t at, const char *x, int64_t ldx, const char *less, const char *scale, vec *a) {
  if (f == FULL) {
    vec y[4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) y[r] = *(const vec *)(w[r] + at);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      vec v = *(const vec *)(x + c * ldx);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) a[c * R + r] += y[r] * v;
    }
  } else if (f == WIDE) {
    vec y[4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) y[r] = __builtin_convertvector(*(const bytes *)(w[r] + at), vec);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      vec v = *(const vec *)(x + c * ldx);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) a[c * R + r] += y[r] * v;
    }
  } else if (f == SPLIT) {
    vec even[4], odd[4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) { bits u = *(const bits *)(w[r] + at); even[r] = (vec)(u << 16); odd[r] = (vec)(u & 0xffff0000u); }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      vec e = *(const vec *)(x + c * ldx), o = *(const vec *)(x + c * ldx + 4 * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) a[c * R + r] = fused(odd[r], o, fused(even[r], e, a[c * R + r]));
    }
  }
#ifdef __AVX512BF16__
  else if (f == HALF) {
    __m512bh y[4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) y[r] = (__m512bh)_mm512_loadu_si512(w[r] + at);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      __m512bh v = (__m512bh)_mm512_loadu_si512(x + c * ldx);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) a[c * R + r] = (vec)_mm512_dpbf16_ps((__m512)a[c * R + r], y[r], v);
    }
  }
#endif
#ifdef __AVX512VNNI__
  else if (f == BYTES) {
    /* vpdpbusd wants one factor without a sign: W + 128; sums begin at what is too much then, less. Four rows share
     * that, and it is sooner reckoned than loaded. */
    __m512i y[4], top = _mm512_set1_epi8((char)0x80);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) y[r] = _mm512_xor_si512(_mm512_loadu_si512(w[r] + at), top);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      __m512i v = _mm512_loadu_si512(x + c * ldx), zero = _mm512_setzero_si512();
      __m512i first = R > 1 ? _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, top, v)) : _mm512_loadu_si512(less + c * ldx);
      __m512 s = _mm512_set1_ps(*(const float *)(scale + c * ldx));
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) a[c * R + r] = (vec)_mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(first, y[r], v)), s, (__m512)a[c * R + r]);
    }
  }
#endif
  (void)less; (void)scale;
}

/* The whole of K. `ahead` bytes behind a row of W lies what is wanted soon; of keys (HALF) behind each of several rows, of weights other groups ask for those of
 * the others. The steps stand in one loop, which goes over what is left of the rows, in a copy filled up with zeros, in a second round: with two loops compilers
 * move all sums about between their registers. */
ALWAYS void few_dots(Form f, int R, int C, const char *w[4], int64_t K, const char *x, int64_t ldx, int64_t ahead, vec *out, int stride) {
  vec a[16];
#pragma GCC unroll 16
  for (int i = 0; i < R * C; i++) a[i] = (vec){0};
  int64_t step = step_of(f), xstep = xstep_of(f), n = f == BYTES || f == WIDE ? grouped(K) : K * width_of(f), whole = n / step * step, left = n - whole;
  _Alignas(64) char rest[4][64];
  const char *less = x + n, *scale = x + 2 * n;
  for (int64_t end = whole;;) {
    for (int64_t k = 0; k < end; k += step) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) if (f == HALF || r == 0) __builtin_prefetch(w[r] + k + ahead);
      few_step(f, R, C, w, k, x, ldx, less, scale, a);
      x += xstep;
      if (f == BYTES) { less += GROUP; scale += 4; }
    }
    if (f == BYTES || f == WIDE || left == 0) break;
    memset(rest, 0, sizeof rest);
    for (int r = 0; r < R; r++) { memcpy(rest[r], w[r] + whole, (size_t)left); w[r] = rest[r]; }
    end = step;
    left = 0;
  }
#pragma GCC unroll 4
  for (int c = 0; c < C; c++) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) out[c * stride + r] = a[c * R + r];
  }
}

#ifdef __clang__
#define CHOOSE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOOSE(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif
/* Lane i of the result is the sum of the lanes of v[i]: halves are added, then quarters, ... of two vectors at a time. */
ALWAYS vec sum_each(vec *v) {
#if LANES == 16
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    v[i] = CHOOSE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           CHOOSE(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    v[i] = CHOOSE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           CHOOSE(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    v[i] = CHOOSE(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           CHOOSE(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  return CHOOSE(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         CHOOSE(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif LANES == 8
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    v[i] = CHOOSE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11) + CHOOSE(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    v[i] = CHOOSE(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13) + CHOOSE(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15);
  return CHOOSE(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14) + CHOOSE(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15);
#else
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) v[i] = CHOOSE(v[2 * i], v[2 * i + 1], 0, 1, 4, 5) + CHOOSE(v[2 * i], v[2 * i + 1], 2, 3, 6, 7);
  return CHOOSE(v[0], v[1], 0, 2, 4, 6) + CHOOSE(v[0], v[1], 1, 3, 5, 7);
#endif
}

#if defined(__AVX2__) && !defined(LY_ISA_AMX) && !defined(LY_ISA_AVX512BF16)
#define HAS_TWELVE 1
/* The same for four rows in twelve bits, a strip: they become bf16 again tile by tile, and go on as SPLIT does, so that the sums are the same. Strips lie one behind
 * the other: what comes next is what follows in memory. */
ALWAYS void twelve_dots(int C, const char *own, int64_t K, const char *x, int64_t ldx, vec *out, int stride) {
  enum { R = STRIP, STEPS = 32 / (2 * LANES), SOON = 5120 };
  _Alignas(64) bf16 made[R * 32];
  const char *w[4] = {(const char *)made, (const char *)(made + 32), (const char *)(made + 64), (const char *)(made + 96)};
  Strip strip = strip_of(K);
  const uint32_t *patch = bf12_patches(own, &strip);
  vec a[16];
#pragma GCC unroll 16
  for (int i = 0; i < R * C; i++) a[i] = (vec){0};
  for (int64_t t = 0; t < strip.steps; t++, x += STEPS * 8 * LANES) {
    const char *next = own + strip.head + t * BF12_TILE + SOON;
    __builtin_prefetch(next); __builtin_prefetch(next + 64); __builtin_prefetch(next + 128);
    patch = bf12_tile(own, &strip, t, patch, made);
#pragma GCC unroll 2
    for (int i = 0; i < STEPS; i++) few_step(SPLIT, R, C, w, i * 4 * LANES, x + i * 8 * LANES, ldx, NULL, NULL, a);
  }
#pragma GCC unroll 4
  for (int c = 0; c < C; c++) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) out[c * stride + r] = a[c * R + r];
  }
}
#endif

/* With few rows of x, memory sets the pace, and it is read fastest one row of W after the other; with MOST_X of them arithmetic
 * does, and four rows of W share what is loaded of x.
 * LANES sums: LANES / C rows of W (from `row` on; those past `rows` are the last one again) by C rows of x -> out[c * ld + r]. */
ALWAYS void few_block(Form f, int C, const char *W, int64_t ldw, int64_t row, int64_t rows, int64_t K, const char *x, int64_t ldx, int64_t ahead, float *out, int64_t ld) {
  vec v[LANES];
  int R = LANES / C, together = C == MOST_X || f == TWELVE ? 4 : 1;
#pragma GCC unroll 16
  for (int s = 0; s < R; s += together) {
#ifdef HAS_TWELVE
    if (f == TWELVE) { twelve_dots(C, W + smaller(row + s, (rows - 1) / STRIP * STRIP) * ldw, K, x, ldx, v + s, R); continue; }
#endif
    const char *w[4];
#pragma GCC unroll 4
    for (int r = 0; r < together; r++) w[r] = W + smaller(row + s + r, rows - 1) * ldw;
    few_dots(f, together, C, w, K, x, ldx, ahead, v + s, R);
  }
  vec sums = sum_each(v);
#pragma GCC unroll 4
  for (int c = 0; c < C; c++) memcpy(out + c * ld + row, (const float *)&sums + c * R, 4 * (size_t)R);
}

/* Rows of x in groups of MOST_X pass over a part of W that stays in the first cache, while the next part is fetched: by all of the
 * groups together where there are several, so that arithmetic and memory are busy at the same time. `after`: what is fetched instead, row by row. */
ALWAYS void few_all(Form f, const char *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t ldx, int64_t B, const char *after, float *out, int64_t ld) {
  enum { R = LANES / MOST_X };
  int64_t part = (int64_t)(24 * 1024) / (ldw > 0 ? ldw : 1) / R * R, groups = B / MOST_X;
  part = part < R ? R : part;
  if (groups > 0)
    for (int64_t r0 = 0; r0 < rows; r0 += part)
      for (int64_t g = 0; g < groups; g++)
        for (int64_t r = r0; r < smaller(r0 + part, rows); r += R) {
          int64_t next = after ? after - W : g < R ? (part + g) * ldw : 0;
          few_block(f, MOST_X, W, ldw, r, rows, K, x + g * MOST_X * ldx, ldx, next, out + g * MOST_X * ld, ld);
        }
#if LANES > 4
  int64_t b = groups * MOST_X, next = after ? after - W : AHEAD;
#if LANES == 16
  for (; b + 2 <= B; b += 2)
    for (int64_t r = 0; r < rows; r += LANES / 2) few_block(f, 2, W, ldw, r, rows, K, x + b * ldx, ldx, next, out + b * ld, ld);
#endif
  for (; b < B; b++)
    for (int64_t r = 0; r < rows; r += LANES) few_block(f, 1, W, ldw, r, rows, K, x + b * ldx, ldx, next, out + b * ld, ld);
#endif
}

#ifdef LY_ISA_AMX
#include "few_amx.h"
#define HAS_STRIPS 1
#elif defined(LY_ISA_AVX512BF16)
#include "few_pairs.h"
#define HAS_STRIPS 1
#endif

int ly_few_form(int rows, int strips) {
  if (rows == LY_F32) return FULL;
#ifdef __AVX512VNNI__
  if (rows == LY_INT8) return BYTES;
#else
  if (rows == LY_INT8) return WIDE;
#endif
#ifdef HAS_STRIPS
  if (strips) return rows == LY_BF12 ? TWELVE : STRIPS;
#elif defined(HAS_TWELVE)
  if (strips && rows == LY_BF12) return TWELVE;
#endif
  (void)strips;
#ifdef __AVX512BF16__
  return HALF;
#else
  return SPLIT;
#endif
}
int64_t ly_few_row(int form, int64_t K) {
  if (form == TWELVE) return strip_of(K).bytes / STRIP;
  return form == BYTES || form == WIDE ? grouped(K) : K * width_of(form);
}
int64_t ly_few_stride(int form, int64_t K) {
#ifdef HAS_STRIPS
  if (in_strips(form)) return few_strips_stride(K);
#endif
  if (form == TWELVE) return (K + 31) / 32 * 32 * 4;
  if (form == BYTES) return grouped(K) / GROUP * (2 * GROUP + 4);
  if (form == WIDE) return grouped(K) * 4;
  return (K * width_of(form) + step_of(form) - 1) / step_of(form) * xstep_of(form);
}
int ly_few_as_is(int form, int64_t K) {
#ifdef HAS_STRIPS
  if (in_strips(form)) return few_strips_as_is(K);
#endif
  return (form == HALF && K % 32 == 0) || (form == FULL && K % LANES == 0);
}

/* A row in int8; behind it for each four bytes -128 times their sum, and a scale for each group. */
static void prepare_bytes(const char *source, int dt, int64_t K, char *out) {
  int64_t all = grouped(K);
  int8_t *q = (int8_t *)out; int32_t *less = (int32_t *)(out + all); float *scale = (float *)(out + 2 * all), x[GROUP];
  for (int64_t g = 0; g < all; g += GROUP) {
    int64_t n = smaller(GROUP, K - g);
    if (n < GROUP) memset(x, 0, sizeof x);
    load_row(x, source, g, n, dt);
    scale[g / GROUP] = ly_to_int8(x, GROUP, q + g);
  }
  for (int64_t i = 0; i < all; i += 4) less[i / 4] = -128 * (q[i] + q[i + 1] + q[i + 2] + q[i + 3]);
}
float ly_to_int8(const float *x, int64_t n, int8_t *q) {
  /* Without their signs, floats are in order as whole numbers are, NaN last: a comparison that compilers take in vectors. */
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) { uint32_t u; memcpy(&u, x + i, 4); u &= 0x7fffffffu; most = u > most ? u : most; }
  float largest; memcpy(&largest, &most, 4);
  if (!(largest > 0 && largest < INFINITY)) { for (int64_t i = 0; i < n; i++) q[i] = 0; return largest * (largest == 0 ? 1 : NAN); }
  float inverse = 127.0f / largest;
  for (int64_t i = 0; i < n; i++) q[i] = (int8_t)(int32_t)__builtin_rintf(x[i] * inverse);
  return largest / 127.0f;
}

void ly_few_prepare(int form, const void *source, int dt, int64_t first, int64_t rows, int64_t B, int64_t K, char *x) {
  int64_t stride = ly_few_stride(form, K);
#ifdef HAS_STRIPS
  if (in_strips(form)) { few_strips_prepare(x, source, first, rows, B, K); return; }
#endif
  (void)B;
  for (int64_t b = first; b < first + rows; b++) {
    const char *from = (const char *)source + b * K * (dt == LY_F32 ? 4 : 2);
    char *out = x + b * stride;
    float *o = (float *)out;
    if (form == BYTES) prepare_bytes(from, dt, K, out);
    else if (form == HALF) { memcpy(out, from, (size_t)K * 2); memset(out + K * 2, 0, (size_t)(stride - K * 2)); }
    else if (form == SPLIT || form == TWELVE) {
      const bf16 *s = (const bf16 *)from;
      int64_t k = 0;
      for (; k + 2 * LANES <= K; k += 2 * LANES)
        for (int i = 0; i < LANES; i++) { o[k + i] = bf16_to_f32(s[k + 2 * i]); o[k + LANES + i] = bf16_to_f32(s[k + 2 * i + 1]); }
      if (k < K) for (int i = 0; i < LANES; i++) {
        o[k + i] = k + 2 * i < K ? bf16_to_f32(s[k + 2 * i]) : 0;
        o[k + LANES + i] = k + 2 * i + 1 < K ? bf16_to_f32(s[k + 2 * i + 1]) : 0;
      }
      k += k < K ? 2 * LANES : 0;
      memset(o + k, 0, (size_t)(stride - k * 4)); /* up to a whole tile of TWELVE */
    } else { load_row(o, from, 0, K, dt); memset(o + K, 0, (size_t)(stride - K * 4)); }
  }
}

void ly_few_dots(int form, const void *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, int asked, Ahead after, float *out, int64_t ld) {
  int64_t ldx = ly_few_stride(form, K);
  switch (form) {
    case FULL: few_all(FULL, W, ldw, rows, K, x, ldx, B, after.at, out, ld); break;
#ifdef __AVX512BF16__
    case HALF: /* keys of a head of 64: a loop of two steps */
      if (K == 64) few_all(HALF, W, ldw, rows, 64, x, 128, B, after.at, out, ld);
      else few_all(HALF, W, ldw, rows, K, x, ldx, B, after.at, out, ld);
      break;
#else
    case SPLIT: few_all(SPLIT, W, ldw, rows, K, x, ldx, B, after.at, out, ld); break;
#endif
#ifdef __AVX512VNNI__
    case BYTES: few_all(BYTES, W, ldw, rows, K, x, ldx, B, after.at, out, ld); break;
#else
    case WIDE: few_all(WIDE, W, ldw, rows, K, x, ldx, B, after.at, out, ld); break;
#endif
#ifdef HAS_STRIPS
    case STRIPS: few_strips(0, W, ldw, rows, K, x, B, asked, after, out, ld); break;
    case TWELVE: few_strips(1, W, ldw, rows, K, x, B, asked, after, out, ld); break;
#elif defined(HAS_TWELVE)
    case TWELVE: few_all(TWELVE, W, ldw, rows, K, x, ldx, B, NULL, out, ld); break;
#endif
    default: break;
  }
  (void)asked;
}
