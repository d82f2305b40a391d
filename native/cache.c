/* Attention over a KV cache. */
#include "rows.h"

typedef struct {
  const char *q, *k, *v; char *y; const int32_t *past; int64_t ldq, T, maxT; int H, KV, D, dt; float scale;
} Cached;

/* One item: a row of the batch and a head. Scores over the cache, softmax, weighted sum of the values. */
static void cached_body(void *ctx, int64_t item, int thread) {
  const Cached *t = ctx;
  int head = (int)(item % t->H), kvHead = head / (t->H / t->KV), D = t->D;
  int64_t b = item / t->H, ld = (int64_t)t->KV * D;
  float *q = ly_scratch(thread, 5, (size_t)(3 * D + t->maxT) * 4), *x = q + D, *o = x + D, *s = o + D;
  for (int64_t i = 0; i < t->T; i++) {
    int64_t seen = t->past[b] + i + 1; float max = -INFINITY, sum = 0;
    load_row(q, t->q, (b * t->T + i) * t->ldq + (int64_t)head * D, D, t->dt);
    for (int64_t j = 0; j < seen; j++) {
      float dot = 0;
      load_row(x, t->k, (b * t->maxT + j) * ld + (int64_t)kvHead * D, D, t->dt);
      for (int d = 0; d < D; d++) dot += q[d] * x[d];
      s[j] = dot * t->scale;
      max = s[j] > max ? s[j] : max;
    }
    memset(o, 0, (size_t)D * 4);
    for (int64_t j = 0; j < seen; j++) {
      float p = fast_expf_negative(s[j] - max);
      sum += p;
      load_row(x, t->v, (b * t->maxT + j) * ld + (int64_t)kvHead * D, D, t->dt);
      for (int d = 0; d < D; d++) o[d] += p * x[d];
    }
    for (int d = 0; d < D; d++) o[d] /= sum;
    store_row(t->y, (b * t->T + i) * t->H * D + (int64_t)head * D, o, D, t->dt);
  }
}
void ly_attention_cached(const void *q, int64_t ldq, const void *kcache, const void *vcache, void *out, const int32_t *past, int64_t B, int64_t T, int64_t maxT, int H, int KV, int D, float scale, int dt) {
  Cached t = {.q = q, .ldq = ldq, .k = kcache, .v = vcache, .y = out, .past = past, .T = T, .maxT = maxT, .H = H, .KV = KV, .D = D, .scale = scale, .dt = dt};
  ly_parallel(B * H, cached_body, &t);
}

void ly_cache_append(const void *qkv, void *kcache, void *vcache, const int32_t *past, int64_t B, int64_t T, int64_t maxT, int H, int KV, int D, int dt) {
  size_t size = dt == LY_F32 ? 4 : 2, part = (size_t)(KV * D) * size;
  for (int64_t b = 0; b < B; b++)
    for (int64_t i = 0; i < T; i++) {
      const char *from = (const char *)qkv + (size_t)((b * T + i) * (H + 2 * KV) * D + (int64_t)H * D) * size;
      size_t to = (size_t)(b * maxT + past[b] + i) * part;
      memcpy((char *)kcache + to, from, part);
      memcpy((char *)vcache + to, from + part, part);
    }
}
