import fc from "fast-check";
import { expect, test } from "vitest";
import type { Sample } from "../../src/dialogue/mask.js";
import { fingerprintOf, packRows, sampleBatch } from "../../src/dialogue/pack.js";

const sum = (row: readonly number[], lengths: readonly number[]): number => row.reduce((n, i) => n + lengths[i], 0);

test("packing loses and repeats nothing, and fills rows to at most the context", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 90 }), { maxLength: 300 }), (lengths) => {
      const rows = packRows(lengths, 64);
      expect(rows.flat().sort((a, b) => a - b)).toEqual(lengths.map((_, i) => i));
      for (const row of rows) expect(row.length === 1 || sum(row, lengths) <= 64).toBe(true);
      // First fit: no two rows could have been one.
      const half = rows.filter((row) => sum(row, lengths) <= 32);
      expect(half.length).toBeLessThanOrEqual(1);
      expect(packRows(lengths, 64)).toEqual(rows);
    }),
  );
});

test("a fingerprint knows every token, the borders of the lists, and texts", () => {
  const parts = (...lists: (number[] | string)[]) =>
    fingerprintOf(lists.map((l) => (typeof l === "string" ? l : Int32Array.from(l))));
  const prints = [
    parts([1, 2], [3]),
    parts([1], [2, 3]),
    parts([1, 2], [4]),
    parts([1, 2], [3], []),
    parts([1, 2], [3], "qa"),
  ];
  expect(new Set(prints).size).toBe(prints.length);
  expect(parts([1, 2], [3])).toBe(prints[0]);
});

test("a window at a time: what is read first is packed first", () => {
  const lengths = Array.from({ length: 2500 }, (_, i) => 1 + ((i * 37) % 60));
  const rows = packRows(lengths, 64);
  expect(rows.flat().sort((a, b) => a - b)).toEqual(lengths.map((_, i) => i));
  const windows = rows.map((row) => new Set(row.map((i) => Math.floor(i / 1024))));
  expect(windows.every((w) => w.size === 1)).toBe(true);
  expect(windows.map((w) => [...w][0])).toEqual(windows.map((w) => [...w][0]).sort((a, b) => a - b));
  // First-fit decreasing needs at most 11/9 of the best possible rows and one more (Johnson 1973), for each window.
  const best = Math.ceil(lengths.reduce((n, l) => n + l, 0) / 64);
  expect(rows.length).toBeLessThanOrEqual((11 / 9) * (best + 3) + 3);
});

const sample = fc.array(fc.tuple(fc.nat(999), fc.boolean()), { minLength: 1, maxLength: 40 }).map(
  (tokens): Sample => ({
    ids: Int32Array.from(tokens, ([id]) => id),
    trainable: Uint8Array.from(tokens, ([, trained]) => Number(trained)),
  }),
);

test("from samples to batches no token and no target is lost, doubled, or seen from another sample", () => {
  fc.assert(
    fc.property(fc.array(sample, { minLength: 1, maxLength: 60 }), (samples) => {
      const seen = new Set<number>();
      const rows = packRows(
        samples.map((s) => s.ids.length),
        64,
      );
      for (const row of rows) {
        const batch = sampleBatch(row.map((i) => samples[i]));
        expect(batch.cuSeqlens).toHaveLength(row.length + 1);
        expect(batch.cuSeqlens[row.length]).toBe(batch.ids.length);
        row.forEach((n, k) => {
          expect(seen.has(n)).toBe(false);
          seen.add(n);
          const { ids, trainable } = samples[n];
          const [from, to] = [batch.cuSeqlens[k], batch.cuSeqlens[k + 1]];
          expect(batch.ids.slice(from, to)).toEqual(ids);
          expect(batch.positions.slice(from, to)).toEqual(Int32Array.from(ids.keys()));
          expect(Array.from(batch.targets.slice(from, to))).toEqual(
            Array.from(ids, (_, i) => (i + 1 < ids.length && trainable[i + 1] === 1 ? ids[i + 1] : -1)),
          );
        });
      }
      expect(seen.size).toBe(samples.length);
    }),
  );
});

test("a batch predicts the next token where that is trainable, never across samples", () => {
  const batch = sampleBatch([
    { ids: Int32Array.of(1, 2, 3), trainable: Uint8Array.of(0, 1, 1) },
    { ids: Int32Array.of(4, 5), trainable: Uint8Array.of(1, 0) },
  ]);
  expect(Array.from(batch.targets)).toEqual([2, 3, -1, -1, -1]);
  expect(Array.from(batch.cuSeqlens)).toEqual([0, 3, 5]);
  expect(Array.from(batch.positions)).toEqual([0, 1, 2, 0, 1]);
});
