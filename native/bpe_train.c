/* Training a byte-level BPE (Sennrich et al. 2016, algorithm 1): count words on all cores, then merge the most frequent pair
 * of neighbours again and again. Counts are kept per pair and changed only where a merge happened; a heap knows the largest. */
#include "bpe.h"
#include <stdio.h>
#include <stdlib.h>

enum { GRAIN = 1 << 17, THREADS = 256 /* as many as the pool may have */ };

static void *grown(void *p, int64_t bytes) {
  void *q = realloc(p, (size_t)(bytes ? bytes : 1));
  if (!q) { fprintf(stderr, "lyceum: out of memory: training a tokenizer needs %lld MiB in one piece\n", (long long)(bytes >> 20)); abort(); }
  return q;
}
/* Room for one element more at *p, whose `cap` elements of `size` bytes are all taken when n == cap. */
#define ROOM(p, n, cap) do { if ((n) == (cap)) { (cap) = (cap) ? 2 * (cap) : 64; (p) = grown((p), (int64_t)(cap) * (int64_t)sizeof *(p)); } } while (0)

/* ---- words and how often they occur ---- */

/* Up to 15 bytes stand in the key itself. Longer: lo is the hash, hi LONGER | the place of length and bytes in `bytes`. */
#define LONGER (1ull << 63)
typedef struct { uint64_t lo, hi; int64_t count; } Word;
typedef struct { Word *slot; int64_t slots, words; uint8_t *bytes; int64_t used, cap; } Counter;
typedef struct { int pattern; const uint8_t *classes; Counter counter[THREADS]; } Trainer;

static void more_slots(Counter *c) {
  int64_t slots = c->slots ? 2 * c->slots : 1 << 12;
  Word *to = grown(NULL, slots * (int64_t)sizeof *to);
  memset(to, 0, (size_t)slots * sizeof *to);
  for (int64_t i = 0; i < c->slots; i++) {
    if (!c->slot[i].count) continue;
    int64_t at = (int64_t)bpe_mix(c->slot[i].lo, c->slot[i].hi & LONGER ? LONGER : c->slot[i].hi) & (slots - 1);
    while (to[at].count) at = (at + 1) & (slots - 1);
    to[at] = c->slot[i];
  }
  free(c->slot);
  c->slot = to;
  c->slots = slots;
}
static const uint8_t *bytes_of(const Counter *c, const Word *w, int64_t *n) {
  if (!(w->hi & LONGER)) { *n = (int64_t)(w->hi >> 56); return (const uint8_t *)w; }
  const uint8_t *p = c->bytes + (w->hi & ~LONGER);
  memcpy(n, p, sizeof *n);
  return p + sizeof *n;
}
static int same_bytes(const Counter *c, const Word *w, const uint8_t *p, int64_t n) {
  int64_t m;
  const uint8_t *q = bytes_of(c, w, &m);
  return m == n && memcmp(p, q, (size_t)n) == 0;
}
/* Adds a word; 16 bytes can be read from p. */
static void add_word(Counter *c, const uint8_t *p, int64_t n, int64_t count) {
  if (2 * c->words >= c->slots) more_slots(c);
  int longer = n > 15;
  BpeKey key = longer ? (BpeKey){bpe_hash(p, n), LONGER} : bpe_key(p, n);
  int64_t at = (int64_t)bpe_mix(key.lo, key.hi) & (c->slots - 1);
  for (; c->slot[at].count; at = (at + 1) & (c->slots - 1)) {
    Word *w = &c->slot[at];
    if (w->lo == key.lo && (longer ? (w->hi & LONGER) && same_bytes(c, w, p, n) : w->hi == key.hi)) { w->count += count; return; }
  }
  if (longer) {
    int64_t need = c->used + (int64_t)sizeof n + n + 16;
    if (need > c->cap) { c->cap = 2 * need; c->bytes = grown(c->bytes, c->cap); }
    memcpy(c->bytes + c->used, &n, sizeof n);
    memcpy(c->bytes + c->used + sizeof n, p, (size_t)n);
    key.hi = LONGER | (uint64_t)c->used;
    c->used += (int64_t)sizeof n + n;
  }
  c->slot[at] = (Word){key.lo, key.hi, count};
  c->words++;
}

void *ly_bpe_train_open(int pattern, const uint8_t *classes) {
  Trainer *t = grown(NULL, sizeof *t);
  memset(t, 0, sizeof *t);
  t->pattern = pattern;
  t->classes = classes;
  return t;
}
void ly_bpe_train_close(void *trainer) {
  Trainer *t = trainer;
  for (int i = 0; i < THREADS; i++) { free(t->counter[i].slot); free(t->counter[i].bytes); }
  free(t);
}

