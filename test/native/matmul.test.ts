/** Matrix products against float64: transposes, sizes, strides, batches, what is added, and what may not be lost. */
import { expect, test } from "vitest";
import { BF16, type DType, F32, type Ptr } from "../../src/device/device.js";
import {
  type Bench,
  DTYPES,
  expectClose,
  expectSameOnAnyThreads,
  held,
  matmul,
  numbers,
  onEach,
  rounded,
  tolerance,
} from "./reference.js";

/** Fp32 accumulation in any order, of K products of numbers of order 1. */
const ACCUMULATED = 1e-5;

/** One rounding to the storage type, after fp32 accumulation: half a unit of the last place of each result. */
function expectRounded(actual: Float64Array, expected: Float64Array, dt: DType, what: string): void {
  const half = dt === F32 ? 0 : 2 ** -8;
  const largest = expected.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  actual.forEach((x, i) => {
    if (!(Math.abs(x - expected[i]) <= half * Math.abs(expected[i]) + ACCUMULATED * largest))
      throw new Error(`${what}[${i}] is ${x}, expected ${expected[i]} rounded once`);
  });
}

interface Product {
  tA?: 0 | 1;
  tB?: 0 | 1;
  alpha?: number;
  beta?: 0 | 1;
  R?: Ptr;
}
/** Contiguous operands. */
function multiply(
  b: Bench,
  M: number,
  N: number,
  K: number,
  a: Ptr,
  w: Ptr,
  dt: DType,
  y: Ptr,
  dtC: DType,
  p: Product = {},
) {
  const { tA = 0, tB = 0 } = p;
  // biome-ignore format: one product
  b.device.matmul(tA, tB, M, N, K, p.alpha ?? 1, a, dt, tA ? M : K, w, dt, tB ? K : N, p.beta ?? 0, y, dtC, N, p.R ?? 0, 1, 0, 0, 0);
}

const TRANSPOSES = [
  [0, 0],
  [0, 1],
  [1, 0],
  [1, 1],
] as const;

/** Every size from 1 to 70 as rows, as columns and as depth; odd ones; and one of several panels each way. */
const SIZES = [
  ...Array.from({ length: 70 }, (_, i): [number, number, number] => [
    i + 1,
    ((i * 29) % 70) + 1,
    ((i * 43 + 12) % 70) + 1,
  ]),
  [1, 1, 1],
  [1, 65, 17],
  [65, 1, 3],
  [17, 3, 1],
  [65, 65, 65],
  [100, 130, 129],
  [257, 301, 515],
  [30, 170, 4100], // longer than what the kernel passes over at a time
  [1024, 35, 70], // transposed, its lines meet in one set of the cache and are packed in shorter pieces
] as const;

test("the sizes reach every number from 1 to 70 in every place", () => {
  for (const place of [0, 1, 2]) expect(new Set(SIZES.map((s) => s[place])).size).toBeGreaterThanOrEqual(70);
});

test.each(DTYPES)("every transpose and size, %s", (_, dt) => {
  const cases = SIZES.flatMap(([M, N, K]) =>
    TRANSPOSES.map(([tA, tB]) => {
      const [A, B] = [held(numbers(M * K, 1), dt), held(numbers(K * N, 2), dt)];
      return { M, N, K, tA, tB, A, B, expected: matmul(A, B, M, N, K, tA, tB) };
    }),
  );
  onEach((b) => {
    for (const { M, N, K, tA, tB, A, B, expected } of cases) {
      const y = b.alloc(M * N);
      multiply(b, M, N, K, b.put(A, dt), b.put(B, dt), dt, y, F32, { tA, tB });
      expectClose(b.get(y, M * N), expected, ACCUMULATED, `${M}x${N}x${K} tA ${tA} tB ${tB}`);
    }
  });
});

