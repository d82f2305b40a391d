/** Reads the golden numbers of test/golden/llama (made by make.py there), and measures distance from them. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { F32 } from "../../src/device/device.js";
import { type Llama, packSequences, type TokenBatch } from "../../src/nn/llama.js";

export const VARIANTS = [
  "mha-untied",
  "gqa-tied",
  "head-dim-llama3",
  "linear-3-layers",
  "qwen2-tied",
  "qwen3-untied",
  "mistral",
] as const;
export const CASES = ["single", "pair", "long", "packed"] as const;
/** Relative tolerances of the project: fp32 against fp32, bf16 against fp32. */
export const TOLERANCE = { fp32: 1e-4, bf16: 2e-2 } as const;
export const PRECISIONS = ["fp32", "bf16"] as const;

/** A tensor in brief: its L2 norm, sum of x[i] cos(i), and the values at a few places. */
export interface Summary {
  norm: number;
  dot: number;
  at: number[];
  values: number[];
}

export interface GoldenCase {
  inputs: number[][];
  targets: number[][];
  lastLogits: number[][];
  logitDots: number[];
  logProbs: number[];
  loss: number;
  grads: Record<string, Summary>;
}

export interface GoldenTraining {
  betas: [number, number];
  eps: number;
  weightDecay: number;
  gradClip: number;
  schedule: { peak: number; warmupSteps: number; minLearningRate: number };
  learningRates: number[];
  batches: number[][][];
  losses: number[];
  gradNorms: number[];
  weights: Record<string, Summary>;
}

export interface Golden {
  cases: Record<(typeof CASES)[number], GoldenCase>;
  training?: GoldenTraining;
}

export const folder = (variant: string): string =>
  fileURLToPath(new URL(`../golden/llama/${variant}`, import.meta.url));
export const readJson = (path: string): unknown => JSON.parse(readFileSync(path, "utf8"));
export const golden = (variant: string): Golden => readJson(`${folder(variant)}/golden.json`) as Golden;

/** Rows of tokens and the next token of each (-1: not looked at) as one batch whose weights make the mean loss. */
export function weighted(
  inputs: number[][],
  targets: number[][],
): { batch: TokenBatch; targets: Int32Array; weights: Float32Array } {
  const flat = Int32Array.from(targets.flat());
  const counted = flat.filter((t) => t >= 0).length;
  return {
    batch: packSequences(inputs),
    targets: flat,
    weights: Float32Array.from(flat, (t) => (t < 0 ? 0 : 1 / counted)),
  };
}

export function dot(x: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * Math.cos(i);
  return sum;
}

export const norm = (x: ArrayLike<number>): number => Math.hypot(...Array.from(x));

/** Expects ||actual - wanted|| <= tolerance * scale, by default the size of what is wanted. */
export function expectNear(
  actual: ArrayLike<number>,
  wanted: ArrayLike<number>,
  tolerance: number,
  what: string,
  scale = norm(wanted),
): void {
  expect(actual.length, `${what}: length`).toBe(wanted.length);
  const distance = norm(Array.from(actual, (x, i) => x - wanted[i]));
  const message = `${what}: ${distance / scale} of its size away from the golden numbers`;
  expect(distance, message).toBeLessThanOrEqual(tolerance * scale);
}

/**
 * Expects a tensor to be the one summarised. An error of relative size e moves the norm by at most e and the dot by
 * about e * norm / sqrt(2); a single entry is measured against the root mean square of the tensor, or its own size.
 * `largest`: the norm of the largest tensor of the set, against which one that should be all zero is measured.
 */
export function expectSummary(
  actual: Float32Array,
  wanted: Summary,
  tolerance: number,
  what: string,
  largest: number,
): void {
  const scale = wanted.norm || largest;
  expect(Math.abs(norm(actual) - wanted.norm) / scale, `${what}: norm`).toBeLessThanOrEqual(tolerance);
  expect(Math.abs(dot(actual) - wanted.dot) / scale, `${what}: dot`).toBeLessThanOrEqual(2 * tolerance);
  const rms = scale / Math.sqrt(actual.length);
  wanted.at.forEach((at, i) => {
    const error = Math.abs(actual[at] - wanted.values[i]) / Math.max(rms, Math.abs(wanted.values[i]));
    expect(error, `${what}[${at}]: ${actual[at]}, golden ${wanted.values[i]}`).toBeLessThanOrEqual(5 * tolerance);
  });
}

/** The gradients of a model by their Hugging Face names, as fp32. */
export function gradients(model: Llama): Map<string, Float32Array> {
  model.parameters.settleGrads();
  return read(model, "gradPtr");
}
/** The parameters of a model by their Hugging Face names, as fp32. */
export const weights = (model: Llama): Map<string, Float32Array> => read(model, "ptr");

function read({ device, parameters }: Llama, where: "ptr" | "gradPtr"): Map<string, Float32Array> {
  const all = new Map<string, Float32Array>();
  for (const t of parameters.named()) {
    const scratch = device.alloc(t.size * 4);
    device.cast(t[where], parameters.dtype, scratch, F32, t.size);
    all.set(t.name, device.f32(scratch, t.size).slice());
    device.free(scratch, t.size * 4);
  }
  return all;
}
