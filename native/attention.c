/* Causal grouped-query attention over packed sequences, in tiles with a running softmax (FlashAttention, Dao et al. 2022;
 * FlashAttention-2 for the backward pass): the T x T matrix never exists. */
#include "rows.h"
enum { TILE = 64 };

typedef struct {
  const char *qkv, *out, *dout; char *y; float *lse; const int32_t *cu; int64_t N; int H, KV, D, dt, nseq; float scale; size_t size;
} Attention;
static int64_t width(const Attention *t) { return (int64_t)(t->H + 2 * t->KV) * t->D; }
static const char *at(const Attention *t, const char *base, int64_t row, int64_t ld, int64_t column) { return base + (size_t)(row * ld + column) * t->size; }

/* Rounds a tile of probabilities to the storage type, so that the product that follows runs in it. */
static void *tile_as(const Attention *t, const float *x, void *buffer, int64_t n) {
  if (t->dt == LY_F32) return (void *)x;
  store_row(buffer, 0, x, n, LY_BF16);
  return buffer;
}

/* One item: a sequence and a head; query tiles from the top down, and for each the key tiles up to the diagonal. */
static void forward_body(void *ctx, int64_t item, int thread) {
  const Attention *t = ctx;
  int head = (int)(item % t->H), kvHead = head / (t->H / t->KV), D = t->D;
  int64_t begin = t->cu[item / t->H], T = t->cu[item / t->H + 1] - begin, ld = width(t);
  const char *q = at(t, t->qkv, begin, ld, (int64_t)head * D), *k = at(t, t->qkv, begin, ld, (int64_t)(t->H + kvHead) * D), *v = at(t, t->qkv, begin, ld, (int64_t)(t->H + t->KV + kvHead) * D);
  float *s = ly_scratch(thread, 5, (size_t)(TILE * TILE * 2 + TILE * D) * 4), *o = s + TILE * TILE;
  void *rounded = o + TILE * D;
  float max[TILE], sum[TILE];
  for (int64_t i0 = 0; i0 < T; i0 += TILE) {
    int64_t rows = smaller(TILE, T - i0);
    for (int64_t i = 0; i < rows; i++) { max[i] = -INFINITY; sum[i] = 0; }
    memset(o, 0, (size_t)(TILE * D) * 4);
    for (int64_t j0 = 0; j0 < i0 + rows; j0 += TILE) {
      int64_t cols = smaller(TILE, T - j0);
      ly_gemm_serial(thread, rows, cols, D, t->scale, at(t, q, i0, ld, 0), ld, 1, at(t, k, j0, ld, 0), 1, ld, t->dt, s, TILE, 0);
      for (int64_t i = 0; i < rows; i++) {
        float *p = s + i * TILE, m = max[i], total = 0;
        int64_t seen = smaller(cols, i0 + i - j0 + 1);
        float largest = row_max(p, seen);
        if (largest > m) m = largest;
        if (seen <= 0) { memset(p, 0, TILE * 4); continue; }
        for (int64_t j = 0; j < seen; j++) { p[j] = fast_expf_negative(p[j] - m); total += p[j]; }
        for (int64_t j = seen; j < TILE; j++) p[j] = 0;
        float keep = fast_expf(max[i] - m);
        if (j0) for (int d = 0; d < D; d++) o[i * D + d] *= keep;
        sum[i] = sum[i] * keep + total;
        max[i] = m;
      }
      ly_gemm_serial(thread, rows, D, cols, 1, tile_as(t, s, rounded, TILE * TILE), TILE, 1, at(t, v, j0, ld, 0), ld, 1, t->dt, o, D, 1);
    }
    for (int64_t i = 0; i < rows; i++) {
      float inverse = 1.0f / sum[i];
      for (int d = 0; d < D; d++) o[i * D + d] *= inverse;
      store_row(t->y, (begin + i0 + i) * t->H * D + (int64_t)head * D, o + i * D, D, t->dt);
      t->lse[(int64_t)head * t->N + begin + i0 + i] = max[i] + logf(sum[i]);
    }
  }
}
void ly_attention_forward(const void *qkv, void *out, float *lse, const int32_t *cu, int nseq, int64_t N, int H, int KV, int D, float scale, int dt) {
  Attention t = {.qkv = qkv, .y = out, .lse = lse, .cu = cu, .N = N, .H = H, .KV = KV, .D = D, .dt = dt, .nseq = nseq, .scale = scale, .size = dt == LY_F32 ? 4 : 2};
  ly_parallel((int64_t)nseq * H, forward_body, &t);
}

/* One item: a sequence and a key-value head with all its query heads, so that dK and dV have one writer.
 *   P = exp(S - lse);  dV += P' dO;  dP = dO V';  dS = P (dP - rowsum(dO O)) scale;  dQ += dS K;  dK += dS' Q */