test.each(DTYPES)("alpha, beta, residual and leading dimensions, every transpose, %s result", (_, dtC) => {
  const [M, N, K, lda, ldb, ldc] = [19, 37, 23, 43, 47, 41];
  const [A, B] = [held(numbers(43 * lda, 3), BF16), held(numbers(43 * ldb, 4), BF16)];
  const [C, R] = [held(numbers(M * ldc, 5), dtC), held(numbers(M * ldc, 6), dtC)];
  for (const [tA, tB] of TRANSPOSES)
    for (const beta of [0, 1])
      for (const residual of [false, true]) {
        const expected = Float64Array.from(C);
        for (let i = 0; i < M; i++)
          for (let j = 0; j < N; j++) {
            let s = 0;
            for (let k = 0; k < K; k++) s += A[tA ? k * lda + i : i * lda + k] * B[tB ? j * ldb + k : k * ldb + j];
            expected[i * ldc + j] = 0.5 * s + beta * C[i * ldc + j] + (residual ? R[i * ldc + j] : 0);
          }
        onEach((b) => {
          const [a, w, y, r] = [b.put(A, BF16), b.put(B, BF16), b.put(C, dtC), residual ? b.put(R, dtC) : 0];
          // biome-ignore format: one product
          b.device.matmul(tA, tB, M, N, K, 0.5, a, BF16, lda, w, BF16, ldb, beta, y, dtC, ldc, r, 1, 0, 0, 0);
          const Y = b.get(y, M * ldc, dtC);
          expectRounded(Y, expected, dtC, `tA ${tA} tB ${tB} beta ${beta} R ${residual}`);
          for (let i = 0; i < M; i++) for (let j = N; j < ldc; j++) expect(Y[i * ldc + j]).toBe(C[i * ldc + j]); // between the rows: untouched
        });
      }
});

test.each(DTYPES)("a batch, with strides, a shared factor, and added to, %s", (_, dt) => {
  const [M, N, K, batch] = [5, 39, 17, 4];
  const [sA, sB, sC] = [M * K + 3, K * N + 5, M * N + 7];
  const [A, B] = [held(numbers(batch * sA, 1), dt), held(numbers(batch * sB, 2), dt)];
  const [C, R] = [held(numbers(batch * sC, 3), dt), held(numbers(batch * sC, 4), dt)];
  for (const [tA, tB] of [
    [0, 0],
    [1, 1],
  ] as const)
    for (const shared of [false, true])
      for (const beta of [0, 1] as const) {
        const expected = Float64Array.from(C);
        for (let s = 0; s < batch; s++) {
          const y = matmul(A.subarray(s * sA), B.subarray(shared ? 0 : s * sB), M, N, K, tA, tB);
          y.forEach((x, i) => {
            const at = s * sC + i;
            expected[at] = x + beta * C[at] + R[at];
          });
        }
        onEach((b) => {
          const [a, w, y, r] = [b.put(A, dt), b.put(B, dt), b.put(C, dt), b.put(R, dt)];
          const [lda, ldb] = [tA ? M : K, tB ? K : N];
          // biome-ignore format: one product
          b.device.matmul(tA, tB, M, N, K, 1, a, dt, lda, w, dt, ldb, beta, y, dt, N, r, batch, sA, shared ? 0 : sB, sC);
          expectRounded(b.get(y, batch * sC, dt), expected, dt, `tA ${tA} shared ${shared} beta ${beta}`);
        });
      }
});

test("factors of different types: one bf16, one fp32", () => {
  const [M, N, K] = [18, 35, 21];
  for (const [dtA, dtB] of [
    [F32, BF16],
    [BF16, F32],
  ] as const) {
    const [A, B] = [held(numbers(M * K, 1), dtA), held(numbers(K * N, 2), dtB)];
    onEach((b) => {
      const y = b.alloc(M * N);
      b.device.matmul(0, 0, M, N, K, 1, b.put(A, dtA), dtA, K, b.put(B, dtB), dtB, N, 0, y, F32, N, 0, 1, 0, 0, 0);
      expectClose(b.get(y, M * N), matmul(A, B, M, N, K, 0, 0), ACCUMULATED);
    });
  }
});

test("fp32 factors are multiplied in fp32, not in less", () => {
  onEach((b) => {
    // (1 + 2^-12)^2 - 1: bf16 and tf32 would see 1 * 1 - 1.
    const x = 1 + 2 ** -12;
    const [a, w, y] = [b.put(Float64Array.from([x, 1]), F32), b.put(Float64Array.from([x, -1]), F32), b.alloc(1)];
    multiply(b, 1, 1, 2, a, w, F32, y, F32);
    expect(Math.abs(b.get(y, 1)[0] / (x * x - 1) - 1)).toBeLessThan(1e-3);
  });
});

