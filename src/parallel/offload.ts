/**
 * Where state that is used once a step lies: in memory, or in files on disk that are mapped into memory and streamed
 * through it (as ZeRO-Infinity does with NVMe; Rajbhandari et al. 2021). On a CPU engine main memory is the device's
 * memory, so what is offloaded goes to disk.
 */
import { rmSync, statfsSync, truncateSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { Device, Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";

export interface StateMemory {
  readonly onDisk: boolean;
  /** Bytes of zeros under a name. */
  alloc(name: string, bytes: number): Ptr;
  free(ptr: Ptr, bytes: number): void;
  /** These bytes are needed soon. */
  ahead(ptr: Ptr, bytes: number): void;
  /** These bytes are not needed again in this step. */
  behind(ptr: Ptr, bytes: number): void;
}

export function inMemory(device: Device): StateMemory {
  return {
    onDisk: false,
    alloc: (_, bytes) => device.alloc(bytes),
    free: (ptr, bytes) => device.free(ptr, bytes),
    ahead: () => {},
    behind: () => {},
  };
}

/**
 * Files whose paths begin with `prefix`, which is this process's own. A file has a name only until it is open: so it goes
 * when its memory is given back, or when the process ends, however that comes about.
 */
export function onDisk(device: Device, prefix: string): StateMemory {
  return {
    onDisk: true,
    alloc(name, bytes) {
      const path = `${prefix}-${name}`;
      let ptr = 0;
      try {
        writeFileSync(path, "");
        truncateSync(path, bytes);
        ptr = device.mapState(path, bytes);
      } finally {
        rmSync(path, { force: true });
      }
      if (ptr !== 0) return ptr;
      const dir = dirname(path);
      const { bavail, bsize } = statfsSync(dir);
      const [wanted, free] = [bytes, bavail * bsize].map((n) => (n / 2 ** 20).toFixed(1));
      throw new UserError(
        `${dir}: ${wanted} MiB of state (${name}) cannot be put on this disk, of which ${free} MiB are free. Free some space, or write the run to another disk (--out); without parallel.offload the state lies in memory.`,
      );
    },
    free: (ptr, bytes) => device.unmapFile(ptr, bytes),
    ahead: (ptr, bytes) => device.adviseState(ptr, bytes, 1),
    behind: (ptr, bytes) => device.adviseState(ptr, bytes, 0),
  };
}
