/* log p(token) from hidden states and the output matrix, in chunks of rows: the full logits never exist.
 * Backward: d(logit)[v] = g (1[v = target] - p[v]) * inv_temperature, which two products turn into dhidden and dW. */
#include "rows.h"
/* About 16 MiB of fp32 logits at a time, and of a large vocabulary D / 2 rows, up to 512: as many bytes as W has in bf16, which every chunk
 * reads and packs; of 64 rows that takes longer than their products. Gradients of logits in bf16 are gathered up to 32 MiB: to the gradient
 * of W, every piece of them is one more pass over it. */
static int64_t rows_in(int64_t bytes, int64_t N, int64_t row, int64_t D) {
  int64_t rows = bytes / row / 64 * 64, least = smaller(D / 2 / 64 * 64, 512);
  if (least < 64) least = 64;
  if (rows < least) rows = least;
  return smaller(rows, N);
}

enum { PART = 1024 }; /* numbers of a row that are worked on at a time */
typedef struct {
  float *logits; const int32_t *target; float *logp, *lse, *entropy; const float *known_lse, *known_entropy, *g; void *dlogits;
  int64_t rows, V, ld; float scale; int dt;
} Chunk;

/* A target of V or more is a row of another process's part of W: log p is then -lse, and no logit here is the target's.
 * One row: log p, log sum exp, entropy; then, when gradients are asked for, the row of d(logits). */
static void row_body(void *ctx, int64_t i, int thread) {
  const Chunk *t = ctx; int64_t V = t->V;
  float *restrict x = t->logits + i * t->ld, scale = t->scale;
  int32_t target = t->target[i];
  if (target < 0) {
    if (t->logp) t->logp[i] = 0;
    if (t->lse) t->lse[i] = 0;
    if (t->entropy) t->entropy[i] = 0;
    if (t->dlogits) memset((char *)t->dlogits + (size_t)(i * t->ld) * (t->dt == LY_F32 ? 4 : 2), 0, (size_t)V * (t->dt == LY_F32 ? 4 : 2));
    return;
  }
  float lse;
  if (t->known_lse) lse = t->known_lse[i];
  else { /* what is returned is reckoned from the largest logit, so that logits of 1e4 lose no digits */
    float max = row_max(x, V), sum;
    float of_target = target < V ? (x[target] - max) * scale : 0, mean = 0;
    if (t->entropy) /* sum of e^z z; a logit of -inf has p = 0 and adds nothing */
      for (int64_t v = 0; v < V; v++) { float z = (x[v] - max) * scale, e = fast_exp2f(z * LOG2E); mean += e == 0 ? 0 : e * z; }
    sum = exp2_row(NULL, x, V, 1, max, scale * LOG2E);
    float log_sum = logf(sum);
    lse = max * scale + log_sum;
    if (t->logp) t->logp[i] = target < V ? of_target - log_sum : -lse;
    if (t->lse) t->lse[i] = lse;
    if (t->entropy) t->entropy[i] = log_sum - mean / sum; /* H = log sum e^z - sum p z */
  }
  if (!t->dlogits) return;
  float g = t->g[i] * scale;
  if (t->known_entropy) { /* of the entropy: dH / dz = -p (log p + H) */
    float H = t->known_entropy[i];
    for (int64_t v = 0; v < V; v++) { float logp = x[v] * scale - lse, p = fast_exp2f(logp * LOG2E); x[v] = p == 0 ? 0 : -g * p * (logp + H); }
    if (t->dlogits != t->logits) store_row(t->dlogits, i * t->ld, x, V, t->dt);
    return;
  }
  /* From lse, as where only that is known: so both ways give the same bytes. */
  float *part = ly_scratch(thread, 0, PART * 4), of_target = target < V ? fast_exp2f((x[target] * scale - lse) * LOG2E) : 0;
  for (int64_t v = 0; v < V; v += PART) { /* in fp32 dlogits are the logits' memory */
    int64_t n = smaller(PART, V - v);
    exp2_row(part, x + v, n, scale, lse, LOG2E);
    for (int64_t j = 0; j < n; j++) part[j] *= -g;
    store_row(t->dlogits, i * t->ld + v, part, n, t->dt);
  }
  float exact = g - g * of_target;
  if (target < V) store_row(t->dlogits, i * t->ld + target, &exact, 1, t->dt);
}

