/* Lyceum's CPU engine: every kernel the program can call, in one list.
 *
 * Contract of this seam
 *  - Plain C ABI, called from TypeScript by FFI. A kernel takes pointers, shapes and strides; it owns no memory and
 *    keeps no state between calls (scratch comes from per-thread buffers that grow and are kept).
 *  - Tensors are row-major and contiguous unless a leading dimension (ld*, in elements) is given. Shapes stand in
 *    comments as [rows, cols]. N is the number of tokens of the step, all sequences laid end to end.
 *  - `dt` is the storage type of the activations and parameters of that call (LY_F32 or LY_BF16); reductions,
 *    softmax, statistics and losses are computed and stored in fp32 whatever `dt` is.
 *  - Pointers may be anything 2-byte aligned for bf16 and 4-byte aligned for fp32 / i32; buffers from ly_alloc are
 *    64-byte aligned. Where a name says "accumulate", the kernel adds to what is there.
 *  - Results do not depend on the number of threads: work is cut the same way and reductions are summed in a fixed
 *    order, so a run repeated on the same processor gives the same bytes.
 */
#ifndef LYCEUM_H
#define LYCEUM_H
#include <stddef.h>
#include <stdint.h>

enum { LY_F32 = 0, LY_BF16 = 1, LY_INT8 = 2, LY_BF12 = 3 /* these two: weights of decode.c only */ };

/* ---- engine.c: processor, threads, memory ------------------------------------------------------------------- */

/* The same sources are compiled once per instruction set into native/build/lyceum-ISA.so (portable, avx2, avx512,
 * avx512bf16, amx; portable, neon on arm64). The loader opens portable, asks ly_isa_list, and opens the best one: so
 * no kernel needs a dispatch table, and every kernel, not only the products, is compiled for the processor at hand. */
const char *ly_isa(void);        /* the one this library was compiled for */
const char *ly_isa_list(void);   /* comma-separated: all that this processor and kernel offer, best first */
/* Starts the thread pool. threads <= 0: all cores this process may use. 0, or -1 when this processor (or the kernel, for
 * AMX state) does not offer the library's instruction set. May be called again with another number. The pool is the calling
 * thread's own and goes when that ends, so several threads may compute at once; before this call it is that thread alone. */
int ly_init(int threads);
const char *ly_cpu_name(void);
int ly_threads(void);

void *ly_alloc(size_t bytes);    /* anonymous pages, zero, 64-byte aligned, touched pages count only; NULL: no memory */
void ly_free(void *p, size_t bytes);
void *ly_map_file(const char *path, size_t *bytes); /* read-only mapping; NULL when it cannot be opened or is empty */
void ly_unmap_file(void *p, size_t bytes);
void *ly_map_state(const char *path, size_t bytes);         /* the file's bytes, to be written too; it loses its name. NULL: no room on the disk, or it fails */
void ly_advise_state(void *p, size_t bytes, int needed);    /* 1: read these bytes ahead; 0: they may leave the memory */

/* ---- matmul.c ------------------------------------------------------------------------------------------------ */

/* C[M,N] = alpha * op(A)[M,K] op(B)[K,N] + beta * C (+ R[M,N], same type and ld as C, when R is not NULL).
 * transA: A is stored [K,M]; transB: B is stored [N,K]. beta is 0 or 1; with 0, C is never read.
 * `batch` products, sA/sB/sC elements apart (0: shared). Inputs bf16 or fp32, accumulated in fp32, rounded once.
 * fp32 inputs are multiplied in fp32 always. */
void ly_matmul(int transA, int transB, int64_t M, int64_t N, int64_t K, float alpha,
               const void *A, int dtA, int64_t lda, const void *B, int dtB, int64_t ldb, float beta,
               void *C, int dtC, int64_t ldc, const void *R, int64_t batch, int64_t sA, int64_t sB, int64_t sC);

/* ---- embedding.c --------------------------------------------------------------------------------------------- */

