/**
 * Device: the seam behind which an engine computes. One method per kernel, fused to the grain of a transformer.
 *
 * Contract: native/lyceum.h, whose prototypes these methods are (shapes, types and formulas are documented there).
 * A kernel takes addresses, shapes and strides; it owns no memory and remembers nothing between calls. Results do
 * not depend on the number of threads.
 */

/** An address in the device's memory, as a number (addresses fit 53 bits); 0 is NULL. */
export type Ptr = number;

/** Storage types of tensors; the numbers are those of native/lyceum.h. */
export const F32 = 0;
export const BF16 = 1;
export type DType = typeof F32 | typeof BF16;
/** Of weights that generation reads, besides: int8 with a scale for each row, and bf16 without loss in about twelve bits. */
export const INT8 = 2;
export const BF12 = 3;
export type WeightType = DType | typeof INT8 | typeof BF12;
export const dtypeBytes = (dtype: DType): number => (dtype === F32 ? 4 : 2);

export interface Device {
  readonly isa: string;
  readonly cpuName: string;
  readonly threads: number;

  alloc(bytes: number): Ptr;
  free(p: Ptr, bytes: number): void;
  mapFile(path: string): { ptr: Ptr; bytes: number };
  unmapFile(p: Ptr, bytes: number): void;
  mapState(path: string, bytes: number): Ptr;
  adviseState(p: Ptr, bytes: number, needed: number): void;
  /** A view of device memory without a copy; valid until the memory is freed. */
  bytes(p: Ptr, length: number): Uint8Array;
  f32(p: Ptr, length: number): Float32Array;
  i32(p: Ptr, length: number): Int32Array;
  u16(p: Ptr, length: number): Uint16Array;

