import { expect, test } from "vitest";
import { BF16, F32 } from "../../src/device/device.js";
import { DTYPES, expectClose, expectSlopes, logprob, numbers, onEach, tolerance } from "./reference.js";

const CASES = [
  [1, 1, 2, 1],
  [3, 17, 5, 1],
  [17, 3, 65, 0.5],
  [65, 33, 130, 1],
  [300, 16, 70, 2],
] as const;
const targetsOf = (N: number, V: number): number[] =>
  Array.from({ length: N }, (_, i) => (i % 5 === 3 ? -1 : (i * 7) % V));

test.each(DTYPES)("log p, entropy, and gradients of a weighted sum, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, D, V, inv] of CASES) {
      const what = `N ${N} D ${D} V ${V}`;
      const [h, W, g] = [numbers(N * D, 1), numbers(V * D, 2, 2), numbers(N, 3)];
      const target = targetsOf(N, V);
      const [ph, pw, pt, pg] = [b.put(h, dt), b.put(W, dt), b.ints(target), b.put(g, F32)];
      const [logp, lse, entropy] = [b.alloc(N), b.alloc(N), b.alloc(N)];
      b.device.logprobForward(ph, pw, pt, logp, lse, entropy, N, D, V, inv, dt);
      const expected = logprob(h, W, target, D, inv);
      expectClose(b.get(logp, N), expected.logp, tolerance(dt), `logp ${what}`);
      const kept = target.map((t, i) => ({ t, i })).filter(({ t }) => t >= 0);
      const pick = (x: Float64Array): Float64Array => Float64Array.from(kept, ({ i }) => x[i]);
      expectClose(pick(b.get(entropy, N)), pick(expected.entropy), tolerance(dt), `entropy ${what}`);

      const [dh, dW] = [b.alloc(N * D, dt), b.put(new Float64Array(V * D), dt)];
      b.device.logprobBackward(ph, pw, pt, lse, pg, dh, dW, N, D, V, inv, dt);
      const loss = (): number => logprob(h, W, target, D, inv).logp.reduce((s, x, i) => s + g[i] * x, 0);
      expectSlopes(b.get(dh, N * D, dt), loss, h, tolerance(dt, 2e-4), `dh ${what}`);
      expectSlopes(b.get(dW, V * D, dt), loss, W, tolerance(dt, 2e-4), `dW ${what}`);
      target.forEach((t, i) => {
        if (t < 0)
          expect(
            b
              .get(dh, N * D, dt)
              .subarray(i * D, (i + 1) * D)
              .every((x) => x === 0),
          ).toBe(true);
      });

      // Both in one pass gives the same.
      const [logp2, dh2, dW2] = [b.alloc(N), b.alloc(N * D, dt), b.put(new Float64Array(V * D), dt)];
      b.device.logprobForwardBackward(ph, pw, pt, pg, logp2, dh2, dW2, N, D, V, inv, dt);
      expectClose(b.get(logp2, N), b.get(logp, N), 1e-6, `logp at once ${what}`);
      expectClose(b.get(dh2, N * D, dt), b.get(dh, N * D, dt), tolerance(dt), `dh at once ${what}`);
      expectClose(b.get(dW2, V * D, dt), b.get(dW, V * D, dt), tolerance(dt), `dW at once ${what}`);
    }
  });
});

test("logits of ten thousand stay finite; NaN in a row stays in that row", () => {
  onEach((b) => {
    const [N, D, V] = [4, 2, 3];
    const h = Float64Array.from([1, 0, 1e4, 1e4, Number.NaN, 0, -1e4, 1]);
    const W = Float64Array.from([1, 1, -1, 1, 0.5, 0]);
    const [logp, lse] = [b.alloc(N), b.alloc(N)];
    b.device.logprobForward(b.put(h, F32), b.put(W, F32), b.ints([0, 0, 0, 1]), logp, lse, 0, N, D, V, 1, F32);
    const y = b.get(logp, N);
    expect(Number.isFinite(y[0]) && Number.isFinite(y[1]) && Number.isFinite(y[3])).toBe(true);
    expect(y[2]).toBeNaN();
  });
});

test("the gradient of W over many chunks is rounded once", () => {
  onEach((b) => {
    // 4,000 rows whose gradients of W[0] are equal: added one by one in bf16 they would stop growing at 256 of them.
    const [N, D, V] = [4000, 8, 4];
    const h = new Float64Array(N * D).fill(1);
    const [ph, pw, pt] = [b.put(h, BF16), b.put(new Float64Array(V * D), BF16), b.ints(new Array(N).fill(0))];
    const [logp, dh, dW] = [b.alloc(N), b.alloc(N * D, BF16), b.put(new Float64Array(V * D), BF16)];
    b.device.logprobForwardBackward(
      ph,
      pw,
      pt,
      b.put(new Float64Array(N).fill(1), F32),
      logp,
      dh,
      dW,
      N,
      D,
      V,
      1,
      BF16,
    );
    expect(b.get(dW, 1, BF16)[0] / (0.75 * N)).toBeCloseTo(1, 2);
  });
});
