import fc from "fast-check";
import { expect, test } from "vitest";
import { showMask } from "../../src/dialogue/show.js";
import { ALPHABET, toByteChars } from "../../src/tokenizer/bytes.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { trainBpe } from "../../src/tokenizer/train.js";

// Trained on letters only: every other character is as many tokens as it has bytes.
const tokenizer = trainBpe(["abc abc"], { vocabSize: 262, specialTokens: ["<|end|>"] });
const sample = (text: string, trainable: (i: number, n: number) => boolean) => {
  const ids = Int32Array.from(tokenizer.encode(text));
  return { ids, trainable: Uint8Array.from(ids, (_, i) => Number(trainable(i, ids.length))) };
};
// biome-ignore lint/suspicious/noControlCharactersInRegex: the escape sequences are what is taken out
const stripped = (shown: string): string => shown.replace(/[⟦⟧]|\u001b\[\d*m/g, "");

test("trained text stands in brackets, or is green beside dim context", () => {
  const s = sample("ab 天<|end|>", (i, n) => i >= n - 4);
  expect(showMask(s, tokenizer, false)).toBe("ab ⟦天<|end|>⟧");
  expect(showMask(s, tokenizer, true)).toBe("\u001b[2mab \u001b[0m\u001b[32m天<|end|>\u001b[0m");
});

test("a character is never split: where its bytes are of both kinds it is trained", () => {
  expect(tokenizer.encode("天气")).toHaveLength(6);
  for (const [border, shown] of [
    [0, "⟦天气⟧"],
    [1, "⟦天气⟧"],
    [3, "天⟦气⟧"],
    [5, "天⟦气⟧"],
    [6, "天气"],
  ] as const)
    expect(
      showMask(
        sample("天气", (i) => i >= border),
        tokenizer,
        false,
      ),
    ).toBe(shown);
  expect(
    showMask(
      sample("天气", (i) => i === 0),
      tokenizer,
      false,
    ),
  ).toBe("⟦天⟧气");
  // A sample cut within a character ends with the sign for it.
  const cut = sample("天气", () => true);
  expect(showMask({ ids: cut.ids.slice(0, 4), trainable: cut.trainable.slice(0, 4) }, tokenizer, false)).toBe(
    "⟦天\uFFFD⟧",
  );
});

test("a token that ends one character and begins the next keeps both with their kind", () => {
  // The bytes of 天 are E5 A4 A9, of 气 E6 B0 94; here A9 E6 is one token.
  const [, , a9] = toByteChars("天");
  const [e6] = toByteChars("气");
  const merged = Tokenizer.fromParts([...ALPHABET, a9 + e6], [[a9, e6]], "gpt2", []);
  const ids = Int32Array.from(merged.encode("天气"));
  expect(ids).toHaveLength(5);
  const shown = (...trainable: number[]) => showMask({ ids, trainable: Uint8Array.from(trainable) }, merged, false);
  expect(shown(0, 0, 0, 0, 1)).toBe("天⟦气⟧");
  expect(shown(1, 0, 0, 0, 0)).toBe("⟦天⟧气");
  expect(shown(0, 0, 1, 0, 0)).toBe("⟦天气⟧");
});

test("whatever the mask, the text is all there and colours cover whole characters", () => {
  const input = fc.tuple(fc.string({ unit: "binary", maxLength: 12 }), fc.array(fc.boolean(), { maxLength: 60 }));
  fc.assert(
    fc.property(input, ([text, mask]) => {
      fc.pre(!/[\p{Cc}\uFEFF\uFFFD⟦⟧]/u.test(text));
      const s = sample(text, (i) => mask[i] ?? false);
      for (const colour of [false, true]) expect(stripped(showMask(s, tokenizer, colour))).toBe(text);
    }),
    { numRuns: 40 },
  );
});

test("control characters are shown and not sent to the terminal", () => {
  expect(
    showMask(
      sample("a\u001b[31m\u0007\u007f\u009b\n\tb\r", () => false),
      tokenizer,
      false,
    ),
  ).toBe("a␛[31m␇␡\uFFFD\n\tb␍");
});
