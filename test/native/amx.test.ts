/**
 * The AMX kernel on any processor: the engine's product compiled with its AMX panels over tiles in software, against
 * float64. What this cannot show is the instructions themselves; where the processor has them, every test runs on them.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import { afterAll, beforeAll, expect, test } from "vitest";
import { BF16, F32, type Ptr } from "../../src/device/device.js";
import { Bench, expectClose, matmul, numbers } from "./reference.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-amx-"));
let product: (...args: number[]) => void;
let b: Bench;

beforeAll(() => {
  const native = fileURLToPath(new URL("../../native/", import.meta.url));
  const header = fileURLToPath(new URL("./amx_emulated.h", import.meta.url));
  const sources = readdirSync(native).filter((f) => f.endsWith(".c"));
  const flags = "-O1 -std=gnu11 -fPIC -shared -w -D_GNU_SOURCE -DLY_ISA_AMX -DAMX_EMULATED".split(" ");
  const name = '-DLY_ISA_NAME="amx"';
  execFileSync(process.env.CC ?? "cc", [
    ...flags,
    name,
    "-include",
    header,
    ...sources.map((f) => native + f),
    "-o",
    `${dir}/amx.so`,
    "-lm",
    "-lpthread",
  ]);
  product = koffi
    .load(`${dir}/amx.so`)
    .func(
      "void ly_matmul(int transA, int transB, int64_t M, int64_t N, int64_t K, float alpha, uintptr_t A, int dtA, int64_t lda, uintptr_t B, int dtB, int64_t ldb, float beta, uintptr_t C, int dtC, int64_t ldc, uintptr_t R, int64_t batch, int64_t sA, int64_t sB, int64_t sC)",
    );
  b = new Bench("portable");
}, 120_000);
afterAll(() => {
  b?.close();
  rmSync(dir, { recursive: true, force: true });
});

test("every transpose, sizes around the tile's edges", () => {
  for (const [M, N, K] of [
    [1, 1, 1],
    [16, 16, 32],
    [32, 32, 64],
    [31, 33, 31],
    [33, 31, 65],
    [70, 95, 130],
    [64, 17, 3],
  ])
    for (const tA of [0, 1])
      for (const tB of [0, 1]) {
        const A = numbers(M * K, 1);
        const B = numbers(K * N, 2);
        const [a, w, y]: Ptr[] = [b.put(A, BF16), b.put(B, BF16), b.alloc(M * N)];
        product(tA, tB, M, N, K, 1, a, BF16, tA ? M : K, w, BF16, tB ? K : N, 0, y, F32, N, 0, 1, 0, 0, 0);
        expectClose(b.get(y, M * N), matmul(A, B, M, N, K, tA, tB), 1e-5, `${M}x${N}x${K} tA ${tA} tB ${tB}`);
      }
});

test("the same as the portable engine within one rounding, with residual and accumulation", () => {
  const [M, N, K] = [50, 70, 100];
  const [a, w, r] = [b.put(numbers(M * K, 3), BF16), b.put(numbers(N * K, 4), BF16), b.put(numbers(M * N, 5), BF16)];
  const start = numbers(M * N, 6);
  const [y1, y2] = [b.put(start, BF16), b.put(start, BF16)];
  product(0, 1, M, N, K, 0.5, a, BF16, K, w, BF16, K, 1, y1, BF16, N, r, 1, 0, 0, 0);
  b.device.matmul(0, 1, M, N, K, 0.5, a, BF16, K, w, BF16, K, 1, y2, BF16, N, r, 1, 0, 0, 0);
  expectClose(b.get(y1, M * N, BF16), b.get(y2, M * N, BF16), 2 ** -8);
  expect(b.get(y1, M * N, BF16).some((x) => x !== 0)).toBe(true);
});
