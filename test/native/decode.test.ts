/** Products of few rows, as decoding has them, against float64: every size around the blocks' edges, every weight type. */
import { expect, test } from "vitest";
import { BF12, BF16, type DType, F32, INT8, type WeightType } from "../../src/device/device.js";
import {
  type Bench,
  DTYPES,
  expectClose,
  expectSameOnAnyThreads,
  matmul,
  numbers,
  onEach,
  rounded,
  swiglu,
  tolerance,
} from "./reference.js";

/** Weight types, each with the type of x: int8 weights serve both, packed ones bf16 where the engine has them. */
const TYPES = [
  ["fp32", F32, F32],
  ["bf16", BF16, BF16],
  ["int8 beside fp32", INT8, F32],
  ["int8 beside bf16", INT8, BF16],
  ["bf16 in twelve bits", BF12, BF16],
] as const;
const padded = (K: number): number => Math.ceil(K / 64) * 64;

interface Weights {
  ptr: number;
  scale: number;
  type: WeightType;
  /** What the matrix is worth as it is stored. */
  values: Float64Array;
}
/** W[N, K] in twelve bits, where the engine has them and W fits. */
function packed(b: Bench, ptr: number, N: number, K: number): number | undefined {
  const bytes = b.device.bf12Bytes(N, K);
  if (bytes === 0) return undefined;
  const to = b.alloc(bytes / 4);
  return b.device.bf12Pack(ptr, to, N, K) === 0 ? to : undefined;
}
/** Puts W[N, K] on the device; int8 by the engine's own kernel. */
function weights(b: Bench, W: Float64Array, N: number, K: number, wt: WeightType, dt: DType): Weights {
  const ptr = b.put(W, dt);
  const twelve = wt === BF12 ? packed(b, ptr, N, K) : undefined;
  if (twelve !== undefined) return { ptr: twelve, scale: 0, type: BF12, values: W };
  if (wt !== INT8) return { ptr, scale: 0, type: dt, values: W };
  const bytes = N * padded(K);
  const q = b.alloc(Math.ceil(bytes / 4));
  const scale = b.alloc(N);
  b.device.quantizeRows(ptr, q, scale, N, K, dt);
  const stored = new Int8Array(b.device.bytes(q, bytes).slice().buffer);
  const scales = b.get(scale, N);
  const values = Float64Array.from({ length: N * K }, (_, i) => {
    const row = Math.floor(i / K);
    return stored[row * padded(K) + (i % K)] * scales[row];
  });
  return { ptr: q, scale, type: INT8, values };
}

/** The largest error that rounding x to int8 in groups of 64 can make, of any result: sum of |w| half a step of the group. */
function quantizationBound(x: Float64Array, W: Float64Array, B: number, N: number, K: number): number {
  let worst = 0;
  for (let i = 0; i < B; i++)
    for (let j = 0; j < N; j++) {
      let sum = 0;
      for (let g = 0; g < K; g += 64) {
        let most = 0;
        let weight = 0;
        for (let k = g; k < Math.min(K, g + 64); k++) {
          most = Math.max(most, Math.abs(x[i * K + k]));
          weight += Math.abs(W[j * K + k]);
        }
        sum += (weight * most) / 254;
      }
      worst = Math.max(worst, sum);
    }
  return worst;
}
/** As expectClose; with int8 weights x may have been rounded to int8 as well, which has a bound of its own. */
function expectProduct(actual: Float64Array, expected: Float64Array, share: number, bound: number, what: string): void {
  const largest = expected.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-2);
  expectClose(actual, expected, share + bound / largest, what);
}

const SIZES = [1, 3, 17, 65];

test.each(TYPES)("y = x W' at odd sizes, one row to 33, %s", (_, wt, dt) => {
  for (const N of SIZES)
    for (const K of SIZES)
      for (const B of [1, 2, 3, 4, 5, 7, 8, 33]) {
        const [x, W] = [numbers(B * K, 1), numbers(N * K, 2)];
        onEach((b) => {
          const px = b.put(x, dt);
          const w = weights(b, W, N, K, wt, dt);
          const y = b.alloc(B * N);
          b.device.decodeLinear(px, w.ptr, w.scale, w.type, 0, 1, y, F32, B, N, K, dt);
          const expected = matmul(x, w.values, B, N, K, 0, 1);
          const bound = wt === INT8 ? quantizationBound(x, w.values, B, N, K) : 0;
          expectProduct(b.get(y, B * N), expected, 2e-5, bound, `B ${B} N ${N} K ${K}`);
        });
      }
});

