/**
 * The AMX kernel on any processor: the engine compiled with its AMX panels over tiles in software, against float64 and
 * the portable engine. What this cannot show is the instructions themselves; where a processor has them, every test of
 * this folder runs on them too.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BF12, BF16, F32 } from "../../src/device/device.js";
import { attentionGradient, logprobGradient } from "./gradients.js";
import { attention, Bench, expectClose, held, logprob, matmul, numbers, rounded, tolerance } from "./reference.js";

const native = fileURLToPath(new URL("../../native/", import.meta.url));
const compiler = [process.env.CC, "cc", "gcc", "clang"].find((c) => c && spawnSync(c, ["--version"]).status === 0);
const title = compiler
  ? "the AMX kernel over software tiles"
  : "the AMX kernel: skipped, because no C compiler was found";

describe.skipIf(!compiler)(title, () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-amx-"));
  let library: ReturnType<typeof koffi.load>;
  let b: Bench;
  const kernels = new Map<string, (...args: number[]) => number>();

  /** Calls a kernel of the software-tile engine; its prototype is the header's, with addresses as numbers. */
  function call(name: string, ...args: number[]): void {
    if (!kernels.has(name)) {
      const header = readFileSync(`${native}lyceum.h`, "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
      const [prototype] = new RegExp(`^void ${name}\\([^)]*\\)`, "m").exec(header) ?? [];
      kernels.set(
        name,
        library.func((prototype as string).replace(/(const )?\w+ \*/g, "uintptr_t ").replace(/\s+/g, " ")),
      );
    }
    kernels.get(name)?.(...args);
  }
  const count = (products: 0 | 1): number => Number(library.func("int64_t amx_count(int products)")(products));

  beforeAll(() => {
    const header = fileURLToPath(new URL("./amx_emulated.h", import.meta.url));
    const sources = readdirSync(native).filter((f) => f.endsWith(".c"));
    const flags = "-O2 -std=gnu11 -fPIC -shared -w -D_GNU_SOURCE -DLY_ISA_AMX -DAMX_EMULATED".split(" ");
    const files = sources.map((f) => native + f);
    // biome-ignore format: one command line
    execFileSync(compiler as string, [...flags, '-DLY_ISA_NAME="amx"', "-include", header, ...files, "-o", `${dir}/amx.so`, "-lm", "-lpthread"]);
    library = koffi.load(`${dir}/amx.so`);
    b = new Bench("portable");
  }, 120_000);
  afterAll(() => {
    b?.close();
    rmSync(dir, { recursive: true, force: true });
  });

  test("every transpose, sizes around the tile's edges", () => {
    for (const [M, N, K] of [
      [1, 1, 1],
      [3, 17, 65],
      [16, 16, 32],
      [32, 32, 64],
      [31, 33, 31],
      [33, 31, 65],
      [70, 95, 130],
      [64, 17, 3],
      [129, 65, 33],
      [70, 170, 1088], // rows read where they lie, and sums that wait between blocks of k
      [33, 140, 1090],
      [1024, 33, 70], // transposed, its lines meet in one set of the cache
    ])
      for (const tA of [0, 1])
        for (const tB of [0, 1]) {
          const [A, B] = [numbers(M * K, 1), numbers(K * N, 2)];
          const [a, w, y] = [b.put(A, BF16), b.put(B, BF16), b.alloc(M * N)];
          const [lda, ldb] = [tA ? M : K, tB ? K : N];
          call("ly_matmul", tA, tB, M, N, K, 1, a, BF16, lda, w, BF16, ldb, 0, y, F32, N, 0, 1, 0, 0, 0);
          const what = `${M}x${N}x${K} tA ${tA} tB ${tB}`;
          expectClose(b.get(y, M * N), matmul(A, B, M, N, K, tA, tB), 1e-5, what);
        }
    b.check();
  });

  test("the same as the portable engine within one rounding, with strides, residual, accumulation and a batch", () => {
    const [M, N, K, lda, ldb, ldc, batch] = [50, 70, 100, 107, 111, 73, 2];
    const [A, B] = [numbers(batch * M * lda, 3), numbers(batch * N * ldb, 4)];
    const [C, R] = [numbers(batch * M * ldc, 5), numbers(batch * M * ldc, 6)];
    const [a, w, r] = [b.put(A, BF16), b.put(B, BF16), b.put(R, BF16)];
    const [y1, y2] = [b.put(C, BF16), b.put(C, BF16)];
    // biome-ignore format: the arguments of one product
    const rest = [a, BF16, lda, w, BF16, ldb, 1] as const;
    const strides = [batch, M * lda, N * ldb, M * ldc] as const;
    call("ly_matmul", 0, 1, M, N, K, 0.5, ...rest, y1, BF16, ldc, r, ...strides);
    b.device.matmul(0, 1, M, N, K, 0.5, ...rest, y2, BF16, ldc, r, ...strides);
    expectClose(b.get(y1, batch * M * ldc, BF16), b.get(y2, batch * M * ldc, BF16), 2 ** -8);
    expect(b.bytes(y1, batch * M * ldc, BF16)).not.toBe(b.bytes(b.put(C, BF16), batch * M * ldc, BF16));
    b.check();
  });

  test("sums of small whole numbers are exact, and NaN is not hidden", () => {
    const [M, N, K] = [40, 50, 200];
    const whole = (n: number, seed: number): Float64Array => numbers(n, seed, 8).map(Math.round);
    const [A, B] = [whole(M * K, 1), whole(K * N, 2)];
    const y = b.alloc(M * N);
    const product = (): void =>
      call(
        "ly_matmul",
        0,
        0,
        M,
        N,
        K,
        1,
        b.put(A, BF16),
        BF16,
        K,
        b.put(B, BF16),
        BF16,
        N,
        0,
        y,
        F32,
        N,
        0,
        1,
        0,
        0,
        0,
      );
    product();
    expectClose(b.get(y, M * N), matmul(A, B, M, N, K, 0, 0), 0);
    A[7 * K + 199] = Number.NaN;
    product();
    b.get(y, M * N).forEach((x, i) => {
      if (Number.isNaN(x) !== (Math.floor(i / N) === 7)) throw new Error(`result ${i} is ${x}`);
    });
  });

  test("NaN that an earlier product left in the packed tiles is not seen in the next", () => {
    const bad = b.put(new Float64Array(130 * 130).fill(Number.NaN), BF16);
    for (const [M, N, K] of [
      [32, 32, 33],
      [64, 64, 1],
      [65, 33, 95],
    ]) {
      const [A, B] = [numbers(M * K, 1), numbers(K * N, 2)];
      const [a, w, y] = [b.put(A, BF16), b.put(B, BF16), b.alloc(130 * 130)];
      call("ly_matmul", 0, 0, 130, 130, 130, 1, bad, BF16, 130, bad, BF16, 130, 0, y, F32, 130, 0, 1, 0, 0, 0);
      call("ly_matmul", 0, 0, M, N, K, 1, a, BF16, K, w, BF16, N, 0, y, F32, N, 0, 1, 0, 0, 0);
      expectClose(b.get(y, M * N), matmul(A, B, M, N, K, 0, 0), 1e-5, `${M}x${N}x${K}`);
    }
  });

  test("few rows against many, as decoding has them; a row gives the same bytes alone", () => {
    for (const [B, N, K] of [
      [1, 1, 1],
      [3, 17, 65],
      [16, 32, 64],
      [17, 47, 33],
      [33, 65, 130],
    ]) {
      const [x, W] = [held(numbers(B * K, 1), BF16), held(numbers(N * K, 2), BF16)];
      const [px, pw, y, one] = [b.put(x, BF16), b.put(W, BF16), b.alloc(B * N), b.alloc(N)];
      call("ly_decode_linear", px, pw, 0, BF16, 0, 1, y, F32, B, N, K, BF16);
      expectClose(b.get(y, B * N), matmul(x, W, B, N, K, 0, 1), 1e-5, `${B}x${N}x${K}`);
      const last = B - 1;
      call("ly_decode_linear", px + last * K * 2, pw, 0, BF16, 0, 1, one, F32, 1, N, K, BF16);
      expect(b.bytes(one, N)).toBe(b.bytes(y + last * N * 4, N));
      // And in twelve bits, with exceptions among them.
      const pack = library.func("int64_t ly_bf12_pack(uintptr_t W, uintptr_t out, int64_t N, int64_t K)");
      const bytes = library.func("int64_t ly_bf12_bytes(int64_t N, int64_t K)");
      const odd = b.put(
        numbers(N * K, 2).map((w, i) => w * (i % 301 === 7 ? 1e-6 : 1)),
        BF16,
      );
      const [twelve, same] = [b.alloc(Number(bytes(N, K)) / 4), b.alloc(B * N)];
      expect(Number(pack(odd, twelve, N, K))).toBe(0);
      call("ly_decode_linear", px, odd, 0, BF16, 0, 1, y, F32, B, N, K, BF16);
      call("ly_decode_linear", px, twelve, 0, BF12, 0, 1, same, F32, B, N, K, BF16);
      expect(b.bytes(same, B * N)).toBe(b.bytes(y, B * N));
    }
    b.check();
  });

  test("attention, forward and backward, whose tiles are multiplied by it", () => {
    const shape = { H: 4, KV: 2, D: 24 };
    const { H, KV, D } = shape;
    const [cu, N, width] = [[0, 66, 70], 70, 8 * 24];
    const [qkv, dy] = [held(numbers(N * width, 1, 2), BF16), held(numbers(N * H * D, 2), BF16)];
    const expected = attentionGradient(qkv, dy, cu, shape);
    const [p, g, pcu] = [b.put(qkv, BF16), b.put(dy, BF16), b.ints(cu)];
    const [y, lse, dqkv] = [b.alloc(N * H * D, BF16), b.alloc(H * N), b.alloc(N * width, BF16)];
    const scale = rounded(1 / Math.sqrt(D), F32);
    // Not rotated at all: the cosine of every angle is 1.
    const [cos, sin] = [1, 0].map((x) => b.put(new Float64Array(D / 2).fill(x), F32));
    const angles = [b.ints(new Array(N).fill(0)), cos, sin];
    call("ly_attention_forward", p, ...angles, y, lse, pcu, 2, N, H, KV, D, scale, BF16);
    call("ly_attention_backward", g, p, ...angles, y, lse, dqkv, pcu, 2, N, H, KV, D, scale, BF16);
    expectClose(b.get(y, N * H * D, BF16), attention(qkv, cu, shape), tolerance(BF16), "y");
    expectClose(b.get(lse, H * N), expected.lse, 1e-5, "lse");
    expectClose(b.get(dqkv, N * width, BF16), expected.dqkv, tolerance(BF16), "dqkv");
    b.check();
  });

  test("token log-probability and its gradients", () => {
    const [N, D, V] = [65, 40, 130];
    const [h, W, g] = [held(numbers(N * D, 1), BF16), held(numbers(V * D, 2, 2), BF16), held(numbers(N, 3), F32)];
    const target = Array.from({ length: N }, (_, i) => (i % 6 ? i : -1));
    const expected = logprobGradient(h, W, target, g, D, 1);
    const [logp, dh, dW] = [b.alloc(N), b.alloc(N * D, BF16), b.put(new Float64Array(V * D), BF16)];
    const [ph, pw, pt, pg] = [b.put(h, BF16), b.put(W, BF16), b.ints(target), b.put(g, F32)];
    call("ly_logprob_forward_backward", ph, pw, pt, pg, logp, 0, dh, dW, N, D, V, 1, BF16);
    expectClose(b.get(logp, N), logprob(h, W, target, D, 1).logp, 1e-5, "logp");
    expectClose(b.get(dh, N * D, BF16), expected.dhidden, tolerance(BF16), "dh");
    expectClose(b.get(dW, V * D, BF16), expected.dW, tolerance(BF16), "dW");
    b.check();
  });

  test("all of it ran on tiles, and nothing that the processor would refuse was asked of them", () => {
    expect(count(1)).toBeGreaterThan(1000);
    expect(count(0)).toBe(0);
  });
});
