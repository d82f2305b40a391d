/**
 * Comm on an installed MPI (Open MPI or MPICH), called by FFI; processes are started by mpirun or srun.
 *
 * Every wait is a non-blocking call that is polled, so that a rank can say whom it waits for: a collective that takes
 * longer than the limit names the ranks that never came to it, and ends the job.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { type Device, type DType, dtypeBytes, type Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";
import { type Comm, done, type Pending } from "./comm.js";
import { BLOCK, handleAt, type Mpi, openMpi } from "./mpi-library.js";
import { Scratch } from "./scratch.js";
import { SPEAKS, Waiting } from "./waiting.js";

/** Seconds that a collective may wait for a rank; the environment variable LYCEUM_MPI_TIMEOUT changes it. */
const DEFAULT_TIMEOUT = 300;
/** Milliseconds that a wait polls without a pause. */
const SPIN = 1;
/** Nobody ever wakes who waits for this: a pause. */
const never = new Int32Array(new SharedArrayBuffer(4));

function timeLimit(): number {
  const text = process.env.LYCEUM_MPI_TIMEOUT;
  if (text === undefined || text === "") return DEFAULT_TIMEOUT;
  const seconds = Number(text);
  if (!(seconds > 0))
    throw new UserError(`LYCEUM_MPI_TIMEOUT is "${text}"; it must be a number of seconds above 0.`, 2);
  return seconds;
}

/**
 * Rank and size as the launcher announces them in the environment; undefined when no launcher started this process, or
 * this one alone (so does Slurm an interactive shell): that needs no MPI.
 */
export function launched(env: NodeJS.ProcessEnv = process.env): { rank: number; size: number } | undefined {
  for (const [rank, size] of [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
  ]) {
    if (env[rank] === undefined || env[size] === undefined) continue;
    return Number(env[size]) > 1 ? { rank: Number(env[rank]), size: Number(env[size]) } : undefined;
  }
  return undefined;
}

/** All ranks of the job. Starts MPI; it ends with the process. */
export function mpiWorld(device: Device): Comm {
  timeLimit(); // a mistake in it is told before anything starts
  const mpi = openMpi(device);
  const world = new MpiComm(device, mpi, mpi.world);
  // An MPI that cannot talk to the launcher takes each process for a job of its own.
  const announced = launched()?.size ?? 1;
  if (world.size < announced)
    throw new UserError(
      `${announced} processes were started, but MPI (${mpi.flavour === "openmpi" ? "Open MPI" : "MPICH"}) finds ${world.size}: each would do the whole job alone. ` +
        "Start them with the mpirun of this MPI; under Slurm with srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH). LYCEUM_MPI_LIBRARY=FILE names the library of another MPI.",
      2,
    );
  return world;
}

/** MPICH names a process that died by its number on its host, and not by its rank: here one finds which it was. */
export function whoIsWho(world: Comm): void {
  if (process.env.PMI_RANK === undefined || world.size === 1) return;
  const all = world.gatherText(`process ${process.pid} on ${hostname()}`);
  console.error(all.map((who, rank) => `rank ${rank} is ${who}`).join(", "));
}

/** Ranks of the job that share this process's cores: all on this machine, but for those that are bound to other cores. */
export function ranksOnThisHost(device: Device): number {
  const mpi = openMpi(device);
  const out = device.alloc(64);
  mpi.call.splitShared(mpi.world, mpi.sharedType, 0, mpi.infoNull, out);
  const color = createHash("sha256").update(ownCores()).digest().readUInt32LE() >>> 1;
  mpi.call.split(handleAt(device, mpi, out), color, 0, out);
  mpi.call.size(handleAt(device, mpi, out), out + 32);
  return device.i32(out + 32, 1)[0];
}

/** The cores that the launcher lets this process use, such as "0-7"; empty where the system does not say. */
function ownCores(): string {
  if (!existsSync("/proc/self/status")) return "";
  return /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync("/proc/self/status", "latin1"))?.[1] ?? "";
}

/** Communicators with an all-reduce whose second half has not begun. Whoever waits, for whatever it is, moves them on. */
const summing = new Set<MpiComm>();

interface Wait extends Pending {
  /** `patient`: beyond the limit it tells once who is missing, and waits on. */
  wait(patient?: boolean): void;
}

class MpiComm implements Comm {
  readonly rank: number;
  readonly size: number;
  private sent = 0;
  private readonly parts: MpiComm[] = [];
  /** Collectives begun, for the message of a rank that waits in vain. */
  private begun = 0;
  private readonly slots: Ptr[] = [];
  private readonly scratch: Scratch;
  private readonly waiting: Waiting;
  /** What these ranks are in the whole job: by that number a user knows them. */
  private readonly members: readonly number[] = [];
  /**
   * The same ranks once more, for what follows when a sum is there: that is at another time on every rank, and
   * collectives of one communicator must begin in one order.
   */
  private readonly second: number = 0;
  /** All-reduces that are still summed, in the order in which they were begun. */
  private readonly sums: { pieces: Pending; handRound: () => void }[] = [];

