/* Causal grouped-query attention over packed sequences, in tiles with a running softmax (FlashAttention, Dao et al. 2022;
 * FlashAttention-2 for the backward pass): the T x T matrix never exists. Keys and values are packed once for all tiles (and
 * heads) that meet them; tiles above the diagonal are not computed. Queries and keys are rotated on the way in, and their gradients
 * back on the way out. */
#include "rows.h"
/* Keys that a running softmax takes in at a time; of the backward pass, keys and queries of a tile. */
enum { KEYS = 256, TILE = 64, QUERIES = 128 };
/* So many pieces of work are enough to cut by sequence and key-value head; so many sequences for each thread, to cut by sequence. */
enum { MANY = 32, PLENTY = 8 };

typedef struct {
  char *qkv; const char *out, *dout; char *y; ly_angles angles; float *lse; const int32_t *cu; int64_t N; int H, KV, D, dt, nseq; float scale; size_t size;
  int together; /* heads of one item */
} Attention;
static int64_t width(const Attention *t) { return (int64_t)(t->H + 2 * t->KV) * t->D; }
static const char *at(const Attention *t, const char *base, int64_t row, int64_t ld, int64_t column) { return base + (size_t)(row * ld + column) * t->size; }
static int64_t whole(int64_t n, int64_t step) { return (n + step - 1) & -step; } /* step: a power of two */
/* A row of probabilities in the storage type, so that the product that follows runs in it. */
static void put(const Attention *t, char *tile, int64_t at, const float *x, int64_t n) { store_row(tile, at, x, n, t->dt); }

static void rotate(const Attention *t, int64_t begin, int64_t T, int head, int heads) {
  ly_rotate(t->qkv + (size_t)(begin * width(t) + (int64_t)head * t->D) * t->size, width(t), &t->angles, begin, T, heads, t->D, 1, t->dt);
}
static void keys_body(void *ctx, int64_t s, int thread) {
  const Attention *t = ctx; (void)thread;
  rotate(t, t->cu[s], t->cu[s + 1] - t->cu[s], t->H, t->KV);
}

/* How many rows to read of a block that begins at row `row` of a sequence of T. Whole blocks are: what lies behind the sequence is multiplied and forgotten,
 * whatever another thread is making of it. Only behind the last of all sequences lies nothing. */
static int64_t whole_rows(const Attention *t, int64_t begin, int64_t row, int64_t T, int64_t rows) { return begin + row + rows <= t->N ? rows : smaller(rows, T - row); }

