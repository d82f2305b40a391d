/* Suffixes of a row of tokens, sorted by their first `depth` tokens: radix sort by two tokens, then prefix doubling (Manber & Myers
 * 1993; only groups that are still undecided are looked at again, Larsson & Sadakane 2007). Used to find spans that occur
 * more than once (Lee et al. 2022, "Deduplicating training data makes language models better", section 4.1). */
#include "text.h"

int64_t ly_suffix_tokens(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, uint32_t *tokens, int32_t *starts) {
  int64_t count = 0;
  const uint16_t *p = text, *end = text + n;
  while (p < end) {
    int class = classes[*p];
    if (class == LY_SPACE) { p++; continue; }
    const uint16_t *start = p;
    uint64_t h = 0xcbf29ce484222325ULL;
    if (class == LY_WORD)
      do { h = (h ^ (fold ? fold[*p] : *p)) * 0x100000001b3ULL; } while (++p < end && classes[*p] == LY_WORD);
    else if (fold && class == LY_SYMBOL && !ly_astral_ideograph(p, end)) {
      p++;
      continue;
    } else {
      int pair = (p[0] & 0xfc00) == 0xd800 && p + 1 < end && (p[1] & 0xfc00) == 0xdc00;
      h = (h ^ (fold ? fold[*p] : *p)) * 0x100000001b3ULL, p++;
      if (pair) h = (h ^ *p++) * 0x100000001b3ULL;
    }
    tokens[count] = (uint32_t)(ly_mix64(h) >> 32);
    starts[count++] = (int32_t)(start - text);
  }
  return count;
}

struct item { uint32_t key, at; };
static inline int before(struct item a, struct item b) { return a.key < b.key || (a.key == b.key && a.at < b.at); }

/* Sorts by (key, at), which no two items share: so the result does not depend on the way there. */
static void sort_items(struct item *x, int64_t n) {
  while (n > 24) {
    struct item a = x[0], b = x[n / 2], c = x[n - 1];
    struct item pivot = before(a, b) ? (before(b, c) ? b : before(a, c) ? c : a) : (before(a, c) ? a : before(b, c) ? c : b);
    int64_t i = 0, j = n - 1;
    for (;;) {
      while (before(x[i], pivot)) i++;
      while (before(pivot, x[j])) j--;
      if (i >= j) break;
      struct item t = x[i]; x[i++] = x[j]; x[j--] = t;
    }
    int64_t left = j + 1;
    if (left < n - left) { sort_items(x, left); x += left; n -= left; }
    else { sort_items(x + left, n - left); n = left; }
  }
  for (int64_t i = 1; i < n; i++) {
    struct item v = x[i];
    int64_t j = i;
    for (; j > 0 && before(v, x[j - 1]); j--) x[j] = x[j - 1];
    x[j] = v;
  }
}

/* A big group is sorted by radix: quicksort would need a depth, and be slow, where a token is repeated without end. */
static void sort_group(struct item *x, int64_t n, struct item *tmp) {
  if (n < 4096) { sort_items(x, n); return; }
  struct item *from = x, *to = tmp;
  for (int shift = 0; shift < 32; shift += 11) { /* positions arrive in order, and each pass is stable */
    int64_t count[2048] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i++) count[(from[i].key >> shift) & 2047]++;
    for (int d = 0; d < 2048; d++) { int64_t c = count[d]; count[d] = sum; sum += c; }
    for (int64_t i = 0; i < n; i++) to[count[(from[i].key >> shift) & 2047]++] = from[i];
    struct item *t = from; from = to; to = t;
  }
  if (from != x) memcpy(x, from, (size_t)n * sizeof *x);
}

/* Suffixes by their first token, and that token's place among the different ones: ids[n]. Returns how many there are; start[id] = where
 * the suffixes that begin with it stand. */
static int64_t sort_first(const uint32_t *tokens, int64_t n, uint32_t *sa, uint32_t *ids, uint32_t *start, struct item *items, struct item *tmp) {
  int64_t different = 0;
  for (int64_t i = 0; i < n; i++) items[i] = (struct item){tokens[i], (uint32_t)i};
  sort_group(items, n, tmp);
  for (int64_t i = 0; i < n; i++) {
    if (i == 0 || items[i].key != items[i - 1].key) start[different++] = (uint32_t)i;
    sa[i] = items[i].at;
    ids[items[i].at] = (uint32_t)(different - 1);
  }
  return different;
}

/* Suffixes in the order of their first h tokens -> in that of h + 1: each one's predecessor goes to the next place among those that
 * begin with its token (as in induced sorting). The predecessor of the empty suffix, which is the smallest, is the last. */
static void sort_one_more(const uint32_t *ids, int64_t n, const uint32_t *from, uint32_t *to, uint32_t *start, int64_t different) {
  to[start[ids[n - 1]]++] = (uint32_t)(n - 1);
  for (int64_t i = 0; i < n; i++)
    if (from[i] > 0) to[start[ids[from[i] - 1]]++] = from[i] - 1;
  /* Each has been counted up to where the next one begins. */
  memmove(start + 1, start, (size_t)(different - 1) * sizeof *start);
  start[0] = 0;
}

static inline int same_head(const uint32_t *ids, int64_t n, uint32_t a, uint32_t b, int64_t h) {
  if (a + h > n || b + h > n) return 0; /* one ends before: two ends are never at the same place */
  int64_t i = 0;
  while (i < h && ids[a + i] == ids[b + i]) i++;
  return i == h;
}

