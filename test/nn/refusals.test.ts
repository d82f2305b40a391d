/** What a model refuses before a kernel would read past its tables. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { generate } from "../../src/generate/generate.js";
import { Int8Weights } from "../../src/generate/weights.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { loadLlama, saveLlama } from "../../src/nn/folder.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
import { attachLora, loadAdapter, saveAdapter } from "../../src/nn/lora.js";
import { loadOptimizer, saveOptimizer } from "../../src/optim/state.js";
import { Trainer } from "../../src/optim/trainer.js";
import { UserError } from "../../src/run/errors.js";
import { optimizerSchema, scheduleSchema } from "../../src/run/settings.js";
import { allTargets, backwardMeanLoss } from "../../src/stages/clm.js";
import { Tape } from "../../src/tensor/tensor.js";

const device = openCpu({ threads: 1 });
const config = parseLlamaConfig(
  {
    vocab_size: 20,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 8,
    tie_word_embeddings: true,
  },
  "test",
);
const root = mkdtempSync(join(tmpdir(), "lyceum-refusals-"));
const model = new Llama(device, config, "fp32");
model.parameters.initialize(1, 0.1);
const tape = new Tape(device, false);
afterAll(() => {
  tape.close();
  model.close();
  rmSync(root, { recursive: true });
});

interface Header {
  [tensor: string]: { dtype: string; shape: number[]; data_offsets: [number, number] };
}
/** Changes what a file says of its tensors, and of their bytes where they are to be more or fewer. */
function editHeader(file: string, change: (header: Header) => void): void {
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as Header;
  change(header);
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  const ends = Object.values(header).flatMap(({ data_offsets }) => data_offsets?.[1] ?? []);
  const rest = Buffer.alloc(Math.max(...ends), 1);
  bytes.copy(rest, 0, 8 + length);
  writeFileSync(file, Buffer.concat([size, text, rest]));
}

