/** The engine against the JavaScript code: the same ids and merges, for any text and any number of threads. */
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { currentCpu, openCpu } from "../../src/device/cpu.js";
import { BpeModel } from "../../src/tokenizer/bpe.js";
import { NativeBpe, NativeTrainer } from "../../src/tokenizer/native.js";
import type { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { trainBpe } from "../../src/tokenizer/train.js";
import { type Change, changed, fromJson, golden, type Json } from "./golden.js";

const NAMES = ["gpt2", "llama3", "qwen", "han"] as const;
const { texts } = golden<{ texts: string[] }>("texts.json");
const corpus = golden<string[]>("corpus.json");
const threads = openCpu().threads;
afterAll(() => void openCpu({ threads }));

/** Every text, alone and in a batch that is large enough for the engine. */
function same(tokenizer: Tokenizer, all: readonly string[]): void {
  const batch = [...all, " padding".repeat(2600)];
  const native = tokenizer.encodeBatch(batch);
  const here = tokenizer.encodeBatch(batch, { engine: false });
  for (const [i, text] of batch.entries())
    if (native[i].join() !== here[i].join()) expect({ text, ids: [...native[i]] }).toEqual({ text, ids: [...here[i]] });
}

/** Pieces that meet the scanners' borders: kinds of characters, their lengths in UTF-8, words of 15, 16 and more bytes. */
const PIECES = [
  ..."aZéß中Ⅷ7٣½𝟘𐐷ǅ़\u0301🙂!—…'’\"_\0\t\n\r \u0085\u00a0\u3000\u2028\ufeff\u200b",
  ..."'s 'S 'ſ 'll 'LL 'rE 'v 'm2 'd. \r\n \n\n   don't <|im_end|>".split(" "),
  ..."abcdefghijklmn abcdefghijklmno abcdefghijklmnop 国国国国国 123456789".split(" "),
  "x".repeat(77),
  "中".repeat(70),
  "-".repeat(200),
  " ".repeat(30),
];
const anyText = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.array(fc.constantFrom(...PIECES), { maxLength: 16 }).map((pieces) => pieces.join("")),
);

const CASES: [string, (typeof NAMES)[number], Change][] = [
  ...NAMES.map((name): [string, typeof name, Change] => [name, name, []]),
  ["a space before", "gpt2", [["pre_tokenizer.add_prefix_space", true]]],
  ["ignore_merges", "llama3", [["model.ignore_merges", true]]],
  [
    "ignore_merges and no merges",
    "qwen",
    [
      ["model.ignore_merges", true],
      ["model.merges", []],
    ],
  ],
];

describe.each(CASES)("encoding: %s", (_, base, change) => {
  const tokenizer = fromJson(changed(base, change));

  test("the engine knows it", () => {
    const model = new BpeModel(changed(base, change).model as Json, "test");
    expect(NativeBpe.of(model, base, undefined)).toBeInstanceOf(NativeBpe);
  });

  test("texts in any scripts", () => {
    same(tokenizer, texts);
    same(tokenizer, fc.sample(anyText, { numRuns: 3000, seed: 7 }));
  });

  test("long texts, cut for the threads, with and without places to cut", () => {
    const long = [
      corpus.join("\n"),
      corpus.join(""),
      "The capital of 法国 is Paris, 2024! ".repeat(3000),
      "法国首都巴黎".repeat(9000),
      " \n\t ".repeat(20_000),
      "!?".repeat(40_000),
      "\0".repeat(70_000),
      "'ll'S".repeat(15_000),
      "1234567".repeat(10_000),
    ];
    for (const text of long) same(tokenizer, [text, text.slice(1), "short"]);
  });
});

test("ids do not depend on the number of threads", () => {
  const tokenizer = fromJson(golden("llama3.json"));
  const wanted = tokenizer.encodeBatch(corpus, { engine: false });
  const joined = tokenizer.encode(corpus.join("\n"), { engine: false });
  for (const n of [1, 2, 3, 7]) {
    openCpu({ threads: n });
    expect(currentCpu().threads).toBe(n);
    for (let again = 0; again < 3; again++) {
      expect(tokenizer.encodeBatch(corpus)).toEqual(wanted);
      expect(tokenizer.encode(corpus.join("\n"))).toEqual(joined);
    }
  }
});

test("more words of many tokens than a thread remembers", () => {
  const tokenizer = trainBpe(["ab"], { vocabSize: 257 });
  const words = Array.from({ length: 40_000 }, (_, i) => `w${(Math.imul(i, 2654435761) >>> 0).toString(26)}`);
  same(tokenizer, [words.join(" "), words.join("\n"), words.toReversed().join(" ")]);
});

