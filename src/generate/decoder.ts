/**
 * Decoding without a tape: one token for each row of a batch, through kernels made for few rows (native/decode.c), in buffers that
 * live as long as the decoder. A step reads every weight once, whatever the batch; a row's result does not depend on the others.
 *
 *   per layer:  q = rotate(Wqkv norm(h)), keys and values to the cache;   h = h + Wo attention(q);   h = h + Wdown swiglu(Wgate-up norm(h))
 *               (Qwen2: Wqkv norm(h) + bias; Qwen3: queries and keys are normed before they are rotated, which takes kernels of their own)
 *   logits = Wout norm(h)
 */
import { type Device, type DType, dtypeBytes, F32, type Ptr, type WeightType } from "../device/device.js";
import type { KvCache } from "../nn/kv-cache.js";
import type { Llama } from "../nn/llama.js";
import { dtypeOf, type Parameter } from "../tensor/tensor.js";
import type { ReadyWeights } from "./weights.js";

/** Prompts up to this length go through these kernels too; of a long one the training kernels make better use. */
export const SHORT = 64;
/** Rows of prompts that are worked on at a time. */
const CHUNK = 256;

/** Whether the model can be decoded here: all of it is this process's. */
export const isWhole = ({ grid, head }: Llama): boolean => grid.tensor.size * grid.pipeline.size === 1 && head === "lm";

export class Decoder {
  /** [rows, V] fp32: of the last step. */
  readonly logits: Ptr;
  private readonly device: Device;
  private readonly capacity: number;
  private readonly dt: DType;
  private readonly memory: { ptr: Ptr; bytes: number };
  private readonly ids: Ptr;
  private readonly past: Ptr;
  /** For prompts: the cache row of each token. */
  private readonly places: Ptr;
  /** These three, seen from here; made once, since a view takes as long as a small kernel. */
  private readonly integers: Int32Array;
  private readonly zero: Ptr;
  /** [rows, width] each, of the model's type; rstd fp32. */
  private readonly h: Ptr;
  private readonly normed: Ptr;
  private readonly q: Ptr;
  private readonly mixed: Ptr;
  private readonly inner: Ptr;
  private readonly rstd: Ptr;
  /** x A^T of an adapter; and what is added to a product: that by B^T, a bias. */
  private readonly low: Ptr;
  private readonly added: Ptr;
  /** [rows] zeros, i32: the one row of a bias, for each token. */
  private readonly nought: Ptr;
  /** Where heads are normed: queries, keys and values side by side; rstd fp32. */
  private readonly wide: Ptr;
  private readonly headRstd: Ptr;

  constructor(
    private readonly model: Llama,
    private readonly cache: KvCache,
    private readonly ready?: ReadyWeights,
    /** Tokens of short prompts that are to come: buffers are made for them, within reason. */
    promptTokens = 0,
  ) {
    const { device, config } = model;
    const { hiddenSize: d, intermediateSize: F, vocabSize: V, numHeads, numKvHeads, headDim } = config;
    const [{ qkvBias, headNorms }] = model.layers;
    this.device = device;
    this.dt = dtypeOf(model.precision);
    const rows = Math.max(cache.rows, Math.min(promptTokens, CHUNK));
    this.capacity = rows;
    const size = dtypeBytes(this.dt);
    const factors = [...(model.lora?.factors.values() ?? [])];
    const rank = Math.max(0, ...factors.map(({ A }) => A.shape[0]));
    const widest = Math.max(qkvBias?.size ?? 0, ...factors.map(({ B }) => B.shape[0]));
    const heads = headNorms ? numHeads + numKvHeads : 0;
    // biome-ignore format: one line a kind
    const sizes = [
      4 * rows, 4 * rows, 4 * rows, 4,
      size * rows * d, size * rows * d, size * rows * numHeads * headDim, size * rows * numHeads * headDim, size * rows * F,
      4 * rows, size * rows * rank, size * rows * widest, qkvBias ? 4 * rows : 0, headNorms ? size * rows * (heads + numKvHeads) * headDim : 0, 4 * rows * heads,
      4 * cache.rows * V,
    ].map((n) => Math.ceil(n / 64) * 64);
    const bytes = sizes.reduce((a, b) => a + b, 0);
    this.memory = { ptr: device.alloc(bytes), bytes };
    let at = this.memory.ptr;
    const places = sizes.map((n) => {
      at += n;
      return at - n;
    });
    [this.ids, this.past, this.places, this.zero, this.h, this.normed, this.q, this.mixed, this.inner] = places;
    [this.rstd, this.low, this.added, this.nought, this.wide, this.headRstd, this.logits] = places.slice(9);
    if (qkvBias) device.i32(this.nought, rows).fill(0);
    this.integers = device.i32(this.memory.ptr, (this.zero - this.memory.ptr) / 4);
  }

