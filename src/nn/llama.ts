/**
 * Llama (Touvron et al. 2023): the decoder-only transformer that all stages train.
 *
 *   h = embedding(ids)
 *   per layer:  h = h + Wo attention(rope(Wqkv norm(h)));   h = h + Wdown swiglu(Wgate-up norm(h))
 *   hidden = norm(h)          log p(token) = tokenLogProb(hidden, output matrix)
 *
 * Query, key and value matrices are the rows of one matrix, gate and up likewise: one product instead of three (two).
 * On disk they carry their Hugging Face names.
 */
import { type Device, F32, type Ptr } from "../device/device.js";
import { Grid } from "../parallel/grid.js";
import {
  attention,
  crossEntropy,
  embedding,
  type Layout,
  pickRows,
  rmsNorm,
  scalarHead,
  spreadRows,
  swiglu,
  tokenEntropy,
  tokenLogProb,
} from "../tensor/ops.js";
import { ParameterSet, type ParameterSpec, type Unit } from "../tensor/parameters.js";
import { dtypeOf, type Parameter, type Tape, type Tensor } from "../tensor/tensor.js";
import type { LlamaConfig } from "./config.js";
import { type LoraAdapter, loraLinear } from "./lora.js";
import { ropeTables } from "./rope.js";

export type Precision = "bf16" | "fp32";

/** The sequences of one forward pass, laid end to end. */
export interface TokenBatch {
  ids: Int32Array;
  /** Position of each token within its sequence. */
  positions: Int32Array;
  /** Sequence s is tokens cuSeqlens[s] .. cuSeqlens[s + 1] - 1. */
  cuSeqlens: Int32Array;
}

/** Keys and values of past tokens, per layer [rows, maxLength, KV, D]. */
export interface KvCache {
  readonly rows: number;
  readonly maxLength: number;
  readonly keys: Ptr[];
  readonly values: Ptr[];
}

interface Layer {
  inputNorm: Parameter;
  qkv: Parameter;
  output: Parameter;
  mlpNorm: Parameter;
  gateUp: Parameter;
  down: Parameter;
}

/** What stands on the hidden states: the output matrix of a language model, or one number (reward and value models). */
export type Head = "lm" | "scalar";

const layerUnit = (index: number): string => `layer ${index}`;

function specs(c: LlamaConfig, head: Head): ParameterSpec[] {
  const { hiddenSize: d, intermediateSize: f, headDim } = c;
  const q = c.numHeads * headDim;
  const kv = c.numKvHeads * headDim;
  const matrix = (unit: string, shape: number[], ...parts: [string, number][]): ParameterSpec => ({
    unit,
    shape,
    parts: parts.map(([name, rows]) => ({ name: `${name}.weight`, rows })),
    init: "normal",
  });
  const norm = (name: string): ParameterSpec => ({
    unit: "vectors",
    shape: [d],
    parts: [{ name: `${name}.weight`, rows: d }],
    init: "ones",
  });
  const list = [matrix("embedding", [c.vocabSize, d], ["model.embed_tokens", c.vocabSize])];
  for (let i = 0; i < c.numLayers; i++) {
    const at = `model.layers.${i}`;
    const self = `${at}.self_attn`;
    const unit = layerUnit(i);
    list.push(
      norm(`${at}.input_layernorm`),
      matrix(unit, [q + 2 * kv, d], [`${self}.q_proj`, q], [`${self}.k_proj`, kv], [`${self}.v_proj`, kv]),
      matrix(unit, [d, q], [`${self}.o_proj`, d]),
      norm(`${at}.post_attention_layernorm`),
      matrix(unit, [2 * f, d], [`${at}.mlp.gate_proj`, f], [`${at}.mlp.up_proj`, f]),
      matrix(unit, [d, f], [`${at}.mlp.down_proj`, d]),
    );
  }
  list.push(norm("model.norm"));
  if (head === "scalar") list.push(matrix("head", [1, d], ["score", 1]));
  else if (!c.tieWordEmbeddings) list.push(matrix("head", [c.vocabSize, d], ["lm_head", c.vocabSize]));
  return list;
}

