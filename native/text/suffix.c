/* Suffixes of a row of tokens, sorted by their first `depth` tokens: radix sort by two tokens, then prefix doubling (Manber & Myers
 * 1993; only groups that are still undecided are looked at again, Larsson & Sadakane 2007). Used to find spans that occur
 * more than once (Lee et al. 2022, "Deduplicating training data makes language models better", section 4.1). */
#include "text.h"

int64_t ly_suffix_tokens(const uint16_t *text, int64_t n, const uint8_t *classes, uint32_t *tokens, int32_t *starts) {
  int64_t count = 0;
  const uint16_t *p = text, *end = text + n;
  while (p < end) {
    int class = classes[*p];
    if (class == LY_SPACE) { p++; continue; }
    const uint16_t *start = p;
    uint64_t h = 0xcbf29ce484222325ULL;
    if (class == LY_WORD)
      do { h = (h ^ *p++) * 0x100000001b3ULL; } while (p < end && classes[*p] == LY_WORD);
    else {
      int pair = (p[0] & 0xfc00) == 0xd800 && p + 1 < end && (p[1] & 0xfc00) == 0xdc00;
      h = (h ^ *p++) * 0x100000001b3ULL;
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

int64_t ly_suffix_sort(const uint32_t *tokens, int64_t n, int64_t depth, uint32_t *sa, uint32_t *rank, void *work) {
  if (n <= 0) return 0;
  if (depth <= 0 || depth > n) depth = n;
  uint64_t *key = work, *key_tmp = key + n;
  for (int64_t i = 0; i < n; i++) {
    sa[i] = (uint32_t)i;
    /* The end of the text is less than any token: the last suffix is a group of its own by its rank below. */
    key[i] = depth == 1 ? (uint64_t)tokens[i] << 32 : ((uint64_t)tokens[i] << 32) | (i + 1 < n ? tokens[i + 1] : 0);
  }
  /* rank serves as the second column of the sort, then receives the ranks: the place of the group's first suffix. */
  ly_radix64(key, sa, key_tmp, rank, n);
  int64_t h = depth < 2 ? depth : 2;
  int64_t groups = 0, at = 0;
  for (int64_t i = 0, start = 0; i < n; i++) {
    if (i > 0 && key[i] != key[i - 1]) start = i, groups++;
    rank[sa[i]] = (uint32_t)start;
  }
  groups++;
  /* The last suffix is shorter than h: with a zero for the missing token it may have fallen in a group with others. */
  if (h == 2) {
    uint32_t first = rank[n - 1];
    int64_t end = first;
    while (end < n && rank[sa[end]] == first) end++;
    if (end - first > 1) {
      int64_t where = first;
      while (sa[where] != (uint32_t)(n - 1)) where++;
      memmove(sa + first + 1, sa + first, (size_t)(where - first) * sizeof *sa);
      sa[first] = (uint32_t)(n - 1);
      for (int64_t i = first + 1; i < end; i++) rank[sa[i]] = first + 1;
      groups++;
    }
  }
  struct item *items = work, *tmp = items + n;
  (void)at;
  while (h < depth && groups < n) {
    int64_t step = depth - h < h ? depth - h : h;
    /* First every key from the ranks as they are, then the new ranks: so after the round a group is equal in exactly h + step tokens. */
    for (int64_t i = 0; i < n; i++) {
      if (rank[sa[i]] == i && (i + 1 == n || rank[sa[i + 1]] == i + 1)) continue;
      int64_t next = (int64_t)sa[i] + step;
      items[i].key = next < n ? rank[next] + 1 : 0;
      items[i].at = sa[i];
    }
    for (int64_t i = 0; i < n;) {
      int64_t end = i + 1;
      while (end < n && rank[sa[end]] == i) end++;
      if (end - i > 1) {
        sort_group(items + i, end - i, tmp);
        for (int64_t j = i; j < end; j++) sa[j] = items[j].at;
      }
      i = end;
    }
    for (int64_t i = 0; i < n;) {
      uint32_t old = rank[sa[i]];
      int64_t start = i, j = i + 1;
      for (; j < n && rank[sa[j]] == old; j++) {
        if (items[j].key != items[j - 1].key) start = j, groups++;
        if (start != i) rank[sa[j]] = (uint32_t)start | 0u;
      }
      i = j;
    }
    h += step;
  }
  return groups;
}
