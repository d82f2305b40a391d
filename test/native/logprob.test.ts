/** Token log-probability: value, entropy and both gradients against float64, in chunks, with skipped rows. */
import { expect, test } from "vitest";
import { BF16, F32 } from "../../src/device/device.js";
import { logprobGradient } from "./gradients.js";
import { DTYPES, expectClose, expectSameOnAnyThreads, held, logprob, numbers, onEach, tolerance } from "./reference.js";

const CASES = [
  [1, 1, 2, 1],
  [1, 65, 1, 1],
  [3, 17, 5, 1],
  [17, 3, 65, 0.5],
  [65, 33, 130, 1],
  [300, 16, 70, 2],
] as const;
const targetsOf = (N: number, V: number): number[] =>
  Array.from({ length: N }, (_, i) => (i % 5 === 3 ? -1 : (i * 7) % V));

test.each(DTYPES)("log p, entropy, and gradients of a weighted sum, %s", (_, dt) => {
  for (const [N, D, V, inverse] of CASES) {
    const what = `N ${N} D ${D} V ${V}`;
    const [h, W, g] = [held(numbers(N * D, 1), dt), held(numbers(V * D, 2, 2), dt), held(numbers(N, 3), F32)];
    const start = held(numbers(V * D, 4), dt);
    const target = targetsOf(N, V);
    const expected = {
      ...logprob(h, W, target, D, inverse),
      ...logprobGradient(h, W, target, g, D, inverse),
      spread: logprobGradient(h, W, target, g, D, inverse, "entropy"),
    };
    const dW = expected.dW.map((x, i) => x + start[i]);
    const kept = target.flatMap((t, i) => (t < 0 ? [] : [i]));
    const pick = (x: Float64Array): Float64Array => Float64Array.from(kept, (i) => x[i]);
    onEach((b) => {
      const [ph, pw, pt, pg] = [b.put(h, dt), b.put(W, dt), b.ints(target), b.put(g, F32)];
      const [logp, lse, entropy] = [b.alloc(N), b.alloc(N), b.alloc(N)];
      b.device.logprobForward(ph, pw, pt, logp, lse, entropy, N, D, V, inverse, dt);
      expectClose(b.get(logp, N), expected.logp, 1e-5, `logp ${what}`);
      expectClose(pick(b.get(entropy, N)), pick(expected.entropy), 1e-5, `entropy ${what}`);
      expectClose(pick(b.get(lse, N)), pick(expected.lse), 1e-5, `lse ${what}`);

      const [pdh, pdW] = [b.alloc(N * D, dt), b.put(start, dt)];
      b.device.logprobBackward(ph, pw, pt, lse, pg, pdh, pdW, N, D, V, inverse, dt);
      expectClose(b.get(pdh, N * D, dt), expected.dhidden, tolerance(dt), `dh ${what}`);
      expectClose(b.get(pdW, V * D, dt), dW, tolerance(dt), `dW ${what}`);
      const rows = b.get(pdh, N * D, dt);
      target.forEach((t, i) => {
        if (t < 0) expect(rows.subarray(i * D, (i + 1) * D).every((x) => x === 0)).toBe(true);
      });

      const [pdh3, pdW3] = [b.alloc(N * D, dt), b.put(start, dt)];
      b.device.entropyBackward(ph, pw, pt, lse, entropy, pg, pdh3, pdW3, N, D, V, inverse, dt);
      expectClose(b.get(pdh3, N * D, dt), expected.spread.dhidden, tolerance(dt), `dh of entropy ${what}`);
      const dW3 = expected.spread.dW.map((x, i) => x + start[i]);
      expectClose(b.get(pdW3, V * D, dt), dW3, tolerance(dt), `dW of entropy ${what}`);

      const [logp2, dh2, dW2] = [b.alloc(N), b.alloc(N * D, dt), b.put(start, dt)];
      b.device.logprobForwardBackward(ph, pw, pt, pg, logp2, 0, dh2, dW2, N, D, V, inverse, dt);
      expect(b.bytes(logp2, N)).toBe(b.bytes(logp, N));
      expect(b.bytes(dh2, N * D, dt)).toBe(b.bytes(pdh, N * D, dt));
      expect(b.bytes(dW2, V * D, dt)).toBe(b.bytes(pdW, V * D, dt));
    });
  }
});

test.each(DTYPES)("either gradient alone, and no entropy, give the same bytes, %s", (_, dt) => {
  onEach((b) => {
    const [N, D, V] = [33, 17, 65];
    const [ph, pw] = [b.put(numbers(N * D, 1), dt), b.put(numbers(V * D, 2), dt)];
    const [pt, pg] = [b.ints(targetsOf(N, V)), b.put(numbers(N, 3), F32)];
    const [logp, lse, entropy] = [b.alloc(N), b.alloc(N), b.alloc(N)];
    b.device.logprobForward(ph, pw, pt, logp, lse, entropy, N, D, V, 1, dt);
    const [logp2, lse2] = [b.alloc(N), b.alloc(N)];
    b.device.logprobForward(ph, pw, pt, logp2, lse2, 0, N, D, V, 1, dt);
    expect(b.bytes(logp2, N) + b.bytes(lse2, N)).toBe(b.bytes(logp, N) + b.bytes(lse, N));
    const zero = new Float64Array(V * D);
    const [dh, dW, dh2, dW2] = [b.alloc(N * D, dt), b.put(zero, dt), b.alloc(N * D, dt), b.put(zero, dt)];
    b.device.logprobBackward(ph, pw, pt, lse, pg, dh, dW, N, D, V, 1, dt);
    b.device.logprobBackward(ph, pw, pt, lse, pg, dh2, 0, N, D, V, 1, dt);
    b.device.logprobBackward(ph, pw, pt, lse, pg, 0, dW2, N, D, V, 1, dt);
    expect(b.bytes(dh2, N * D, dt)).toBe(b.bytes(dh, N * D, dt));
    expect(b.bytes(dW2, V * D, dt)).toBe(b.bytes(dW, V * D, dt));
  });
});

