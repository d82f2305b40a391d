/* Shingles of a text, their MinHash signature, and the exact Jaccard similarity (Broder 1997, "On the resemblance and
 * containment of documents"). */
#include "text.h"

enum { MAX_HASHES = 1024, MAX_SHINGLE = 64, BLOCK = 256 };

typedef void (*take)(void *to, const uint64_t *shingles, int n);

/* Cuts text into units (words: runs of letters, marks and digits; characters of scripts without spaces), and hands the hashes of all runs of `size`
 * units to `to` in blocks. A text with fewer units is one shingle. Returns the number of shingles. */
static int64_t cut(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, int size, take body, void *to) {
  uint64_t ring[MAX_SHINGLE], block[BLOCK];
  int64_t units = 0, shingles = 0;
  int filled = 0;
  const uint16_t *p = text, *end = text + n;
  if (size < 1) size = 1;
  if (size > MAX_SHINGLE) size = MAX_SHINGLE;
  while (p < end) {
    uint64_t h = 0xcbf29ce484222325ULL;
    int class = classes[*p];
    if (class == LY_WORD) {
      do { h = (h ^ fold[*p++]) * 0x100000001b3ULL; } while (p < end && classes[*p] == LY_WORD);
    } else if (class == LY_SINGLE) {
      h = (h ^ fold[*p++]) * 0x100000001b3ULL;
    } else if (ly_astral_ideograph(p, end)) {
      h = (h ^ (((uint64_t)p[0] << 16) | p[1])) * 0x100000001b3ULL;
      p += 2;
    } else { p++; continue; }
    ring[units++ % size] = ly_mix64(h);
    if (units < size) continue;
    uint64_t x = 0;
    for (int j = 0; j < size; j++) x = (x + ring[(units + j) % size]) * 0x9e3779b97f4a7c15ULL;
    block[filled++] = ly_mix64(x);
    shingles++;
    if (filled == BLOCK) { body(to, block, filled); filled = 0; }
  }
  if (units > 0 && units < size) {
    uint64_t x = 0;
    for (int64_t j = 0; j < units; j++) x = (x + ring[j]) * 0x9e3779b97f4a7c15ULL;
    block[filled++] = ly_mix64(x);
    shingles++;
  }
  if (filled) body(to, block, filled);
  return shingles;
}

/* h_i(x) = mix(x ^ seed_i) with two multiplications: one-to-one on 32 bits, so the least value is the image of one shingle. */
struct minima { int n; uint32_t seed[MAX_HASHES], factor[MAX_HASHES], *least; };

static void take_minima(void *to, const uint64_t *shingles, int n) {
  struct minima *m = to;
  const int hashes = m->n;
  uint32_t *restrict least = m->least;
  const uint32_t *restrict seed = m->seed, *restrict factor = m->factor;
  for (int s = 0; s < n; s++) {
    const uint32_t x = (uint32_t)(shingles[s] >> 32);
    for (int i = 0; i < hashes; i++) {
      uint32_t h = (x ^ seed[i]) * factor[i];
      h ^= h >> 16;
      h *= 0x85ebca6bu;
      least[i] = h < least[i] ? h : least[i];
    }
  }
}

int64_t ly_minhash_signature(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, int size, uint64_t seed,
                             int hashes, uint32_t *signature) {
  struct minima m;
  m.n = hashes < MAX_HASHES ? hashes : MAX_HASHES;
  m.least = signature;
  for (int i = 0; i < m.n; i++) {
    uint64_t r = ly_mix64(seed + 0x9e3779b97f4a7c15ULL * (uint64_t)(i + 1));
    m.seed[i] = (uint32_t)r;
    m.factor[i] = (uint32_t)(r >> 32) | 1u;
    signature[i] = UINT32_MAX;
  }
  return cut(text, n, classes, fold, size, take_minima, &m);
}

static void take_all(void *to, const uint64_t *shingles, int n) {
  uint64_t **at = to;
  memcpy(*at, shingles, (size_t)n * sizeof **at);
  *at += n;
}

int64_t ly_minhash_shingles(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, int size, uint64_t *out) {
  uint64_t *at = out;
  int64_t count = cut(text, n, classes, fold, size, take_all, &at);
  if (count > 64) ly_radix64(out, NULL, out + count, NULL, count);
  else
    for (int64_t i = 1; i < count; i++) { /* a radix sort of a short text would spend its time on the counters */
      uint64_t x = out[i];
      int64_t j = i;
      for (; j > 0 && out[j - 1] > x; j--) out[j] = out[j - 1];
      out[j] = x;
    }
  int64_t distinct = 0;
  for (int64_t i = 0; i < count; i++) if (i == 0 || out[i] != out[i - 1]) out[distinct++] = out[i];
  return distinct;
}

