/** Causal packed attention: forward and every gradient against float64; and with a KV cache. */
import { expect, test } from "vitest";
import { type DType, F32, type Ptr } from "../../src/device/device.js";
import { attentionGradient } from "./gradients.js";
import {
  attention,
  type Bench,
  DTYPES,
  expectClose,
  expectSameOnAnyThreads,
  held,
  numbers,
  onEach,
  type Shape,
  tolerance,
} from "./reference.js";

const CASES: [Shape, number[]][] = [
  [{ H: 1, KV: 1, D: 8 }, [0, 1]],
  [{ H: 2, KV: 1, D: 8 }, [0, 3]],
  [{ H: 4, KV: 4, D: 8 }, [0, 17, 17, 20]], // the second sequence is empty
  [{ H: 4, KV: 2, D: 16 }, [0, 1, 18, 21]],
  [{ H: 2, KV: 2, D: 24 }, [0, 65]],
  [{ H: 3, KV: 1, D: 24 }, [0, 64, 66]],
  [{ H: 3, KV: 1, D: 64 }, [0, 64, 70, 199]],
  [{ H: 2, KV: 2, D: 64 }, [0, 129]],
  [{ H: 4, KV: 2, D: 32 }, Array.from({ length: 26 }, (_, s) => (s * (s + 3)) / 2)], // many short ones: an item has all heads of one
];
const widthOf = ({ H, KV, D }: Shape): number => (H + 2 * KV) * D;

/** Rotary angles of each token, n radians for pair i of the token at position n, divided by i + 1; `turn` 0: none at all. */
function anglesOf(b: Bench, N: number, D: number, turn: number): [pos: Ptr, cos: Ptr, sin: Ptr] {
  const table = (f: (x: number) => number): Float64Array =>
    Float64Array.from({ length: (N * D) / 2 }, (_, k) => f((turn * Math.floor(k / (D / 2))) / ((k % (D / 2)) + 1)));
  return [b.ints(Array.from({ length: N }, (_, n) => n)), b.put(table(Math.cos), F32), b.put(table(Math.sin), F32)];
}
function forward(b: Bench, { H, KV, D }: Shape, cu: number[], qkv: Float64Array, dt: DType, turn = 0) {
  const N = cu[cu.length - 1];
  const [p, y, lse] = [b.put(qkv, dt), b.alloc(N * H * D, dt), b.alloc(H * N)];
  const pcu = b.ints(cu);
  const angles = anglesOf(b, N, D, turn);
  b.device.attentionForward(p, ...angles, y, lse, pcu, cu.length - 1, N, H, KV, D, 1 / Math.sqrt(D), dt);
  return { p, y, lse, pcu, N, angles };
}
function backward(b: Bench, shape: Shape, cu: number[], ran: ReturnType<typeof forward>, dy: Float64Array, dt: DType) {
  const { H, KV, D } = shape;
  const { p, y, lse, pcu, N, angles } = ran;
  const [pdy, dqkv] = [b.put(dy, dt), b.alloc(N * widthOf(shape), dt)];
  b.device.attentionBackward(pdy, p, ...angles, y, lse, dqkv, pcu, cu.length - 1, N, H, KV, D, 1 / Math.sqrt(D), dt);
  return dqkv;
}

test.each(DTYPES)("forward and backward, packed sequences, grouped queries, %s", (_, dt) => {
  for (const [shape, cu] of CASES) {
    const { H, D } = shape;
    const N = cu[cu.length - 1];
    const qkv = held(numbers(N * widthOf(shape), 1, 2), dt);
    const dy = held(numbers(N * H * D, 2), dt);
    const expected = { y: attention(qkv, cu, shape), ...attentionGradient(qkv, dy, cu, shape) };
    const what = `H ${H} KV ${shape.KV} D ${D} cu ${cu}`;
    onEach((b) => {
      const ran = forward(b, shape, cu, qkv, dt);
      expectClose(b.get(ran.y, N * H * D, dt), expected.y, tolerance(dt), `y ${what}`);
      expectClose(b.get(ran.lse, H * N), expected.lse, 1e-5, `lse ${what}`);
      const dqkv = backward(b, shape, cu, ran, dy, dt);
      expectClose(b.get(dqkv, N * widthOf(shape), dt), expected.dqkv, tolerance(dt), `dqkv ${what}`);
    });
  }
});

