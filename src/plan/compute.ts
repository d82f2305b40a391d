/**
 * Seconds of computation on one device: matrix products at the speed that large products reach, everything else at the speed of
 * memory. What is kept for the backward pass is written once and read once; the backward pass does the same twice over.
 */
import { type ActivationCase, cacheBytes, layerActivations } from "./activations.js";
import type { Cluster } from "./cluster.js";
import { layerParameters, type ModelShape } from "./shape.js";
import { type Precision, valueBytes } from "./states.js";

/** Operations of one token forward in one layer: 2 for each weight, 4 for each pair of tokens and channel of attention. */
export function layerFlops(shape: ModelShape, contextLength: number, attention: "blocked" | "full"): number {
  const pairs = attention === "blocked" ? contextLength / 2 : contextLength; // blocks above the diagonal are left out
  return 2 * layerParameters(shape) + 4 * shape.numHeads * shape.headDim * pairs;
}
export const headFlops = (shape: ModelShape): number => 2 * shape.vocabSize * shape.hiddenSize;

/** Operations that the model's arithmetic needs for one training token: forward, and twice that backward. */
export const trainingFlops = (shape: ModelShape, contextLength: number, attention: "blocked" | "full"): number =>
  3 * (shape.numLayers * layerFlops(shape, contextLength, attention) + headFlops(shape));

/** Operations a second that large products reach. */
const productSpeed = (precision: Precision, c: Cluster): number =>
  c.flops * c.matmulEfficiency * (precision === "fp32" ? 0.5 : 1);

export interface LayerSeconds {
  forward: number;
  backward: number;
}

/** One layer and one micro-batch, without what is sent. */
export function layerSeconds(shape: ModelShape, a: ActivationCase, c: Cluster): LayerSeconds {
  const speed = productSpeed(a.precision, c);
  const products = (a.tokens * layerFlops(shape, a.contextLength, a.attention)) / a.tensor / speed;
  const traffic = (2 * layerActivations(shape, a)) / c.memoryBandwidth;
  // However few the tokens, the weights are read.
  const weights = ((layerParameters(shape) / a.tensor) * valueBytes(a.precision)) / c.memoryBandwidth;
  const forward = Math.max(products, weights) + traffic;
  return { forward, backward: 2 * forward };
}

export function headSeconds(shape: ModelShape, a: ActivationCase, c: Cluster): LayerSeconds {
  const products = (a.tokens * headFlops(shape)) / a.tensor / productSpeed(a.precision, c);
  const traffic = (2 * 4 * a.tokens * shape.vocabSize) / a.tensor / c.memoryBandwidth;
  return { forward: products + traffic, backward: 2 * products + traffic };
}

/** Bytes that an AdamW update reads and writes for one parameter: master, m and v twice, the gradient and the parameter once. */
export const UPDATE_BYTES = 28;

/** Seconds of writing one token for each of `rows` replies, with `past` tokens in their caches: reading weights and caches. */
export function decodeSeconds(
  shape: ModelShape,
  rows: number,
  past: number,
  precision: Precision,
  devices: number,
  c: Cluster,
): number {
  const read = valueBytes(precision) * shape.parameters + cacheBytes(shape, past * rows, precision);
  const products = (rows * 2 * shape.parameters) / productSpeed(precision, c);
  return Math.max(read / c.memoryBandwidth, products) / devices;
}
