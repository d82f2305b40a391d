/**
 * Decoding without a tape: one token for each row of a batch, through kernels made for few rows (native/decode.c), in buffers that
 * live as long as the decoder. A step reads every weight once, whatever the batch; a row's result does not depend on the others.
 *
 *   per layer:  q = rotate(Wqkv norm(h)), keys and values to the cache;   h = h + Wo attention(q);   h = h + Wdown swiglu(Wgate-up norm(h))
 *   logits = Wout norm(h)
 */
import { type Device, type DType, dtypeBytes, F32, INT8, type Ptr } from "../device/device.js";
import type { KvCache, Llama } from "../nn/llama.js";
import { dtypeOf, type Parameter } from "../tensor/tensor.js";
import type { Int8Weights } from "./int8.js";

/** Whether the model can be decoded here: all of it is this process's. */
export const isWhole = ({ grid, head }: Llama): boolean => grid.tensor.size * grid.pipeline.size === 1 && head === "lm";

export class Decoder {
  /** [rows, V] fp32: of the last step. */
  readonly logits: Ptr;
  private readonly device: Device;
  private readonly dt: DType;
  private readonly memory: { ptr: Ptr; bytes: number };
  private readonly ids: Ptr;
  private readonly past: Ptr;
  private readonly idsView: Int32Array;
  private readonly pastView: Int32Array;
  /** [rows, width] each, of the model's type; rstd fp32. */
  private readonly h: Ptr;
  private readonly normed: Ptr;
  private readonly q: Ptr;
  private readonly mixed: Ptr;
  private readonly inner: Ptr;
  private readonly rstd: Ptr;
  /** What an adapter adds: x A^T, and that by B^T. */
  private readonly low: Ptr;
  private readonly added: Ptr;

  constructor(
    private readonly model: Llama,
    private readonly cache: KvCache,
    private readonly int8?: Int8Weights,
  ) {
    const { device, config } = model;
    const { hiddenSize: d, intermediateSize: F, vocabSize: V, numHeads, headDim } = config;
    this.device = device;
    this.dt = dtypeOf(model.precision);
    const { rows } = cache;
    const size = dtypeBytes(this.dt);
    const factors = [...(model.lora?.factors.values() ?? [])];
    const rank = Math.max(0, ...factors.map(({ A }) => A.shape[0]));
    const widest = Math.max(0, ...factors.map(({ B }) => B.shape[0]));
    // biome-ignore format: one line a kind
    const sizes = [
      4 * rows, 4 * rows,
      size * rows * d, size * rows * d, size * rows * numHeads * headDim, size * rows * numHeads * headDim, size * rows * F,
      4 * rows, size * rows * rank, size * rows * widest,
      4 * rows * V,
    ].map((n) => Math.ceil(n / 64) * 64);
    const bytes = sizes.reduce((a, b) => a + b, 0);
    this.memory = { ptr: device.alloc(bytes), bytes };
    let at = this.memory.ptr;
    const places = sizes.map((n) => {
      at += n;
      return at - n;
    });
    [this.ids, this.past, this.h, this.normed, this.q, this.mixed, this.inner] = places;
    [this.rstd, this.low, this.added, this.logits] = places.slice(7);
    this.idsView = device.i32(this.ids, rows);
    this.pastView = device.i32(this.past, rows);
  }

  /**
   * The tokens ids[b], b < rows, after past[b] tokens that cache row b holds. Fills `logits`, and row past[b] of the cache.
   */
  step(ids: Int32Array, past: Int32Array, rows: number): void {
    const { device, model, cache, dt } = this;
    const { hiddenSize: d, intermediateSize: F, numHeads: H, numKvHeads: KV, headDim: D } = model.config;
    const { cos, sin } = model.tables;
    const scale = 1 / Math.sqrt(D);
    this.idsView.set(ids.subarray(0, rows));
    this.pastView.set(past.subarray(0, rows));
    const { h, normed, q, mixed, inner } = this;
    model.eachLayer((layer, i) => {
      const { inputNorm, qkv, output, mlpNorm, gateUp, down } = layer;
      const [keys, values] = [cache.keys[i], cache.values[i]];
      if (i === 0) device.embeddingForward(this.ids, model.embeddings!.ptr, h, rows, d, dt);
      this.norm(h, inputNorm, rows);
      const byQkv = this.adapted(qkv, normed, rows);
      // biome-ignore format: one call
      device.decodeQkv(normed, ...this.weights(qkv), byQkv, this.past, cos, sin, q, keys, values, rows, cache.maxLength, d, H, KV, D, dt);
      // biome-ignore format: one call
      device.attentionCached(q, H * D, keys, values, mixed, this.past, rows, 1, cache.maxLength, H, KV, D, scale, dt);
      this.linear(mixed, output, rows);
      this.norm(h, mlpNorm, rows);
      const byGateUp = this.adapted(gateUp, normed, rows);
      device.decodeSwiglu(normed, ...this.weights(gateUp), byGateUp, inner, rows, F, d, dt);
      this.linear(inner, down, rows);
    });
    this.norm(h, model.finalNorm!, rows);
    this.project(normed, rows);
  }

  /** Logits of hidden states [rows, d], which are normed already. */
  project(hidden: Ptr, rows: number): void {
    const { hiddenSize: d, vocabSize: V } = this.model.config;
    const [W, wscale, wt] = this.weights(this.model.outputMatrix!);
    this.device.decodeLinear(hidden, W, wscale, wt, 0, 1, this.logits, F32, rows, V, d, this.dt);
  }

  private weights(W: Parameter): [Ptr, Ptr, DType | typeof INT8] {
    if (!this.int8) return [W.ptr, 0, this.dt];
    const { values, scale } = this.int8.of(W);
    return [values, scale, INT8];
  }

  private norm(x: Ptr, weight: Parameter, rows: number): void {
    const { hiddenSize, rmsNormEps } = this.model.config;
    this.device.rmsnormForward(x, 0, weight.ptr, 0, this.normed, this.rstd, rows, hiddenSize, rmsNormEps, this.dt);
  }

  /** h = h + W x, and what W's adapter adds. */
  private linear(x: Ptr, W: Parameter, rows: number): void {
    const { device, h, low, dt } = this;
    const [N, K] = W.shape;
    device.decodeLinear(x, ...this.weights(W), h, 1, h, dt, rows, N, K, dt);
    const { lora } = this.model;
    const factors = lora?.factors.get(W);
    if (!factors) return;
    const { A, B } = factors;
    const [rank] = A.shape;
    device.decodeLinear(x, A.ptr, 0, dt, 0, 1, low, dt, rows, rank, K, dt);
    device.decodeLinear(low, B.ptr, 0, dt, h, lora!.scale, h, dt, rows, N, rank, dt);
  }

  /** scale B A x of W's adapter, [rows, N]; 0 when it has none. */
  private adapted(W: Parameter, x: Ptr, rows: number): Ptr {
    const { device, low, added, dt } = this;
    const { lora } = this.model;
    const factors = lora?.factors.get(W);
    if (!factors) return 0;
    const [N, K] = W.shape;
    const [rank] = factors.A.shape;
    device.decodeLinear(x, factors.A.ptr, 0, dt, 0, 1, low, dt, rows, rank, K, dt);
    device.decodeLinear(low, factors.B.ptr, 0, dt, 0, lora!.scale, added, dt, rows, N, rank, dt);
    return added;
  }

  close(): void {
    this.device.free(this.memory.ptr, this.memory.bytes);
  }
}