export class Llama {
  readonly parameters: ParameterSet;
  readonly embeddings: Parameter;
  readonly finalNorm: Parameter;
  /** [V, d]; the embedding matrix itself when they are tied. With a scalar head: [1, d]. */
  readonly outputMatrix: Parameter;
  readonly head: Head;
  /** The processes that this model is shared by, or copied to. */
  readonly grid: Grid;
  /** Whether the backward pass computes layers again instead of keeping their activations (Chen et al. 2016). */
  recompute = false;
  /** Low-rank adapters beside the (then frozen) matrices; set by `attachLora`. */
  lora: LoraAdapter | undefined;
  private readonly layers: Layer[] = [];
  private readonly layerUnits: Unit[];
  private readonly tables: { cos: Ptr; sin: Ptr; bytes: number };

  constructor(
    readonly device: Device,
    readonly config: LlamaConfig,
    readonly precision: Precision,
    options: { trainable?: boolean; head?: Head; grid?: Grid } = {},
  ) {
    this.head = options.head ?? "lm";
    this.grid = options.grid ?? Grid.alone(device);
    const list = specs(config, this.head);
    const trainable = options.trainable ?? true;
    this.parameters = new ParameterSet(device, dtypeOf(precision), list, trainable, this.grid.keeper());
    const p = [...this.parameters.parameters];
    const next = (): Parameter => p.shift()!;
    this.layerUnits = Array.from({ length: config.numLayers }, (_, i) => this.parameters.unit(layerUnit(i)));
    this.embeddings = next();
    for (let i = 0; i < config.numLayers; i++)
      this.layers.push({
        inputNorm: next(),
        qkv: next(),
        output: next(),
        mlpNorm: next(),
        gateUp: next(),
        down: next(),
      });
    this.finalNorm = next();
    this.outputMatrix = this.head === "lm" && config.tieWordEmbeddings ? this.embeddings : next();
    this.tables = ropeTables(device, config, config.maxPositionEmbeddings);
  }

  /** What the optimizer updates: all parameters, or only the adapters when there are any. */
  get trainable(): ParameterSet {
    return this.lora?.parameters ?? this.parameters;
  }

  private get attentionShape() {
    const { numHeads, numKvHeads, headDim } = this.config;
    return { numHeads, numKvHeads, headDim, cos: this.tables.cos, sin: this.tables.sin };
  }

  /** One layer, with `mix` in the place of attention, so that training and decoding share everything else. */
  private layer(tape: Tape, h: Tensor, index: number, mix: (qkv: Tensor) => Tensor): Tensor {
    const { inputNorm, qkv, output, mlpNorm, gateUp, down } = this.layers[index];
    const eps = this.config.rmsNormEps;
    const project = (x: Tensor, W: Parameter, residual?: Tensor): Tensor => loraLinear(tape, x, W, this.lora, residual);
    const a = tape.scope(() => project(mix(project(rmsNorm(tape, h, inputNorm, eps), qkv)), output, h));
    tape.whenBack(() => this.parameters.keeper.poke());
    const y = tape.scope(() => project(swiglu(tape, project(rmsNorm(tape, a, mlpNorm, eps), gateUp)), down, a));
    if (!tape.recording) a.storage.release();
    return y;
  }

  /** Hidden states after the final norm: [N, d]. */
  forward(tape: Tape, batch: TokenBatch): Tensor {
    return this.hiddenStates(tape, batch, (layout) => (_, qkv) => attention(tape, qkv, layout, this.attentionShape));
  }

  /** As `forward`, and puts the keys and values of sequence s into row rows[s] of the cache, from position 0. */
  prefill(tape: Tape, batch: TokenBatch, cache: KvCache, rows: readonly number[]): Tensor {
    const { numHeads: H, numKvHeads: KV, headDim: D } = this.config;
    const { device } = this;
    const zero = tape.upload(new Int32Array(1));
    return this.hiddenStates(tape, batch, (layout) => (index, qkv) => {
      const y = attention(tape, qkv, layout, this.attentionShape); // rotates qkv in place: the cache holds rotated keys
      const bytes = qkv.dtype === F32 ? 4 : 2;
      rows.forEach((row, s) => {
        const T = batch.cuSeqlens[s + 1] - batch.cuSeqlens[s];
        const from = qkv.ptr + batch.cuSeqlens[s] * qkv.shape[1] * bytes;
        const at = row * cache.maxLength * KV * D * bytes;
        device.cacheAppend(
          from,
          cache.keys[index] + at,
          cache.values[index] + at,
          zero,
          1,
          T,
          cache.maxLength,
          H,
          KV,
          D,
          qkv.dtype,
        );
      });
      return y;
    });
  }

