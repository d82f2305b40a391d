/** BPE with byte fallback (Llama 2, TinyLlama, Mistral 7B): ids and decoded texts against Hugging Face tokenizers in Rust. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UserError } from "../../src/run/errors.js";
import { BpeModel } from "../../src/tokenizer/bpe.js";
import { byteToken } from "../../src/tokenizer/fallback.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { wellFormed } from "../../src/tokenizer/unicode.js";
import { type Change, changed, check, fromJson, golden, type Results } from "./golden.js";

type Variant = { name: string; change: Change; around: number[]; random?: [string, string][] } & Results;
const { texts, ids, variants } = golden<{ texts: string[]; ids: number[][]; variants: Variant[] }>("fallback.json");

describe("Llama 2's tokenizer.json", () => {
  test.each(variants)("$name", ({ change, around, random, ...wanted }) => {
    const tokenizer = fromJson(changed("llama2", change));
    check(tokenizer, wanted, texts);
    expect(Array.from(tokenizer.encode("a", { addSpecialTokens: true }))).toEqual(around);
    for (const [i, decoded] of random?.entries() ?? [])
      expect([false, true].map((skipSpecialTokens) => tokenizer.decode(ids[i], { skipSpecialTokens }))).toEqual(
        decoded,
      );
  });
});

/** Texts out of parts that this tokenizer treats in ways of their own. */
const parts = fc.array(
  fc.constantFrom(
    " ",
    "  ",
    "▁",
    "\n",
    "the",
    "The capital",
    "中",
    "首都",
    "é",
    "👩‍👧",
    "<s>",
    "</s>",
    "<0x41>",
    "xxxx",
    "-",
    "7",
    "\0",
  ),
  { maxLength: 12 },
);
const anyText = fc.oneof(
  parts.map((p) => p.join("")),
  fc.string({ unit: "binary", maxLength: 40 }),
);

describe("a text", () => {
  const plain = fromJson(golden("llama2.json"));
  const metaspace = fromJson(changed("llama2", variants.find((v) => v.name === "Metaspace, first")!.change));

  test("comes back from its tokens, all at once and one at a time", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const ids = [...plain.encode(text, { allowSpecial: false })];
        // ▁ and a space are spelled alike.
        const whole = wellFormed(text).replaceAll("▁", " ");
        expect(plain.decode(ids)).toBe(whole);
        const stream = plain.stream();
        expect(ids.map((id) => stream.push(id)).join("") + stream.end()).toBe(whole);
      }),
      { numRuns: 1000 },
    );
  });

  test("is cut where no merge notices", () => {
    const json = golden<{ model: { vocab: Record<string, number>; merges: [string, string][] } }>("llama2.json");
    // Merges of bytes, which never happen here: then nothing is cut.
    json.model.vocab["<0xFE><0xFF>"] = 1000;
    json.model.merges.push(["<0xFE>", "<0xFF>"]);
    const uncut = fromJson(json);
    fc.assert(
      fc.property(anyText, (text) => {
        expect([...plain.encode(text)]).toEqual([...uncut.encode(text)]);
      }),
      { numRuns: 1000 },
    );
  });

  test("that goes on from another has no space put before it", () => {
    for (const tokenizer of [plain, metaspace]) {
      const [whole, first] = ["The capital of Peru", "The capital"].map((t) => [...tokenizer.encode(t)]);
      const rest = [...tokenizer.encode(" of Peru", { before: "text" })];
      expect([...first, ...rest]).toEqual(whole);
      expect(tokenizer.decode(rest)).toBe("of Peru");
      expect(tokenizer.decode(rest, { continues: true })).toBe(" of Peru");
      const said = ["", ""].map((_, i) => {
        const stream = tokenizer.stream({ continues: i === 1 });
        return rest.map((id) => stream.push(id)).join("") + stream.end();
      });
      expect(said).toEqual(["of Peru", " of Peru"]);
    }
  });

  test("behind a token: the normalizer puts a space before it, Metaspace's first does not", () => {
    const texts = [plain, metaspace].map((t) => t.decode(t.encode("<s>The capital</s>of Peru")));
    expect(texts).toEqual(["<s> The capital</s> of Peru", "<s>The capital</s>of Peru"]);
    for (const t of [plain, metaspace])
      expect([...t.encode("<s>The</s>of")]).toEqual([
        1,
        ...t.encode("The", { before: "token" }),
        2,
        ...t.encode("of", { before: "token" }),
      ]);
  });

  test("of a hundred thousand letters without a space takes no longer than one with", () => {
    const times = ["capital ", "capital", "ab7é"].map((word) => {
      const text = word.repeat(100_000 / word.length);
      const start = performance.now();
      expect(plain.decode(plain.encode(text))).toBe(text);
      return performance.now() - start;
    });
    expect(Math.max(...times)).toBeLessThan(5000);
  });
});

