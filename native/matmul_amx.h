/* The AMX micro-kernel: 32 x 32 results from four accumulator tiles, two tiles of A and two of B (Intel SDM, ch. "AMX").
 * A tile of A is 16 rows x 32 bf16 of k; a tile of B is 16 pairs along k x 16 columns; both are 16 rows of 64 bytes.
 * Compiled against software tiles (AMX_EMULATED) for the test on processors without them. */
#include "amx.h"
enum { AMX_MR = 32 };

/* `before`: a block of sums that is put into its place meanwhile.
 * out[32][32], rows ldo apart, = (first ? 0 : out) + A x B panel [K/2][32][2]; K is a multiple of 32. A's rows are `line` bytes apart, or with
 * line 0 it is a packed panel [K/32][32][32]. */
static void kernel_amx(int64_t K, const void *pa, int64_t line, const void *pb, float *out, int64_t ldo, int first, Pending *before) {
  const char *a = pa, *b = pb;
  float *low = out + 16 * ldo;
  int64_t stride = line ? line : 64, step = line ? 64 : 2048;
  amx_configure();
  if (first) { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
  else { _tile_loadd(0, out, 4 * ldo); _tile_loadd(1, out + 16, 4 * ldo); _tile_loadd(2, low, 4 * ldo); _tile_loadd(3, low + 16, 4 * ldo); }
  int64_t share = K > 0 && before->stored < before->rows ? (before->rows * 32 + K - 1) / K : 0; /* rows of it in every step */
  for (int64_t k = 0; k < K; k += 32, a += step, b += 2048) {
    _tile_loadd(4, a, stride); _tile_loadd(5, a + 16 * stride, stride);
    _tile_loadd(6, b, 128); _tile_loadd(7, b + 64, 128);
    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    if (share) store_some(before, share);
  }
  _tile_stored(0, out, 4 * ldo); _tile_stored(1, out + 16, 4 * ldo);
  _tile_stored(2, low, 4 * ldo); _tile_stored(3, low + 16, 4 * ldo);
}

/* Rows of A as [K/32][32 rows][32 of k], zero where the panel is larger than the matrix. */
static void pack_amx(void *out, int64_t rows, int64_t K, int64_t Kp, const void *A, int64_t ars, int64_t acs) {
  const bf16 *x = A;
  bf16 *o = out;
  if (rows < AMX_MR || K < Kp) memset(o, 0, 2 * (size_t)(AMX_MR * Kp));
  for (int64_t k0 = 0; k0 < K; k0 += 32) {
    int64_t n = K - k0 < 32 ? K - k0 : 32;
    bf16 *block = o + k0 * AMX_MR;
    if (acs != 1 && ars == 1 && rows == AMX_MR && n == 32) {
      /* Whole lines at a time, because each is its own cache line; what comes next is asked for, because no processor foresees it. */
      words low[16], high[16];
      const bf16 *line = x + k0 * acs;
      for (int k = 0; k < 32; k++) __builtin_prefetch(line + (32 + k) * acs, 0, 2);
#pragma GCC unroll 16
      for (int k = 0; k < 16; k++) pair_lines(line + 2 * k * acs, line + (2 * k + 1) * acs, low + k, high + k);
      transpose16(low); transpose16(high);
#pragma GCC unroll 16
      for (int j = 0; j < 16; j++) {
        words_at *row = (words_at *)(block + (j / 4 * 8 + j % 4) * 32);
        row[0] = low[j]; row[4] = high[j]; /* four lines further */
      }
    } else if (acs == 1) for (int64_t i = 0; i < rows; i++) memcpy(block + i * 32, x + i * ars + k0, 2 * (size_t)n);
    else for (int64_t k = 0; k < n; k++) for (int64_t i = 0; i < rows; i++) block[i * 32 + k] = x[i * ars + (k0 + k) * acs];
  }
}
