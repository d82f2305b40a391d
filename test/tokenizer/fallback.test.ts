/** BPE with byte fallback (Llama 2, TinyLlama, Mistral 7B): ids and decoded texts against Hugging Face tokenizers in Rust. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UserError } from "../../src/run/errors.js";
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
