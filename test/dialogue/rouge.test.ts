/** ROUGE-L against the textbook table of the common subsequence and the paper's own example; near copies against a search of all. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { commonSubsequence, NearCopies, rougeL, rougeWords } from "../../src/dialogue/rouge.js";

/** The dynamic programme of the textbooks. */
function table(a: readonly string[], b: readonly string[]): number {
  let above = new Array<number>(b.length + 1).fill(0);
  for (const x of a) {
    const row = [0];
    b.forEach((y, j) => {
      row.push(x === y ? above[j] + 1 : Math.max(above[j + 1], row[j]));
    });
    above = row;
  }
  return above[b.length];
}
const letters = fc.array(fc.constantFrom("a", "b", "c", "d", "猫"), { maxLength: 90 });

test("the common subsequence equals the textbook's", () => {
  fc.assert(fc.property(letters, letters, (a, b) => commonSubsequence(a, b) === table(a, b)));
});

test("the paper's example (Lin 2004, section 3): 3/4, 2/4, 2/4", () => {
  const reference = rougeWords("police killed the gunman");
  expect(rougeL(reference, rougeWords("Police kill the gunman."))).toBe(0.75);
  expect(rougeL(reference, rougeWords("the gunman kill police"))).toBe(0.5);
  expect(rougeL(reference, rougeWords("the gunman police killed"))).toBe(0.5);
  expect(rougeL(reference, [])).toBe(0);
});

test("words are runs of letters and digits, and single characters in Chinese", () => {
  expect(rougeWords("Don't count 3.14, snake_case!")).toEqual(["don", "t", "count", "3", "14", "snake", "case"]);
  expect(rougeWords("把GPT翻译成中文。")).toEqual(["把", "gpt", "翻", "译", "成", "中", "文"]);
  // Composed and decomposed letters are the same word.
  expect(rougeWords("Caf\u00e9")).toEqual(rougeWords("Cafe\u0301"));
});

test("the nearest copy is the one that a search of all texts finds", () => {
  const texts = fc.array(
    letters.map((words) => words.slice(0, 12).join(" ")),
    { maxLength: 20 },
  );
  fc.assert(
    fc.property(texts, letters, fc.constantFrom(0.3, 0.5, 0.7), (kept, words, threshold) => {
      const copies = new NearCopies(threshold);
      kept.forEach((text, i) => {
        copies.add(text, String(i));
      });
      const text = words.slice(0, 12).join(" ");
      const scores = kept.map((k) => rougeL(rougeWords(k), rougeWords(text)));
      const best = Math.max(0, ...scores);
      expect(copies.find(text)).toEqual(
        best > threshold ? { score: best, name: String(scores.indexOf(best)) } : undefined,
      );
    }),
  );
});

test("a copy in other words of Chinese is found; another task is not", () => {
  const copies = new NearCopies();
  copies.add("把下面的句子翻译成英文。", "seed 1");
  expect(copies.find("请把下面的句子翻译成英文")).toEqual({ score: 22 / 23, name: "seed 1" });
  expect(copies.find("用一句话介绍你的家乡。")).toBeUndefined();
  expect(copies.find("")).toBeUndefined();
});
