/**
 * Comm: the seam between processes. `single` is one process alone; mpi.ts runs on an installed MPI. Data parallelism,
 * ZeRO, tensor and pipeline parallelism are written once, over this, and run at any size including 1.
 *
 * Sums are the same bits on every rank and in every algorithm: pieces are exchanged as they are (bf16 as bf16, which has
 * no MPI type), and added on the receiving side in fp32, in the order of the ranks, with one rounding at the end. A
 * reduction inside MPI would add bf16 pairwise, round after each addition, and depend on the algorithm that MPI picks.
 * So an all-reduce is a reduce-scatter and an all-gather: 2 (N-1)/N of its bytes leave each rank, as in a ring.
 */
import type { Device, DType, Ptr } from "../device/device.js";

/** A transfer under way. Memory it reads or writes must be left alone until it is done. */
export interface Pending {
  /** Moves it on, without waiting; true when it is done. */
  test(): boolean;
  wait(): void;
}

export const done: Pending = { test: () => true, wait: () => {} };

export interface Comm {
  readonly rank: number;
  readonly size: number;
  /** Bytes this process has sent to others since the start, over this communicator and all that were split from it. */
  readonly bytesSent: number;

  /** Ranks of one color form a communicator of their own, in the order of `key`. All ranks must call it. */
  split(color: number, key: number): Comm;

  /** Sum over all ranks, in place: x[n]. */
  allReduce(x: Ptr, n: number, dtype: DType): void;
  /**
   * Sum over all ranks of x[size * n]; rank r keeps elements r * n .. (r + 1) * n - 1 in out[n], which may lie in x.
   * With `add` they are added to what out holds; with `low`, of bf16, out and low are the halves of an fp32 sum.
   */
  reduceScatter(x: Ptr, n: number, dtype: DType, out: Ptr, add?: boolean, low?: Ptr): void;
  /** out[size * bytes] = every rank's x[bytes], in the order of the ranks; x may be its own place in out. */
  allGather(x: Ptr, bytes: number, out: Ptr): void;
  broadcast(x: Ptr, bytes: number, root: number): void;
  send(x: Ptr, bytes: number, to: number, tag: number): void;
  recv(x: Ptr, bytes: number, from: number, tag: number): void;

  /** The same, begun and not waited for. Begun in the same order on every rank. */
  startAllReduce(x: Ptr, n: number, dtype: DType): Pending;
  startReduceScatter(x: Ptr, n: number, dtype: DType, out: Ptr, add?: boolean, low?: Ptr): Pending;
  startAllGather(x: Ptr, bytes: number, out: Ptr): Pending;
  startBroadcast(x: Ptr, bytes: number, root: number): Pending;
  startSend(x: Ptr, bytes: number, to: number, tag: number): Pending;
  startRecv(x: Ptr, bytes: number, from: number, tag: number): Pending;

  /** pieces[r] goes to rank r; what every rank has for this one, in the order of the ranks. Less than 2 GiB in all. */
  allToAll(pieces: readonly Uint8Array[]): Uint8Array[];
  /** Every rank's numbers (as many on each), in the order of the ranks. */
  gatherNumbers(values: readonly number[]): number[][];
  /** Every rank's text, in the order of the ranks. */
  gatherText(text: string): string[];
  /** Waits for all. `patient`: for as long as it takes, asleep; for work that one rank does for all. */
  barrier(patient?: boolean): void;
  /** Ends the whole job. */
  abort(code: number): never;
}

/** Sums of numbers over the ranks, in their order; the same on every rank. */
export function sumNumbers(comm: Comm, values: readonly number[]): number[] {
  const all = comm.gatherNumbers(values);
  return values.map((_, i) => all.reduce((sum, of) => sum + of[i], 0));
}

/** One process alone: a sum over one rank is what it was. */
export function single(device: Device): Comm {
  const copy = (from: Ptr, to: Ptr, bytes: number): void => {
    if (from !== to) device.bytes(to, bytes).set(device.bytes(from, bytes));
  };
  const nobody = (): never => {
    throw new Error("There is no other rank to talk to.");
  };
  const reduceScatter = (x: Ptr, n: number, dtype: DType, out: Ptr, add = false, low: Ptr = 0): void =>
    device.sumPieces(x, n, 1, out, low, add ? 1 : 0, dtype);
  return {
    rank: 0,
    size: 1,
    bytesSent: 0,
    split: () => single(device),
    allReduce: () => {},
    reduceScatter,
    allGather: (x, bytes, out) => copy(x, out, bytes),
    broadcast: () => {},
    send: nobody,
    recv: nobody,
    startAllReduce: () => done,
    startReduceScatter(...args) {
      reduceScatter(...args);
      return done;
    },
    startAllGather(x, bytes, out) {
      copy(x, out, bytes);
      return done;
    },
    startBroadcast: () => done,
    startSend: nobody,
    startRecv: nobody,
    allToAll: (pieces) => [...pieces],
    gatherNumbers: (values) => [[...values]],
    gatherText: (text) => [text],
    barrier: () => {},
    abort: (code) => process.exit(code),
  };
}
