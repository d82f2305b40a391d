/**
 * Llama (Touvron et al. 2023): the decoder-only transformer that all stages train; and its relatives Mistral, Qwen2 and Qwen3.
 *
 *   h = embedding(ids)
 *   per layer:  h = h + Wo attention(rope(Wqkv norm(h)));   h = h + Wdown swiglu(Wgate-up norm(h))
 *   Qwen2 adds biases to Wqkv x, Qwen3 norms each head of queries and keys (`beforeAttention`)
 *   hidden = norm(h)          log p(token) = tokenLogProb(hidden, output matrix)
 *
 * Query, key and value matrices are the rows of one matrix, gate and up likewise: one product instead of three (two).
 * On disk they carry their Hugging Face names.
 */
import { type Device, F32 } from "../device/device.js";
import { Grid } from "../parallel/grid.js";
import { Pipe } from "../parallel/pipeline.js";
import { gatheredLinear, gatherRows, rowsEach, scatteredLinear, scatterRows } from "../parallel/sequence.js";
import { gatherColumns, part, partialEmbedding, sharedLogProb, sumBackward, sumForward } from "../parallel/tensor.js";
import { UserError } from "../run/errors.js";
import {
  addBias,
  attention,
  crossEntropy,
  embedding,
  headNorm,
  type Layout,
  pickRows,
  rmsNorm,
  scalarHead,
  spreadRows,
  swiglu,
  tokenEntropy,
  tokenLogProb,
  weighted,
} from "../tensor/ops.js";
import { ParameterSet } from "../tensor/parameters.js";
import { dtypeOf, type Parameter, type Tape, type Tensor, type Unit } from "../tensor/tensor.js";
import { type LoraAdapter, loraLinear, putRows } from "./adapter.js";
import { describePositions, type LlamaConfig } from "./config.js";
import { type KvCache, makeCache } from "./kv-cache.js";
import { RopeTables } from "./rope.js";
import { type Head, joinParts, parametersOf, type Share, shareOf, stagesOf } from "./share.js";

const PRECISIONS = ["bf16", "fp32"] as const;
export type Precision = (typeof PRECISIONS)[number];

/** The sequences of one forward pass, laid end to end. */
export interface TokenBatch {
  ids: Int32Array;
  /** Position of each token within its sequence. */
  positions: Int32Array;
  /** Sequence s is tokens cuSeqlens[s] .. cuSeqlens[s + 1] - 1. */
  cuSeqlens: Int32Array;
}

export interface Layer {
  inputNorm: Parameter;
  qkv: Parameter;
  /** Of queries, keys and values, one after the other. */
  qkvBias?: Parameter;
  headNorms?: { query: Parameter; key: Parameter };
  output: Parameter;
  mlpNorm: Parameter;
  gateUp: Parameter;
  down: Parameter;
}

export class Llama {
  readonly parameters: ParameterSet;
  /** Undefined, as the next two, where another stage of a pipeline has it. */
  readonly embeddings: Parameter | undefined;
  readonly finalNorm: Parameter | undefined;
  /** [V, d]; the embedding matrix itself when they are tied. With a scalar head: [1, d]. */
  readonly outputMatrix: Parameter | undefined;
  readonly head: Head;
  /** The processes that this model is shared by, or copied to. */
  readonly grid: Grid;
  readonly pipe: Pipe;
  private readonly share: Share;
  /** Whether the backward pass computes layers again instead of keeping their activations (Chen et al. 2016). */
  recompute = false;
  /** Low-rank adapters beside the (then frozen) matrices; set by `attachLora`. */
  lora: LoraAdapter | undefined;
  readonly layers: Layer[] = [];
  private closed = false;
  private readonly layerUnits: Unit[];
  /** Of the rotary angles. */
  readonly tables: RopeTables;

