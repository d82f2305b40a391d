/** The shape of a model to plan for: from a Hugging Face config.json, or from a name such as 7B. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { UserError } from "../run/errors.js";

export interface ModelShape {
  name: string;
  /** What memory and time are reckoned with. For a name such as 7.5B it is that number; else the sum of the matrices. */
  parameters: number;
  numLayers: number;
  hiddenSize: number;
  intermediateSize: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  vocabSize: number;
  /** The output matrix is the embedding matrix. */
  tied: boolean;
  /** swiglu: gate, up and down (Llama); gelu: two matrices with biases (GPT). */
  mlp: "swiglu" | "gelu";
  /** qwen2 has biases of queries, keys and values, qwen3 norms of their heads. */
  modelType?: string;
  /** Where the shape came from; shown. */
  note: string;
}

type Dimensions = Omit<ModelShape, "name" | "parameters" | "note">;

/** Parameters of one layer as its matrices give them. */
export function layerMatrices(s: Dimensions): number {
  const q = s.numHeads * s.headDim;
  const kv = s.numKvHeads * s.headDim;
  const attention = s.hiddenSize * (q + 2 * kv) + q * s.hiddenSize;
  const own = s.modelType === "qwen2" ? q + 2 * kv : s.modelType === "qwen3" ? 2 * s.headDim : 0;
  if (s.mlp === "swiglu") return attention + own + 3 * s.hiddenSize * s.intermediateSize + 2 * s.hiddenSize;
  // GPT: every matrix has a bias, a LayerNorm has two vectors (Narayanan et al. 2021, section 5: 12 h^2 + 13 h).
  const biases = q + 2 * kv + s.hiddenSize + s.intermediateSize + s.hiddenSize;
  return attention + 2 * s.hiddenSize * s.intermediateSize + biases + 4 * s.hiddenSize;
}

/** Parameters of the embedding, and of an output matrix of its own. */
export const embeddingParameters = (s: Dimensions): number => s.vocabSize * s.hiddenSize;
export const headParameters = (s: Dimensions): number => (s.tied ? 0 : s.vocabSize * s.hiddenSize);

export const countMatrices = (s: Dimensions): number =>
  s.numLayers * layerMatrices(s) +
  embeddingParameters(s) +
  headParameters(s) +
  (s.mlp === "gelu" ? 2 : 1) * s.hiddenSize;

/** Parameters of one layer such that all of them make up `parameters`. */
export const layerParameters = (s: ModelShape): number =>
  (s.parameters - embeddingParameters(s) - headParameters(s)) / s.numLayers;

/** Layers, hidden size, heads, key-value heads, intermediate size, vocabulary. */
type Row = readonly [number, number, number, number, number, number];
/** Llama 2 (Touvron et al. 2023, table 1 of its predecessor for 7B and 13B) and Llama 3 8B: a family's own matrices. */
const LLAMA: Record<string, Row> = {
  "7B": [32, 4096, 32, 32, 11008, 32000],
  "13B": [40, 5120, 40, 40, 13824, 32000],
  "70B": [80, 8192, 64, 8, 28672, 32000],
  "8B": [32, 4096, 32, 8, 14336, 128256],
};
/** GPT shapes of Narayanan et al. 2021, table 1, and GPT-3: layers, hidden size, heads. Vocabulary 51,200. */
const GPT: Record<string, readonly [number, number, number]> = {
  "1.7B": [24, 2304, 24],
  "3.6B": [30, 3072, 32],
  "7.5B": [36, 4096, 32],
  "18.4B": [40, 6144, 48],
  "39.1B": [48, 8192, 64],
  "76.1B": [60, 10240, 80],
  "145.6B": [80, 12288, 96],
  "175B": [96, 12288, 96],
  "310.1B": [96, 16384, 128],
  "529.6B": [105, 20480, 128],
  "1008B": [128, 25600, 160],
};

const gpt = (numLayers: number, hiddenSize: number, numHeads: number): Dimensions => ({
  numLayers,
  hiddenSize,
  numHeads,
  numKvHeads: numHeads,
  headDim: hiddenSize / numHeads,
  intermediateSize: 4 * hiddenSize,
  vocabSize: 51200,
  tied: true,
  mlp: "gelu",
});

