/**
 * Activations: bytes that the backward pass needs of the forward pass, per layer.
 *
 * GPT, as Korthikanti et al. 2022 count it (section 4, table 2; s tokens a sequence, b sequences, h hidden size, a heads, t tensor
 * parallel): s b h (10 + 24 / t + 5 a s / (h t)); with sequence parallelism all of it is divided by t; recomputed: 2 s b h.
 * Llama, as Lyceum keeps it: input and the middle of the residual path (2 d), queries, keys and values, the attention's result,
 * gate and up; the norms' results and SwiGLU's are made again on the way back; no dropout. Attention in blocks (Dao et al. 2022) keeps no s x s matrix.
 */
import type { ModelShape } from "./shape.js";
import { type Precision, valueBytes } from "./states.js";

export interface ActivationCase {
  /** Tokens of a micro-batch, and of one sequence. */
  tokens: number;
  contextLength: number;
  tensor: number;
  sequenceParallel: boolean;
  precision: Precision;
  /** blocked: the s x s scores never exist (flash attention); full: they are kept. */
  attention: "blocked" | "full";
}

/** Bytes that one layer keeps of one micro-batch. */
export function layerActivations(shape: ModelShape, c: ActivationCase): number {
  const e = valueBytes(c.precision);
  const d = shape.hiddenSize;
  const q = shape.numHeads * shape.headDim;
  const kv = shape.numKvHeads * shape.headDim;
  const f = shape.intermediateSize;
  // Whole on every device of a tensor-parallel group, unless the sequence is split as well.
  const common = shape.mlp === "swiglu" ? 2 * d * e + 8 : 4 * d * e + 2 * d;
  const scores = c.attention === "full" ? shape.numHeads * c.contextLength * (2 * e + 1) : 4 * shape.numHeads;
  const normed = shape.modelType === "qwen3" ? q + 2 * kv : 0; // before and after the norms of heads
  const split = q + 2 * kv + normed + q + 2 * f;
  return c.tokens * (common / (c.sequenceParallel ? c.tensor : 1) + (split * e + scores) / c.tensor);
}

/** Bytes that a recomputed layer keeps: its input. */
export const layerInput = (shape: ModelShape, c: ActivationCase): number =>
  (c.tokens * shape.hiddenSize * valueBytes(c.precision)) / (c.sequenceParallel ? c.tensor : 1);

/** Bytes around the layers, where the last one is: final norm's input and result, and their gradient. */
export const headActivations = (shape: ModelShape, c: ActivationCase): number => 3 * layerInput(shape, c);

/** Logits: full ones are fp32 with their gradient in place; in chunks, as Lyceum makes them (native/logprob.c). */
export function logitBytes(shape: ModelShape, c: ActivationCase, logits: "chunked" | "full"): number {
  const { tokens } = c;
  const [d, v] = [shape.hiddenSize, shape.vocabSize / c.tensor];
  if (logits === "full") return tokens * v * 4;
  const by64 = (rows: number): number => Math.floor(rows / 64) * 64;
  const least = Math.max(64, Math.min(512, by64(d / 2)));
  const rowsIn = (bytes: number, row: number): number => Math.min(tokens, Math.max(least, by64(bytes / row)));
  const chunk = rowsIn(16 * 2 ** 20, 4 * v) * v * 4;
  if (c.precision === "fp32") return chunk;
  const gathered = tokens <= 2 * d ? tokens : rowsIn(32 * 2 ** 20, 2 * v);
  // Where the gradient of the output matrix comes in several pieces, they meet in fp32.
  return chunk + gathered * v * 2 + (gathered < tokens ? v * d * 4 : 0);
}

/** Gradients of activations, and results made again, that live while the backward pass is in one layer. */
export function backwardWorkspace(shape: ModelShape, c: ActivationCase): number {
  const e = valueBytes(c.precision);
  const f = shape.intermediateSize;
  const mlp = shape.mlp === "swiglu" ? f : 2 * f; // the gradients of gate and up take their place
  const attention = 2 * shape.numHeads * shape.headDim + 2 * shape.numKvHeads * shape.headDim;
  return c.tokens * e * (2 * shape.hiddenSize + Math.max(mlp, attention) / c.tensor);
}

/** Keys and values of `tokens` tokens: 2 x layers x key-value heads x head size. */
export const cacheBytes = (shape: ModelShape, tokens: number, precision: Precision): number =>
  2 * shape.numLayers * shape.numKvHeads * shape.headDim * tokens * valueBytes(precision);