test.each(TYPES)("more than an item and more than a panel of rows; alpha and a residual, %s", (_, wt, dt) => {
  const [B, N, K] = [33, 150, 2100];
  const [x, W, R] = [numbers(B * K, 1), numbers(N * K, 2), numbers(B * N, 3, 20)];
  onEach((b) => {
    const [px, pr] = [b.put(x, dt), b.put(R, dt)];
    const w = weights(b, W, N, K, wt, dt);
    const y = b.alloc(B * N, dt);
    b.device.decodeLinear(px, w.ptr, w.scale, w.type, pr, 0.5, y, dt, B, N, K, dt);
    const expected = matmul(x, w.values, B, N, K, 0, 1).map((v, i) => 0.5 * v + R[i]);
    const bound = wt === INT8 ? quantizationBound(x, w.values, B, N, K) / 2 : 0;
    expectProduct(b.get(y, B * N, dt), expected, tolerance(dt), bound, "y");
  });
});

test.each(DTYPES)("queries and keys are rotated, keys and values go to the cache and nowhere else, %s", (_, dt) => {
  for (const { H, KV, D, B } of [
    { H: 1, KV: 1, D: 2, B: 1 },
    { H: 4, KV: 2, D: 24, B: 5 },
    { H: 3, KV: 1, D: 64, B: 33 },
  ]) {
    const [K, maxT] = [40, 9];
    const [width, half] = [(H + 2 * KV) * D, D / 2];
    const [x, W, R] = [numbers(B * K, 1), numbers(width * K, 2), numbers(B * width, 3)];
    const past = Array.from({ length: B }, (_, i) => (i * 5) % maxT);
    /** With many rows: the cache has them in another order. */
    const order = Array.from({ length: B }, (_, r) => (B > 5 ? (r + 2) % B : r));
    const angles = numbers(maxT * half, 4, 3).map((a) => rounded(a, F32));
    const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)];
    const cache = B * KV * maxT * D;
    onEach((b) => {
      const [px, pw, pr] = [b.put(x, dt), b.put(W, dt), b.put(R, dt)];
      const [pc, ps, pp] = [b.put(cos, F32), b.put(sin, F32), b.ints(past)];
      const q = b.alloc(B * H * D, dt);
      const [k, v] = [b.put(new Float64Array(cache).fill(7), dt), b.put(new Float64Array(cache).fill(7), dt)];
      b.device.decodeQkv(px, pw, 0, dt, pr, pp, B > 5 ? b.ints(order) : 0, pc, ps, q, k, v, B, maxT, K, H, KV, D, dt);
      const all = matmul(x, W, B, width, K, 0, 1).map((y, i) => y + R[i]);
      const expected = { q: new Float64Array(B * H * D), k: new Float64Array(cache), v: new Float64Array(cache) };
      expected.k.fill(7);
      expected.v.fill(7);
      for (let r = 0; r < B; r++)
        for (let h = 0; h < H + 2 * KV; h++) {
          const head = all.slice(r * width + h * D, r * width + (h + 1) * D);
          if (h < H + KV)
            for (let i = 0; i < half; i++) {
              const [c, s] = [cos[past[r] * half + i], sin[past[r] * half + i]];
              const [a, z] = [head[i], head[i + half]];
              head[i] = a * c - z * s;
              head[i + half] = z * c + a * s;
            }
          if (h < H) expected.q.set(head, (r * H + h) * D);
          else {
            const to = h < H + KV ? expected.k : expected.v;
            to.set(head, ((order[r] * KV + ((h - H) % KV)) * maxT + past[r]) * D);
          }
        }
      expectClose(b.get(q, B * H * D, dt), expected.q, tolerance(dt), "q");
      expectClose(b.get(k, cache, dt), expected.k, tolerance(dt), "k");
      expectClose(b.get(v, cache, dt), expected.v, tolerance(dt), "v");
    });
  }
});