static void backward_body(void *ctx, int64_t item, int thread) {
  const Attention *t = ctx;
  int kvHead = (int)(item % t->KV), group = t->H / t->KV, D = t->D;
  int64_t begin = t->cu[item / t->KV], T = t->cu[item / t->KV + 1] - begin, ld = width(t), lo = (int64_t)t->H * D;
  const char *k = at(t, t->qkv, begin, ld, (int64_t)(t->H + kvHead) * D), *v = at(t, t->qkv, begin, ld, (int64_t)(t->H + t->KV + kvHead) * D);
  float *dq = ly_scratch(thread, 6, (size_t)(3 * T * D + T + 2 * D) * 4), *dk = dq + T * D, *dv = dk + T * D, *delta = dv + T * D, *a = delta + T, *b = a + D;
  float *s = ly_scratch(thread, 5, (size_t)(TILE * TILE * 4) * 4), *dp = s + TILE * TILE;
  void *rounded = dp + TILE * TILE, *rounded2 = dp + 2 * TILE * TILE;
  memset(dk, 0, (size_t)(2 * T * D) * 4);
  for (int head = kvHead * group; head < (kvHead + 1) * group; head++) {
    const char *q = at(t, t->qkv, begin, ld, (int64_t)head * D), *dout = at(t, t->dout, begin, lo, (int64_t)head * D);
    const float *lse = t->lse + (int64_t)head * t->N + begin;
    memset(dq, 0, (size_t)(T * D) * 4);
    for (int64_t i = 0; i < T; i++) {
      int64_t row = (begin + i) * lo + (int64_t)head * D; float dot = 0;
      load_row(a, t->dout, row, D, t->dt); load_row(b, t->out, row, D, t->dt);
      for (int d = 0; d < D; d++) dot += a[d] * b[d];
      delta[i] = dot;
    }
    for (int64_t i0 = 0; i0 < T; i0 += TILE) {
      int64_t rows = smaller(TILE, T - i0);
      for (int64_t j0 = 0; j0 < i0 + rows; j0 += TILE) {
        int64_t cols = smaller(TILE, T - j0);
        ly_gemm_serial(thread, rows, cols, D, t->scale, at(t, q, i0, ld, 0), ld, 1, at(t, k, j0, ld, 0), 1, ld, t->dt, s, TILE, 0);
        ly_gemm_serial(thread, rows, cols, D, 1, at(t, dout, i0, lo, 0), lo, 1, at(t, v, j0, ld, 0), 1, ld, t->dt, dp, TILE, 0);
        for (int64_t i = 0; i < rows; i++) {
          float *restrict p = s + i * TILE, *restrict g = dp + i * TILE, l = lse[i0 + i], dl = delta[i0 + i], scale = t->scale;
          int64_t seen = smaller(cols, i0 + i - j0 + 1);
          for (int64_t j = 0; j < seen; j++) { p[j] = fast_expf_negative(p[j] - l); g[j] = p[j] * (g[j] - dl) * scale; }
          for (int64_t j = seen < 0 ? 0 : seen; j < TILE; j++) p[j] = g[j] = 0;
        }
        void *p = tile_as(t, s, rounded, rows * TILE), *g = tile_as(t, dp, rounded2, rows * TILE);
        ly_gemm_serial(thread, cols, D, rows, 1, p, 1, TILE, at(t, dout, i0, lo, 0), lo, 1, t->dt, dv + j0 * D, D, 1);
        ly_gemm_serial(thread, cols, D, rows, 1, g, 1, TILE, at(t, q, i0, ld, 0), ld, 1, t->dt, dk + j0 * D, D, 1);
        ly_gemm_serial(thread, rows, D, cols, 1, g, TILE, 1, at(t, k, j0, ld, 0), ld, 1, t->dt, dq + i0 * D, D, 1);
      }
    }
    for (int64_t i = 0; i < T; i++) store_row(t->y, (begin + i) * ld + (int64_t)head * D, dq + i * D, D, t->dt);
  }
  for (int64_t i = 0; i < T; i++) {
    store_row(t->y, (begin + i) * ld + (int64_t)(t->H + kvHead) * D, dk + i * D, D, t->dt);
    store_row(t->y, (begin + i) * ld + (int64_t)(t->H + t->KV + kvHead) * D, dv + i * D, D, t->dt);
  }
}
void ly_attention_backward(const void *dout, const void *qkv, const void *out, const float *lse, void *dqkv, const int32_t *cu, int nseq, int64_t N, int H, int KV, int D, float scale, int dt) {
  Attention t = {.qkv = qkv, .out = out, .dout = dout, .y = dqkv, .lse = (float *)lse, .cu = cu, .N = N, .H = H, .KV = KV, .D = D, .dt = dt, .nseq = nseq, .scale = scale, .size = dt == LY_F32 ? 4 : 2};
  ly_parallel((int64_t)nseq * KV, backward_body, &t);
}
