import { expect, test } from "vitest";
import { BF16, F32 } from "../../src/device/device.js";
import {
  DTYPES,
  dot,
  expectClose,
  expectSlopes,
  numbers,
  onEach,
  rmsnorm,
  rounded,
  swiglu,
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

test.each(DTYPES)("RMSNorm forward and backward, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, D] of SIZES) {
      const [x, w, dy] = [numbers(N * D, 1, 3), numbers(D, 2), numbers(N * D, 3)];
      const [px, pw, pdy] = [b.put(x, dt), b.put(w, dt), b.put(dy, dt)];
      const [y, rstd, dx, dw] = [b.alloc(N * D, dt), b.alloc(N), b.alloc(N * D, dt), b.put(new Float64Array(D), dt)];
      b.device.rmsnormForward(px, 0, pw, 0, y, rstd, N, D, 1e-5, dt);
      expectClose(b.get(y, N * D, dt), rmsnorm(x, w, D, 1e-5), tolerance(dt), `y ${N}x${D}`);
      b.device.rmsnormBackward(pdy, px, pw, rstd, 0, dx, dw, N, D, dt);
      const loss = (): number => dot(dy, rmsnorm(x, w, D, 1e-5));
      expectSlopes(b.get(dx, N * D, dt), loss, x, tolerance(dt, 1e-4), `dx ${N}x${D}`);
      expectSlopes(b.get(dw, D, dt), loss, w, tolerance(dt, 1e-4), `dw ${N}x${D}`);
      // The gradient of the residual path is added in the same pass; the weight's accumulates.
      const withExtra = b.alloc(N * D, dt);
      const before = b.get(dw, D, dt);
      b.device.rmsnormBackward(pdy, px, pw, rstd, pdy, withExtra, dw, N, D, dt);
      expectClose(
        b.get(withExtra, N * D, dt),
        b.get(dx, N * D, dt).map((g, i) => g + dy[i]),
        tolerance(dt),
        "dx + extra",
      );
      expectClose(
        b.get(dw, D, dt),
        before.map((g) => 2 * g),
        tolerance(dt),
        "dw twice",
      );
    }
  });
});

test.each(DTYPES)("RMSNorm of a sum with the residual, %s", (_, dt) => {
  onEach((b) => {
    const [N, D] = [5, 33];
    const [x, r, w] = [numbers(N * D, 1), numbers(N * D, 2), numbers(D, 3)];
    const [px, pr, pw] = [b.put(x, dt), b.put(r, dt), b.put(w, dt)];
    const [h, y, rstd] = [b.alloc(N * D, dt), b.alloc(N * D, dt), b.alloc(N)];
    b.device.rmsnormForward(px, pr, pw, h, y, rstd, N, D, 1e-6, dt);
    const sum = x.map((v, i) => rounded(v + r[i], dt));
    expectClose(b.get(h, N * D, dt), sum, tolerance(dt));
    expectClose(b.get(y, N * D, dt), rmsnorm(sum, w, D, 1e-6), tolerance(dt));
  });
});

test.each(DTYPES)("SwiGLU forward and backward, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, F] of SIZES) {
      const [gu, dy] = [numbers(N * 2 * F, 1, 4), numbers(N * F, 2)];
      const [p, pdy, y, dgu] = [b.put(gu, dt), b.put(dy, dt), b.alloc(N * F, dt), b.alloc(N * 2 * F, dt)];
      b.device.swigluForward(p, y, N, F, dt);
      expectClose(b.get(y, N * F, dt), swiglu(gu, F), tolerance(dt), `y ${N}x${F}`);
      b.device.swigluBackward(pdy, p, dgu, N, F, dt);
      expectSlopes(b.get(dgu, N * 2 * F, dt), () => dot(dy, swiglu(gu, F)), gu, tolerance(dt, 1e-4), `dgu ${N}x${F}`);
    }
  });
});

test("SwiGLU saturates without NaN", () => {
  onEach((b) => {
    const gu = Float64Array.from([1e4, -1e4, 90, -90, 1, 1, 1, 1]);
    const y = b.alloc(4);
    b.device.swigluForward(b.put(gu, F32), y, 1, 4, F32);
    expectClose(b.get(y, 4), Float64Array.from([1e4, 0, 90, 0]), 1e-6);
  });
});

