/**
 * Models as Hugging Face folders: config.json + model.safetensors (sharded past 4 GB). What Transformers wrote loads
 * here and the other way round, with the same logits.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { BF16, type Device, type DType, dtypeBytes, F32, type Ptr } from "../device/device.js";
import type { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import { openSafetensors, type SafetensorsFile, SharedWriter } from "../run/safetensors.js";
import { takePart } from "../tensor/parameters.js";
import { dtypeOf } from "../tensor/tensor.js";
import { architecture, type LlamaConfig, llamaConfigJson, readLlamaConfig } from "./config.js";
import { Llama, type Precision } from "./llama.js";
import type { Head } from "./share.js";

export interface LoadOptions {
  trainable?: boolean;
  /** At least this many tokens: rows are added to a smaller vocabulary, each the mean of the rows that are there. */
  vocabSize?: number;
  /** `scalar`: a reward or value model. From a language model's folder its head is new: normal, std 1 / sqrt(d + 1). */
  head?: Head;
  /** For a new head. */
  seed?: number;
  /** The processes that share the model; and what it is called among theirs (ref, reward), where state lies on disk. */
  grid?: Grid;
  name?: string;
}

/** Loads a folder in the given precision, whatever type its file has (F32, BF16, F16). */
export function loadLlama(device: Device, dir: string, precision: Precision, options: LoadOptions = {}): Llama {
  const config = readLlamaConfig(dir);
  const storedVocab = config.vocabSize;
  config.vocabSize = Math.max(storedVocab, options.vocabSize ?? 0);
  const file = openSafetensors(dir);
  try {
    const names = new Set(file.names());
    refuseStrangers(file, config, dir);
    if (names.has(SCORE) && options.head !== "scalar")
      throw new UserError(
        `${dir} holds a reward or value model (${SCORE}), which gives one number a text and no next token: name a language model's folder here.`,
      );
    const model = new Llama(device, config, precision, options);
    try {
      readWeights(model, file, dir, storedVocab, options.seed ?? 0);
    } catch (error) {
      model.close();
      throw error;
    }
    return model;
  } finally {
    file.close();
  }
}

/** Throws UserError for tensors that the model of this config has not, and for a tied one's second output matrix. */
export function refuseStrangers(file: SafetensorsFile, config: LlamaConfig, dir: string): void {
  const stray = file.names().find((name) => !belongs(name, config));
  if (stray !== undefined)
    throw new UserError(
      `${dir}: a ${config.modelType} model with ${config.numLayers} layers has no tensor ${stray}. config.json belongs to another model, or this is one that Lyceum does not run.`,
    );
  const [table, head] = ["model.embed_tokens.weight", "lm_head.weight"];
  const names = new Set(file.names());
  if (!config.tieWordEmbeddings || !names.has(head) || !names.has(table)) return;
  const read = (name: string): Buffer => {
    const bytes = Buffer.alloc(file.info(name).bytes);
    file.readInto(name, bytes);
    return bytes;
  };
  if (!read(table).equals(read(head)))
    throw new UserError(
      `${dir}: config.json says that the output matrix is the embedding (tie_word_embeddings), and the file has another lm_head.weight. If that is to be used, set tie_word_embeddings to false there.`,
    );
}

/** Fills the model from its file; rows beyond `storedVocab` become the mean of the others, a head that the file lacks is drawn. */
function readWeights(
  { device, parameters, precision }: Llama,
  file: ReturnType<typeof openSafetensors>,
  dir: string,
  storedVocab: number,
  seed: number,
): void {
  const names = new Set(file.names());
  const target = dtypeOf(precision);
  for (const t of parameters.named(true)) {
    if (t.name === SCORE && !names.has(SCORE) && names.has("model.norm.weight")) {
      // Stiennon et al. 2020, appendix B.1
      device.randomNormal(t.ptr, t.size, seed, 1 << 20, 0, 1 / Math.sqrt(t.size + 1), target);
      continue;
    }
    if (!names.has(t.name))
      throw new UserError(
        `${dir}: the tensor ${t.name} is missing from the model's file. The file is incomplete, or config.json belongs to another model.`,
      );
    const info = file.info(t.name);
    if (!["F32", "BF16", "F16"].includes(info.dtype))
      throw new UserError(`${dir}: the tensor ${t.name} is of type ${info.dtype}; F32, BF16 and F16 can be read.`);
    const grows = VOCABULARY.has(t.name);
    const shape = t.whole.map((n, i) => (grows && i === 0 ? storedVocab : n));
    const wholeSize = t.whole.reduce((a, b) => a * b, 1);
    const width = dtypeBytes(target);
    // Where processes share the tensor, all of it is read, and this one's part is taken.
    const at = t.cut ? device.alloc(wholeSize * width) : t.ptr;
    const size = shape.reduce((a, b) => a * b, 1);
    if (info.shape.length !== shape.length || info.shape.some((n, i) => n !== shape[i]))
      throw new UserError(
        `${dir}: the tensor ${t.name} has shape [${info.shape}], but config.json asks for [${shape}].`,
      );
    if (info.dtype === (target === F32 ? "F32" : "BF16")) {
      file.readInto(t.name, device.bytes(at, size * width));
    } else {
      const raw = new Uint8Array(info.bytes);
      file.readInto(t.name, raw);
      const data = info.dtype === "F16" ? new Uint8Array(halfToFloat(raw).buffer) : raw;
      const scratch = device.alloc(data.length);
      device.bytes(scratch, data.length).set(data);
      device.cast(scratch, info.dtype === "BF16" ? BF16 : F32, at, target, size);
      device.free(scratch, data.length);
    }
    if (size < wholeSize) addMeanRows(device, at, target, storedVocab, t.whole[0], t.whole[1]);
    if (t.cut) {
      takePart(device, at, t.ptr, t.shape, t.cut, width);
      device.free(at, wholeSize * width);
    }
  }
}

