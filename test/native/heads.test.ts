/** Biases and the norms of heads: forward against float64, backward against finite differences. */
import { expect, test } from "vitest";
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

test.each(DTYPES)("a bias is added to each row, and its gradient is the sum of theirs, %s", (_, dt) => {
  onEach((b) => {
    for (const [N, M] of [
      [1, 1],
      [3, 65],
      [70, 33],
      [65, 200],
    ]) {
      const [x, bias, dy, start] = [numbers(N * M, 1), numbers(M, 2, 3), numbers(N * M, 3), numbers(M, 4)];
      const [px, pdy, dbias] = [b.put(x, dt), b.put(dy, dt), b.put(start, dt)];
      b.device.addBias(px, b.put(bias, dt), N, M, dt);
      const sums = Float64Array.from(x, (v, i) => rounded(Math.fround(v + bias[i % M]), dt));
      expectClose(b.get(px, N * M, dt), sums, 0, `${N}x${M}`);
      b.device.biasBackward(pdy, dbias, N, M, dt);
      const gradient = Float64Array.from(start, (v, m) => {
        let sum = v;
        for (let i = 0; i < N; i++) sum += dy[i * M + m];
        return sum;
      });
      expectClose(b.get(dbias, M, dt), gradient, tolerance(dt), `gradient ${N}x${M}`);
    }
  });
});

/** qkv[N, (H + 2 KV) D] with each head of queries and keys normed. */
function normed(
  qkv: Float64Array,
  wq: Float64Array,
  wk: Float64Array,
  { H, KV, D }: { H: number; KV: number; D: number },
) {
  const heads = H + 2 * KV;
  const y = Float64Array.from(qkv);
  for (let at = 0, h = 0; at < qkv.length; at += D, h = (h + 1) % heads)
    if (h < H + KV) y.set(rmsnorm(qkv.slice(at, at + D), h < H ? wq : wk, D, 1e-6), at);
  return y;
}

const SHAPES = [
  { N: 1, H: 1, KV: 1, D: 2 },
  { N: 3, H: 4, KV: 2, D: 17 },
  { N: 37, H: 3, KV: 1, D: 8 },
  { N: 5, H: 2, KV: 2, D: 128 },
];

test.each(DTYPES)("heads of queries and keys are normed, values are not, %s", (_, dt) => {
  onEach((b) => {
    for (const shape of SHAPES) {
      const { N, H, KV, D } = shape;
      const n = N * (H + 2 * KV) * D;
      const [x, wq, wk, dy] = [numbers(n, 1, 3), numbers(D, 2), numbers(D, 3), numbers(n, 4)];
      const [px, pq, pk, pdy] = [x, wq, wk, dy].map((v) => b.put(v, dt));
      const [y, rstd, dx] = [b.alloc(n, dt), b.alloc(N * (H + KV)), b.alloc(n, dt)];
      const [dwq, dwk] = [b.put(new Float64Array(D), dt), b.put(new Float64Array(D), dt)];
      const what = JSON.stringify(shape);
      b.device.headNormForward(px, pq, pk, y, rstd, N, H, KV, D, 1e-6, dt);
      expectClose(b.get(y, n, dt), normed(x, wq, wk, shape), tolerance(dt), what);
      b.device.headNormBackward(pdy, px, pq, pk, rstd, dx, dwq, dwk, N, H, KV, D, dt);
      const loss = (): number => dot(dy, normed(x, wq, wk, shape));
      expectSlopes(b.get(dx, n, dt), loss, x, tolerance(dt, 1e-4), `dx ${what}`);
      expectSlopes(b.get(dwq, D, dt), loss, wq, tolerance(dt, 1e-4), `dwq ${what}`);
      expectSlopes(b.get(dwk, D, dt), loss, wk, tolerance(dt, 1e-4), `dwk ${what}`);
      // In place, and without gradients of the weights: the same bytes.
      b.device.headNormBackward(pdy, px, pq, pk, rstd, pdy, 0, 0, N, H, KV, D, dt);
      expect(b.bytes(pdy, n, dt)).toBe(b.bytes(dx, n, dt));
      b.device.headNormForward(px, pq, pk, px, rstd, N, H, KV, D, 1e-6, dt);
      expect(b.bytes(px, n, dt)).toBe(b.bytes(y, n, dt));
    }
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  expectSameOnAnyThreads((b) => {
    const [N, H, KV, D] = [133, 4, 2, 16];
    const n = N * (H + 2 * KV) * D;
    const [x, dy] = [b.put(numbers(n, 1), dt), b.put(numbers(n, 2), dt)];
    const [wq, wk, bias, y] = [
      b.put(numbers(D, 3), dt),
      b.put(numbers(D, 4), dt),
      b.put(numbers(n / N, 5), dt),
      b.alloc(n, dt),
    ];
    const [rstd, dwq, dwk, dbias] = [
      b.alloc(N * (H + KV)),
      ...[D, D, n / N].map((size) => b.put(new Float64Array(size), dt)),
    ];
    b.device.addBias(x, bias, N, n / N, dt);
    b.device.headNormForward(x, wq, wk, y, rstd, N, H, KV, D, 1e-6, dt);
    b.device.headNormBackward(dy, x, wq, wk, rstd, dy, dwq, dwk, N, H, KV, D, dt);
    b.device.biasBackward(dy, dbias, N, n / N, dt);
    return [
      b.bytes(y, n, dt),
      b.bytes(dy, n, dt),
      b.bytes(dwq, D, dt),
      b.bytes(dwk, D, dt),
      b.bytes(dbias, n / N, dt),
    ].join();
  });
});
