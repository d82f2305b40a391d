// For programs whose own libraries have no Symbol.dispose.
/// <reference lib="esnext.disposable" preserve="true" />
/** A model folder ready to answer: weights, tokenizer, and the tokens that end a reply. */
import { existsSync, readFileSync } from "node:fs";
import { openCpu } from "../device/cpu.js";
import { type LlamaConfig, readLlamaConfig } from "../nn/config.js";
import { loadLlama } from "../nn/folder.js";
import type { Llama, Precision } from "../nn/llama.js";
import { UserError } from "../run/errors.js";
import { openSafetensors } from "../run/safetensors.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { Int8Weights, PackedWeights, type ReadyWeights } from "./weights.js";

export interface Loaded {
  model: Llama;
  tokenizer: Tokenizer;
  stop: number[];
  /** Asked for with `weights`: the weights once more, for `generate`. */
  weights?: ReadyWeights;
  /** Gives the memory of model and weights back. */
  close: () => void;
  /** The same at the end of a block: `using loaded = loadForGeneration(dir)`. */
  [Symbol.dispose]: () => void;
}

export interface LoadingOptions {
  /** Default: the one that the file was saved in. */
  precision?: Precision;
  threads?: number;
  /** For many replies, one after the other: the weights in int8 as well, or packed without loss where that is faster. */
  weights?: "int8" | "packed";
}

const ALLOWED = { precision: ["fp32", "bf16"], weights: ["int8", "packed"] };

/** Loads for inference. */
export function loadForGeneration(dir: string, options: LoadingOptions = {}): Loaded {
  for (const [key, allowed] of Object.entries(ALLOWED)) {
    const given = options[key as keyof typeof ALLOWED];
    if (given !== undefined && !allowed.includes(given))
      throw new UserError(`${key} is "${given}"; it must be ${allowed.join(" or ")}.`, 2);
  }
  const config = readLlamaConfig(dir);
  const tokenizer = Tokenizer.load(dir);
  const stop = stopTokens(dir, config, tokenizer);
  // Tokens that were added may lie beyond the model's: some folders bring a pad token that no text has.
  if (tokenizer.modelSize > config.vocabSize)
    throw new UserError(
      `${dir}: the tokenizer has ${tokenizer.modelSize} tokens, and the model knows ${config.vocabSize}: tokenizer.json is not the model's own tokenizer.`,
    );
  const model = loadLlama(openCpu({ threads: options.threads ?? 0 }), dir, options.precision ?? storedPrecision(dir), {
    trainable: false,
  });
  const weights =
    options.weights === "int8"
      ? new Int8Weights(model)
      : options.weights && PackedWeights.worthwhile(model, 1, Number.POSITIVE_INFINITY);
  const close = (): void => {
    if (weights) weights.close();
    model.close();
  };
  return { model, tokenizer, stop, ...(weights && { weights }), close, [Symbol.dispose]: close };
}

/** The tokens that end a reply; the tokenizer's own first. */
export const stopTokens = (dir: string, config: LlamaConfig, tokenizer: Tokenizer): number[] => [
  ...new Set([tokenizer.eosId ?? [], config.eosTokenId ?? [], eosOf(dir)].flat()),
];

/** fp32 when any weight of the folder is. */
export function storedPrecision(dir: string): Precision {
  const file = openSafetensors(dir);
  try {
    return file.names().some((name) => file.info(name).dtype === "F32") ? "fp32" : "bf16";
  } finally {
    file.close();
  }
}

/** eos_token_id of generation_config.json: chat models often list more than one. */
function eosOf(dir: string): number[] {
  const path = `${dir}/generation_config.json`;
  if (!existsSync(path)) return [];
  let eos: number | number[] | null | undefined;
  try {
    eos = (JSON.parse(readFileSync(path, "utf8")) as { eos_token_id?: number | number[] | null }).eos_token_id;
  } catch (error) {
    throw new UserError(`${path} holds no JSON object: ${(error as Error).message}`);
  }
  return eos === undefined || eos === null ? [] : [eos].flat();
}