test("tokens, targets and positions that the model has no rows for", () => {
  const forward = (ids: number[]) => () => model.forward(tape, packSequences([ids]));
  expect(forward([1, 20])).toThrow(/Token 20 is not in the model's vocabulary of 20/);
  expect(forward([1, -1])).toThrow(/Token -1 is not/);
  expect(forward([1, 2, 3, 4, 5, 6, 7, 8, 9])).toThrow(/has 9 tokens, but the model was made for 8 positions/);
  const batch = packSequences([[1, 2]]);
  expect(() => model.logProbs(tape, batch, Int32Array.of(2, 20))).toThrow(/Token 20 is not/);
  expect(forward([0, 19, 1, 2, 3, 4, 5, 6])).not.toThrow();
});

test.each([
  ["whole numbers", "I16", 1],
  ["fp8", "F8_E4M3", 2],
])("weights of %s", (_, type, per) => {
  const dir = `${root}/${type}`;
  const half = new Llama(device, config, "bf16");
  half.parameters.initialize(1, 0.1);
  saveLlama(half, dir);
  half.close();
  editHeader(`${dir}/model.safetensors`, (header) => {
    const first = header["model.embed_tokens.weight"];
    first.dtype = type;
    first.shape[1] *= per; // as many bytes as before
  });
  for (const precision of ["bf16", "fp32"] as const)
    expect(() => loadLlama(device, dir, precision)).toThrow(
      `embed_tokens.weight is of type ${type}; F32, BF16 and F16 can be read`,
    );
});

test("fewer targets or weights than tokens, logits of rows that are not there, tensors and models that are gone", () => {
  const batch = packSequences([[1, 2, 3]]);
  const [targets, weights] = [Int32Array.of(2, 3, -1), Float32Array.of(1, 1, 0)];
  expect(() => model.loss(tape, batch, targets.subarray(1), weights)).toThrow(/There are 2 targets for 3 tokens/);
  expect(() => model.loss(tape, batch, targets, weights.subarray(1))).toThrow(/There are 2 weights for 3 tokens/);
  expect(() => model.logProbs(tape, batch, targets.subarray(2))).toThrow(/There are 1 targets for 3 tokens/);
  const own = new Tape(device, false);
  const hidden = model.forward(own, batch);
  for (const row of [3, -1, 7])
    expect(() => model.logits(own, hidden, Int32Array.of(row))).toThrow(/there are 3 hidden/);
  own.close();
  expect(() => hidden.toArray()).toThrow(/tape was closed/);
  const gone = new Llama(device, config, "fp32");
  gone.parameters.initialize(1, 0.1);
  gone.close();
  expect(() => gone.forward(tape, batch)).toThrow(/was closed/);
  expect(() => generate(gone, [[1]], { maxTokens: 2 })).toThrow(/was closed/);
});

test("positions and borders that do not fit their tokens; weights, parameters and optimizers that are gone", () => {
  const batch = packSequences([[1, 2, 3]]);
  expect(() => model.forward(tape, { ...batch, positions: batch.positions.subarray(1) })).toThrow(/2 positions for 3/);
  for (const cuSeqlens of [[0, 64], [1, 3], [0, 5, 3], [0]].map((list) => Int32Array.from(list)))
    expect(() => model.forward(tape, { ...batch, cuSeqlens })).toThrow(/cuSeqlens must lead from 0 to 3/);
  const weights = new Int8Weights(model);
  weights.close();
  weights.close();
  expect(() => generate(model, [[1]], { maxTokens: 2, weights })).toThrow(/weights were closed/);
  const own = new Llama(device, config, "fp32");
  own.parameters.initialize(1, 0.1);
  const trainer = new Trainer(own.trainable, optimizerSchema.parse({}), scheduleSchema.parse({}), 4);
  const train = () => trainer.step(1, () => backwardMeanLoss(own, new Tape(device), [allTargets([[1, 2, 3]])]).loss);
  train();
  trainer.close();
  trainer.close();
  expect(train).toThrow(/optimizer was closed/);
  own.close();
  own.close();
  expect(train).toThrow(/closed/);
  expect(() => own.parameters.initialize(1, 0.1)).toThrow(/closed/);
  expect(() => [...own.parameters.tensors()]).toThrow(/closed/);
  expect(() => new Int8Weights(own)).toThrow(/closed/);
  expect(() => new Trainer(own.trainable, optimizerSchema.parse({}), scheduleSchema.parse({}), 4)).toThrow(/closed/);
  for (const touch of [saveOptimizer, loadOptimizer])
    expect(() => touch(trainer.optimizer, "/nowhere/optimizer.safetensors")).toThrow(/closed/);
  expect(() => trainer.optimizer.withAverage(() => {})).toThrow(/closed/);
});

test("numbers of generation that are none", () => {
  for (const maxTokens of [Number.NaN, 1.5, -1, undefined as never])
    expect(() => generate(model, [[1]], { maxTokens })).toThrow(/maxTokens is .*; it must be a whole number/);
  for (const temperature of [Number.NaN, -1])
    expect(() => generate(model, [[1]], { maxTokens: 1, temperature })).toThrow(/temperature is/);
  for (const token of [1.5, Number.NaN, 20])
    expect(() => generate(model, [[token]], { maxTokens: 1 })).toThrow(/holds token/);
});

test("a reward model as a language model, tied or not", () => {
  const judge = new Llama(device, config, "fp32", { head: "scalar" });
  judge.parameters.initialize(2, 0.1);
  saveLlama(judge, join(root, "judge"));
  judge.close();
  expect(() => loadLlama(device, join(root, "judge"), "fp32")).toThrow(/holds a reward or value model/);
  loadLlama(device, join(root, "judge"), "fp32", { head: "scalar" }).close();
  saveLlama(model, join(root, "model"));
  loadLlama(device, join(root, "model"), "fp32", { head: "scalar" }).close(); // its head is new
});

test("a tied model whose file has another output matrix: which of them is meant, nobody knows", () => {
  const dir = join(root, "two-heads");
  const untied = new Llama(device, { ...config, tieWordEmbeddings: false }, "fp32");
  untied.parameters.initialize(3, 0.1);
  saveLlama(untied, dir, { tie_word_embeddings: true });
  expect(() => loadLlama(device, dir, "fp32")).toThrow(/tie_word_embeddings.*another lm_head\.weight.*to false there/);
  device.f32(untied.outputMatrix!.ptr, untied.outputMatrix!.size).set(untied.embeddings!.toArray());
  saveLlama(untied, dir, { tie_word_embeddings: true });
  loadLlama(device, dir, "fp32").close(); // the same twice
  untied.close();
});

describe("a checkpoint whose files are damaged, or of another run", () => {
  test.each([
    ["a larger tensor", { shape: [2000, 24], dtype: "F32" }, 192_000],
    ["a smaller one", { shape: [1, 24], dtype: "F32" }, 96],
    ["another type, in as many bytes", { shape: [2, 24], dtype: "I32" }, 192],
    ["half of the bytes", { shape: [2, 24], dtype: "BF16" }, 96],
  ])("adapters: %s", (name, { shape, dtype }, bytes) => {
    const dir = join(root, `adapter ${name}`);
    mkdirSync(dir);
    const own = new Llama(device, config, "fp32");
    own.parameters.initialize(1, 0.1);
    attachLora(own, { rank: 2, alpha: 4, targets: ["down_proj", "qkv"] }, 1);
    saveAdapter(own, dir);
    loadAdapter(own, dir);
    editHeader(`${dir}/adapter.safetensors`, (header) => {
      const tensor = "model.layers.0.mlp.down_proj.weight.lora_A";
      const end = Math.max(...Object.values(header).flatMap(({ data_offsets }) => data_offsets?.[1] ?? []));
      header[tensor] = { shape, dtype, data_offsets: [end, end + bytes] };
    });
    const neighbours = own.lora!.parameters.parameters.map((p) => p.toArray());
    expect(() => loadAdapter(own, dir)).toThrow(
      `adapter.safetensors: the tensor model.layers.0.mlp.down_proj.weight.lora_A has shape [${shape}] and type ${dtype}, this run's has [2,24] and F32: the checkpoint is damaged or of another run.`,
    );
    expect(own.lora!.parameters.parameters.map((p) => p.toArray())).toEqual(neighbours);
    editHeader(`${dir}/adapter.safetensors`, (header) => {
      delete header["model.layers.0.mlp.down_proj.weight.lora_A"];
    });
    expect(() => loadAdapter(own, dir)).toThrow(/has no .*lora_A: the checkpoint is damaged or of another run\.$/);
    own.lora!.parameters.close();
    own.close();
  });

  test("an optimizer's state", () => {
    const own = new Llama(device, config, "fp32");
    own.parameters.initialize(1, 0.1);
    const trainer = new Trainer(own.trainable, optimizerSchema.parse({}), scheduleSchema.parse({}), 4);
    const path = `${root}/optimizer.safetensors`;
    const said = (change: (header: Header) => void): string => {
      saveOptimizer(trainer.optimizer, path);
      editHeader(path, change);
      try {
        loadOptimizer(trainer.optimizer, path);
        return "loaded";
      } catch (error) {
        expect(error).toBeInstanceOf(UserError);
        return (error as Error).message;
      }
    };
    const tensor = "m.model.norm.weight";
    for (const [dtype, width] of [
      ["F16", 2],
      ["I32", 4],
      ["F64", 8],
    ] as const)
      expect(
        said((header) => {
          const end = Math.max(...Object.values(header).flatMap(({ data_offsets }) => data_offsets?.[1] ?? []));
          header[tensor] = { dtype, shape: [16], data_offsets: [end, end + 16 * width] };
        }),
      ).toBe(
        `${path}: the tensor ${tensor} is of type ${dtype}, and an optimizer's are F32: the checkpoint is damaged.`,
      );
    for (const step of ["", "1e9", "-5", "1.5", " 4", "x", "99999999999999999999", null, undefined])
      expect(
        said((header) => {
          Object.assign(header, { __metadata__: { step } });
        }),
        String(step),
      ).toMatch(/does not say how many updates have been made: its step is .* must be a whole number/);
    expect(said((header) => Object.assign(header, { __metadata__: { step: "17" } }))).toBe("loaded");
    expect(trainer.optimizer.step).toBe(17);
    trainer.close();
    own.close();
  });
});

describe("a config.json in which a value is not what it should be", () => {
  const whole = {
    vocab_size: 20,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 1,
    num_attention_heads: 2,
  };
  const yarn = { rope_type: "yarn", factor: 2, original_max_position_embeddings: 32 };
  test.each<[string, unknown, object?]>([
    ["rms_norm_eps", "1e-5"],
    ["rms_norm_eps", 0],
    ["rms_norm_eps", Number.POSITIVE_INFINITY],
    ["rope_theta", "10000"],
    ["rope_theta", 0],
    ["rope_theta", -5],
    ["rope_theta", "10000", { rope_parameters: { rope_theta: "10000" } }],
    ["initializer_range", [0.02]],
    ["rope_parameters", [1]],
    ["rope_parameters", "linear"],
    ["rope_scaling", 3],
    ["factor", "2", { rope_scaling: { type: "linear", factor: "2" } }],
    ["factor", -2, { rope_parameters: { rope_type: "linear", factor: -2 } }],
    ["beta_fast", "32", { rope_parameters: { ...yarn, beta_fast: "32" } }],
    ["truncate", 1, { rope_parameters: { ...yarn, truncate: 1 } }],
    ["eos_token_id", ["x"]],
    ["eos_token_id", [1, 20]],
    ["eos_token_id", -1],
    ["eos_token_id", 1e9],
    ["eos_token_id", "2"],
    ["bos_token_id", -1],
    ["bos_token_id", 1.5],
    ["bos_token_id", [1]],
    ["pad_token_id", -2],
    ["pad_token_id", "0"],
    ["model_type", ["llama"]],
    ["model_type", 3],
    ["hidden_act", ["silu"]],
    ["attention_bias", "false"],
    ["tie_word_embeddings", "true"],
    ["max_position_embeddings", 1e15],
    ["max_position_embeddings", "8"],
    ["sliding_window", "64", { model_type: "mistral", sliding_window: "64" }],
    ["use_sliding_window", 1, { model_type: "qwen2", use_sliding_window: 1 }],
    ["num_hidden_layers", 1e6],
    ["num_hidden_layers", 1e9],
    ["num_hidden_layers", 0],
    ["hidden_size", undefined],
  ])("%s: %j", (key, value, json = { [key]: value }) => {
    const parse = () => parseLlamaConfig({ ...whole, ...json }, "m/config.json");
    expect(parse).toThrow(UserError);
    expect(parse).toThrow(new RegExp(`^m/config.json(, rope_\\w+)?: ${key} (must be .*(, not|, and is missing)|is )`));
  });

  test("what is absent or null has its default, and what real files say is read", () => {
    const nothing = Object.fromEntries(
      [
        "model_type hidden_act rms_norm_eps rope_theta rope_scaling rope_parameters initializer_range",
        "bos_token_id eos_token_id pad_token_id tie_word_embeddings attention_bias max_position_embeddings head_dim",
      ].flatMap((keys) => keys.split(" ").map((key) => [key, null])),
    );
    expect(parseLlamaConfig({ ...whole, ...nothing }, "test")).toEqual(parseLlamaConfig(whole, "test"));
    const read = parseLlamaConfig(
      { ...whole, eos_token_id: [19, 2, 3], bos_token_id: 0, pad_token_id: -1, initializer_range: 0 },
      "test",
    );
    expect(read).toMatchObject({ eosTokenId: [19, 2, 3], bosTokenId: 0, padTokenId: undefined, initializerRange: 0 });
    expect(parseLlamaConfig({ ...whole, pad_token_id: 20 }, "test").padTokenId).toBe(20); // never resized: nothing pads
    expect(() => parseLlamaConfig({ ...whole, num_hidden_layers: 1e6 }, "m/config.json")).toThrow(
      "num_hidden_layers must be a whole number from 1 to 10000, not 1000000.",
    );
  });
});
