/* Attention over a KV cache: the keys of a sequence and head are the rows of a matrix that the queries meet (few_rows.h). */
#include "few_rows.h"

typedef struct {
  const char *q, *k, *v; char *y; const int32_t *past; int64_t ldq, T, maxT, items; int form, H, KV, D, dt; float scale; size_t size;
} Cached;

/* o[D] = sum over j of p[j] v[j, D], in fp32, j ascending. Columns go in pieces that stay in registers; in bf16 even and odd ones apart, which takes one instruction to widen.
 * With every row one of the values that come next is asked for, as with keys: memory shall be busy while sums are made. */
enum { PIECE = 4 * LANES };
static inline __attribute__((always_inline)) void fetch_piece(const char *values, int64_t at, int64_t bytes) {
  for (int64_t b = at; b < at + bytes; b += 64) __builtin_prefetch(values + b);
}
static void weighted_rows(const float *restrict p, const char *restrict v, int64_t rows, int D, int dt, float *restrict o, const char *next) {
  int d = 0;
  for (; d + PIECE <= D; d += PIECE) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    if (dt == LY_F32) {
      for (int64_t j = 0; j < rows; j++) {
        fetch_piece(next, (j * D + d) * 4, PIECE * 4);
        const vec *x = (const vec *)((const float *)v + j * D + d);
        s[0] += p[j] * x[0]; s[1] += p[j] * x[1]; s[2] += p[j] * x[2]; s[3] += p[j] * x[3];
      }
      memcpy(o + d, s, sizeof s);
      continue;
    }
    for (int64_t j = 0; j < rows; j++) {
      fetch_piece(next, (j * D + d) * 2, PIECE * 2);
      const bits *x = (const bits *)((const bf16 *)v + j * D + d);
      s[0] += p[j] * (vec)(x[0] << 16); s[1] += p[j] * (vec)(x[0] & 0xffff0000u);
      s[2] += p[j] * (vec)(x[1] << 16); s[3] += p[j] * (vec)(x[1] & 0xffff0000u);
    }
    for (int i = 0; i < LANES; i++) {
      o[d + 2 * i] = s[0][i]; o[d + 2 * i + 1] = s[1][i];
      o[d + 2 * LANES + 2 * i] = s[2][i]; o[d + 2 * LANES + 2 * i + 1] = s[3][i];
    }
  }
  if (d == D) return;
  memset(o + d, 0, (size_t)(D - d) * 4);
  for (int64_t j = 0; j < rows; j++)
    if (dt == LY_F32) for (int i = d; i < D; i++) o[i] += p[j] * ((const float *)v)[j * D + i];
    else for (int i = d; i < D; i++) o[i] += p[j] * bf16_to_f32(((const bf16 *)v)[j * D + i]);
}

/* One item: a row of the batch and a key-value head, with the queries of all heads that share it. */
static void cached_body(void *ctx, int64_t item, int thread) {
  const Cached *t = ctx;
  int group = t->H / t->KV, D = t->D;
  int64_t b = item / t->KV, kv = item % t->KV, T = t->T, queries = group * T, keys = t->past[b] + T, ld = round16(keys);
  const char *k = t->k + (size_t)(item * t->maxT * D) * t->size, *v = t->v + (size_t)(item * t->maxT * D) * t->size;
  int64_t stride = ly_few_stride(t->form, D);
  float *s = ly_scratch(thread, 11, (size_t)(queries * ld + D) * 4 + (size_t)(queries * (stride + (int64_t)D * 4))), *o = s + queries * ld;
  char *room = (char *)(o + D);
  const char *q = t->q + (size_t)(b * T * t->ldq + kv * group * D) * t->size, *ready;
  if (T > 1) { /* queries that share keys lie one behind the other in one row only */
    for (int64_t i = 0; i < T; i++) memcpy(room + (size_t)(i * group * D) * t->size, q + (size_t)(i * t->ldq) * t->size, (size_t)(group * D) * t->size);
    q = room;
    room += queries * D * (int64_t)t->size;
  }
  if (ly_few_as_is(t->form, D)) ready = q;
  else { ly_few_prepare(t->form, q, t->dt, 0, queries, queries, D, room); ready = room; }
  size_t next = item + 1 < ly_part(t->items, thread + 1) ? (size_t)(t->maxT * D) * t->size : 0;
  ly_few_dots(t->form, k, D * (int64_t)t->size, keys, D, ready, queries, 0, (Ahead){v, keys * D * (int64_t)t->size}, s, ld);
  for (int64_t i = 0; i < queries; i++) {
    float *p = s + i * ld;
    int64_t row = i / group, seen = keys - T + row + 1, padded = round16(seen);
    float max = row_max(p, seen);
    for (int64_t j = seen; j < padded; j++) p[j] = -INFINITY;
    float sum = exp2_row(p, p, padded, 1, max, t->scale * LOG2E);
    weighted_rows(p, v, seen, D, t->dt, o, i == 0 ? k + next : k);
    float inverse = 1.0f / sum;
    for (int d = 0; d < D; d++) o[d] *= inverse;
    store_row(t->y, ((b * T + row) * t->H + kv * group + i % group) * D, o, D, t->dt);
  }
}
void ly_attention_cached(const void *q, int64_t ldq, const void *kcache, const void *vcache, void *out, const int32_t *past, int64_t B, int64_t T, int64_t maxT, int H, int KV, int D, float scale, int dt) {
  Cached t = {q, kcache, vcache, out, past, ldq, T, maxT, B * KV, ly_few_form(dt, 0), H, KV, D, dt, scale, dt == LY_F32 ? 4 : 2};
  ly_in_order(t.items, cached_body, &t);
}

void ly_cache_append(const void *qkv, void *kcache, void *vcache, const int32_t *past, int64_t B, int64_t T, int64_t maxT, int H, int KV, int D, int dt) {
  size_t size = dt == LY_F32 ? 4 : 2, row = (size_t)D * size;
  for (int64_t b = 0; b < B; b++)
    for (int64_t i = 0; i < T; i++) {
      const char *from = (const char *)qkv + (size_t)((b * T + i) * (H + 2 * KV) + H) * row;
      for (int64_t h = 0; h < KV; h++) {
        size_t to = (size_t)((b * KV + h) * maxT + past[b] + i) * row;
        memcpy((char *)kcache + to, from + (size_t)h * row, row);
        memcpy((char *)vcache + to, from + (size_t)(KV + h) * row, row);
      }
    }
}
