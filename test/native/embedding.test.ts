/** Token embedding: rows out of the table, and gradients of repeated rows summed back. */
import { expect, test } from "vitest";
import { BF16, F32 } from "../../src/device/device.js";
import { DTYPES, expectClose, expectSameOnAnyThreads, numbers, onEach, rounded, tolerance } from "./reference.js";

test.each(DTYPES)("rows out, and gradients in, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, D, V] of [
      [1, 1, 1],
      [3, 65, 2],
      [65, 17, 5],
      [130, 33, 70],
    ] as const) {
      const [table, dout, start] = [numbers(V * D, 1), numbers(N * D, 2), numbers(V * D, 3)];
      const ids = Array.from({ length: N }, (_, i) => (i * i) % V);
      const [p, out, pd, dtable] = [b.put(table, dt), b.alloc(N * D, dt), b.put(dout, dt), b.put(start, dt)];
      b.device.embeddingForward(b.ints(ids), p, out, N, D, dt);
      const row = (i: number): number => ids[Math.floor(i / D)] * D + (i % D);
      expectClose(
        b.get(out, N * D, dt),
        Float64Array.from({ length: N * D }, (_, i) => table[row(i)]),
        0,
        "rows",
      );
      b.device.embeddingBackward(b.ints(ids), pd, dtable, N, D, V, dt);
      const expected = Float64Array.from(start);
      for (let i = 0; i < N * D; i++) expected[row(i)] += dout[i];
      expectClose(b.get(dtable, V * D, dt), expected, tolerance(dt), "gradient");
      const used = new Set(ids);
      for (let id = 0; id < V; id++)
        if (!used.has(id))
          expect(b.get(dtable, V * D, dt).subarray(id * D, (id + 1) * D)).toEqual(start.subarray(id * D, (id + 1) * D));
    }
  });
});

test("many small gradients of one row are summed in fp32 and rounded once", () => {
  onEach((b) => {
    // In bf16, 1 + 2^-9 + 2^-9 + ... would stay at 1.
    const N = 257;
    const dout = new Float64Array(N).fill(2 ** -9);
    dout[0] = 1;
    const dtable = b.put(new Float64Array(1), BF16);
    b.device.embeddingBackward(b.ints(new Array(N).fill(0)), b.put(dout, BF16), dtable, N, 1, 1, BF16);
    expect(b.get(dtable, 1, BF16)[0]).toBe(rounded(1.5, BF16));
  });
});

test("a NaN reaches its own row only", () => {
  onEach((b) => {
    const dout = Float64Array.from([1, Number.NaN, 2]);
    const dtable = b.put(new Float64Array(3), F32);
    b.device.embeddingBackward(b.ints([2, 1, 2]), b.put(dout, F32), dtable, 3, 1, 3, F32);
    expect(Array.from(b.get(dtable, 3))).toEqual([0, Number.NaN, 3]);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const [N, D, V] = [300, 17, 40];
    const ids = b.ints(Array.from({ length: N }, (_, i) => (i * 11) % V));
    const dtable = b.put(numbers(V * D, 1), dt);
    b.device.embeddingBackward(ids, b.put(numbers(N * D, 2), dt), dtable, N, D, V, dt);
    return b.bytes(dtable, V * D, dt);
  });
});
