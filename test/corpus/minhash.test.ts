/** Exact and near duplicates: shingles against a plain reference, recall and precision against all pairs, no chains, data sets. */
import { describe, expect, it } from "vitest";
import { exactDuplicates, exactKey, overlapTable, type Standing } from "../../src/corpus/exact.js";
import { checkMinHash, MinHasher, nearDuplicates, nearPairs } from "../../src/corpus/minhash.js";
import { openTextKernels } from "../../src/device/text.js";

/** Numbers that repeat for a seed (mulberry32), so that a failure can be looked at again. */
function random(seed: number): () => number {
  let s = seed;
  return () => {
    s = (s + 0x6d2b79f5) | 0;
    let t = Math.imul(s ^ (s >>> 15), 1 | s);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function signaturesOf(texts: readonly string[], hasher: MinHasher): Uint32Array {
  const all = new Uint32Array(texts.length * hasher.hashes);
  texts.forEach((text, i) => {
    hasher.signature(text, all.subarray(i * hasher.hashes, (i + 1) * hasher.hashes));
  });
  return all;
}
const standing = (texts: readonly string[]): Standing[] =>
  texts.map((text, i) => ({ id: `d${String(i).padStart(5, "0")}`, priority: 0, length: text.length }));

/** Jaccard of 5-word shingles with plain sets of strings. */
function shingleSet(text: string, size = 5): Set<string> {
  const units = text.toLowerCase().match(/\p{Script=Han}|(?:(?!\p{Script=Han})[\p{L}\p{M}\p{N}_])+/gu) ?? [];
  if (units.length > 0 && units.length < size) return new Set([units.join(" ")]);
  return new Set(
    Array.from({ length: Math.max(0, units.length - size + 1) }, (_, i) => units.slice(i, i + size).join(" ")),
  );
}
function jaccard(a: Set<string>, b: Set<string>): number {
  let common = 0;
  for (const x of a) if (b.has(x)) common++;
  return common / (a.size + b.size - common || 1);
}

/** Documents of 60 to 200 words, and copies of some of them with one word in `every` changed. */
function planted(count: number, seed: number): string[] {
  const next = random(seed);
  const word = (): string => `w${Math.floor(next() ** 2 * 3000)}`;
  const texts: string[] = [];
  while (texts.length < count) {
    const words = Array.from({ length: 60 + Math.floor(next() * 140) }, word);
    texts.push(words.join(" "));
    const copies = next() < 0.3 ? 1 + Math.floor(next() * 3) : 0;
    for (let c = 0; c < copies; c++) {
      const every = 15 + next() * 400;
      texts.push(words.map((w) => (next() * every < 1 ? word() : w)).join(" "));
    }
  }
  return texts.slice(0, count);
}

describe("shingles and signatures", () => {
  const hasher = new MinHasher();
  it("have the similarity of plain sets", () => {
    const texts = [
      "The quick brown fox jumps over the lazy dog, and then it sleeps.",
      "the QUICK brown fox — jumps over the lazy dog; and then it wakes!",
      "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
      "天地玄黄 宇宙洪荒 日月盈昃 辰宿列张 寒来暑往",
      "two words",
      "TWO words!",
      "𠀀𠀁𠀂𠀃𠀄𠀅 astral ideographs",
    ];
    for (const a of texts)
      for (const b of texts)
        if (!(a.includes("astral") || b.includes("astral")))
          expect(hasher.similarity(hasher.shingles(a), hasher.shingles(b))).toBeCloseTo(
            jaccard(shingleSet(a), shingleSet(b)),
            12,
          );
    expect(hasher.shingles(texts[6]).length).toBe(4);
  });

  it("estimate the similarity", () => {
    const [a, b] = planted(2000, 3).slice(0, 2);
    const wide = new MinHasher({ bands: 64, rows: 16 });
    const half = `${a} ${b}`;
    const s = signaturesOf([a, half], wide);
    let equal = 0;
    for (let i = 0; i < wide.hashes; i++) if (s[i] === s[wide.hashes + i]) equal++;
    const truth = wide.similarity(wide.shingles(a), wide.shingles(half));
    // Six standard deviations of a binomial over 1024 hashes.
    expect(Math.abs(equal / wide.hashes - truth)).toBeLessThan(6 * Math.sqrt((truth * (1 - truth)) / wide.hashes));
  });

  it("take hostile text", () => {
    const into = new Uint32Array(hasher.hashes);
    for (const text of ["", " \n\t", "\0\0", "\ud800\udc00\ud800", "!!! ???"]) {
      expect(hasher.signature(text, into)).toBe(0);
      expect(hasher.shingles(text).length).toBe(0);
    }
    const long = "one line without an end ".repeat(420_000);
    expect(hasher.signature(long, into)).toBe(5 * 420_000 - 4);
    expect(hasher.shingles(long).length).toBe(5);
  });

  it("takes more bands below the usual threshold, unless they are given", () => {
    expect(checkMinHash()).toMatchObject({ bands: 14, rows: 8 });
    expect(checkMinHash({ threshold: 0.9 })).toMatchObject({ bands: 14, rows: 8 });
    const { bands, rows } = checkMinHash({ threshold: 0.5 });
    expect((1 - 0.5 ** rows) ** bands).toBeLessThan(1e-3);
    expect(checkMinHash({ threshold: 0.5, bands: 20, rows: 5 })).toMatchObject({ bands: 20, rows: 5 });
    for (const given of [{ rows: 3 }, { bands: 40 }]) {
      const all = checkMinHash({ threshold: 0.5, ...given });
      expect(all).toMatchObject(given);
      expect((1 - 0.5 ** all.rows) ** all.bands).toBeLessThan(1e-4);
    }
    // What was not given makes room.
    expect(checkMinHash({ threshold: 0.5, bands: 300 })).toMatchObject({ bands: 300, rows: 3 });
    expect(checkMinHash({ threshold: 0.8, bands: 300 })).toMatchObject({ bands: 300, rows: 3 });
    // So many rows find little of what is less similar than that, whatever the bands.
    expect(checkMinHash({ threshold: 0.3, rows: 8 }).bands).toBeGreaterThan(100);
  });

  it("refuses options that make no sense", () => {
    expect(() => checkMinHash({ threshold: 0 })).toThrow(/threshold/);
    expect(() => checkMinHash({ bands: 2000 })).toThrow(/bands/);
    expect(() => checkMinHash({ bands: 200, rows: 6 })).toThrow(
      "deduplicate.near.rows is 6; it must be a whole number from 1 to 5.",
    );
    expect(() => checkMinHash({ rows: 2000 }, (name) => `--${name}`)).toThrow("--rows is 2000");
  });
});

describe("near duplicates", () => {
  const texts = planted(3000, 7);
  const hasher = new MinHasher();
  const sets = texts.map((t) => shingleSet(t));
  const signatures = signaturesOf(texts, hasher);
  const corpus = { documents: standing(texts), signatures, textOf: (i: number) => texts[i] };

  /** All pairs by an inverted index: exact, without hashing. */
  const truth = new Map<string, number>();
  const where = new Map<string, number[]>();
  sets.forEach((set, b) => {
    const met = new Map<number, number>();
    for (const shingle of set) {
      const list = where.get(shingle);
      if (!list) where.set(shingle, [b]);
      else {
        for (const a of list) met.set(a, (met.get(a) ?? 0) + 1);
        list.push(b);
      }
    }
    for (const [a, common] of met) {
      const similarity = common / (sets[a].size + set.size - common);
      if (similarity >= 0.8) truth.set(`${a} ${b}`, similarity);
    }
  });

  it("finds the pairs of the exact all-pairs search, and no other", () => {
    const pairs = nearPairs({ ...corpus, count: texts.length });
    for (const { a, b, similarity } of pairs) expect(similarity).toBeCloseTo(truth.get(`${a} ${b}`) ?? -1, 12);
    const recall = pairs.length / truth.size;
    // What 14 bands of 8 rows promise for these similarities: the mean of 1 - (1 - s^8)^14.
    let promised = 0;
    for (const s of truth.values()) promised += 1 - (1 - s ** 8) ** 14;
    promised /= truth.size;
    console.log(
      `MinHash: ${pairs.length} of ${truth.size} pairs, recall ${recall.toFixed(4)}, precision 1, promised ${promised.toFixed(4)}`,
    );
    expect(truth.size).toBeGreaterThan(500);
    expect(recall).toBeGreaterThan(promised - 0.02);
  });

  it("drops a document only for a kept one that is truly similar", () => {
    const { twins } = nearDuplicates(corpus);
    const gone = new Set(twins.map((t) => t.index));
    expect(gone.size).toBe(twins.length);
    for (const { index, kept, similarity } of twins) {
      expect(gone.has(kept)).toBe(false);
      expect(similarity).toBeCloseTo(jaccard(sets[index], sets[kept]), 12);
      expect(similarity).toBeGreaterThanOrEqual(0.8);
    }
    let left = 0;
    for (const pair of truth.keys()) {
      const [a, b] = pair.split(" ").map(Number);
      if (!gone.has(a) && !gone.has(b)) left++;
    }
    expect(left / truth.size).toBeLessThan(0.05);
  });

  it("does not depend on the order of reading", () => {
    const n = 800;
    const turned = Array.from({ length: n }, (_, i) => n - 1 - i);
    const documents = corpus.documents.slice(0, n);
    const named = (twins: { index: number; kept: number }[], docs: readonly Standing[]) =>
      twins.map((t) => `${docs[t.index].id} ${docs[t.kept].id}`).sort();
    const straight = nearDuplicates({ ...corpus, documents, signatures: signatures.subarray(0, n * hasher.hashes) });
    const back = nearDuplicates({
      documents: turned.map((i) => documents[i]),
      signatures: signaturesOf(
        turned.map((i) => texts[i]),
        hasher,
      ),
      textOf: (i) => texts[turned[i]],
    });
    expect(straight.twins.length).toBeGreaterThan(50);
    expect(
      named(
        back.twins,
        turned.map((i) => documents[i]),
      ),
    ).toEqual(named(straight.twins, documents));
  });

  it("does not chain: a row of texts that change step by step keeps more than one", () => {
    const words = Array.from({ length: 400 }, (_, i) => `word${i}`);
    const chain = Array.from({ length: 40 }, (_, step) => words.slice(step * 8, step * 8 + 120).join(" "));
    const { twins } = nearDuplicates({
      documents: standing(chain),
      signatures: signaturesOf(chain, hasher),
      textOf: (i) => chain[i],
    });
    expect(twins.length).toBeGreaterThan(0);
    for (const { index, kept } of twins)
      expect(jaccard(shingleSet(chain[index]), shingleSet(chain[kept]))).toBeGreaterThanOrEqual(0.8);
    // Neighbours share 108 of 132 shingles or so; ten steps apart they share little: one survivor would be a chain.
    expect(chain.length - twins.length).toBeGreaterThan(8);
  });

  it("keeps by priority, then length, then id; and never drops the data set it compares against", () => {
    const text = planted(1, 5)[0];
    const copies = [text, `${text} more`, text, text];
    const documents: Standing[] = [
      { id: "b", priority: 1, length: 1000 },
      { id: "c", priority: 0, length: 10 },
      { id: "z", priority: 0, length: 9 },
      { id: "a", priority: 0, length: 9 },
    ];
    const input = { documents, signatures: signaturesOf(copies, hasher), textOf: (i: number) => copies[i] };
    expect(nearDuplicates(input).twins.map((t) => [t.index, t.kept])).toEqual([
      [0, 1],
      [2, 1],
      [3, 1],
    ]);
    expect(nearDuplicates({ ...input, fixed: 1 }).twins.map((t) => [t.index, t.kept])).toEqual([
      [1, 0],
      [2, 0],
      [3, 0],
    ]);
  });

  /** Pages from one template: words that all have, and some of their own. */
  function pages(count: number, shared: number, own: (i: number) => number): string[] {
    const next = random(11);
    const words = (n: number): string => Array.from({ length: n }, () => `w${Math.floor(next() * 3000)}`).join(" ");
    const template = words(shared);
    return Array.from({ length: count }, (_, i) => `${template} ${words(own(i))}`);
  }
  const read = (all: readonly string[], by = hasher) => ({
    documents: standing(all),
    signatures: signaturesOf(all, by),
    textOf: (i: number) => all[i],
  });

  it("tells at once of pages from one template that they are not similar enough", () => {
    const { twins, candidates, verified, limited } = nearDuplicates(read(pages(1000, 400, () => 66)));
    expect(twins).toEqual([]);
    expect(candidates).toBeGreaterThan(300_000);
    expect(verified).toBeLessThan(candidates / 1000);
    expect(limited).toBe(0);
  });

  it("finds among them every pair that is similar enough, of whatever sizes", () => {
    for (const threshold of [0.5, 0.8, 0.95]) {
      const wide = new MinHasher({ threshold, bands: 256, rows: 1 });
      const all = pages(150, 100, (i) => 2 + ((i * i) % 90));
      const pairs = nearPairs({ ...read(all, wide), count: all.length }, wide.options);
      const exact: string[] = [];
      const own = all.map((text) => shingleSet(text));
      for (let b = 0; b < all.length; b++)
        for (let a = 0; a < b; a++) if (jaccard(own[a], own[b]) >= threshold) exact.push(`${a} ${b}`);
      expect(exact.length).toBeGreaterThan(10);
      expect(pairs.map(({ a, b }) => `${a} ${b}`).sort()).toEqual(exact.sort());
    }
  });

  it("has sketches of every width that allow what is similar enough", () => {
    const kernels = openTextKernels();
    const all = pages(60, 100, (i) => 2 + ((i * i) % 90)).map((text) => hasher.shingles(text));
    let [refused, pairs] = [0, 0];
    for (const most of [1, 2, 16, 1024]) {
      const sketches = new BigUint64Array(all.length * 64);
      const at = new Uint32Array(all.length);
      const sizes = Uint32Array.from(all, (set) => set.length);
      let used = 0;
      for (const [i, set] of all.entries()) {
        at[i] = used;
        used += kernels.minhashSketch(set, set.length, most, sketches.subarray(used));
      }
      for (const least of [0.3, 0.6, 0.8, 0.9, 1])
        for (const [i, set] of all.entries()) {
          const others = Uint32Array.from(all.keys());
          const n = kernels.minhashPossible(sketches, at, sizes, most, i, least, others, others.length);
          const possible = new Set(others.subarray(0, n));
          for (const [j, other] of all.entries())
            if (hasher.similarity(set, other) >= least) expect(possible.has(j)).toBe(true);
          refused += most === 1024 ? all.length - n : 0;
          pairs += most === 1024 ? all.filter((other) => hasher.similarity(set, other) < least).length : 0;
        }
    }
    // What is not similar enough is refused nearly always.
    expect(refused).toBeGreaterThan(0.9 * pairs);
  });

  it("counts the documents that are not compared with all they share a band with", () => {
    const all = pages(300, 400, (i) => (i % 2 === 0 ? 50 : 20));
    const whole = nearDuplicates(read(all));
    expect(whole.limited).toBe(0);
    for (const bounds of [
      { members: 2, bytes: Infinity },
      { members: Infinity, bytes: 10_000 },
    ]) {
      const { twins, limited } = nearDuplicates(read(all), {}, bounds);
      expect(limited).toBeGreaterThan(10);
      expect(twins.length).toBeGreaterThan(100);
      for (const { index, kept, similarity } of twins) {
        expect(similarity).toBeCloseTo(jaccard(shingleSet(all[index]), shingleSet(all[kept])), 12);
        expect(similarity).toBeGreaterThanOrEqual(0.8);
      }
    }
  });

  it("does not take texts without words for twins", () => {
    const blank = ["", " ", "!!", "…"];
    const input = {
      documents: standing(blank),
      signatures: signaturesOf(blank, hasher),
      textOf: (i: number) => blank[i],
    };
    expect(nearDuplicates(input).twins).toEqual([]);
  });
});

describe("exact duplicates", () => {
  it("sees through white space and composed letters, not through case", () => {
    expect(exactKey("Caf\u00e9  au\nlait ")).toBe(exactKey("Cafe\u0301 au lait"));
    expect(exactKey("a")).not.toBe(exactKey("A"));
    expect(exactKey("a")).toMatch(/^[0-9a-f]{32}$/);
  });

  it("keeps one of each group, and tells how data sets overlap", () => {
    const texts = ["one", "two", "one ", "one", "three", "two"];
    const documents = texts.map((_, i) => ({
      id: `id${i}`,
      priority: i < 3 ? 1 : 0,
      length: 3,
      dataset: i < 3 ? "web" : "books",
    }));
    const twins = exactDuplicates(documents, texts.map(exactKey));
    expect(twins.map((t) => [t.index, t.kept])).toEqual([
      [0, 3],
      [1, 5],
      [2, 3],
    ]);
    expect(overlapTable(documents, twins)).toEqual([
      {
        from: "web",
        against: "books",
        documents: 3,
        meanSimilarity: 1,
        examples: [
          { id: "id0", kept: "id3", similarity: 1 },
          { id: "id1", kept: "id5", similarity: 1 },
          { id: "id2", kept: "id3", similarity: 1 },
        ],
      },
    ]);
    expect(exactDuplicates(documents, texts.map(exactKey), 3).map((t) => [t.index, t.kept])).toEqual([
      [3, 0],
      [5, 1],
    ]);
  });
});
