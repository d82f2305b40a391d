/**
 * A step of a whole cluster, with devices that are not all equally fast: every replica's pipeline as discrete events, then for each
 * stage the ring in which the replicas sum its gradients, which begins for a rank when its own pipeline has ended.
 */
import type { Cluster } from "./cluster.js";
import { type Layout, microBatches, residents, type Workload } from "./layout.js";
import { simulatePipeline, simulateRing } from "./simulate.js";
import { exchange, stageSeconds } from "./time.js";

export interface GridResult {
  /** Seconds of a step when all devices are equal, and when they differ. */
  even: number;
  uneven: number;
  /** Pieces of work that were simulated, and exchanges between neighbours in a ring. */
  pieces: number;
  exchanges: number;
  /** Share of the time in which a device waits, when they differ. */
  waiting: number;
}

/** 32 well-mixed bits of two numbers (the finalizer of MurmurHash3, Appleby), as a number in (0, 1). */
function mixed(a: number, b: number): number {
  let h = Math.imul(a, 0x9e3779b1) ^ Math.imul(b + 0x7f4a7c15, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32 + 2 ** -33;
}
/** A draw of the standard normal distribution (Box & Muller 1958), the same for the same numbers. */
const normal = (seed: number, n: number): number =>
  Math.sqrt(-2 * Math.log(mixed(seed, 2 * n))) * Math.cos(2 * Math.PI * mixed(seed, 2 * n + 1));

/**
 * The training pass of the first trained model. `jitter`: relative deviation of a device's speed, and as much again from one piece
 * of work to the next; a tensor-parallel group is as fast as its slowest device.
 */
export function simulateGrid(w: Workload, l: Layout, c: Cluster, jitter: number, seed = 1): GridResult {
  const model = residents(w).find((r) => r.trained)!;
  const { stages, send } = stageSeconds(model, w, l, c);
  const ring = exchange(model, w, l, c).seconds;
  const micro = microBatches(w, l);
  const common = {
    stages: l.pipeline,
    micro,
    schedule: "1f1b" as const,
    chunks: l.chunks,
    forward: stages.map((s) => s.forward / l.chunks),
    backward: stages.map((s) => s.backward / l.chunks),
    send,
  };
  const even = simulatePipeline(common).seconds + ring;

  const slowest = (group: number): number => {
    let most = -Infinity;
    for (let t = 0; t < l.tensor; t++) most = Math.max(most, normal(seed, group * l.tensor + t));
    return Math.exp(jitter * most);
  };
  let pieces = 0;
  let busy = 0;
  const ended: Float64Array[] = [];
  for (let replica = 0; replica < l.data; replica++) {
    const speeds = Array.from({ length: l.pipeline }, (_, s) => slowest(replica * l.pipeline + s));
    const result = simulatePipeline({
      ...common,
      slowness: (stage, { micro: m, chunk, backward }) => {
        const piece = ((m * l.chunks + chunk) * 2 + Number(backward)) * l.pipeline + stage;
        return speeds[stage] * Math.exp(jitter * normal(seed + 1 + replica, piece));
      },
    });
    pieces += result.pieces.length;
    busy += result.busy.reduce((a, b) => a + b, 0);
    ended.push(result.ended);
  }
  let uneven = 0;
  const steps = 2 * (l.data - 1);
  for (let s = 0; s < l.pipeline; s++) {
    const joined = Float64Array.from(ended, (e) => e[s]);
    // Scaled so that ranks that join together end after `ring` seconds.
    const done = l.data > 1 ? simulateRing(joined, (ring / steps) * l.data, 1, 0) : joined;
    for (const at of done) uneven = Math.max(uneven, at);
  }
  return {
    even,
    uneven,
    pieces,
    exchanges: l.data > 1 ? steps * l.data * l.pipeline : 0,
    waiting: 1 - busy / (l.data * l.pipeline * uneven),
  };
}
