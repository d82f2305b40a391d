/**
 * The shape of a Llama model or a close relative, read from and written as a Hugging Face `config.json`.
 * Both spellings of the rotary settings are read: `rope_theta` + `rope_scaling` (Transformers 4) and
 * `rope_parameters` (Transformers 5); both are written, so that either version loads the folder.
 */
import { existsSync, readFileSync } from "node:fs";
import { UserError } from "../run/errors.js";

export type RopeScaling =
  | { type: "linear"; factor: number }
  | { type: "dynamic"; factor: number; original: number }
  | {
      type: "yarn";
      factor: number;
      original: number;
      /** Rotations over the original context above which a pair is left as it is, and below which it is interpolated. */
      betaFast: number;
      betaSlow: number;
      /** cos and sin are multiplied by it. */
      attentionFactor: number;
      truncate: boolean;
    }
  | { type: "llama3"; factor: number; lowFreqFactor: number; highFreqFactor: number; original: number };

/** Llama and those that differ from it by little: Qwen2 by biases of queries, keys and values, Qwen3 by norms of their heads. */
const CLASSES = { llama: "Llama", mistral: "Mistral", qwen2: "Qwen2", qwen3: "Qwen3" };
export type ModelType = keyof typeof CLASSES;
export const MODEL_TYPES = Object.keys(CLASSES) as ModelType[];

export interface LlamaConfig {
  modelType: ModelType;
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  /** Of a model with a sliding window no more than that: up to it, all of its layers see everything. */
  maxPositionEmbeddings: number;
  /** What config.json says of the window, to be written back. */
  sliding?: { window: number; maxPositionEmbeddings: number; keys: Json };
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: RopeScaling | undefined;
  tieWordEmbeddings: boolean;
  initializerRange: number;
  bosTokenId: number | undefined;
  eosTokenId: number | number[] | undefined;
  padTokenId: number | undefined;
}

type Json = Record<string, unknown>;

const WHY_NOT: Record<string, string> = {
  ENOENT: "there is no config.json in it",
  ENOTDIR: "it is a file",
};

export function readLlamaConfig(dir: string): LlamaConfig {
  const path = `${dir}/config.json`;
  let json: Json;
  try {
    json = JSON.parse(readFileSync(path, "utf8")) as Json;
  } catch (error) {
    const missing = WHY_NOT[(error as NodeJS.ErrnoException).code ?? ""];
    const near = existsSync(`${dir}/model/config.json`) ? ` Did you mean ${dir}/model?` : "";
    throw new UserError(
      `${dir} is not a model folder: ${missing ?? `its config.json: ${(error as Error).message}`}. A model folder holds config.json, model.safetensors and tokenizer.json.${near}`,
      missing ? 2 : 1,
    );
  }
  return parseLlamaConfig(json, path);
}

