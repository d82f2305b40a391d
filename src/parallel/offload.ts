/**
 * Where state that is used once a step lies: in memory, or in files on disk that are mapped into memory and streamed
 * through it (as ZeRO-Infinity does with NVMe; Rajbhandari et al. 2021). On a CPU engine main memory is the device's
 * memory, so what is offloaded goes to disk.
 */
import { closeSync, ftruncateSync, mkdirSync, openSync, rmdirSync, rmSync } from "node:fs";
import { dirname } from "node:path";
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

/** Files that are mapped now, in this process: two models of one name must not lie in one file. */
const inUse = new Set<string>();

/** Files in `dir`, which are this process's own; they go when they are freed, and the folders that they leave empty. */
export function onDisk(device: Device, dir: string): StateMemory {
  const files = new Map<Ptr, string>();
  return {
    alloc(name, bytes) {
      let path = `${dir}/${name}`;
      for (let i = 2; inUse.has(path); i++) path = `${dir}/${name}-${i}`;
      mkdirSync(dir, { recursive: true });
      const fd = openSync(path, "w");
      ftruncateSync(fd, bytes);
      closeSync(fd);
      const ptr = device.mapState(path, bytes);
      if (ptr === 0)
        throw new UserError(`${path} (${Math.ceil(bytes / 2 ** 20)} MiB) cannot be mapped: is the disk full?`);
      files.set(ptr, path);
      inUse.add(path);
      return ptr;
    },
    free(ptr, bytes) {
      device.unmapFile(ptr, bytes);
      const path = files.get(ptr)!;
      files.delete(ptr);
      inUse.delete(path);
      rmSync(path, { force: true });
      removeEmpty(dirname(path));
    },
    ahead: (ptr, bytes) => device.adviseState(ptr, bytes, 1),
    behind: (ptr, bytes) => device.adviseState(ptr, bytes, 0),
  };
}

/** Removes a folder when nothing is left in it, and those above it up to the run's. */
function removeEmpty(dir: string): void {
  try {
    rmdirSync(dir);
  } catch {
    return; // something else lies there
  }
  if (dirname(dir).includes("/offload")) removeEmpty(dirname(dir));
}