test("two tokenizers in turns: neither takes the other's words", () => {
  const [a, b] = [fromJson(golden("llama3.json")), fromJson(golden("gpt2.json"))];
  for (let round = 0; round < 3; round++) for (const t of [a, b]) same(t, corpus.slice(0, 40));
});

test("texts of more than one round, and one that is longer than a round and cannot be cut", () => {
  const tokenizer = fromJson(golden("qwen.json"));
  const line = "Paris is the capital of France.\n";
  const ids = [...tokenizer.encode(line)];
  const many = tokenizer.encodeBatch([line.repeat(150_000), line]);
  expect(many[0].length).toBe(ids.length * 150_000);
  for (const at of [0, 70_000, 149_999])
    expect([...many[0].subarray(at * ids.length, (at + 1) * ids.length)]).toEqual(ids);
  expect([...many[1]]).toEqual(ids);
  const flat = tokenizer.encode("7 ".repeat(2_500_000));
  expect(flat.length).toBe(5_000_000);
  expect(new Set(flat).size).toBe(2);
});

test("a text of more than a round is cut where no word notices", () => {
  const tokenizer = fromJson(golden("gpt2.json"));
  // A round is 2^22 characters, and the place is sought from its middle on; zeros are one word without merges.
  const zeros = "\0".repeat(2 ** 21);
  for (const middle of ["kk.\n\nkk", "7.\n\n7\n7"]) {
    const text = `${zeros}${middle}\n\n${zeros}`;
    const [native, here] = [tokenizer.encode(text), tokenizer.encode(text, { engine: false })];
    expect(native.length).toBe(here.length);
    expect(native.slice(zeros.length, -zeros.length)).toEqual(here.slice(zeros.length, -zeros.length));
  }
});

describe("training", () => {
  const merges = (t: Tokenizer): unknown => t.json.model;

  test.each(NAMES)("%s: the merges of JavaScript", (pretokenizer) => {
    expect(NativeTrainer.open(pretokenizer)).not.toBeNull();
    for (const specialTokens of [["<s>"], ["the", "Ġc", "<pad>", "a"]]) {
      const options = { vocabSize: 3000, pretokenizer, specialTokens, minFrequency: 1 };
      const wanted = trainBpe(corpus, { ...options, engine: false });
      for (const n of [1, 2, 5]) {
        openCpu({ threads: n });
        expect(merges(trainBpe(corpus, options))).toEqual(merges(wanted));
      }
    }
  });

  test("any texts, down to pairs that occur once", () => {
    const some = fc.array(fc.oneof(anyText, fc.string({ unit: fc.constantFrom("a", "b", " ") })), { minLength: 1 });
    fc.assert(
      fc.property(
        some,
        fc.constantFrom(...NAMES),
        fc.integer({ min: 1, max: 3 }),
        (all, pretokenizer, minFrequency) => {
          const options = { vocabSize: 400, pretokenizer, minFrequency };
          const given = ["ab", ...all];
          const wanted = trainBpe(given, { ...options, engine: false });
          expect(merges(trainBpe(given, options))).toEqual(merges(wanted));
        },
      ),
      { numRuns: 60, seed: 3 },
    );
  });

  test("many texts, long texts, and texts that come one by one", () => {
    const options = { vocabSize: 600 };
    const wanted = merges(trainBpe(corpus, { ...options, engine: false }));
    const copies = 60;
    function* repeated(): Generator<string> {
      for (let i = 0; i < copies; i++) yield* corpus;
    }
    // Sixty times the text has the same merges, but for those that were too rare.
    const more = merges(trainBpe(repeated(), { ...options, minFrequency: 2 * copies }));
    expect(more).toEqual(wanted);
    const line = `${corpus.join(" ").replaceAll(/\s+/g, " ")} end\nx`;
    const joined = merges(trainBpe([line.repeat(copies)], { ...options, minFrequency: 2 * copies }));
    expect(joined).toEqual(
      merges(trainBpe([line.repeat(copies)], { ...options, minFrequency: 2 * copies, engine: false })),
    );
  });

  test("no text, too small a vocabulary", () => {
    for (const engine of [true, false]) {
      expect(() => trainBpe([], { vocabSize: 300, engine })).toThrow(/There is no text/);
      expect(() => trainBpe([""], { vocabSize: 300, engine })).toThrow(/There is no text/);
      expect(() => trainBpe(["a"], { vocabSize: 256, engine })).toThrow(/256 is too small.*need 257/);
      expect(trainBpe(["a"], { vocabSize: 300, engine }).vocabSize).toBe(257);
    }
  });
});
