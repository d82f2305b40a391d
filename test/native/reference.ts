/**
 * What kernels are compared with: formulas in float64, finite differences of them, and device buffers that hold both
 * storage types.
 */
import { expect } from "vitest";
import { offeredIsas, openCpu } from "../../src/device/cpu.js";
import { BF16, type Device, type DType, F32, type Ptr } from "../../src/device/device.js";

export const ISAS = offeredIsas();
export const DTYPES = [
  ["fp32", F32],
  ["bf16", BF16],
] as const;
/** Largest error against float64, as a share of the largest value: a few roundings of the storage type. */
export const tolerance = (dt: DType, fp32 = 2e-5): number => (dt === F32 ? fp32 : 1.2e-2);

/** Numbers that look random and are the same in every run (an LCG; only tests need it). */
export function numbers(n: number, seed = 1, scale = 1): Float64Array {
  let state = (seed * 2654435761) >>> 0;
  return Float64Array.from({ length: n }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return ((state >>> 8) / 2 ** 24 - 0.5) * 2 * scale;
  });
}

const words = new DataView(new ArrayBuffer(4));
/** A number as the storage type holds it. */
export function rounded(x: number, dt: DType): number {
  if (dt === F32) return Math.fround(x);
  words.setFloat32(0, x);
  const u = words.getUint32(0);
  words.setUint32(0, ((u + 0x7fff + ((u >>> 16) & 1)) & 0xffff0000) >>> 0);
  return words.getFloat32(0);
}

/** The same, of all of them: what a kernel is given, and so what the reference must be given. */
export const held = (values: Float64Array, dt: DType): Float64Array => values.map((x) => rounded(x, dt));

const GUARD = 64;
/**
 * Device memory of one test. Every second buffer begins one element off the 64-byte line (kernels must not need more),
 * all are full of NaN at first (a result that was not written shows), and each stands between guards that check() reads.
 */
export class Bench {
  readonly device: Device;
  private readonly blocks: { base: Ptr; from: number; to: number; bytes: number }[] = [];

  constructor(isa: string, threads = 2) {
    this.device = openCpu({ isa, threads });
  }
  alloc(n: number, dt: DType = F32): Ptr {
    const size = dt === F32 ? 4 : 2;
    const from = GUARD + (this.blocks.length % 2) * size;
    const to = from + n * size;
    const bytes = to + GUARD;
    const base = this.device.alloc(bytes);
    this.blocks.push({ base, from, to, bytes });
    this.device.bytes(base, bytes).fill(0xff).fill(0xa5, 0, from).fill(0xa5, to);
    return base + from;
  }
  /** Puts numbers on the device; `values` becomes what the storage type made of them. */
  put(values: Float64Array, dt: DType): Ptr {
    const ptr = this.alloc(values.length, dt);
    values.forEach((v, i) => {
      values[i] = rounded(v, dt);
    });
    if (dt === F32) this.device.f32(ptr, values.length).set(values);
    else {
      const bits = new Uint32Array(Float32Array.from(values).buffer);
      this.device.u16(ptr, values.length).set(Uint16Array.from(bits, (u) => u >>> 16));
    }
    return ptr;
  }
  ints(values: ArrayLike<number>): Ptr {
    const ptr = this.alloc(values.length);
    this.device.i32(ptr, values.length).set(Int32Array.from(values));
    return ptr;
  }
  get(ptr: Ptr, n: number, dt: DType = F32): Float64Array {
    if (dt === F32) return Float64Array.from(this.device.f32(ptr, n));
    const bits = Uint32Array.from(this.device.u16(ptr, n), (w) => w << 16);
    return Float64Array.from(new Float32Array(bits.buffer));
  }
  /** The raw bytes, for comparisons that allow no difference. */
  bytes(ptr: Ptr, n: number, dt: DType = F32): string {
    return Buffer.from(this.device.bytes(ptr, n * (dt === F32 ? 4 : 2))).toString("base64");
  }
  /** Throws when a kernel wrote before or behind a buffer. */
  check(): void {
    this.blocks.forEach(({ base, from, to, bytes }, i) => {
      const all = this.device.bytes(base, bytes);
      if (![...all.subarray(0, from), ...all.subarray(to)].every((x) => x === 0xa5))
        throw new Error(`a kernel wrote outside of buffer ${i} of the test (${to - from} bytes)`);
    });
  }
  close(): void {
    for (const { base, bytes } of this.blocks) this.device.free(base, bytes);
  }
}

/** Runs `body` with a Bench, for every instruction set that this processor offers. */
export function onEach(body: (bench: Bench) => void, threads = 2): void {
  for (const isa of ISAS) {
    const bench = new Bench(isa, threads);
    try {
      body(bench);
      bench.check();
    } catch (error) {
      (error as Error).message = `[${isa}] ${(error as Error).message}`;
      throw error;
    } finally {
      bench.close();
    }
  }
}

/** `body` returns bytes; they must be the same on one thread, two and three, on each instruction set. */
export function expectSameOnAnyThreads(body: (bench: Bench) => string): void {
  const first = new Map<string, string>();
  for (const threads of [1, 2, 3])
    onEach((bench) => {
      expect(bench.device.threads).toBe(threads);
      const bytes = body(bench);
      expect(bytes.length).toBeGreaterThan(0);
      const { isa } = bench.device;
      if (bytes !== (first.get(isa) ?? bytes)) throw new Error(`${threads} threads gave other bytes than one`);
      first.set(isa, bytes);
    }, threads);
}

