/** State in files: the disk must have room for all of it, and nothing of it stays. */
import { existsSync, mkdtempSync, readdirSync, rmdirSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { onDisk } from "../../src/parallel/offload.js";

const device = currentCpu();
const dir = mkdtempSync(`${tmpdir()}/lyceum-offload-`);

test("zeros, and then what was written; the file has no name, so that it goes with the process", () => {
  const memory = onDisk(device, `${dir}/.offload`);
  const n = 3 * 4096;
  const [a, b] = [memory.alloc("m", n * 4), memory.alloc("m", n * 4)];
  expect(readdirSync(dir)).toEqual([]);
  expect(device.f32(a, n).every((x) => x === 0)).toBe(true);
  device.f32(a, n).fill(1);
  device.f32(b, n).fill(2);
  for (const ptr of [a, b]) {
    memory.behind(ptr, n * 4);
    memory.ahead(ptr, n * 4);
  }
  expect([device.f32(a, n)[n - 1], device.f32(b, n)[0]]).toEqual([1, 2]);
  for (const ptr of [a, b]) memory.free(ptr, n * 4);
});

// A file system in memory says at once that it has not so much room; another would first be filled.
const TMPFS = 0x01021994;
const inMemory = existsSync("/dev/shm") && statfsSync("/dev/shm").type === TMPFS;
test.runIf(inMemory)("a disk without room is told, and nothing stays there", () => {
  const folder = mkdtempSync("/dev/shm/lyceum-offload-");
  const { blocks, bsize } = statfsSync(folder);
  const memory = onDisk(device, `${folder}/.offload`);
  expect(() => memory.alloc("m", 2 * blocks * bsize)).toThrow(
    /lyceum-offload-\w+: [\d.]+ MiB of state \(m\) cannot be put on this disk, of which [\d.]+ MiB are free/,
  );
  expect(readdirSync(folder)).toEqual([]);
  rmdirSync(folder);
});
