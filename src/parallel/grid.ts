/**
 * The processes as a grid: data x tensor x pipeline. Tensor neighbours talk most and are next to each other, pipeline
 * neighbours least and are furthest apart, as in Megatron-LM (Narayanan et al. 2021, section 3): rank = t + T (d + D p).
 */
import { createHash } from "node:crypto";
import { hostname } from "node:os";
import type { Device, Ptr } from "../device/device.js";
import { peakFlops } from "../device/peak.js";
import { UserError } from "../run/errors.js";
import type { Writer } from "../run/safetensors.js";
import type { ParallelSettings } from "../run/settings.js";
import { type Keeper, type NamedTensor, WholeKeeper } from "../tensor/parameters.js";
import { type Comm, single, sumNumbers } from "./comm.js";
import { launched, mpiWorld, ranksOnThisHost } from "./mpi.js";
import { inMemory, onDisk, type StateMemory } from "./offload.js";
import type { ScheduleKind } from "./pipeline.js";
import { part } from "./tensor.js";
import { ZeroKeeper, type ZeroStage } from "./zero.js";

let opened: Comm | undefined;
/** All processes of this job; this one alone when no launcher started it. */
export function openWorld(device: Device): Comm {
  opened ??= launched() ? mpiWorld(device) : single(device);
  return opened;
}

/** Threads for each process when the configuration names no number: `cores`, those it may use, shared with the ranks that use the same. */
export const threadsPerRank = (device: Device, cores: number): number =>
  Math.max(1, Math.floor(cores / ranksOnThisHost(device)));

export class Grid {
  private constructor(
    private readonly device: Device,
    readonly world: Comm,
    readonly data: Comm,
    readonly tensor: Comm,
    readonly pipeline: Comm,
    /** The first and the last stage of the pipeline. */
    readonly ends: Comm,
    readonly schedule: ScheduleKind,
    /** Whether tensor-parallel processes share out the hidden states by tokens (see sequence.ts). */
    readonly sequence: boolean,
    private readonly zero: ZeroStage,
    /** What the paths of this process's offloaded state begin with; undefined: it stays in memory. */
    private readonly statePath: string | undefined,
  ) {}

  /** Whether this process has all values of a model all the time, and in memory. */
  get resident(): boolean {
    return this.zero < 3 && this.statePath === undefined;
  }

  /** One process alone, with everything in memory. */
  static alone(device: Device): Grid {
    const one = single(device);
    return new Grid(device, one, one, one, one, one, "1f1b", false, 0, undefined);
  }

  /** Throws a UserError when the ranks of the job (undefined: this one alone) do not make such a grid. `dir`: a folder of the run, for offloaded state. */
  static of(device: Device, job: Comm | undefined, settings: ParallelSettings, dir: string): Grid {
    const world = job ?? single(device);
    const { tensor: T, pipeline: P, zero } = settings;
    const D = settings.data ?? Math.max(1, Math.floor(world.size / (T * P)));
    if (D * T * P !== world.size)
      throw new UserError(
        `parallel: data ${D} x tensor ${T} x pipeline ${P} is ${D * T * P} processes, but ${world.size} ${world.size === 1 ? "was" : "were"} started. ` +
          `Start it with mpirun -np ${D * T * P}, or change the numbers.`,
        2,
      );
    if (settings.sequence && T === 1)
      throw new UserError(
        "parallel.sequence shares out norms among tensor-parallel processes, but parallel.tensor is 1. Give it 2 or more, or leave parallel.sequence out.",
        2,
      );
    const { rank } = world;
    const [t, d, p] = [rank % T, Math.floor(rank / T) % D, Math.floor(rank / (T * D))];
    const group = (size: number, color: number, key: number): Comm =>
      size === world.size ? world.split(0, key) : size === 1 ? single(device) : world.split(color, key);
    const statePath = settings.offload === "disk" ? `${dir}/.offload-${hostname()}-${rank}` : undefined;
    const data = group(D, t + T * p, d);
    const tensor = group(T, d + D * p, t);
    const pipeline = group(P, t + T * d, p);
    const isEnd = p === 0 || p === P - 1;
    const ends = P === 1 ? single(device) : world.split(isEnd ? t + T * d : T * D, p);
    return new Grid(device, world, data, tensor, pipeline, ends, settings.schedule, settings.sequence, zero, statePath);
  }

  /** Which of the processes that write a checkpoint together this one is. */
  get writer(): Writer {
    const { data, tensor, pipeline } = this;
    return { stage: pipeline.rank, rank: tensor.rank + tensor.size * data.rank, size: tensor.size * data.size };
  }