/** Every element within `share` of the largest one (values here are of order 1). NaN only meets NaN. */
export function expectClose(actual: Float64Array, expected: Float64Array, share: number, what = ""): void {
  expect(actual.length).toBe(expected.length);
  const largest = expected.reduce((m, x) => Math.max(m, Number.isFinite(x) ? Math.abs(x) : 0), 1e-2);
  actual.forEach((x, i) => {
    const y = expected[i];
    if (Object.is(x, y) || (Number.isNaN(x) && Number.isNaN(y))) return;
    if (!(Math.abs(x - y) <= share * largest))
      throw new Error(`${what}[${i}] is ${x}, expected ${y}; allowed ${share} of ${largest}`);
  });
}

/** d f / d x[i] by central differences in float64, at all places, or at `places` spread ones. */
export function slopes(f: () => number, x: Float64Array, places = x.length): { at: number[]; values: Float64Array } {
  const stride = Math.max(1, Math.floor(x.length / places));
  const at = Array.from({ length: Math.min(places, Math.ceil(x.length / stride)) }, (_, i) => i * stride);
  const h = 1e-5;
  const values = Float64Array.from(at, (i) => {
    const before = x[i];
    x[i] = before + h;
    const up = f();
    x[i] = before - h;
    const down = f();
    x[i] = before;
    return (up - down) / (2 * h);
  });
  return { at, values };
}
/** Compares a kernel's gradient with the slopes of the reference. */
export function expectSlopes(
  gradient: Float64Array,
  f: () => number,
  x: Float64Array,
  share: number,
  what: string,
): void {
  const { at, values } = slopes(f, x, 40);
  expectClose(
    Float64Array.from(at, (i) => gradient[i]),
    values,
    share,
    what,
  );
}
export const dot = (a: Float64Array, b: Float64Array): number => a.reduce((s, x, i) => s + x * b[i], 0);

// ---- the formulas ----

/** op(A)[M,K] op(B)[K,N] of row-major matrices; a transposed one is stored the other way round. */
export function matmul(
  a: Float64Array,
  b: Float64Array,
  M: number,
  N: number,
  K: number,
  tA: number,
  tB: number,
): Float64Array {
  const y = new Float64Array(M * N);
  for (let i = 0; i < M; i++)
    for (let j = 0; j < N; j++) {
      let s = 0;
      for (let k = 0; k < K; k++) s += a[tA ? k * M + i : i * K + k] * b[tB ? j * K + k : k * N + j];
      y[i * N + j] = s;
    }
  return y;
}

export function rmsnorm(x: Float64Array, w: Float64Array, D: number, eps: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let r = 0; r < x.length; r += D) {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += x[r + d] ** 2;
    const rstd = 1 / Math.sqrt(sum / D + eps);
    for (let d = 0; d < D; d++) y[r + d] = x[r + d] * rstd * w[d];
  }
  return y;
}

export function swiglu(gu: Float64Array, F: number): Float64Array {
  const N = gu.length / (2 * F);
  const y = new Float64Array(N * F);
  for (let i = 0; i < N; i++)
    for (let f = 0; f < F; f++) {
      const gate = gu[i * 2 * F + f];
      y[i * F + f] = (gate / (1 + Math.exp(-gate))) * gu[i * 2 * F + F + f];
    }
  return y;
}

export interface Shape {
  H: number;
  KV: number;
  D: number;
}
/** Causal attention within each sequence; qkv[N, (H + 2 KV) D]. */
export function attention(qkv: Float64Array, cu: readonly number[], { H, KV, D }: Shape): Float64Array {
  const width = (H + 2 * KV) * D;
  const N = cu[cu.length - 1];
  const y = new Float64Array(N * H * D);
  for (let s = 0; s + 1 < cu.length; s++)
    for (let h = 0; h < H; h++) {
      const kv = Math.floor(h / (H / KV));
      for (let i = cu[s]; i < cu[s + 1]; i++) {
        const scores: number[] = [];
        for (let j = cu[s]; j <= i; j++) {
          let score = 0;
          for (let d = 0; d < D; d++) score += qkv[i * width + h * D + d] * qkv[j * width + (H + kv) * D + d];
          scores.push(score / Math.sqrt(D));
        }
        const max = Math.max(...scores);
        const p = scores.map((x) => Math.exp(x - max));
        const sum = p.reduce((a, b) => a + b, 0);
        for (let d = 0; d < D; d++) {
          let v = 0;
          p.forEach((w, j) => {
            v += (w / sum) * qkv[(cu[s] + j) * width + (H + KV + kv) * D + d];
          });
          y[i * H * D + h * D + d] = v;
        }
      }
    }
  return y;
}

/** log softmax(hidden W^T * invTemperature)[target] per row, and the entropy of each row; target < 0: 0. */
export function logprob(
  hidden: Float64Array,
  W: Float64Array,
  target: readonly number[],
  D: number,
  invTemperature: number,
) {
  const V = W.length / D;
  const entropy = new Float64Array(target.length);
  const logp = Float64Array.from(target, (t, i) => {
    const logits = Array.from({ length: V }, (_, v) => {
      let s = 0;
      for (let d = 0; d < D; d++) s += hidden[i * D + d] * W[v * D + d];
      return s * invTemperature;
    });
    const max = logits.reduce((a, b) => Math.max(a, b));
    const lse = max + Math.log(logits.reduce((s, x) => s + Math.exp(x - max), 0));
    entropy[i] = logits.reduce((s, x) => s - Math.exp(x - lse) * (x - lse), 0);
    return t < 0 ? 0 : logits[t] - lse;
  });
  return { logp, entropy };
}