void ly_embedding_forward(const int32_t *ids, const void *table /*[V,D]*/, void *out /*[N,D]*/, int64_t N, int64_t D, int dt);
/* dtable accumulates; rows that occur several times are summed in fp32, in order of position. */
void ly_embedding_backward(const int32_t *ids, const void *dout /*[N,D]*/, void *dtable /*[V,D]*/, int64_t N, int64_t D, int64_t V, int dt);

/* ---- norm.c -------------------------------------------------------------------------------------------------- */

/* h = x + residual (residual and h may be NULL: then h is x); y = h * rsqrt(mean(h^2) + eps) * weight. rstd[N] fp32. */
void ly_rmsnorm_forward(const void *x, const void *residual, const void *weight /*[D]*/, void *h, void *y, float *rstd,
                        int64_t N, int64_t D, float eps, int dt);
/* dx = d(loss)/dh (+ dh_extra when not NULL: the gradient that reaches h by the residual path). dweight accumulates.
 * y: where the forward pass's result is written once more, unless NULL; it may be dy. */
void ly_rmsnorm_backward(const void *dy, const void *h, const void *weight, const float *rstd, const void *dh_extra,
                         void *dx, void *dweight, void *y, int64_t N, int64_t D, int dt);

/* ---- rope.c -------------------------------------------------------------------------------------------------- */

/* In place on the first `heads` heads of each row of x (rows ldx elements apart, heads D wide, halves rotated as in
 * Hugging Face Llama: x[i], x[i + D/2]). cos/sin [maxpos, D/2] fp32, pos[N]. inverse != 0 rotates back (backward). */
void ly_rope(void *x, int64_t ldx, const int32_t *pos, const float *cos, const float *sin, int64_t N, int heads, int D, int inverse, int dt);

/* ---- heads.c: what some models do to queries, keys and values before attention -------------------------------------- */

void ly_add_bias(void *x, const void *bias, int64_t N, int64_t M, int dt);          /* x[N,M] += bias[M], in place */
void ly_bias_backward(const void *dy, void *dbias, int64_t N, int64_t M, int dt);   /* dbias[M] += sum over rows of dy[N,M] */
/* RMSNorm of each head of queries (weight wq[D]) and keys (wk[D]) of qkv[N, (H + 2 KV) D]; values stay as they are. y may be qkv where no gradient is asked
 * for. rstd[N, H + KV] is for the backward pass, in which dx may be dy; dwq and dwk are added to, or NULL both. */
void ly_head_norm_forward(const void *qkv, const void *wq, const void *wk, void *y, float *rstd, int64_t N, int H, int KV, int D, float eps, int dt);
void ly_head_norm_backward(const void *dy, const void *qkv, const void *wq, const void *wk, const float *rstd, void *dx, void *dwq, void *dwk,
                           int64_t N, int H, int KV, int D, int dt);

/* ---- attention.c: causal, packed, grouped-query; the T x T matrix never exists -------------------------------- */

/* qkv[N, (H + 2 KV) D]: queries, keys, values of one token side by side. Sequence s is rows cu[s] .. cu[s+1]-1 and
 * sees itself only. out[N, H D]; lse[H, N] fp32 = log sum exp of the scaled scores. H is a multiple of KV.
 * Queries and keys are first rotated in place, as ly_rope does; the backward pass takes them so, and dqkv are the gradients of
 * what they were before. */
void ly_attention_forward(void *qkv, const int32_t *pos, const float *cos, const float *sin, void *out, float *lse, const int32_t *cu, int nseq, int64_t N,
                          int H, int KV, int D, float scale, int dt);
void ly_attention_backward(const void *dout, const void *qkv, const int32_t *pos, const float *cos, const float *sin, const void *out, const float *lse, void *dqkv,
                           const int32_t *cu, int nseq, int64_t N, int H, int KV, int D, float scale, int dt);

/* ---- cache.c: attention with a KV cache --------------------------------------------------------------------------- */

