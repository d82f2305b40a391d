/** What a model refuses before a kernel would read past its tables. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { generate } from "../../src/generate/generate.js";
import { Int8Weights } from "../../src/generate/weights.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { loadLlama, saveLlama } from "../../src/nn/folder.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
import { loadOptimizer, saveOptimizer } from "../../src/optim/state.js";
import { Trainer } from "../../src/optim/trainer.js";
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
  const file = `${dir}/model.safetensors`;
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as Record<
    string,
    { dtype: string; shape: number[] }
  >;
  const first = header["model.embed_tokens.weight"];
  first.dtype = type;
  first.shape[1] *= per; // as many bytes as before
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(file, Buffer.concat([size, text, bytes.subarray(8 + length)]));
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