/* Suffixes i, j of a group are equal in their first h tokens; groups of more than one are listed as [start, end) in sa. */
struct group { uint32_t start, end; };

/* Tokens that are looked at one by one: after four few suffixes of a text are undecided. */
enum { HEAD = 4 };

int64_t ly_suffix_sort(const uint32_t *tokens, int64_t n, int64_t depth, uint32_t *sa, uint32_t *rank, void *work) {
  if (n <= 0) return 0;
  if (depth <= 0 || depth > n) depth = n;
  ly_large_pages(work, 24 * n);
  ly_large_pages(sa, 4 * n);
  ly_large_pages(rank, 4 * n);
  struct item *items = work, *tmp = items + n;
  uint32_t *ids = (uint32_t *)(tmp + n), *start = ids + n;
  /* The groups lie where the ids and their starts had been; the first list is filled while the ids are still read. */
  struct group *next_open = (struct group *)ids, *open = next_open + n / 2 + 1;
  int64_t h = depth < HEAD ? depth : HEAD, groups = 0, opened = 0;
  uint32_t *order = h % 2 ? sa : rank, *other = h % 2 ? rank : sa; /* so that the last pass ends in sa */
  int64_t different = sort_first(tokens, n, order, ids, start, items, tmp);
  for (int64_t t = 1; t < h; t++) {
    sort_one_more(ids, n, order, other, start, different);
    uint32_t *swap = order; order = other; other = swap;
  }
  for (int64_t i = 0; i < n;) {
    int64_t end = i + 1;
    rank[sa[i]] = (uint32_t)i;
    for (; end < n && same_head(ids, n, sa[end - 1], sa[end], h); end++) rank[sa[end]] = (uint32_t)i;
    if (end - i > 1) open[opened++] = (struct group){(uint32_t)i, (uint32_t)end};
    groups++;
    i = end;
  }
  while (h < depth && opened > 0) {
    int64_t step = depth - h < h ? depth - h : h, filled = 0, still = 0;
    /* Every key is read before any rank changes: so after the round a group is equal in exactly h + step tokens. */
    for (int64_t g = 0; g < opened; g++)
      for (int64_t i = open[g].start; i < open[g].end; i++) {
        int64_t next = (int64_t)sa[i] + step;
        items[filled++] = (struct item){next < n ? rank[next] + 1 : 0, sa[i]};
      }
    struct item *group = items;
    for (int64_t g = 0; g < opened; g++) {
      int64_t start = open[g].start, size = open[g].end - start, equal = 1;
      while (equal < size && group[equal].key == group[0].key) equal++;
      if (equal == size) next_open[still++] = open[g]; /* copies of a passage stay together: nothing moves */
      else {
        sort_group(group, size, tmp);
        for (int64_t i = 0; i < size;) {
          int64_t end = i;
          for (; end < size && group[end].key == group[i].key; end++) {
            sa[start + end] = group[end].at;
            rank[group[end].at] = (uint32_t)(start + i);
          }
          if (end - i > 1) next_open[still++] = (struct group){(uint32_t)(start + i), (uint32_t)(start + end)};
          if (i > 0) groups++;
          i = end;
        }
      }
      group += size;
    }
    struct group *t = open; open = next_open; next_open = t;
    opened = still;
    h += step;
  }
  return groups;
}

void ly_suffix_repeats(const uint32_t *sa, const uint32_t *rank, int64_t n, int64_t length, const uint32_t *room, int keep_first, uint8_t *marks) {
  for (int64_t i = 0; i < n;) {
    int64_t end = i + 1;
    while (end < n && rank[sa[end]] == rank[sa[i]]) end++;
    /* `room`: tokens left in the document of a position; a window that would run over its end is none. */
    uint32_t first = UINT32_MAX, last = 0;
    for (int64_t j = i; end - i > 1 && j < end; j++) {
      if (room[sa[j]] < length) continue;
      if (sa[j] < first) first = sa[j];
      if (sa[j] > last) last = sa[j];
    }
    if (last >= first + (uint64_t)length) /* two places that do not overlap */
      for (int64_t j = i; j < end; j++)
        if (room[sa[j]] >= length && (!keep_first || sa[j] >= first + (uint64_t)length)) marks[sa[j]] = 1;
    i = end;
  }
}

/* What a token weighs: mixed with the salt, so that hashes of two salts are independent, and no row of tokens fits both. */
static inline uint64_t weight(uint32_t token, uint32_t salt) { return ly_mix64(((uint64_t)salt << 32 | token) + 1); }

int64_t ly_suffix_windows(const uint32_t *tokens, int64_t n, int64_t length, uint32_t salt, uint64_t *hashes) {
  const uint64_t base = 0x9e3779b97f4a7c15ULL;
  uint64_t h = 0, last = 1; /* last = base^length: the factor of the token that leaves the window */
  if (length < 1 || n < length) return 0;
  for (int64_t i = 0; i < length; i++) { h = (h + weight(tokens[i], salt)) * base; last *= base; }
  hashes[0] = ly_mix64(h);
  for (int64_t i = length; i < n; i++) {
    h = (h - weight(tokens[i - length], salt) * last + weight(tokens[i], salt)) * base;
    hashes[i - length + 1] = ly_mix64(h);
  }
  return n - length + 1;
}