/* One item: a sequence and some of its heads; from the top down as many queries as a product has rows, for each the keys up to the diagonal. */
static void forward_body(void *ctx, int64_t item, int thread) {
  const Attention *t = ctx;
  int per = t->together, items = t->H / per, first = (int)(item % items) * per, group = t->H / t->KV, D = t->D;
  ly_block block = ly_gemm_block(t->dt);
  int64_t begin = t->cu[item / items], T = t->cu[item / items + 1] - begin, ld = width(t), tile = block.rows;
  rotate(t, begin, T, first, per);
  if (per >= group) rotate(t, begin, T, t->H + first / group, per / group);
  float *s = ly_scratch(thread, 5, (size_t)(tile * (KEYS * 2 + D)) * 4), *o = s + tile * KEYS, max[TILE], sum[TILE], scale = t->scale * LOG2E;
  char *p = (char *)(o + tile * D);
  ly_packed k = {0}, v = {0};
  for (int head = first; head < first + per; head++) {
    if (head == first || head % group == 0) {
      k = ly_pack(thread, 6, T, D, at(t, t->qkv, begin, ld, (int64_t)(t->H + head / group) * D), 1, ld, t->dt);
      v = ly_pack(thread, 7, D, T, at(t, t->qkv, begin, ld, (int64_t)(t->H + t->KV + head / group) * D), ld, 1, t->dt);
    }
    for (int64_t i0 = 0; i0 < T; i0 += tile) {
      int64_t rows = smaller(tile, T - i0), lines = whole_rows(t, begin, i0, T, tile);
      for (int64_t i = 0; i < rows; i++) claim_row(t->y, (begin + i0 + i) * t->H * D + (int64_t)head * D, D, t->dt);
      for (int64_t j0 = 0; j0 < i0 + rows; j0 += KEYS) {
        int64_t keys = smaller(KEYS, smaller(whole(i0 + rows, 32), T) - j0), padded = whole(keys, 32);
        ly_gemm(thread, lines, whole(keys, block.columns), D, 1, at(t, t->qkv, begin + i0, ld, (int64_t)head * D), ld, 1, &k, j0, 0, s, KEYS, 0);
        for (int64_t i = 0; i < rows; i++) {
          float *x = s + i * KEYS;
          int64_t seen = i0 + i - j0 + 1;
          for (int64_t j = seen < 0 ? 0 : seen; j < padded; j++) x[j] = -INFINITY;
          float m = row_max(x, padded);
          if (j0 == 0) { max[i] = m; sum[i] = exp2_row(x, x, padded, scale, m * scale, 1); }
          else if (seen <= 0) memset(x, 0, (size_t)padded * 4);
          else {
            m = m > max[i] ? m : max[i];
            float keep = fast_exp2f((max[i] - m) * scale);
            for (int d = 0; d < D; d++) o[i * D + d] *= keep;
            sum[i] = sum[i] * keep + exp2_row(x, x, padded, scale, m * scale, 1);
            max[i] = m;
          }
          put(t, p, i * KEYS, x, padded);
        }
        /* Past the last key that the last query sees, probabilities are zeros. */
        ly_gemm(thread, tile, D, whole(smaller(keys, i0 + rows - j0), block.step), 1, p, KEYS, 1, &v, 0, j0, o, D, j0 > 0);
      }
      for (int64_t i = 0; i < rows; i++) {
        float inverse = 1.0f / sum[i];
        for (int d = 0; d < D; d++) o[i * D + d] *= inverse;
        store_row(t->y, (begin + i0 + i) * t->H * D + (int64_t)head * D, o + i * D, D, t->dt);
        t->lse[(int64_t)head * t->N + begin + i0 + i] = max[i] * t->scale + logf(sum[i]);
      }
    }
  }
}
void ly_attention_forward(void *qkv, const int32_t *pos, const float *cos, const float *sin, void *out, float *lse, const int32_t *cu, int nseq, int64_t N, int H, int KV, int D, float scale, int dt) {
  Attention t = {.qkv = qkv, .angles = {pos, cos, sin}, .y = out, .lse = lse, .cu = cu, .N = N, .H = H, .KV = KV, .D = D, .dt = dt, .nseq = nseq, .scale = scale, .size = dt == LY_F32 ? 4 : 2};
  /* Many sequences: an item has all heads of one, whose rows then lie together. Few and long ones are rather cut into heads, though each packs the keys
   * again: then there is something for all threads. */
  t.together = nseq >= PLENTY * ly_threads() ? H : (int64_t)nseq * KV >= MANY ? H / KV : 1;
  if (t.together < H / KV) ly_in_order(nseq, keys_body, &t); /* several items share them */
  ly_parallel((int64_t)nseq * (H / t.together), forward_body, &t);
}

/* n scores x of a key and as many of dP (n a multiple of 16) become probabilities and dS; the first `unseen` queries come before the key. */
static void gradients_of_scores(float *restrict x, float *restrict g, const float *restrict lse, const float *restrict delta, int64_t unseen, int64_t n, float scale) {
  for (int64_t i = 0; i < unseen; i++) x[i] = -INFINITY;
#ifdef __AVX512F__
  for (int64_t i = 0; i < n; i += 16) {
    __m512 e = exp2_lanes(_mm512_fmsub_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(scale * LOG2E), _mm512_loadu_ps(lse + i)));
    _mm512_storeu_ps(x + i, e);
    _mm512_storeu_ps(g + i, _mm512_mul_ps(_mm512_mul_ps(e, _mm512_set1_ps(scale)), _mm512_sub_ps(_mm512_loadu_ps(g + i), _mm512_loadu_ps(delta + i))));
  }
