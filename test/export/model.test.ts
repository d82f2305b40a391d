/** GGUF files: what is in them, to the bit where a format says so, and what is refused. That llama.cpp computes the same is in docs/training.md. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { writeGguf } from "../../src/export/gguf.js";
import { exportGguf } from "../../src/export/model.js";
import { type LlamaConfig, parseLlamaConfig } from "../../src/nn/config.js";
import { saveLlama } from "../../src/nn/folder.js";
import { Llama } from "../../src/nn/llama.js";
import { ALPHABET, BYTE_TO_CHAR } from "../../src/tokenizer/bytes.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-gguf-"));
const golden = (name: string): Tokenizer => Tokenizer.load(`test/golden/tokenizer/${name}.json`);
const device = openCpu({ threads: 1 });

interface Parsed {
  pairs: Map<string, unknown>;
  tensors: Map<string, { type: number; shape: number[]; data: Buffer }>;
}
/** A reader of its own: strict about order, types and alignment. */
function parse(path: string): Parsed {
  const file = readFileSync(path);
  let at = 0;
  /** Where the next bytes begin. */
  const next = (bytes: number): number => {
    at += bytes;
    return at - bytes;
  };
  const u32 = (): number => file.readUInt32LE(next(4));
  const u64 = (): number => Number(file.readBigUInt64LE(next(8)));
  const string = (): string => {
    const n = u64();
    return file.toString("utf8", next(n), at);
  };
  const value = (type: number): unknown => {
    if (type === 4) return u32();
    if (type === 5) return file.readInt32LE(next(4));
    if (type === 6) return file.readFloatLE(next(4));
    if (type === 7) return file[next(1)] === 1;
    if (type === 8) return string();
    expect(type).toBe(9);
    const of = u32();
    return Array.from({ length: u64() }, () => value(of));
  };
  expect(file.toString("latin1", 0, 4)).toBe("GGUF");
  next(4);
  expect(u32()).toBe(3);
  const [count, keys] = [u64(), u64()];
  const pairs = new Map(Array.from({ length: keys }, () => [string(), value(u32())] as const));
  const list = Array.from({ length: count }, () => {
    const name = string();
    const shape = Array.from({ length: u32() }, u64).reverse();
    return { name, shape, type: u32(), offset: u64() };
  });
  const start = Math.ceil(at / 32) * 32;
  let end = start;
  const tensors = new Map(
    list.map(({ name, shape, type, offset }) => {
      const n = shape.reduce((a, b) => a * b, 1);
      const bytes = { 0: 4 * n, 1: 2 * n, 30: 2 * n, 8: (n / 32) * 34 }[type]!;
      expect(start + offset).toBe(Math.ceil(end / 32) * 32);
      end = start + offset + bytes;
      return [name, { type, shape, data: file.subarray(start + offset, end) }];
    }),
  );
  expect(file.length).toBe(Math.ceil(end / 32) * 32);
  return { pairs, tensors };
}

/** A random model with one of the tokenizers; `put` are the first numbers of layer 0's output projection. */
function make(
  name: string,
  more: Record<string, unknown> = {},
  tokenizer = golden("llama3"),
  put: number[] = [],
): string {
  const config: LlamaConfig = parseLlamaConfig(
    {
      vocab_size: tokenizer.vocabSize + 3,
      hidden_size: 64,
      intermediate_size: 40,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      max_position_embeddings: 128,
      tie_word_embeddings: true,
      ...more,
    },
    name,
  );
  const model = new Llama(device, config, "fp32");
  model.parameters.initialize(1, 0.1);
  device.f32(model.layers[0].output.ptr, put.length).set(put);
  saveLlama(model, join(root, name));
  model.close();
  tokenizer.save(join(root, name));
  return join(root, name);
}
const floats = (data: Buffer): Float32Array => new Float32Array(new Uint8Array(data).buffer);

beforeAll(() => mkdirSync(root, { recursive: true }));
afterAll(() => rmSync(root, { recursive: true }));

