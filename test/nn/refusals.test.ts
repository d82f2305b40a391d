/** What a model refuses before a kernel would read past its tables. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { loadLlama, saveLlama } from "../../src/nn/folder.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
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