test.each(DTYPES)("rotary embedding, and back again, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, heads, D, ld] of [
      [1, 1, 2, 2],
      [5, 3, 8, 40],
      [17, 2, 64, 128],
      [3, 1, 24, 30],
    ] as const) {
      const x = numbers(N * ld, 1);
      const positions = Array.from({ length: N }, (_, i) => (i * 7) % 19);
      const angle = (p: number, i: number): number => p / 100 ** ((2 * i) / D);
      const table = (f: (a: number) => number): Float64Array =>
        Float64Array.from({ length: 19 * (D / 2) }, (_, n) => f(angle(Math.floor(n / (D / 2)), n % (D / 2))));
      const [cos, sin] = [b.put(table(Math.cos), F32), b.put(table(Math.sin), F32)];
      const p = b.put(x, dt);
      b.device.rope(p, ld, b.ints(positions), cos, sin, N, heads, D, 0, dt);
      const expected = Float64Array.from(x);
      for (let n = 0; n < N; n++)
        for (let h = 0; h < heads; h++)
          for (let i = 0; i < D / 2; i++) {
            const [at, a] = [n * ld + h * D + i, angle(positions[n], i)];
            expected[at] = x[at] * Math.cos(a) - x[at + D / 2] * Math.sin(a);
            expected[at + D / 2] = x[at + D / 2] * Math.cos(a) + x[at] * Math.sin(a);
          }
      expectClose(b.get(p, N * ld, dt), expected, tolerance(dt), "forward");
      b.device.rope(p, ld, b.ints(positions), cos, sin, N, heads, D, 1, dt);
      expectClose(b.get(p, N * ld, dt), x, tolerance(dt), "inverse");
    }
  });
});

test.each(DTYPES)("embedding: rows out, gradients of repeated rows summed, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, D, V] of [
      [1, 1, 1],
      [65, 17, 5],
      [130, 33, 70],
    ] as const) {
      const [table, dout, start] = [numbers(V * D, 1), numbers(N * D, 2), numbers(V * D, 3)];
      const ids = Array.from({ length: N }, (_, i) => (i * i) % V);
      const [p, out, pd, dtable] = [b.put(table, dt), b.alloc(N * D, dt), b.put(dout, dt), b.put(start, dt)];
      b.device.embeddingForward(b.ints(ids), p, out, N, D, dt);
      expectClose(
        b.get(out, N * D, dt),
        Float64Array.from({ length: N * D }, (_, i) => table[ids[Math.floor(i / D)] * D + (i % D)]),
        0,
      );
      b.device.embeddingBackward(b.ints(ids), pd, dtable, N, D, V, dt);
      const expected = Float64Array.from(start);
      for (let i = 0; i < N * D; i++) expected[ids[Math.floor(i / D)] * D + (i % D)] += dout[i];
      expectClose(b.get(dtable, V * D, dt), expected, tolerance(dt));
    }
  });
});

test.each(DTYPES)("element-wise kernels, %s", (_, dt) => {
  onEach((b) => {
    for (const n of [1, 3, 17, 65, 4099]) {
      const [x, y] = [numbers(n, 1, 3), numbers(n, 2, 3)];
      const [px, py, out] = [b.put(x, dt), b.put(y, dt), b.alloc(n, dt)];
      const check = (expected: Float64Array, what: string): void =>
        expectClose(b.get(out, n, dt), expected, tolerance(dt), what);
      b.device.add(px, py, out, n, dt);
      check(
        x.map((v, i) => v + y[i]),
        "add",
      );
      b.device.mul(px, py, out, n, dt);
      check(
        x.map((v, i) => v * y[i]),
        "mul",
      );
      b.device.scale(px, 0.25, out, n, dt);
      check(
        x.map((v) => v * 0.25),
        "scale",
      );
      b.device.axpy(2, px, out, n, dt);
      check(
        x.map((v) => v * 2.25),
        "axpy",
      );
      b.device.fill(out, 0.5, n, dt);
      check(new Float64Array(n).fill(0.5), "fill");
      expect(b.device.sumSquares(px, n, dt) / dot(x, x)).toBeCloseTo(1, 5);
    }
  });
});

test("casts round to nearest even, and keep NaN, infinity and zero's sign", () => {
  onEach((b) => {
    const x = [1 + 2 ** -9, 1 + 3 * 2 ** -9, 1 + 2 ** -8, -1e-30, Number.NaN, Number.POSITIVE_INFINITY, -0, 3.4e38];
    const from = b.alloc(x.length);
    b.device.f32(from, x.length).set(x);
    const to = b.alloc(x.length, BF16);
    b.device.cast(from, F32, to, BF16, x.length);
    const y = b.get(to, x.length, BF16);
    expect(Array.from(y.subarray(0, 3))).toEqual([1, 1 + 2 ** -7, 1]); // halves go to the even neighbour
    expect(y[4]).toBeNaN();
    expect(y[5]).toBe(Number.POSITIVE_INFINITY);
    expect(Object.is(y[6], -0)).toBe(true);
    expect(y[7]).toBe(rounded(3.4e38, BF16));
    b.device.cast(to, BF16, from, F32, x.length);
    expect(Array.from(b.get(from, 3))).toEqual(Array.from(y.subarray(0, 3)));
  });
});