  /** One new token for each of the first ids.length rows of the cache; past[b] tokens are there already. [B, d]. */
  decode(tape: Tape, ids: Int32Array, past: Int32Array, cache: KvCache): Tensor {
    const { numHeads: H, numKvHeads: KV, headDim: D } = this.config;
    const { device } = this;
    const B = ids.length;
    const pastPtr = tape.upload(past);
    const { cos, sin } = this.tables;
    const batch = { ids, positions: past, cuSeqlens: Int32Array.from({ length: B + 1 }, (_, i) => i) };
    return this.hiddenStates(tape, batch, (layout) => (index, qkv) => {
      const width = qkv.shape[1];
      const [k, v] = [cache.keys[index], cache.values[index]];
      device.rope(qkv.ptr, width, layout.positions, cos, sin, B, H + KV, D, 0, qkv.dtype);
      device.cacheAppend(qkv.ptr, k, v, pastPtr, B, 1, cache.maxLength, H, KV, D, qkv.dtype);
      const y = tape.tensor(qkv.dtype, [B, H * D]);
      device.attentionCached(
        qkv.ptr,
        width,
        k,
        v,
        y.ptr,
        pastPtr,
        B,
        1,
        cache.maxLength,
        H,
        KV,
        D,
        1 / Math.sqrt(D),
        qkv.dtype,
      );
      return y;
    });
  }

  private hiddenStates(
    tape: Tape,
    batch: TokenBatch,
    mixer: (layout: Layout) => (index: number, qkv: Tensor) => Tensor,
  ): Tensor {
    const N = batch.ids.length;
    const nseq = batch.cuSeqlens.length - 1;
    const layout = { cu: tape.upload(batch.cuSeqlens), nseq, positions: tape.upload(batch.positions) };
    const mix = mixer(layout);
    const { keeper, units } = this.parameters;
    for (const unit of units) if (!unit.name.startsWith("layer ")) keeper.use(unit, tape.recording);
    let h = embedding(tape, this.embeddings, tape.upload(batch.ids), N);
    for (let i = 0; i < this.config.numLayers; i++) {
      const before = h;
      const unit = this.layerUnits[i];
      keeper.before(unit, "forward");
      tape.whenBack(() => keeper.after(unit, "backward"));
      const layer = (x: Tensor): Tensor => this.layer(tape, x, i, (qkv) => mix(i, qkv));
      h = this.recompute ? tape.recompute(before, layer) : layer(before);
      tape.whenBack(() => keeper.before(unit, "backward"));
      keeper.after(unit, "forward");
      if (!tape.recording) before.storage.release();
    }
    return rmsNorm(tape, h, this.finalNorm, this.config.rmsNormEps);
  }

  /** One number for each token: [N] fp32. For models with a scalar head. */
  values(tape: Tape, batch: TokenBatch): Tensor {
    return scalarHead(tape, this.forward(tape, batch), this.outputMatrix);
  }

  /** log softmax(logits / temperature)[targets[i]] given the tokens up to i: [N] fp32; targets below 0 are skipped. */
  logProbs(tape: Tape, batch: TokenBatch, targets: Int32Array, temperature = 1): Tensor {
    const { hidden, rows, kept } = this.targetRows(tape, batch, targets);
    const logp = tokenLogProb(tape, hidden, this.outputMatrix, tape.upload(kept), 1 / temperature);
    return rows ? spreadRows(tape, logp, rows, targets.length) : logp;
  }

  /** Entropy (nats) of the distribution over the next token, for rows with a target; 0 elsewhere: [N] fp32. */
  entropies(tape: Tape, batch: TokenBatch, targets: Int32Array, temperature = 1): Tensor {
    const { hidden, rows, kept } = this.targetRows(tape, batch, targets);
    const entropy = tokenEntropy(tape, hidden, this.outputMatrix, tape.upload(kept), 1 / temperature);
    return rows ? spreadRows(tape, entropy, rows, targets.length) : entropy;
  }

