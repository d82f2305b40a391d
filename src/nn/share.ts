/**
 * The parameters of a Llama that one process has: all of them, or its part of each layer (tensor parallelism) and its layers (pipeline).
 * Names are Hugging Face's; what is computed in one product is stored as one matrix.
 */
import { type Comm, sumNumbers } from "../parallel/comm.js";
import type { Grid } from "../parallel/grid.js";
import { part } from "../parallel/tensor.js";
import { UserError } from "../run/errors.js";
import { zeroMissing } from "../tensor/gradients.js";
import { type ParameterSet, type ParameterSpec, tensorsOf } from "../tensor/parameters.js";
import type { Unit } from "../tensor/tensor.js";
import type { LlamaConfig } from "./config.js";

/** The unit of the norms that all heads share. */
const HEAD_NORMS = "norms of heads";
const EMBEDDING = "model.embed_tokens.weight";

/** What stands on the hidden states: the output matrix of a language model, or one number (reward and value models). */
export type Head = "lm" | "scalar";

/** What one process has of a model that several share: a part of each layer, and some of the layers. */
export interface Share {
  tensor: { rank: number; size: number };
  layers: { from: number; to: number };
  first: boolean;
  last: boolean;
}

/** What stage `stage` of the pipeline has. Throws a UserError where the model does not divide among the processes. */
export function shareOf(c: LlamaConfig, grid: Grid, stage: number): Share {
  const { rank, size } = grid.tensor;
  const stages = grid.pipeline.size;
  if (c.numHeads % size !== 0 || c.numKvHeads % size !== 0)
    throw new UserError(
      `parallel.tensor is ${size}, but the model has ${c.numHeads} heads and ${c.numKvHeads} key-value heads, which do not divide among ${size} processes.`,
      2,
    );
  if (stages > c.numLayers)
    throw new UserError(`parallel.pipeline is ${stages}, but the model has only ${c.numLayers} layers.`, 2);
  return {
    tensor: { rank, size },
    layers: part(c.numLayers, stage, stages),
    first: stage === 0,
    last: stage === stages - 1,
  };
}

const isTied = (c: LlamaConfig, head: Head): boolean => head === "lm" && c.tieWordEmbeddings;

/** The tensors of each stage of the pipeline, as a checkpoint has them: whole, and each once. */
export function stagesOf(c: LlamaConfig, head: Head, grid: Grid): { name: string; whole: number[] }[][] {
  return Array.from({ length: grid.pipeline.size }, (_, stage) => {
    const share = shareOf(c, grid, stage);
    const set = tensorsOf(parametersOf(c, head, share));
    return isTied(c, head) && share.last && !share.first ? set.filter((t) => t.name !== EMBEDDING) : set;
  });
}