test.each(DTYPES)("rows copied and added by number, %s", (_, dt) => {
  onEach((b) => {
    const [N, D] = [7, 19];
    const [src, dst] = [numbers(N * D, 1), numbers(N * D, 2)];
    const rows = [3, 0, 6];
    const [p, out, acc] = [b.put(src, dt), b.alloc(3 * D, dt), b.put(dst, dt)];
    b.device.copyRows(p, b.ints(rows), out, 3, D, dt);
    expectClose(
      b.get(out, 3 * D, dt),
      Float64Array.from({ length: 3 * D }, (_, i) => src[rows[Math.floor(i / D)] * D + (i % D)]),
      0,
    );
    b.device.addRows(p, b.ints(rows), acc, 3, D, dt);
    const expected = Float64Array.from(dst);
    for (let i = 0; i < 3 * D; i++) expected[rows[Math.floor(i / D)] * D + (i % D)] += src[i];
    expectClose(b.get(acc, N * D, dt), expected, tolerance(dt));
  });
});

test.each(DTYPES)("AdamW in PyTorch's order, %s gradients", (_, dt) => {
  onEach((b) => {
    const [lr, b1, b2, eps, decay, scale] = [0.01, 0.9, 0.95, 1e-8, 0.1, 0.5];
    for (const n of [1, 17, 1003]) {
      const master = numbers(n, 1);
      const [m, v] = [new Float64Array(n), new Float64Array(n)];
      const [pm, p1, p2, param] = [b.put(master, F32), b.put(m, F32), b.put(v, F32), b.alloc(n, dt)];
      for (let step = 1; step <= 3; step++) {
        const grad = numbers(n, 10 + step);
        const g = b.put(grad, dt);
        const [c1, c2] = [1 - b1 ** step, 1 - b2 ** step];
        b.device.adamw(n, pm, p1, p2, g, dt === F32 ? pm : param, dt, lr, b1, b2, eps, decay, c1, c2, scale);
        for (let i = 0; i < n; i++) {
          const gi = grad[i] * scale;
          master[i] *= 1 - lr * decay;
          m[i] = b1 * m[i] + (1 - b1) * gi;
          v[i] = b2 * v[i] + (1 - b2) * gi * gi;
          master[i] -= ((lr / c1) * m[i]) / (Math.sqrt(v[i]) / Math.sqrt(c2) + eps);
        }
      }
      expectClose(b.get(pm, n), master, 1e-5, "master");
      expectClose(b.get(p1, n), m, 1e-5, "m");
      expectClose(b.get(p2, n), v, 1e-5, "v");
      if (dt === BF16)
        expectClose(
          b.get(param, n, BF16),
          b.get(pm, n).map((x) => rounded(x, BF16)),
          0,
          "param",
        );
    }
  });
});

test("NaN and infinity come through the norm of the gradients", () => {
  onEach((b) => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const x = numbers(5000, 1);
      x[4321] = bad;
      for (const [, dt] of DTYPES)
        expect(Number.isFinite(b.device.sumSquares(b.put(x.slice(), dt), 5000, dt))).toBe(false);
    }
  });
});

test("Philox draws: a function of (seed, stream, index), uniform, and normal", () => {
  onEach((b) => {
    const n = 20000;
    const [u, part, z] = [b.alloc(n), b.alloc(8), b.alloc(n)];
    b.device.randomUniform(u, n, 7, 3);
    b.device.randomUniform(part, 8, 7, 3);
    const uniform = b.get(u, n);
    expect(Array.from(b.get(part, 8))).toEqual(Array.from(uniform.subarray(0, 8)));
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...uniform)).toBeLessThan(1);
    const counts = new Array(10).fill(0);
    for (const x of uniform) counts[Math.floor(x * 10)]++;
    const chi2 = counts.reduce((s, c) => s + (c - n / 10) ** 2 / (n / 10), 0);
    expect(chi2).toBeLessThan(27.9); // 99.9% of 9 degrees of freedom
    b.device.randomNormal(z, n, 7, 4, 1, 2, F32);
    const normal = b.get(z, n);
    const mean = normal.reduce((s, x) => s + x, 0) / n;
    const variance = normal.reduce((s, x) => s + (x - mean) ** 2, 0) / n;
    expect(Math.abs(mean - 1)).toBeLessThan(0.06);
    expect(Math.abs(variance - 4)).toBeLessThan(0.2);
    b.device.randomUniform(u, n, 7, 5);
    expect(b.get(u, 4)).not.toEqual(uniform.subarray(0, 4));
  });
});

test("Philox 4x32-10 gives the published vector of key 0 and counter 0", () => {
  onEach((b) => {
    const u = b.alloc(4);
    b.device.randomUniform(u, 4, 0, 0);
    // Random123's kat_vectors: 6627e8d5 e169c58d bc57ac4c 9b00dbd8; a draw keeps the upper 24 bits.
    const words = [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8];
    expect(Array.from(b.get(u, 4))).toEqual(words.map((w) => (w >>> 8) / 2 ** 24));
  });
});
