/** AdamW against PyTorch's order of operations in float64, over several steps. */
import { expect, test } from "vitest";
import { BF16, type DType, F32, type Ptr } from "../../src/device/device.js";
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

/** The nearest bf16 number, of two the one further from 0. */
function upper(master: number): number {
  const word = new DataView(new ArrayBuffer(4));
  word.setFloat32(0, master);
  word.setUint32(0, ((word.getUint32(0) + 0x8000) & 0xffff0000) >>> 0);
  return word.getFloat32(0);
}

function run(b: Bench, n: number, steps: number, dt: DType, s: Settings) {
  const [master, m, v] = [b.put(numbers(n, 1), F32), b.put(new Float64Array(n), F32), b.put(new Float64Array(n), F32)];
  const param = dt === F32 ? master : b.alloc(n, dt);
  const low = dt === F32 ? 0 : b.alloc(n, BF16);
  if (low) b.device.splitMaster(master, param, low, n);
  for (let step = 1; step <= steps; step++) {
    const g = b.put(gradientOf(n, step, dt), dt);
    const [c1, c2] = [1 - s.b1 ** step, 1 - s.b2 ** step];
    b.device.adamw(n, param, low, m, v, 0, g, dt, s.lr, s.b1, s.b2, s.eps, s.decay, c1, c2, s.scale, 0);
  }
  if (low) b.device.joinMaster(param, low, master, n);
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
        if (dt === BF16) expectClose(b.get(param, n, BF16), b.get(master, n).map(upper), 0, `param ${what}`);
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
    b.device.adamw(1, p, 0, m, v, 0, one, F32, 1e-3, 0.9, 0.999, 0, 0, 0.1, 0.001, 1, 0);
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
    b.device.adamw(3, p, 0, m, v, 0, g, F32, 0.1, 0.9, 0.95, 1e-8, 0.5, 0.1, 0.05, 1, 0);
    const [decayed, ...bad] = b.get(p, 3);
    expect(decayed).toBeCloseTo(2 * 0.95, 6);
    expect(bad.every(Number.isNaN)).toBe(true);
  });
});

test("a master weight comes back to the bit from its bf16 parameter and its lower half", () => {
  // biome-ignore format: a table
  const special = [
    [0x3f800000, 0x3f80], [0x3f807fff, 0x3f80], [0x3f808000, 0x3f81], [0x3f818000, 0x3f82], [0x3f80ffff, 0x3f81], // ties away from 0
    [0xbf808000, 0xbf81], [0x00000001, 0x0000], [0x00008000, 0x0001], [0x807fffff, 0x8080], [0x80000000, 0x8000], // subnormal, -0
    [0x7f7fffff, 0x7f80], [0x7f800000, 0x7f80], [0xff800000, 0xff80], // the largest, infinity
  ];
  const bits = Uint32Array.from({ length: 20_000 }, (_, i) => special[i]?.[0] ?? Math.imul(i, 0x9e3779b1) >>> 0);
  const notANumber = (x: number): boolean => (x & 0x7fffffff) > 0x7f800000;
  onEach((b) => {
    const n = bits.length;
    const [master, param, low, again] = [b.alloc(n, F32), b.alloc(n, BF16), b.alloc(n, BF16), b.alloc(n, F32)];
    b.device.i32(master, n).set(bits);
    b.device.splitMaster(master, param, low, n);
    b.device.joinMaster(param, low, again, n);
    const words = b.device.u16(param, n);
    for (const [i, [, rounded]] of special.entries()) expect(words[i]).toBe(rounded);
    const joined = Uint32Array.from(b.device.i32(again, n));
    for (const [i, x] of bits.entries()) {
      const right = joined[i] === (notANumber(x) ? 0x7fc00000 : x);
      if (!right) throw new Error(`0x${x.toString(16)} came back as 0x${joined[i].toString(16)}`);
    }
  });
});

test.each(DTYPES)(
  "the average is decay average + (1 - decay) master, of the master that has just changed, %s",
  (_, dt) => {
    const n = 1000;
    onEach((b) => {
      const zeros = (): Ptr => b.put(new Float64Array(n), F32);
      const [param, m, v] = [b.put(numbers(n, 1), dt), zeros(), zeros()];
      const [low, ema, master] = [
        dt === F32 ? 0 : b.put(new Float64Array(n), BF16),
        b.put(numbers(n, 2), F32),
        b.alloc(n, F32),
      ];
      const before = b.get(ema, n);
      const g = b.put(gradientOf(n, 1, dt), dt);
      b.device.adamw(n, param, low, m, v, ema, g, dt, 0.01, 0.9, 0.95, 1e-8, 0, 0.1, 0.05, 1, 0.75);
      if (low) b.device.joinMaster(param, low, master, n);
      const weights = b.get(low ? master : param, n);
      expectClose(
        b.get(ema, n),
        before.map((x, i) => 0.75 * x + 0.25 * weights[i]),
        1e-6,
        "average",
      );
    });
  },
);

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const n = 50_001;
    const { master, m, v, param } = run(b, n, 2, dt, SETTINGS[0]);
    return b.bytes(master, n) + b.bytes(m, n) + b.bytes(v, n) + b.bytes(param, n, dt);
  });
});