  constructor(
    private readonly device: Device,
    private readonly mpi: Mpi,
    private readonly comm: number,
    /** The whole job's, of a part of it. */
    waiting?: Waiting,
  ) {
    this.scratch = Scratch.of(device);
    const out = device.alloc(64);
    const read = (f: (comm: number, out: Ptr) => number): number => {
      this.check(f(comm, out));
      return device.i32(out, 1)[0];
    };
    this.rank = read(mpi.call.rank);
    this.size = read(mpi.call.size);
    if (this.size > 1) {
      this.check(mpi.call.split(comm, 0, this.rank, out));
      this.second = handleAt(device, mpi, out);
    }
    device.free(out, 64);
    this.waiting = waiting ?? new Waiting(device, mpi, this.rank);
    this.members = this.gatherNumbers([this.waiting.rank]).map(([rank]) => rank);
    if (!waiting) this.waiting.hosts = this.gatherText(hostname());
  }

  get bytesSent(): number {
    return this.parts.reduce((n, part) => n + part.bytesSent, this.sent);
  }

  private check(code: number): void {
    if (code === 0) return;
    const { rank } = this.waiting ?? this;
    throw new UserError(`MPI failed on rank ${rank} (${hostname()}): ${this.mpi.explain(code)}.`);
  }

  split(color: number, key: number): Comm {
    this.barrier(); // MPI's own split cannot be polled: a rank that does not come is named here
    const out = this.device.alloc(64);
    this.check(this.mpi.call.split(this.comm, color, key, out));
    const part = new MpiComm(this.device, this.mpi, handleAt(this.device, this.mpi, out), this.waiting);
    this.device.free(out, 64);
    this.parts.push(part);
    return part;
  }

  /** Begins `call(request)` and watches it; `then` runs once, when it is done. `peer`: the one rank that it takes. */
  private start(what: string, call: (request: Ptr) => number, then?: () => void, peer?: number): Wait {
    const { device, mpi } = this;
    const slot = this.slots.pop() ?? device.alloc(64); // the request, and at byte 32 the flag of MPI_Test
    const flag = device.i32(slot + 32, 1);
    this.check(call(slot));
    const at = this.begun++;
    let finished = false;
    const test = (): boolean => {
      if (finished) return true;
      this.check(mpi.call.test(slot, slot + 32, mpi.statusIgnore));
      if (flag[0] === 0) return false;
      finished = true;
      this.slots.push(slot);
      then?.();
      return true;
    };
    const wait = (patient = false): void => {
      this.waiting.listenNowAndThen();
      if (test()) return;
      const limit = timeLimit() * 1000;
      const began = performance.now();
      let told = false;
      let asked = false;
      let waits = false;
      for (let polls = 1; !test(); polls++) {
        for (const comm of summing) comm.moveOn();
        if (!waits && polls % 16 !== 0) continue;
        const waited = performance.now() - began;
        // Whoever waits for long leaves its core to others: where processes share cores, to the one that it waits for.
        waits = waited > SPIN;
        if (waits) Atomics.wait(never, 0, 0, waited > 50 * SPIN ? (patient ? 2 : 0.5) : 0.05);
        if (waited > Math.min(limit / 2, SPEAKS) && !told) {
          told = true;
          this.waiting.tell(true);
        }
        if (waited > limit && !asked) {
          asked = true;
          const text = this.whoIsMissing(what, at, limit / 1000, peer);
          if (test()) break; // it came while this rank asked
          if (!patient) this.giveUp(text);
          this.say(`${text}, which may do work for all. It goes on waiting.`);
        }
      }
      if (told) this.waiting.tell(false);
    };
    return { test, wait };
  }

  private giveUp(text: string): never {
    this.say(`error: ${text}. The job ends. A limit for slow machines: LYCEUM_MPI_TIMEOUT=SECONDS.`);
    return this.abort(1);
  }

  /** Not console.error: that is silent in all processes but the first, and the first may be the one that is missing. */
  private say(text: string): void {
    process.stderr.write(`${text}\n`);
  }

  private whoIsMissing(what: string, at: number, seconds: number, peer?: number): string {
    const { waiting, members, size } = this;
    const missing = waiting.missing(peer === undefined ? members : [members[peer]]);
    const whom =
      missing.length > 0
        ? missing.map((r) => waiting.name(r)).join(", ")
        : "nobody: all ranks wait, each in another call";
    const named = `ranks ${members.slice(0, 8).join(", ")}${size > 8 ? ", ..." : ""}`;
    const among = size === waiting.hosts.length ? "all ranks" : named;
    return `${waiting.name(waiting.rank)} has waited ${seconds} s in ${what} (call ${at} among ${among}) for: ${whom}`;
  }

