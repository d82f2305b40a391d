import { expect, test } from "vitest";
import { BF16, F32 } from "../../src/device/device.js";
import { DTYPES, expectClose, matmul, numbers, onEach, rounded, tolerance } from "./reference.js";

const SIZES = [
  [1, 1, 1],
  [1, 17, 3],
  [3, 1, 65],
  [17, 3, 1],
  [65, 65, 17],
  [33, 70, 65],
  [14, 32, 32],
  [100, 130, 129],
] as const;

test.each(DTYPES)("every transpose and odd size, %s", (_, dt) => {
  onEach((b) => {
    for (const [M, N, K] of SIZES)
      for (const tA of [0, 1])
        for (const tB of [0, 1]) {
          const A = numbers(M * K, 1);
          const B = numbers(K * N, 2);
          const [a, c, y] = [b.put(A, dt), b.put(B, dt), b.alloc(M * N)];
          // biome-ignore format: one product
          b.device.matmul(tA, tB, M, N, K, 1, a, dt, tA ? M : K, c, dt, tB ? K : N, 0, y, F32, N, 0, 1, 0, 0, 0);
          expectClose(b.get(y, M * N), matmul(A, B, M, N, K, tA, tB), 1e-5, `${M}x${N}x${K} tA ${tA} tB ${tB}`);
        }
  });
});

test("alpha, beta, residual, leading dimensions, and one rounding at the end", () => {
  onEach((b) => {
    const [M, N, K, lda, ldb, ldc] = [19, 37, 23, 29, 31, 41];
    const A = numbers(M * lda, 3);
    const B = numbers(N * ldb, 4);
    const C = numbers(M * ldc, 5);
    const R = numbers(M * ldc, 6);
    const [a, w, r] = [b.put(A, BF16), b.put(B, BF16), b.put(R, BF16)];
    for (const beta of [0, 1] as const)
      for (const residual of [false, true]) {
        const y = b.put(C, BF16);
        // biome-ignore format: one product
        b.device.matmul(0, 1, M, N, K, 0.5, a, BF16, lda, w, BF16, ldb, beta, y, BF16, ldc, residual ? r : 0, 1, 0, 0, 0);
        const expected = Float64Array.from(C);
        for (let i = 0; i < M; i++)
          for (let j = 0; j < N; j++) {
            let s = 0;
            for (let k = 0; k < K; k++) s += A[i * lda + k] * B[j * ldb + k];
            expected[i * ldc + j] = 0.5 * s + beta * C[i * ldc + j] + (residual ? R[i * ldc + j] : 0);
          }
        expectClose(b.get(y, M * ldc, BF16), expected, 2 ** -8, `beta ${beta} residual ${residual}`);
      }
  });
});

test("a batch of products, and one with a shared factor", () => {
  onEach((b) => {
    const [M, N, K, batch] = [5, 9, 7, 4];
    const A = numbers(batch * M * K, 1);
    const B = numbers(batch * K * N, 2);
    const [a, w, y] = [b.put(A, F32), b.put(B, F32), b.alloc(batch * M * N)];
    for (const shared of [false, true]) {
      // biome-ignore format: one product
      b.device.matmul(0, 0, M, N, K, 1, a, F32, K, w, F32, N, 0, y, F32, N, 0, batch, M * K, shared ? 0 : K * N, M * N);
      for (let i = 0; i < batch; i++)
        expectClose(
          b.get(y, batch * M * N).subarray(i * M * N, (i + 1) * M * N),
          matmul(A.subarray(i * M * K), B.subarray(shared ? 0 : i * K * N), M, N, K, 0, 0),
          1e-5,
        );
    }
  });
});

test("beta 0 never reads the result, and NaN and infinity are not hidden", () => {
  onEach((b) => {
    const n = 40;
    for (const [, dt] of DTYPES) {
      const A = numbers(n * n, 1);
      const B = numbers(n * n, 2);
      A[3 * n + 5] = Number.NaN;
      B[7 * n + 9] = Number.POSITIVE_INFINITY; // column 9 when not transposed
      const y = b.put(new Float64Array(n * n).fill(Number.NaN), dt);
      b.device.matmul(0, 0, n, n, n, 1, b.put(A, dt), dt, n, b.put(B, dt), dt, n, 0, y, dt, n, 0, 1, 0, 0, 0);
      const Y = b.get(y, n * n, dt);
      for (let i = 0; i < n; i++)
        for (let j = 0; j < n; j++) {
          const value = Y[i * n + j];
          if (i === 3) expect(value).toBeNaN();
          else if (j === 9) expect(Math.abs(value)).toBe(Number.POSITIVE_INFINITY);
          else expect(Number.isFinite(value)).toBe(true);
        }
    }
  });
});

test("bf16 products are accumulated in fp32 and rounded once", () => {
  onEach((b) => {
    // 1 + 512 * 2^-9: every partial sum in bf16 would stay at 1.
    const K = 513;
    const A = new Float64Array(K).fill(2 ** -9);
    A[0] = 1;
    const [a, w, y] = [b.put(A, BF16), b.put(new Float64Array(K).fill(1), BF16), b.alloc(1, BF16)];
    b.device.matmul(0, 1, 1, 1, K, 1, a, BF16, K, w, BF16, K, 0, y, BF16, 1, 0, 1, 0, 0, 0);
    expect(b.get(y, 1, BF16)[0]).toBe(rounded(2, BF16));
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  const [M, N, K] = [131, 67, 190];
  const results = new Map<string, string>();
  for (const threads of [1, 2, 3])
    onEach((b) => {
      const y = b.alloc(M * N, dt);
      const [a, w] = [b.put(numbers(M * K, 1), dt), b.put(numbers(N * K, 2), dt)];
      b.device.matmul(0, 1, M, N, K, 1, a, dt, K, w, dt, K, 0, y, dt, N, 0, 1, 0, 0, 0);
      const bytes = b.bytes(y, M * N, dt);
      expect(results.get(b.device.isa) ?? bytes).toBe(bytes);
      results.set(b.device.isa, bytes);
    }, threads);
});

test.each(DTYPES)("all instruction sets agree, %s", (_, dt) => {
  const [M, N, K] = [70, 90, 110];
  let first: Float64Array | undefined;
  onEach((b) => {
    const y = b.alloc(M * N, dt);
    const [a, w] = [b.put(numbers(M * K, 1), dt), b.put(numbers(N * K, 2), dt)];
    b.device.matmul(0, 1, M, N, K, 1, a, dt, K, w, dt, K, 0, y, dt, N, 0, 1, 0, 0, 0);
    const Y = b.get(y, M * N, dt);
    first ??= Y;
    expectClose(Y, first, tolerance(dt, 1e-6));
  });
});