  constructor(
    readonly device: Device,
    readonly config: LlamaConfig,
    readonly precision: Precision,
    options: { trainable?: boolean; head?: Head; grid?: Grid; name?: string } = {},
  ) {
    if (!PRECISIONS.includes(precision))
      throw new UserError(`precision is "${precision}"; it must be ${PRECISIONS.join(" or ")}.`, 2);
    this.head = options.head ?? "lm";
    this.grid = options.grid ?? Grid.alone(device);
    this.pipe = new Pipe(device, this.grid.pipeline);
    this.share = shareOf(config, this.grid, this.grid.pipeline.rank);
    const list = parametersOf(config, this.head, this.share);
    const trainable = options.trainable ?? true;
    this.parameters = new ParameterSet(
      device,
      dtypeOf(precision),
      list,
      trainable,
      this.grid.keeper(options.name, trainable),
    );
    const p = [...this.parameters.parameters];
    const next = (): Parameter => p.shift()!;
    this.layerUnits = this.parameters.units.filter((u) => u.name.startsWith("layer "));
    const tied = this.head === "lm" && config.tieWordEmbeddings;
    const { layers, first, last } = this.share;
    const table = first || (last && tied) ? next() : undefined;
    if (first) this.embeddings = table;
    for (let i = layers.from; i < layers.to; i++)
      this.layers.push({
        inputNorm: next(),
        qkv: next(),
        ...(config.modelType === "qwen2" && { qkvBias: next() }),
        ...(config.modelType === "qwen3" && { headNorms: { query: next(), key: next() } }),
        output: next(),
        mlpNorm: next(),
        gateUp: next(),
        down: next(),
      });
    if (last) this.finalNorm = next();
    if (last) this.outputMatrix = tied ? table : next();
    joinParts(this.parameters, this.grid, this.share, config, this.head);
    this.tables = new RopeTables(device, config);
  }

  /** Parameters of the whole model, wherever they are. */
  get count(): number {
    return stagesOf(this.config, this.head, this.grid).reduce(
      (n, list) => list.reduce((m, t) => m + t.whole.reduce((a, b) => a * b, 1), n),
      0,
    );
  }

  /** What the optimizer updates: all parameters, or only the adapters when there are any. */
  get trainable(): ParameterSet {
    return this.lora?.parameters ?? this.parameters;
  }

  private get attentionShape() {
    const { size } = this.grid.tensor;
    const { numHeads, numKvHeads, headDim } = this.config;
    const { cos, sin } = this.tables;
    return { numHeads: numHeads / size, numKvHeads: numKvHeads / size, headDim, cos, sin };
  }

  /**
   * One layer, with `mix` in the place of attention, so that training and decoding share everything else. `rows`: those that
   * are wanted of the result; the others are only looked at by attention.
   */
  private layer(
    tape: Tape,
    h: Tensor,
    index: number,
    tokens: number,
    mix: (qkv: Tensor) => Tensor,
    rows?: Int32Array,
  ): Tensor {
    const { inputNorm, qkv, output, mlpNorm, gateUp, down } = this.layers[index];
    const eps = this.config.rmsNormEps;
    const { tensor, sequence } = this.grid;
    const project = (x: Tensor, W: Parameter, residual?: Tensor): Tensor => {
      const y = loraLinear(tape, x, W, this.lora, residual);
      tape.drop(x);
      return y;
    };
    // Where processes share the layer, each has some rows of the first matrix and the columns of the second that meet them.
    const enter = (x: Tensor, W: Parameter): Tensor =>
      sequence ? gatheredLinear(tape, x, W, tokens, tensor) : project(sumBackward(tape, x, tensor), W);
    const leave = (x: Tensor, W: Parameter, residual: Tensor): Tensor => {
      if (tensor.size === 1) return project(x, W, residual);
      if (sequence) return scatteredLinear(tape, x, W, residual, tensor);
      return sumForward(tape, project(x, W), residual, tensor);
    };
    const a = tape.scope(() => {
      const mixed = mix(this.beforeAttention(tape, enter(rmsNorm(tape, h, inputNorm, eps), qkv), index));
      return rows ? leave(pickRows(tape, mixed, rows), output, pickRows(tape, h, rows)) : leave(mixed, output, h);
    });
    tape.whenBack(() => this.parameters.keeper.poke());
    const y = tape.scope(() => leave(swiglu(tape, enter(rmsNorm(tape, a, mlpNorm, eps), gateUp)), down, a));
    if (!tape.recording) a.storage.release();
    return y;
  }

  /** What a relative of Llama does to queries, keys and values. */
  private beforeAttention(tape: Tape, qkv: Tensor, index: number): Tensor {
    const { qkvBias, headNorms } = this.layers[index];
    const biased = qkvBias ? addBias(tape, qkv, qkvBias) : qkv;
    if (!headNorms) return biased;
    return headNorm(tape, biased, headNorms.query, headNorms.key, this.attentionShape, this.config.rmsNormEps);
  }

  /** Hidden states after the final norm: [N, d], or of the wanted rows only, which spares the last layer the others. */
  forward(tape: Tape, batch: TokenBatch, rows?: Int32Array): Tensor {
    const mixer = (layout: Layout) => (_: number, qkv: Tensor) => attention(tape, qkv, layout, this.attentionShape);
    return this.hiddenStates(tape, batch, mixer, rows);
  }

