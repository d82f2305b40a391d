/* Where a word ends: the usual pre-tokenizers as scanners over UTF-8, shared by bpe.c and bpe_train.c. */
#ifndef LYCEUM_BPE_H
#define LYCEUM_BPE_H
#include "internal.h"

enum { BPE_OTHER, BPE_LETTER, BPE_NUMBER, BPE_SPACE, BPE_MULTI, BPE_IDEOGRAPH }; /* the last only in the table for BPE_HAN */
enum { BPE_GPT2, BPE_LLAMA3, BPE_QWEN, BPE_HAN };
/* Texts are well-formed UTF-8 and each is followed by a zero byte, which is no letter, number or space: a run of those ends
 * there without a look at the end. Only runs of other characters must look. */

/* The class of a byte that is a character; what begins a longer character is BPE_MULTI. */
static const uint8_t bpe_ascii[256] = {
  ['\t' ... '\r'] = BPE_SPACE, [' '] = BPE_SPACE, ['0' ... '9'] = BPE_NUMBER, ['A' ... 'Z'] = BPE_LETTER, ['a' ... 'z'] = BPE_LETTER,
  [128 ... 255] = BPE_MULTI,
};

/* Class and length of the character at p. */
typedef struct { int kind, bytes; } BpeChar;
static inline BpeChar bpe_char(const uint8_t *classes, const uint8_t *p) {
  uint32_t c = *p;
  if (c < 0x80) return (BpeChar){bpe_ascii[c], 1};
  if (c < 0xE0) return (BpeChar){classes[(c & 31) << 6 | (p[1] & 63u)], 2};
  if (c < 0xF0) return (BpeChar){classes[(c & 15) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u)], 3};
  return (BpeChar){classes[(c & 7) << 18 | (p[1] & 63u) << 12 | (p[2] & 63u) << 6 | (p[3] & 63u)], 4};
}

/* The end of the run of one kind (no BPE_OTHER) that goes on at p. */
static inline const uint8_t *bpe_run(const uint8_t *classes, const uint8_t *p, int kind) {
  for (;;) {
    while (bpe_ascii[*p] == kind) p++;
    if (*p < 0x80) return p;
    BpeChar c = bpe_char(classes, p);
    if (c.kind != kind) return p;
    p += c.bytes;
  }
}
static inline const uint8_t *bpe_others(const uint8_t *classes, const uint8_t *p, const uint8_t *end) {
  while (p < end) {
    BpeChar c = bpe_char(classes, p);
    if (c.kind != BPE_OTHER) break;
    p += c.bytes;
  }
  return p;
}
static inline int bpe_newline(uint8_t c) { return c == '\r' || c == '\n'; }