test("a Llama: shape, tokenizer, and rows of queries and keys in the order of llama.cpp's rotation", () => {
  const tokenizer = golden("llama3");
  const dir = make("llama", { rope_theta: 5000, rms_norm_eps: 1e-4 }, tokenizer);
  const { bytes } = exportGguf(dir, join(root, "llama.gguf"));
  const { pairs, tensors } = parse(join(root, "llama.gguf"));
  expect(bytes).toBe(readFileSync(join(root, "llama.gguf")).length);
  expect(Object.fromEntries([...pairs].filter(([key]) => !key.startsWith("tokenizer")))).toEqual({
    "general.architecture": "llama",
    "general.type": "model",
    "general.name": "llama",
    "general.file_type": 0,
    "general.quantization_version": 2,
    "llama.vocab_size": tokenizer.vocabSize + 3,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 40,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": Math.fround(1e-4),
    "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 5000,
  });
  const tokens = pairs.get("tokenizer.ggml.tokens") as string[];
  expect(tokens).toHaveLength(tokenizer.vocabSize + 3);
  expect(tokens.slice(0, tokenizer.vocabSize)).toEqual(
    Array.from({ length: tokenizer.vocabSize }, (_, id) => tokenizer.idToToken(id)),
  );
  expect(tokens.at(-1)).toBe(`[PAD${tokens.length - 1}]`);
  expect((pairs.get("tokenizer.ggml.token_type") as number[]).at(-1)).toBe(5);
  expect(pairs.get("tokenizer.ggml.pre")).toBe("smaug-bpe");
  const names = [...tensors.keys()];
  expect(names).toHaveLength(2 + 2 * 9);
  expect(names).not.toContain("output.weight"); // tied
  const values = loadWeights(dir);
  for (const name of ["attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"])
    expect(floats(tensors.get(`blk.1.${name}.weight`)!.data)).toEqual(values.get(`1.${name}`));
  for (const name of ["attn_q", "attn_k"]) {
    const [there, here] = [floats(tensors.get(`blk.1.${name}.weight`)!.data), values.get(`1.${name}`)!];
    const row = (x: Float32Array, r: number): Float32Array => x.subarray(r * 64, (r + 1) * 64);
    for (const [pair, first, second] of [
      [0, 0, 8],
      [3, 3, 11],
      [7, 7, 15],
    ]) {
      // Of the second head.
      expect(row(there, 16 + 2 * pair)).toEqual(row(here, 16 + first));
      expect(row(there, 16 + 2 * pair + 1)).toEqual(row(here, 16 + second));
    }
  }
});

/** The weights of a folder by layer and llama.cpp's short name. */
function loadWeights(dir: string): Map<string, Float32Array> {
  const file = readFileSync(`${dir}/model.safetensors`);
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + length)) as Record<string, { data_offsets: [number, number] }>;
  const short: Record<string, string> = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
  };
  const found = new Map<string, Float32Array>();
  for (const [name, entry] of Object.entries(header)) {
    const match = /^model\.layers\.(\d+)\.(.+)\.weight$/.exec(name);
    if (!match || !short[match[2]]) continue;
    const [from, to] = entry.data_offsets.map((n) => 8 + length + n);
    found.set(`${match[1]}.${short[match[2]]}`, floats(file.subarray(from, to)));
  }
  return found;
}

