/** Element-wise kernels, casts, rows by number, and the sum of squares: against float64, to the last bit where one rounding is all. */
import { expect, test } from "vitest";
import { BF16, type DType, F32 } from "../../src/device/device.js";
import {
  DTYPES,
  dot,
  expectClose,
  expectSameOnAnyThreads,
  held,
  numbers,
  onEach,
  rounded,
  tolerance,
} from "./reference.js";

const SIZES = [1, 3, 17, 65, 4096, 4099, 70_001];

test.each(DTYPES)("one operation, one rounding, %s", (_, dt) => {
  onEach((b) => {
    for (const n of SIZES) {
      const [x, y] = [numbers(n, 1, 3), numbers(n, 2, 3)];
      const [px, py, out] = [b.put(x, dt), b.put(y, dt), b.alloc(n, dt)];
      // What the kernel does: fp32 arithmetic on what is stored, then one rounding to the storage type.
      const check = (what: string, f: (v: number, i: number) => number): void =>
        expectClose(
          b.get(out, n, dt),
          Float64Array.from(x, (v, i) => rounded(Math.fround(f(v, i)), dt)),
          0,
          `${what} ${n}`,
        );
      b.device.add(px, py, out, n, dt);
      check("add", (v, i) => v + y[i]);
      b.device.fill(out, 0.3, n, dt);
      check("fill", () => 0.3);
      b.device.add(px, py, py, n, dt);
      expectClose(
        b.get(py, n, dt),
        Float64Array.from(x, (v, i) => rounded(Math.fround(v + y[i]), dt)),
        0,
        "in place",
      );
    }
  });
});

test("a sum in halves rounds as fp32 does, however many numbers are added", () => {
  onEach((b) => {
    const [n, terms] = [3001, 300];
    const [high, low, x, joined] = [b.alloc(n, BF16), b.alloc(n, BF16), b.alloc(n, BF16), b.alloc(n, F32)];
    b.device.u16(low, n).fill(0xffff); // not read when nothing is there to add to
    const exact = new Float32Array(n);
    const plain = b.alloc(n, BF16);
    for (let term = 0; term < terms; term++) {
      b.device.cast(b.put(numbers(n, term, 1), F32), F32, x, BF16, n);
      b.get(x, n, BF16).forEach((v, i) => {
        exact[i] += v;
      });
      b.device.sumPieces(x, n, 1, high, low, term === 0 ? 0 : 1, BF16);
      b.device.sumPieces(x, n, 1, plain, 0, term === 0 ? 0 : 1, BF16);
    }
    b.device.joinMaster(high, low, joined, n);
    expect(b.device.f32(joined, n)).toEqual(exact);
    const off = (p: number): number => Math.hypot(...b.get(p, n, BF16).map((v, i) => v - exact[i]));
    expect(off(high)).toBeLessThan(off(plain) / 5);
    // Pieces of several processes, in one go.
    const pieces = b.put(numbers(4 * 64, 5, 1), BF16);
    const each = b.get(pieces, 4 * 64, BF16);
    b.device.sumPieces(pieces, 64, 4, high, low, 0, BF16);
    b.device.joinMaster(high, low, joined, 64);
    const sums = Float32Array.from({ length: 64 }, (_, i) =>
      [0, 1, 2, 3].reduce((s, k) => Math.fround(s + each[k * 64 + i]), 0),
    );
    expect(b.device.f32(joined, 64)).toEqual(sums);
  });
});

test.each(DTYPES)("sum of squares, %s; NaN and infinity come through", (_, dt) => {
  onEach((b) => {
    for (const n of SIZES) {
      const x = numbers(n, 1, 3);
      const p = b.put(x, dt);
      expect(Math.abs(b.device.sumSquares(p, n, dt) / dot(x, x) - 1)).toBeLessThan(1e-12);
    }
    expect(b.device.sumSquares(b.put(new Float64Array(4).fill(2 ** 70), dt), 4, dt)).toBe(2 ** 142);
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const x = numbers(40_000, 1);
      x[33_333] = bad;
      expect(Number.isFinite(b.device.sumSquares(b.put(x, dt), 40_000, dt))).toBe(false);
    }
    expect(b.device.sumSquares(b.put(new Float64Array(5), dt), 0, dt)).toBe(0);
  });
});

