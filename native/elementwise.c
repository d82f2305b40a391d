/* Element-wise passes over flat buffers, in pieces of 4096 elements. */
#include "rows.h"
enum { PIECE = 4096, PIECES = 8 };
/* out[n] = a + b; without b a, in another type perhaps; without both `value`. */
typedef struct { const void *a, *b; void *out; float value; int64_t n; int dta, dto; } Pass;

static void pass_body(void *ctx, int64_t item, int thread) {
  const Pass *p = ctx; (void)thread;
  float a[PIECE], b[PIECE];
  for (int64_t at = item * PIECE * PIECES, end = smaller(p->n, at + PIECE * PIECES); at < end; at += PIECE) {
    int64_t n = smaller(PIECE, end - at);
    if (p->a) load_row(a, p->a, at, n, p->dta);
    else for (int64_t i = 0; i < n; i++) a[i] = p->value;
    if (p->b) {
      load_row(b, p->b, at, n, p->dta);
      for (int64_t i = 0; i < n; i++) a[i] += b[i];
    }
    store_row(p->out, at, a, n, p->dto);
  }
}
static void pass(Pass p) { ly_parallel((p.n + PIECE * PIECES - 1) / (PIECE * PIECES), pass_body, &p); }

void ly_fill(void *x, float value, int64_t n, int dt) { pass((Pass){NULL, NULL, x, value, n, dt, dt}); }
void ly_add(const void *a, const void *b, void *out, int64_t n, int dt) { pass((Pass){a, b, out, 0, n, dt, dt}); }
void ly_cast(const void *src, int dts, void *dst, int dtd, int64_t n) { pass((Pass){src, NULL, dst, 0, n, dts, dtd}); }

void ly_copy_rows(const void *src, const int32_t *rows, void *dst, int64_t n, int64_t D, int dt) {
  size_t width = (size_t)D * (dt == LY_F32 ? 4 : 2);
  for (int64_t i = 0; i < n; i++) memcpy((char *)dst + (size_t)i * width, (const char *)src + (size_t)rows[i] * width, width);
}
void ly_add_rows(const void *src, const int32_t *rows, void *dst, int64_t n, int64_t D, int dt) {
  float *x = ly_scratch(-1, 0, (size_t)D * 4);
  for (int64_t i = 0; i < n; i++) { load_row(x, src, i * D, D, dt); add_to_row(dst, rows[i] * D, x, D, dt); }
}

typedef struct { const void *pieces; void *out; int16_t *low; int64_t n, count; int add, dt; } Sum;
static void sum_body(void *ctx, int64_t item, int thread) {
  const Sum *s = ctx; (void)thread;
  float total[PIECE], x[PIECE];
  for (int64_t at = item * PIECE * PIECES, end = smaller(s->n, at + PIECE * PIECES); at < end; at += PIECE) {
    int64_t n = smaller(PIECE, end - at);
    load_row(total, s->pieces, at, n, s->dt);
    for (int64_t k = 1; k < s->count; k++) {
      load_row(x, s->pieces, k * s->n + at, n, s->dt);
      for (int64_t i = 0; i < n; i++) total[i] += x[i];
    }
    bf16 *restrict high = (bf16 *)s->out + at; int16_t *restrict low = s->low + at;
    if (s->add) {
      if (s->low) for (int64_t i = 0; i < n; i++) x[i] = join(high[i], low[i]);
      else load_row(x, s->out, at, n, s->dt);
      for (int64_t i = 0; i < n; i++) total[i] += x[i];
    }
    if (s->low) for (int64_t i = 0; i < n; i++) split(total[i], high + i, low + i);
    else store_row(s->out, at, total, n, s->dt);
  }
}
void ly_sum_pieces(const void *pieces, int64_t n, int64_t count, void *out, int16_t *low, int add, int dt) {
  Sum s = {pieces, out, low, n, count, add, dt};
  ly_parallel((n + PIECE * PIECES - 1) / (PIECE * PIECES), sum_body, &s);
}