test.each(DTYPES)("SwiGLU of gate and up, with what adapters add, %s", (_, dt) => {
  for (const { B, F, K } of [
    { B: 1, F: 1, K: 3 },
    { B: 3, F: 65, K: 17 },
    { B: 33, F: 100, K: 96 },
  ]) {
    const [x, W, R] = [numbers(B * K, 1), numbers(2 * F * K, 2), numbers(B * 2 * F, 3, 9)];
    onEach((b) => {
      const [px, pw, pr] = [b.put(x, dt), b.put(W, dt), b.put(R, dt)];
      const product = matmul(x, W, B, 2 * F, K, 0, 1);
      for (const add of [0, pr]) {
        const y = b.alloc(B * F, dt);
        b.device.decodeSwiglu(px, pw, 0, dt, add, y, B, F, K, dt);
        const gu = add ? product.map((v, i) => v + R[i]) : product;
        expectClose(b.get(y, B * F, dt), swiglu(gu, F), tolerance(dt), `B ${B} F ${F} K ${K}`);
      }
    });
  }
});

test("int8: nearest multiples of a row's largest / 127, zeros behind a row, a row of zeros", () => {
  onEach((b) => {
    const [N, K] = [3, 70];
    const W = numbers(N * K, 5, 0.3);
    W.fill(0, K, 2 * K);
    const ptr = b.put(W, F32);
    const [q, scale] = [b.alloc((N * 128) / 4), b.alloc(N)];
    b.device.quantizeRows(ptr, q, scale, N, K, F32);
    const stored = new Int8Array(b.device.bytes(q, N * 128).slice().buffer);
    const scales = b.get(scale, N);
    for (let r = 0; r < N; r++) {
      const row = W.subarray(r * K, (r + 1) * K);
      const most = row.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
      expect(scales[r]).toBeCloseTo(most / 127, 9);
      for (let k = 0; k < 128; k++) {
        const exact = k < K && most > 0 ? (row[k] * 127) / most : 0;
        expect(Math.abs(stored[r * 128 + k] - exact)).toBeLessThanOrEqual(0.5001);
      }
    }
  });
});

test("by vdpbf16ps the products of a token that is decoded are those of the forward pass, to the bit", () => {
  for (const [B, N, K] of [
    [1, 64, 64],
    [5, 96, 100],
    [17, 100, 2048],
    [70, 33, 770],
  ])
    onEach((b) => {
      if (b.device.isa !== "avx512bf16") return;
      const [x, W] = [b.put(numbers(B * K, 1), BF16), b.put(numbers(N * K, 2), BF16)];
      const [decoded, forward] = [b.alloc(B * N), b.alloc(B * N)];
      b.device.decodeLinear(x, W, 0, BF16, 0, 1, decoded, F32, B, N, K, BF16);
      b.device.matmul(0, 1, B, N, K, 1, x, BF16, K, W, BF16, K, 0, forward, F32, N, 0, 1, 0, 0, 0);
      expect(b.bytes(decoded, B * N)).toEqual(b.bytes(forward, B * N));
    });
});

/** Weights as they may come: numbers of all sizes here and there, zeros, subnormal ones. Some sizes are of whole strips, some are not. */
test("in twelve bits: every product is the same bytes as of the weights themselves", () => {
  for (const [heads, D, K, B] of [
    [3, 32, 96, 1],
    [3, 64, 100, 17],
    [5, 96, 770, 40],
  ]) {
    const N = heads * D;
    const W = numbers(N * K, 5, 0.1);
    for (let i = 0; i < N * K; i += 997) W[i] *= 2 ** -((i % 130) + 1);
    for (let i = 5; i < N * K; i += 2503) W[i] = 0;
    const [maxT, past] = [7, Array.from({ length: B }, (_, i) => i % 7)];
    const angles = numbers((maxT * D) / 2, 4, 3);
    onEach((b) => {
      const [x, pw, to] = [b.put(numbers(B * K, 1), BF16), b.put(W, BF16), b.alloc(b.device.bf12Bytes(N, K) / 4 || 1)];
      if (b.device.bf12Bytes(N, K) === 0) return;
      expect(b.device.bf12Pack(pw, to, N, K)).toBe(0);
      const [cos, sin, pp] = [b.put(angles.map(Math.cos), F32), b.put(angles.map(Math.sin), F32), b.ints(past)];
      const all = [pw, to].map((w, i) => {
        const type = i === 0 ? BF16 : BF12;
        const [y, q] = [b.alloc(B * N), b.alloc(B * D, BF16)];
        const [k, v] = [b.put(new Float64Array(B * maxT * N), BF16), b.put(new Float64Array(B * maxT * N), BF16)];
        b.device.decodeLinear(x, w, 0, type, 0, 1, y, F32, B, N, K, BF16);
        const found = [b.bytes(y, B * N)];
        b.device.decodeQkv(x, w, 0, type, 0, pp, 0, cos, sin, q, k, v, B, maxT, K, 1, (heads - 1) / 2, D, BF16);
        found.push(b.bytes(q, B * D, BF16), b.bytes(k, B * maxT * N, BF16), b.bytes(v, B * maxT * N, BF16));
        if (N % 64 === 0) {
          b.device.decodeSwiglu(x, w, 0, type, 0, y, B, N / 2, K, BF16);
          found.push(b.bytes(y, (B * N) / 2, BF16));
        }
        return found;
      });
      expect(all[1]).toEqual(all[0]);
    });
  }
});