#else
  for (int64_t i = 0; i < n; i++) { float e = fast_exp2f(x[i] * (scale * LOG2E) - lse[i]); x[i] = e; g[i] = e * (g[i] - delta[i]) * scale; }
#endif
}

/* One item: a sequence and some of its key-value heads, each with all its query heads, so that dK and dV have one writer. Tiles stand
 * upright (a row is a key), so that four of the five products read them as they lie:
 *   P' = exp(K Q' scale - lse);  dV += P' dO;  dS' = P' (V dO' - rowsum(dO O)) scale;  dK += dS' Q;  dQ += dS K */
static void backward_body(void *ctx, int64_t item, int thread) {
  const Attention *t = ctx;
  int group = t->H / t->KV, items = t->H / t->together, firstHead = (int)(item % items) * t->together, D = t->D, dt = t->dt;
  ly_block block = ly_gemm_block(dt);
  int64_t begin = t->cu[item / items], T = t->cu[item / items + 1] - begin, ld = width(t), lo = (int64_t)t->H * D, tile = TILE / block.rows * block.rows;
  int64_t Tp = T + QUERIES, size = (T + TILE) * D; /* with room for whole blocks */
  float *dq = ly_scratch(thread, 11, (size_t)(3 * size + 2 * Tp + 2 * D) * 4), *dk = dq + size, *dv = dk + size, *delta = dv + size, *lse = delta + Tp, *a = lse + Tp, *b = a + D;
  float *s = ly_scratch(thread, 5, (size_t)(TILE * QUERIES * 4) * 4), *dp = s + TILE * QUERIES;
  char *p = (char *)(dp + TILE * QUERIES), *ds = p + TILE * QUERIES * t->size;
  ly_packed keys = {0};
  for (int head = firstHead; head < firstHead + t->together; head++) {
    int64_t kvHead = head / group;
    const char *k = at(t, t->qkv, begin, ld, (t->H + kvHead) * D), *v = at(t, t->qkv, begin, ld, (t->H + t->KV + kvHead) * D);
    if (head % group == 0) {
      keys = ly_pack(thread, 6, D, T, k, ld, 1, dt);
      memset(dk, 0, (size_t)(T * D) * 4); memset(dv, 0, (size_t)(T * D) * 4);
    }
    const char *q = at(t, t->qkv, begin, ld, (int64_t)head * D), *dout = at(t, t->dout, begin, lo, (int64_t)head * D);
    memset(dq, 0, (size_t)(T * D) * 4);
    for (int64_t i = 0; i < T; i++) {
      int64_t row = (begin + i) * lo + (int64_t)head * D; float dot = 0;
      fetch_row(t->dout, row + 8 * lo, D, dt); fetch_row(t->out, row + 8 * lo, D, dt);
      load_row(a, t->dout, row, D, dt); load_row(b, t->out, row, D, dt);
      for (int d = 0; d < D; d++) dot += a[d] * b[d];
      delta[i] = dot;
      lse[i] = LOG2E * t->lse[(int64_t)head * t->N + begin + i];
    }
    for (int64_t i = T; i < Tp; i++) { delta[i] = 0; lse[i] = INFINITY; } /* no query: no probability */
    ly_packed q_columns = ly_pack(thread, 7, T, D, q, 1, ld, dt), q_rows = ly_pack(thread, 8, D, T, q, ld, 1, dt);
    ly_packed dout_columns = ly_pack(thread, 9, T, D, dout, 1, lo, dt), dout_rows = ly_pack(thread, 10, D, T, dout, lo, 1, dt);
    for (int64_t j0 = 0; j0 < T; j0 += tile) {
      int64_t rows = smaller(tile, T - j0), depth = whole(rows, block.step);
      for (int64_t i0 = j0 / 32 * 32; i0 < T; i0 += QUERIES) {
        int64_t cols = smaller(QUERIES, T - i0), across = (cols + block.rows - 1) / block.rows * block.rows;
        for (int64_t r = 0; r < rows; r += block.rows) {
          int64_t lines = smaller(block.rows, rows - r), skip = j0 + r > i0 ? smaller((j0 + r - i0) / 32 * 32, cols) : 0, seen = cols - skip; /* of the queries from i0 on */
          int64_t read = whole_rows(t, begin, j0 + r, T, block.rows), columns = whole(seen, block.columns), padded = whole(columns, 16);
          float *x = s + r * QUERIES + skip, *g = dp + r * QUERIES + skip;
          ly_gemm(thread, read, columns, D, 1, at(t, k, j0 + r, ld, 0), ld, 1, &q_columns, i0 + skip, 0, x, QUERIES, 0);
          ly_gemm(thread, read, columns, D, 1, at(t, v, j0 + r, ld, 0), ld, 1, &dout_columns, i0 + skip, 0, g, QUERIES, 0);
          for (int64_t j = r; j < r + lines; j++, x += QUERIES, g += QUERIES) {
            gradients_of_scores(x, g, lse + i0 + skip, delta + i0 + skip, smaller(seen, j0 + j - i0 - skip), padded, t->scale);
            put(t, p, j * QUERIES + skip, x, padded); put(t, ds, j * QUERIES + skip, g, padded);
            memset(ds + (size_t)(j * QUERIES) * t->size, 0, (size_t)skip * t->size); /* of the queries before the diagonal no gradient comes */
          }
          /* Up to the query that is these keys' first, there are zeros. */
          int64_t first = skip + (j0 + r - i0 > skip ? (j0 + r - i0 - skip) / block.step * block.step : 0), met = whole(cols - first, block.step);
          ly_gemm(thread, block.rows, D, met, 1, at(t, p, r, QUERIES, first), QUERIES, 1, &dout_rows, 0, i0 + first, dv + (j0 + r) * D, D, 1);
          ly_gemm(thread, block.rows, D, met, 1, at(t, ds, r, QUERIES, first), QUERIES, 1, &q_rows, 0, i0 + first, dk + (j0 + r) * D, D, 1);
        }
        memset(ds + (size_t)(rows * QUERIES) * t->size, 0, (size_t)((depth - rows) * QUERIES) * t->size);
        /* Of a block that goes on behind the last query those rows come out too; one in the middle may not run into the next. */
        ly_gemm(thread, cols < QUERIES && across <= QUERIES ? across : cols, D, depth, 1, ds, 1, QUERIES, &keys, 0, j0, dq + i0 * D, D, 1);
      }
    }
    ly_rotate(dq, D, &t->angles, begin, T, 1, D, -1, LY_F32);
    for (int64_t i = 0; i < T; i++) {
      int64_t row = (begin + i) * ld + (int64_t)head * D;
      claim_row(t->y, row + 8 * ld, D, dt);
      store_row(t->y, row, dq + i * D, D, dt);
    }
    if ((head + 1) % group != 0) continue;
    ly_rotate(dk, D, &t->angles, begin, T, 1, D, -1, LY_F32);
    for (int64_t i = 0; i < T; i++) {
      int64_t row = (begin + i) * ld + (t->H + kvHead) * D, values = row + (int64_t)t->KV * D;
      claim_row(t->y, row + 8 * ld, D, dt); claim_row(t->y, values + 8 * ld, D, dt);
      store_row(t->y, row, dk + i * D, D, dt);
      store_row(t->y, values, dv + i * D, D, dt);
    }
  }
}
void ly_attention_backward(const void *dout, const void *qkv, const int32_t *pos, const float *cos, const float *sin, const void *out, const float *lse, void *dqkv, const int32_t *cu, int nseq, int64_t N, int H, int KV, int D, float scale, int dt) {
  Attention t = {.qkv = (char *)qkv, .angles = {pos, cos, sin}, .out = out, .dout = dout, .y = dqkv, .lse = (float *)lse, .cu = cu, .N = N, .H = H, .KV = KV, .D = D, .dt = dt, .nseq = nseq, .scale = scale, .size = dt == LY_F32 ? 4 : 2};
  t.together = nseq >= PLENTY * ly_threads() ? H : H / KV;
  ly_parallel((int64_t)nseq * (H / t.together), backward_body, &t);
}
