/** Attention over a KV cache: token by token and several at once, against float64 attention over the whole sequence. */
import { expect, test } from "vitest";
import { F32 } from "../../src/device/device.js";
import {
  attention,
  DTYPES,
  expectClose,
  expectSameOnAnyThreads,
  held,
  numbers,
  onEach,
  type Shape,
  tolerance,
} from "./reference.js";

const SHAPES: Shape[] = [
  { H: 1, KV: 1, D: 8 },
  { H: 4, KV: 2, D: 16 },
  { H: 2, KV: 2, D: 24 },
  { H: 3, KV: 1, D: 64 },
];

test.each(DTYPES)("one token at a time, sequences of different lengths side by side, %s", (_, dt) => {
  const maxT = 24;
  const lengths = [19, 7, 1];
  for (const shape of SHAPES) {
    const { H, KV, D } = shape;
    const width = (H + 2 * KV) * D;
    const sequences = lengths.map((T, s) => held(numbers(T * width, 10 + s), dt));
    const full = sequences.map((q, s) => attention(q, [0, lengths[s]], shape));
    onEach((b) => {
      const cache = 3 * maxT * KV * D;
      const [k, v] = [b.alloc(cache, dt), b.alloc(cache, dt)]; // full of NaN: only rows that were written may be read
      for (let t = 0; t < 19; t++) {
        // Sequences that have ended stay at their last token: writing it again changes nothing.
        const past = lengths.map((T) => Math.min(t, T - 1));
        const rows = past.flatMap((at, s) => [...sequences[s].subarray(at * width, (at + 1) * width)]);
        const [step, pp, out] = [b.put(Float64Array.from(rows), dt), b.ints(past), b.alloc(3 * H * D, dt)];
        b.device.cacheAppend(step, k, v, pp, 3, 1, maxT, H, KV, D, dt);
        b.device.attentionCached(step, width, k, v, out, pp, 3, 1, maxT, H, KV, D, 1 / Math.sqrt(D), dt);
        const expected = past.flatMap((at, s) => [...full[s].subarray(at * H * D, (at + 1) * H * D)]);
        expectClose(b.get(out, 3 * H * D, dt), Float64Array.from(expected), tolerance(dt), `D ${D} token ${t}`);
      }
    });
  }
});

test.each(DTYPES)("a first part, then the rest in one call, over more than a tile of keys, %s", (_, dt) => {
  const [first, rest, maxT] = [131, 5, 140];
  for (const shape of SHAPES) {
    const { H, KV, D } = shape;
    const width = (H + 2 * KV) * D;
    const [x, other] = [held(numbers((first + rest) * width, 1), dt), held(numbers((first + rest) * width, 2), dt)];
    const full = [x, other].map((q) => attention(q, [0, first + rest], shape));
    onEach((b) => {
      const cache = 2 * maxT * KV * D;
      const [k, v] = [b.alloc(cache, dt), b.alloc(cache, dt)];
      const part = (from: number, to: number): Float64Array =>
        Float64Array.from([x, other].flatMap((q) => [...q.subarray(from * width, to * width)]));
      b.device.cacheAppend(b.put(part(0, first), dt), k, v, b.ints([0, 0]), 2, first, maxT, H, KV, D, dt);
      const [tail, past] = [b.put(part(first, first + rest), dt), b.ints([first, first])];
      const out = b.alloc(2 * rest * H * D, dt);
      b.device.cacheAppend(tail, k, v, past, 2, rest, maxT, H, KV, D, dt);
      b.device.attentionCached(tail, width, k, v, out, past, 2, rest, maxT, H, KV, D, 1 / Math.sqrt(D), dt);
      const expected = Float64Array.from(full.flatMap((y) => [...y.subarray(first * H * D)]));
      expectClose(b.get(out, 2 * rest * H * D, dt), expected, tolerance(dt), `D ${D}`);
    });
  }
});

test.each(DTYPES)("appending moves bytes, and touches the new rows only, %s", (_, dt) => {
  onEach((b) => {
    const { H, KV, D } = { H: 4, KV: 2, D: 8 };
    const [width, row, maxT] = [(H + 2 * KV) * D, KV * D, 5];
    const qkv = numbers(2 * 2 * width, 1);
    const [k, v] = [b.put(numbers(2 * maxT * row, 2), dt), b.put(numbers(2 * maxT * row, 3), dt)];
    const expected = [b.get(k, 2 * maxT * row, dt), b.get(v, 2 * maxT * row, dt)];
    b.device.cacheAppend(b.put(qkv, dt), k, v, b.ints([0, 3]), 2, 2, maxT, H, KV, D, dt);
    for (const [s, past] of [0, 3].entries())
      for (let t = 0; t < 2; t++)
        expected.forEach((cache, which) => {
          for (let h = 0; h < KV; h++) {
            const from = (s * 2 + t) * width + (H + which * KV + h) * D;
            cache.set(qkv.subarray(from, from + D), ((s * KV + h) * maxT + past + t) * D);
          }
        });
    expect(b.get(k, 2 * maxT * row, dt)).toEqual(expected[0]);
    expect(b.get(v, 2 * maxT * row, dt)).toEqual(expected[1]);
  });
});

test("huge scores, and a NaN key: seen from its token on, in its own sequence", () => {
  onEach((b) => {
    const [D, T, maxT] = [8, 6, 8];
    const shape = { H: 1, KV: 1, D };
    const x = held(numbers(T * 24, 1, 120), F32);
    const [k, v] = [b.alloc(2 * maxT * D), b.alloc(2 * maxT * D)];
    const both = Float64Array.from([...x, ...x]);
    both[(T + 3) * 24 + D] = Number.NaN; // key of token 3 of the second sequence
    const [p, past, out] = [b.put(both, F32), b.ints([0, 0]), b.alloc(2 * T * D)];
    b.device.cacheAppend(p, k, v, past, 2, T, maxT, 1, 1, D, F32);
    b.device.attentionCached(p, 24, k, v, out, past, 2, T, maxT, 1, 1, D, 1 / Math.sqrt(D), F32);
    const y = b.get(out, 2 * T * D);
    expectClose(y.subarray(0, T * D), attention(x, [0, T], shape), 4e-3);
    for (let t = 0; t < T; t++) expect(y.subarray((T + t) * D, (T + t + 1) * D).every(Number.isNaN)).toBe(t >= 3);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  const { H, KV, D } = { H: 4, KV: 2, D: 16 };
  const [width, maxT, B] = [(H + 2 * KV) * D, 100, 3];
  expectSameOnAnyThreads((b) => {
    const [k, v] = [b.put(numbers(B * maxT * KV * D, 1), dt), b.put(numbers(B * maxT * KV * D, 2), dt)];
    const [q, out] = [b.put(numbers(B * width, 3), dt), b.alloc(B * H * D, dt)];
    b.device.attentionCached(q, width, k, v, out, b.ints([0, 50, 99]), B, 1, maxT, H, KV, D, 0.25, dt);
    return b.bytes(out, B * H * D, dt);
  });
});