test("logits of ten thousand keep their digits", () => {
  onEach((b) => {
    // Logits 10000, 10000 - 1, 0: log p(first) = -log(1 + 1/e), whose digits a sum with 1e4 in fp32 would lose.
    const h = Float64Array.from([1, 1, 1]);
    const W = Float64Array.from([1e4, 9999, 0]);
    const [logp, lse, entropy, dh] = [b.alloc(3), b.alloc(3), b.alloc(3), b.alloc(3)];
    const [ph, pw, pt] = [b.put(h, F32), b.put(W, F32), b.ints([0, 1, 2])];
    b.device.logprobForward(ph, pw, pt, logp, lse, entropy, 3, 1, 3, 1, F32);
    const expected = logprob(h, W, [0, 1, 2], 1, 1);
    b.get(logp, 3).forEach((x, i) => {
      expect(Math.abs(x / expected.logp[i] - 1)).toBeLessThan(1e-6);
    });
    expectClose(b.get(entropy, 3), expected.entropy, 1e-6);
    b.device.logprobBackward(ph, pw, pt, lse, b.put(h, F32), dh, 0, 3, 1, 3, 1, F32);
    expect(b.get(dh, 3).every(Number.isFinite)).toBe(true);
  });
});

test("minus infinity is a token that never comes; NaN and infinity are seen in their row only", () => {
  onEach((b) => {
    const [N, V] = [4, 3];
    const h = Float64Array.from([1, 2, Number.NaN, Number.POSITIVE_INFINITY]);
    const W = Float64Array.from([Number.NEGATIVE_INFINITY, 0, 1]);
    const [logp, lse, entropy] = [b.alloc(N), b.alloc(N), b.alloc(N)];
    b.device.logprobForward(b.put(h, F32), b.put(W, F32), b.ints([0, 2, 1, 1]), logp, lse, entropy, N, 1, V, 1, F32);
    const y = b.get(logp, N);
    expect(y[0]).toBe(Number.NEGATIVE_INFINITY);
    expect(y[1]).toBeCloseTo(-Math.log(1 + Math.exp(-2)), 6);
    expect([y[2], y[3]]).toEqual([Number.NaN, Number.NaN]);
    const H = b.get(entropy, N);
    const p = 1 / (1 + Math.E);
    expect(H[0]).toBeCloseTo(-p * Math.log(p) - (1 - p) * Math.log(1 - p), 6);
    expect([H[2], H[3]]).toEqual([Number.NaN, Number.NaN]);
  });
});

test("the gradient of W over several chunks is rounded once, and chunks make no difference to log p", () => {
  // 140,000 tokens in the vocabulary: gradients are gathered for 64 rows. The first row's gradient of W[0] is 1, and each further chunk
  // adds 0.45 of a unit of the last place of 1 in bf16: rounded after each chunk it would stay at 1.
  const [N, D, V] = [256, 1, 140_000];
  const [h, W] = [new Float64Array(N).fill(1), held(numbers(V, 1, 4), BF16)];
  const g = Float64Array.from({ length: N }, (_, i) => (i === 0 ? 1 : i % 64 === 0 ? 0.45 * 2 ** -7 : 0));
  const log = logprob(h.subarray(0, 1), W, [0], D, 1).logp[0];
  onEach((b) => {
    const [ph, pw, pt, pg] = [b.put(h, BF16), b.put(W, BF16), b.ints(new Array(N).fill(0)), b.put(g, F32)];
    for (const time of ["first", "second"]) {
      // What the engine kept from the first call must not be seen in the second.
      const [logp, dh, dW] = [b.alloc(N), b.alloc(N, BF16), b.put(new Float64Array(V), BF16)];
      b.device.logprobForwardBackward(ph, pw, pt, pg, logp, 0, dh, dW, N, D, V, 1, BF16);
      expectClose(b.get(logp, N), new Float64Array(N).fill(log), 1e-5, `logp, ${time}`);
      expect([time, b.get(dW, 1, BF16)[0]]).toEqual([time, 1 + 2 ** -7]);
    }
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const [N, D, V] = [90, 17, 140];
    const [ph, pw, pt] = [b.put(numbers(N * D, 1), dt), b.put(numbers(V * D, 2), dt), b.ints(targetsOf(N, V))];
    const [logp, dh, dW] = [b.alloc(N), b.alloc(N * D, dt), b.put(numbers(V * D, 4), dt)];
    b.device.logprobForwardBackward(ph, pw, pt, b.put(numbers(N, 3), F32), logp, 0, dh, dW, N, D, V, 1, dt);
    return b.bytes(logp, N) + b.bytes(dh, N * D, dt) + b.bytes(dW, V * D, dt);
  });
});