/** In the order in which `Llama` takes them: the table, layer by layer, final norm, output matrix. */
export function parametersOf(c: LlamaConfig, head: Head, share: Share): ParameterSpec[] {
  const { hiddenSize: d, intermediateSize: f, headDim } = c;
  const { rank, size } = share.tensor;
  /** Equal parts, each a multiple of `grain` rows (of a head, say). */
  const cut = (full: number, grain = 1): { from: number; rows: number; full: number } => {
    const { from, to } = part(full / grain, rank, size);
    return { from: from * grain, rows: (to - from) * grain, full };
  };
  const whole = (n: number): { from: number; rows: number; full: number } => ({ from: 0, rows: n, full: n });
  let stream = 0;
  /** A matrix [rows, columns]; several names are stored one below the other. */
  const matrix = (
    unit: string,
    columns: ReturnType<typeof cut>,
    ...parts: [string, ReturnType<typeof cut>][]
  ): ParameterSpec => ({
    unit,
    shape: [parts.reduce((n, [, r]) => n + r.rows, 0), columns.rows],
    parts: parts.map(([name, { from, rows, full }]) => ({
      name: `${name}.weight`,
      rows,
      ...(rows < full && { cut: { axis: 0 as const, from, full } }),
      ...(columns.rows < columns.full && { cut: { axis: 1 as const, from: columns.from, full: columns.full } }),
    })),
    init: "normal",
    stream: stream++,
  });
  const norm = (name: string, width = d, unit = "vectors"): ParameterSpec => ({
    unit,
    shape: [width],
    parts: [{ name: `${name}.weight`, rows: width }],
    init: "ones",
    stream: stream++,
  });
  /** As the rows of its matrix are. */
  const bias = (...parts: [string, ReturnType<typeof cut>][]): ParameterSpec => ({
    unit: "biases",
    shape: [parts.reduce((n, [, r]) => n + r.rows, 0)],
    parts: parts.map(([name, { from, rows, full }]) => ({
      name: `${name}.bias`,
      rows,
      ...(rows < full && { cut: { axis: 0 as const, from, full } }),
    })),
    init: "zeros",
    stream: stream++,
  });
  const width = whole(d);
  const list: ParameterSpec[] = [];
  const table = matrix("embedding", width, ["model.embed_tokens", cut(c.vocabSize)]);
  const tied = isTied(c, head);
  if (share.first || (share.last && tied)) list.push(table);
  for (let i = 0; i < c.numLayers; i++) {
    const at = `model.layers.${i}`;
    const self = `${at}.self_attn`;
    const unit = `layer ${i}`;
    const q = cut(c.numHeads * headDim, headDim);
    const kv = cut(c.numKvHeads * headDim, headDim);
    const inner = cut(f);
    const layer = [
      norm(`${at}.input_layernorm`),
      matrix(unit, width, [`${self}.q_proj`, q], [`${self}.k_proj`, kv], [`${self}.v_proj`, kv]),
      ...(c.modelType === "qwen2" ? [bias([`${self}.q_proj`, q], [`${self}.k_proj`, kv], [`${self}.v_proj`, kv])] : []),
      ...(c.modelType === "qwen3"
        ? [norm(`${self}.q_norm`, headDim, HEAD_NORMS), norm(`${self}.k_norm`, headDim, HEAD_NORMS)]
        : []),
      matrix(unit, q, [`${self}.o_proj`, width]),
      norm(`${at}.post_attention_layernorm`),
      matrix(unit, width, [`${at}.mlp.gate_proj`, inner], [`${at}.mlp.up_proj`, inner]),
      matrix(unit, inner, [`${at}.mlp.down_proj`, width]),
    ];
    if (i >= share.layers.from && i < share.layers.to) list.push(...layer);
  }
  const finalNorm = norm("model.norm");
  if (share.last) list.push(finalNorm);
  const output =
    head === "scalar"
      ? matrix("head", width, ["score", whole(1)])
      : matrix("head", width, ["lm_head", cut(c.vocabSize)]);
  if (share.last && !tied) list.push(output);
  return list;
}

/** Gradients that several processes have parts of: what makes them one model's. */
export function joinParts(parameters: ParameterSet, grid: Grid, share: Share, c: LlamaConfig, head: Head): void {
  const shared = (u: Unit): boolean => parameters.specs.some((s) => s.unit === u.name && s.parts.some((p) => p.cut));
  // A tied table is at both ends of a pipeline: it gets the sum of both gradients, and counts once.
  const twice = (u: Unit): boolean => isTied(c, head) && u.name === "embedding" && grid.pipeline.size > 1;
  parameters.storage = {
    stages: () => stagesOf(c, head, grid),
    writer: grid.writer,
    whole: (t, ptr, width) => grid.whole(t, ptr, width),
  };
  parameters.beforeSettle = () => {
    const join = (unit: Unit, comm: Comm): void => {
      zeroMissing(unit);
      comm.allReduce(unit.grads, unit.length, parameters.dtype);
    };
    // With sequence parallelism each process has the gradient of a norm's weights from its own tokens; of a norm of heads, always from its own heads.
    const ofParts = [HEAD_NORMS, ...(grid.sequence ? ["vectors"] : [])];
    if (grid.tensor.size > 1)
      for (const unit of parameters.units) if (ofParts.includes(unit.name)) join(unit, grid.tensor);
    for (const unit of parameters.units) if (twice(unit)) join(unit, grid.ends);
  };
  parameters.total = (squares) => {
    let [parts, whole] = [0, 0];
    for (const [u, unit] of parameters.units.entries()) {
      if (twice(unit) && !share.first) continue;
      if (shared(unit)) parts += squares[u];
      else whole += squares[u];
    }
    const [all] = sumNumbers(grid.tensor, [parts]);
    return sumNumbers(grid.pipeline, [all + whole])[0];
  };
}