test("Transformers takes the saved file as it is, and makes no Llama tokenizer of its own", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-fallback-"));
  for (const [name, saved] of [
    ["LlamaTokenizer", "PreTrainedTokenizerFast"],
    ["LlamaTokenizerFast", "PreTrainedTokenizerFast"],
    ["Qwen2Tokenizer", "Qwen2Tokenizer"],
  ]) {
    const tokenizer = fromJson(golden("llama2.json"));
    tokenizer.config.tokenizer_class = name;
    tokenizer.save(dir);
    expect(Tokenizer.load(dir).config.tokenizer_class).toBe(saved);
  }
  rmSync(dir, { recursive: true });
});

describe("refused", () => {
  const refused = (change: Change): string => {
    try {
      fromJson(changed("llama2", change));
    } catch (error) {
      expect(error).toBeInstanceOf(UserError);
      return (error as Error).message;
    }
    return "nothing";
  };
  test.each<[string, unknown, RegExp]>([
    ["decoder", null, /decoder of a tokenizer with byte_fallback must be a Sequence of Replace/],
    [
      "decoder",
      { type: "Sequence", decoders: [{ type: "ByteFallback" }, null] },
      /this one is \["ByteFallback",null\]/,
    ],
    [
      "normalizer",
      { type: "Replace", pattern: { Regex: " *" }, content: "_" },
      /Replace has a pattern that matches where nothing is/,
    ],
    ["decoder", { type: "ByteLevel" }, /this one is \["ByteLevel"\]/],
    ["model.byte_fallback", false, /the model has no byte_fallback/],
    ["model.vocab.<0x41>", undefined, /byte_fallback is true, and the vocabulary has no <0x41>/],
    [
      "pre_tokenizer",
      { type: "Metaspace", replacement: "▁", prepend_scheme: "last" },
      /prepend_scheme "last"; always, first and never/,
    ],
  ])("%s %j", (path, value, message) => expect(refused([[path, value]])).toMatch(message));
});

describe("merges in any order", () => {
  /** The lowest rank first, of equals the leftmost; one at a time. */
  const naive = (text: string, merges: readonly [string, string][]): string[] => {
    const parts = [...text];
    for (;;) {
      const rank = (i: number): number => merges.findIndex(([l, r]) => l === parts[i] && r === parts[i + 1]);
      let best = -1;
      for (let i = 0; i + 1 < parts.length; i++) if (rank(i) >= 0 && (best < 0 || rank(i) < rank(best))) best = i;
      if (best < 0) return parts;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
  };
  const modelOf = (merges: [string, string][]): BpeModel => {
    const bytes = Array.from({ length: 256 }, (_, b) => byteToken(b));
    const vocab = [...new Set([...bytes, "a", "b", "c", ...merges.map(([l, r]) => l + r)])];
    return new BpeModel(
      { vocab: Object.fromEntries(vocab.map((t, i) => [t, i])), merges, byte_fallback: true },
      "test",
    );
  };

  test("short words and long ones, which have a queue", () => {
    const merge = fc.array(fc.tuple(fc.nat(1000), fc.nat(1000)), { minLength: 1, maxLength: 12 });
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 400 });
    fc.assert(
      fc.property(merge, fc.array(fc.nat(1000), { maxLength: 12 }), word, (choices, order, text) => {
        const tokens = ["a", "b", "c"];
        const made = new Map<string, [string, string]>();
        for (const [l, r] of choices) {
          const pair: [string, string] = [tokens[l % tokens.length], tokens[r % tokens.length]];
          made.set(pair.join(" "), pair);
          if (!tokens.includes(pair.join("")) && pair.join("").length < 9) tokens.push(pair.join(""));
        }
        const merges = [...made.values()].map((pair, i) => ({ pair, key: order[i] ?? i }));
        const sorted = merges.sort((x, y) => x.key - y.key).map(({ pair }) => pair);
        const model = modelOf(sorted);
        const names = [...model.ids.keys()];
        expect(model.encodeWord(text).map((id) => names[id])).toEqual(naive(text, sorted));
      }),
      { numRuns: 300 },
    );
  });

  test("a run of one character, whose merges make lower ranks again and again, takes no longer than others", () => {
    const model = modelOf([
      ["aa", "a"],
      ["a", "a"],
    ]);
    const start = performance.now();
    expect(model.encodeWord("a".repeat(300_000))).toHaveLength(100_000);
    expect(performance.now() - start).toBeLessThan(5000);
  });
});
