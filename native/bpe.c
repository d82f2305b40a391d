/* Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): cut text into words as the usual expressions do, merge each
 * word's bytes. Words are remembered per thread, since a few thousand of them make most of any text. */
#include "internal.h"

enum { OTHER, LETTER, NUMBER, SPACE };
enum { GPT2, LLAMA3, QWEN };
enum { CACHE = 1 << 15, CACHED_BYTES = 32, CACHED_IDS = 12, SHORT = 192 };

typedef struct { uint64_t hash; uint8_t bytes, ids; uint8_t text[CACHED_BYTES]; int32_t id[CACHED_IDS]; } Entry;
typedef struct { int64_t version; Entry entry[CACHE]; } Cache;
typedef struct {
  const uint8_t *text; const int64_t *starts; int pattern; const uint8_t *classes; const int32_t *byteIds;
  const uint64_t *table; int64_t slots, version; int32_t *out; int64_t *counts;
} Bpe;

/* ---- words ---- */

typedef struct { uint32_t code; int bytes, kind; } Char;
static inline Char at(const Bpe *t, const uint8_t *p, const uint8_t *end) {
  if (p >= end) return (Char){0, 0, -1};
  uint32_t c = *p; int n = 1;
  if (c >= 0xF0) { c = (c & 7) << 18 | (p[1] & 63u) << 12 | (p[2] & 63u) << 6 | (p[3] & 63u); n = 4; }
  else if (c >= 0xE0) { c = (c & 15) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u); n = 3; }
  else if (c >= 0xC0) { c = (c & 31) << 6 | (p[1] & 63u); n = 2; }
  return (Char){c, n, t->classes[c]};
}
static inline const uint8_t *run_of(const Bpe *t, const uint8_t *p, const uint8_t *end, int kind) {
  for (Char c; (c = at(t, p, end)).kind == kind;) p += c.bytes;
  return p;
}
static inline int is_newline(Char c) { return c.code == '\r' || c.code == '\n'; }

/* 's 't 're 've 'm 'll 'd; any case where the expression says (?i:), long s included. */
static int contraction(const uint8_t *p, const uint8_t *end, int anyCase) {
  if (*p != '\'' || end - p < 2) return 0;
  uint8_t a = p[1], b = end - p > 2 ? p[2] : 0;
  if (anyCase) {
    if (a == 0xC5 && b == 0xBF) return 3;
    if (a >= 'A' && a <= 'Z') a |= 32;
    if (b >= 'A' && b <= 'Z') b |= 32;
  }
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* The spaces from p on: up to the last newline where newlines count, else all but the one that the next word takes. */
static const uint8_t *spaces(const Bpe *t, const uint8_t *p, const uint8_t *end, int newlines) {
  const uint8_t *last = p, *newline = NULL, *q = p;
  for (Char c; (c = at(t, q, end)).kind == SPACE; q += c.bytes) { last = q; if (is_newline(c)) newline = q + c.bytes; }
  if (newlines && newline) return newline;
  return q == end || last == p ? q : last;
}

static const uint8_t *word_end(const Bpe *t, const uint8_t *p, const uint8_t *end) {
  int n = contraction(p, end, t->pattern != GPT2);
  if (n) return p + n;
  Char c = at(t, p, end), next = at(t, p + c.bytes, end);
  if (t->pattern == GPT2) {
    if (c.kind != SPACE) return run_of(t, p + c.bytes, end, c.kind);
    if (c.code == ' ' && next.kind >= 0 && next.kind != SPACE) return run_of(t, p + 1, end, next.kind);
    return spaces(t, p, end, 0);
  }
  if (c.kind == LETTER) return run_of(t, p + c.bytes, end, LETTER);
  if (c.kind == NUMBER) {
    const uint8_t *q = p + c.bytes;
    for (int i = 1; i < (t->pattern == LLAMA3 ? 3 : 1) && (c = at(t, q, end)).kind == NUMBER; i++) q += c.bytes;
    return q;
  }
  if (next.kind == LETTER && !is_newline(c)) return run_of(t, p + c.bytes, end, LETTER);
  if (c.kind == OTHER || (c.code == ' ' && next.kind == OTHER)) {
    p = run_of(t, p + (c.kind == OTHER ? 0 : 1), end, OTHER);
    while (p < end && (*p == '\r' || *p == '\n')) p++;
    return p;
  }
  return spaces(t, p, end, 1);
}

/* ---- merges ---- */

/* Rank and result of merging (a, b) as rank << 32 | id; all ones when they do not merge. */
static inline uint64_t merge_of(const Bpe *t, int32_t a, int32_t b) {
  uint64_t key = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) + 1, h = key * 0x9E3779B97F4A7C15ull;
  for (int64_t i = (int64_t)(h >> 20) & (t->slots - 1);; i = (i + 1) & (t->slots - 1)) {
    if (t->table[2 * i] == key) return t->table[2 * i + 1];
    if (t->table[2 * i] == 0) return UINT64_MAX;
  }
}

