/* Decoding: one new token for each sequence of a batch. Few rows meet all weights, so reading the weights is what it costs:
 * each is read once, straight from where it lies, and what follows a product (residual, rotary angles and the cache,
 * SwiGLU) is done with its results before they leave the core. */
#include "few_rows.h"
#include "bf12.h"

/* x[B,K] made ready, and the matrix that it meets, in so many items. */
typedef struct { int form; const char *W; int64_t ldw; const float *wscale; int64_t N, K, B, items; const char *x; char *made; const void *source; int dt; } Few;

static void prepare_body(void *ctx, int64_t item, int thread) {
  const Few *t = ctx; (void)thread;
  ly_few_prepare(t->form, t->source, t->dt, item * 16, smaller(16, t->B - item * 16), t->B, t->K, t->made);
}
static void few_run(Few *t, int64_t items, ly_body body, void *ctx) {
  t->items = items;
  if (!ly_few_as_is(t->form, t->K)) {
    t->x = t->made = ly_scratch(-1, 9, (size_t)(ly_few_stride(t->form, t->K) * (t->B + 31) / 32 * 32));
    ly_in_order((t->B + 15) / 16, prepare_body, t);
  }
  ly_in_order(items, body, ctx);
}
static Few few_of(const void *x, int dt, const void *W, const float *wscale, int wt, int64_t B, int64_t N, int64_t K) {
  int form = ly_few_form(wt, 1);
  return (Few){.form = form, .W = W, .ldw = ly_few_row(form, K), .wscale = wscale, .N = N, .K = K, .B = B, .x = x, .source = x, .dt = dt};
}

static Ahead rows_at(const Few *t, int64_t row) { return (Ahead){t->W + row * t->ldw, smaller(32, t->N - row) * t->ldw}; }
/* What a thread reads after `item` of its part. */
static Ahead then(const Few *t, int64_t item, int thread, int64_t row) { return item + 1 < ly_part(t->items, thread + 1) ? rows_at(t, row) : (Ahead){0}; }

/* out[B, ld] = x . rows row0 .. row0 + rows - 1 of W[N, K], ld = round16(rows); the scales of int8 rows are in it. */
static void dots(const Few *t, int thread, int64_t row0, int64_t rows, Ahead after, float *out) {
  static const char *asked[MAX_THREADS]; /* by this thread, when it was here last */
  const char *W = t->W + row0 * t->ldw; int64_t ld = round16(rows);
  if (!in_strips(t->form)) after = (Ahead){0}; /* what follows in memory */
  ly_few_dots(t->form, W, t->ldw, rows, t->K, t->x, t->B, asked[thread] == W, after, out, ld);
  asked[thread] = after.at;
  if (t->wscale) for (int64_t b = 0; b < t->B; b++) for (int64_t r = 0; r < rows; r++) out[b * ld + r] *= t->wscale[row0 + r];
}

/* Rows of W that an item takes: about 64 KiB of them, or whole strips, small enough that nobody waits long for a core that is slow. A result does not
 * depend on it. */
static int64_t item_rows(const Few *t, int64_t N) {
  if (in_strips(t->form)) {
    int64_t n = (N / (16 * ly_threads()) + 31) / 32 * 32;
    return n < 32 ? 32 : n > 256 ? 256 : n;
  }
  int64_t n = (int64_t)(64 * 1024) / (t->ldw > 0 ? t->ldw : 1) / 16 * 16;
  return n < 16 ? 16 : n > 64 ? 64 : n;
}

/* ---- y = alpha x W' + R ---- */

typedef struct { Few few; const void *R; void *y; float alpha; int dty; int64_t rows; } Linear;