/* With a KV cache. For sequence b the T new rows of q (q[B*T, ldq], first H*D of a row) sit at positions
 * past[b] .. past[b]+T-1 and see cache rows 0 .. own position. kcache/vcache[B, KV, maxT, D] hold the new rows already. */
void ly_attention_cached(const void *q, int64_t ldq, const void *kcache, const void *vcache, void *out /*[B*T, H D]*/,
                         const int32_t *past, int64_t B, int64_t T, int64_t maxT, int H, int KV, int D, float scale, int dt);
/* Copies the K and V parts of qkv[B*T, (H+2KV)D] to cache rows past[b]..past[b]+T-1. */
void ly_cache_append(const void *qkv, void *kcache, void *vcache, const int32_t *past, int64_t B, int64_t T, int64_t maxT,
                     int H, int KV, int D, int dt);

/* ---- decode.c: one new token for each sequence of a batch; few rows against weights that are read once ---------------- */

/* In all of these: x[B,K] of type dt meets W[N,K] of type wt, dt, LY_INT8 or, where x is bf16, LY_BF12. Rows of int8 are padded with zeros to a multiple of 64 and
 * have one scale each (wscale[N]; else NULL); x is then rounded to int8 in groups of 64, where the processor multiplies bytes.
 * R (may be NULL) is added to the product. A row's result does not depend on B. */

/* y[B,N] = alpha x W' + R; y and R of type dty. */
void ly_decode_linear(const void *x, const void *W, const float *wscale, int wt, const void *R, float alpha, void *y, int dty,
                      int64_t B, int64_t N, int64_t K, int dt);
/* The product is [B, (H + 2 KV) D]. Queries and keys are rotated to position past[b] (tables as for ly_rope); queries go to q[B, H D], keys
 * and values to place past[b] of row rows[b] of the cache (NULL: of row b). */
void ly_decode_qkv(const void *x, const void *W, const float *wscale, int wt, const void *R, const int32_t *past, const int32_t *rows, const float *cos, const float *sin,
                   void *q, void *kcache, void *vcache, int64_t B, int64_t maxT, int64_t K, int H, int KV, int D, int dt);
/* The product is gate and up side by side, [B, 2F]; y[B,F] = silu(gate) * up. */
void ly_decode_swiglu(const void *x, const void *W, const float *wscale, int wt, const void *R, void *y, int64_t B, int64_t F, int64_t K, int dt);
/* W[N,K] of type dt -> q[N, K rounded up to 64] and scale[N]: largest of a row / 127. */
void ly_quantize_rows(const void *W, int8_t *q, float *scale, int64_t N, int64_t K, int dt);
/* W[N,K], bf16 -> the same numbers in about twelve bits each (bf12.h), in so many bytes: 0 where the processor reads them no faster. Products of them are the
 * same bytes as of W. For ly_decode_qkv D, for ly_decode_swiglu F must be a multiple of 32. Returns how many pieces of W do not fit, because too many of their numbers
 * are tiny beside the largest: then `out` is of no use. */
int64_t ly_bf12_bytes(int64_t N, int64_t K);
int64_t ly_bf12_rows(void); /* for how many rows of x, at most, products of them are sure to be done sooner; 0: never */
int64_t ly_bf12_pack(const void *W, void *out, int64_t N, int64_t K);

/* ---- swiglu.c ------------------------------------------------------------------------------------------------ */

/* gu[N, 2F] = gate and up side by side; y[N,F] = silu(gate) * up. */
void ly_swiglu_forward(const void *gu, void *y, int64_t N, int64_t F, int dt);
/* dgu may be gu itself. y: where the forward pass's result is written once more, unless NULL; it may be dy. */
void ly_swiglu_backward(const void *dy, const void *gu, void *dgu, void *y, int64_t N, int64_t F, int dt);

/* ---- logprob.c: hidden states x output matrix -> log p(token), in chunks of rows; full logits never exist ------ */

