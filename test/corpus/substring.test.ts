/** Repeated spans: the suffix array and the files on disk against a brute force; the order of suffixes; spans of the text. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { applySpans } from "../../src/corpus/document.js";
import {
  RepeatFinder,
  type SubstringOptions,
  type TokenSpan,
  textSpans,
  tokensOf,
} from "../../src/corpus/substring.js";
import { openTextKernels } from "../../src/device/text.js";

const folder = mkdtempSync(join(tmpdir(), "lyceum-substring-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** By comparing every window with every other. */
function bruteForce(docs: readonly number[][], length: number, mode: SubstringOptions["mode"]): TokenSpan[][] {
  const windows: { doc: number; at: number; place: number; key: string }[] = [];
  let base = 0;
  docs.forEach((doc, d) => {
    for (let at = 0; at + length <= doc.length; at++)
      windows.push({ doc: d, at, place: base + at, key: doc.slice(at, at + length).join(" ") });
    base += doc.length;
  });
  const places = new Map<string, number[]>();
  for (const { key, place } of windows) places.set(key, [...(places.get(key) ?? []), place]);
  const gone = docs.map((doc) => new Array<boolean>(doc.length).fill(false));
  for (const w of windows) {
    const same = places.get(w.key)!;
    const first = Math.min(...same);
    const goes = mode === "keep-first" ? w.place >= first + length : Math.max(...same) >= first + length;
    if (goes) gone[w.doc].fill(true, w.at, w.at + length);
  }
  return gone.map((marks) => {
    const spans: TokenSpan[] = [];
    marks.forEach((mark, i) => {
      if (!mark) return;
      if (spans.at(-1)?.end === i) spans[spans.length - 1].end = i + 1;
      else spans.push({ start: i, end: i + 1 });
    });
    return spans;
  });
}

function find(docs: readonly number[][], options: Partial<SubstringOptions>): TokenSpan[][] {
  const finder = new RepeatFinder(options);
  for (const doc of docs) finder.add(Uint32Array.from(doc));
  return finder.finish();
}

describe("both methods find what a brute force finds", () => {
  // Few different tokens, so that windows meet, overlap themselves and cross the ends of documents.
  const corpora = fc.tuple(
    fc.array(fc.array(fc.integer({ min: 0, max: 2 }), { maxLength: 40 }), { maxLength: 6 }),
    fc.integer({ min: 2, max: 7 }),
    fc.constantFrom("keep-first" as const, "remove-all" as const),
  );
  it("in memory", () => {
    fc.assert(
      fc.property(corpora, ([docs, length, mode]) => {
        expect(find(docs, { length, mode })).toEqual(bruteForce(docs, length, mode));
      }),
      { numRuns: 300 },
    );
  });
  it("on disk", () => {
    fc.assert(
      fc.property(corpora, ([docs, length, mode]) => {
        expect(find(docs, { length, mode, memoryTokens: 0, directory: folder })).toEqual(
          bruteForce(docs, length, mode),
        );
      }),
      { numRuns: 25 },
    );
    expect(readdirSync(folder)).toEqual([]);
  });
  it("on a longer text, with planted spans of 50 tokens and more", () => {
    let state = 1;
    const next = (n: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return (state >>> 8) % n;
    };
    const docs = Array.from({ length: 200 }, () => Array.from({ length: 300 }, () => next(5000)));
    const planted: [number, number, number][] = [];
    for (let k = 0; k < 60; k++) {
      const [from, to, length] = [next(200), next(200), 30 + next(100)];
      const [a, b] = [next(300 - length), next(300 - length)];
      docs[to].splice(b, length, ...docs[from].slice(a, a + length));
      planted.push([from, to, length]);
    }
    for (const mode of ["keep-first", "remove-all"] as const) {
      const memory = find(docs, { length: 50, mode });
      expect(find(docs, { length: 50, mode, memoryTokens: 10_000, directory: folder })).toEqual(memory);
      expect(memory.flat().length).toBeGreaterThan(30);
      expect(memory).toEqual(bruteForce(docs, 50, mode));
    }
  });
});