  /** A whole tensor from the parts at `ptr` of all processes that share it, which must all ask; `width` bytes an element. */
  whole(t: NamedTensor, ptr: Ptr, width: number): Uint8Array {
    const { device, tensor } = this;
    if (!t.cut) return device.bytes(ptr, t.size * width);
    const [rows, columns = 1] = t.shape;
    const widest = Math.ceil(t.cut.full / tensor.size) * (t.cut.axis === 0 ? columns : rows) * width;
    const memory = device.alloc(widest * (tensor.size + 1));
    device.bytes(memory, t.size * width).set(device.bytes(ptr, t.size * width));
    tensor.allGather(memory, widest, memory + widest);
    const whole = new Uint8Array(t.whole.reduce((n, size) => n * size, width));
    for (let r = 0; r < tensor.size; r++) {
      const { from, to } = part(t.cut.full, r, tensor.size);
      const size = (to - from) * (t.cut.axis === 0 ? columns : rows) * width;
      const piece = device.bytes(memory + widest * (r + 1), size);
      if (t.cut.axis === 0) whole.set(piece, from * columns * width);
      else
        for (let i = 0; i < rows; i++) {
          const line = (to - from) * width;
          whole.set(piece.subarray(i * line, (i + 1) * line), (i * t.cut.full + from) * width);
        }
    }
    device.free(memory, widest * (tensor.size + 1));
    return whole;
  }

  /** Operations a second of all processes together, the denominator of the utilisation (MFU). They may share cores, so they measure at one time. */
  peakFlops(precision: "bf16" | "fp32"): number {
    if (this.world.size === 1) return peakFlops(this.device, precision);
    this.world.barrier();
    return sumNumbers(this.world, [peakFlops(this.device, precision, true)])[0];
  }

  /** Who keeps the parameters of one more model (or adapter). A frozen one is used in phases: offloaded, it rests on disk. */
  keeper(name = "model", trainable = true): Keeper {
    if (this.zero < 3 && !trainable) return new WholeKeeper(this.statePath ? this.stateMemory(name) : undefined);
    if (this.data.size === 1 && this.zero === 0) return new WholeKeeper();
    const memory = this.zero === 3 && this.statePath ? this.stateMemory(`${name}-values`) : undefined;
    return new ZeroKeeper(this.data, this.zero, memory);
  }

  /** Where an optimizer's state lies. */
  stateMemory(name = "optimizer"): StateMemory {
    return this.statePath ? onDisk(this.device, `${this.statePath}-${name}`) : inMemory(this.device);
  }

  /** This process's share of `count` equal things, as a range. Throws a UserError when they do not divide. */
  share(count: number, key: string): { from: number; to: number } {
    const { rank, size } = this.data;
    if (count % size !== 0)
      throw new UserError(
        `${key} is ${count}, which does not divide among ${size} data-parallel processes. Make it a multiple of ${size}.`,
        2,
      );
    return { from: (rank * count) / size, to: ((rank + 1) * count) / size };
  }

  /** What every data-parallel process has found (numbers, lists), in their order, as one list. */
  everyone<T>(own: readonly T[]): T[] {
    if (this.data.size === 1) return [...own];
    const texts = this.data.gatherText(JSON.stringify(own, (_, v) => (isNonFinite(v) ? { nonFinite: String(v) } : v)));
    return texts.flatMap((text) => JSON.parse(text, (_, v) => (v?.nonFinite ? Number(v.nonFinite) : v)) as T[]);
  }

  /**
   * Throws when the processes do not say the same: versions, configurations, data. Of an object it names the keys that
   * differ.
   */
  static agree(world: Comm, what: string, value: string | Record<string, unknown>): void {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const hash = createHash("sha256").update(text).digest("hex").slice(0, 12);
    const all = world.gatherText(`${hash} ${hostname()}`).map((line) => line.split(" "));
    const odd = all.findIndex(([h]) => h !== all[0][0]);
    if (odd < 0) return;
    const short = typeof value === "string" && text.length > 100_000 ? `${hash} (hash)` : text;
    const texts = world.gatherText(short);
    const [first, other] = typeof value === "string" ? [texts[0], texts[odd]] : differences(texts[0], texts[odd]);
    throw new UserError(
      `The processes do not have the same ${what}: rank 0 on ${all[0][1]} has ${brief(first)}, rank ${odd} on ${all[odd][1]} has ${brief(other)}. Start them with the same files and the same version.`,
      2,
    );
  }
}

/** JSON makes null of these, which counts as 0 wherever it is added. */
const isNonFinite = (value: unknown): boolean => typeof value === "number" && !Number.isFinite(value);

const brief = (text: string): string => (text.length > 200 ? `${text.slice(0, 200)}...` : text);

/** What differs of two JSON objects, in each: "batchSize 4, parallel.zero 1". */
function differences(a: string, b: string): [string, string] {
  const flat = (value: unknown, at = ""): [string, string][] =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? Object.entries(value).flatMap(([k, v]) => flat(v, at ? `${at}.${k}` : k))
      : [[at, JSON.stringify(value)]];
  const [x, y] = [a, b].map((text) => new Map(flat(JSON.parse(text))));
  const keys = [...new Set([...x.keys(), ...y.keys()])].filter((key) => x.get(key) !== y.get(key));
  const list = (of: Map<string, string>): string => keys.map((key) => `${key} ${of.get(key) ?? "missing"}`).join(", ");
  return [list(x), list(y)];
}
