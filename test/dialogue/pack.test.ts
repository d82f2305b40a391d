import fc from "fast-check";
import { expect, test } from "vitest";
import { packRows, sampleBatch } from "../../src/dialogue/pack.js";

test("packing loses and repeats nothing, and fills rows to at most the context", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 90 }), { maxLength: 300 }), (lengths) => {
      const rows = packRows(lengths, 64);
      expect(rows.flat().sort((a, b) => a - b)).toEqual(lengths.map((_, i) => i));
      for (const row of rows) expect(row.length === 1 || row.reduce((n, i) => n + lengths[i], 0) <= 64).toBe(true);
      // First fit: no two rows could have been one.
      const sums = rows.map((row) => row.reduce((n, i) => n + lengths[i], 0)).filter((n) => n <= 32);
      expect(sums.length).toBeLessThanOrEqual(1);
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
