/**
 * Where state that is used once a step lies: in memory, or in files on disk that are mapped into memory and streamed
 * through it (as ZeRO-Infinity does with NVMe; Rajbhandari et al. 2021). On a CPU engine main memory is the device's
 * memory, so what is offloaded goes to disk.
 */
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync } from "node:fs";
import type { Device, Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";

export interface StateMemory {
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
    alloc: (_, bytes) => device.alloc(bytes),
    free: (ptr, bytes) => device.free(ptr, bytes),
    ahead: () => {},
    behind: () => {},
  };
}

/** Files in `dir`, which are this process's own; they go when they are freed. */
export function onDisk(device: Device, dir: string): StateMemory {
  mkdirSync(dir, { recursive: true });
  const files = new Map<Ptr, string>();
  return {
    alloc(name, bytes) {
      const path = `${dir}/${name}`;
      const fd = openSync(path, "w");
      ftruncateSync(fd, bytes);
      closeSync(fd);
      const ptr = device.mapState(path, bytes);
      if (ptr === 0)
        throw new UserError(`${path} (${Math.ceil(bytes / 2 ** 20)} MiB) cannot be mapped: is the disk full?`);
      files.set(ptr, path);
      return ptr;
    },
    free(ptr, bytes) {
      device.unmapFile(ptr, bytes);
      rmSync(files.get(ptr)!, { force: true });
      files.delete(ptr);
    },
    ahead: (ptr, bytes) => device.adviseState(ptr, bytes, 1),
    behind: (ptr, bytes) => device.adviseState(ptr, bytes, 0),
  };
}
