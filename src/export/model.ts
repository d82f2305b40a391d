/**
 * A model folder as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio, node-llama-cpp): weights, shape, tokenizer
 * and chat template. Names and conventions are those of llama.cpp's own converter, so that it computes the same logits and ids.
 */
import { existsSync } from "node:fs";
import { dirname, resolve, sep } from "node:path";
import { type LlamaConfig, readLlamaConfig } from "../nn/config.js";
import { halfToFloat, refuseStrangers, SCORE } from "../nn/folder.js";
import { inverseFrequencies } from "../nn/rope.js";
import { parametersOf } from "../nn/share.js";
import { systemMessage, UserError } from "../run/errors.js";
import { openSafetensors, type SafetensorsFile } from "../run/safetensors.js";
import { tensorsOf as listOf } from "../tensor/parameters.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { GGUF_TYPES, type GgufTensor, type GgufType, type GgufValue, writeGguf } from "./gguf.js";
import { tokenizerOf } from "./tokenizer.js";

/** How matrices are stored; vectors are always fp32. With the number that names the whole file's type. */
export const EXPORT_TYPES = { bf16: ["BF16", 32], f16: ["F16", 1], f32: ["F32", 0], q8_0: ["Q8_0", 7] } as const;
export type ExportType = keyof typeof EXPORT_TYPES;

/** Writes `dir` as `out`. Throws UserError for what llama.cpp could not run as it runs here. */
export function exportGguf(dir: string, out: string, type?: ExportType): { bytes: number; type: ExportType } {
  if (type !== undefined && !Object.hasOwn(EXPORT_TYPES, type))
    throw new UserError(`The type is "${type}"; it must be one of ${Object.keys(EXPORT_TYPES).join(", ")}.`, 2);
  const config = readLlamaConfig(dir);
  const tokenizer = Tokenizer.load(dir);
  if (tokenizer.modelSize > config.vocabSize)
    throw new UserError(
      `${dir}: the tokenizer has ${tokenizer.modelSize} tokens, and the model knows ${config.vocabSize}: tokenizer.json is not the model's own tokenizer.`,
    );
  if (!existsSync(dirname(resolve(out))))
    throw new UserError(`${dirname(out)} is no folder: make it first, or name another.`, 2);
  if (existsSync(out)) throw new UserError(`${out} is there already: remove it, or name another file.`, 2);
  const file = openSafetensors(dir);
  try {
    refuseStrangers(file, config, dir);
    if (file.names().includes(SCORE))
      throw new UserError(`${dir} is a reward or value model: llama.cpp has no such head. Name a language model.`, 2);
    const kept = file.names().some((name) => file.info(name).dtype === "F32") ? "f32" : "bf16";
    const chosen = type ?? kept;
    const pairs = { ...shapeOf(config, chosen, dir), ...tokenizerOf(tokenizer, config, dir) };
    const bytes = writeGguf(out, pairs, tensorsOf(file, config, EXPORT_TYPES[chosen][0], dir));
    return { bytes, type: chosen };
  } catch (error) {
    const why = systemMessage(error, out);
    throw why ? new UserError(why) : error;
  } finally {
    file.close();
  }
}

// ---- shape ----

/** llama.cpp runs Mistral as a Llama. */
const architectureOf = ({ modelType }: LlamaConfig): string => (modelType === "mistral" ? "llama" : modelType);

function shapeOf(c: LlamaConfig, type: ExportType, dir: string): Record<string, GgufValue> {
  const arch = architectureOf(c);
  const [folder, above] = resolve(dir).split(sep).reverse(); // runs/quickstart/ppo/model is called ppo
  const ownHeads = c.headDim * c.numHeads !== c.hiddenSize;
  if (ownHeads && arch === "qwen2")
    throw new UserError(
      `${dir}: llama.cpp runs a qwen2 model only where its heads together are as wide as a token (${c.numHeads} x ${c.headDim}, and ${c.hiddenSize}).`,
    );
  return {
    "general.architecture": { string: arch },
    "general.type": { string: "model" },
    "general.name": { string: nameOf(folder === "model" && above ? above : folder) },
    "general.file_type": { u32: EXPORT_TYPES[type][1] },
    "general.quantization_version": { u32: 2 },
    [`${arch}.vocab_size`]: { u32: c.vocabSize },
    [`${arch}.context_length`]: { u32: c.maxPositionEmbeddings },
    [`${arch}.embedding_length`]: { u32: c.hiddenSize },
    [`${arch}.block_count`]: { u32: c.numLayers },
    [`${arch}.feed_forward_length`]: { u32: c.intermediateSize },
    [`${arch}.attention.head_count`]: { u32: c.numHeads },
    [`${arch}.attention.head_count_kv`]: { u32: c.numKvHeads },
    [`${arch}.attention.layer_norm_rms_epsilon`]: { f32: c.rmsNormEps },
    ...((ownHeads || arch === "qwen3") && {
      [`${arch}.attention.key_length`]: { u32: c.headDim },
      [`${arch}.attention.value_length`]: { u32: c.headDim },
    }),
    [`${arch}.rope.dimension_count`]: { u32: c.headDim },
    [`${arch}.rope.freq_base`]: { f32: c.ropeTheta },
    ...scalingOf(c, arch, dir),
  };
}