static void linear_body(void *ctx, int64_t item, int thread) {
  const Linear *t = ctx;
  int64_t row0 = item * t->rows, rows = smaller(t->rows, t->few.N - row0), ld = round16(rows);
  float *out = ly_scratch(thread, 10, (size_t)(t->few.B * ld + ld) * 4), *r = out + t->few.B * ld;
  dots(&t->few, thread, row0, rows, then(&t->few, item, thread, row0 + rows), out);
  for (int64_t b = 0; b < t->few.B; b++) {
    float *o = out + b * ld; int64_t at = b * t->few.N + row0;
    if (t->R) { load_row(r, t->R, at, rows, t->dty); for (int64_t i = 0; i < rows; i++) o[i] = t->alpha * o[i] + r[i]; }
    else if (t->alpha != 1.0f) for (int64_t i = 0; i < rows; i++) o[i] *= t->alpha;
    store_row(t->y, at, o, rows, t->dty);
  }
}
void ly_decode_linear(const void *x, const void *W, const float *wscale, int wt, const void *R, float alpha, void *y, int dty,
                      int64_t B, int64_t N, int64_t K, int dt) {
  Linear t = {.few = few_of(x, dt, W, wscale, wt, B, N, K), .R = R, .y = y, .alpha = alpha, .dty = dty};
  t.rows = item_rows(&t.few, N);
  few_run(&t.few, (N + t.rows - 1) / t.rows, linear_body, &t);
}

/* ---- queries, keys and values: rotated, and the keys and values put where the cache wants them ---- */

typedef struct { Few few; const void *R; const int32_t *past, *rows; const float *cos, *sin; void *q, *k, *v; int64_t maxT; int H, KV, D, dt; } Qkv;

/* Where the key or value of row b of x goes. */
static int64_t cache_place(const Qkv *t, int64_t b, int64_t kv) { return (((t->rows ? t->rows[b] : b) * t->KV + kv) * t->maxT + t->past[b]) * t->D; }

static void qkv_body(void *ctx, int64_t head, int thread) {
  const Qkv *t = ctx; int D = t->D, half = D / 2;
  int64_t ld = round16(D), width = t->few.N, kv = head < t->H ? 0 : (head - t->H) % t->KV;
  float *out = ly_scratch(thread, 10, (size_t)(t->few.B * ld + ld) * 4), *r = out + t->few.B * ld;
  /* Every row writes to another place in memory, which is asked for while the product is made. */
  void *cache = head < t->H ? NULL : head < t->H + t->KV ? t->k : t->v;
  if (cache) for (int64_t b = 0; b < t->few.B; b++) claim_row(cache, cache_place(t, b, kv), D, t->dt);
  dots(&t->few, thread, head * D, D, then(&t->few, head, thread, (head + 1) * D), out);
  for (int64_t b = 0; b < t->few.B; b++) {
    float *x = out + b * ld, *y = x + half;
    if (t->R) { load_row(r, t->R, b * width + head * D, D, t->dt); for (int i = 0; i < D; i++) x[i] += r[i]; }
    if (head < t->H + t->KV) {
      const float *c = t->cos + (int64_t)t->past[b] * half, *s = t->sin + (int64_t)t->past[b] * half;
      for (int i = 0; i < half; i++) { float p = x[i], q = y[i]; x[i] = p * c[i] - q * s[i]; y[i] = q * c[i] + p * s[i]; }
    }
    if (cache) store_row(cache, cache_place(t, b, kv), x, D, t->dt);
    else store_row(t->q, (b * t->H + head) * D, x, D, t->dt);
  }
}
void ly_decode_qkv(const void *x, const void *W, const float *wscale, int wt, const void *R, const int32_t *past, const int32_t *rows, const float *cos, const float *sin,
                   void *q, void *kcache, void *vcache, int64_t B, int64_t maxT, int64_t K, int H, int KV, int D, int dt) {
  int64_t heads = H + 2 * KV;
  Qkv t = {few_of(x, dt, W, wscale, wt, B, heads * D, K), R, past, rows, cos, sin, q, kcache, vcache, maxT, H, KV, D, dt};
  few_run(&t.few, heads, qkv_body, &t);
}

/* ---- SwiGLU of gate and up ---- */

typedef struct { Few few; const void *R; void *y; int64_t F, rows; int dt; } Glu;