  /** The tokens ids[b], b < rows, after past[b] tokens that cache row b holds. Fills `logits`, and place past[b] of the cache. */
  step(ids: Int32Array, past: Int32Array, rows: number): void {
    const { device, model, cache, dt } = this;
    const { numHeads: H, numKvHeads: KV, headDim: D } = model.config;
    this.put(this.ids, ids.subarray(0, rows));
    this.put(this.past, past.subarray(0, rows));
    const append = (qkv: Ptr, keys: Ptr, values: Ptr): void =>
      device.cacheAppend(qkv, keys, values, this.past, rows, 1, cache.maxLength, H, KV, D, dt);
    this.layers(rows, 0, this.ready, append, (q, ldq, keys, values) => {
      // biome-ignore format: one call
      device.attentionCached(q, ldq, keys, values, this.mixed, this.past, rows, 1, cache.maxLength, H, KV, D, this.scale, dt);
    });
    this.project(this.normed, rows);
  }

  /**
   * Prompts of `SHORT` tokens at most, with the weights as the model has them. Prompt i fills row rows[i] of the cache from its
   * beginning; `take(i, hidden)` gets the normed hidden state [d] of its last token.
   */
  prefill(
    prompts: readonly ArrayLike<number>[],
    rows: readonly number[],
    take: (i: number, hidden: Ptr) => void,
  ): void {
    const { device, model, cache, dt } = this;
    const { hiddenSize, numHeads: H, numKvHeads: KV, headDim: D } = model.config;
    const size = dtypeBytes(dt);
    for (let first = 0, end = 0; first < prompts.length; first = end) {
      const starts = [0];
      for (; end < prompts.length; end++) {
        const next = starts[starts.length - 1] + prompts[end].length;
        if (end > first && next > this.capacity) break;
        starts.push(next);
      }
      const N = starts[starts.length - 1];
      const chunk = prompts.slice(first, end);
      const each = (f: (i: number, t: number) => number): Int32Array =>
        Int32Array.from(chunk.flatMap((p, i) => Array.from(p, (_, t) => f(i, t))));
      this.put(
        this.ids,
        each((i, t) => chunk[i][t]),
      );
      this.put(
        this.past,
        each((_, t) => t),
      );
      this.put(
        this.places,
        each((i) => rows[first + i]),
      );
      const place = (i: number): number => rows[first + i] * cache.rowSize * size;
      const append = (qkv: Ptr, keys: Ptr, values: Ptr): void =>
        chunk.forEach((p, i) => {
          const at = starts[i] * (H + 2 * KV) * D * size;
          // biome-ignore format: one call
          device.cacheAppend(qkv + at, keys + place(i), values + place(i), this.zero, 1, p.length, cache.maxLength, H, KV, D, dt);
        });
      this.layers(N, this.places, this.exact, append, (q, ldq, keys, values) => {
        chunk.forEach((p, i) => {
          const [from, to] = [q + starts[i] * ldq * size, this.mixed + starts[i] * H * D * size];
          // biome-ignore format: one call
          device.attentionCached(from, ldq, keys + place(i), values + place(i), to, this.zero, 1, p.length, cache.maxLength, H, KV, D, this.scale, dt);
        });
      });
      for (const i of chunk.keys()) take(first + i, this.normed + (starts[i + 1] - 1) * hiddenSize * size);
    }
  }

  private put(to: Ptr, values: Int32Array): void {
    this.integers.set(values, (to - this.memory.ptr) / 4);
  }

  /** The weights that were made ready, if results are the same with them. */
  private get exact(): ReadyWeights | undefined {
    return this.ready?.exact ? this.ready : undefined;
  }

  private get scale(): number {
    return 1 / Math.sqrt(this.model.config.headDim);
  }