double ly_minhash_jaccard(const uint64_t *a, int64_t na, const uint64_t *b, int64_t nb) {
  int64_t i = 0, j = 0, common = 0;
  while (i < na && j < nb) {
    uint64_t x = a[i], y = b[j];
    common += x == y;
    i += x <= y;
    j += y <= x;
  }
  return na + nb == 0 ? 0.0 : (double)common / (double)(na + nb - common);
}

void ly_minhash_bands(const uint32_t *signatures, int64_t documents, int bands, int rows, uint64_t *keys) {
  for (int64_t d = 0; d < documents; d++)
    for (int b = 0; b < bands; b++) {
      const uint32_t *row = signatures + (d * bands + b) * rows;
      uint64_t h = 0;
      for (int r = 0; r < rows; r++) h = (h ^ row[r]) * 0x9e3779b97f4a7c15ULL, h ^= h >> 32;
      keys[b * documents + d] = ly_mix64(h);
    }
}

void ly_minhash_order(uint64_t *keys, uint32_t *order, uint64_t *key_work, uint32_t *order_work, int64_t n) {
  for (int64_t i = 0; i < n; i++) order[i] = (uint32_t)i;
  ly_radix64(keys, order, key_work, order_work, n);
}

int64_t ly_minhash_likely(const uint32_t *signatures, int hashes, int64_t document, int least, uint32_t *others, int64_t n) {
  const uint32_t *own = signatures + document * hashes;
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t *other = signatures + (int64_t)others[i] * hashes;
    int equal = 0;
    for (int h = 0; h < hashes; h++) equal += own[h] == other[h];
    if (equal >= least) others[kept++] = others[i];
  }
  return kept;
}

/* Eight bits a shingle or more, so that few of two sets' differences fall on the same bit. */
static int64_t sketch_words(int64_t shingles, int64_t most) {
  int64_t words = 1;
  while (words < most && words * 8 < shingles) words *= 2;
  return words;
}

int64_t ly_minhash_sketch(const uint64_t *shingles, int64_t n, int64_t most, uint64_t *sketch) {
  int64_t words = sketch_words(n, most);
  memset(sketch, 0, (size_t)words * sizeof *sketch);
  for (int64_t i = 0; i < n; i++) sketch[(shingles[i] >> 6) & (uint64_t)(words - 1)] ^= 1ULL << (shingles[i] & 63);
  return words;
}

/* Sketches lie far apart, and there may be more of them than a cache holds: that of a few places on is asked for early. */
static inline void fetch(const uint64_t *sketch, int64_t words) {
  for (int64_t w = 0; w < words; w += 8) __builtin_prefetch(sketch + w);
}

/* A bit is 1 where an odd number of shingles fall. Where two sketches differ there is a shingle that one of the sets has alone: they have at least as
 * many of those as bits that differ. Halves put on each other by XOR are the sketch of half the width. (The Xor variant of Sandes, Teodoro & Melo 2020,
 * "Bitmap filter: speeding up exact set similarity joins with bitwise operations".) */
int64_t ly_minhash_possible(const uint64_t *sketches, const uint32_t *at, const uint32_t *sizes, int64_t most, int64_t document, double least,
                            uint32_t *others, int64_t n) {
  enum { AHEAD = 6, FETCHED = 128 };
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    if (i + AHEAD < n && sizes[others[i + AHEAD]]) {
      int64_t words = sketch_words(sizes[others[i + AHEAD]], most);
      fetch(sketches + at[others[i + AHEAD]], words < FETCHED ? words : FETCHED);
    }
    if (!sizes[others[i]]) {
      others[kept++] = others[i];
      continue;
    }
    int64_t wide = document, narrow = others[i];
    if (sizes[wide] < sizes[narrow]) wide = others[i], narrow = document;
    const uint64_t *a = sketches + at[wide], *b = sketches + at[narrow];
    int64_t words = sketch_words(sizes[wide], most), width = sketch_words(sizes[narrow], most), differ = 0;
    for (int64_t w = 0; w < width; w++) {
      uint64_t x = a[w] ^ b[w];
      for (int64_t v = w + width; v < words; v += width) x ^= a[v];
      differ += __builtin_popcountll(x);
    }
    int64_t all = (int64_t)sizes[wide] + sizes[narrow], common = (all - differ) / 2;
    if (common > sizes[narrow]) common = sizes[narrow];
    /* Of a whole shingle more than is possible, so that no rounding counts. */
    if ((double)(common + 1) >= least * (double)(all - common - 1)) others[kept++] = others[i];
  }
  return kept;
}
