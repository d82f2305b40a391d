/* AMX tiles in plain C, after the pseudo code of the Intel SDM (vol. 2, TDPBF16PS, TILELOADD, TILESTORED, TILEZERO):
 * lets the AMX kernel run where there is no AMX. */
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h> /* first, so that its declarations keep their names */
#endif
static struct { uint8_t rows[8]; uint16_t colsb[8]; uint8_t data[8][16][64]; } amx;
static void soft_loadconfig(const void *config) {
  const uint8_t *c = (const uint8_t *)config;
  for (int t = 0; t < 8; t++) { memcpy(&amx.colsb[t], c + 16 + 2 * t, 2); amx.rows[t] = c[48 + t]; }
  memset(amx.data, 0, sizeof amx.data);
}
static void soft_zero(int t) { memset(amx.data[t], 0, sizeof amx.data[t]); }
static void soft_loadd(int t, const void *base, long stride) {
  memset(amx.data[t], 0, sizeof amx.data[t]);
  for (int r = 0; r < amx.rows[t]; r++) memcpy(amx.data[t][r], (const char *)base + r * stride, amx.colsb[t]);
}
static void soft_stored(int t, void *base, long stride) {
  for (int r = 0; r < amx.rows[t]; r++) memcpy((char *)base + r * stride, amx.data[t][r], amx.colsb[t]);
}
static float amx_bf16(const uint8_t *p) { uint32_t u = 0; memcpy((char *)&u + 2, p, 2); float f; memcpy(&f, &u, 4); return f; }
static void soft_dpbf16ps(int d, int a, int b) {
  for (int m = 0; m < amx.rows[d]; m++)
    for (int k = 0; k < amx.colsb[a] / 4; k++)
      for (int n = 0; n < amx.colsb[d] / 4; n++) {
        float sum; memcpy(&sum, amx.data[d][m] + 4 * n, 4);
        sum += amx_bf16(amx.data[a][m] + 4 * k) * amx_bf16(amx.data[b][k] + 4 * n);
        sum += amx_bf16(amx.data[a][m] + 4 * k + 2) * amx_bf16(amx.data[b][k] + 4 * n + 2);
        memcpy(amx.data[d][m] + 4 * n, &sum, 4);
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
