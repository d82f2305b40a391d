/* Dot products of a few rows x with the rows of a matrix W[N,K], which are read once, from where they lie. */
#ifndef LYCEUM_FEW_ROWS_H
#define LYCEUM_FEW_ROWS_H
#include "rows.h"

/* A register, as fp32 and as words. */
#if defined(LY_ISA_AVX512) || defined(LY_ISA_AVX512BF16) || defined(LY_ISA_AMX)
#define LANES 16
#elif defined(LY_ISA_AVX2)
#define LANES 8
#else
#define LANES 4
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(LANES * 4), aligned(2), may_alias));

/* How W is stored and x prepared for it:
 *   FULL   fp32 and fp32
 *   HALF   bf16 and bf16, multiplied as pairs by vdpbf16ps
 *   SPLIT  bf16, and x in fp32: the even numbers of a step, then the odd ones
 *   STRIPS bf16 and bf16, 32 rows of W at a time: on AMX, or by vdpbf16ps
 *   TWELVE W in twelve bits (bf12.h), and x as for STRIPS, where there are none as for SPLIT: rows are asked for from the beginning of a strip on
 *   BYTES  int8 and int8 in groups of 64, multiplied by vpdpbusd; x has more numbers behind each row
 *   WIDE   int8 and fp32 */
typedef enum { FULL, HALF, SPLIT, STRIPS, TWELVE, BYTES, WIDE } Form;
enum { GROUP = 64 };

/* The form for rows of this type; strips: whether they may be taken 32 at a time, where that is offered. */
int ly_few_form(int rows, int strips);
static inline int in_strips(int form) { return form == STRIPS || form == TWELVE; }
int64_t ly_few_row(int form, int64_t K);     /* bytes of a row of W */
int64_t ly_few_stride(int form, int64_t K);  /* bytes of a prepared row of x; on AMX for 32 rows at a time */
int ly_few_as_is(int form, int64_t K);       /* whether rows of x can be used as they are */
/* Rows first .. first + rows - 1 of source[B,K]; x is the beginning of all. In strips, first is a multiple of 16. */
void ly_few_prepare(int form, const void *source, int dt, int64_t first, int64_t rows, int64_t B, int64_t K, char *x);
/* out[b * ld + r] = dot of row r of W and row b of x, for all B; ldw in bytes; ld >= rows rounded up to 16, and what lies
 * between is overwritten. A result does not depend on B nor on rows. `after`: what is wanted next, and asked for on the way: in strips in the order of memory, else row by row
 * (NULL: what follows in memory). `asked`: the first strip was, before. */
typedef struct { const char *at; int64_t bytes; } Ahead;
void ly_few_dots(int form, const void *W, int64_t ldw, int64_t rows, int64_t K, const char *x, int64_t B, int asked, Ahead after, float *out, int64_t ld);
/* q = x / scale to the nearest, where the scale, which is returned, is the largest of x / 127; NaN, where a number is not finite. */
float ly_to_int8(const float *x, int64_t n, int8_t *q);
static inline int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }
#endif
