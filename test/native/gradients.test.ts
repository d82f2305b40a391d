/** The written-out gradients of the references against finite differences of the references, at every place. */
import { expect, test } from "vitest";
import { attentionGradient, logprobGradient } from "./gradients.js";
import { attention, dot, expectClose, logprob, numbers, slopes } from "./reference.js";

test.each([
  [{ H: 1, KV: 1, D: 2 }, [0, 1]],
  [{ H: 4, KV: 2, D: 3 }, [0, 5, 6, 6, 9]],
  [{ H: 3, KV: 1, D: 4 }, [0, 7]],
  [{ H: 2, KV: 2, D: 8 }, [0, 2, 5]],
])("attention, %o, sequences %o", (shape, cu) => {
  const N = cu[cu.length - 1];
  const qkv = numbers(N * (shape.H + 2 * shape.KV) * shape.D, 1, 2);
  const dy = numbers(N * shape.H * shape.D, 2);
  const { dqkv } = attentionGradient(qkv, dy, cu, shape);
  expectClose(dqkv, slopes(() => dot(dy, attention(qkv, cu, shape)), qkv).values, 1e-8);
  expect(dqkv.some((x) => Math.abs(x) > 0.1)).toBe(true);
});

test.each([0.5, 1, 2])("log p and entropy at inverse temperature %d, with rows that are skipped", (inverse) => {
  const [N, D, V] = [6, 5, 7];
  const [hidden, W, g] = [numbers(N * D, 1), numbers(V * D, 2, 2), numbers(N, 3)];
  const target = [0, 6, -1, 3, 3, -1];
  const { dhidden, dW } = logprobGradient(hidden, W, target, g, D, inverse);
  const loss = (): number => dot(g, logprob(hidden, W, target, D, inverse).logp);
  expectClose(dhidden, slopes(loss, hidden).values, 1e-8, "hidden");
  expectClose(dW, slopes(loss, W).values, 1e-8, "W");

  const entropy = logprobGradient(hidden, W, target, g, D, inverse, "entropy");
  const spread = (): number => {
    const rows = logprob(hidden, W, target, D, inverse).entropy;
    return rows.reduce((s, x, i) => s + (target[i] < 0 ? 0 : g[i] * x), 0);
  };
  expectClose(entropy.dhidden, slopes(spread, hidden).values, 1e-8, "entropy, hidden");
  expectClose(entropy.dW, slopes(spread, W).values, 1e-8, "entropy, W");
});