/* 's 't 're 've 'm 'll 'd; any case where the expression says (?i:), U+017F, the long s, included. 0: none of them. */
static inline int bpe_contraction(const uint8_t *p, int any_case) {
  uint8_t a = p[1], b = a ? p[2] : 0;
  if (any_case) {
    if (a == 0xC5 && b == 0xBF) return 3;
    if (a >= 'A' && a <= 'Z') a |= 32;
    if (b >= 'A' && b <= 'Z') b |= 32;
  }
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* The spaces from p on: up to the last newline where newlines count, else all but the one that the next word takes. */
static inline const uint8_t *bpe_spaces(const uint8_t *classes, const uint8_t *p, const uint8_t *end, int newlines) {
  const uint8_t *last = p, *newline = NULL, *q = p;
  for (BpeChar c; (c = bpe_char(classes, q)).kind == BPE_SPACE; q += c.bytes) { last = q; if (bpe_newline(*q)) newline = q + 1; }
  if (newlines && newline) return newline;
  return q == end || last == p ? q : last;
}

/* The end of the word at p < end. `pattern` is a constant where this is called, so that a scanner is compiled for each. */
static inline __attribute__((always_inline)) const uint8_t *bpe_word(int pattern, const uint8_t *classes, const uint8_t *p, const uint8_t *end) {
  int ascii = bpe_ascii[*p];
  if (ascii == BPE_LETTER) return bpe_run(classes, p + 1, BPE_LETTER);
  if (*p == ' ' && bpe_ascii[p[1]] == BPE_LETTER) return bpe_run(classes, p + 2, BPE_LETTER);
  int n = *p == '\'' ? bpe_contraction(p, pattern != BPE_GPT2) : 0;
  if (n) return p + n;
  BpeChar c = bpe_char(classes, p);
  const uint8_t *q = p + c.bytes;
  int next = q < end ? bpe_char(classes, q).kind : -1;
  if (c.kind == BPE_LETTER) return bpe_run(classes, q, BPE_LETTER);
  if (pattern == BPE_HAN && c.kind == BPE_IDEOGRAPH) return q;
  if (pattern == BPE_GPT2) {
    int kind = c.kind;
    if (*p == ' ' && next >= 0 && next != BPE_SPACE) kind = next;
    if (kind == BPE_SPACE) return bpe_spaces(classes, p, end, 0);
    return kind == BPE_OTHER ? bpe_others(classes, q, end) : bpe_run(classes, q, kind);
  }
  if (c.kind == BPE_NUMBER) {
    for (int i = 1; i < (pattern == BPE_QWEN ? 1 : 3); i++) {
      c = bpe_char(classes, q);
      if (c.kind != BPE_NUMBER) break;
      q += c.bytes;
    }
    return q;
  }
  if (next == BPE_LETTER && !bpe_newline(*p)) return bpe_run(classes, q, BPE_LETTER);
  if (c.kind == BPE_OTHER || (*p == ' ' && next == BPE_OTHER)) {
    q = bpe_others(classes, q, end);
    while (q < end && bpe_newline(*q)) q++;
    return q;
  }
  return bpe_spaces(classes, p, end, 1);
}

/* From p on the first place, or end, where a word ends whatever stands before: after a letter that no letter follows,
 * and after an ideograph that is a word. */
static inline const uint8_t *bpe_border(const uint8_t *classes, const uint8_t *p, const uint8_t *end) {
  while (p < end && (*p & 0xC0) == 0x80) p++;
  for (int before = -1; p < end;) {
    BpeChar c = bpe_char(classes, p);
    if (before == BPE_IDEOGRAPH || (before == BPE_LETTER && c.kind != BPE_LETTER)) return p;
    before = c.kind;
    p += c.bytes;
  }
  return end;
}

/* A part of the texts for one thread: the bytes from..to, which begin in text `text`. */
typedef struct { int64_t from, to, text, ids; } BpePart;
/* Cuts the n texts into parts of about `grain` bytes; parts has room for (starts[n] - starts[0]) / grain + 1 of them. */
int64_t bpe_parts(const uint8_t *classes, const uint8_t *text, const int64_t *starts, int64_t n, int64_t grain, BpePart *parts);

/* Up to 15 bytes and their number as two words, with which they are compared at once. Reads 16 bytes from p. */
typedef struct { uint64_t lo, hi; } BpeKey;
static inline BpeKey bpe_key(const uint8_t *p, int64_t n) {
  uint64_t lo, hi;
  memcpy(&lo, p, 8);
  memcpy(&hi, p + 8, 8);
  if (n < 8) { lo = n ? lo & (UINT64_MAX >> (64 - 8 * n)) : 0; hi = 0; }
  else hi = n == 8 ? 0 : hi & (UINT64_MAX >> (128 - 8 * n));
  return (BpeKey){lo, hi | (uint64_t)n << 56};
}
static inline uint64_t bpe_mix(uint64_t lo, uint64_t hi) {
  uint64_t h = lo * 0x9E3779B97F4A7C15ull ^ (hi ^ hi >> 32) * 0xD6E8FEB86659FD93ull;
  h = (h ^ h >> 32) * 0xD6E8FEB86659FD93ull;
  return h ^ h >> 32;
}
static inline uint64_t bpe_hash(const uint8_t *p, int64_t n) {
  uint64_t h = (uint64_t)n, w;
  for (; n >= 8; n -= 8, p += 8) { memcpy(&w, p, 8); h = bpe_mix(h, w); }
  if (n) { w = 0; memcpy(&w, p, (size_t)n); h = bpe_mix(h, w); }
  return h;
}
#endif