/** By these letters in a name llama.cpp takes a model for Phi-3, whose tokens it then wants. */
const nameOf = (folder: string): string => folder.replace(/(phi)-?(3)/gi, "$1_$2");

function scalingOf({ ropeScaling: s }: LlamaConfig, arch: string, dir: string): Record<string, GgufValue> {
  if (s?.type === "llama3" && arch !== "llama")
    throw new UserError(`${dir}: llama.cpp has Llama 3's rotary scaling for Llama only, not for ${arch}.`);
  if (!s || s.type === "llama3") return {}; // Llama 3's is a tensor
  const key = `${arch}.rope.scaling`;
  if (s.type === "linear") return { [`${key}.type`]: { string: "linear" }, [`${key}.factor`]: { f32: s.factor } };
  if (s.type === "dynamic" || !s.truncate)
    throw new UserError(
      `${dir}: llama.cpp has no rotary scaling "${s.type}"${s.type === "yarn" ? " with truncate off" : ""}.`,
    );
  return {
    [`${key}.type`]: { string: "yarn" },
    [`${key}.factor`]: { f32: s.factor },
    [`${key}.original_context_length`]: { u32: s.original },
    // llama.cpp has the paper's factor, and multiplies it by this one.
    [`${key}.attn_factor`]: { f32: s.attentionFactor / (0.1 * Math.log(s.factor) + 1) },
    [`${key}.yarn_beta_fast`]: { f32: s.betaFast },
    [`${key}.yarn_beta_slow`]: { f32: s.betaSlow },
  };
}

// ---- weights ----

const NAMES: [RegExp, string][] = [
  [/^model\.embed_tokens\./, "token_embd."],
  [/^model\.norm\./, "output_norm."],
  [/^lm_head\./, "output."],
  [/^model\.layers\.(\d+)\.input_layernorm\./, "blk.$1.attn_norm."],
  [/^model\.layers\.(\d+)\.post_attention_layernorm\./, "blk.$1.ffn_norm."],
  [/^model\.layers\.(\d+)\.self_attn\.o_proj\./, "blk.$1.attn_output."],
  [/^model\.layers\.(\d+)\.self_attn\.([qkv])_proj\./, "blk.$1.attn_$2."],
  [/^model\.layers\.(\d+)\.self_attn\.([qk])_norm\./, "blk.$1.attn_$2_norm."],
  [/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\./, "blk.$1.ffn_$2."],
];

/** A model's tensors by the names that they have there, and their shapes. */
const expected = (c: LlamaConfig): { name: string; whole: number[] }[] =>
  listOf(
    parametersOf(c, "lm", {
      tensor: { rank: 0, size: 1 },
      layers: { from: 0, to: c.numLayers },
      first: true,
      last: true,
    }),
  );

function tensorsOf(file: SafetensorsFile, c: LlamaConfig, type: GgufType, dir: string): GgufTensor[] {
  const there = new Set(file.names());
  for (const { name, whole } of expected(c)) {
    const found = there.has(name) ? file.info(name) : undefined;
    if (!found || `${found.shape}` !== `${whole}` || !["F32", "BF16", "F16"].includes(found.dtype))
      throw new UserError(
        `${dir}: config.json asks for the tensor ${name} of [${whole}], and the file has ${found ? `${found.dtype} of [${found.shape}]` : "none"}.`,
      );
  }
  const tensors = file.names().flatMap((name): GgufTensor[] => {
    const [pattern, to] = NAMES.find(([p]) => p.test(name)) ?? [];
    if (!pattern || (c.tieWordEmbeddings && name.startsWith("lm_head."))) return []; // rotary tables: computed
    const { shape } = file.info(name);
    const stored: GgufType = shape.length === 1 ? "F32" : type === "Q8_0" && shape[1] % 32 !== 0 ? "F16" : type;
    return [{ name: name.replace(pattern, to!), type: stored, shape, data: () => converted(file, name, c, stored) }];
  });
  if (c.ropeScaling?.type !== "llama3") return tensors;
  // By how much each pair turns slower.
  const [scaled, plain] = [c, { ...c, ropeScaling: undefined }].map((of) => inverseFrequencies(of, 1));
  const factors = Float32Array.from(plain, (x, i) => x / scaled[i]);
  const rope: GgufTensor = {
    name: "rope_freqs.weight",
    type: "F32",
    shape: [factors.length],
    data: () => new Uint8Array(factors.buffer),
  };
  return [...tensors, rope];
}

