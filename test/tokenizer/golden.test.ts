/** Ids, decoded texts and trained merges, against Hugging Face tokenizers in Rust. */
import { describe, expect, test } from "vitest";
import { type TrainOptions, trainBpe } from "../../src/tokenizer/train.js";
import { type Change, changed, check, fromJson, golden, type Json, type Results } from "./golden.js";

const NAMES = ["gpt2", "llama3", "qwen", "han"] as const;
const { texts, ...byName } = golden<{ texts: string[] } & Record<(typeof NAMES)[number], Results>>("texts.json");
const corpus = golden<string[]>("corpus.json");

test.each(NAMES)("%s: the ids and decoded texts of Hugging Face", (name) =>
  check(fromJson(golden(`${name}.json`)), byName[name], texts),
);

test.each(NAMES)("%s: training gives Hugging Face's tokenizer.json", (name) => {
  const made = golden<{ model: { vocab: Json; merges: string[][] } }>(`${name}.json`);
  const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"];
  const ours = trainBpe(corpus, { vocabSize: 1000, pretokenizer: name, specialTokens });
  const model = ours.json.model as typeof made.model;
  expect(model.merges).toEqual(made.model.merges);
  expect(model.vocab).toEqual(made.model.vocab);
  check(ours, byName[name], texts);
});

describe("other trainings", () => {
  type Trained = { corpus: string; options: TrainOptions; vocab: string[]; merges: string[][] };
  const { runs, trained } = golden<{ runs: string[]; trained: Trained[] }>("trained.json");
  test.each(trained)("$corpus, $options", ({ corpus: which, options, vocab, merges }) => {
    const ours = trainBpe(which === "runs" ? runs : corpus, options);
    const model = ours.json.model as { vocab: Record<string, number>; merges: string[][] };
    expect(model.merges).toEqual(merges);
    expect(Object.keys(model.vocab).sort((a, b) => model.vocab[a] - model.vocab[b])).toEqual(vocab);
  });
});

describe("a tokenizer.json with", () => {
  type Variant = { name: string; base: string; change: Change; around: number[]; texts?: string[] } & Results;
  test.each(golden<Variant[]>("variants.json"))("$name", ({ base, change, around, texts: own, ...wanted }) => {
    const tokenizer = fromJson(changed(base, change));
    check(tokenizer, wanted, own ?? texts);
    expect(Array.from(tokenizer.encode("a", { addSpecialTokens: true }))).toEqual(around);
  });
});
