/* What the text kernels share. They are called from several worker threads at once, so they use neither the thread pool
 * nor the engine's scratch: all memory is the caller's, and a result depends on the arguments alone. */
#ifndef LYCEUM_TEXT_H
#define LYCEUM_TEXT_H
#include "../lyceum.h"
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* Classes of a UTF-16 unit, as src/corpus/words.ts hands them over. */
enum { LY_SPACE = 0, LY_WORD = 1, LY_SYMBOL = 2, LY_SINGLE = 3 };

/* Asks for large pages under memory that is about to be written for the first time: a virtual machine may take longer to get it in
 * small ones than a sort takes. A hint: whole pages around the piece are meant, and nothing depends on the answer. */
static inline void ly_large_pages(void *memory, int64_t bytes) {
#if defined __linux__ && defined MADV_HUGEPAGE
  uintptr_t page = 4096, from = (uintptr_t)memory & ~(page - 1), to = ((uintptr_t)memory + (uintptr_t)bytes + page - 1) & ~(page - 1);
  if (bytes >= 1 << 20) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

/* Finalizer of MurmurHash3 (Appleby): every bit of the result depends on every bit of x; one-to-one. */
static inline uint64_t ly_mix64(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}
/* A surrogate pair of the supplementary ideographic planes (U+20000 .. U+3FFFF) is a character like any ideograph. */
static inline int ly_astral_ideograph(const uint16_t *p, const uint16_t *end) {
  return p[0] >= 0xd840 && p[0] <= 0xd8bf && p + 1 < end && (p[1] & 0xfc00) == 0xdc00;
}

/* Stable sort of n keys with their values by counting 11 bits at a time; the sorted pairs end in key and value. A pass whose
 * digit is the same for all is left out. value and value_tmp may be NULL. */
static inline void ly_radix64(uint64_t *key, uint32_t *value, uint64_t *key_tmp, uint32_t *value_tmp, int64_t n) {
  enum { BITS = 11, DIGITS = 1 << BITS, PASSES = 6 };
  static const int shifts[PASSES] = {0, 11, 22, 33, 44, 55};
  int64_t count[PASSES][DIGITS];
  memset(count, 0, sizeof count);
  for (int64_t i = 0; i < n; i++)
    for (int p = 0; p < PASSES; p++) count[p][(key[i] >> shifts[p]) & (DIGITS - 1)]++;
  uint64_t *k0 = key, *k1 = key_tmp;
  uint32_t *v0 = value, *v1 = value_tmp;
  for (int p = 0; p < PASSES; p++) {
    int64_t *at = count[p], sum = 0;
    if (n && at[(k0[0] >> shifts[p]) & (DIGITS - 1)] == n) continue;
    for (int d = 0; d < DIGITS; d++) { int64_t c = at[d]; at[d] = sum; sum += c; }
    if (value)
      for (int64_t i = 0; i < n; i++) {
        int64_t to = at[(k0[i] >> shifts[p]) & (DIGITS - 1)]++;
        k1[to] = k0[i]; v1[to] = v0[i];
      }
    else
      for (int64_t i = 0; i < n; i++) k1[at[(k0[i] >> shifts[p]) & (DIGITS - 1)]++] = k0[i];
    uint64_t *k = k0; k0 = k1; k1 = k;
    uint32_t *v = v0; v0 = v1; v1 = v;
  }
  if (k0 == key) return;
  memcpy(key, k0, (size_t)n * sizeof *key);
  if (value) memcpy(value, v0, (size_t)n * sizeof *value);
}
#endif