function converted(file: SafetensorsFile, name: string, c: LlamaConfig, type: GgufType): Uint8Array {
  const { dtype, shape, bytes } = file.info(name);
  const raw = new Uint8Array(bytes);
  file.readInto(name, raw);
  if (!allFinite(raw, dtype))
    throw new UserError(`The tensor ${name} holds NaN or infinity: no program can use such a model.`);
  const rows = rotatedInPairs(raw, name, shape[0], c);
  if (dtype === type) return rows;
  const values = widened(rows, dtype);
  if (type === "F32") return new Uint8Array(values.buffer);
  if (type === "Q8_0") return quantized(values);
  const bits = new Uint32Array(values.buffer);
  const round = type === "F16" ? toHalf : toBf16;
  const out = new Uint16Array(bits.length); // .from() would make a list of all numbers first
  for (let i = 0; i < bits.length; i++) out[i] = round(bits[i]);
  const made = new Uint8Array(out.buffer);
  if (type === "F16" && !allFinite(made, type))
    throw new UserError(
      `The tensor ${name} holds numbers beyond 65,504, which half precision has not: take another type.`,
    );
  return made;
}

/** The bits of the exponent, which are all set in numbers that are not finite. */
const EXPONENT: Record<string, number> = { F32: 0x7f800000, BF16: 0x7f80, F16: 0x7c00 };
function allFinite(raw: Uint8Array, dtype: string): boolean {
  const all = EXPONENT[dtype];
  const bits = dtype === "F32" ? new Uint32Array(raw.buffer) : new Uint16Array(raw.buffer);
  for (let i = 0; i < bits.length; i++) if ((bits[i] & all) === all) return false;
  return true;
}

/** Where a Llama's rotation turns x[i] with x[i + D / 2], llama.cpp's turns x[2 i] with x[2 i + 1]: rows of queries and keys are in its order. */
function rotatedInPairs(raw: Uint8Array, name: string, count: number, c: LlamaConfig): Uint8Array {
  if (architectureOf(c) !== "llama" || !/\.[qk]_proj\./.test(name)) return raw;
  const width = raw.length / count;
  const half = c.headDim / 2;
  const out = new Uint8Array(raw.length);
  for (let row = 0; row < count; row++) {
    const [head, at] = [Math.floor(row / c.headDim) * c.headDim, row % c.headDim];
    const to = head + (at < half ? 2 * at : 2 * (at - half) + 1);
    out.set(raw.subarray(row * width, (row + 1) * width), to * width);
  }
  return out;
}

function widened(raw: Uint8Array, dtype: string): Float32Array {
  if (dtype === "F32") return new Float32Array(raw.buffer);
  if (dtype === "F16") return halfToFloat(raw);
  const short = new Uint16Array(raw.buffer);
  const bits = new Uint32Array(short.length);
  for (let i = 0; i < short.length; i++) bits[i] = short[i] << 16;
  return new Float32Array(bits.buffer);
}

/** Bits of fp32 to those of bf16, rounded to nearest even; NaN stays NaN. */
const toBf16 = (bits: number): number =>
  (bits & 0x7fffffff) > 0x7f800000 ? (bits >>> 16) | 0x40 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;

/** ... and to those of IEEE half precision. */
function toHalf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 112;
  const fraction = bits & 0x7fffff;
  if ((bits & 0x7fffffff) > 0x7f800000) return sign | 0x7e00;
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent < -10) return sign;
  const shift = exponent > 0 ? 13 : 14 - exponent; // subnormal below
  const whole = exponent > 0 ? (exponent << 23) | fraction : fraction | 0x800000;
  const rest = whole & ((1 << shift) - 1);
  const up = rest > 1 << (shift - 1) || (rest === 1 << (shift - 1) && ((whole >>> shift) & 1) === 1);
  return sign | ((whole >>> shift) + (up ? 1 : 0));
}

/** Blocks of 32: a scale in half precision, the largest / 127, and 32 whole numbers. */
function quantized(values: Float32Array): Uint8Array {
  const { block, bytes } = GGUF_TYPES.Q8_0;
  const out = new Uint8Array((values.length / block) * bytes);
  const scale = new Float32Array(1);
  const bits = new Uint32Array(scale.buffer);
  for (let b = 0; b * block < values.length; b++) {
    let largest = 0;
    for (let i = 0; i < block; i++) largest = Math.max(largest, Math.abs(values[b * block + i]));
    scale[0] = largest / 127;
    const inverse = scale[0] === 0 ? 0 : Math.fround(1 / scale[0]);
    const half = toHalf(bits[0]);
    out[b * bytes] = half & 0xff;
    out[b * bytes + 1] = half >>> 8;
    for (let i = 0; i < block; i++) {
      const x = Math.fround(values[b * block + i] * inverse);
      out[b * bytes + 2 + i] = Math.sign(x) * Math.floor(Math.abs(x) + 0.5); // halves away from 0
    }
  }
  return out;
}