  /** What a count and a type have to be for `bytes`. */
  private counted(bytes: number): [count: number, type: number] {
    if (bytes < 2 ** 31) return [bytes, this.mpi.byte];
    if (bytes % BLOCK !== 0) throw new Error(`A message of ${bytes} bytes is not a multiple of ${BLOCK}.`);
    return [bytes / BLOCK, this.mpi.block];
  }

  startReduceScatter(x: Ptr, n: number, dtype: DType, out: Ptr, add = false, low: Ptr = 0): Pending {
    const bytes = n * dtypeBytes(dtype);
    const all = this.scratch.take(bytes * this.size);
    const [count, type] = this.counted(bytes);
    this.sent += bytes * (this.size - 1);
    return this.start(
      "a reduce-scatter",
      (request) => this.mpi.call.alltoall(x, count, type, all, count, type, this.comm, request),
      () => {
        this.device.sumPieces(all, n, this.size, out, low, add ? 1 : 0, dtype);
        this.scratch.giveBack(all);
      },
    );
  }

  startAllGather(x: Ptr, bytes: number, out: Ptr): Pending {
    return this.gatherOver(this.comm, x, bytes, out);
  }

  private gatherOver(comm: number, x: Ptr, bytes: number, out: Ptr): Pending {
    const [count, type] = this.counted(bytes);
    this.sent += bytes * (this.size - 1);
    const call = (from: Ptr, request: Ptr): number =>
      this.mpi.call.allgather(from, count, type, out, count, type, comm, request);
    // MPI forbids that a rank's piece is read where it is written, unless it is told so: MPI_IN_PLACE, which is 1 in
    // Open MPI and -1 in MPICH. Where it is not in its place, or its address cannot be given, the piece is copied.
    const inside = x >= out && x < out + bytes * this.size;
    if (inside && x === out + bytes * this.rank && this.mpi.flavour === "openmpi")
      return this.start("an all-gather", (request) => call(1, request));
    const own = inside ? this.scratch.take(bytes) : 0;
    if (own) this.device.bytes(own, bytes).set(this.device.bytes(x, bytes));
    return this.start(
      "an all-gather",
      (request) => call(own || x, request),
      () => own && this.scratch.giveBack(own),
    );
  }

  startAllReduce(x: Ptr, n: number, dtype: DType): Pending {
    const { device, size, rank } = this;
    if (size === 1) return done;
    const width = dtypeBytes(dtype);
    // Pieces of equal size, in x itself where it divides into such, else in a copy that is padded.
    const least = BLOCK / width;
    const piece = Math.ceil(n / size / least) * least;
    const fits = piece * size === n;
    const padded = fits ? 0 : this.scratch.take(piece * size * width);
    const all = padded || x;
    if (padded) device.bytes(padded, n * width).set(device.bytes(x, n * width));
    const own = all + rank * piece * width;
    let gather: Pending | undefined;
    let over = false;
    const finish = (): true => {
      if (padded && !over) {
        device.bytes(x, n * width).set(device.bytes(padded, n * width));
        this.scratch.giveBack(padded);
      }
      over = true;
      return true;
    };
    this.sums.push({
      pieces: this.startReduceScatter(all, piece, dtype, own),
      handRound: () => {
        gather = this.gatherOver(this.second, own, piece * width, all);
      },
    });
    summing.add(this);
    return {
      test: () => {
        this.moveOn();
        return over || (gather?.test() === true && finish());
      },
      wait: () => {
        while (!gather) this.nextSum(true);
        gather.wait();
        finish();
      },
    };
  }

  /** Begins the second halves of all-reduces whose sums are there. */
  private moveOn(): void {
    while (this.nextSum(false));
  }
  /** Whether the oldest all-reduce is summed (with `wait`: now it is), and its second half has begun. */
  private nextSum(wait: boolean): boolean {
    const sum = this.sums[0];
    if (wait) sum.pieces.wait();
    else if (!sum?.pieces.test()) return false;
    // While this one waited, another wait may have moved it on.
    if (this.sums[0] === sum) {
      this.sums.shift();
      sum.handRound();
      if (this.sums.length === 0) summing.delete(this);
    }
    return true;
  }

  startBroadcast(x: Ptr, bytes: number, root: number): Pending {
    const [count, type] = this.counted(bytes);
    if (this.rank === root) this.sent += bytes * (this.size - 1);
    return this.start("a broadcast", (request) => this.mpi.call.bcast(x, count, type, root, this.comm, request));
  }

