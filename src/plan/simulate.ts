/**
 * A training step as discrete events: stages of a pipeline that work through their micro-batches, messages between them, and the
 * ring in which the replicas sum their gradients. One event is one piece of work of one tensor-parallel group, which moves in step.
 */
import { type Schedule, type Work, workOrder } from "./schedule.js";

export interface PipelineCase {
  stages: number;
  micro: number;
  schedule: Schedule;
  /** Chunks of layers on a device (interleaved 1F1B); 1: not interleaved. */
  chunks?: number;
  /** Seconds of one micro-batch on one chunk, for each stage. */
  forward: readonly number[];
  backward: readonly number[];
  /** Seconds of a message between neighbouring stages; it travels while both go on working. */
  send: number;
  /** Factor on the time of a piece of work (a slow device); default: 1. */
  slowness?: (stage: number, work: Work) => number;
}

export interface PipelineResult {
  /** When the last stage of all ended. */
  seconds: number;
  /** When each stage ended, and how long it worked. */
  ended: Float64Array;
  busy: Float64Array;
  /** Share of stages x seconds in which nothing was done. */
  bubble: number;
  /** Most micro-batches (of one chunk) whose activations a stage held at once. */
  held: Int32Array;
  pieces: { stage: number; work: Work; from: number; to: number }[];
}

/** A heap of things that happen, earliest first; ties in the order they were put in, so that a result never varies. */
class Agenda {
  private readonly at: number[] = [];
  private readonly what: number[] = [];
  private readonly order: number[] = [];
  private count = 0;

  get size(): number {
    return this.at.length;
  }
  put(at: number, what: number): void {
    let i = this.at.length;
    this.at.push(at);
    this.what.push(what);
    this.order.push(this.count++);
    while (i > 0) {
      const up = (i - 1) >> 1;
      if (!this.before(i, up)) break;
      this.swap(i, up);
      i = up;
    }
  }
  take(): { at: number; what: number } {
    const result = { at: this.at[0], what: this.what[0] };
    const last = this.at.length - 1;
    this.swap(0, last);
    this.at.pop();
    this.what.pop();
    this.order.pop();
    for (let i = 0; ; ) {
      const [left, right] = [2 * i + 1, 2 * i + 2];
      let least = i;
      if (left < last && this.before(left, least)) least = left;
      if (right < last && this.before(right, least)) least = right;
      if (least === i) return result;
      this.swap(i, least);
      i = least;
    }
  }
  private before(a: number, b: number): boolean {
    return this.at[a] < this.at[b] || (this.at[a] === this.at[b] && this.order[a] < this.order[b]);
  }
  private swap(a: number, b: number): void {
    for (const list of [this.at, this.what, this.order]) [list[a], list[b]] = [list[b], list[a]];
  }
}

/** Runs one pipeline from its first forward to its last backward. */
export function simulatePipeline(c: PipelineCase): PipelineResult {
  const { stages, micro, schedule, send, chunks = 1 } = c;
  if (chunks > 1 && micro % stages !== 0)
    throw new RangeError(`interleaving needs micro-batches (${micro}) in multiples of the stages (${stages})`);
  const orders = Array.from({ length: stages }, (_, s) => workOrder(schedule, s, stages, micro, chunks));
  // A virtual stage is a chunk of layers; chunk c of stage s is number c * stages + s.
  const virtual = stages * chunks;
  const key = (backward: boolean, at: number, m: number): number => ((backward ? virtual : 0) + at) * micro + m;
  const arrived = new Uint8Array(2 * virtual * micro);
  for (let m = 0; m < micro; m++) arrived[key(false, 0, m)] = 1;
  const next = new Int32Array(stages);
  const working = new Uint8Array(stages);
  const result: PipelineResult = {
    seconds: 0,
    ended: new Float64Array(stages),
    busy: new Float64Array(stages),
    bubble: 0,
    held: new Int32Array(stages),
    pieces: [],
  };
  const holding = new Int32Array(stages);
  const agenda = new Agenda();
  // What happens: a stage becomes free (its number), or an input arrives (stages + its key).
  const begin = (stage: number, now: number): void => {
    if (working[stage] || next[stage] === orders[stage].length) return;
    const work = orders[stage][next[stage]];
    if (!arrived[key(work.backward, work.chunk * stages + stage, work.micro)]) return;
    const seconds = (work.backward ? c.backward : c.forward)[stage] * (c.slowness?.(stage, work) ?? 1);
    working[stage] = 1;
    holding[stage] += work.backward ? 0 : 1;
    result.held[stage] = Math.max(result.held[stage], holding[stage]);
    result.busy[stage] += seconds;
    result.pieces.push({ stage, work, from: now, to: now + seconds });
    agenda.put(now + seconds, stage);
  };
  const finish = (stage: number, now: number): void => {
    const { backward, chunk, micro: m } = orders[stage][next[stage]++];
    const at = chunk * stages + stage;
    working[stage] = 0;
    holding[stage] -= backward ? 1 : 0;
    result.ended[stage] = now;
    const to = backward ? at - 1 : at + 1;
    if (to === virtual)
      arrived[key(true, at, m)] = 1; // the last chunk turns round at once
    else if (to >= 0) agenda.put(now + (stages > 1 ? send : 0), stages + key(backward, to, m));
  };
  for (let stage = 0; stage < stages; stage++) begin(stage, 0);
  while (agenda.size > 0) {
    const { at, what } = agenda.take();
    let stage = what;
    if (what < stages) finish(stage, at);
    else {
      arrived[what - stages] = 1;
      stage = (Math.floor((what - stages) / micro) % virtual) % stages;
    }
    begin(stage, at);
  }
  if (next.some((n, s) => n !== orders[s].length)) throw new Error("the schedule waits for itself");
  result.seconds = Math.max(...result.ended);
  result.bubble = 1 - result.busy.reduce((a, b) => a + b, 0) / (stages * result.seconds);
  return result;
}

/**
 * When each rank has the sum, if rank r joins a ring all-reduce at joined[r]: 2 (n - 1) exchanges of bytes / n between neighbours,
 * each begun when both have ended the one before (Patarasuk & Yuan 2009). `passes`: 2 all-reduce, 1 reduce-scatter or all-gather.
 */
export function simulateRing(
  joined: ArrayLike<number>,
  bytes: number,
  bandwidth: number,
  latency: number,
  passes: 1 | 2 = 2,
): Float64Array {
  const n = joined.length;
  const exchange = latency + bytes / n / bandwidth;
  let now = Float64Array.from(joined);
  let after = new Float64Array(n);
  for (let k = 0; k < passes * (n - 1); k++) {
    for (let r = 0; r < n; r++) after[r] = Math.max(now[r], now[r === 0 ? n - 1 : r - 1]) + exchange;
    [now, after] = [after, now];
  }
  return now;
}