  /** As `forward`, and puts the keys and values of sequence s into row rows[s] of the cache, from position 0. */
  prefill(tape: Tape, batch: TokenBatch, cache: KvCache, rows: readonly number[]): Tensor {
    const { numHeads: H, numKvHeads: KV, headDim: D } = this.attentionShape;
    const { device } = this;
    const zero = tape.upload(new Int32Array(1));
    return this.hiddenStates(tape, batch, (layout) => (index, qkv) => {
      const y = attention(tape, qkv, layout, this.attentionShape); // rotates qkv in place: the cache holds rotated keys
      const bytes = qkv.dtype === F32 ? 4 : 2;
      rows.forEach((row, s) => {
        const T = batch.cuSeqlens[s + 1] - batch.cuSeqlens[s];
        const from = qkv.ptr + batch.cuSeqlens[s] * qkv.shape[1] * bytes;
        const at = row * cache.rowSize * bytes;
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
    const { numHeads: H, numKvHeads: KV, headDim: D } = this.attentionShape;
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
    rows?: Int32Array,
  ): Tensor {
    this.check(batch);
    const nseq = batch.cuSeqlens.length - 1;
    const layout = { cu: tape.upload(batch.cuSeqlens), nseq, positions: tape.upload(batch.positions) };
    const mix = mixer(layout);
    const { keeper } = this.parameters;
    this.useShared(tape.recording);
    let h = this.embed(tape, batch.ids);
    for (let i = 0; i < this.layers.length; i++) {
      const before = h;
      const unit = this.layerUnits[i];
      keeper.before(unit, "forward");
      tape.whenBack(() => keeper.after(unit, "backward"));
      // Processes that share out the tokens each have other rows: there they are picked when all have come together.
      const wanted = this.pipe.last && !this.grid.sequence && i === this.layers.length - 1 ? rows : undefined;
      const layer = (x: Tensor): Tensor => this.layer(tape, x, i, batch.ids.length, (qkv) => mix(i, qkv), wanted);
      h = this.recompute ? tape.recompute(before, layer) : layer(before);
      tape.whenBack(() => keeper.before(unit, "backward"));
      keeper.after(unit, "forward");
      if (!tape.recording) before.storage.release();
    }
    if (!this.finalNorm) return this.pipe.handOn(tape, h);
    const hidden = rmsNorm(tape, h, this.finalNorm, this.config.rmsNormEps);
    const { tensor, sequence } = this.grid;
    if (!sequence) return hidden;
    const all = gatherRows(tape, hidden, batch.ids.length, tensor, this.head === "scalar");
    return rows ? pickRows(tape, all, rows) : all;
  }

  /** Kernels index by ids and positions, and check nothing. Sees that there are angles for these positions. */
  private check({ ids, positions, cuSeqlens }: TokenBatch): void {
    this.mustBeOpen();
    for (const [what, array] of Object.entries({ ids, positions, cuSeqlens })) mustBeArray(what, array, Int32Array);
    mustBeAsMany("positions", positions.length, ids.length);
    const ascending = cuSeqlens.every((at, i) => (i === 0 ? at === 0 : at >= cuSeqlens[i - 1]));
    if (!ascending || cuSeqlens[cuSeqlens.length - 1] !== ids.length)
      throw new UserError(`cuSeqlens must lead from 0 to ${ids.length}, the number of tokens, and never back.`);
    const { vocabSize, maxPositionEmbeddings } = this.config;
    let [id, position] = [0, 0];
    for (let i = 0; i < ids.length; i++) {
      if (ids[i] >>> 0 > id) id = ids[i] >>> 0; // a negative one is larger than any vocabulary
      if (positions[i] >>> 0 > position) position = positions[i] >>> 0;
    }
    checkId(id, vocabSize);
    if (position >= maxPositionEmbeddings)
      throw new UserError(
        `A sequence has ${position + 1} tokens, but the model was made for ${describePositions(this.config)}.`,
      );
    this.tables.reach(position + 1);
  }

  /** Tells the keepers that what belongs to no layer is used from here on. */
  private useShared(recording: boolean): void {
    for (const set of [this.parameters, this.lora?.parameters])
      for (const unit of set?.units ?? []) if (!unit.name.startsWith("layer ")) set!.keeper.use(unit, recording);
    for (const [matrix, rows] of this.lora?.rows ?? []) putRows(matrix, rows);
  }

  /** A forward pass that needs no tape: `body` for each layer in turn, while its values are in memory. */
  eachLayer(body: (layer: Layer, index: number) => void): void {
    const { keeper } = this.parameters;
    this.useShared(false);
    this.layers.forEach((layer, i) => {
      keeper.before(this.layerUnits[i], "forward");
      body(layer, i);
      keeper.after(this.layerUnits[i], "forward");
    });
  }

  private embed(tape: Tape, ids: Int32Array): Tensor {
    const { embeddings: table, config, grid } = this;
    const { tensor, sequence } = grid;
    const rows = sequence ? rowsEach(ids.length, tensor) : ids.length;
    if (!table) return this.pipe.receive(tape, this.parameters.dtype, rows, config.hiddenSize);
    if (tensor.size === 1) return embedding(tape, table, ids, this.lora?.rows.get(table));
    const part = partialEmbedding(tape, table, ids, this.vocabulary.from);
    if (sequence) return scatterRows(tape, part, tensor);
    tensor.allReduce(part.ptr, part.size, part.dtype);
    return part;
  }

  /** Rows of the embedding and of the output matrix that this process has. */
  private get vocabulary(): { from: number; to: number } {
    return part(this.config.vocabSize, this.grid.tensor.rank, this.grid.tensor.size);
  }

  /** One number for each token, or for the wanted ones only and 0 for the others: [N] fp32. For models with a scalar head. */
  values(tape: Tape, batch: TokenBatch, wanted?: Int32Array): Tensor {
    const N = batch.ids.length;
    return this.pipe.fromLast(tape, this.forward(tape, batch, wanted), [N], (hidden) => {
      const values = scalarHead(tape, hidden, this.outputMatrix!);
      return wanted ? spreadRows(tape, values, wanted, N) : values;
    });
  }

  /** log softmax(logits / temperature)[targets[i]] given the tokens up to i: [N] fp32; targets below 0 are skipped. */
  logProbs(tape: Tape, batch: TokenBatch, targets: Int32Array, temperature = 1): Tensor {
    const { rows, kept } = targetRows(batch, targets, this.config.vocabSize);
    return this.pipe.fromLast(tape, this.forward(tape, batch, rows), [targets.length], (hidden) => {
      const logp = this.logProbOf(tape, hidden, kept, 1 / temperature);
      return rows ? spreadRows(tape, logp, rows, targets.length) : logp;
    });
  }

  private logProbOf(tape: Tape, hidden: Tensor, targets: Int32Array, invTemperature: number): Tensor {
    const { tensor, sequence } = this.grid;
    const W = this.outputMatrix!;
    if (tensor.size === 1)
      return tokenLogProb(tape, hidden, W, tape.upload(targets), invTemperature, this.lora?.rows.get(W));
    const h = sequence ? hidden : sumBackward(tape, hidden, tensor);
    return sharedLogProb(tape, h, W, targets, this.vocabulary.from, invTemperature, tensor);
  }

  /** Entropy (nats) of the distribution over the next token, for rows with a target; 0 elsewhere: [N] fp32. */
  entropies(tape: Tape, batch: TokenBatch, targets: Int32Array, temperature = 1): Tensor {
    const { rows, kept } = targetRows(batch, targets, this.config.vocabSize);
    return this.pipe.fromLast(tape, this.forward(tape, batch, rows), [targets.length], (hidden) => {
      const W = this.outputMatrix!;
      const entropy = tokenEntropy(tape, hidden, W, tape.upload(kept), 1 / temperature, this.lora?.rows.get(W));
      return rows ? spreadRows(tape, entropy, rows, targets.length) : entropy;
    });
  }

  /**
   * Weighted cross entropy (see ops.ts): -sum(weights * log p). `logp` is what backward starts from. In a pipeline the
   * loss is the last stage's to know, and 0 in the others: nobody waits for it, so that micro-batches can follow.
   */
  loss(tape: Tape, batch: TokenBatch, targets: Int32Array, weights: Float32Array): { logp: Tensor; loss: number } {
    const { rows, kept } = targetRows(batch, targets, this.config.vocabSize);
    mustBeArray("weights", weights, Float32Array);
    mustBeAsMany("weights", weights.length, targets.length);
    const hidden = this.forward(tape, batch, rows);
    if (!this.pipe.last) return { logp: hidden, loss: 0 };
    const w = rows ? Float32Array.from(rows, (row) => weights[row]) : weights;
    const W = this.outputMatrix!;
    const logp =
      this.grid.tensor.size === 1
        ? crossEntropy(tape, hidden, W, tape.upload(kept), w, this.lora?.rows.get(W))
        : weighted(tape, this.logProbOf(tape, hidden, kept, 1), w);
    const values = this.device.f32(logp.ptr, logp.size);
    let loss = 0;
    for (let i = 0; i < values.length; i++) if (w[i] !== 0) loss -= w[i] * values[i];
    return { logp, loss };
  }

  /** Logits [rows, V] fp32 of chosen rows of `hidden`; for generation, and for looking at a model. */
  logits(tape: Tape, hidden: Tensor, rows: Int32Array): Tensor {
    const { vocabSize } = this.config;
    const { tensor } = this.grid;
    this.mustBeOpen();
    return this.pipe.fromLast(tape, hidden, [rows.length, vocabSize], (h) => {
      const outside = rows.find((row) => !(row >= 0 && row < h.shape[0]));
      if (outside !== undefined)
        throw new UserError(`Logits of row ${outside} are asked for, and there are ${h.shape[0]} hidden states.`);
      const own = this.ownLogits(tape, h, rows);
      return tensor.size === 1 ? own : gatherColumns(tape, own, vocabSize, tensor);
    });
  }

  private ownLogits(tape: Tape, hidden: Tensor, rows: Int32Array): Tensor {
    const { device } = this;
    const [V, d] = this.outputMatrix!.shape;
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
      this.outputMatrix!.ptr,
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
    this.mustBeOpen();
    this.tables.reach(maxLength);
    return makeCache(this.device, rows, maxLength, this.layers.length, this.attentionShape, this.precision);
  }

  /**
   * Floating point operations that training on a batch takes, forward and backward, none of them twice: 6 for a weight and a token (4 for
   * one that is frozen), what stands behind the last attention for targets only; and of attention, that is causal, 6 L H D T^2 for a sequence of T.
   */
  trainingFlops({ cuSeqlens, ids }: TokenBatch, targets: Int32Array): number {
    const { vocabSize, hiddenSize, intermediateSize, tieWordEmbeddings, numLayers, numHeads, headDim } = this.config;
    const table = vocabSize * hiddenSize;
    const behind = hiddenSize * (numHeads * headDim + 3 * intermediateSize);
    const before = this.count - (tieWordEmbeddings ? 1 : 2) * table - behind;
    const wanted = targets.reduce((n, t) => n + (t >= 0 ? 1 : 0), 0);
    const products = (this.lora ? 4 : 6) * (before * ids.length + (behind + table) * wanted);
    const adapters = this.lora ? 6 * this.lora.parameters.count * ids.length : 0;
    let squares = 0;
    for (let s = 1; s < cuSeqlens.length; s++) squares += (cuSeqlens[s] - cuSeqlens[s - 1]) ** 2;
    return products + adapters + 6 * numLayers * numHeads * headDim * squares;
  }

  /** Throws where the memory was given back: kernels would read what is no longer there. */
  mustBeOpen(): void {
    if (this.closed) throw new UserError("This model was closed: its memory is gone. Load it anew.");
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.parameters.close();
    this.lora?.parameters.close();
    this.tables.close();
  }
}

function mustBeArray(what: string, found: unknown, type: typeof Int32Array | typeof Float32Array): void {
  if (!(found instanceof type))
    throw new UserError(`${what} must be of the class ${type.name}: write ${type.name}.from(${what}).`);
}

function mustBeAsMany(what: string, found: number, wanted: number): void {
  if (found !== wanted) throw new UserError(`There are ${found} ${what} for ${wanted} tokens; each token has one.`);
}

function checkId(id: number, vocabSize: number): void {
  if (id >= vocabSize)
    throw new UserError(
      `Token ${id | 0} is not in the model's vocabulary of ${vocabSize}: the tokens are another tokenizer's than the model's.`,
    );
}

/** The rows that have a target, when that leaves out enough to be worth a copy: most of a prompt. */
function targetRows(
  { ids }: TokenBatch,
  targets: Int32Array,
  vocabSize: number,
): { rows?: Int32Array; kept: Int32Array } {
  mustBeArray("targets", targets, Int32Array);
  mustBeAsMany("targets", targets.length, ids.length);
  checkId(
    targets.reduce((a, b) => Math.max(a, b), 0),
    vocabSize,
  );
  const rows = Int32Array.from(targets.keys()).filter((i) => targets[i] >= 0);
  if (rows.length > 0.8 * targets.length || rows.length === 0) return { kept: targets };
  return { rows, kept: Int32Array.from(rows, (row) => targets[row]) };
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