test.each(DTYPES)("queries and keys are rotated in place, their gradients back, %s", (_, dt) => {
  // One sequence, whose key-value heads several items share; and so many that they do not.
  for (const cu of [[0, 40], Array.from({ length: 21 }, (_, s) => 3 * s)])
    onEach((b) => {
      const shape = { H: 4, KV: 2, D: 16 };
      const [N, width] = [cu[cu.length - 1], widthOf(shape)];
      const [qkv, dy] = [held(numbers(N * width, 5, 2), dt), held(numbers(N * 64, 6), dt)];
      const ran = forward(b, shape, cu, qkv, dt, 1);
      const p = b.put(qkv, dt);
      b.device.rope(p, width, ...ran.angles, N, 6, 16, 0, dt);
      expect(b.bytes(ran.p, N * width, dt)).toBe(b.bytes(p, N * width, dt));
      const plain = forward(b, shape, cu, b.get(p, N * width, dt), dt);
      expect(b.bytes(ran.y, N * 64, dt)).toBe(b.bytes(plain.y, N * 64, dt));
      const [own, back] = [backward(b, shape, cu, ran, dy, dt), backward(b, shape, cu, plain, dy, dt)];
      b.device.rope(back, width, ...ran.angles, N, 6, 16, 1, dt);
      expectClose(b.get(own, N * width, dt), b.get(back, N * width, dt), tolerance(dt), `dqkv ${cu.length}`);
    });
});

test("a sequence is the same alone and in company, backward too", () => {
  onEach((b) => {
    const shape = { H: 4, KV: 2, D: 16 };
    const [width, out] = [widthOf(shape), 64];
    const [qkv, dy] = [numbers(90 * width, 3), numbers(90 * out, 4)];
    const packed = forward(b, shape, [0, 37, 90], qkv, F32);
    const [y, gradient] = [b.get(packed.y, 90 * out), backward(b, shape, [0, 37, 90], packed, dy, F32)];
    const dqkv = b.get(gradient, 90 * width);
    for (const [from, to] of [
      [0, 37],
      [37, 90],
    ] as const) {
      const n = to - from;
      const alone = forward(b, shape, [0, n], qkv.slice(from * width, to * width), F32);
      expect(b.get(alone.y, n * out)).toEqual(y.subarray(from * out, to * out));
      const own = backward(b, shape, [0, n], alone, dy.slice(from * out, to * out), F32);
      expect(b.get(own, n * width)).toEqual(dqkv.subarray(from * width, to * width));
    }
  });
});

test.each(DTYPES)(
  "numbers that are none stay in their sequence, before, behind and in what threads keep, %s",
  (_, dt) => {
    const shape = { H: 4, KV: 2, D: 32 };
    const [width, out] = [widthOf(shape), 128];
    // Many and few sequences; every third one is spoilt. Their blocks of rows reach into each other.
    for (const lengths of [[21, 40, 33], Array.from({ length: 27 }, (_, s) => 1 + ((7 * s) % 45))]) {
      const cu = [0];
      for (const n of lengths) cu.push(cu[cu.length - 1] + n);
      const N = cu[cu.length - 1];
      const [qkv, dy] = [numbers(N * width, 3), numbers(N * out, 4)];
      const spoilt = (s: number): boolean => s % 3 === 1;
      const of = (token: number): number => cu.findIndex((end) => token < end) - 1;
      const bad = Float64Array.from(qkv, (x, i) => (spoilt(of(Math.floor(i / width))) ? Number.NaN : x));
      onEach((b) => {
        const [good, other] = [qkv, bad].map((numbers) => {
          const ran = forward(b, shape, cu, numbers.slice(), dt);
          return { y: b.get(ran.y, N * out, dt), d: b.get(backward(b, shape, cu, ran, dy.slice(), dt), N * width, dt) };
        });
        for (const s of lengths.keys()) {
          const [from, to] = [cu[s], cu[s + 1]];
          const parts = (of: typeof good): Float64Array[] => [
            of.y.subarray(from * out, to * out),
            of.d.subarray(from * width, to * width),
          ];
          if (spoilt(s)) expect(parts(other).every((part) => part.every(Number.isNaN))).toBe(true);
          else expect(parts(other)).toEqual(parts(good));
        }
      });
    }
  },
);

