/**
 * Comm on an installed MPI (Open MPI or MPICH), called by FFI; processes are started by mpirun or srun.
 *
 * Every wait is a non-blocking call that is polled, so that a rank can say whom it waits for: a collective that takes
 * longer than the limit names the ranks that never came to it, and ends the job.
 */
import { hostname } from "node:os";
import koffi from "koffi";
import { type Device, type DType, dtypeBytes, type Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";
import type { Comm, Pending } from "./comm.js";

/** Seconds that a collective may wait for a rank; the environment variable LYCEUM_MPI_TIMEOUT changes it. */
const DEFAULT_TIMEOUT = 300;
/** For counts above what an int holds, bytes travel in blocks of this size; sizes are multiples of it then. */
const BLOCK = 64;
/** Milliseconds that a wait polls without a pause. */
const SPIN = 1;
/** Nobody ever wakes who waits for this: a pause. */
const never = new Int32Array(new SharedArrayBuffer(4));
/** Tag of the messages in which a waiting rank says where it waits. */
const WAITING = 32000;

function timeLimit(): number {
  const text = process.env.LYCEUM_MPI_TIMEOUT;
  if (text === undefined || text === "") return DEFAULT_TIMEOUT;
  const seconds = Number(text);
  if (!(seconds > 0))
    throw new UserError(`LYCEUM_MPI_TIMEOUT is "${text}"; it must be a number of seconds above 0.`, 2);
  return seconds;
}

const LIBRARIES = {
  openmpi: ["libmpi.so.40", "libmpi.so.80", "libmpi.so.20", "libmpi.so", "libmpi.dylib"],
  mpich: ["libmpich.so.12", "libmpi.so.12", "libmpich.so", "libmpi.so", "libmpi.12.dylib", "libmpi.dylib"],
};
type Flavour = keyof typeof LIBRARIES;

/** Rank and size as the launcher announces them in the environment; undefined when no launcher started this process. */
export function launched(env: NodeJS.ProcessEnv = process.env): { rank: number; size: number } | undefined {
  for (const [rank, size] of [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
  ]) {
    if (env[rank] !== undefined && env[size] !== undefined) return { rank: Number(env[rank]), size: Number(env[size]) };
  }
  return undefined;
}

interface Mpi {
  flavour: Flavour;
  world: number;
  byte: number;
  block: number;
  sharedType: number;
  infoNull: number;
  statusIgnore: number;
  call: Record<
    | "split"
    | "splitShared"
    | "rank"
    | "size"
    | "alltoall"
    | "allgather"
    | "bcast"
    | "isend"
    | "irecv"
    | "iprobe"
    | "barrier"
    | "test"
    | "finalize"
    | "abort",
    (...args: number[]) => number
  >;
  explain(code: number): string;
}

let opened: Mpi | undefined;

/** Loads the library and starts MPI. Throws a UserError when there is none, saying what to install. */
function open(device: Device): Mpi {
  if (opened) return opened;
  timeLimit(); // a mistake in it is told before anything starts
  const { library, flavour } = load();
  const openmpi = flavour === "openmpi";
  const H = openmpi ? "uintptr_t" : "int"; // handles are addresses in Open MPI, and numbers in MPICH
  const handle = (symbol: string, number: number): number =>
    openmpi ? Number(koffi.address(library.symbol(symbol))) : number;
  const world = handle("ompi_mpi_comm_world", 0x44000000);
  const byte = handle("ompi_mpi_byte", 0x4c00010d);
  const func = (name: string, args: string): ((...args: number[]) => number) => {
    const f = library.func(`int ${name}(${args.replaceAll("H", H).replaceAll("P", "uintptr_t")})`);
    return (...values) => f(...values);
  };
  const scratch = device.alloc(64);
  const word = device.i32(scratch, 16);
  const code = func("MPI_Init_thread", "P, P, int, P")(0, 0, 0, scratch);
  if (code !== 0) throw new UserError(`MPI could not start (MPI_Init_thread: ${code}).`);
  func("MPI_Comm_set_errhandler", "H, H")(world, handle("ompi_mpi_errors_return", 0x54000001));
  const blockAt = device.alloc(64);
  func("MPI_Type_contiguous", "int, H, P")(BLOCK, byte, blockAt);
  func("MPI_Type_commit", "P")(blockAt);
  const block = openmpi
    ? Number(new BigUint64Array(device.bytes(blockAt, 8).slice().buffer)[0])
    : device.i32(blockAt, 1)[0];
  const freeType = func("MPI_Type_free", "P");
  const errorString = library.func("int MPI_Error_string(int, uintptr_t, uintptr_t)");
  const text = device.alloc(1024);
  opened = {
    flavour,
    world,
    byte,
    block,
    sharedType: openmpi ? 0 : 1,
    infoNull: handle("ompi_mpi_info_null", 0x1c000000),
    statusIgnore: openmpi ? 0 : 1,
    call: {
      split: func("MPI_Comm_split", "H, int, int, P"),
      splitShared: func("MPI_Comm_split_type", "H, int, int, H, P"),
      rank: func("MPI_Comm_rank", "H, P"),
      size: func("MPI_Comm_size", "H, P"),
      alltoall: func("MPI_Ialltoall", "P, int, H, P, int, H, H, P"),
      allgather: func("MPI_Iallgather", "P, int, H, P, int, H, H, P"),
      bcast: func("MPI_Ibcast", "P, int, H, int, H, P"),
      isend: func("MPI_Isend", "P, int, H, int, int, H, P"),
      irecv: func("MPI_Irecv", "P, int, H, int, int, H, P"),
      iprobe: func("MPI_Iprobe", "int, int, H, P, P"),
      barrier: func("MPI_Ibarrier", "H, P"),
      test: func("MPI_Test", "P, P, P"),
      finalize: func("MPI_Finalize", ""),
      abort: func("MPI_Abort", "H, int"),
    },
    explain(code) {
      errorString(code, text, scratch);
      return Buffer.from(device.bytes(text, word[0])).toString();
    },
  };
  const mpi = opened;
  process.on("exit", (code) => {
    if (code === 0) {
      freeType(blockAt);
      mpi.call.finalize();
    } else mpi.call.abort(world, code); // the others would wait for this rank for ever
  });
  return mpi;
}

function load(): { library: ReturnType<typeof koffi.load>; flavour: Flavour } {
  const named = process.env.LYCEUM_MPI_LIBRARY;
  // Under a launcher the library must be the launcher's own.
  const order: Flavour[] = process.env.PMI_RANK !== undefined ? ["mpich", "openmpi"] : ["openmpi", "mpich"];
  for (const name of named ? [named] : order.flatMap((flavour) => LIBRARIES[flavour])) {
    let library: ReturnType<typeof koffi.load>;
    try {
      library = koffi.load(name, { global: true, lazy: true });
    } catch {
      continue;
    }
    try {
      library.symbol("ompi_mpi_comm_world");
      return { library, flavour: "openmpi" };
    } catch {
      return { library, flavour: "mpich" };
    }
  }
  throw new UserError(
    named
      ? `The MPI library that LYCEUM_MPI_LIBRARY names cannot be loaded: ${named}.`
      : "No MPI library was found. Install Open MPI (Debian, Ubuntu: apt-get install openmpi-bin libopenmpi3; Fedora: dnf install openmpi; macOS: brew install open-mpi) or MPICH, or name its library in LYCEUM_MPI_LIBRARY.",
  );
}

/** All ranks of the job. Starts MPI; it ends with the process. */
export function mpiWorld(device: Device): Comm {
  const mpi = open(device);
  return new MpiComm(device, mpi, mpi.world, "all ranks");
}

/** MPICH names a process that died by its number on its host, and not by its rank: here one finds which it was. */
export function whoIsWho(world: Comm): void {
  if (process.env.PMI_RANK === undefined || world.size === 1) return;
  const all = world.gatherText(`process ${process.pid} on ${hostname()}`);
  console.error(all.map((who, rank) => `rank ${rank} is ${who}`).join(", "));
}

/** Ranks of the job that share this machine's memory and cores. */
export function ranksOnThisHost(device: Device): number {
  const mpi = open(device);
  const out = device.alloc(64);
  mpi.call.splitShared(mpi.world, mpi.sharedType, 0, mpi.infoNull, out);
  mpi.call.size(handleAt(device, mpi, out), out + 32);
  return device.i32(out + 32, 1)[0];
}

const handleAt = (device: Device, mpi: Mpi, at: Ptr): number =>
  mpi.flavour === "openmpi" ? Number(new BigUint64Array(device.bytes(at, 8).slice().buffer)[0]) : device.i32(at, 1)[0];

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
  private readonly scratchBlocks = new Map<number, Ptr[]>();
  private readonly hosts: string[] = [];

  constructor(
    private readonly device: Device,
    private readonly mpi: Mpi,
    private readonly comm: number,
    private readonly name: string,
  ) {
    const out = device.alloc(64);
    const read = (f: (comm: number, out: Ptr) => number): number => {
      this.check(f(comm, out));
      return device.i32(out, 1)[0];
    };
    this.rank = read(mpi.call.rank);
    this.size = read(mpi.call.size);
    device.free(out, 64);
    this.hosts = this.gatherText(hostname());
  }

  get bytesSent(): number {
    return this.parts.reduce((n, part) => n + part.bytesSent, this.sent);
  }

  private check(code: number): void {
    if (code !== 0) throw new UserError(`MPI failed on rank ${this.rank} (${hostname()}): ${this.mpi.explain(code)}.`);
  }

  split(color: number, key: number): Comm {
    const out = this.device.alloc(64);
    this.check(this.mpi.call.split(this.comm, color, key, out));
    const part = new MpiComm(this.device, this.mpi, handleAt(this.device, this.mpi, out), `group ${color}`);
    this.parts.push(part);
    return part;
  }

  /** Begins `call(request)` and watches it; `then` runs once, when it is done. */
  private start(what: string, call: (request: Ptr) => number, then?: () => void): Wait {
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
      if (test()) return;
      const limit = timeLimit() * 1000;
      const began = performance.now();
      let told = false;
      let asked = false;
      let waits = false;
      for (let polls = 1; !test(); polls++) {
        if (!waits && polls % 16 !== 0) continue;
        const waited = performance.now() - began;
        // Whoever waits for long leaves its core to others: where processes share cores, to the one that it waits for.
        waits = waited > SPIN;
        if (waits) Atomics.wait(never, 0, 0, waited > 50 * SPIN ? (patient ? 2 : 0.5) : 0.05);
        if (waited > limit / 2 && !told) {
          told = true;
          this.tellThatIWait();
        }
        if (waited > limit && !patient) this.giveUp(what, at, limit / 1000);
        if (waited > limit && !asked) {
          asked = true;
          this.say(`${this.whoIsMissing(what, at, limit / 1000)}, which may do work for all. It goes on waiting.`);
        }
      }
    };
    return { test, wait };
  }

  /** Half the limit has passed: the others hear of it, so that nobody takes this rank for the one that is missing. */
  private tellThatIWait(): void {
    const request = this.device.alloc(64);
    for (let r = 0; r < this.size; r++)
      if (r !== this.rank) this.mpi.call.isend(request, 0, this.mpi.byte, r, WAITING, this.comm, request);
  }

  private giveUp(what: string, at: number, seconds: number): never {
    this.say(
      `error: ${this.whoIsMissing(what, at, seconds)}. The job ends. A limit for slow machines: LYCEUM_MPI_TIMEOUT=SECONDS.`,
    );
    return this.abort(1);
  }

  /** Not console.error: that is silent in all processes but the first, and the first may be the one that is missing. */
  private say(text: string): void {
    process.stderr.write(`${text}\n`);
  }

  /** Hears which others wait as well, and names those that do not. */
  private whoIsMissing(what: string, at: number, seconds: number): string {
    const { device, mpi } = this;
    const memory = device.alloc(64);
    const flag = device.i32(memory + 32, 1);
    const others = this.hosts.map((_, r) => r).filter((r) => r !== this.rank);
    const waiting = new Set<number>();
    for (const until = performance.now() + 3000; performance.now() < until; ) {
      for (const r of others) {
        mpi.call.iprobe(r, WAITING, this.comm, memory + 32, mpi.statusIgnore);
        if (flag[0] !== 0) waiting.add(r);
      }
    }
    const missing = others.filter((r) => !waiting.has(r)).map((r) => `rank ${r} on ${this.hosts[r]}`);
    const whom = missing.length > 0 ? missing.join(", ") : "nobody: all ranks wait, each in another call";
    return `rank ${this.rank} on ${this.hosts[this.rank]} has waited ${seconds} s in ${what} (call ${at} among ${this.name}) for: ${whom}`;
  }

  /** What a count and a type have to be for `bytes`. */
  private counted(bytes: number): [count: number, type: number] {
    if (bytes < 2 ** 31) return [bytes, this.mpi.byte];
    if (bytes % BLOCK !== 0) throw new Error(`A message of ${bytes} bytes is not a multiple of ${BLOCK}.`);
    return [bytes / BLOCK, this.mpi.block];
  }

  /** A scratch buffer, given back with `giveBack`. */
  private take(bytes: number): Ptr {
    return this.scratchBlocks.get(bytes)?.pop() ?? this.device.alloc(bytes);
  }
  private giveBack(ptr: Ptr, bytes: number): void {
    const list = this.scratchBlocks.get(bytes);
    if (list) list.push(ptr);
    else this.scratchBlocks.set(bytes, [ptr]);
  }

  startReduceScatter(x: Ptr, n: number, dtype: DType, out: Ptr, add = false): Pending {
    const bytes = n * dtypeBytes(dtype);
    const all = this.take(bytes * this.size);
    const [count, type] = this.counted(bytes);
    this.sent += bytes * (this.size - 1);
    return this.start(
      "a reduce-scatter",
      (request) => this.mpi.call.alltoall(x, count, type, all, count, type, this.comm, request),
      () => {
        this.device.sumPieces(all, n, this.size, out, add ? 1 : 0, dtype);
        this.giveBack(all, bytes * this.size);
      },
    );
  }

  startAllGather(x: Ptr, bytes: number, out: Ptr): Pending {
    const [count, type] = this.counted(bytes);
    this.sent += bytes * (this.size - 1);
    // MPI forbids that a rank's piece is read where it is written, unless it is told so: MPI_IN_PLACE, which is 1 in
    // Open MPI and -1 in MPICH. Where it is not in its place, or its address cannot be given, the piece is copied.
    const inside = x >= out && x < out + bytes * this.size;
    if (inside && x === out + bytes * this.rank && this.mpi.flavour === "openmpi")
      return this.start("an all-gather", (request) =>
        this.mpi.call.allgather(1, count, type, out, count, type, this.comm, request),
      );
    const own = inside ? this.take(bytes) : 0;
    if (own) this.device.bytes(own, bytes).set(this.device.bytes(x, bytes));
    return this.start(
      "an all-gather",
      (request) => this.mpi.call.allgather(own || x, count, type, out, count, type, this.comm, request),
      () => own && this.giveBack(own, bytes),
    );
  }

  startSend(x: Ptr, bytes: number, to: number, tag: number): Pending {
    const [count, type] = this.counted(bytes);
    this.sent += bytes;
    return this.start(`sending to rank ${to}`, (request) =>
      this.mpi.call.isend(x, count, type, to, tag, this.comm, request),
    );
  }
  startRecv(x: Ptr, bytes: number, from: number, tag: number): Pending {
    const [count, type] = this.counted(bytes);
    return this.start(`receiving from rank ${from}`, (request) =>
      this.mpi.call.irecv(x, count, type, from, tag, this.comm, request),
    );
  }

  reduceScatter(x: Ptr, n: number, dtype: DType, out: Ptr, add = false): void {
    this.startReduceScatter(x, n, dtype, out, add).wait();
  }
  allGather(x: Ptr, bytes: number, out: Ptr): void {
    this.startAllGather(x, bytes, out).wait();
  }
  send(x: Ptr, bytes: number, to: number, tag: number): void {
    this.startSend(x, bytes, to, tag).wait();
  }
  recv(x: Ptr, bytes: number, from: number, tag: number): void {
    this.startRecv(x, bytes, from, tag).wait();
  }

  allReduce(x: Ptr, n: number, dtype: DType): void {
    const width = dtypeBytes(dtype);
    if (n % (this.size * BLOCK) === 0) {
      const own = x + ((this.rank * n) / this.size) * width;
      this.reduceScatter(x, n / this.size, dtype, own);
      this.allGather(own, (n / this.size) * width, x);
      return;
    }
    const piece = Math.ceil(n / this.size / BLOCK) * BLOCK;
    const bytes = piece * this.size * width;
    const padded = this.take(bytes);
    this.device.bytes(padded, n * width).set(this.device.bytes(x, n * width));
    const own = padded + this.rank * piece * width;
    this.reduceScatter(padded, piece, dtype, own);
    this.allGather(own, piece * width, padded);
    this.device.bytes(x, n * width).set(this.device.bytes(padded, n * width));
    this.giveBack(padded, bytes);
  }

  broadcast(x: Ptr, bytes: number, root: number): void {
    const [count, type] = this.counted(bytes);
    if (this.rank === root) this.sent += bytes * (this.size - 1);
    this.start("a broadcast", (request) => this.mpi.call.bcast(x, count, type, root, this.comm, request)).wait();
  }

  barrier(patient = false): void {
    const pending = this.start("a barrier", (request) => this.mpi.call.barrier(this.comm, request));
    pending.wait(patient);
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
    const memory = this.take(bytes);
    this.device.bytes(memory, n).set(own);
    this.allGather(memory, n, memory + n);
    const all = this.device.bytes(memory + n, n * this.size);
    const pieces = Array.from({ length: this.size }, (_, r) => all.slice(r * n, (r + 1) * n));
    this.giveBack(memory, bytes);
    return pieces;
  }

  abort(code: number): never {
    this.mpi.call.abort(this.mpi.world, code);
    return process.exit(code);
  }
}
