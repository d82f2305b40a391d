/**
 * This machine: how fast its kernels are at the shapes that a run calls them with, and from that the run's memory and time.
 */
import { totalmem } from "node:os";
import { type Device, F32 } from "../device/device.js";
import { peakFlops } from "../device/peak.js";
import { UserError } from "../run/errors.js";
import { type Calls, type RehearsedRun, rehearse } from "./rehearsal.js";

export interface MachinePrediction {
  parameters: number;
  /**
   * Bytes that the model adds to the program; scratch is what the kernels keep for themselves. Gradients have no bytes of their own: they
   * lie where activations were.
   */
  memory: {
    scratch: number;
    parameters: number;
    optimizer: number;
    activations: number;
    buffers: number;
    total: number;
  };
  stepSeconds: number;
  tokensPerSecond: number;
  /** Seconds of a step by kernel, largest first; "script" is the program around them. */
  kernels: { kernel: string; calls: number; seconds: number }[];
  peakFlops: number;
  /** Bytes read and written per second by the engine's addition of two large vectors. */
  memoryBandwidth: number;
  utilisation: number;
}

/** Bytes per second of out = a + b on vectors far larger than the caches: two reads and a write for each element. */
export function memoryBandwidth(device: Device): number {
  const n = 16 * 2 ** 20;
  const p = device.alloc(3 * n * 4);
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 5; i++) {
    const began = performance.now();
    device.add(p, p + 4 * n, p + 8 * n, n, F32);
    if (i > 0) best = Math.min(best, performance.now() - began); // the first one also fetches the pages
  }
  device.free(p, 3 * n * 4);
  return (3 * n * 4) / (best / 1000);
}

/** Milliseconds of one call, the median over its examples in turn. */
function callTime(device: Device, { kernel, examples }: Calls): number {
  const run = (device as unknown as Record<string, (...args: number[]) => unknown>)[kernel].bind(device);
  for (const args of examples) run(...args); // touches the pages
  const times: number[] = [];
  let spent = 0;
  for (let i = 0; i < 100 && (times.length < 3 || spent < 20); i++) {
    const began = performance.now();
    run(...examples[i % examples.length]);
    const took = performance.now() - began;
    times.push(took);
    spent += took;
  }
  times.sort((x, y) => x - y);
  return times[times.length >> 1];
}

/** Rounds over all calls, of which the quickest counts: another program that works for a moment spoils one round, not all. */
const ROUNDS = 4;
function timeCalls(device: Device, calls: readonly Calls[]): number[] {
  const best = new Array<number>(calls.length).fill(Number.POSITIVE_INFINITY);
  for (let round = 0; round < ROUNDS; round++)
    for (const [i, call] of calls.entries()) best[i] = Math.min(best[i], callTime(device, call));
  return best;
}

/**
 * Measures the kernels of one step, each shape for a few times, and adds them up. Kernels keep their scratch memory, so a second
 * prediction in the same process sees only what its run needs beyond the first one's.
 */
export function predict(device: Device, run: RehearsedRun): MachinePrediction {
  const peak = peakFlops(device, run.precision);
  const bandwidth = memoryBandwidth(device);
  const before = process.memoryUsage.rss();
  const rehearsal = rehearse(device, run);
  const { states } = rehearsal;
  const needed = states.parameters + states.optimizer + rehearsal.arena;
  if (needed > totalmem()) {
    rehearsal.close();
    const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
    throw new UserError(
      `--calibrate: this run needs ${gigabytes(needed)} (${gigabytes(rehearsal.arena)} of it activations and gradients), and this machine has ${gigabytes(totalmem())}: nothing was measured. Make the batch (--batch), the context or the model smaller; a plan for other machines needs no --calibrate.`,
    );
  }
  const byKernel = new Map<string, { kernel: string; calls: number; seconds: number }>();
  const times = timeCalls(device, rehearsal.calls);
  for (const [i, call] of rehearsal.calls.entries()) {
    const entry = byKernel.get(call.kernel) ?? { kernel: call.kernel, calls: 0, seconds: 0 };
    entry.calls += call.count;
    entry.seconds += (call.count * times[i]) / 1000;
    byKernel.set(call.kernel, entry);
  }
  rehearsal.close();
  const scratch = Math.max(0, process.memoryUsage.rss() - before);
  byKernel.set("script", { kernel: "script", calls: 1, seconds: rehearsal.scriptSeconds });
  const kernels = [...byKernel.values()].sort((a, b) => b.seconds - a.seconds);
  const stepSeconds = kernels.reduce((n, k) => n + k.seconds, 0);
  const { parameters, optimizer, tables } = rehearsal.states;
  const memory = {
    scratch,
    parameters,
    optimizer,
    activations: rehearsal.arena,
    buffers: tables,
  };
  const tokens = run.batchSize * run.contextLength * run.gradientAccumulation;
  return {
    parameters: rehearsal.parameters,
    memory: { ...memory, total: Object.values(memory).reduce((a, b) => a + b, 0) },
    stepSeconds,
    tokensPerSecond: tokens / stepSeconds,
    kernels,
    peakFlops: peak,
    memoryBandwidth: bandwidth,
    utilisation: productFlops(rehearsal.calls) / stepSeconds / peak,
  };
}

/** Operations of all matrix products of a step; attention's and the logits' are inside their kernels and are not counted. */
function productFlops(calls: readonly Calls[]): number {
  let sum = 0;
  for (const { kernel, count, examples } of calls) {
    if (kernel !== "matmul") continue;
    const [, , M, N, K] = examples[0];
    sum += 2 * M * N * K * count;
  }
  return sum;
}
