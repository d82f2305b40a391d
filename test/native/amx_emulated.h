/* AMX tiles in plain C, after the pseudo code of the Intel SDM (vol. 2, LDTILECFG, TILEZERO, TILELOADD, TILESTORED,
 * TDPBF16PS): lets the AMX kernel run where there is no AMX. What would raise #UD or #GP there is counted as a fault. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h> /* first, so that its declarations keep their names */
#endif
/* Weak: this header comes before every source of the library, and all share one count. */
__attribute__((weak)) long amx_faults, amx_products;
__attribute__((weak)) long amx_count(int products) { return products ? amx_products : amx_faults; }

static struct { uint8_t palette, rows[8]; uint16_t colsb[8]; uint8_t data[8][16][64]; } amx;
static int soft_bad(int wrong) { amx_faults += wrong; return wrong; }
static int soft_unusable(int t) { return soft_bad(t < 0 || t > 7 || amx.palette != 1 || !amx.rows[t] || !amx.colsb[t]); }

static void soft_loadconfig(const void *config) {
  const uint8_t *c = (const uint8_t *)config; /* palette 0, start row 1, zero 2-15, colsb 16-47, rows 48-63 */
  int wrong = c[0] != 1 || c[1] != 0;
  for (int i = 2; i < 16; i++) wrong |= c[i] != 0;
  for (int t = 0; t < 16; t++) {
    uint16_t colsb; memcpy(&colsb, c + 16 + 2 * t, 2);
    uint8_t rows = c[48 + t];
    wrong |= t < 8 ? colsb > 64 || rows > 16 || !colsb != !rows : colsb != 0 || rows != 0;
    if (t < 8) { amx.colsb[t] = colsb; amx.rows[t] = rows; }
  }
  amx.palette = soft_bad(wrong) ? 0 : 1;
  memset(amx.data, 0, sizeof amx.data);
}
static void soft_zero(int t) { if (!soft_unusable(t)) memset(amx.data[t], 0, sizeof amx.data[t]); }
static void soft_loadd(int t, const void *base, long stride) {
  if (soft_unusable(t)) return;
  memset(amx.data[t], 0, sizeof amx.data[t]);
  for (int r = 0; r < amx.rows[t]; r++) memcpy(amx.data[t][r], (const char *)base + r * stride, amx.colsb[t]);
}
static void soft_stored(int t, void *base, long stride) {
  if (soft_unusable(t)) return;
  for (int r = 0; r < amx.rows[t]; r++) memcpy((char *)base + r * stride, amx.data[t][r], amx.colsb[t]);
}
/* DAZ = FTZ = 1: subnormal numbers, in and out, count as zero. */
static float soft_flushed(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x; }
static float soft_bf16(const uint8_t *p) { uint32_t u = 0; memcpy((char *)&u + 2, p, 2); float f; memcpy(&f, &u, 4); return soft_flushed(f); }
static void soft_dpbf16ps(int d, int a, int b) {
  if (soft_unusable(d) || soft_unusable(a) || soft_unusable(b)) return;
  if (soft_bad(d == a || d == b || a == b || amx.rows[d] != amx.rows[a] || amx.colsb[d] != amx.colsb[b] || amx.colsb[a] / 4 != amx.rows[b] ||
               amx.colsb[a] % 4 || amx.colsb[b] % 4)) return;
  amx_products++;
  for (int m = 0; m < amx.rows[d]; m++) {
    float even[16] = {0}, odd[16] = {0};
    for (int k = 0; k < amx.colsb[a] / 4; k++)
      for (int n = 0; n < amx.colsb[d] / 4; n++) {
        even[n] = soft_flushed(fmaf(soft_bf16(amx.data[a][m] + 4 * k), soft_bf16(amx.data[b][k] + 4 * n), even[n]));
        odd[n] = soft_flushed(fmaf(soft_bf16(amx.data[a][m] + 4 * k + 2), soft_bf16(amx.data[b][k] + 4 * n + 2), odd[n]));
      }
    for (int n = 0; n < amx.colsb[d] / 4; n++) {
      float sum; memcpy(&sum, amx.data[d][m] + 4 * n, 4);
      sum = soft_flushed(soft_flushed(sum) + soft_flushed(even[n] + odd[n]));
      memcpy(amx.data[d][m] + 4 * n, &sum, 4);
    }
  }
}
#undef _tile_loadconfig
#define _tile_loadconfig soft_loadconfig
#undef _tile_zero
#define _tile_zero soft_zero
#undef _tile_loadd
#define _tile_loadd soft_loadd
#undef _tile_stored
#define _tile_stored soft_stored
#undef _tile_dpbf16ps
#define _tile_dpbf16ps soft_dpbf16ps