export function parseLlamaConfig(json: Json, path: string): LlamaConfig {
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new UserError(`${path} holds no JSON object, which a model's config.json is.`);
  const keys = keysOf(json, path);
  const { real, whole, flag, wrong } = keys;
  const type = (json.model_type ?? "llama") as ModelType;
  if (typeof type !== "string" || !Object.hasOwn(CLASSES, type))
    throw new UserError(`${path}: model_type is ${JSON.stringify(type)}; Lyceum runs ${MODEL_TYPES.join(", ")}.`);
  if ((json.hidden_act ?? "silu") !== "silu")
    throw new UserError(
      `${path}: hidden_act is ${JSON.stringify(json.hidden_act)}; only "silu" (SwiGLU) is implemented.`,
    );
  // Qwen2's classes have their own biases and Mistral's none, whatever these keys say.
  for (const key of ["attention_bias", "mlp_bias"])
    if ((type === "llama" || type === "qwen3") && flag(key))
      throw new UserError(`${path}: ${key} is true; biases are not implemented.`);
  const hiddenSize = whole("hidden_size");
  const numHeads = whole("num_attention_heads");
  const numKvHeads = whole("num_key_value_heads", numHeads);
  const headDim = whole("head_dim", type === "qwen3" ? 128 : Math.floor(hiddenSize / numHeads));
  const positions = whole("max_position_embeddings", 2048);
  const vocabSize = whole("vocab_size");
  const numLayers = whole("num_hidden_layers", undefined, { to: MAX_LAYERS });
  if (numHeads % numKvHeads !== 0)
    throw new UserError(
      `${path}: num_attention_heads (${numHeads}) must be a multiple of num_key_value_heads (${numKvHeads}).`,
    );
  if (headDim % 2 !== 0) throw new UserError(`${path}: the head size (${headDim}) must be even for rotary embeddings.`);
  const spelling = (json.rope_parameters ?? null) === null ? "rope_scaling" : "rope_parameters";
  const rope = (json[spelling] ?? {}) as Json;
  if (typeof rope !== "object" || Array.isArray(rope)) throw wrong(spelling, "a JSON object");
  const isToken = (id: unknown): id is number =>
    Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize;
  const token = (key: string): number | undefined => {
    const id = json[key] ?? undefined;
    if (id === undefined || isToken(id)) return id;
    throw wrong(key, `the number of a token, from 0 to ${vocabSize - 1} (vocab_size - 1), or null`);
  };
  const ends = json.eos_token_id;
  const sliding = slidingOf(json, keys, type, numLayers, positions);
  return {
    modelType: type,
    vocabSize,
    hiddenSize,
    intermediateSize: whole("intermediate_size"),
    numLayers,
    numHeads,
    numKvHeads,
    headDim,
    maxPositionEmbeddings: Math.min(positions, sliding?.window ?? positions),
    ...(sliding && { sliding }),
    rmsNormEps: real("rms_norm_eps", 1e-6),
    ropeTheta: keysOf({ rope_theta: rope.rope_theta ?? json.rope_theta }, path).real("rope_theta", 10000),
    ropeScaling: parseRopeScaling(rope, positions, `${path}, ${spelling}`),
    tieWordEmbeddings: flag("tie_word_embeddings"),
    initializerRange: real("initializer_range", 0.02, { from: 0 }),
    bosTokenId: token("bos_token_id"),
    eosTokenId: Array.isArray(ends) && ends.every(isToken) ? ends : token("eos_token_id"),
    // Some models pad with a token that they have no row for: nothing here does. The first Llama 2 said -1 for none.
    padTokenId: (json.pad_token_id ?? -1) === -1 ? undefined : whole("pad_token_id", undefined, { from: 0 }),
  };
}

/** No model has nearly as many; what reads a damaged file, and would make a list of them all, would never end. */
export const MAX_LAYERS = 10_000;
/** Kernels count in 32 bits. */
const MAX_SIZE = 2 ** 31 - 1;

/**
 * Reads a JSON object key by key. One that is absent or null, as Transformers writes what is not set, has its default; one that is something
 * else than what it should be is an error, and never its default.
 */
function keysOf(json: Json, path: string) {
  const wrong = (key: string, wanted: string): UserError => {
    const value = json[key] ?? undefined;
    const told = typeof value === "number" ? value : JSON.stringify(value);
    return new UserError(
      `${path}: ${key} must be ${wanted}, ${value === undefined ? "and is missing" : `not ${told}`}.`,
    );
  };
  return {
    wrong,
    whole(key: string, fallback?: number, { from = 1, to = MAX_SIZE } = {}): number {
      const value = json[key] ?? fallback;
      if (Number.isInteger(value) && (value as number) >= from && (value as number) <= to) return value as number;
      throw wrong(key, `a whole number from ${from} to ${to}`);
    },
    real(key: string, fallback?: number, { from = Number.MIN_VALUE } = {}): number {
      const value = json[key] ?? fallback;
      if (Number.isFinite(value) && (value as number) >= from) return value as number;
      throw wrong(key, from === 0 ? "a number from 0" : "a number above 0");
    },
    flag(key: string, fallback = false): boolean {
      const value = json[key] ?? fallback;
      if (typeof value === "boolean") return value;
      throw wrong(key, "true or false");
    },
  };
}
type Keys = ReturnType<typeof keysOf>;

const SLIDING_KEYS = ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"];
/**
 * The window of a model in which some layer has one that is shorter than its positions, with the defaults of Transformers: a token sees
 * so many tokens at most. Beyond it is not implemented.
 */
function slidingOf(
  json: Json,
  { whole, flag }: Keys,
  type: ModelType,
  layers: number,
  positions: number,
): LlamaConfig["sliding"] {
  if (type === "llama" || json.sliding_window === null) return undefined;
  if (type !== "mistral") {
    if (!flag("use_sliding_window")) return undefined;
    const kinds = json.layer_types;
    const from = whole("max_window_layers", 28, { from: 0 });
    if (Array.isArray(kinds) ? !kinds.includes("sliding_attention") : from >= layers) return undefined;
  }
  const window = whole("sliding_window", 4096);
  if (window >= positions) return undefined;
  const keys = Object.fromEntries(SLIDING_KEYS.flatMap((key) => (key in json ? [[key, json[key]]] : [])));
  return { window, maxPositionEmbeddings: positions, keys };
}