test("in twelve bits: what has too many tiny numbers beside large ones does not fit, and is told", () => {
  const [N, K] = [70, 130];
  const W = numbers(N * K, 5).map((x, i) => (i % 3 === 0 ? x * 2 ** -40 : x));
  onEach((b) => {
    const bytes = b.device.bf12Bytes(N, K);
    if (bytes === 0) return;
    const [pw, to] = [b.put(W, BF16), b.alloc(bytes / 4)];
    expect(b.device.bf12Pack(pw, to, N, K)).toBe(Math.ceil(N / (b.device.bf12Rows() > 3 ? 32 : 4)));
    // A matrix of zeros fits, and so does one of nothing but tiny numbers.
    for (const small of [0, 2 ** -130]) {
      const p = b.put(new Float64Array(N * K).fill(small), BF16);
      expect(b.device.bf12Pack(p, to, N, K)).toBe(0);
    }
  });
});

test.each(TYPES)("NaN in x or W is not hidden and does not spread, %s", (_, wt, dt) => {
  const [B, N, K] = [6, 40, 70];
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY])
    onEach((b) => {
      const [x, W] = [numbers(B * K, 1), numbers(N * K, 2)];
      x[3 * K + 69] = bad;
      W[9 * K + 5] = bad;
      const px = b.put(x, dt);
      const w = weights(b, W, N, K, wt, dt);
      const y = b.alloc(B * N);
      b.device.decodeLinear(px, w.ptr, w.scale, w.type, 0, 1, y, F32, B, N, K, dt);
      b.get(y, B * N).forEach((v, i) => {
        const wanted = Math.floor(i / N) !== 3 && i % N !== 9;
        if (Number.isFinite(v) !== wanted) throw new Error(`result ${i} is ${v}`);
      });
    });
});

test.each(TYPES)("a row gives the same bytes alone, and among any number of others, %s", (_, wt, dt) => {
  const [N, K, most] = [70, 200, 33];
  const [x, W] = [numbers(most * K, 1), numbers(N * K, 2)];
  onEach((b) => {
    const w = weights(b, W, N, K, wt, dt);
    const px = b.put(x, dt);
    const size = dt === F32 ? 4 : 2;
    const y = b.alloc(most * N);
    b.device.decodeLinear(px, w.ptr, w.scale, w.type, 0, 1, y, F32, most, N, K, dt);
    for (let r = 0; r < most; r++)
      for (const B of [1, 2, 3, 4, 6].filter((n) => r + n <= most)) {
        const some = b.alloc(B * N);
        b.device.decodeLinear(px + r * K * size, w.ptr, w.scale, w.type, 0, 1, some, F32, B, N, K, dt);
        if (b.bytes(some, B * N) !== b.bytes(y + r * N * 4, B * N)) throw new Error(`row ${r} of ${B} differs`);
      }
  });
});

test.each(TYPES)("the number of threads does not change a byte, %s", (_, wt, dt) => {
  for (const [B, N, K] of [
    [1, 500, 64],
    [19, 131, 300],
  ])
    expectSameOnAnyThreads((b) => {
      const px = b.put(numbers(B * K, 1), dt);
      const w = weights(b, numbers(N * K, 2), N, K, wt, dt);
      const y = b.alloc(B * N, dt);
      b.device.decodeLinear(px, w.ptr, w.scale, w.type, 0, 1, y, dt, B, N, K, dt);
      return b.bytes(y, B * N, dt);
    });
});