test("types: half precision and bf16 to the bit, Q8_0 as ggml's reference makes it, vectors in fp32", () => {
  // Made with gguf.quants.quantize of gguf 0.19, and numpy's float16.
  const q8 =
    "684700000000010ba100000000000ef100000000ff0a4700000000ff037f00000000c747fffa7a000000000000470000000000f3f60000000001f8a90000000001008100";
  const wave = Array.from({ length: 64 }, (_, i) =>
    i === 40 ? 0 : Math.fround(Math.sin(i * 1.7) * 10 ** ((i % 7) - 3)),
  );
  const halves: [number, number][] = [
    [0, 0], [1, 0x3c00], [-1, 0xbc00], [65504, 0x7bff], [1e-8, 0], [6e-8, 1], [3.1e-5, 0x208], [6.1e-5, 0x3ff],
    [0.1, 0x2e66], [1 / 3, 0x3555], [2049, 0x6800], [2051, 0x6802], [-6.0975e-5, 0x83ff],
  ]; // biome-ignore format: a table
  const dir = make("types", {}, golden("llama3"), [...wave, ...halves.map(([x]) => x)]);
  const of = (type: "q8_0" | "f16" | "bf16") => {
    exportGguf(dir, join(root, `${type}.gguf`), type);
    return parse(join(root, `${type}.gguf`));
  };
  const quantized = of("q8_0");
  expect(quantized.pairs.get("general.file_type")).toBe(7);
  expect(quantized.tensors.get("blk.0.attn_output.weight")!.data.toString("hex", 0, 68)).toBe(q8);
  expect(quantized.tensors.get("blk.0.ffn_down.weight")!.type).toBe(1); // rows of 40 are no blocks of 32
  const half = of("f16").tensors.get("blk.0.attn_output.weight")!.data;
  halves.forEach(([x, bits], i) => {
    expect(half.readUInt16LE(2 * (64 + i)), String(x)).toBe(bits);
  });
  const short = of("bf16");
  for (const [i, x] of wave.entries()) {
    const bits = device.alloc(64);
    device.f32(bits + 4, 1)[0] = x;
    device.cast(bits + 4, 0, bits, 1, 1);
    expect(short.tensors.get("blk.0.attn_output.weight")!.data.readUInt16LE(2 * i)).toBe(device.u16(bits, 1)[0]);
    device.free(bits, 64);
  }
  for (const { type, shape } of short.tensors.values()) expect(type).toBe(shape.length === 1 ? 0 : 30);
});

test("Qwen2 and Qwen3 keep their rows as they are, and have biases and norms of heads", () => {
  const qwen = golden("qwen");
  exportGguf(make("q2", { model_type: "qwen2" }, qwen), join(root, "q2.gguf"));
  exportGguf(make("q3", { model_type: "qwen3", head_dim: 24 }, qwen), join(root, "q3.gguf"));
  const [two, three] = ["q2", "q3"].map((name) => parse(join(root, `${name}.gguf`)));
  expect(two.pairs.get("tokenizer.ggml.pre")).toBe("qwen2");
  expect(two.tensors.get("blk.1.attn_k.bias")!.shape).toEqual([32]);
  expect(floats(two.tensors.get("blk.1.attn_q.weight")!.data)).toEqual(loadWeights(join(root, "q2")).get("1.attn_q"));
  expect(three.pairs.get("general.architecture")).toBe("qwen3");
  expect(three.pairs.get("qwen3.attention.key_length")).toBe(24);
  expect(three.tensors.get("blk.0.attn_q_norm.weight")!.shape).toEqual([24]);
  expect(three.tensors.get("blk.0.attn_q.weight")!.shape).toEqual([96, 64]);
});

test("rotary scalings, as keys or as factors", () => {
  const llama3 = {
    rope_type: "llama3",
    factor: 4,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 32,
  };
  exportGguf(make("scaled", { rope_scaling: llama3 }), join(root, "scaled.gguf"));
  const factors = floats(parse(join(root, "scaled.gguf")).tensors.get("rope_freqs.weight")!.data);
  expect(factors[0]).toBe(1);
  expect(factors[7]).toBe(4);
  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32, attention_factor: 1.5 };
  exportGguf(make("yarn", { rope_scaling: yarn }), join(root, "yarn.gguf"));
  const { pairs } = parse(join(root, "yarn.gguf"));
  expect(pairs.get("llama.rope.scaling.type")).toBe("yarn");
  expect(pairs.get("llama.rope.scaling.original_context_length")).toBe(32);
  expect(pairs.get("llama.rope.scaling.attn_factor")).toBeCloseTo(1.5 / (0.1 * Math.log(4) + 1), 6);
  const dynamic = make("dynamic", { rope_scaling: { rope_type: "dynamic", factor: 2 } });
  expect(() => exportGguf(dynamic, join(root, "no.gguf"))).toThrow(/no rotary scaling "dynamic"/);
});

