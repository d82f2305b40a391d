/** AdamW against PyTorch's order of operations in float64, over several steps. */
import { expect, test } from "vitest";
import { BF16, type DType, F32 } from "../../src/device/device.js";
import {
  type Bench,
  DTYPES,
  expectClose,
  expectSameOnAnyThreads,
  held,
  numbers,
  onEach,
  rounded,
} from "./reference.js";

interface Settings {
  lr: number;
  b1: number;
  b2: number;
  eps: number;
  decay: number;
  scale: number;
}
const SETTINGS: Settings[] = [
  { lr: 0.01, b1: 0.9, b2: 0.95, eps: 1e-8, decay: 0.1, scale: 0.5 },
  { lr: 3e-4, b1: 0.9, b2: 0.999, eps: 1e-6, decay: 0, scale: 1 },
];
const gradientOf = (n: number, step: number, dt: DType): Float64Array => held(numbers(n, 10 + step), dt);

/** torch.optim.AdamW, single tensor: decay, lerp of m, v, then p -= lr / c1 * m / (sqrt(v) / sqrt(c2) + eps). */
function reference(n: number, steps: number, dt: DType, s: Settings) {
  const master = held(numbers(n, 1), F32);
  const [m, v] = [new Float64Array(n), new Float64Array(n)];
  for (let step = 1; step <= steps; step++) {
    const gradient = gradientOf(n, step, dt);
    for (let i = 0; i < n; i++) {
      const g = gradient[i] * s.scale;
      master[i] *= 1 - s.lr * s.decay;
      m[i] += (1 - s.b1) * (g - m[i]);
      v[i] = s.b2 * v[i] + (1 - s.b2) * g * g;
      const denominator = Math.sqrt(v[i]) / Math.sqrt(1 - s.b2 ** step) + s.eps;
      master[i] -= ((s.lr / (1 - s.b1 ** step)) * m[i]) / denominator;
    }
  }
  return { master, m, v };
}

function run(b: Bench, n: number, steps: number, dt: DType, s: Settings) {
  const [master, m, v] = [b.put(numbers(n, 1), F32), b.put(new Float64Array(n), F32), b.put(new Float64Array(n), F32)];
  const param = dt === F32 ? master : b.alloc(n, dt);
  for (let step = 1; step <= steps; step++) {
    const g = b.put(gradientOf(n, step, dt), dt);
    const [c1, c2] = [1 - s.b1 ** step, 1 - s.b2 ** step];
    b.device.adamw(n, master, m, v, g, param, dt, s.lr, s.b1, s.b2, s.eps, s.decay, c1, c2, s.scale);
  }
  return { master, m, v, param };
}

test.each(DTYPES)("master weights and both moments, %s gradients", (_, dt) => {
  for (const settings of SETTINGS)
    for (const n of [1, 3, 17, 65, 20_001]) {
      const expected = reference(n, 4, dt, settings);
      onEach((b) => {
        const { master, m, v, param } = run(b, n, 4, dt, settings);
        const what = `${n} b2 ${settings.b2}`;
        expectClose(b.get(m, n), expected.m, 1e-6, `m ${what}`);
        const largest = Math.max(...expected.v);
        b.get(v, n).forEach((x, i) => {
          if (!(Math.abs(x - expected.v[i]) <= 1e-6 * largest))
            throw new Error(`v[${i}] ${what}: ${x}, ${expected.v[i]}`);
        });
        // What the steps moved, not where they began: an error of the update cannot hide behind the weight.
        const start = held(numbers(n, 1), F32);
        const moved = (x: Float64Array): Float64Array => x.map((p, i) => (p - start[i]) / settings.lr);
        const rounding = 2 ** -24 / settings.lr; // of the weight itself, each step
        const share = 1e-6 + 4 * rounding;
        expectClose(moved(b.get(master, n)), moved(expected.master), share, `update ${what}`);
        if (dt === BF16) expectClose(b.get(param, n, BF16), held(b.get(master, n), BF16), 0, `param ${what}`);
      });
    }
});

test("a gradient of 1 moves the first step by the learning rate, with 1 - 0.999 to all digits", () => {
  onEach((b) => {
    const [p, m, v] = [
      b.put(new Float64Array(1), F32),
      b.put(new Float64Array(1), F32),
      b.put(new Float64Array(1), F32),
    ];
    const one = b.put(new Float64Array(1).fill(1), F32);
    b.device.adamw(1, p, m, v, one, p, F32, 1e-3, 0.9, 0.999, 0, 0, 0.1, 0.001, 1);
    expect(Math.abs(b.get(p, 1)[0] / -1e-3 - 1)).toBeLessThan(3e-7);
    expect(b.get(v, 1)[0]).toBe(rounded(0.001, F32));
  });
});

test("a weight without gradient only decays; NaN and infinity are not hidden", () => {
  onEach((b) => {
    const [p, m, v] = [
      b.put(Float64Array.from([2, 2, 2]), F32),
      b.put(new Float64Array(3), F32),
      b.put(new Float64Array(3), F32),
    ];
    const g = b.put(Float64Array.from([0, Number.NaN, Number.POSITIVE_INFINITY]), F32);
    b.device.adamw(3, p, m, v, g, p, F32, 0.1, 0.9, 0.95, 1e-8, 0.5, 0.1, 0.05, 1);
    const [decayed, ...bad] = b.get(p, 3);
    expect(decayed).toBeCloseTo(2 * 0.95, 6);
    expect(bad.every(Number.isNaN)).toBe(true);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const n = 50_001;
    const { master, m, v, param } = run(b, n, 2, dt, SETTINGS[0]);
    return b.bytes(master, n) + b.bytes(m, n) + b.bytes(v, n) + b.bytes(param, n, dt);
  });
});