/** Why a sequence may have no more tokens than `maxPositionEmbeddings`. */
export const describePositions = ({ maxPositionEmbeddings: n, sliding }: LlamaConfig): string =>
  sliding
    ? `${n} positions at once: its layers see no further (sliding_window), and what lies beyond is not implemented`
    : `${n} positions (max_position_embeddings)`;

/** Of a model with an output matrix, or with a scalar head. */
export const architecture = (c: LlamaConfig, head: "CausalLM" | "SequenceClassification"): string =>
  `${CLASSES[c.modelType]}For${head}`;

/** `path`: with the key under which the rotary settings stand. */
function parseRopeScaling(rope: Json, maxPositions: number, path: string): RopeScaling | undefined {
  const type = (rope.rope_type ?? rope.type ?? "default") as string;
  if (type === "default") return undefined;
  const keys = keysOf(rope, path);
  const { real } = keys;
  const factor = real("factor");
  if (type === "linear") return { type, factor };
  if (type === "dynamic") return { type, factor, original: maxPositions }; // Transformers asks for no other length here
  const original = real("original_max_position_embeddings", maxPositions);
  if (type === "llama3")
    return {
      type,
      factor,
      lowFreqFactor: real("low_freq_factor"),
      highFreqFactor: real("high_freq_factor"),
      original,
    };
  if (type === "yarn") return yarn(keys, factor, original);
  throw new UserError(
    `${path}: rotary scaling ${JSON.stringify(type)} is not implemented; known are linear, dynamic, yarn and llama3.`,
  );
}

/** YaRN (Peng et al. 2023) with the defaults of Transformers; `mscale` and `mscale_all_dim` are DeepSeek's. */
function yarn({ real, flag }: Keys, factor: number, original: number): RopeScaling {
  const optional = (key: string): number | undefined => real(key, 0, { from: 0 }) || undefined;
  const scale = (m = 1): number => (factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1);
  const [mscale, all] = [optional("mscale"), optional("mscale_all_dim")];
  return {
    type: "yarn",
    factor,
    original,
    betaFast: optional("beta_fast") ?? 32,
    betaSlow: optional("beta_slow") ?? 1,
    attentionFactor: optional("attention_factor") ?? (mscale && all ? scale(mscale) / scale(all) : scale()),
    truncate: flag("truncate", true),
  };
}

export function llamaConfigJson(c: LlamaConfig, dtype: "bfloat16" | "float32"): Json {
  const s = c.ropeScaling;
  const scaling: Json | null = !s
    ? null
    : {
        rope_type: s.type,
        factor: s.factor,
        ...(s.type === "llama3" && { low_freq_factor: s.lowFreqFactor, high_freq_factor: s.highFreqFactor }),
        ...(s.type === "yarn" && {
          beta_fast: s.betaFast,
          beta_slow: s.betaSlow,
          attention_factor: s.attentionFactor,
          truncate: s.truncate,
        }),
        ...(s.type !== "linear" && { original_max_position_embeddings: s.original }),
      };
  return {
    architectures: [architecture(c, "CausalLM")],
    model_type: c.modelType,
    vocab_size: c.vocabSize,
    hidden_size: c.hiddenSize,
    intermediate_size: c.intermediateSize,
    num_hidden_layers: c.numLayers,
    num_attention_heads: c.numHeads,
    num_key_value_heads: c.numKvHeads,
    head_dim: c.headDim,
    max_position_embeddings: c.sliding?.maxPositionEmbeddings ?? c.maxPositionEmbeddings,
    rms_norm_eps: c.rmsNormEps,
    rope_theta: c.ropeTheta,
    rope_scaling: scaling,
    rope_parameters: { rope_theta: c.ropeTheta, ...(scaling ?? { rope_type: "default" }) },
    tie_word_embeddings: c.tieWordEmbeddings,
    hidden_act: "silu",
    attention_bias: false,
    mlp_bias: false,
    ...(c.modelType !== "llama" && (c.sliding?.keys ?? { sliding_window: null, use_sliding_window: false })),
    attention_dropout: 0,
    initializer_range: c.initializerRange,
    use_cache: true,
    torch_dtype: dtype,
    bos_token_id: c.bosTokenId ?? null,
    eos_token_id: c.eosTokenId ?? null,
    pad_token_id: c.padTokenId ?? null,
  };
}
