/** Where the engine cannot be opened, JavaScript does the same work. */
import { expect, test, vi } from "vitest";
import { trainBpe } from "../../src/tokenizer/train.js";
import { fromJson, golden } from "./golden.js";

const opened = vi.hoisted(() => vi.fn());
vi.mock("../../src/device/cpu.js", () => ({
  currentCpu: () => {
    opened();
    throw new Error("The CPU engine is not built.");
  },
}));

test("large inputs are encoded and tokenizers trained", () => {
  const corpus = golden<string[]>("corpus.json");
  const made = golden<{ model: { merges: string[][] } }>("llama3.json");
  const tokenizer = fromJson(made);
  const all = tokenizer.encodeBatch(corpus);
  expect(opened).toHaveBeenCalledTimes(1);
  expect(all.map((ids) => tokenizer.decode(ids))).toEqual(corpus);
  expect(all).toEqual(tokenizer.encodeBatch(corpus, { engine: false }));
  const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"];
  const trained = trainBpe(corpus, { vocabSize: 1000, specialTokens });
  expect(opened).toHaveBeenCalledTimes(2);
  expect((trained.json.model as typeof made.model).merges).toEqual(made.model.merges);
});