  /**
   * The tokens `ids` at places `past` of cache rows `places` (0: row b for token b), up to the last norm: `normed`. `append` puts the keys
   * and values of qkv there, where that is not the product's business; rows of q are ldq apart.
   */
  private layers(
    rows: number,
    places: Ptr,
    ready: ReadyWeights | undefined,
    append: (qkv: Ptr, keys: Ptr, values: Ptr) => void,
    attend: (q: Ptr, ldq: number, keys: Ptr, values: Ptr) => void,
  ): void {
    const { device, model, cache, dt } = this;
    const { hiddenSize: d, intermediateSize: F, numHeads: H, numKvHeads: KV, headDim: D } = model.config;
    const { cos, sin } = model.tables;
    const { h, normed, q, mixed, inner, wide } = this;
    model.eachLayer((layer, i) => {
      const { inputNorm, qkv, qkvBias, headNorms, output, mlpNorm, gateUp, down } = layer;
      const [keys, values] = [cache.keys[i], cache.values[i]];
      if (i === 0) device.embeddingForward(this.ids, model.embeddings!.ptr, h, rows, d, dt);
      this.norm(h, inputNorm, rows);
      const byQkv = this.adapted(qkv, normed, rows, qkvBias);
      if (headNorms) {
        const width = (H + 2 * KV) * D;
        device.decodeLinear(normed, ...this.weights(qkv, ready), byQkv, 1, wide, dt, rows, width, d, dt);
        // biome-ignore format: one call
        device.headNormForward(wide, headNorms.query.ptr, headNorms.key.ptr, wide, this.headRstd, rows, H, KV, D, model.config.rmsNormEps, dt);
        device.rope(wide, width, this.past, cos, sin, rows, H + KV, D, 0, dt);
        append(wide, keys, values);
        attend(wide, width, keys, values);
      } else {
        // biome-ignore format: one call
        device.decodeQkv(normed, ...this.weights(qkv, ready), byQkv, this.past, places, cos, sin, q, keys, values, rows, cache.maxLength, d, H, KV, D, dt);
        attend(q, H * D, keys, values);
      }
      this.linear(mixed, output, rows, ready);
      this.norm(h, mlpNorm, rows);
      const byGateUp = this.adapted(gateUp, normed, rows);
      device.decodeSwiglu(normed, ...this.weights(gateUp, ready), byGateUp, inner, rows, F, d, dt);
      this.linear(inner, down, rows, ready);
    });
    this.norm(h, model.finalNorm!, rows);
  }

  /** Logits of normed hidden states [rows, d]: in `logits`, which is returned. */
  project(hidden: Ptr, rows: number, rounded = true): Ptr {
    const { hiddenSize: d, vocabSize: V } = this.model.config;
    const [W, wscale, wt] = this.weights(this.model.outputMatrix!, rounded ? this.ready : this.exact);
    this.device.decodeLinear(hidden, W, wscale, wt, 0, 1, this.logits, F32, rows, V, d, this.dt);
    return this.logits;
  }

  private weights(W: Parameter, ready: ReadyWeights | undefined): [Ptr, Ptr, WeightType] {
    const stored = ready?.of(W);
    return stored ? [stored.values, stored.scale, stored.type] : [W.ptr, 0, this.dt];
  }

  private norm(x: Ptr, weight: Parameter, rows: number): void {
    const { hiddenSize, rmsNormEps } = this.model.config;
    this.device.rmsnormForward(x, 0, weight.ptr, 0, this.normed, this.rstd, rows, hiddenSize, rmsNormEps, this.dt);
  }

  /** h = h + W x, and what W's adapter adds. */
  private linear(x: Ptr, W: Parameter, rows: number, ready: ReadyWeights | undefined): void {
    const { device, h, low, dt } = this;
    const [N, K] = W.shape;
    device.decodeLinear(x, ...this.weights(W, ready), h, 1, h, dt, rows, N, K, dt);
    const { lora } = this.model;
    const factors = lora?.factors.get(W);
    if (!factors) return;
    const { A, B } = factors;
    const [rank] = A.shape;
    device.decodeLinear(x, A.ptr, 0, dt, 0, 1, low, dt, rows, rank, K, dt);
    device.decodeLinear(low, B.ptr, 0, dt, h, lora!.scale, h, dt, rows, N, rank, dt);
  }

  /** bias + scale B A x of W's adapter, [rows, N]; 0 when it has neither. */
  private adapted(W: Parameter, x: Ptr, rows: number, bias?: Parameter): Ptr {
    const { device, low, added, dt } = this;
    const { lora } = this.model;
    const factors = lora?.factors.get(W);
    const [N, K] = W.shape;
    if (bias) device.copyRows(bias.ptr, this.nought, added, rows, N, dt);
    if (!factors) return bias ? added : 0;
    const [rank] = factors.A.shape;
    device.decodeLinear(x, factors.A.ptr, 0, dt, 0, 1, low, dt, rows, rank, K, dt);
    device.decodeLinear(low, factors.B.ptr, 0, dt, bias ? added : 0, lora!.scale, added, dt, rows, N, rank, dt);
    return added;
  }

  close(): void {
    this.device.free(this.memory.ptr, this.memory.bytes);
  }
}