describe("the suffix sort", () => {
  const sort = (text: number[], depth: number) => {
    const n = text.length;
    const sa = new Uint32Array(n);
    const rank = new Uint32Array(n);
    const groups = openTextKernels().suffixSort(
      Uint32Array.from(text),
      n,
      depth,
      sa,
      rank,
      new Uint8Array(24 * n + 64),
    );
    return { sa: [...sa], rank: [...rank], groups };
  };
  it("orders suffixes by any depth", () => {
    const tokens = fc.array(fc.constantFrom(0, 1, 2, 0xffffffff), { minLength: 1, maxLength: 60 });
    fc.assert(
      fc.property(tokens, fc.integer({ min: 0, max: 9 }), (text, depth) => {
        const head = (i: number): number[] => text.slice(i, depth === 0 ? undefined : i + depth);
        const compare = (a: number, b: number): number => {
          const [x, y] = [head(a), head(b)];
          for (let k = 0; k < Math.max(x.length, y.length); k++)
            if ((x[k] ?? -1) !== (y[k] ?? -1)) return (x[k] ?? -1) - (y[k] ?? -1);
          return 0;
        };
        const order = text.map((_, i) => i).sort((a, b) => compare(a, b) || a - b);
        const { sa, rank, groups } = sort(text, depth);
        expect(sa).toEqual(order);
        text.forEach((_, i) => {
          expect(rank[i]).toBe(order.findIndex((o) => compare(o, i) === 0));
        });
        expect(groups).toBe(new Set(rank).size);
      }),
      { numRuns: 400 },
    );
  });
  it("takes one token without end, and no token", () => {
    const n = 200_000;
    const { sa, groups } = sort(new Array(n).fill(7), 0);
    expect(groups).toBe(n);
    expect(sa.slice(0, 3)).toEqual([n - 1, n - 2, n - 3]);
    expect(sort([], 50).groups).toBe(0);
  });
});

describe("texts", () => {
  it("loses the second copy of a passage and nothing else", () => {
    const passage = Array.from({ length: 60 }, (_, i) => `word${i}`).join(" ");
    const texts = [
      `First: ${passage}. End.`,
      `Before it. ${passage} 这里不一样。`,
      `Other text, with ${passage.slice(0, 100)}`,
    ];
    const finder = new RepeatFinder();
    const tokens = texts.map(tokensOf);
    for (const t of tokens) finder.add(t.tokens);
    const spans = finder.finish();
    const after = texts.map((text, i) => applySpans(text, textSpans(spans[i], tokens[i].starts, text)));
    expect(after).toEqual([texts[0], "Before it. 这里不一样。", texts[2]]);
  });
  it("keeps one round of a text that repeats itself", () => {
    const text = "all work and no play makes jack a dull boy ".repeat(100);
    const finder = new RepeatFinder();
    const { tokens, starts } = tokensOf(text);
    finder.add(tokens);
    const left = applySpans(text, textSpans(finder.finish()[0], starts, text));
    expect(left.startsWith("all work and no play")).toBe(true);
    expect(tokensOf(left).tokens.length).toBeGreaterThanOrEqual(50);
    expect(tokensOf(left).tokens.length).toBeLessThan(70);
  });
  it("takes hostile text", () => {
    const texts = ["", "\0", "\ud800", " \n", "😀".repeat(200), "x".repeat(10_000_000)];
    const finder = new RepeatFinder();
    const tokens = texts.map(tokensOf);
    for (const t of tokens) finder.add(t.tokens);
    expect(tokens.map((t) => t.tokens.length)).toEqual([0, 1, 1, 0, 200, 1]);
    expect(finder.finish()[4]).toEqual([{ start: 50, end: 200 }]);
  });
  it("says what it needs for a corpus that memory does not hold", () => {
    const finder = new RepeatFinder({ memoryTokens: 10 });
    expect(() => finder.add(new Uint32Array(11))).toThrow(/no directory/);
  });
});