test("what llama.cpp would run otherwise is refused, and nothing is left behind", () => {
  const out = join(root, "refused.gguf");
  const before = readdirSync(root);
  const refused = (dir: string): string => {
    try {
      exportGguf(dir, out);
    } catch (error) {
      return (error as Error).message;
    }
    return "exported";
  };
  // Cut at every Chinese character: the same tokens as Llama 3's way where none of them reaches over one.
  const spell = (text: string, from = 0, to = 99): string =>
    Array.from(Buffer.from(text, "utf8").subarray(from, to), (b) => BYTE_TO_CHAR[b]).join("");
  const han = (left: string, right: string): string => {
    const vocab = [...new Set([...ALPHABET, left, right, left + right])];
    return make("mixed", {}, Tokenizer.fromParts(vocab, [[left, right]], "han", []));
  };
  for (const [left, right] of [
    ["t", "h"],
    [spell("é", 0, 1), spell("é", 1)],
    [spell("中", 0, 2), spell("中", 2)],
    [" ", spell("é", 0, 1)],
  ].map((p) => p.map((t) => (t === " " ? spell(t) : t)))) {
    expect(refused(han(left, right)), left + right).toBe("exported");
    expect(parse(out).pairs.get("tokenizer.ggml.pre")).toBe("smaug-bpe");
    rmSync(out);
  }
  const borders = [
    [spell("中"), spell("文")],
    [spell("，"), spell("中")],
    ["a", spell("中", 0, 1)], // a letter and what only a Chinese character begins with
    [spell("中", 2), "a"], // the end of one, and a letter
    [spell("の"), spell("㐀", 0, 2)],
  ];
  for (const [left, right] of borders)
    expect(refused(han(left, right))).toMatch(/cuts at every Chinese character, and ".*" is a token/);
  const mixed = han("t", "h");
  const config = JSON.parse(readFileSync(join(mixed, "config.json"), "utf8"));
  writeFileSync(join(mixed, "config.json"), JSON.stringify({ ...config, vocab_size: 20 }));
  expect(refused(mixed)).toMatch(/the tokenizer has \d+ tokens, and the model knows 20/);

  const strange = make("strange");
  const json = JSON.parse(readFileSync(join(strange, "tokenizer.json"), "utf8"));
  json.pre_tokenizer = { type: "ByteLevel", add_prefix_space: true, use_regex: true };
  writeFileSync(join(strange, "tokenizer.json"), JSON.stringify(json));
  expect(refused(strange)).toMatch(/puts a space before each text/);
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
  const letters = { type: "Split", pattern: { Regex: "[a-z]+" }, behavior: "Isolated", invert: false };
  json.pre_tokenizer = { type: "Sequence", pretokenizers: [letters, byteLevel] };
  writeFileSync(join(strange, "tokenizer.json"), JSON.stringify(json));
  expect(refused(strange)).toMatch(/it does not know this pre-tokenizer/);
  json.pre_tokenizer = {
    type: "Sequence",
    pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel],
  };
  writeFileSync(join(strange, "tokenizer.json"), JSON.stringify(json));
  expect(refused(strange)).toBe("exported");
  expect(parse(out).pairs.get("tokenizer.ggml.pre")).toBe("smollm");
  expect(refused(strange)).toMatch(/is there already/);
  rmSync(out);
  expect(refused(make("wide", { model_type: "qwen2", head_dim: 24 }, golden("qwen")))).toMatch(/4 x 24, and 64/);
  expect(readdirSync(root).filter((name) => name.includes("refused"))).toEqual(
    before.filter((n) => n.includes("refused")),
  );
});