  // biome-ignore format: one line a kernel, as in the header
  matmul(transA: number, transB: number, M: number, N: number, K: number, alpha: number, A: Ptr, dtA: DType, lda: number,
    B: Ptr, dtB: DType, ldb: number, beta: number, C: Ptr, dtC: DType, ldc: number, R: Ptr, batch: number, sA: number, sB: number, sC: number): void;
  embeddingForward(ids: Ptr, table: Ptr, out: Ptr, N: number, D: number, dt: DType): void;
  embeddingBackward(ids: Ptr, dout: Ptr, dtable: Ptr, N: number, D: number, V: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  rmsnormForward(x: Ptr, residual: Ptr, weight: Ptr, h: Ptr, y: Ptr, rstd: Ptr, N: number, D: number, eps: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  rmsnormBackward(dy: Ptr, h: Ptr, weight: Ptr, rstd: Ptr, dhExtra: Ptr, dx: Ptr, dweight: Ptr, y: Ptr, N: number, D: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  rope(x: Ptr, ldx: number, pos: Ptr, cos: Ptr, sin: Ptr, N: number, heads: number, D: number, inverse: number, dt: DType): void;
  addBias(x: Ptr, bias: Ptr, N: number, M: number, dt: DType): void;
  biasBackward(dy: Ptr, dbias: Ptr, N: number, M: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  headNormForward(qkv: Ptr, wq: Ptr, wk: Ptr, y: Ptr, rstd: Ptr, N: number, H: number, KV: number, D: number, eps: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  headNormBackward(dy: Ptr, qkv: Ptr, wq: Ptr, wk: Ptr, rstd: Ptr, dx: Ptr, dwq: Ptr, dwk: Ptr, N: number, H: number, KV: number, D: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  attentionForward(qkv: Ptr, pos: Ptr, cos: Ptr, sin: Ptr, out: Ptr, lse: Ptr, cu: Ptr, nseq: number, N: number, H: number, KV: number, D: number, scale: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  attentionBackward(dout: Ptr, qkv: Ptr, pos: Ptr, cos: Ptr, sin: Ptr, out: Ptr, lse: Ptr, dqkv: Ptr, cu: Ptr, nseq: number, N: number, H: number, KV: number, D: number, scale: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  attentionCached(q: Ptr, ldq: number, kcache: Ptr, vcache: Ptr, out: Ptr, past: Ptr, B: number, T: number, maxT: number, H: number, KV: number, D: number, scale: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  cacheAppend(qkv: Ptr, kcache: Ptr, vcache: Ptr, past: Ptr, B: number, T: number, maxT: number, H: number, KV: number, D: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  decodeLinear(x: Ptr, W: Ptr, wscale: Ptr, wt: WeightType, R: Ptr, alpha: number, y: Ptr, dty: DType, B: number, N: number, K: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  decodeQkv(x: Ptr, W: Ptr, wscale: Ptr, wt: WeightType, R: Ptr, past: Ptr, rows: Ptr, cos: Ptr, sin: Ptr, q: Ptr, kcache: Ptr, vcache: Ptr, B: number, maxT: number, K: number, H: number, KV: number, D: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  decodeSwiglu(x: Ptr, W: Ptr, wscale: Ptr, wt: WeightType, R: Ptr, y: Ptr, B: number, F: number, K: number, dt: DType): void;
  bf12Bytes(N: number, K: number): number;
  bf12Rows(): number;
  bf12Pack(W: Ptr, out: Ptr, N: number, K: number): number;
  quantizeRows(W: Ptr, q: Ptr, scale: Ptr, N: number, K: number, dt: DType): void;
  swigluForward(gu: Ptr, y: Ptr, N: number, F: number, dt: DType): void;
  swigluBackward(dy: Ptr, gu: Ptr, dgu: Ptr, y: Ptr, N: number, F: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  logprobForward(hidden: Ptr, W: Ptr, target: Ptr, logp: Ptr, lse: Ptr, entropy: Ptr, N: number, D: number, V: number, invTemperature: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  logprobBackward(hidden: Ptr, W: Ptr, target: Ptr, lse: Ptr, g: Ptr, dhidden: Ptr, dW: Ptr, N: number, D: number, V: number, invTemperature: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  entropyBackward(hidden: Ptr, W: Ptr, target: Ptr, lse: Ptr, entropy: Ptr, g: Ptr, dhidden: Ptr, dW: Ptr, N: number, D: number, V: number, invTemperature: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  logprobForwardBackward(hidden: Ptr, W: Ptr, target: Ptr, g: Ptr, logp: Ptr, lse: Ptr, dhidden: Ptr, dW: Ptr, N: number, D: number, V: number, invTemperature: number, dt: DType): void;
  // biome-ignore format: one line a kernel
  adamw(n: number, param: Ptr, low: Ptr, m: Ptr, v: Ptr, ema: Ptr, grad: Ptr, dt: DType, lr: number, b1: number, b2: number, eps: number, weightDecay: number, c1: number, c2: number, gscale: number, emaDecay: number): void;
  joinMaster(param: Ptr, low: Ptr, master: Ptr, n: number): void;
  splitMaster(master: Ptr, param: Ptr, low: Ptr, n: number): void;
  sumSquares(x: Ptr, n: number, dt: DType): number;
  fill(x: Ptr, value: number, n: number, dt: DType): void;
  add(a: Ptr, b: Ptr, out: Ptr, n: number, dt: DType): void;
  cast(src: Ptr, dts: DType, dst: Ptr, dtd: DType, n: number): void;
  sumPieces(pieces: Ptr, n: number, count: number, out: Ptr, low: Ptr, add: number, dt: DType): void;
  copyRows(src: Ptr, rows: Ptr, dst: Ptr, n: number, D: number, dt: DType): void;
  addRows(src: Ptr, rows: Ptr, dst: Ptr, n: number, D: number, dt: DType): void;
  randomNormal(out: Ptr, n: number, seed: number, stream: number, mean: number, std: number, dt: DType): void;
  randomUniform(out: Ptr, n: number, seed: number, stream: number): void;
  bpeEncode(model: Ptr, text: Ptr, starts: Ptr, n: number, out: Ptr, ends: Ptr): void;
  bpeMerges(merges: Ptr, n: number, table: Ptr, slots: number): void;
  bpeWords(words: Ptr, starts: Ptr, ids: Ptr, n: number, table: Ptr, slots: number): void;
  bpeTrainOpen(pattern: number, classes: Ptr): Ptr;
  bpeTrainCount(trainer: Ptr, text: Ptr, starts: Ptr, n: number): void;
  bpeTrainWords(trainer: Ptr): number;
  bpeTrainSize(trainer: Ptr): number;
  bpeTrainList(trainer: Ptr, bytes: Ptr, starts: Ptr, counts: Ptr): void;
  bpeTrainAdd(trainer: Ptr, bytes: Ptr, starts: Ptr, counts: Ptr, n: number): void;
  // biome-ignore format: one line a kernel
  bpeTrainMerge(trainer: Ptr, byteIds: Ptr, tokens: Ptr, starts: Ptr, n: number, wanted: number, minFrequency: number, merges: Ptr): number;
  bpeTrainClose(trainer: Ptr): void;
  // biome-ignore format: one line a kernel
  sample(logits: Ptr, B: number, V: number, history: Ptr, nhist: Ptr, maxhist: number, repetitionPenalty: number, temperature: number, topK: number, topP: number, minP: number, u: Ptr, ids: Ptr, logp: Ptr): void;
}