/* logp[i] = log softmax(hidden[i] . W^T * inv_temperature)[target[i]]; target < 0: row is skipped, logp 0.
 * target >= V: a row of W that another process has; logp is -lse, and its gradient is that of the rows that are here.
 * lse[N] fp32 is kept for the backward pass. entropy[N] (may be NULL) = entropy of the row's distribution. */
void ly_logprob_forward(const void *hidden /*[N,D]*/, const void *W /*[V,D]*/, const int32_t *target, float *logp, float *lse,
                        float *entropy, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt);
/* g[N] = d(loss)/d(logp). dhidden is written (rows skipped: 0), dW accumulates. Either may be NULL. */
void ly_logprob_backward(const void *hidden, const void *W, const int32_t *target, const float *lse, const float *g,
                         void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt);
/* The same for g[N] = d(loss)/d(entropy), with lse and entropy from the forward pass. */
void ly_entropy_backward(const void *hidden, const void *W, const int32_t *target, const float *lse, const float *entropy, const float *g,
                         void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt);
/* Both in one pass, for losses of the form sum_i g[i] * logp[i] with g known beforehand (cross entropy: g = -w). lse may be NULL. */
void ly_logprob_forward_backward(const void *hidden, const void *W, const int32_t *target, const float *g, float *logp, float *lse,
                                 void *dhidden, void *dW, int64_t N, int64_t D, int64_t V, float inv_temperature, int dt);

/* ---- adamw.c: optimizer and its norms -------------------------------------------------------------------------- */

/* Decoupled weight decay (Loshchilov & Hutter 2019), PyTorch's order. g = grad * gscale. c1 = 1 - b1^t, c2 = 1 - b2^t.
 * param, grad [n] of type dt; m, v fp32. In bf16 a master weight is a parameter and low, which brings its bits back: (param << 16) + low
 * (Kalamkar et al. 2020); in fp32 low is NULL. ema (fp32; NULL: none) becomes ema_decay ema + (1 - ema_decay) master. */
void ly_adamw(int64_t n, void *param, int16_t *low, float *m, float *v, float *ema, const void *grad, int dt, double lr, double b1, double b2,
              double eps, double weight_decay, double c1, double c2, double gscale, double ema_decay);
void ly_join_master(const void *param, const int16_t *low, float *master, int64_t n);
void ly_split_master(const float *master, void *param, int16_t *low, int64_t n); /* param: rounded to nearest, ties away from 0 */
double ly_sum_squares(const void *x, int64_t n, int dt); /* fixed order, in fp64; NaN or Inf come through */

/* ---- elementwise.c ------------------------------------------------------------------------------------------- */

void ly_fill(void *x, float value, int64_t n, int dt);
void ly_add(const void *a, const void *b, void *out, int64_t n, int dt);              /* out may be a or b */
void ly_cast(const void *src, int dts, void *dst, int dtd, int64_t n);                /* bf16 by round to nearest even */
/* out[n] = (add ? out : 0) + the sum of pieces[count][n], added in order, in fp32, rounded once; out may be a piece. With low[n], of bf16 only,
 * nothing is rounded: out and low are the halves of fp32 numbers, as ly_split_master has them. */
void ly_sum_pieces(const void *pieces, int64_t n, int64_t count, void *out, int16_t *low, int add, int dt);
void ly_copy_rows(const void *src, const int32_t *rows, void *dst, int64_t n, int64_t D, int dt);      /* dst[i] = src[rows[i]] */
void ly_add_rows(const void *src, const int32_t *rows, void *dst, int64_t n, int64_t D, int dt);       /* dst[rows[i]] += src[i] */

/* ---- random.c: Philox 4x32-10 (Salmon et al. 2011); draw i is a function of (seed, stream, i) ------------------ */

void ly_random_normal(void *out, int64_t n, uint64_t seed, uint64_t stream, float mean, float std, int dt);
void ly_random_uniform(float *out, int64_t n, uint64_t seed, uint64_t stream); /* [0, 1) */

/* ---- bpe.c: byte-level BPE over all cores ------------------------------------------------------------------------ */

