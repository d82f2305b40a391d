/**
 * A Device that notes how long each kernel takes, and what it did: operations and bytes, reckoned from its arguments.
 * Bytes are those that must move at least once: operands read, results written.
 */
import { BF12, type Device, type DType, dtypeBytes, INT8, type Ptr } from "./device.js";

export interface Cost {
  flops: number;
  bytes: number;
  /** Of a matrix product: its sizes, and which operand is stored transposed. */
  shape?: string;
}
export interface KernelEvent extends Cost {
  kernel: string;
  /** Milliseconds on the clock of performance.now(). */
  start: number;
  duration: number;
}

type Args = readonly number[];
const w = (dtype: number): number => dtypeBytes(dtype as DType);

/** Sum over the sequences of length (length + 1) / 2: pairs that causal attention looks at. */
function causalPairs(device: Device, cu: Ptr, sequences: number): number {
  const borders = device.i32(cu, sequences + 1);
  let pairs = 0;
  for (let s = 0; s < sequences; s++) {
    const length = borders[s + 1] - borders[s];
    pairs += (length * (length + 1)) / 2;
  }
  return pairs;
}

/** Logits, and what they pass back: to the hidden states, to the output matrix, to one of them or both. */
function outputMatrix(dhidden: Ptr, dW: Ptr, N: number, D: number, V: number, dt: number): Cost {
  const products = 1 + (dhidden === 0 ? 0 : 1) + (dW === 0 ? 0 : 1);
  return { flops: 2 * products * N * D * V, bytes: (2 * N + (dW === 0 ? 1 : 3) * V) * D * w(dt) };
}

/** A product of few rows: x[B, K] by weights [N, K] of type `wt`. */
function few(B: number, N: number, K: number, wt: number, dt: number, written: number): Cost {
  const weight = wt === INT8 ? 1 : wt === BF12 ? 1.5 : w(wt);
  return { flops: 2 * B * N * K, bytes: N * K * weight + B * K * w(dt) + written, shape: `${B}x${N}x${K}` };
}

