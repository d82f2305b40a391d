/* Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): cut text into words as the usual expressions do, merge each
 * word's bytes. Words are remembered per thread, since a few thousand of them make most of any text. */
#include "bpe.h"

enum { GRAIN = 1 << 15, SETS = 1 << 16, POOL = 1 << 17, LONGS = 1 << 12, LONG_BYTES = 76, LONG_IDS = 24, FEW = 192, GROUP = 16 };

/* A word of up to 15 bytes: up to three ids, or n of them from id[0] of the pool on. Two share a cache line. */
typedef struct { uint64_t lo, hi; int32_t n, id[3]; } Short;
typedef struct { uint64_t hash; int32_t bytes, ids; uint8_t text[LONG_BYTES]; int32_t id[LONG_IDS]; } Long;
typedef struct { Short sets[SETS][2]; int32_t pool[POOL]; Long longs[LONGS]; int64_t version, used; } Cache; /* sets first: each on a line of its own */
typedef struct { const ly_bpe_model *model; const uint8_t *text; const int64_t *starts; int32_t *out; int64_t *ends; BpePart *parts; } Encode;

/* ---- hash tables ---- */

/* A slot of the merges: occupied, left and right id, rank; 21 bits each. */
enum { ID_BITS = 21 };
static inline uint64_t pair_key(int32_t a, int32_t b) { return 1ull << 63 | (uint64_t)(uint32_t)a << 2 * ID_BITS | (uint64_t)(uint32_t)b << ID_BITS; }
static inline int64_t pair_slot(uint64_t key) { return (int64_t)(key * 0x9E3779B97F4A7C15ull >> 40); }
#define RANK_OF(slot) ((uint32_t)(slot) & ((1u << ID_BITS) - 1))
#define NO_MERGE UINT32_MAX

void ly_bpe_merges(const int32_t *merges, int64_t n, uint64_t *table, int64_t slots) {
  for (int64_t r = 0; r < n; r++) {
    uint64_t key = pair_key(merges[3 * r], merges[3 * r + 1]);
    int64_t i = pair_slot(key) & (slots - 1);
    while (table[i]) i = (i + 1) & (slots - 1);
    table[i] = key | (uint64_t)r;
  }
}
/* Rank of merging (a, b); NO_MERGE when they do not. */
static inline uint32_t merge_of(const ly_bpe_model *t, int32_t a, int32_t b) {
  uint64_t key = pair_key(a, b);
  for (int64_t i = pair_slot(key) & (t->merge_slots - 1);; i = (i + 1) & (t->merge_slots - 1)) {
    uint64_t slot = t->merge_table[i];
    if ((slot ^ key) >> ID_BITS == 0) return RANK_OF(slot);
    if (slot == 0) return NO_MERGE;
  }
}
static inline int32_t merged_id(const ly_bpe_model *t, uint32_t rank) { return t->merges[3 * (int64_t)rank + 2]; }

/* A slot: place << 24 | length, plus one; and the upper half of the hash << 32 | id. */
void ly_bpe_words(const uint8_t *words, const int64_t *starts, const int32_t *ids, int64_t n, uint64_t *table, int64_t slots) {
  for (int64_t w = 0; w < n; w++) {
    int64_t bytes = starts[w + 1] - starts[w];
    if (bytes == 0 || bytes >= 1 << 24) continue;
    uint64_t h = bpe_hash(words + starts[w], bytes);
    int64_t i = (int64_t)h & (slots - 1);
    while (table[2 * i]) i = (i + 1) & (slots - 1);
    table[2 * i] = ((uint64_t)starts[w] << 24 | (uint64_t)bytes) + 1;
    table[2 * i + 1] = (h >> 32 << 32) | (uint32_t)ids[w];
  }
}
static int32_t word_of(const ly_bpe_model *t, const uint8_t *p, int64_t n) {
  uint64_t h = bpe_hash(p, n);
  for (int64_t i = (int64_t)h & (t->word_slots - 1); t->word_table[2 * i]; i = (i + 1) & (t->word_slots - 1)) {
    uint64_t place = t->word_table[2 * i] - 1, value = t->word_table[2 * i + 1];
    if (value >> 32 == h >> 32 && (int64_t)(place & 0xFFFFFF) == n && memcmp(t->words + (place >> 24), p, (size_t)n) == 0) return (int32_t)value;
  }
  return -1;
}

/* ---- merges ---- */

static int64_t merge_few(const ly_bpe_model *t, int32_t *ids, int64_t n) {
  uint32_t m[FEW];
  for (int64_t i = 0; i + 1 < n; i++) m[i] = merge_of(t, ids[i], ids[i + 1]);
  for (;;) {
    uint32_t best = NO_MERGE; int64_t at = 0;
    for (int64_t i = 0; i + 1 < n; i++) if (m[i] < best) { best = m[i]; at = i; }
    if (best == NO_MERGE) return n;
    ids[at] = merged_id(t, best);
    for (int64_t i = at + 1; i + 1 < n; i++) { ids[i] = ids[i + 1]; m[i] = m[i + 1]; }
    n--;
    if (at > 0) m[at - 1] = merge_of(t, ids[at - 1], ids[at]);
    if (at + 1 < n) m[at] = merge_of(t, ids[at], ids[at + 1]);
  }
}

