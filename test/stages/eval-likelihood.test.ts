/** Perplexity and multiple choice against PyTorch and Transformers (test/golden/eval/make.py). */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { type Loaded, loadForGeneration } from "../../src/generate/loaded.js";
import { multipleChoice, summarizeChoice } from "../../src/stages/eval/choice.js";
import { logLikelihoods, startToken } from "../../src/stages/eval/likelihood.js";
import { perplexity, windowsOf } from "../../src/stages/eval/perplexity.js";
import { withoutThought } from "../../src/stages/eval/replies.js";

interface Golden {
  template: string;
  perplexity: { text: string; tokens: number; bytes: number; nll: number }[];
  summary: { tokens: number; bytes: number; loss: number; perplexity: number; bitsPerByte: number };
  choices: { question: string; choices: string[]; base: number[]; chat: number[] }[];
}
const at = fileURLToPath(new URL("../golden/eval", import.meta.url));
const golden = JSON.parse(readFileSync(`${at}/golden.json`, "utf8")) as Golden;
const base = loadForGeneration(`${at}/model`, { precision: "fp32" });
const source = { file: "tasks.jsonl", line: 7 };
const dir = mkdtempSync(join(tmpdir(), "lyceum-eval-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** The model's folder with changes to tokenizer_config.json. */
function variant(name: string, changes: object): Loaded {
  cpSync(`${at}/model`, join(dir, name), { recursive: true });
  const file = join(dir, name, "tokenizer_config.json");
  writeFileSync(file, JSON.stringify({ ...(JSON.parse(readFileSync(file, "utf8")) as object), ...changes }));
  return loadForGeneration(join(dir, name));
}

test.each(golden.perplexity.map((p) => [p.text.slice(0, 30), p] as const))("perplexity of %j", (_, p) => {
  const result = perplexity(base, [{ text: p.text, source }], "model");
  expect(result.tokens).toBe(p.tokens);
  expect(result.bytes).toBe(p.bytes);
  expect(result.loss).toBeCloseTo(p.nll / p.tokens, 4);
});

test("perplexity of all texts together, whatever else is in the batch", () => {
  const result = perplexity(
    base,
    golden.perplexity.map(({ text }) => ({ text, source })),
    "model",
  );
  const { loss, bitsPerByte, perplexity: wanted, ...counts } = golden.summary;
  expect(result).toMatchObject({ ...counts, texts: golden.perplexity.length, context: 64 });
  expect(result.loss).toBeCloseTo(loss, 4);
  expect(result.bitsPerByte).toBeCloseTo(bitsPerByte, 4);
  expect(result.perplexity / wanted).toBeCloseTo(1, 4);
});

test("windows: every token but the first once, later ones with half a window before them", () => {
  for (const [n, length] of [
    [2, 8],
    [8, 8],
    [9, 8],
    [12, 8],
    [13, 8],
    [40, 7],
    [5, 2],
    [1, 8],
  ]) {
    const scored: number[] = [];
    for (const { ids, start } of windowsOf(
      Int32Array.from({ length: n }, (_, i) => i),
      length,
    )) {
      expect(ids.length).toBeLessThanOrEqual(length);
      if (ids[0] > 0) expect(start).toBe(Math.floor(length / 2));
      scored.push(...ids.slice(start));
    }
    expect(scored).toEqual(Array.from({ length: n - 1 }, (_, i) => i + 1));
  }
});

test("a shorter context gives other numbers over the same tokens, and is reported", () => {
  const texts = [{ text: golden.perplexity[2].text, source }];
  const [whole, cut] = [perplexity(base, texts, "model"), perplexity(base, texts, "model", 4)];
  expect(cut.context).toBe(4);
  expect(cut.tokens).toBe(whole.tokens);
  expect(cut.loss).not.toBeCloseTo(whole.loss, 2);
});

const choices = golden.choices.map(({ question, choices }, i) => ({
  question,
  choices,
  answer: i % 2,
  group: i < 2 ? "en" : "ja",
  source,
}));

test.each(["base", "chat"] as const)("log-probabilities of choices, %s model", (kind) => {
  const loaded = kind === "base" ? base : variant("chat", { chat_template: golden.template, eos_token: "<|end|>" });
  const outcomes = multipleChoice(loaded, choices);
  golden.choices.forEach((wanted, i) => {
    wanted[kind].forEach((p, c) => {
      expect(outcomes[i].logProbs[c]).toBeCloseTo(p, 3);
    });
    const perByte = wanted[kind].map((p, c) => p / Buffer.byteLength(wanted.choices[c]));
    expect(outcomes[i].raw).toBe(wanted[kind].indexOf(Math.max(...wanted[kind])));
    expect(outcomes[i].perByte).toBe(perByte.indexOf(Math.max(...perByte)));
  });
});

test("accuracy, raw and per byte, over all and by group; what guessing gives", () => {
  const logProbs: number[] = [];
  const outcomes = [
    { raw: 0, perByte: 1, logProbs },
    { raw: 1, perByte: 1, logProbs },
    { raw: 1, perByte: 0, logProbs },
  ];
  const result = summarizeChoice(choices, outcomes);
  expect(result).toMatchObject({ questions: 3, chance: (1 / 3 + 1 / 2 + 1 / 2) / 3 });
  expect(result.accuracy).toBeCloseTo(2 / 3, 12);
  expect(result.accuracyPerByte).toBeCloseTo(2 / 3, 12);
  expect(result.accuracyInterval[0]).toBeLessThan(2 / 3);
  expect(result.groups).toEqual({
    en: { accuracy: 1, accuracyPerByte: 0.5, questions: 2 },
    ja: { accuracy: 0, accuracyPerByte: 1, questions: 1 },
  });
});

test("what cannot be scored is told with its record: too long, a foreign tokenizer, nothing to begin with", () => {
  const long = [{ ...choices[0], question: "The owl ".repeat(60) }];
  expect(() => multipleChoice(base, long)).toThrow(/tasks\.jsonl:7: its \d+ tokens are more than .*context of 64/);
  expect(() => logLikelihoods(base.model, [{ ids: Int32Array.of(1, 300), start: 1, at: "f:1" }])).toThrow(
    /f:1: token 300 is beyond the model's vocabulary of 300/,
  );
  // The separator of documents goes before a chat model's end of turn; without it eos; without either, a message.
  const chat = variant("separator", { eos_token: "<|end|>" });
  expect(startToken(chat.tokenizer, "m")).toBe(chat.tokenizer.tokenToId("<|endoftext|>"));
  const bos = variant("bos", { bos_token: "<|pad|>" });
  expect(startToken(bos.tokenizer, "m")).toBe(bos.tokenizer.tokenToId("<|pad|>"));
  const none = {
    bosId: undefined,
    separatorId: undefined,
    tokenToId: () => undefined,
  } as unknown as typeof bos.tokenizer;
  expect(() => startToken(none, "the-model")).toThrow(/the-model: the tokenizer names neither/);
});

test("a thought is not the answer, wherever it began; one that did not end is none", () => {
  expect(withoutThought("<think>\n7? 8?\n</think>\n\n7")).toBe("\n\n7");
  expect(withoutThought("so it is</think> 7")).toBe(" 7"); // the template wrote where it begins
  expect(withoutThought(" <think>for ever")).toBe("");
  expect(withoutThought("I think <think> is a tag")).toBe("I think <think> is a tag");
});
