/* What the kernel files share: the thread pool, scratch, bf16 conversion, a fast exp, and the serial matrix product. */
#ifndef LYCEUM_INTERNAL_H
#define LYCEUM_INTERNAL_H
#include "lyceum.h"
#include <math.h>
#include <string.h>

/* engine.c: runs body(ctx, i, thread) for i in 0..n-1 over the pool; returns when all are done. Each thread has a part of the items, the same share of
 * them in every call; a thread that has done its own takes from the others', so a body must only write what belongs to its i. Not to be nested. Every other call goes through
 * the parts from the last item to the first: what was written last is still in the cache, and read first. */
typedef void (*ly_body)(void *ctx, int64_t i, int thread);
enum { MAX_THREADS = 256 };
void ly_parallel(int64_t n, ly_body body, void *ctx);
/* The same from the first item on, for what reads ahead, and for what a kernel makes ready before its work: the next call's direction stays as it was. */
void ly_in_order(int64_t n, ly_body body, void *ctx);
int64_t ly_part(int64_t n, int thread); /* the first item of a thread's part of n; the part ends where the next one begins */
/* A buffer of at least `bytes`, 64-byte aligned, kept for this (thread, slot); contents undefined. thread is the
 * body's argument; slots 0-15 are for kernels, 16-31 for the matrix product. thread -1: the caller, outside a body. */
void *ly_scratch(int thread, int slot, size_t bytes);

/* matmul.c: products on the calling thread (inside a body), of a B that was packed beforehand and may serve several of them.
 * Strides are free: element (i,k) of A is A[i*ars + k*acs], (k,j) of B is B[k*brs + j*bcs]; both of type dt. */
typedef struct { const char *panels; size_t panel; int64_t K; int dt; } ly_packed;
/* B[K,N] into the scratch of this (thread, slot), to be read until that is asked for again. */
ly_packed ly_pack(int thread, int slot, int64_t N, int64_t K, const void *B, int64_t brs, int64_t bcs, int dt);
/* C[M,N] (+)= alpha A[M,K] B[k0 .. k0+K-1, n0 .. n0+N-1]; C fp32, rows ldc apart. n0 is a multiple of 32; k0, and K where it does
 * not reach the end of B, are multiples of the block's step. */
void ly_gemm(int thread, int64_t M, int64_t N, int64_t K, float alpha, const void *A, int64_t ars, int64_t acs,
             const ly_packed *B, int64_t n0, int64_t k0, float *C, int64_t ldc, int accumulate);
/* What products are made of: so many rows by so many columns, and steps of k. B is packed in whole blocks, with zeros past its end, so N and K may be
 * rounded up to them where A and C have room, and A numbers. Whole blocks go the shortest way. */
typedef struct { int64_t rows, columns, step; } ly_block;
ly_block ly_gemm_block(int dt);

/* rope.c: on the calling thread, ly_rope of N rows, whose positions are pos[row] and on. sign -1 rotates back. */
typedef struct { const int32_t *pos; const float *cos, *sin; } ly_angles;
void ly_rotate(void *x, int64_t ldx, const ly_angles *angles, int64_t row, int64_t N, int heads, int D, float sign, int dt);

typedef uint16_t bf16;
static inline float bf16_to_f32(bf16 x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline bf16 f32_to_bf16(float f) { /* round to nearest even; NaN stays NaN */
  uint32_t u; memcpy(&u, &f, 4);
  uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (bf16)(((u & 0x7fffffffu) > 0x7f800000u) ? ((u >> 16) | 0x40u) : r);
}
/* exp to about 1 ulp of fp32 for numbers up to 87, in a form that compilers vectorise: 0 instead of subnormal numbers, NaN stays NaN. */
static inline float fast_expf(float x) {
  float xc = x < -88.0f ? -88.0f : x;
  float n = __builtin_rintf(xc * 1.44269504088896341f);
  float r = __builtin_fmaf(n, -0.693359375f, xc);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f; p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23; float s;
  memcpy(&s, &bits, 4);
  return p * s;
}
static inline float fast_sigmoid(float x) {
  float s = 1.0f / (1.0f + fast_expf(x < -87.0f ? 87.0f : -x));
  return x < -87.0f ? 0 : s;
}
/* 2^t for t up to 127, in fewer steps: for a softmax, whose scale takes the factor log2(e) in. As good as t itself is, whose rounding is that of
 * (x - max) scale; the polynomial is within 2e-9. */
#define LOG2E 1.44269504088896341f
static inline float fast_exp2f(float t) {
  float c = t < -127.0f ? -127.0f : t, n = __builtin_rintf(c), r = c - n;
  float p = 1.5353360271e-4f;
  p = p * r + 1.3398874872e-3f; p = p * r + 9.6184373679e-3f; p = p * r + 5.5503324697e-2f;
  p = p * r + 2.4022647913e-1f; p = p * r + 6.9314720286e-1f; p = p * r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23; float s;
  memcpy(&s, &bits, 4);
  return p * s;
}
#endif