/* Long words (a page without spaces): a linked list, and a heap of its pairs by rank, then place. */
typedef struct { uint32_t rank; int32_t at; } Pair;
static inline int before(Pair a, Pair b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }
static void sift_up(Pair *h, int64_t i) {
  for (int64_t up; i && before(h[i], h[up = (i - 1) / 2]); i = up) { Pair x = h[i]; h[i] = h[up]; h[up] = x; }
}
static void sift_down(Pair *h, int64_t n) {
  for (int64_t i = 0, c; (c = 2 * i + 1) < n; i = c) {
    if (c + 1 < n && before(h[c + 1], h[c])) c++;
    if (!before(h[c], h[i])) return;
    Pair x = h[i]; h[i] = h[c]; h[c] = x;
  }
}
typedef struct { const ly_bpe_model *model; int32_t *ids, *next, *prev; Pair *heap; int64_t n, size; } Chain;
static void push(Chain *c, int64_t i) {
  if (i < 0 || c->next[i] >= c->n) return;
  uint32_t rank = merge_of(c->model, c->ids[i], c->ids[c->next[i]]);
  if (rank == NO_MERGE) return;
  c->heap[c->size] = (Pair){rank, (int32_t)i};
  sift_up(c->heap, c->size++);
}
static int64_t merge_many(const ly_bpe_model *t, int32_t *ids, int64_t n, int thread) {
  int32_t *next = ly_scratch(thread, 14, (size_t)n * (2 * sizeof(int32_t) + 3 * sizeof(Pair)));
  Chain c = {t, ids, next, next + n, (Pair *)(next + 2 * n), n, 0};
  for (int64_t i = 0; i < n; i++) { c.next[i] = (int32_t)i + 1; c.prev[i] = (int32_t)i - 1; }
  for (int64_t i = 0; i < n; i++) push(&c, i);
  while (c.size) {
    Pair top = c.heap[0];
    c.heap[0] = c.heap[--c.size];
    sift_down(c.heap, c.size);
    int64_t i = top.at;
    if (ids[i] < 0 || c.next[i] >= n) continue;
    if (merge_of(t, ids[i], ids[c.next[i]]) != top.rank) continue; /* one of the two was merged elsewhere */
    int64_t gone = c.next[i];
    ids[i] = merged_id(t, top.rank);
    ids[gone] = -1;
    c.next[i] = c.next[gone];
    if (c.next[i] < n) c.prev[c.next[i]] = (int32_t)i;
    push(&c, i);
    push(&c, c.prev[i]);
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i = c.next[i]) ids[kept++] = ids[i];
  return kept;
}

/* Ids of a word that is not remembered, to out[n]. */
static int64_t merge_word(const ly_bpe_model *t, const uint8_t *p, int64_t n, int32_t *out, int thread) {
  if (t->words && (out[0] = word_of(t, p, n)) >= 0) return 1;
  for (int64_t k = 0; k < n; k++) out[k] = t->byte_ids[p[k]];
  return n <= FEW ? merge_few(t, out, n) : merge_many(t, out, n, thread);
}

/* ---- texts ---- */

static void remember(Cache *c, Short *set, BpeKey key, const int32_t *ids, int64_t n) {
  if (n > 3 && c->used + n > POOL) { memset(c->sets, 0, sizeof c->sets); c->used = 0; }
  set[1] = set[0];
  set[0] = (Short){key.lo, key.hi, (int32_t)n, {(int32_t)c->used}};
  if (n <= 3) { for (int64_t k = 0; k < n; k++) set[0].id[k] = ids[k]; return; }
  memcpy(c->pool + c->used, ids, (size_t)n * sizeof *ids);
  c->used += n;
}

static int64_t long_word(const ly_bpe_model *t, Cache *c, const uint8_t *p, int64_t n, int32_t *out, int thread) {
  if (n > LONG_BYTES) return merge_word(t, p, n, out, thread);
  uint64_t h = bpe_hash(p, n);
  Long *e = &c->longs[h & (LONGS - 1)];
  if (e->hash == h && e->bytes == n && memcmp(e->text, p, (size_t)n) == 0) {
    memcpy(out, e->id, (size_t)e->ids * sizeof *out);
    return e->ids;
  }
  int64_t m = merge_word(t, p, n, out, thread);
  if (m <= LONG_IDS) {
    e->hash = h; e->bytes = (int32_t)n; e->ids = (int32_t)m;
    memcpy(e->text, p, (size_t)n);
    memcpy(e->id, out, (size_t)m * sizeof *out);
  }
  return m;
}

