/**
 * The processes as a grid: data x tensor x pipeline. Tensor neighbours talk most and are next to each other, pipeline
 * neighbours least and are furthest apart, as in Megatron-LM (Narayanan et al. 2021, section 3): rank = t + T (d + D p).
 */
import { createHash } from "node:crypto";
import { hostname } from "node:os";
import type { Device } from "../device/device.js";
import { UserError } from "../run/errors.js";
import type { ParallelSettings } from "../run/settings.js";
import { type Keeper, WholeKeeper } from "../tensor/parameters.js";
import { type Comm, single } from "./comm.js";
import { launched, mpiWorld, ranksOnThisHost } from "./mpi.js";
import { inMemory, onDisk, type StateMemory } from "./offload.js";
import { ZeroKeeper, type ZeroStage } from "./zero.js";

let opened: Comm | undefined;
/** All processes of this job; this one alone when no launcher started it. */
export function openWorld(device: Device): Comm {
  opened ??= launched() ? mpiWorld(device) : single(device);
  return opened;
}

/** Threads for each process when the configuration names no number: the host's cores shared among its ranks. */
export const threadsPerRank = (device: Device, cores: number): number =>
  Math.max(1, Math.floor(cores / ranksOnThisHost(device)));

export class Grid {
  private constructor(
    private readonly device: Device,
    readonly world: Comm,
    readonly data: Comm,
    readonly tensor: Comm,
    readonly pipeline: Comm,
    private readonly zero: ZeroStage,
    /** Where this process's offloaded state goes; undefined: it stays in memory. */
    private readonly stateDir: string | undefined,
  ) {}

  /** One process alone, with everything in memory. */
  static alone(device: Device): Grid {
    const one = single(device);
    return new Grid(device, one, one, one, one, 0, undefined);
  }

  /** Throws a UserError when the ranks do not make such a grid. `dir`: a folder of the run, for offloaded state. */
  static of(device: Device, world: Comm = single(device), settings: ParallelSettings, dir: string): Grid {
    const { tensor: T, pipeline: P, zero } = settings;
    const D = settings.data ?? Math.max(1, Math.floor(world.size / (T * P)));
    if (D * T * P !== world.size)
      throw new UserError(
        `parallel: data ${D} x tensor ${T} x pipeline ${P} is ${D * T * P} processes, but ${world.size} ${world.size === 1 ? "was" : "were"} started. ` +
          `Start it with mpirun -np ${D * T * P}, or change the numbers.`,
        2,
      );
    const { rank } = world;
    const [t, d, p] = [rank % T, Math.floor(rank / T) % D, Math.floor(rank / (T * D))];
    const group = (size: number, color: number, key: number): Comm =>
      size === world.size ? world.split(0, key) : size === 1 ? single(device) : world.split(color, key);
    const stateDir = settings.offload === "disk" ? `${dir}/offload/${hostname()}-${rank}` : undefined;
    return new Grid(
      device,
      world,
      group(D, t + T * p, d),
      group(T, d + D * p, t),
      group(P, t + T * d, p),
      zero,
      stateDir,
    );
  }

  /** Who keeps the parameters of one more model (or adapter). */
  keeper(name = "model"): Keeper {
    if (this.data.size === 1 && this.zero === 0) return new WholeKeeper();
    const memory = this.zero === 3 && this.stateDir ? this.stateMemory(`${name}/values`) : undefined;
    return new ZeroKeeper(this.data, this.zero, memory);
  }

  /** Where an optimizer's state lies. */
  stateMemory(name = "optimizer"): StateMemory {
    return this.stateDir ? onDisk(this.device, `${this.stateDir}/${name}`) : inMemory(this.device);
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

  /** Throws when the processes do not say the same: versions, configurations, data. */
  static agree(world: Comm, what: string, text: string): void {
    const hash = createHash("sha256").update(text).digest("hex").slice(0, 12);
    const all = world.gatherText(`${hash} ${hostname()}`).map((line) => line.split(" "));
    const odd = all.findIndex(([h]) => h !== all[0][0]);
    if (odd >= 0)
      throw new UserError(
        `The processes do not have the same ${what}: rank 0 on ${all[0][1]} has ${all[0][0]}, rank ${odd} on ${all[odd][1]} has ${all[odd][0]} (hashes). Start them with the same files and the same version.`,
        2,
      );
  }
}
