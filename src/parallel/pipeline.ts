/**
 * Pipeline parallelism: each process has some of the layers; activations go up from stage to stage, gradients down.
 * With m micro-batches in a step and p stages, (p - 1) / (m + p - 1) of the time is spent waiting at the ends (the
 * bubble). GPipe (Huang et al. 2019) does all forward passes, then all backward ones, and holds the activations of m
 * micro-batches; 1F1B (PipeDream-Flush; Narayanan et al. 2021, section 2.2.1) takes turns as soon as it can, and holds those of at most p.
 */
import type { Device, DType, Ptr } from "../device/device.js";
import { F32 } from "../device/device.js";
import type { Tape, Tensor } from "../tensor/tensor.js";
import type { Comm, Pending } from "./comm.js";
import { Scratch } from "./scratch.js";

export type ScheduleKind = "1f1b" | "gpipe";
export interface Action {
  pass: "forward" | "backward";
  microBatch: number;
}

/** Micro-batches that stage `stage` of `stages` holds the activations of, at most. */
export const inFlight = (kind: ScheduleKind, stage: number, stages: number, m: number): number =>
  kind === "gpipe" && stages > 1 ? m : Math.min(m, stages - stage);

/** What stage `stage` of `stages` does with m micro-batches, in order. */
export function schedule(kind: ScheduleKind, stage: number, stages: number, m: number): Action[] {
  const ahead = inFlight(kind, stage, stages, m);
  const actions: Action[] = [];
  for (let i = 0; i < ahead; i++) actions.push({ pass: "forward", microBatch: i });
  for (let i = 0; i < m; i++) {
    actions.push({ pass: "backward", microBatch: i });
    if (i + ahead < m) actions.push({ pass: "forward", microBatch: i + ahead });
  }
  return actions;
}

const UP = 1;
const DOWN = 2;

/** One process's place in the pipeline. With one stage nothing is sent. */
export class Pipe {
  private readonly sending: { pending: Pending; ptr: Ptr }[] = [];
  private readonly scratch: Scratch;
  readonly first: boolean;
  readonly last: boolean;

  constructor(
    private readonly device: Device,
    readonly comm: Comm,
  ) {
    this.scratch = Scratch.of(device);
    this.first = comm.rank === 0;
    this.last = comm.rank === comm.size - 1;
  }

  /** Sends a copy and goes on: a stage that waited for its neighbour to listen could wait for one that waits for it. */
  private send(x: Tensor, to: number, tag: number): void {
    for (let i = this.sending.length - 1; i >= 0; i--)
      if (this.sending[i].pending.test()) this.arrived(this.sending.splice(i, 1));
    const bytes = x.size * (x.dtype === F32 ? 4 : 2);
    const ptr = this.scratch.take(bytes);
    this.device.bytes(ptr, bytes).set(this.device.bytes(x.ptr, bytes));
    this.sending.push({ pending: this.comm.startSend(ptr, bytes, to, tag), ptr });
  }

  /** Activations of the stage before: [N, D]; their gradient goes back to it. */
  receive(tape: Tape, dtype: DType, N: number, D: number): Tensor {
    const { rank } = this.comm;
    const x = tape.tensor(dtype, [N, D], true);
    this.comm.recv(x.ptr, x.size * (dtype === F32 ? 4 : 2), rank - 1, UP);
    return tape.record(x, (dx) => this.send(dx, rank - 1, DOWN));
  }

  /** Hands activations on. The result stands for all that the later stages make of them: from it a backward pass begins. */
  handOn(tape: Tape, h: Tensor): Tensor {
    const { rank } = this.comm;
    this.send(h, rank + 1, UP);
    const rest = tape.tensor(F32, [1], true);
    return tape.record(rest, () => {
      const dh = tape.tensor(h.dtype, h.shape);
      this.comm.recv(dh.ptr, dh.size * (h.dtype === F32 ? 4 : 2), rank + 1, DOWN);
      tape.accumulate(h, dh);
    });
  }

  /** What the last stage makes of the hidden states, in all stages: fp32 of this shape. `hidden`: handOn's, in the others. */
  fromLast(tape: Tape, hidden: Tensor, shape: readonly number[], make: (hidden: Tensor) => Tensor): Tensor {
    const { comm } = this;
    if (comm.size === 1) return make(hidden);
    const y = this.last ? make(hidden) : tape.tensor(F32, shape, hidden.requiresGrad);
    comm.broadcast(y.ptr, y.size * 4, comm.size - 1);
    if (this.last) return y;
    return tape.record(y, () => {
      const begin = tape.tensor(F32, [1]);
      tape.accumulate(hidden, begin);
    });
  }

  /** Waits until everything that was sent has arrived. */
  flush(): void {
    for (const { pending } of this.sending) pending.wait();
    this.arrived(this.sending.splice(0));
  }
  private arrived(sent: readonly { ptr: Ptr }[]): void {
    for (const { ptr } of sent) this.scratch.giveBack(ptr);
  }
}