/* Words are taken in groups: while the last of a group are found, the memory of its first ones is on its way from the cache.
 * A word has at least as many bytes as ids, so ids written from the part's first byte on never reach another part's. */
static inline __attribute__((always_inline)) int32_t *encode_text(int pattern, const ly_bpe_model *t, Cache *cache, const uint8_t *p, const uint8_t *end, int32_t *out, int thread) {
  struct { BpeKey key; Short *set; const uint8_t *p; } group[GROUP];
  while (p < end) {
    int size = 0;
    for (; size < GROUP && p < end; size++) {
      const uint8_t *stop = bpe_word(pattern, t->classes, p, end);
      int64_t n = stop - p;
      group[size].p = p;
      group[size].key = n > 15 ? (BpeKey){(uint64_t)n, 0} : bpe_key(p, n);
      group[size].set = cache->sets[bpe_mix(group[size].key.lo, group[size].key.hi) & (SETS - 1)];
      __builtin_prefetch(group[size].set);
      p = stop;
    }
    for (int g = 0; g < size; g++) {
      BpeKey key = group[g].key;
      if (key.hi == 0) { out += long_word(t, cache, group[g].p, (int64_t)key.lo, out, thread); continue; }
      Short *set = group[g].set;
      const Short *e = set[0].lo == key.lo && set[0].hi == key.hi ? set : set[1].lo == key.lo && set[1].hi == key.hi ? set + 1 : NULL;
      if (e && e->n <= 3) {
        out[0] = e->id[0];
        if (e->n > 1) { out[1] = e->id[1]; if (e->n > 2) out[2] = e->id[2]; }
        out += e->n;
      } else if (e) {
        memcpy(out, cache->pool + e->id[0], (size_t)e->n * sizeof *out);
        out += e->n;
      } else {
        int64_t m = merge_word(t, group[g].p, (int64_t)(key.hi >> 56), out, thread);
        remember(cache, set, key, out, m);
        out += m;
      }
    }
  }
  return out;
}

static void encode_body(void *ctx, int64_t i, int thread) {
  Encode *e = ctx;
  const ly_bpe_model *t = e->model;
  BpePart *part = &e->parts[i];
  Cache *cache = ly_scratch(thread, 15, sizeof(Cache));
  if (cache->version != t->version) { memset(cache, 0, sizeof(Cache)); cache->version = t->version; }
  int32_t *first = e->out + part->from, *out = first;
  for (int64_t from = part->from, text = part->text; from < part->to; text++) {
    int64_t last = e->starts[text + 1] - 1, to = last < part->to ? last : part->to;
    const uint8_t *p = e->text + from, *end = e->text + to;
    if (t->pattern == BPE_GPT2) out = encode_text(BPE_GPT2, t, cache, p, end, out, thread);
    else if (t->pattern == BPE_LLAMA3) out = encode_text(BPE_LLAMA3, t, cache, p, end, out, thread);
    else if (t->pattern == BPE_HAN) out = encode_text(BPE_HAN, t, cache, p, end, out, thread);
    else out = encode_text(BPE_QWEN, t, cache, p, end, out, thread);
    if (last < part->to) e->ends[text] = out - first;
    from = last + 1;
  }
  part->ids = out - first;
}

int64_t bpe_parts(const uint8_t *classes, const uint8_t *text, const int64_t *starts, int64_t n, int64_t grain, BpePart *parts) {
  int64_t count = 0, at = 0;
  for (int64_t from = n ? starts[0] : 0; n && from < starts[n];) {
    while (starts[at + 1] <= from) at++;
    int64_t to = from + grain, first = at;
    if (to >= starts[n]) to = starts[n];
    else {
      while (starts[at + 1] <= to) at++;
      int64_t last = starts[at + 1] - 1;
      to = bpe_border(classes, text + to, text + last) - text;
      if (to == last) to++; /* the zero byte goes with its text */
    }
    parts[count++] = (BpePart){from, to, first, 0};
    from = to;
  }
  return count;
}

void ly_bpe_encode(const void *model, const uint8_t *text, const int64_t *starts, int64_t n, int32_t *out, int64_t *ends) {
  const ly_bpe_model *t = model;
  if (n == 0) return;
  BpePart *parts = ly_scratch(-1, 14, (size_t)((starts[n] - starts[0]) / GRAIN + 1) * sizeof *parts);
  int64_t count = bpe_parts(t->classes, text, starts, n, GRAIN, parts);
  Encode e = {t, text, starts, out, ends, parts};
  ly_parallel(count, encode_body, &e);
  /* Close the gaps between the parts. */
  int64_t done = 0;
  for (int64_t i = 0, at = 0; i < count; i++) {
    for (; at < n && starts[at + 1] <= parts[i].to; at++) ends[at] += done;
    memmove(out + done, out + parts[i].from, (size_t)parts[i].ids * sizeof *out);
    done += parts[i].ids;
  }
}
