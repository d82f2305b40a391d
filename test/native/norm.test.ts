/** RMSNorm: forward against float64, backward against finite differences. */
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
  rmsnorm,
  rounded,
  tolerance,
} from "./reference.js";

const SIZES = [
  [1, 1],
  [1, 65],
  [3, 17],
  [17, 3],
  [65, 64],
  [40, 130],
] as const;

test.each(DTYPES)("forward, backward, and the statistics between them, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, D] of SIZES) {
      const [x, w, dy] = [numbers(N * D, 1, 3), numbers(D, 2), numbers(N * D, 3)];
      const [px, pw, pdy] = [b.put(x, dt), b.put(w, dt), b.put(dy, dt)];
      const [y, rstd, dx, dw] = [b.alloc(N * D, dt), b.alloc(N), b.alloc(N * D, dt), b.put(new Float64Array(D), dt)];
      b.device.rmsnormForward(px, 0, pw, 0, y, rstd, N, D, 1e-5, dt);
      expectClose(b.get(y, N * D, dt), rmsnorm(x, w, D, 1e-5), tolerance(dt), `y ${N}x${D}`);
      const statistics = Float64Array.from({ length: N }, (_, i) => {
        const row = x.subarray(i * D, (i + 1) * D);
        return 1 / Math.sqrt(dot(row, row) / D + 1e-5);
      });
      expectClose(b.get(rstd, N), statistics, 1e-6, `rstd ${N}x${D}`);
      b.device.rmsnormBackward(pdy, px, pw, rstd, 0, dx, dw, 0, N, D, dt);
      const loss = (): number => dot(dy, rmsnorm(x, w, D, 1e-5));
      expectSlopes(b.get(dx, N * D, dt), loss, x, tolerance(dt, 1e-4), `dx ${N}x${D}`);
      expectSlopes(b.get(dw, D, dt), loss, w, tolerance(dt, 1e-4), `dw ${N}x${D}`);
    }
  });
});

test.each(DTYPES)("the residual path's gradient is added, the weight's accumulates or is left out, %s", (_, dt) => {
  onEach((b) => {
    const [N, D] = [37, 65];
    const [x, w, dy, extra, start] = [1, 2, 3, 4, 5].map((seed) => numbers(seed === 2 || seed === 5 ? D : N * D, seed));
    const [px, pw, pdy, pextra, rstd] = [b.put(x, dt), b.put(w, dt), b.put(dy, dt), b.put(extra, dt), b.alloc(N)];
    const [y, dx, dw] = [b.alloc(N * D, dt), b.alloc(N * D, dt), b.put(start, dt)];
    b.device.rmsnormForward(px, 0, pw, 0, y, rstd, N, D, 1e-5, dt);
    b.device.rmsnormBackward(pdy, px, pw, rstd, pextra, dx, dw, 0, N, D, dt);
    const loss = (): number => dot(dy, rmsnorm(x, w, D, 1e-5)) + dot(extra, x) + dot(start, w);
    expectSlopes(b.get(dx, N * D, dt), loss, x, tolerance(dt, 1e-4), "dx");
    expectSlopes(b.get(dw, D, dt), loss, w, tolerance(dt, 1e-4), "dw");
    const alone = b.alloc(N * D, dt);
    b.device.rmsnormBackward(pdy, px, pw, rstd, pextra, alone, 0, pdy, N, D, dt);
    expect(b.bytes(alone, N * D, dt)).toBe(b.bytes(dx, N * D, dt));
    expectClose(b.get(pdy, N * D, dt), b.get(y, N * D, dt), tolerance(dt), "y made again, where its gradient was");
  });
});

test.each(DTYPES)("of a sum with the residual: y belongs to the h that was stored, %s", (_, dt) => {
  onEach((b) => {
    const [N, D] = [5, 33];
    const [x, r, w] = [numbers(N * D, 1), numbers(N * D, 2), numbers(D, 3)];
    const [px, pr, pw] = [b.put(x, dt), b.put(r, dt), b.put(w, dt)];
    const [h, y, rstd] = [b.alloc(N * D, dt), b.alloc(N * D, dt), b.alloc(N)];
    b.device.rmsnormForward(px, pr, pw, h, y, rstd, N, D, 1e-6, dt);
    const sum = x.map((v, i) => rounded(v + r[i], dt));
    expectClose(b.get(h, N * D, dt), sum, 0, "h");
    expectClose(b.get(y, N * D, dt), rmsnorm(sum, w, D, 1e-6), tolerance(dt), "y");
    const [again, rstd2] = [b.alloc(N * D, dt), b.alloc(N)];
    b.device.rmsnormForward(h, 0, pw, 0, again, rstd2, N, D, 1e-6, dt);
    expect(b.bytes(again, N * D, dt)).toBe(b.bytes(y, N * D, dt));
    expect(b.bytes(rstd2, N)).toBe(b.bytes(rstd, N));
  });
});

test("zeros stay zeros, huge values keep their direction, NaN and infinity stay in their row and are seen", () => {
  onEach((b) => {
    const D = 17;
    const x = numbers(5 * D, 1);
    x.fill(0, 0, D);
    for (let d = 0; d < D; d++) x[D + d] *= 1e18;
    x[2 * D + 3] = Number.NaN;
    x[3 * D + 3] = Number.POSITIVE_INFINITY;
    const w = new Float64Array(D).fill(1);
    const [y, rstd, dx] = [b.alloc(5 * D), b.alloc(5), b.alloc(5 * D)];
    const [px, pw] = [b.put(x, F32), b.put(w, F32)];
    b.device.rmsnormForward(px, 0, pw, 0, y, rstd, 5, D, 1e-5, F32);
    const Y = b.get(y, 5 * D);
    expect(Y.subarray(0, D).every((v) => v === 0)).toBe(true);
    for (const row of [1, 4]) {
      const at = row * D;
      expectClose(Y.subarray(at, at + D), rmsnorm(x.subarray(at, at + D), w, D, 1e-5), 1e-5, `row ${row}`);
    }
    expect(Y.subarray(2 * D, 3 * D).every(Number.isNaN)).toBe(true);
    expect(Y[3 * D + 3]).toBeNaN();
    b.device.rmsnormBackward(b.put(numbers(5 * D, 2), F32), px, pw, rstd, 0, dx, 0, 0, 5, D, F32);
    const finite = [0, 1, 2, 3, 4].map((i) =>
      b
        .get(dx, 5 * D)
        .subarray(i * D, (i + 1) * D)
        .every(Number.isFinite),
    );
    expect(finite).toEqual([true, true, false, false, true]);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const [N, D] = [203, 65];
    const [px, pw, pdy] = [b.put(numbers(N * D, 1), dt), b.put(numbers(D, 2), dt), b.put(numbers(N * D, 3), dt)];
    const [y, rstd, dx, dw] = [b.alloc(N * D, dt), b.alloc(N), b.alloc(N * D, dt), b.put(new Float64Array(D), dt)];
    b.device.rmsnormForward(px, 0, pw, 0, y, rstd, N, D, 1e-5, dt);
    b.device.rmsnormBackward(pdy, px, pw, rstd, pdy, dx, dw, 0, N, D, dt);
    return b.bytes(y, N * D, dt) + b.bytes(rstd, N) + b.bytes(dx, N * D, dt) + b.bytes(dw, D, dt);
  });
});
