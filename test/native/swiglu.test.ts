/** SwiGLU: forward against float64, backward against finite differences, and the exponential inside it. */
import { expect, test } from "vitest";
import { F32 } from "../../src/device/device.js";
import {
  DTYPES,
  dot,
  expectClose,
  expectSameOnAnyThreads,
  expectSlopes,
  numbers,
  onEach,
  swiglu,
  tolerance,
} from "./reference.js";

test.each(DTYPES)("forward and backward, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, F] of [
      [1, 1],
      [1, 65],
      [3, 17],
      [17, 3],
      [65, 64],
    ] as const) {
      const [gu, dy] = [numbers(N * 2 * F, 1, 4), numbers(N * F, 2)];
      const [p, pdy, y, dgu] = [b.put(gu, dt), b.put(dy, dt), b.alloc(N * F, dt), b.alloc(N * 2 * F, dt)];
      b.device.swigluForward(p, y, N, F, dt);
      expectClose(b.get(y, N * F, dt), swiglu(gu, F), tolerance(dt), `y ${N}x${F}`);
      b.device.swigluBackward(pdy, p, dgu, 0, N, F, dt);
      const bytes = b.bytes(dgu, N * 2 * F, dt);
      expectSlopes(b.get(dgu, N * 2 * F, dt), () => dot(dy, swiglu(gu, F)), gu, tolerance(dt, 1e-4), `dgu ${N}x${F}`);
      // In place, and with the result made again where its gradient was.
      b.device.swigluBackward(pdy, p, p, pdy, N, F, dt);
      expect(b.bytes(p, N * 2 * F, dt)).toBe(bytes);
      expectClose(b.get(pdy, N * F, dt), b.get(y, N * F, dt), tolerance(dt), `y again ${N}x${F}`);
    }
  });
});

test("right to a few units of the last place from gates of -80 to 80", () => {
  onEach((b) => {
    const F = 6401;
    const gu = new Float64Array(2 * F).fill(1);
    for (let f = 0; f < F; f++) gu[f] = -80 + (160 * f) / (F - 1);
    const y = b.alloc(F);
    b.device.swigluForward(b.put(gu, F32), y, 1, F, F32);
    const expected = swiglu(gu, F);
    b.get(y, F).forEach((x, f) => {
      if (Math.abs(x - expected[f]) > 8e-7 * Math.abs(expected[f]))
        throw new Error(`silu(${gu[f]}) is ${x}, expected ${expected[f]}`);
    });
  });
});

test("saturates without NaN, forward and backward; a NaN comes through", () => {
  onEach((b) => {
    const gates = [1e4, -1e4, 90, -90, 3e38, -3e38, Number.NaN];
    const F = gates.length;
    const [y, dgu] = [b.alloc(F), b.alloc(2 * F)];
    const p = b.put(Float64Array.from([...gates, ...gates.map(() => 1)]), F32);
    b.device.swigluForward(p, y, 1, F, F32);
    expectClose(b.get(y, 4), Float64Array.from([1e4, 0, 90, 0]), 1e-6);
    expect(b.get(y, F)[5]).toBeCloseTo(0);
    b.device.swigluBackward(b.put(new Float64Array(F).fill(1), F32), p, dgu, 0, 1, F, F32);
    const slope = b.get(dgu, 2 * F);
    expectClose(slope.subarray(0, 6), Float64Array.from([1, 0, 1, 0, 1, 0]), 1e-6);
    expect([b.get(y, F)[6], slope[6], slope[13]]).toEqual([Number.NaN, Number.NaN, Number.NaN]);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const [N, F] = [150, 33];
    const [p, pdy] = [b.put(numbers(N * 2 * F, 1, 4), dt), b.put(numbers(N * F, 2), dt)];
    const [y, dgu] = [b.alloc(N * F, dt), b.alloc(N * 2 * F, dt)];
    b.device.swigluForward(p, y, N, F, dt);
    b.device.swigluBackward(pdy, p, dgu, 0, N, F, dt);
    return b.bytes(y, N * F, dt) + b.bytes(dgu, N * 2 * F, dt);
  });
});