typedef struct { Trainer *trainer; const uint8_t *text; const int64_t *starts; BpePart *parts; } Count;
static inline __attribute__((always_inline)) void count_text(int pattern, const uint8_t *classes, Counter *c, const uint8_t *p, const uint8_t *end) {
  while (p < end) {
    const uint8_t *stop = bpe_word(pattern, classes, p, end);
    add_word(c, p, stop - p, 1);
    p = stop;
  }
}
static void count_body(void *ctx, int64_t i, int thread) {
  Count *k = ctx;
  const uint8_t *classes = k->trainer->classes;
  int pattern = k->trainer->pattern;
  Counter *c = &k->trainer->counter[thread];
  BpePart part = k->parts[i];
  for (int64_t from = part.from, text = part.text; from < part.to; text++) {
    int64_t last = k->starts[text + 1] - 1, to = last < part.to ? last : part.to;
    const uint8_t *p = k->text + from, *end = k->text + to;
    if (pattern == BPE_GPT2) count_text(BPE_GPT2, classes, c, p, end);
    else if (pattern == BPE_LLAMA3) count_text(BPE_LLAMA3, classes, c, p, end);
    else if (pattern == BPE_HAN) count_text(BPE_HAN, classes, c, p, end);
    else count_text(BPE_QWEN, classes, c, p, end);
    from = last + 1;
  }
}
void ly_bpe_train_count(void *trainer, const uint8_t *text, const int64_t *starts, int64_t n) {
  Trainer *t = trainer;
  if (n == 0) return;
  BpePart *parts = ly_scratch(-1, 14, (size_t)((starts[n] - starts[0]) / GRAIN + 1) * sizeof *parts);
  Count k = {t, text, starts, parts};
  ly_parallel(bpe_parts(t->classes, text, starts, n, GRAIN, parts), count_body, &k);
}

/* All words in the first thread's counter. */
static Counter *gathered(Trainer *t) {
  Counter *all = &t->counter[0];
  for (int i = 1; i < THREADS; i++) {
    Counter *c = &t->counter[i];
    for (int64_t k = 0; k < c->slots; k++) {
      int64_t n;
      if (!c->slot[k].count) continue;
      const uint8_t *p = bytes_of(c, &c->slot[k], &n);
      add_word(all, p, n, c->slot[k].count);
    }
    free(c->slot); free(c->bytes);
    *c = (Counter){0};
  }
  return all;
}
int64_t ly_bpe_train_words(void *trainer) { return gathered(trainer)->words; }
int64_t ly_bpe_train_size(void *trainer) {
  Counter *c = gathered(trainer);
  int64_t size = 0, n;
  for (int64_t i = 0; i < c->slots; i++) if (c->slot[i].count) { bytes_of(c, &c->slot[i], &n); size += n; }
  return size;
}
void ly_bpe_train_list(void *trainer, uint8_t *bytes, int64_t *starts, int64_t *counts) {
  Counter *c = gathered(trainer);
  int64_t at = 0, n;
  for (int64_t i = 0; i < c->slots; i++) {
    if (!c->slot[i].count) continue;
    const uint8_t *p = bytes_of(c, &c->slot[i], &n);
    memcpy(bytes + at, p, (size_t)n);
    *starts++ = at;
    *counts++ = c->slot[i].count;
    at += n;
  }
  *starts = at;
}
void ly_bpe_train_add(void *trainer, const uint8_t *bytes, const int64_t *starts, const int64_t *counts, int64_t n) {
  Counter *c = gathered(trainer);
  for (int64_t i = 0; i < n; i++) add_word(c, bytes + starts[i], starts[i + 1] - starts[i], counts[i]);
}

/* ---- pairs ---- */

/* A pair of ids, its count, and the words that have it or had it. */
typedef struct { uint64_t key; int64_t count; int32_t *in; int32_t n, cap; int64_t step; } Pair;
typedef struct { Pair *pair; int64_t pairs, cap; int32_t *slot; int64_t slots; } Pairs;
typedef struct { int64_t count; uint64_t key; int32_t pair; } Top;
typedef struct { Top *top; int64_t n, cap; } Heap;

static inline uint64_t key_of(int32_t a, int32_t b) { return (uint64_t)(uint32_t)a << 32 | (uint32_t)b; }

