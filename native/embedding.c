/* Token embedding: rows of a table, and the sum of gradients that goes back to each row. */
#include "rows.h"

void ly_embedding_forward(const int32_t *ids, const void *table, void *out, int64_t N, int64_t D, int dt) {
  ly_copy_rows(table, ids, out, N, D, dt);
}

typedef struct { const int32_t *first, *order; const void *dout; void *dtable; int64_t D; int dt; } Sum;
static void sum_body(void *ctx, int64_t id, int thread) {
  const Sum *s = ctx;
  if (s->first[id] == s->first[id + 1]) return;
  float *sum = ly_scratch(thread, 0, (size_t)s->D * 8), *x = sum + s->D;
  memset(sum, 0, (size_t)s->D * 4);
  for (int32_t i = s->first[id]; i < s->first[id + 1]; i++) {
    load_row(x, s->dout, s->order[i] * s->D, s->D, s->dt);
    for (int64_t d = 0; d < s->D; d++) sum[d] += x[d];
  }
  add_to_row(s->dtable, id * s->D, sum, s->D, s->dt);
}

/* A counting sort brings the positions of each id together, so that every row is summed by one thread, in order. */
void ly_embedding_backward(const int32_t *ids, const void *dout, void *dtable, int64_t N, int64_t D, int64_t V, int dt) {
  int32_t *first = ly_scratch(-1, 1, (size_t)(2 * (V + 1) + N) * 4), *cursor = first + V + 1, *order = cursor + V + 1;
  memset(first, 0, (size_t)(V + 1) * 4);
  for (int64_t i = 0; i < N; i++) first[ids[i] + 1]++;
  for (int64_t v = 0; v < V; v++) first[v + 1] += first[v];
  memcpy(cursor, first, (size_t)(V + 1) * 4);
  for (int64_t i = 0; i < N; i++) order[cursor[ids[i]]++] = (int32_t)i;
  Sum s = {first, order, dout, dtable, D, dt};
  ly_parallel(V, sum_body, &s);
}