test("casts round to nearest even, and keep NaN, infinity, zero's sign and subnormals", () => {
  onEach((b) => {
    // biome-ignore format: a list of numbers
    const x = [1 + 2 ** -9, 1 + 3 * 2 ** -9, 1 + 2 ** -8, -1e-30, Number.NaN, Number.POSITIVE_INFINITY, -0, 3.4e38, 2 ** -133, -3.39e38];
    const [from, to] = [b.alloc(x.length), b.alloc(x.length, BF16)];
    b.device.f32(from, x.length).set(x);
    b.device.cast(from, F32, to, BF16, x.length);
    const y = b.get(to, x.length, BF16);
    expect(Array.from(y.subarray(0, 3))).toEqual([1, 1 + 2 ** -7, 1]); // halves go to the even neighbour
    expect(y[4]).toBeNaN();
    expect(y[5]).toBe(Number.POSITIVE_INFINITY);
    expect(Object.is(y[6], -0)).toBe(true);
    expect(y[7]).toBe(Number.POSITIVE_INFINITY); // nearer to 2^128 than to the largest bf16
    expect(y[8]).toBe(2 ** -133);
    expect(y[9]).toBe(-(2 - 2 ** -7) * 2 ** 127);
    b.device.cast(to, BF16, from, F32, x.length);
    expect(Array.from(b.get(from, x.length))).toEqual(Array.from(y));
  });
});

test("every NaN of fp32 stays one, whatever its payload", () => {
  onEach((b) => {
    const patterns = [0x7f800001, 0x7fc00000, 0xff800001, 0x7fffffff, 0xffffffff];
    const [from, to] = [b.alloc(patterns.length), b.alloc(patterns.length, BF16)];
    b.device.i32(from, patterns.length).set(patterns.map((p) => p | 0));
    b.device.cast(from, F32, to, BF16, patterns.length);
    expect(b.get(to, patterns.length, BF16).every(Number.isNaN)).toBe(true);
  });
});

test.each(DTYPES)("rows copied and added by number, %s", (_, dt) => {
  onEach((b) => {
    for (const D of [1, 19, 64]) {
      const [src, dst] = [numbers(7 * D, 1), numbers(7 * D, 2)];
      const rows = [3, 0, 6, 3];
      const [p, out, acc] = [b.put(src, dt), b.alloc(4 * D, dt), b.put(dst, dt)];
      const place = (i: number): number => rows[Math.floor(i / D)] * D + (i % D);
      b.device.copyRows(p, b.ints(rows), out, 4, D, dt);
      expectClose(
        b.get(out, 4 * D, dt),
        Float64Array.from({ length: 4 * D }, (_, i) => src[place(i)]),
        0,
      );
      b.device.addRows(p, b.ints(rows), acc, 4, D, dt);
      const expected = Float64Array.from(dst);
      for (let i = 0; i < 4 * D; i++) expected[place(i)] += src[i];
      expectClose(b.get(acc, 7 * D, dt), expected, tolerance(dt));
    }
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt: DType) => {
  const n = 300_000;
  const [x, y] = [held(numbers(n, 1), dt), held(numbers(n, 2), dt)];
  expectSameOnAnyThreads((b) => {
    const [px, py] = [b.put(x, dt), b.put(y, dt)];
    b.device.add(px, py, py, n, dt);
    const sum = new Float64Array([b.device.sumSquares(py, n, dt)]);
    return `${Buffer.from(sum.buffer).toString("hex")} ${b.bytes(py, n, dt)}`;
  });
});