static void swiglu_body(void *ctx, int64_t item, int thread) {
  const Glu *t = ctx;
  int64_t f0 = item * t->rows, rows = smaller(t->rows, t->F - f0), ld = round16(rows);
  float *gate = ly_scratch(thread, 10, (size_t)((t->few.B + 1) * ld * 2) * 4), *up = gate + t->few.B * ld, *r = up + t->few.B * ld;
  dots(&t->few, thread, f0, rows, rows_at(&t->few, t->F + f0), gate);
  dots(&t->few, thread, t->F + f0, rows, then(&t->few, item, thread, f0 + rows), up);
  for (int64_t b = 0; b < t->few.B; b++) {
    float *restrict g = gate + b * ld, *restrict u = up + b * ld;
    if (t->R) {
      load_row(r, t->R, b * 2 * t->F + f0, rows, t->dt);
      for (int64_t i = 0; i < rows; i++) g[i] += r[i];
      load_row(r, t->R, b * 2 * t->F + t->F + f0, rows, t->dt);
      for (int64_t i = 0; i < rows; i++) u[i] += r[i];
    }
    for (int64_t i = 0; i < rows; i++) g[i] = g[i] * fast_sigmoid(g[i]) * u[i];
    store_row(t->y, b * t->F + f0, g, rows, t->dt);
  }
}
void ly_decode_swiglu(const void *x, const void *W, const float *wscale, int wt, const void *R, void *y, int64_t B, int64_t F, int64_t K, int dt) {
  Glu t = {.few = few_of(x, dt, W, wscale, wt, B, 2 * F, K), .R = R, .y = y, .F = F, .dt = dt};
  t.rows = item_rows(&t.few, F);
  if (!in_strips(t.few.form)) t.rows = smaller(t.rows, 32);
  few_run(&t.few, (F + t.rows - 1) / t.rows, swiglu_body, &t);
}

/* ---- int8 weights ---- */

typedef struct { const void *W; int8_t *q; float *scale; int64_t N, K; int dt; } Quantize;

static void quantize_body(void *ctx, int64_t row, int thread) {
  const Quantize *t = ctx; int64_t K = t->K, padded = ly_few_row(WIDE, K);
  float *x = ly_scratch(thread, 10, (size_t)padded * 4);
  load_row(x, t->W, row * K, K, t->dt);
  memset(x + K, 0, (size_t)(padded - K) * 4);
  t->scale[row] = ly_to_int8(x, padded, t->q + row * padded);
}
void ly_quantize_rows(const void *W, int8_t *q, float *scale, int64_t N, int64_t K, int dt) {
  Quantize t = {W, q, scale, N, K, dt};
  ly_parallel(N, quantize_body, &t);
}

/* ---- weights in twelve bits ---- */

typedef struct { const bf16 *W; char *out; int64_t N, K, bytes; int64_t wrong[MAX_THREADS]; } Twelve;

static void twelve_body(void *ctx, int64_t strip, int thread) {
  Twelve *t = ctx;
  t->wrong[thread] += !bf12_strip(t->W + strip * STRIP * t->K, smaller(STRIP, t->N - strip * STRIP), t->K, t->out + strip * t->bytes);
}
int64_t ly_bf12_bytes(int64_t N, int64_t K) { return ly_few_form(LY_BF12, 1) == TWELVE ? (N + STRIP - 1) / STRIP * strip_of(K).bytes : 0; }
int64_t ly_bf12_rows(void) {
  if (ly_few_form(LY_BF12, 1) != TWELVE) return 0;
  return ly_few_form(LY_BF16, 1) == STRIPS ? 16 : 3; /* where they are widened, every few rows make them once more */
}
int64_t ly_bf12_pack(const void *W, void *out, int64_t N, int64_t K) {
  Twelve t = {W, out, N, K, strip_of(K).bytes, {0}};
  ly_parallel((N + STRIP - 1) / STRIP, twelve_body, &t);
  int64_t wrong = 0;
  for (int i = 0; i < ly_threads(); i++) wrong += t.wrong[i];
  return wrong;
}