typedef struct { const float *sum; void *dW; int64_t D; int dt; } Sum;
static void add_sum_body(void *ctx, int64_t v, int thread) {
  const Sum *t = ctx; (void)thread;
  add_to_row(t->dW, v * t->D, t->sum + v * t->D, t->D, t->dt);
}

static void run(const void *hidden, const void *W, const int32_t *target, float *logp, float *lse, float *entropy, const float *known_lse,
                const float *known_entropy, const float *g, void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float scale, int dt) {
  int64_t size = dt == LY_F32 ? 4 : 2, ld = V + 32; /* rows a multiple of 4 KiB apart would share a set of the cache */
  int64_t rows = rows_in(16 << 20, N, 4 * V, D), all = !g ? N : dt == LY_F32 ? rows : rows_in(32 << 20, N, 2 * V, D);
  if (g && dW && dt == LY_BF16 && N <= 2 * D) all = N; /* no more memory than the sum below would take */
  float *logits = ly_scratch(-1, 2, (size_t)(rows * ld) * 4);
  char *dlogits = !g ? NULL : dt == LY_F32 ? (char *)logits : ly_scratch(-1, 3, (size_t)(all * ld) * 2);
  /* Several pieces add to dW: in bf16 that would round each time, so they meet in fp32 and are added once. */
  float *sum = g && dW && dt == LY_BF16 && all < N ? ly_scratch(-1, 4, (size_t)(V * D) * 4) : NULL;
  for (int64_t from = 0; from < N; from += all) {
    int64_t piece = smaller(all, N - from);
    for (int64_t at = from; at < from + piece; at += rows) {
      int64_t n = smaller(rows, from + piece - at);
      ly_matmul(0, 1, n, V, D, 1, (const char *)hidden + (size_t)(at * D * size), dt, D, W, dt, D, 0, logits, LY_F32, ld, NULL, 1, 0, 0, 0);
      Chunk t = {logits, target + at, logp ? logp + at : NULL, lse ? lse + at : NULL, entropy ? entropy + at : NULL,
                 known_lse ? known_lse + at : NULL, known_entropy ? known_entropy + at : NULL, g ? g + at : NULL,
                 g ? dlogits + (size_t)((at - from) * ld * size) : NULL, n, V, ld, scale, dt};
      ly_parallel(n, row_body, &t);
    }
    if (!g) continue;
    const char *h = (const char *)hidden + (size_t)(from * D * size);
    if (dhidden) ly_matmul(0, 0, piece, D, V, 1, dlogits, dt, ld, W, dt, D, 0, (char *)dhidden + (size_t)(from * D * size), dt, D, NULL, 1, 0, 0, 0);
    if (sum) ly_matmul(1, 0, V, D, piece, 1, dlogits, dt, ld, h, dt, D, from > 0, sum, LY_F32, D, NULL, 1, 0, 0, 0);
    else if (dW) ly_matmul(1, 0, V, D, piece, 1, dlogits, dt, ld, h, dt, D, 1, dW, dt, D, NULL, 1, 0, 0, 0);
  }
  if (sum) ly_parallel(V, add_sum_body, &(Sum){sum, dW, D, dt});
}

void ly_logprob_forward(const void *hidden, const void *W, const int32_t *target, float *logp, float *lse, float *entropy,
                        int64_t N, int64_t D, int64_t V, float inv_temperature, int dt) {
  run(hidden, W, target, logp, lse, entropy, NULL, NULL, NULL, NULL, NULL, N, D, V, inv_temperature, dt);
}
void ly_logprob_backward(const void *hidden, const void *W, const int32_t *target, const float *lse, const float *g,
                         void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt) {
  run(hidden, W, target, NULL, NULL, NULL, lse, NULL, g, dhidden, dW, N, D, V, inv_temperature, dt);
}
void ly_logprob_forward_backward(const void *hidden, const void *W, const int32_t *target, const float *g, float *logp, float *lse,
                                 void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt) {
  run(hidden, W, target, logp, lse, NULL, NULL, NULL, g, dhidden, dW, N, D, V, inv_temperature, dt);
}
void ly_entropy_backward(const void *hidden, const void *W, const int32_t *target, const float *lse, const float *entropy, const float *g,
                         void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt) {
  run(hidden, W, target, NULL, NULL, NULL, lse, entropy, g, dhidden, dW, N, D, V, inv_temperature, dt);
}