/* The number of a pair, made when there is none. */
static int32_t pair_of(Pairs *t, uint64_t key) {
  if (2 * t->pairs >= t->slots) {
    t->slots = t->slots ? 2 * t->slots : 1 << 14;
    t->slot = grown(t->slot, t->slots * (int64_t)sizeof *t->slot);
    memset(t->slot, -1, (size_t)t->slots * sizeof *t->slot);
    for (int64_t i = 0; i < t->pairs; i++) {
      int64_t at = (int64_t)bpe_mix(t->pair[i].key, 0) & (t->slots - 1);
      while (t->slot[at] >= 0) at = (at + 1) & (t->slots - 1);
      t->slot[at] = (int32_t)i;
    }
  }
  int64_t at = (int64_t)bpe_mix(key, 0) & (t->slots - 1);
  for (; t->slot[at] >= 0; at = (at + 1) & (t->slots - 1))
    if (t->pair[t->slot[at]].key == key) return t->slot[at];
  ROOM(t->pair, t->pairs, t->cap);
  t->pair[t->pairs] = (Pair){key, 0, NULL, 0, 0, -1};
  t->slot[at] = (int32_t)t->pairs;
  return (int32_t)t->pairs++;
}
static Pair *pair_at(Pairs *t, uint64_t key) {
  int32_t i = pair_of(t, key); /* may move the pairs */
  return &t->pair[i];
}
static void occurs(Pair *p, int32_t word, int64_t count) {
  p->count += count;
  if (p->n && p->in[p->n - 1] == word) return;
  if (p->n == p->cap) { p->cap = p->cap ? 2 * p->cap : 4; p->in = grown(p->in, p->cap * (int64_t)sizeof *p->in); }
  p->in[p->n++] = word;
}

/* Highest count first, then the lower ids, as Hugging Face orders them. Counts may be stale; who takes one looks. */
static inline int higher(Top a, Top b) { return a.count != b.count ? a.count > b.count : a.key < b.key; }
static void push(Heap *h, Top x) {
  ROOM(h->top, h->n, h->cap);
  int64_t i = h->n++;
  for (int64_t up; i && higher(x, h->top[up = (i - 1) / 2]); i = up) h->top[i] = h->top[up];
  h->top[i] = x;
}
static Top pop(Heap *h) {
  Top top = h->top[0], x = h->top[--h->n];
  int64_t i = 0;
  for (int64_t c; (c = 2 * i + 1) < h->n; i = c) {
    if (c + 1 < h->n && higher(h->top[c + 1], h->top[c])) c++;
    if (!higher(h->top[c], x)) break;
    h->top[i] = h->top[c];
  }
  h->top[i] = x;
  return top;
}

/* ---- tokens by their bytes: a merge may spell one that is there already ---- */

typedef struct { uint8_t *bytes; int64_t *starts; int32_t *slot; int64_t n, used, cap, slots; } Tokens;

static int32_t token_of(const Tokens *t, const uint8_t *p, int64_t n, int64_t *at) {
  for (*at = (int64_t)bpe_hash(p, n) & (t->slots - 1); t->slot[*at] >= 0; *at = (*at + 1) & (t->slots - 1)) {
    int32_t id = t->slot[*at];
    if (t->starts[id + 1] - t->starts[id] == n && memcmp(t->bytes + t->starts[id], p, (size_t)n) == 0) return id;
  }
  return -1;
}
/* Ids follow each other. A token without bytes, or with those of an earlier one, is never found. */
static void add_token(Tokens *t, const uint8_t *p, int64_t n) {
  int64_t at, need = t->used + n;
  if (need > t->cap) { t->cap = 2 * need; t->bytes = grown(t->bytes, t->cap); }
  memcpy(t->bytes + t->used, p, (size_t)n);
  t->used = t->starts[t->n + 1] = need;
  if (n && token_of(t, p, n, &at) < 0) t->slot[at] = (int32_t)t->n;
  t->n++;
}

/* ---- merges ---- */

typedef struct { int32_t *symbol; int64_t *start; int32_t *length; int64_t *count; int64_t n; } Words;

static Words words_of(const Counter *c, const int32_t *byte_ids, Pairs *pairs) {
  Words w = {NULL, grown(NULL, (c->words + 1) * 8), grown(NULL, (c->words + 1) * 4), grown(NULL, (c->words + 1) * 8), 0};
  int64_t size = 0, n;
  for (int64_t i = 0; i < c->slots; i++) if (c->slot[i].count) { bytes_of(c, &c->slot[i], &n); size += n; }
  w.symbol = grown(NULL, size * 4);
  size = 0;
  for (int64_t i = 0; i < c->slots; i++) {
    if (!c->slot[i].count) continue;
    const uint8_t *p = bytes_of(c, &c->slot[i], &n);
    int64_t at = w.n++;
    w.start[at] = size; w.length[at] = (int32_t)n; w.count[at] = c->slot[i].count;
    for (int64_t k = 0; k < n; k++) {
      w.symbol[size + k] = byte_ids[p[k]];
      if (k) occurs(pair_at(pairs, key_of(w.symbol[size + k - 1], w.symbol[size + k])), (int32_t)at, w.count[at]);
    }
    size += n;
  }
  return w;
}

