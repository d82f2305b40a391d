/** Ids, decoded texts and trained merges, against Hugging Face tokenizers in Rust. */
import { describe, expect, test } from "vitest";
import type { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { type TrainOptions, trainBpe } from "../../src/tokenizer/train.js";
import { type Change, changed, fromJson, golden, type Json, type Results } from "./golden.js";

const NAMES = ["gpt2", "llama3", "qwen", "han"] as const;
const { texts, ...byName } = golden<{ texts: string[] } & Record<(typeof NAMES)[number], Results>>("texts.json");
const corpus = golden<string[]>("corpus.json");

/** Every text, one at a time and many at once: the JavaScript encoder, and the engine's where it knows the tokenizer. */
function check(tokenizer: Tokenizer, { ids, decoded }: Results, own = texts): void {
  const few = own.slice(0, ids.length);
  const large = " ".repeat(21_000);
  const batch = tokenizer.encodeBatch([...few, large]).map((b) => b.join());
  const wrong = few.flatMap((text, i) => {
    const [withSpecial, without] = decoded[i] ?? [text, text];
    const wanted = [ids[i].join(), ids[i].join(), withSpecial, without];
    const ours = [
      tokenizer.encode(text).join(),
      batch[i],
      tokenizer.decode(ids[i]),
      tokenizer.decode(ids[i], { skipSpecialTokens: true }),
    ];
    return ours.join("\0") === wanted.join("\0") ? [] : [{ text, ours, wanted }];
  });
  expect(wrong).toEqual([]);
}

test.each(NAMES)("%s: the ids and decoded texts of Hugging Face", (name) =>
  check(fromJson(golden(`${name}.json`)), byName[name]),
);

test.each(NAMES)("%s: training gives Hugging Face's tokenizer.json", (name) => {
  const made = golden<{ model: { vocab: Json; merges: string[][] } }>(`${name}.json`);
  const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"];
  const ours = trainBpe(corpus, { vocabSize: 1000, pretokenizer: name, specialTokens });
  const model = ours.json.model as typeof made.model;
  expect(model.merges).toEqual(made.model.merges);
  expect(model.vocab).toEqual(made.model.vocab);
  check(ours, byName[name]);
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
    check(tokenizer, wanted, own);
    expect(Array.from(tokenizer.encode("a", { addSpecialTokens: true }))).toEqual(around);
  });
});