/** Operations and bytes of a call, from its arguments in the order of the Device's method. */
export const COSTS: Record<string, (a: Args, device: Device) => Cost> = {
  matmul([tA, tB, M, N, K, , , dtA, , , dtB, , beta, , dtC, , R, batch]) {
    const written = M * N * w(dtC) * (beta === 0 ? 1 : 2) + (R === 0 ? 0 : M * N * w(dtC));
    const shape = `${M}x${N}x${K} ${tA ? "t" : "n"}${tB ? "t" : "n"}`;
    return { flops: 2 * M * N * K * batch, bytes: batch * (M * K * w(dtA) + K * N * w(dtB) + written), shape };
  },
  embeddingForward: ([, , , N, D, dt]) => ({ flops: 0, bytes: 2 * N * D * w(dt) }),
  embeddingBackward: ([, , , N, D, , dt]) => ({ flops: N * D, bytes: 3 * N * D * w(dt) }),
  rmsnormForward([, residual, , , , , N, D, , dt]) {
    return { flops: 4 * N * D, bytes: (residual === 0 ? 2 : 4) * N * D * w(dt) };
  },
  rmsnormBackward([, , , , extra, , , y, N, D, dt]) {
    return { flops: 8 * N * D, bytes: (3 + (extra === 0 ? 0 : 1) + (y === 0 ? 0 : 1)) * N * D * w(dt) };
  },
  rope: ([, , , , , N, heads, D, , dt]) => ({ flops: 3 * N * heads * D, bytes: 2 * N * heads * D * w(dt) }),
  addBias: ([, , N, M, dt]) => ({ flops: N * M, bytes: 2 * N * M * w(dt) }),
  biasBackward: ([, , N, M, dt]) => ({ flops: N * M, bytes: N * M * w(dt) }),
  headNormForward([x, , , y, , N, H, KV, D, , dt]) {
    return { flops: 4 * N * (H + KV) * D, bytes: 2 * N * (H + (x === y ? KV : 2 * KV)) * D * w(dt) };
  },
  headNormBackward([dy, , , , , dx, , , N, H, KV, D, dt]) {
    return { flops: 8 * N * (H + KV) * D, bytes: N * (3 * (H + KV) + (dx === dy ? 0 : 2 * KV)) * D * w(dt) };
  },
  attentionForward([, , , , , , cu, nseq, N, H, KV, D, , dt], device) {
    // Scores and their weighted sum of values.
    return { flops: 4 * causalPairs(device, cu, nseq) * H * D, bytes: N * (2 * H + 2 * KV) * D * w(dt) };
  },
  attentionBackward([, , , , , , , , cu, nseq, N, H, KV, D, , dt], device) {
    // Scores again, and the gradients of weights, values, queries and keys.
    return { flops: 10 * causalPairs(device, cu, nseq) * H * D, bytes: N * (4 * H + 4 * KV) * D * w(dt) };
  },
  attentionCached([, , , , , past, B, T, , H, KV, D, , dt], device) {
    // Row i of sequence b sees what is cached and itself; keys and values are read once for all rows and heads.
    let pairs = 0;
    let cached = 0;
    for (const before of device.i32(past, B)) {
      pairs += T * before + (T * (T + 1)) / 2;
      cached += before + T;
    }
    return { flops: 4 * pairs * H * D, bytes: (2 * B * T * H + 2 * cached * KV) * D * w(dt) };
  },
  cacheAppend: ([, , , , B, T, , , KV, D, dt]) => ({ flops: 0, bytes: 4 * B * T * KV * D * w(dt) }),
  decodeLinear([, , , wt, R, , , dty, B, N, K, dt]) {
    return few(B, N, K, wt, dt, B * N * w(dty) * (R === 0 ? 1 : 2));
  },
  decodeQkv([, , , wt, , , , , , , , , B, , K, H, KV, D, dt]) {
    return few(B, (H + 2 * KV) * D, K, wt, dt, B * (H + 2 * KV) * D * w(dt));
  },
  decodeSwiglu: ([, , , wt, , , B, F, K, dt]) => few(B, 2 * F, K, wt, dt, B * F * w(dt)),
  quantizeRows: ([, , , N, K, dt]) => ({ flops: 2 * N * K, bytes: N * K * (w(dt) + 1) }),
  bf12Pack: ([, , N, K]) => ({ flops: 0, bytes: N * K * 3.5 }),
  swigluForward: ([, , N, F, dt]) => ({ flops: 6 * N * F, bytes: 3 * N * F * w(dt) }),
  swigluBackward: ([, , , y, N, F, dt]) => ({ flops: 12 * N * F, bytes: (y === 0 ? 5 : 6) * N * F * w(dt) }),
  logprobForward: ([, , , , , , N, D, V, , dt]) => ({ flops: 2 * N * D * V, bytes: (N + V) * D * w(dt) }),
  logprobBackward: ([, , , , , dh, dW, N, D, V, , dt]) => outputMatrix(dh, dW, N, D, V, dt),
  entropyBackward: ([, , , , , , dh, dW, N, D, V, , dt]) => outputMatrix(dh, dW, N, D, V, dt),
  logprobForwardBackward: ([, , , , , , dh, dW, N, D, V, , dt]) => outputMatrix(dh, dW, N, D, V, dt),
  // m and v are read and written, and so are the parameter and, in bf16, the lower half of its master; the gradient is read.
  adamw([n, , low, , , ema, , dt]) {
    return { flops: 15 * n, bytes: n * (16 + (low === 0 ? 0 : 4) + 3 * w(dt) + (ema === 0 ? 0 : 8)) };
  },
  joinMaster: ([, , , n]) => ({ flops: 0, bytes: 8 * n }),
  splitMaster: ([, , , n]) => ({ flops: 0, bytes: 8 * n }),
  sumSquares: ([, n, dt]) => ({ flops: 2 * n, bytes: n * w(dt) }),
  fill: ([, , n, dt]) => ({ flops: 0, bytes: n * w(dt) }),
  add: ([, , , n, dt]) => ({ flops: n, bytes: 3 * n * w(dt) }),
  cast: ([, from, , to, n]) => ({ flops: 0, bytes: n * (w(from) + w(to)) }),
  sumPieces: ([, n, count, , low, add, dt]) => ({
    flops: n * count,
    bytes: n * (count + (1 + add) * (low === 0 ? 1 : 2)) * w(dt),
  }),
  // A Philox block of ten rounds gives four draws: reckoned as bytes written only.
  randomNormal: ([, n, , , , , dt]) => ({ flops: 0, bytes: n * w(dt) }),
  randomUniform: ([, n]) => ({ flops: 0, bytes: n * 4 }),
  sample: ([, B, V]) => ({ flops: 0, bytes: B * V * 4 }),
  copyRows: ([, , , n, D, dt]) => ({ flops: 0, bytes: 2 * n * D * w(dt) }),
  addRows: ([, , , n, D, dt]) => ({ flops: n * D, bytes: 3 * n * D * w(dt) }),
};

/** The same device, which also calls `note` after every kernel of the table above. */
export function profiled(device: Device, note: (event: KernelEvent) => void): Device {
  const wrapped = Object.create(device) as Record<string, unknown>;
  for (const [kernel, cost] of Object.entries(COSTS)) {
    const run = (device as unknown as Record<string, (...args: number[]) => unknown>)[kernel];
    wrapped[kernel] = (...args: number[]) => {
      const start = performance.now();
      const result = run(...args);
      const duration = performance.now() - start;
      note({ kernel, start, duration, ...cost(args, device) });
      return result;
    };
  }
  return wrapped as unknown as Device;
}

/** Bytes a second that memory gives to all threads: the better of a few sums of arrays that no cache holds. */
export function peakBandwidth(device: Device): number {
  const n = 24 * 2 ** 20;
  const arrays = [0, 1, 2].map(() => device.alloc(n * 4));
  for (const a of arrays) device.fill(a, 1, n, 0);
  let best = 0;
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    device.add(arrays[0], arrays[1], arrays[2], n, 0);
    best = Math.max(best, (3 * n * 4) / ((performance.now() - start) / 1000));
  }
  for (const a of arrays) device.free(a, n * 4);
  return best;
}