static int64_t merge_short(const Bpe *t, int32_t *ids, int64_t n) {
  uint64_t m[SHORT];
  for (int64_t i = 0; i + 1 < n; i++) m[i] = merge_of(t, ids[i], ids[i + 1]);
  for (;;) {
    uint64_t best = UINT64_MAX; int64_t at = 0;
    for (int64_t i = 0; i + 1 < n; i++) if (m[i] < best) { best = m[i]; at = i; }
    if (best == UINT64_MAX) return n;
    ids[at] = (int32_t)best;
    for (int64_t i = at + 1; i + 1 < n; i++) { ids[i] = ids[i + 1]; m[i] = m[i + 1]; }
    n--;
    if (at > 0) m[at - 1] = merge_of(t, ids[at - 1], ids[at]);
    if (at + 1 < n) m[at] = merge_of(t, ids[at], ids[at + 1]);
  }
}

/* Long words (a page without spaces): a linked list, and a heap of its pairs by rank, then place. */
typedef struct { uint32_t rank; int32_t at; } Pair;
static inline int before(Pair a, Pair b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }
static void sift_up(Pair *h, int64_t i) { for (; i && before(h[i], h[(i - 1) / 2]); i = (i - 1) / 2) { Pair x = h[i]; h[i] = h[(i - 1) / 2]; h[(i - 1) / 2] = x; } }
static void sift_down(Pair *h, int64_t n) {
  for (int64_t i = 0, c; (c = 2 * i + 1) < n; i = c) {
    if (c + 1 < n && before(h[c + 1], h[c])) c++;
    if (!before(h[c], h[i])) return;
    Pair x = h[i]; h[i] = h[c]; h[c] = x;
  }
}
static int64_t merge_long(const Bpe *t, int32_t *ids, int64_t n, int thread) {
  int32_t *next = ly_scratch(thread, 14, (size_t)n * (8 + 3 * sizeof(Pair))), *prev = next + n;
  Pair *heap = (Pair *)(prev + n); int64_t size = 0;
#define PUSH(i) do { if (next[i] < n) { uint64_t m_ = merge_of(t, ids[i], ids[next[i]]); if (m_ != UINT64_MAX) { heap[size] = (Pair){(uint32_t)(m_ >> 32), (int32_t)(i)}; sift_up(heap, size++); } } } while (0)
  for (int64_t i = 0; i < n; i++) { next[i] = (int32_t)i + 1; prev[i] = (int32_t)i - 1; }
  for (int64_t i = 0; i < n; i++) PUSH(i);
  while (size) {
    Pair top = heap[0];
    heap[0] = heap[--size];
    sift_down(heap, size);
    int64_t i = top.at;
    if (ids[i] < 0 || next[i] >= n) continue;
    uint64_t m = merge_of(t, ids[i], ids[next[i]]);
    if (m == UINT64_MAX || (uint32_t)(m >> 32) != top.rank) continue; /* one of the two was merged elsewhere */
    int64_t gone = next[i];
    ids[i] = (int32_t)m;
    ids[gone] = -1;
    next[i] = next[gone];
    if (next[i] < n) prev[next[i]] = (int32_t)i;
    PUSH(i);
    if (prev[i] >= 0) { int64_t p = prev[i]; PUSH(p); }
  }
#undef PUSH
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i = next[i]) ids[kept++] = ids[i];
  return kept;
}

static uint64_t hash_of(const uint8_t *p, int64_t n) {
  uint64_t h = 0x9E3779B97F4A7C15ull ^ (uint64_t)n, w;
  for (; n >= 8; n -= 8, p += 8) { memcpy(&w, p, 8); h = (h ^ w) * 0xD6E8FEB86659FD93ull; h ^= h >> 32; }
  if (n) { w = 0; memcpy(&w, p, (size_t)n); h = (h ^ w) * 0xD6E8FEB86659FD93ull; h ^= h >> 32; }
  return h;
}

static void encode_body(void *ctx, int64_t i, int thread) {
  const Bpe *t = ctx;
  Cache *cache = ly_scratch(thread, 15, sizeof(Cache));
  if (cache->version != t->version) { memset(cache, 0, sizeof(Cache)); cache->version = t->version; }
  const uint8_t *p = t->text + t->starts[i], *end = t->text + t->starts[i + 1];
  int32_t *out = t->out + t->starts[i];
  while (p < end) {
    const uint8_t *stop = word_end(t, p, end);
    int64_t n = stop - p;
    uint64_t h = n <= CACHED_BYTES ? hash_of(p, n) | 1 : 0;
    Entry *e = &cache->entry[(h >> 8) & (CACHE - 1)];
    if (h && e->hash == h && e->bytes == n && memcmp(e->text, p, (size_t)n) == 0) {
      memcpy(out, e->id, e->ids * sizeof(int32_t));
      out += e->ids;
    } else {
      for (int64_t k = 0; k < n; k++) out[k] = t->byteIds[p[k]];
      int64_t m = n <= SHORT ? merge_short(t, out, n) : merge_long(t, out, n, thread);
      if (h && m <= CACHED_IDS) {
        e->hash = h; e->bytes = (uint8_t)n; e->ids = (uint8_t)m;
        memcpy(e->text, p, (size_t)n);
        memcpy(e->id, out, (size_t)m * sizeof(int32_t));
      }
      out += m;
    }
    p = stop;
  }
  t->counts[i] = out - (t->out + t->starts[i]);
}
void ly_bpe_encode(const uint8_t *text, const int64_t *starts, int64_t n, int pattern, const uint8_t *classes, const int32_t *byte_ids, const uint64_t *table, int64_t slots, int64_t version, int32_t *out, int64_t *counts) {
  Bpe t = {text, starts, pattern, classes, byte_ids, table, slots, version, out, counts};
  ly_parallel(n, encode_body, &t);
}
