/* Choosing the next token: repetition penalty, temperature, top-k, top-p, min-p, then one draw. Nothing is sorted but the few
 * tokens among which a cut falls: all passes over the vocabulary are linear. */
#include "rows.h"
#include <stdlib.h>
typedef struct {
  float *logits; int64_t V; const int32_t *history, *nhist; int64_t maxhist; float penalty, temperature; int32_t k; float p, minp; const float *u; int32_t *ids; float *logp;
} Sampler;
typedef struct { float p; int32_t id; } Candidate;

static int likelier(const void *a, const void *b) {
  const Candidate *x = a, *y = b;
  return x->p > y->p ? -1 : x->p < y->p ? 1 : x->id - y->id;
}

/* Weights lie in 0 .. 1 and floats without a sign are in order as whole numbers are: their first bits are a bucket, eight to an octave. */
enum { BUCKETS = (0x3f800000 >> 20) + 1 };
static int bucket(float p) { uint32_t u; memcpy(&u, &p, 4); return (int)(u >> 20); }

/* Keeps the likeliest tokens, of equals those with lower ids: one at least, `most` at most, and no more than it takes for `mass`.
 * The weights of the others become 0. c: room for V. */
static void cut(float *p, int64_t V, int64_t most, double mass, Candidate *c) {
  int32_t count[BUCKETS] = {0}; double weight[BUCKETS] = {0};
  for (int64_t v = 0; v < V; v++) { int b = bucket(p[v]); count[b]++; weight[b] += p[v]; }
  int64_t kept = 0, n = 0; double seen = 0;
  int edge = BUCKETS - 1;
  for (; edge > 0 && kept + count[edge] < most && seen + weight[edge] < mass; edge--) { kept += count[edge]; seen += weight[edge]; }
  for (int64_t v = 0; v < V; v++) if (bucket(p[v]) == edge) c[n++] = (Candidate){p[v], (int32_t)v};
  qsort(c, (size_t)n, sizeof *c, likelier);
  int64_t i = 0;
  while (i < n && (kept == 0 || (kept < most && seen < mass))) { seen += c[i++].p; kept++; }
  for (; i < n; i++) p[c[i].id] = 0;
  for (int64_t v = 0; v < V; v++) p[v] = bucket(p[v]) < edge ? 0 : p[v];
}

enum { BLOCK = 128 };
static double block_sum(const float *p, int64_t n) { double s = 0; for (int64_t i = 0; i < n; i++) s += p[i]; return s; }
/* The token that owns the share u of the weights, in the order of the ids. */
static int64_t draw(const float *p, int64_t V, float u, double *sums) {
  int64_t blocks = (V + BLOCK - 1) / BLOCK, chosen = -1; double total = 0, seen = 0;
  for (int64_t b = 0; b < blocks; b++) total += sums[b] = block_sum(p + b * BLOCK, smaller(BLOCK, V - b * BLOCK));
  double goal = u * total;
  for (int64_t b = 0; b < blocks; seen += sums[b++]) {
    if (!(sums[b] > 0)) continue;
    double inside = seen;
    int last = seen + sums[b] > goal; /* it is in this block; or, by a rounding, its last one */
    for (int64_t v = b * BLOCK; last && v < smaller(V, (b + 1) * BLOCK); v++) {
      if (p[v] > 0) chosen = v;
      inside += p[v];
      if (inside > goal) return v;
    }
    if (last) return chosen;
    for (int64_t v = smaller(V, (b + 1) * BLOCK) - 1; v >= b * BLOCK; v--) if (p[v] > 0) { chosen = v; break; }
  }
  return chosen;
}

static void sample_body(void *ctx, int64_t b, int thread) {
  const Sampler *t = ctx; int64_t V = t->V;
  float *x = t->logits + b * V;
  if (t->penalty != 1.0f) {
    unsigned char *done = ly_scratch(thread, 7, (size_t)V);
    memset(done, 0, (size_t)V);
    for (int32_t i = 0; i < t->nhist[b]; i++) {
      int32_t id = t->history[b * t->maxhist + i];
      if (done[id]) continue;
      done[id] = 1;
      x[id] = x[id] > 0 ? x[id] / t->penalty : x[id] * t->penalty;
    }
  }
  float scale = t->temperature > 0 ? 1.0f / t->temperature : 1.0f, max = row_max(x, V), sum = 0;
  int64_t chosen = 0;
  if (t->temperature > 0) {
    int64_t blocks = (V + BLOCK - 1) / BLOCK;
    double *sums = ly_scratch(thread, 8, (size_t)blocks * 8 + (size_t)V * (sizeof(Candidate) + 4));
    Candidate *c = (Candidate *)(sums + blocks); float *p = (float *)(c + V);
    for (int64_t v = 0; v < V; v++) { p[v] = fast_exp2f((x[v] - max) * (scale * LOG2E)); sum += p[v]; }
    if (sum == sum) { /* else a logit is NaN */
      if (t->k > 0 && t->k < V) cut(p, V, t->k, INFINITY, c);
      if (t->p < 1.0f) cut(p, V, V, t->p * block_sum(p, V), c);
      if (t->minp > 0) for (int64_t v = 0; v < V; v++) p[v] = p[v] >= t->minp ? p[v] : 0; /* the likeliest has weight exp(0) = 1 */
      chosen = draw(p, V, t->u[b], sums);
    }
  } else {
    for (int64_t v = 0; v < V; v++) sum += fast_exp2f((x[v] - max) * (scale * LOG2E));
    while (chosen < V - 1 && x[chosen] != max) chosen++;
  }
  chosen = chosen < 0 ? 0 : chosen;
  t->ids[b] = (int32_t)chosen;
  if (t->logp) t->logp[b] = (x[chosen] - max) * scale - logf(sum);
}
void ly_sample(float *logits, int64_t B, int64_t V, const int32_t *history, const int32_t *nhist, int64_t maxhist, float repetition_penalty,
               float temperature, int32_t top_k, float top_p, float min_p, const float *u, int32_t *ids, float *logp) {
  Sampler t = {logits, V, history, nhist, maxhist, repetition_penalty, temperature, top_k, top_p, min_p, u, ids, logp};
  ly_parallel(B, sample_body, &t);
}