/* Merges (a, b) in one word; `made` gathers the pairs that the merged token is part of, each once a step. */
typedef struct { int32_t *pair; int64_t n, cap; } Made;
static void merge_in(Words *w, int32_t at, int32_t a, int32_t b, int32_t merged, Pairs *pairs, Made *made, int64_t step) {
  int32_t *s = w->symbol + w->start[at], n = w->length[at], kept = 0;
  int64_t count = w->count[at];
#define GONE(x, y) (pair_at(pairs, key_of(x, y))->count -= count)
#define COMES(x, y) do { \
    Pair *q_ = pair_at(pairs, key_of(x, y)); \
    occurs(q_, at, count); \
    if (q_->step != step) { q_->step = step; ROOM(made->pair, made->n, made->cap); made->pair[made->n++] = (int32_t)(q_ - pairs->pair); } \
  } while (0)
  for (int32_t i = 0; i < n; i++) {
    if (s[i] != a || i + 1 >= n || s[i + 1] != b) { s[kept++] = s[i]; continue; }
    if (kept) { GONE(s[kept - 1], a); COMES(s[kept - 1], merged); }
    if (i + 2 < n) { GONE(b, s[i + 2]); COMES(merged, s[i + 2]); }
    s[kept++] = merged;
    i++;
  }
#undef GONE
#undef COMES
  w->length[at] = kept;
}

int64_t ly_bpe_train_merge(void *trainer, const int32_t *byte_ids, const uint8_t *tokens, const int64_t *starts, int64_t n, int64_t wanted,
                           int64_t min_frequency, int32_t *merges) {
  Counter *counter = gathered(trainer);
  Pairs pairs = {0}; Heap heap = {0}; Made made = {0};
  Tokens known = {0};
  for (known.slots = 1024; known.slots < 4 * wanted; known.slots *= 2) {}
  known.slot = grown(NULL, known.slots * 4);
  memset(known.slot, -1, (size_t)known.slots * 4);
  known.starts = grown(NULL, (wanted + n + 1) * 8);
  known.starts[0] = 0;
  for (int64_t i = 0; i < n; i++) add_token(&known, tokens + starts[i], starts[i + 1] - starts[i]);
  Words words = words_of(counter, byte_ids, &pairs);
  for (int64_t i = 0; i < pairs.pairs; i++) push(&heap, (Top){pairs.pair[i].count, pairs.pair[i].key, (int32_t)i});

  int64_t done = 0;
  uint8_t *text = NULL; int64_t room = 0;
  while (known.n < wanted && done < wanted && heap.n) {
    Top top = pop(&heap);
    Pair *p = &pairs.pair[top.pair];
    if (p->count != top.count) { if (p->count > 0) push(&heap, (Top){p->count, top.key, top.pair}); continue; }
    if (top.count < 1 || top.count < min_frequency) break;
    int32_t a = (int32_t)(top.key >> 32), b = (int32_t)(uint32_t)top.key;
    int64_t na = known.starts[a + 1] - known.starts[a], nb = known.starts[b + 1] - known.starts[b], at;
    if (na + nb > room) { room = 2 * (na + nb); text = grown(text, room); }
    memcpy(text, known.bytes + known.starts[a], (size_t)na);
    memcpy(text + na, known.bytes + known.starts[b], (size_t)nb);
    int32_t merged = token_of(&known, text, na + nb, &at);
    if (merged < 0) { merged = (int32_t)known.n; add_token(&known, text, na + nb); }
    merges[3 * done] = a; merges[3 * done + 1] = b; merges[3 * done + 2] = merged;
    /* The pair is gone from every word; it would have to be made anew. */
    int32_t *in = p->in, count = p->n;
    p->in = NULL; p->n = p->cap = 0;
    made.n = 0;
    for (int32_t i = 0; i < count; i++) merge_in(&words, in[i], a, b, merged, &pairs, &made, done);
    free(in);
    pairs.pair[top.pair].count = 0;
    for (int64_t i = 0; i < made.n; i++) {
      Pair *q = &pairs.pair[made.pair[i]];
      if (q->count > 0) push(&heap, (Top){q->count, q->key, made.pair[i]});
    }
    done++;
  }
  for (int64_t i = 0; i < pairs.pairs; i++) free(pairs.pair[i].in);
  free(pairs.pair); free(pairs.slot); free(heap.top); free(made.pair); free(text);
  free(known.bytes); free(known.starts); free(known.slot);
  free(words.symbol); free(words.start); free(words.length); free(words.count);
  return done;
}
