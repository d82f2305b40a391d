/**
 * The engine's text kernels (native/text/*.c) for JavaScript's typed arrays.
 *
 * They need no engine: no thread pool is started and nothing is allocated, so every worker thread may open and call them.
 * Prototypes are read from native/lyceum.h, as in cpu.ts, but a pointer here is a typed array.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { chooseIsa, openLibrary } from "./cpu.js";

// biome-ignore format: one line a kernel, as in the header
export interface TextKernels {
  minhashSignature(text: Uint16Array, n: number, classes: Uint8Array, fold: Uint16Array, size: number, seed: number, hashes: number, signature: Uint32Array): number;
  minhashShingles(text: Uint16Array, n: number, classes: Uint8Array, fold: Uint16Array, size: number, out: BigUint64Array): number;
  minhashJaccard(a: BigUint64Array, na: number, b: BigUint64Array, nb: number): number;
  minhashBands(signatures: Uint32Array, documents: number, bands: number, rows: number, keys: BigUint64Array): void;
  minhashLikely(signatures: Uint32Array, hashes: number, document: number, least: number, others: Uint32Array, n: number): number;
  minhashSketch(shingles: BigUint64Array, n: number, most: number, sketch: BigUint64Array): number;
  minhashPossible(sketches: BigUint64Array, at: Uint32Array, sizes: Uint32Array, most: number, document: number, least: number, others: Uint32Array, n: number): number;
  minhashOrder(keys: BigUint64Array, order: Uint32Array, keyWork: BigUint64Array, orderWork: Uint32Array, n: number): void;
  suffixTokens(text: Uint16Array, n: number, classes: Uint8Array, fold: Uint16Array | null, tokens: Uint32Array, starts: Int32Array): number;
  suffixSort(tokens: Uint32Array, n: number, depth: number, sa: Uint32Array, rank: Uint32Array, work: Uint8Array): number;
  suffixRepeats(sa: Uint32Array, rank: Uint32Array, n: number, length: number, room: Uint32Array, keepFirst: number, marks: Uint8Array): void;
  suffixWindows(tokens: Uint32Array, n: number, length: number, salt: number, hashes: BigUint64Array): number;
}

const nativeDir = fileURLToPath(new URL("../../native/", import.meta.url));
let opened: TextKernels | undefined;

/** Opens the kernels once per thread. Throws as openCpu does. LYCEUM_ISA chooses the instruction set, as for the engine. */
export function openTextKernels(): TextKernels {
  if (opened) return opened;
  // AMX has nothing for text, and its library asks the kernel for tile registers that a worker need not hold.
  const lib = openLibrary(chooseIsa(undefined, "amx"));
  const header = readFileSync(`${nativeDir}lyceum.h`, "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
  const kernels: Record<string, unknown> = {};
  for (const [prototype, , name] of header.matchAll(/^(\w+) ly_((?:minhash|suffix)_\w+)\([^)]*\)(?=;)/gm))
    kernels[name.replace(/_(\w)/g, (_, c: string) => c.toUpperCase())] = lib.func(prototype.replace(/\s+/g, " "));
  opened = kernels as unknown as TextKernels;
  return opened;
}
