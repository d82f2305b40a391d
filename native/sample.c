/* Choosing the next token: repetition penalty, temperature, top-k, top-p, min-p, then one draw. */
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

static void sample_body(void *ctx, int64_t b, int thread) {
  const Sampler *t = ctx; int64_t V = t->V;
  float *x = t->logits + b * V;
  unsigned char *done = ly_scratch(thread, 7, (size_t)V);
  memset(done, 0, (size_t)V);
  if (t->penalty != 1.0f) for (int32_t i = 0; i < t->nhist[b]; i++) {
    int32_t id = t->history[b * t->maxhist + i];
    if (done[id]) continue;
    done[id] = 1;
    x[id] = x[id] > 0 ? x[id] / t->penalty : x[id] * t->penalty;
  }
  int64_t best = 0;
  for (int64_t v = 1; v < V; v++) if (x[v] > x[best]) best = v;
  float scale = t->temperature > 0 ? 1.0f / t->temperature : 1.0f, max = x[best], sum = 0;
  for (int64_t v = 0; v < V; v++) sum += fast_expf((x[v] - max) * scale);
  int32_t chosen = (int32_t)best;
  if (t->temperature > 0) {
    Candidate *c = ly_scratch(thread, 8, (size_t)V * sizeof *c);
    int64_t n = 0;
    for (int64_t v = 0; v < V; v++) { float p = fast_expf((x[v] - max) * scale); if (p > 0) c[n++] = (Candidate){p, (int32_t)v}; }
    if ((t->k > 0 && t->k < n) || t->p < 1.0f) {
      qsort(c, (size_t)n, sizeof *c, likelier);
      if (t->k > 0 && t->k < n) n = t->k;
      if (t->p < 1.0f) {
        double total = 0, seen = 0; int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) total += c[i].p;
        while (kept < n && (kept == 0 || seen < t->p * total)) seen += c[kept++].p;
        n = kept;
      }
    }
    if (t->minp > 0) { /* relative to the likeliest, whose weight is exp(0) = 1 and which every cut keeps */
      int64_t kept = 0;
      for (int64_t i = 0; i < n; i++) if (c[i].p >= t->minp) c[kept++] = c[i];
      n = kept;
    }
    double total = 0, seen = 0;
    for (int64_t i = 0; i < n; i++) total += c[i].p;
    double goal = t->u[b] * total;
    chosen = n > 0 ? c[n - 1].id : chosen;
    for (int64_t i = 0; i < n; i++) { seen += c[i].p; if (seen > goal) { chosen = c[i].id; break; } }
  }
  t->ids[b] = chosen;
  if (t->logp) t->logp[b] = (x[chosen] - max) * scale - logf(sum);
}
void ly_sample(float *logits, int64_t B, int64_t V, const int32_t *history, const int32_t *nhist, int64_t maxhist, float repetition_penalty,
               float temperature, int32_t top_k, float top_p, float min_p, const float *u, int32_t *ids, float *logp) {
  Sampler t = {logits, V, history, nhist, maxhist, repetition_penalty, temperature, top_k, top_p, min_p, u, ids, logp};
  ly_parallel(B, sample_body, &t);
}