  startSend(x: Ptr, bytes: number, to: number, tag: number): Pending {
    const [count, type] = this.counted(bytes);
    this.sent += bytes;
    const call = (request: Ptr): number => this.mpi.call.isend(x, count, type, to, tag, this.comm, request);
    return this.start(`sending to rank ${this.members[to]}`, call, undefined, to);
  }
  startRecv(x: Ptr, bytes: number, from: number, tag: number): Pending {
    const [count, type] = this.counted(bytes);
    const call = (request: Ptr): number => this.mpi.call.irecv(x, count, type, from, tag, this.comm, request);
    return this.start(`receiving from rank ${this.members[from]}`, call, undefined, from);
  }

  allReduce(x: Ptr, n: number, dtype: DType): void {
    this.startAllReduce(x, n, dtype).wait();
  }
  reduceScatter(...args: Parameters<Comm["startReduceScatter"]>): void {
    this.startReduceScatter(...args).wait();
  }
  allGather(x: Ptr, bytes: number, out: Ptr): void {
    this.startAllGather(x, bytes, out).wait();
  }
  broadcast(x: Ptr, bytes: number, root: number): void {
    this.startBroadcast(x, bytes, root).wait();
  }
  send(x: Ptr, bytes: number, to: number, tag: number): void {
    this.startSend(x, bytes, to, tag).wait();
  }
  recv(x: Ptr, bytes: number, from: number, tag: number): void {
    this.startRecv(x, bytes, from, tag).wait();
  }

  barrier(patient = false): void {
    const pending = this.start("a barrier", (request) => this.mpi.call.barrier(this.comm, request));
    pending.wait(patient);
  }

  allToAll(pieces: readonly Uint8Array[]): Uint8Array[] {
    const { device, size, rank, mpi } = this;
    // Lengths and starts of what is sent, then of what is received.
    const lists = device.alloc(16 * size);
    const [sent, sentAt, received, receivedAt] = [0, 1, 2, 3].map((k) => lists + 4 * size * k);
    const lay = (lengths: Ptr, starts: Ptr): number => {
      const [n, at] = [device.i32(lengths, size), device.i32(starts, size)];
      let total = 0;
      for (let r = 0; r < size; r++) {
        at[r] = total;
        total += n[r];
      }
      if (total >= 2 ** 31) throw new Error(`An all-to-all of ${total} bytes: it must be less than 2 GiB.`);
      return total;
    };
    device.i32(sent, size).set(pieces.map((piece) => piece.length));
    const what = "an all-to-all";
    const { alltoall, alltoallv } = mpi.call;
    const out = lay(sent, sentAt);
    this.start(what, (request) => alltoall(sent, 4, mpi.byte, received, 4, mpi.byte, this.comm, request)).wait();
    const into = lay(received, receivedAt);
    const from = device.alloc(Math.max(1, out));
    const to = device.alloc(Math.max(1, into));
    for (const [r, piece] of pieces.entries())
      device.bytes(from + device.i32(sentAt, size)[r], piece.length).set(piece);
    this.sent += out - pieces[rank].length;
    this.start(what, (request) =>
      alltoallv(from, sent, sentAt, mpi.byte, to, received, receivedAt, mpi.byte, this.comm, request),
    ).wait();
    const [n, at] = [device.i32(received, size), device.i32(receivedAt, size)];
    const all = Array.from({ length: size }, (_, r) => device.bytes(to + at[r], n[r]).slice());
    device.free(from, Math.max(1, out));
    device.free(to, Math.max(1, into));
    device.free(lists, 16 * size);
    return all;
  }

  gatherNumbers(values: readonly number[]): number[][] {
    const own = new Uint8Array(Float64Array.from(values).buffer);
    return this.gatherBytes(own).map((piece) => [...new Float64Array(piece.buffer)]);
  }

  gatherText(text: string): string[] {
    const own = Buffer.from(text);
    const lengths = this.gatherNumbers([own.length]).map(([n]) => n);
    const padded = new Uint8Array(Math.max(1, ...lengths));
    padded.set(own);
    return this.gatherBytes(padded).map((piece, r) => Buffer.from(piece.subarray(0, lengths[r])).toString());
  }

  /** As many bytes from every rank. */
  private gatherBytes(own: Uint8Array): Uint8Array[] {
    const n = own.length;
    const bytes = n * (this.size + 1);
    const memory = this.scratch.take(bytes);
    this.device.bytes(memory, n).set(own);
    this.allGather(memory, n, memory + n);
    const all = this.device.bytes(memory + n, n * this.size);
    const pieces = Array.from({ length: this.size }, (_, r) => all.slice(r * n, (r + 1) * n));
    this.scratch.giveBack(memory);
    return pieces;
  }

  abort(code: number): never {
    this.mpi.call.abort(this.mpi.world, code);
    return process.exit(code);
  }
}
