import { expect, test } from "vitest";
import { F32 } from "../../src/device/device.js";
import {
  attention,
  type Bench,
  DTYPES,
  dot,
  expectClose,
  expectSlopes,
  numbers,
  onEach,
  type Shape,
  tolerance,
} from "./reference.js";

const CASES: [Shape, number[]][] = [
  [{ H: 1, KV: 1, D: 8 }, [0, 1]],
  [{ H: 2, KV: 1, D: 8 }, [0, 3]],
  [{ H: 4, KV: 2, D: 16 }, [0, 1, 18, 21]],
  [{ H: 2, KV: 2, D: 24 }, [0, 65]],
  [{ H: 3, KV: 1, D: 64 }, [0, 64, 70, 199]],
];

function run(b: Bench, { H, KV, D }: Shape, cu: number[], qkv: Float64Array, dt: 0 | 1) {
  const N = cu[cu.length - 1];
  const [p, y, lse] = [b.put(qkv, dt), b.alloc(N * H * D, dt), b.alloc(H * N)];
  const pcu = b.ints(cu);
  b.device.attentionForward(p, y, lse, pcu, cu.length - 1, N, H, KV, D, 1 / Math.sqrt(D), dt);
  return { p, y, lse, pcu, N };
}

test.each(DTYPES)("forward and backward against float64, packed sequences, grouped queries, %s", (_, dt) => {
  onEach((b) => {
    for (const [shape, cu] of CASES) {
      const { H, KV, D } = shape;
      const width = (H + 2 * KV) * D;
      const qkv = numbers(cu[cu.length - 1] * width, 1, 2);
      const { p, y, lse, pcu, N } = run(b, shape, cu, qkv, dt);
      const what = `H ${H} KV ${KV} D ${D} cu ${cu}`;
      expectClose(b.get(y, N * H * D, dt), attention(qkv, cu, shape), tolerance(dt), `y ${what}`);
      const dy = numbers(N * H * D, 2);
      const [pdy, dqkv] = [b.put(dy, dt), b.alloc(N * width, dt)];
      b.device.attentionBackward(pdy, p, y, lse, dqkv, pcu, cu.length - 1, N, H, KV, D, 1 / Math.sqrt(D), dt);
      if (N <= 70)
        expectSlopes(
          b.get(dqkv, N * width, dt),
          () => dot(dy, attention(qkv, cu, shape)),
          qkv,
          tolerance(dt, 2e-4) * 2,
          `dqkv ${what}`,
        );
      else expect(b.get(dqkv, N * width, dt).every(Number.isFinite)).toBe(true);
    }
  });
});

test("a sequence is the same alone and in company", () => {
  onEach((b) => {
    const shape = { H: 4, KV: 2, D: 16 };
    const width = 8 * 16;
    const qkv = numbers(90 * width, 3);
    const packed = run(b, shape, [0, 37, 90], qkv, F32);
    const together = b.get(packed.y, 90 * 64);
    for (const [from, to] of [
      [0, 37],
      [37, 90],
    ] as const) {
      const alone = run(b, shape, [0, to - from], qkv.slice(from * width, to * width), F32);
      expect(b.get(alone.y, (to - from) * 64)).toEqual(together.subarray(from * 64, to * 64));
    }
  });
});

test("scores of ten thousand do not overflow, and NaN stays within its sequence", () => {
  onEach((b) => {
    const shape = { H: 1, KV: 1, D: 8 };
    const qkv = numbers(20 * 24, 4, 200);
    const big = run(b, shape, [0, 20], qkv, F32);
    expectClose(b.get(big.y, 160), attention(qkv, [0, 20], shape), 1e-3);
    qkv[12 * 24] = Number.NaN; // a query of token 12, in the second sequence
    const y = b.get(run(b, shape, [0, 10, 20], qkv, F32).y, 160);
    expect(y.subarray(0, 12 * 8).every(Number.isFinite)).toBe(true);
    expect(y[12 * 8]).toBeNaN();
  });
});

test.each(DTYPES)("with a KV cache, one token at a time or several, %s", (_, dt) => {
  onEach((b) => {
    const shape = { H: 4, KV: 2, D: 16 };
    const { H, KV, D } = shape;
    const width = (H + 2 * KV) * D;
    const maxT = 24;
    const lengths = [19, 7, 1];
    const sequences = lengths.map((T, s) => numbers(T * width, 10 + s));
    const bytes = dt === F32 ? 4 : 2;
    const [k, v] = [b.alloc(3 * maxT * KV * D, dt), b.alloc(3 * maxT * KV * D, dt)];
    const rows = sequences.map((q) => b.put(q, dt));
    const full = sequences.map((q, s) => attention(q, [0, lengths[s]], shape));
    for (let t = 0; t < 19; t++) {
      // Sequences that have ended stay at their last token: writing it again changes nothing.
      const past = lengths.map((T) => Math.min(t, T - 1));
      const step = b.alloc(3 * width, dt);
      past.forEach((at, s) => {
        b.device
          .bytes(step + s * width * bytes, width * bytes)
          .set(b.device.bytes(rows[s] + at * width * bytes, width * bytes));
      });
      const [pp, out] = [b.ints(past), b.alloc(3 * H * D, dt)];
      b.device.cacheAppend(step, k, v, pp, 3, 1, maxT, H, KV, D, dt);
      b.device.attentionCached(step, width, k, v, out, pp, 3, 1, maxT, H, KV, D, 1 / Math.sqrt(D), dt);
      const expected = past.flatMap((at, s) => [...full[s].subarray(at * H * D, (at + 1) * H * D)]);
      expectClose(b.get(out, 3 * H * D, dt), Float64Array.from(expected), tolerance(dt), `token ${t}`);
    }
    // The last five tokens of the first sequence in one call.
    const [pp, out] = [b.ints([14]), b.alloc(5 * H * D, dt)];
    const from = rows[0] + 14 * width * bytes;
    b.device.attentionCached(from, width, k, v, out, pp, 1, 5, maxT, H, KV, D, 1 / Math.sqrt(D), dt);
    expectClose(b.get(out, 5 * H * D, dt), full[0].subarray(14 * H * D), tolerance(dt), "five at once");
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  const shape = { H: 4, KV: 2, D: 16 };
  const cu = [0, 70, 71, 150];
  const seen = new Map<string, string>();
  for (const threads of [1, 2])
    onEach((b) => {
      const qkv = numbers(150 * 128, 5);
      const { p, y, lse, pcu, N } = run(b, shape, cu, qkv, dt);
      const dqkv = b.alloc(N * 128, dt);
      b.device.attentionBackward(b.put(numbers(N * 64, 6), dt), p, y, lse, dqkv, pcu, 3, N, 4, 2, 16, 0.25, dt);
      const bytes = b.bytes(y, N * 64, dt) + b.bytes(dqkv, N * 128, dt);
      expect(seen.get(b.device.isa) ?? bytes).toBe(bytes);
      seen.set(b.device.isa, bytes);
    }, threads);
});