/* A tokenizer as the engine sees it; the memory it points to is the caller's. */
typedef struct {
  int64_t pattern;           /* 0 GPT-2, 1 Llama 3, 2 Qwen, 3 Llama 3 where each ideograph is a word */
  const uint8_t *classes;    /* [0x110000]: 1 letter, 2 number, 3 white space, 5 (pattern 3) ideograph, 0 other */
  const int32_t *byte_ids;   /* [256] */
  const int32_t *merges;     /* [n,3]: left, right and merged id, in order of rank */
  const uint64_t *merge_table; /* made of them by ly_bpe_merges */
  int64_t merge_slots;
  const uint8_t *words;      /* with ignore_merges: the vocabulary, text after text; else NULL */
  const uint64_t *word_table;/* made by ly_bpe_words */
  int64_t word_slots;
  int64_t version;           /* another number for every other tokenizer */
} ly_bpe_model;
/* Hash tables with `slots` (a power of two above n) uint64 for merges, twice as many for words; zero before. Ids and ranks are below
 * 2^21. words: id ids[i] has the bytes starts[i] .. starts[i+1]-1. */
void ly_bpe_merges(const int32_t *merges, int64_t n, uint64_t *table, int64_t slots);
void ly_bpe_words(const uint8_t *words, const int64_t *starts, const int32_t *ids, int64_t n, uint64_t *table, int64_t slots);
/* Text i is the UTF-8 bytes starts[i] .. starts[i+1]-2, then a zero byte; 16 readable bytes stand behind the last. All ids go
 * to out[starts[n]], one text after the other; those of text i end before ends[i]. */
void ly_bpe_encode(const void *model, const uint8_t *text, const int64_t *starts, int64_t n, int32_t *out, int64_t *ends);

/* ---- bpe_train.c: the exception to the rule above: a trainer keeps what it counted, until it is closed. ---- */

void *ly_bpe_train_open(int pattern, const uint8_t *classes);
void ly_bpe_train_count(void *trainer, const uint8_t *text, const int64_t *starts, int64_t n); /* texts as for ly_bpe_encode */
int64_t ly_bpe_train_words(void *trainer); /* different words so far */
/* What was counted, for the trainer of another process: the words' bytes end to end (ly_bpe_train_size of them), word i from
 * starts[i] to starts[i+1]-1, and how often each occurred. Of `bytes` 16 more than the words' can be read in ly_bpe_train_add. */
int64_t ly_bpe_train_size(void *trainer);
void ly_bpe_train_list(void *trainer, uint8_t *bytes, int64_t *starts, int64_t *counts);
void ly_bpe_train_add(void *trainer, const uint8_t *bytes, const int64_t *starts, const int64_t *counts, int64_t n);
/* Merges the most frequent pair (ties: the lower ids) until the vocabulary has `wanted` tokens or no pair occurs min_frequency times.
 * The first n tokens are given: token i has the bytes starts[i] .. starts[i+1]-1 of tokens (none: it cannot come of a merge).
 * merges[wanted,3]: left, right, merged id. Returns how many. Call once. */
int64_t ly_bpe_train_merge(void *trainer, const int32_t *byte_ids, const uint8_t *tokens, const int64_t *starts, int64_t n, int64_t wanted,
                           int64_t min_frequency, int32_t *merges);
void ly_bpe_train_close(void *trainer);

/* ---- sample.c ------------------------------------------------------------------------------------------------ */

/* For each of B rows of logits[B,V] (fp32, changed in place): repetition penalty (CTRL; history[B, maxhist] i32, the
 * first nhist[b] valid), temperature, top-k (0: off), top-p (1: off), min-p (0: off), then one draw with u[b] in [0,1).
 * temperature 0: argmax, lowest id of equals. logp[b] (may be NULL) = log probability of the id under
 * softmax(logits / temperature) before any cut (temperature 0: 1); NaN when a logit is NaN, and the id means nothing then. */