test("what ends a reply, and what stands around a text", () => {
  const out = join(root, "ends.gguf");
  const pairsOf = (dir: string): Map<string, unknown> => {
    rmSync(out, { force: true });
    exportGguf(dir, out);
    return parse(out).pairs;
  };
  const edit = (dir: string, name: string, change: (json: Record<string, unknown>) => void): void => {
    const json = JSON.parse(readFileSync(join(dir, name), "utf8"));
    change(json);
    writeFileSync(join(dir, name), JSON.stringify(json));
  };
  // No token does: a row without one, since llama.cpp would take token 11.
  const tokenizer = Tokenizer.fromParts([...ALPHABET], [], "llama3", ["<s>", "</s>", "<|end|>"]);
  const dir = make("ends", {}, tokenizer);
  edit(dir, "tokenizer_config.json", (json) => delete json.eos_token);
  expect(pairsOf(dir).get("tokenizer.ggml.eos_token_id")).toBe(tokenizer.vocabSize + 2);
  const ids = ["<s>", "</s>", "<|end|>"].map((t) => tokenizer.tokenToId(t)!);
  edit(dir, "tokenizer_config.json", (json) => Object.assign(json, { eos_token: "<|end|>", bos_token: "<s>" }));
  writeFileSync(join(dir, "generation_config.json"), JSON.stringify({ eos_token_id: [ids[1], ids[2]] }));
  const special = (token: string, id: number) => ({ SpecialToken: { id: token, type_id: id } });
  edit(dir, "tokenizer.json", (json) => {
    const single = [special("<s>", 0), { Sequence: { id: "A", type_id: 0 } }, special("<|end|>", 0)];
    const known = Object.fromEntries(
      ["<s>", "<|end|>"].map((t) => [t, { id: t, ids: [tokenizer.tokenToId(t)], tokens: [t] }]),
    );
    json.post_processor = { type: "TemplateProcessing", single, pair: single, special_tokens: known };
  });
  const pairs = pairsOf(dir);
  expect(["eos", "eot", "bos"].map((name) => pairs.get(`tokenizer.ggml.${name}_token_id`))).toEqual([
    ids[2],
    ids[1],
    ids[0],
  ]);
  expect([pairs.get("tokenizer.ggml.add_bos_token"), pairs.get("tokenizer.ggml.add_eos_token")]).toEqual([true, true]);
  for (const [change, why] of [
    [
      (json: Record<string, unknown>) => Object.assign(json, { normalizer: { type: "NFKC" } }),
      /normalizes texts \(NFKC\)/,
    ],
    [
      (json: Record<string, unknown>) => Object.assign((json.added_tokens as object[])[0], { rstrip: true }),
      /its token <s> takes the spaces beside it/,
    ],
  ] as const) {
    const before = readFileSync(join(dir, "tokenizer.json"), "utf8");
    edit(dir, "tokenizer.json", change);
    expect(() => pairsOf(dir)).toThrow(why);
    writeFileSync(join(dir, "tokenizer.json"), before);
  }
  const qwen = make("merges", {}, golden("qwen"));
  edit(qwen, "tokenizer.json", (json) => Object.assign(json.model as object, { ignore_merges: true }));
  expect(() => pairsOf(qwen)).toThrow(/ignore_merges/);
});

test("weights that are not finite are refused, and no file is left", () => {
  for (const bad of [Number.NaN, Number.NEGATIVE_INFINITY]) {
    const dir = make("nan", {}, golden("llama3"), [1, bad]);
    expect(() => exportGguf(dir, join(root, "nan.gguf"))).toThrow(
      /layers\.0\.self_attn\.o_proj\.weight holds NaN or inf/,
    );
    expect(readdirSync(root).filter((name) => name.startsWith("nan."))).toEqual([]);
  }
});

test("numbers that half precision has not", () => {
  const dir = make("large", {}, golden("llama3"), [65504, -65520]);
  expect(() => exportGguf(dir, join(root, "large.gguf"), "f16")).toThrow(/beyond 65,504.*another type/);
  expect(exportGguf(dir, join(root, "large.gguf"), "bf16").type).toBe("bf16");
});