/** Writes config.json (with `extra` keys), generation_config.json and the weights in the model's own precision. */
export function saveLlama(model: Llama, dir: string, extra: Record<string, unknown> = {}): void {
  mkdirSync(dir, { recursive: true });
  const bf16 = model.precision === "bf16";
  const { writer } = model.parameters.storage;
  const json = (name: string, value: unknown): void => {
    if (writer.stage === 0 && writer.rank === 0) writeFileSync(`${dir}/${name}`, `${JSON.stringify(value, null, 2)}\n`);
  };
  const config = llamaConfigJson(model.config, bf16 ? "bfloat16" : "float32");
  const scalar = {
    architectures: [architecture(model.config, "SequenceClassification")],
    id2label: { 0: "reward" },
    label2id: { reward: 0 },
  };
  json("config.json", { ...config, ...(model.head === "scalar" && scalar), ...extra });
  const { bosTokenId, eosTokenId, padTokenId } = model.config;
  json("generation_config.json", {
    ...(bosTokenId !== undefined && { bos_token_id: bosTokenId }),
    ...(eosTokenId !== undefined && { eos_token_id: eosTokenId }),
    ...(padTokenId !== undefined && { pad_token_id: padTokenId }),
  });
  const dtype = bf16 ? "BF16" : "F32";
  const { parameters } = model;
  const { storage } = parameters;
  const stages = storage.stages().map((list) => list.map(({ name, whole }) => ({ name, dtype, shape: whole })));
  const file = new SharedWriter(`${dir}/model.safetensors`, stages, storage.writer, { format: "pt" });
  for (const t of parameters.named()) {
    const data = storage.whole(t, t.ptr, bf16 ? 2 : 4);
    file.offer(t.name, () => data);
  }
  file.finish();
}

/** Tensors of every model, and those that some folders hold beside them: another head, rotary tables that are computed here. */
const TENSOR =
  /^(?:model\.(?:embed_tokens|norm|layers\.(\d+)\.(?:input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.weight|(?:lm_head|score)\.weight|model\.(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq)$/;
/** What some have besides. */
const OWN = {
  qwen2: /^model\.layers\.(\d+)\.self_attn\.[qkv]_proj\.bias$/,
  qwen3: /^model\.layers\.(\d+)\.self_attn\.[qk]_norm\.weight$/,
  llama: undefined,
  mistral: undefined,
};
function belongs(name: string, { modelType, numLayers }: LlamaConfig): boolean {
  const match = TENSOR.exec(name) ?? OWN[modelType]?.exec(name);
  return match ? Number(match[1] ?? 0) < numLayers : false;
}

export const SCORE = "score.weight";
/** Whether a folder holds a model with a scalar head. */
export function hasScalarHead(dir: string): boolean {
  const file = openSafetensors(dir);
  try {
    return file.names().includes(SCORE);
  } finally {
    file.close();
  }
}

/** Tensors with a row for each token. */
const VOCABULARY = new Set(["model.embed_tokens.weight", "lm_head.weight"]);

/** Rows from .. to - 1 of a matrix become the mean of those before: a new token begins as the average one (Hewitt 2021). */
function addMeanRows(device: Device, matrix: Ptr, dtype: DType, from: number, to: number, width: number): void {
  const bytes = dtypeBytes(dtype);
  const old = device.alloc(from * width * 4);
  device.cast(matrix, dtype, old, F32, from * width);
  const values = device.f32(old, from * width);
  const mean = device.alloc(width * 4);
  const target = device.f32(mean, width);
  for (let d = 0; d < width; d++) {
    let sum = 0;
    for (let row = 0; row < from; row++) sum += values[row * width + d];
    target[d] = sum / from;
  }
  for (let row = from; row < to; row++) device.cast(mean, F32, matrix + row * width * bytes, dtype, width);
  device.free(old, from * width * 4);
  device.free(mean, width * 4);
}

/** IEEE half precision to fp32. */
export function halfToFloat(raw: Uint8Array): Float32Array {
  const half = new Uint16Array(raw.buffer, raw.byteOffset, raw.length / 2);
  const out = new Float32Array(half.length); // .from() would make a list of all numbers first
  for (let i = 0; i < half.length; i++) {
    const h = half[i];
    const sign = h & 0x8000 ? -1 : 1;
    const exponent = (h >> 10) & 31;
    const fraction = h & 1023;
    if (exponent === 0) out[i] = sign * 2 ** -24 * fraction;
    else if (exponent === 31) out[i] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else out[i] = sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
  }
  return out;
}