export function llamaShape(
  name: string,
  row: Row,
  tied = false,
  note = "its matrices",
  headSize?: number,
  modelType?: string,
): ModelShape {
  const [numLayers, hiddenSize, numHeads, numKvHeads, intermediateSize, vocabSize] = row;
  const s: Dimensions = {
    numLayers,
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim: headSize ?? hiddenSize / numHeads,
    intermediateSize,
    vocabSize,
    tied,
    mlp: "swiglu",
    ...(modelType && { modelType }),
  };
  return { name, ...s, parameters: countMatrices(s), note };
}

/** A model by its size. Known names have their published shape; any other size gets a GPT-like one, and counts as named. */
export function namedShape(name: string): ModelShape | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([MBT])$/i.exec(name.trim());
  if (!match) return undefined;
  const key = `${Number(match[1])}${match[2].toUpperCase()}`;
  const parameters = Number(match[1]) * { M: 1e6, B: 1e9, T: 1e12 }[match[2].toUpperCase() as "M" | "B" | "T"];
  if (parameters < 1e6)
    throw new UserError(
      `--model ${name}: there is no usual shape for fewer than 1M parameters; give a config.json.`,
      2,
    );
  if (LLAMA[key]) return llamaShape(key, LLAMA[key], false, `the matrices of Llama ${key === "8B" ? 3 : 2} ${key}`);
  if (GPT[key])
    return { name: key, ...gpt(...GPT[key]), parameters, note: "counted as named; GPT shape (Narayanan et al. 2021)" };
  // 12 L d^2 with d / L = 128, as in GPT-3 (Brown et al. 2020, table 2.1).
  const numLayers = Math.max(2, Math.round((parameters / (12 * 128 ** 2)) ** (1 / 3)));
  const headDim = parameters < 1e9 ? 64 : 128;
  const hiddenSize = Math.max(1, Math.round(Math.sqrt(parameters / (12 * numLayers)) / headDim)) * headDim;
  const shape = gpt(numLayers, hiddenSize, hiddenSize / headDim);
  // In a small model a usual vocabulary would leave nothing for the layers.
  const vocabSize = Math.min(shape.vocabSize, Math.round((0.3 * parameters) / hiddenSize));
  return { name: key, ...shape, vocabSize, parameters, note: "counted as named; a GPT-like shape of that size" };
}

/** A Hugging Face config.json (Llama and its relatives, GPT-2, GPT-NeoX), by its file or its folder. */
export function hubShape(path: string): ModelShape {
  const file = statSync(path).isDirectory() ? `${path}/config.json` : path;
  if (!existsSync(file)) throw new UserError(`${path}: there is no config.json in it.`, 2);
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
  } catch (error) {
    throw new UserError(`${file}: not JSON: ${(error as Error).message}`, 2);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new UserError(`${file} does not hold a JSON object, as a config.json does.`, 2);
  const number = (keys: string[], fallback?: number): number => {
    const value = keys.map((k) => json[k]).find((v) => v !== undefined && v !== null) ?? fallback;
    if (typeof value !== "number" || !Number.isInteger(value) || value <= 0)
      throw new UserError(`${file}: ${keys[0]} must be a positive whole number, not ${JSON.stringify(value)}.`, 2);
    return value;
  };
  const type = String(json.model_type ?? "llama");
  if (["num_experts", "num_local_experts", "n_routed_experts"].some((k) => Number(json[k] ?? 0) > 1))
    throw new UserError(
      `${file}: a mixture of experts (${type}) is not a model that plan knows; it plans dense ones.`,
      2,
    );
  const hiddenSize = number(["hidden_size", "n_embd"]);
  const numHeads = number(["num_attention_heads", "n_head"]);
  const old = ["gpt2", "gpt_neox", "opt", "gpt_bigcode"].includes(type);
  const shape: Dimensions = {
    numLayers: number(["num_hidden_layers", "n_layer"]),
    hiddenSize,
    numHeads,
    numKvHeads: number(["num_key_value_heads"], numHeads),
    headDim: number(["head_dim"], type === "qwen3" ? 128 : Math.floor(hiddenSize / numHeads)),
    intermediateSize: number(["intermediate_size", "ffn_dim", "n_inner"], 4 * hiddenSize),
    vocabSize: number(["vocab_size"]),
    tied: (json.tie_word_embeddings ?? (type === "gpt2" || type === "opt")) === true,
    mlp: old ? "gelu" : "swiglu",
    modelType: type,
  };
  const learnt = old && type !== "gpt_neox" ? number(["n_positions", "max_position_embeddings"], 1024) * hiddenSize : 0;
  return { name: path, ...shape, parameters: countMatrices(shape) + learnt, note: `its matrices, from ${file}` };
}