void ly_sample(float *logits, int64_t B, int64_t V, const int32_t *history, const int32_t *nhist, int64_t maxhist, float repetition_penalty,
               float temperature, int32_t top_k, float top_p, float min_p, const float *u, int32_t *ids, float *logp);

/* ---- text/: kernels of the corpus. They start no thread and keep no memory, so any number of worker threads may call
 * them at once. Text is UTF-16; classes[65536] says what a unit is (0 space, 1 part of a word, 2 symbol, 3 a word of its own). */

/* text/minhash.c. The units are words, or characters of scripts without spaces; a shingle is `size` (<= 64) units in a row, lower case by
 * fold[65536]; fewer units are one shingle. signature[hashes <= 1024] = least hash of all shingles. Returns how many there are. */
int64_t ly_minhash_signature(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, int size,
                             uint64_t seed, int hashes, uint32_t *signature);
/* out[2n]: the different shingles, ascending, stand in its first elements. Returns how many. */
int64_t ly_minhash_shingles(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, int size,
                            uint64_t *out);
double ly_minhash_jaccard(const uint64_t *a, int64_t na, const uint64_t *b, int64_t nb); /* of ascending sets; 0 of two empty ones */
/* signatures[documents, bands * rows] -> keys[bands, documents]. */
void ly_minhash_bands(const uint32_t *signatures, int64_t documents, int bands, int rows, uint64_t *keys);
/* others[n] are documents: those whose signatures[documents, hashes] agree with the document's in `least` places or more come first. Returns how many. */
int64_t ly_minhash_likely(const uint32_t *signatures, int hashes, int64_t document, int least, uint32_t *others, int64_t n);
/* A sketch of n different shingles: a power of two of words, at most `most` (one itself). Returns how many. */
int64_t ly_minhash_sketch(const uint64_t *shingles, int64_t n, int64_t most, uint64_t *sketch);
/* A document's sketch begins at sketches[at[document]]; sizes[document] shingles. As `likely`: those whose sketches allow the similarity
 * `least`, and those that have none (size 0). */
int64_t ly_minhash_possible(const uint64_t *sketches, const uint32_t *at, const uint32_t *sizes, int64_t most, int64_t document, double least,
                            uint32_t *others, int64_t n);
/* Sorts keys[n]; order[i] = where key i stood; equal keys stay in order. The work arrays hold n elements. */
void ly_minhash_order(uint64_t *keys, uint32_t *order, uint64_t *key_work, uint32_t *order_work, int64_t n);

/* text/suffix.c. Words and symbols as numbers (32-bit hashes) with their places; tokens[n], starts[n]. With fold (may be NULL) in lower
 * case and without the symbols. Returns how many. */
int64_t ly_suffix_tokens(const uint16_t *text, int64_t n, const uint8_t *classes, const uint16_t *fold, uint32_t *tokens, int32_t *starts);
/* Sorts the suffixes of tokens[n] (n < 2^32) by their first `depth` tokens (0: by all): sa[n]; rank[i] = place of the first suffix equal
 * to i in those tokens, equal ones stand by position. work: 24 n + 64 bytes. Returns the number of groups. */
int64_t ly_suffix_sort(const uint32_t *tokens, int64_t n, int64_t depth, uint32_t *sa, uint32_t *rank, void *work);
/* After a sort of depth `length`: marks[i] = 1 where `length` tokens begin that stand elsewhere too without overlap; with keep_first not
 * at the first place nor where they overlap it. room[i]: tokens from i to the end of its document. */
void ly_suffix_repeats(const uint32_t *sa, const uint32_t *rank, int64_t n, int64_t length, const uint32_t *room, int keep_first, uint8_t *marks);
/* hashes[i] of tokens[i .. i+length-1], rolling (Karp & Rabin 1987, modulo 2^64); two salts give independent hashes.
 * Returns how many: max(0, n - length + 1). */
int64_t ly_suffix_windows(const uint32_t *tokens, int64_t n, int64_t length, uint32_t salt, uint64_t *hashes);
#endif