test("no token sees a later one", () => {
  onEach((b) => {
    const shape = { H: 2, KV: 1, D: 8 };
    const qkv = numbers(80 * 32, 5);
    const before = b.get(forward(b, shape, [0, 80], qkv, F32).y, 80 * 16);
    for (const from of [1, 64, 79]) {
      const other = Float64Array.from(qkv, (x, i) => (i < from * 32 ? x : -3 * x));
      const y = b.get(forward(b, shape, [0, 80], other, F32).y, 80 * 16);
      expect(y.subarray(0, from * 16)).toEqual(before.subarray(0, from * 16));
      expect(y.subarray(from * 16)).not.toEqual(before.subarray(from * 16));
    }
  });
});

test("scores of ten thousand do not overflow, forward or backward", () => {
  onEach((b) => {
    const shape = { H: 1, KV: 1, D: 8 };
    const cu = [0, 70];
    const qkv = held(numbers(70 * 24, 4, 120), F32);
    const dy = held(numbers(70 * 8, 5), F32);
    const { lse, dqkv } = attentionGradient(qkv, dy, cu, shape);
    expect(Math.max(...lse)).toBeGreaterThan(1e4);
    const ran = forward(b, shape, cu, qkv, F32);
    // A score of 1e4 in fp32 is right to 1e-3, and so are the shares that it gives.
    expectClose(b.get(ran.y, 70 * 8), attention(qkv, cu, shape), 4e-3, "y");
    expectClose(b.get(ran.lse, 70), lse, 1e-5, "lse");
    expectClose(b.get(backward(b, shape, cu, ran, dy, F32), 70 * 24), dqkv, 4e-3, "dqkv");
  });
});

test.each([Number.NaN, Number.POSITIVE_INFINITY])("a query of %d is seen in its token, and only there", (bad) => {
  onEach((b) => {
    const shape = { H: 2, KV: 1, D: 8 };
    const cu = [0, 10, 20];
    const qkv = numbers(20 * 32, 4);
    qkv[12 * 32] = bad; // first head of token 12
    const ran = forward(b, shape, cu, qkv, F32);
    const rows = Array.from({ length: 20 }, (_, i) => b.get(ran.y, 320).subarray(i * 16, (i + 1) * 16));
    rows.forEach((row, i) => {
      expect([i, row.subarray(0, 8).every(Number.isFinite)]).toEqual([i, i !== 12]);
      expect(row.subarray(8).every(Number.isFinite)).toBe(true);
    });
    const dqkv = b.get(backward(b, shape, cu, ran, numbers(320, 6), F32), 20 * 32);
    expect(dqkv.subarray(0, 10 * 32).every(Number.isFinite)).toBe(true);
    expect(dqkv.subarray(10 * 32).every(Number.isFinite)).toBe(false);
  });
});

test.each(DTYPES)("NaN that an earlier call left in the engine's buffers is not seen in the next, %s", (_, dt) => {
  onEach((b) => {
    const shape = { H: 2, KV: 1, D: 24 };
    const width = widthOf(shape);
    const [qkv, dy] = [held(numbers(67 * width, 7), dt), held(numbers(67 * 48, 8), dt)];
    const both = (x: Float64Array, g: Float64Array) => {
      const ran = forward(b, shape, [0, 67], x, dt);
      return b.bytes(ran.y, 67 * 48, dt) + b.bytes(backward(b, shape, [0, 67], ran, g, dt), 67 * width, dt);
    };
    const before = both(qkv, dy);
    both(new Float64Array(67 * width).fill(Number.NaN), new Float64Array(67 * 48).fill(Number.NaN));
    expect(both(qkv, dy)).toBe(before);
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  const shape = { H: 4, KV: 2, D: 16 };
  // Few sequences are cut into heads; 20 of them are enough for two threads to take them whole, and too few for three.
  for (const cu of [[0, 70, 71, 150], Array.from({ length: 21 }, (_, s) => (s * (s + 1)) / 2)]) {
    const N = cu[cu.length - 1];
    expectSameOnAnyThreads((b) => {
      const ran = forward(b, shape, cu, numbers(N * 128, 5), dt);
      const dqkv = backward(b, shape, cu, ran, numbers(N * 64, 6), dt);
      return b.bytes(ran.y, N * 64, dt) + b.bytes(ran.lse, 4 * N) + b.bytes(dqkv, N * 128, dt);
    });
  }
});
