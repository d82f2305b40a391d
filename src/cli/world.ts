/** Under mpirun: all processes of the job. They share each host's cores, and the first one speaks for all. */
import { availableParallelism } from "node:os";
import type { Device } from "../device/device.js";
import type { Comm } from "../parallel/comm.js";

export interface World {
  comm: Comm;
  device: Device;
  /** This process's share of the host's cores. */
  threads: number;
}

/** Undefined where no launcher started this process. The device has one thread, until somebody opens it with more. */
export async function joinWorld(): Promise<World | undefined> {
  const { launched } = await import("../parallel/mpi.js");
  if (!launched()) return undefined;
  const { openCpu } = await import("../device/cpu.js");
  const { openWorld, threadsPerRank } = await import("../parallel/grid.js");
  const device = openCpu({ threads: 1 });
  const comm = openWorld(device);
  if (comm.rank > 0) console.error = console.log = () => {};
  return { comm, device, threads: threadsPerRank(device, availableParallelism()) };
}