test("nothing to sum: zero, or what was there", () => {
  onEach((b) => {
    for (const [, dt] of DTYPES) {
      const empty = b.alloc(1, dt);
      const [y, z, r] = [b.put(numbers(6, 1), dt), b.put(numbers(6, 1), dt), b.put(numbers(6, 2), dt)];
      multiply(b, 2, 3, 0, empty, empty, dt, y, dt);
      expect(Array.from(b.get(y, 6, dt), Math.abs)).toEqual([0, 0, 0, 0, 0, 0]);
      const before = b.get(z, 6, dt);
      multiply(b, 2, 3, 0, empty, empty, dt, z, dt, { beta: 1, R: r });
      const sum = b.get(r, 6, dt).map((x, i) => rounded(Math.fround(x + before[i]), dt));
      expect(b.get(z, 6, dt)).toEqual(sum);
    }
  });
});

test.each(DTYPES)("beta 0 never reads the result; NaN and infinity are not hidden and do not spread, %s", (_, dt) => {
  onEach((b) => {
    const n = 40;
    for (const [tA, tB] of TRANSPOSES) {
      const [A, B] = [numbers(n * n, 1), numbers(n * n, 2)];
      A[tA ? 5 * n + 3 : 3 * n + 5] = Number.NaN; // row 3
      B[tB ? 9 * n + 7 : 7 * n + 9] = Number.POSITIVE_INFINITY; // column 9
      const y = b.put(new Float64Array(n * n).fill(Number.NaN), dt);
      multiply(b, n, n, n, b.put(A, dt), b.put(B, dt), dt, y, dt, { tA, tB });
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

test.each(DTYPES)("NaN that an earlier product left in the engine's buffers is not seen in the next, %s", (_, dt) => {
  onEach((b) => {
    const bad = b.put(new Float64Array(130 * 130).fill(Number.NaN), dt);
    for (const [M, N, K] of [
      [32, 32, 33],
      [64, 64, 1],
      [65, 33, 95],
    ]) {
      const [A, B] = [numbers(M * K, 1), numbers(K * N, 2)];
      const [a, w, y] = [b.put(A, dt), b.put(B, dt), b.alloc(130 * 130)];
      multiply(b, 130, 130, 130, bad, bad, dt, y, F32);
      multiply(b, M, N, K, a, w, dt, y, F32);
      expectClose(b.get(y, M * N), matmul(A, B, M, N, K, 0, 0), ACCUMULATED, `${M}x${N}x${K}`);
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
    multiply(b, 1, 1, K, a, w, BF16, y, BF16, { tB: 1 });
    expect(b.get(y, 1, BF16)[0]).toBe(rounded(2, BF16));
    // Small whole numbers: every partial sum is exact in fp32, so the result is exact whatever the order.
    const [M, N] = [33, 47];
    const whole = (n: number, seed: number): Float64Array => numbers(n, seed, 8).map(Math.round);
    const [P, Q, exact] = [whole(M * K, 1), whole(K * N, 2), b.alloc(M * N)];
    multiply(b, M, N, K, b.put(P, BF16), b.put(Q, BF16), BF16, exact, F32);
    expectClose(b.get(exact, M * N), matmul(P, Q, M, N, K, 0, 0), 0, "whole numbers");
  });
});

test.each(DTYPES)("the number of threads does not change a byte, %s", (_, dt) => {
  for (const [M, N, K] of [
    [131, 67, 190],
    [3, 500, 64],
    [500, 3, 65],
  ])
    expectSameOnAnyThreads((b) => {
      const y = b.alloc(M * N, dt);
      multiply(b, M, N, K, b.put(numbers(M * K, 1), dt), b.put(numbers(N * K, 2), dt), dt, y, dt, { tB: 1 });
      return b.bytes(y, M * N, dt);
    });
});

test.each(DTYPES)("all instruction sets agree, %s", (_, dt) => {
  const [M, N, K] = [70, 90, 110];
  let first: Float64Array | undefined;
  onEach((b) => {
    const y = b.alloc(M * N, dt);
    multiply(b, M, N, K, b.put(numbers(M * K, 1), dt), b.put(numbers(N * K, 2), dt), dt, y, dt, { tB: 1 });
    const Y = b.get(y, M * N, dt);
    first ??= Y;
    expectClose(Y, first, tolerance(dt, 1e-6));
  });
});
