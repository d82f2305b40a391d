/** Rotary position embedding against float64: forward, its inverse (the backward pass), and what it must leave alone. */
import { expect, test } from "vitest";
import { F32 } from "../../src/device/device.js";
import {
  type Bench,
  DTYPES,
  dot,
  expectClose,
  expectSameOnAnyThreads,
  expectSlopes,
  numbers,
  onEach,
  tolerance,
} from "./reference.js";

const POSITIONS = 19;
const angle = (position: number, i: number, D: number): number => position / 100 ** ((2 * i) / D);
function tables(b: Bench, D: number) {
  const table = (f: (a: number) => number): Float64Array =>
    Float64Array.from({ length: (POSITIONS * D) / 2 }, (_, n) => f(angle(Math.floor(n / (D / 2)), n % (D / 2), D)));
  return { cos: b.put(table(Math.cos), F32), sin: b.put(table(Math.sin), F32) };
}
/** Halves paired as in Hugging Face Llama: x[i] with x[i + D/2]. */
function rotated(x: Float64Array, ld: number, heads: number, D: number, positions: number[], sign = 1): Float64Array {
  const y = Float64Array.from(x);
  positions.forEach((position, n) => {
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < D / 2; i++) {
        const [at, a] = [n * ld + h * D + i, sign * angle(position, i, D)];
        y[at] = x[at] * Math.cos(a) - x[at + D / 2] * Math.sin(a);
        y[at + D / 2] = x[at + D / 2] * Math.cos(a) + x[at] * Math.sin(a);
      }
  });
  return y;
}
const positionsOf = (N: number): number[] => Array.from({ length: N }, (_, i) => (i * 7) % POSITIONS);

test.each(DTYPES)("forward, inverse, backward; columns behind the heads are left alone, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, heads, D, ld] of [
      [1, 1, 2, 2],
      [5, 3, 8, 40],
      [65, 1, 16, 17],
      [17, 2, 64, 128],
      [3, 1, 24, 30],
    ] as const) {
      const what = `N ${N} heads ${heads} D ${D}`;
      const x = numbers(N * ld, 1);
      const positions = positionsOf(N);
      const { cos, sin } = tables(b, D);
      const p = b.put(x, dt);
      b.device.rope(p, ld, b.ints(positions), cos, sin, N, heads, D, 0, dt);
      const y = b.get(p, N * ld, dt);
      expectClose(y, rotated(x, ld, heads, D, positions), tolerance(dt), `forward ${what}`);
      for (let n = 0; n < N; n++) for (let c = heads * D; c < ld; c++) expect(y[n * ld + c]).toBe(x[n * ld + c]);
      b.device.rope(p, ld, b.ints(positions), cos, sin, N, heads, D, 1, dt);
      expectClose(b.get(p, N * ld, dt), x, tolerance(dt), `and back ${what}`);

      const dy = numbers(N * ld, 2);
      const gradient = b.put(dy, dt);
      b.device.rope(gradient, ld, b.ints(positions), cos, sin, N, heads, D, 1, dt);
      const loss = (): number => dot(dy, rotated(x, ld, heads, D, positions));
      expectSlopes(b.get(gradient, N * ld, dt), loss, x, tolerance(dt, 1e-4), `backward ${what}`);
    }
  });
});

test("a NaN touches its pair only", () => {
  onEach((b) => {
    const [N, D] = [3, 8];
    const { cos, sin } = tables(b, D);
    const x = numbers(N * D, 1);
    x[D + 2] = Number.NaN;
    const p = b.put(x, F32);
    b.device.rope(p, D, b.ints([0, 3, 6]), cos, sin, N, 1, D, 0, F32);
    const bad = [...b.get(p, N * D)].flatMap((v, i) => (Number.isNaN(v) ? [i] : []));
    expect(bad).toEqual([D + 2, D + 6]);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const [N, heads, D] = [130, 3, 16];
    const { cos, sin } = tables(b, D);
    const p = b.put(numbers(N * heads * D, 1), dt);
    b.device.rope(p, heads * D, b.ints(positionsOf(N)), cos, sin, N, heads, D, 0, dt);
    return b.bytes(p, N * heads * D, dt);
  });
});