test("a folder whose files do not belong together, and scalings that are one family's", () => {
  const out = join(root, "misfit.gguf");
  const misfit = (name: string, change: Record<string, unknown>): (() => unknown) => {
    const dir = make(name);
    const config = JSON.parse(readFileSync(join(dir, "config.json"), "utf8"));
    writeFileSync(join(dir, "config.json"), JSON.stringify({ ...config, ...change }));
    return () => exportGguf(dir, out);
  };
  expect(misfit("fewer", { num_hidden_layers: 1 })).toThrow(/with 1 layers has no tensor model\.layers\.1/);
  expect(misfit("more", { num_hidden_layers: 3 })).toThrow(/asks for the tensor model\.layers\.2\.\S+ of .*has none/);
  expect(misfit("heads", { head_dim: 8 })).toThrow(/q_proj\.weight of \[32,64\], and the file has F32 of \[64,64\]/);
  expect(misfit("untied", { tie_word_embeddings: false })).toThrow(/lm_head\.weight of .*has none/);
  const scaling = {
    rope_type: "llama3",
    factor: 4,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 32,
  };
  const qwen = make("qwen-scaled", { model_type: "qwen3", rope_scaling: scaling }, golden("qwen"));
  expect(() => exportGguf(qwen, out)).toThrow(/Llama 3's rotary scaling for Llama only/);
  expect(readdirSync(root).filter((name) => name.startsWith("misfit"))).toEqual([]);
});

test("byte fallback: SentencePiece's kind, whose scores give the same ids", () => {
  const out = join(root, "spm.gguf");
  const { texts } = JSON.parse(readFileSync("test/golden/tokenizer/fallback.json", "utf8")) as { texts: string[] };
  const named = (tokenizer: Tokenizer, config: Record<string, unknown> = {}): Tokenizer => {
    Object.assign(tokenizer.config, { bos_token: "<s>", eos_token: "</s>", ...config });
    return tokenizer;
  };
  const exported = (tokenizer: Tokenizer): Map<string, unknown> => {
    rmSync(out, { force: true });
    exportGguf(make("spm", {}, tokenizer), out);
    return parse(out).pairs;
  };
  const tokenizer = named(golden("llama2"));
  const pairs = exported(tokenizer);
  expect(
    ["model", "pre", "add_space_prefix", "add_bos_token", "unknown_token_id", "eos_token_id"].map((k) =>
      pairs.get(`tokenizer.ggml.${k}`),
    ),
  ).toEqual(["llama", "default", true, true, 0, 2]);
  const tokens = pairs.get("tokenizer.ggml.tokens") as string[];
  const scores = pairs.get("tokenizer.ggml.scores") as number[];
  const types = pairs.get("tokenizer.ggml.token_type") as number[];
  expect([0, 1, 2, 3, 258, 259, 1000].map((id) => types[id])).toEqual([2, 3, 3, 6, 6, 1, 5]);
  expect([tokens, scores, types].map((l) => l.length)).toEqual([1003, 1003, 1003]);
  // As llama.cpp does it: of two neighbours that together are a token, those with the highest score, the leftmost of equals.
  const idOf = new Map(tokens.map((t, id) => [t, id]));
  const encode = (text: string): number[] => {
    const parts = [...`\u2581${text.replaceAll(" ", "\u2581")}`];
    for (;;) {
      let best = -1;
      const score = (i: number): number => scores[idOf.get(parts[i] + parts[i + 1]) ?? -1] ?? Number.NEGATIVE_INFINITY;
      for (let i = 0; i + 1 < parts.length; i++)
        if (score(i) > Number.NEGATIVE_INFINITY && (best < 0 || score(i) > score(best))) best = i;
      if (best < 0) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
    return parts.flatMap((p) => idOf.get(p) ?? [...Buffer.from(p)].map((b) => 3 + b));
  };
  for (const text of texts)
    if (text !== "")
      expect(encode(text), JSON.stringify(text)).toEqual([...tokenizer.encode(text, { allowSpecial: false })]);

  // A space before the first text only: before none, where a conversation begins with a token.
  const first = (config: Record<string, unknown>): Tokenizer => {
    const made = named(golden("llama2"), config);
    const pre_tokenizer = { type: "Metaspace", replacement: "\u2581", prepend_scheme: "first", split: false };
    Object.assign(made.json, { normalizer: null, pre_tokenizer });
    made.save(join(root, "first"));
    return Tokenizer.load(join(root, "first"));
  };
  const says = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
  const templates = [
    undefined,
    says,
    `{{ bos_token }}${says}`,
    [
      { name: "rag", template: "x" },
      { name: "default", template: says },
    ],
  ];
  const prefixes = templates.map((chat_template) => {
    const made = exported(first({ chat_template }));
    return [made.get("tokenizer.ggml.add_space_prefix"), made.get("tokenizer.chat_template")];
  });
  expect(prefixes).toEqual([
    [true, undefined],
    [true, says],
    [false, `{{ bos_token }}${says}`],
    [true, says],
  ]);

  const refused = (
    change: (model: { merges: [string, string][]; ignore_merges: boolean }) => void,
    json: object = {},
  ): string => {
    const made = named(golden("llama2"));
    change(made.json.model as never);
    Object.assign(made.json, json);
    try {
      exported(made);
    } catch (error) {
      return (error as Error).message;
    }
    return "exported";
  };
  expect(
    refused((m) =>
      m.merges.splice(
        m.merges.findIndex(([l, r]) => l === "\u2581" && r === "the"),
        1,
      ),
    ),
  ).toMatch(/none joins "▁" and "the", and "▁the" is a token/);
  expect(refused((m) => m.merges.push(m.merges.shift()!, ["xx", "xx"], ["x", "x"]))).toMatch(/is merged among others/);
  expect(refused((m) => Object.assign(m, { ignore_merges: true }))).toMatch(/ignore_merges/);
  expect(refused(() => {}, { normalizer: { type: "NFKC" } })).toMatch(/normalizes texts \(NFKC\)/);
  const replace = (pattern: string, content: string) => ({ type: "Replace", pattern: { String: pattern }, content });
  const [spaces, marks] = [replace(" ", "\u2581"), { type: "Prepend", prepend: "\u2581" }];
  for (const more of [replace("\t", "\u2581"), { type: "Prepend", prepend: "x" }, marks])
    expect(refused(() => {}, { normalizer: { type: "Sequence", normalizers: [marks, spaces, more] } })).toMatch(
      /normalizes texts|treats spaces in a way of its own/,
    );
  const sought = {
    id: 1,
    content: "<s>",
    special: true,
    normalized: true,
    lstrip: false,
    rstrip: false,
    single_word: false,
  };
  expect(refused(() => {}, { added_tokens: [sought] })).toMatch(
    /token <s> is one only where it stands so in normalized text/,
  );

  // Llama 2's runs of spaces had one score: their merges lie among each other's.
  const runs = named(golden("llama2"));
  const model = runs.json.model as { vocab: Record<string, number>; merges: [string, string][] };
  const run = (n: number): string => "\u2581".repeat(n);
  const size = Object.keys(model.vocab).length;
  for (const [i, n] of [3, 5, 6, 7].entries()) model.vocab[run(n)] = size + i;
  const ofRuns = Object.keys(model.vocab)
    .filter((t) => /^\u2581\u2581+$/.test(t))
    .flatMap((t) =>
      Array.from({ length: t.length - 1 }, (_, i): [string, string] => [run(i + 1), run(t.length - 1 - i)]),
    )
    .filter((pair) => pair.every((t) => t in model.vocab));
  model.merges = model.merges.filter(([l, r]) => !/^\u2581+$/.test(l + r));
  model.merges.push(...ofRuns.sort((a, b) => b[0].length - a[0].length || b[1].length - a[1].length));
  runs.save(join(root, "runs"));
  const tiedScores = (exported(Tokenizer.load(join(root, "runs"))).get("tokenizer.ggml.scores") as number[]).filter(
    (_, id) => [5, 6, 7].some((n) => model.vocab[run(n)] === id),
  );
  expect(new Set(tiedScores).size).toBe(1);
});

test.each([-1, 1.5, 2 ** 32, 1e15, Number.NaN])("a whole number that a file has no room for is refused: %d", (u32) => {
  const out = join(root, "no-room.gguf");
  expect(() => writeGguf(out, { "llama.context_length": { u32 } }, [])).toThrow(
    `no-room.gguf cannot be written: llama.context_length would be ${u32}, and a GGUF file has a whole number from 0 to`,
  );
  expect(readdirSync(root).filter((name) => name.startsWith("no-room"))).toEqual([]);
});
