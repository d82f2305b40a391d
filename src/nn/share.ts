/**
 * The parameters of a Llama that one process has: all of them, or its part of each layer (tensor parallelism) and its layers (pipeline).
 * Names are Hugging Face's; what is computed in one product is stored as one matrix.
 */
import { part } from "../parallel/tensor.js";
import type { ParameterSpec } from "../tensor/parameters.js";
import type { LlamaConfig } from "./config.js";

export const EMBEDDING = "model.embed_tokens.weight";

/** What stands on the hidden states: the output matrix of a language model, or one number (reward and value models). */
export type Head = "lm" | "scalar";

/** What one process has of a model that several share: a part of each layer, and some of the layers. */
export interface Share {
  tensor: { rank: number; size: number };
  layers: { from: number; to: number };
  first: boolean;
  last: boolean;
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
  const norm = (name: string): ParameterSpec => ({
    unit: "vectors",
    shape: [d],
    parts: [{ name: `${name}.weight`, rows: d }],
    init: "ones",
    stream: stream++,
  });
  const width = whole(d);
  const list: ParameterSpec[] = [];
  const table = matrix("embedding", width, ["model.embed_tokens", cut(c.vocabSize)]);
  const tied = head === "lm" && c.tieWordEmbeddings;
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