  /** Weighted cross entropy (see ops.ts): -sum(weights * log p). `logp` is what backward starts from. */
  loss(tape: Tape, batch: TokenBatch, targets: Int32Array, weights: Float32Array): { logp: Tensor; loss: number } {
    const { hidden, rows, kept } = this.targetRows(tape, batch, targets);
    const w = rows ? Float32Array.from(rows, (row) => weights[row]) : weights;
    const logp = crossEntropy(tape, hidden, this.outputMatrix, tape.upload(kept), w);
    const values = this.device.f32(logp.ptr, logp.size);
    let loss = 0;
    for (let i = 0; i < values.length; i++) if (w[i] !== 0) loss -= w[i] * values[i];
    return { logp, loss };
  }

  /** Hidden states of the rows that have a target, when that leaves out enough to be worth a copy: most of a prompt. */
  private targetRows(tape: Tape, batch: TokenBatch, targets: Int32Array) {
    const all = this.forward(tape, batch);
    const rows = Int32Array.from(targets.keys()).filter((i) => targets[i] >= 0);
    if (rows.length > 0.8 * targets.length || rows.length === 0) return { hidden: all, rows: undefined, kept: targets };
    return { hidden: pickRows(tape, all, rows), rows, kept: Int32Array.from(rows, (row) => targets[row]) };
  }

  /** Logits [rows, V] fp32 of chosen rows of `hidden`; for generation, and for looking at a model. */
  logits(tape: Tape, hidden: Tensor, rows: Int32Array): Tensor {
    const { device } = this;
    const d = this.config.hiddenSize;
    const V = this.config.vocabSize;
    const dt = hidden.dtype;
    const picked = tape.tensor(dt, [rows.length, d]);
    device.copyRows(hidden.ptr, tape.upload(rows), picked.ptr, rows.length, d, dt);
    const y = tape.tensor(F32, [rows.length, V]);
    device.matmul(
      0,
      1,
      rows.length,
      V,
      d,
      1,
      picked.ptr,
      dt,
      d,
      this.outputMatrix.ptr,
      dt,
      d,
      0,
      y.ptr,
      F32,
      V,
      0,
      1,
      0,
      0,
      0,
    );
    picked.storage.release();
    return y;
  }

  newCache(rows: number, maxLength: number): KvCache & { close(): void } {
    const { numLayers, numKvHeads, headDim } = this.config;
    const bytes = rows * maxLength * numKvHeads * headDim * (this.precision === "bf16" ? 2 : 4);
    const make = (): Ptr[] => Array.from({ length: numLayers }, () => this.device.alloc(bytes));
    const keys = make();
    const values = make();
    return {
      rows,
      maxLength,
      keys,
      values,
      close: () => {
        for (const p of [...keys, ...values]) this.device.free(p, bytes);
      },
    };
  }

  /** Floating point operations of one training token, forward and backward: 6 per matrix weight, 12 L d T / 2 for causal attention. */
  trainingFlopsPerToken(contextLength: number): number {
    const c = this.config;
    const embeddings = c.tieWordEmbeddings ? 0 : c.vocabSize * c.hiddenSize;
    return 6 * (this.parameters.count - embeddings) + 6 * c.numLayers * c.numHeads * c.headDim * contextLength;
  }

  close(): void {
    this.parameters.close();
    this.lora?.parameters.close();
    this.device.free(this.tables.cos, this.tables.bytes);
    this.device.free(this.tables.sin, this.tables.bytes);
  }
}

/** The batch of sequences given as arrays of ids, each seeing itself only. */
export function packSequences(sequences: readonly ArrayLike<number>[]): TokenBatch {
  const cuSeqlens = new Int32Array(sequences.length + 1);
  sequences.forEach((s, i) => {
    cuSeqlens[i + 1] = cuSeqlens[i] + s.length;
  });
  const ids = new Int32Array(cuSeqlens[sequences.length]);
  const positions = new Int32Array(ids.length);
  sequences.forEach((s, i) => {
    for (let t = 0; t < s.length; t++) {
      ids[cuSeqlens[i] + t] = s[t];
      positions[cuSeqlens[i] + t] = t;
    }
  });
  return { ids, positions, cuSeqlens };
}
