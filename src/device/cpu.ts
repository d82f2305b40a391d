/**
 * The CPU engine: native/*.c, compiled once per instruction set, opened by FFI.
 *
 * The prototypes are read from native/lyceum.h itself, so the header is the one list of kernels: a prototype
 * `void ly_rmsnorm_forward(const void *x, ...)` becomes the method `rmsnormForward`, pointers become addresses.
 */
import { existsSync, readFileSync } from "node:fs";
import { totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import { UserError } from "../run/errors.js";
import type { Device, Ptr } from "./device.js";

const nativeDir = fileURLToPath(new URL("../../native/", import.meta.url));

export class EngineError extends UserError {
  override name = "EngineError";
}

export interface CpuOptions {
  /** Threads of the engine's pool; default: all cores this process may use. */
  threads?: number;
  /** portable, avx2, avx512, avx512bf16, amx, neon; default: LYCEUM_ISA, else the best this processor offers. */
  isa?: string;
}

type Kernel = (...args: unknown[]) => unknown;

/** `name -> C prototype` of every function in the header, with pointer arguments turned into plain addresses. */
function prototypes(): Map<string, string> {
  const header = readFileSync(`${nativeDir}lyceum.h`, "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
  const found = new Map<string, string>();
  for (const [, result, star, name, args] of header.matchAll(/^((?:const )?\w+) (\*?)(ly_\w+)\(([^)]*)\);/gm)) {
    const returns = star === "*" ? (result.includes("char") ? "const char*" : "uintptr_t") : result;
    const params = args.split(",").map((a) => {
      const arg = a.trim().replace(/\s+/g, " ");
      if (arg === "void" || arg === "") return "";
      if (arg.includes("char")) return arg;
      if (arg === "size_t *bytes") return "_Out_ size_t *bytes";
      return arg.includes("*") ? `uintptr_t ${arg.slice(arg.lastIndexOf("*") + 1)}` : arg;
    });
    found.set(name, `${returns} ${name}(${params.join(", ")})`);
  }
  return found;
}

const libraryPath = (isa: string): string => `${nativeDir}build/lyceum-${isa}.so`;

/** Kept for the life of the process: the pool's threads run in a library's code. */
const libraries = new Map<string, ReturnType<typeof koffi.load>>();

/** The library of an instruction set, opened once. Throws EngineError when it is not built. */
export function openLibrary(isa: string): ReturnType<typeof koffi.load> {
  const known = libraries.get(isa);
  if (known) return known;
  const path = libraryPath(isa);
  if (!existsSync(path))
    throw new EngineError(
      `The CPU engine is not built (${path} is missing). Run "npm run build" here, or "npm rebuild lyceum" in a project that has it installed; it needs a C compiler: install the package gcc (Debian, Ubuntu: apt-get install gcc; Fedora: dnf install gcc; macOS: xcode-select --install).`,
    );
  const library = koffi.load(path);
  libraries.set(isa, library);
  return library;
}

const isaList = (): string[] => (openLibrary("portable").func(prototypes().get("ly_isa_list")!)() as string).split(",");

/** The instruction sets that this processor offers and that are built, best first. */
export const offeredIsas = (): string[] => isaList().filter((isa) => existsSync(libraryPath(isa)));

/**
 * The instruction set to open: the one that is wanted, that of LYCEUM_ISA, or the best but `without`. Throws EngineError for one that
 * this processor does not offer.
 */
export function chooseIsa(wanted?: string, without?: string): string {
  const isa = wanted || process.env.LYCEUM_ISA || offeredIsas().find((i) => i !== without) || "portable";
  if (!isaList().includes(isa))
    throw new EngineError(
      `Instruction set "${isa}" is not offered by this processor. It offers: ${isaList().join(", ")}.`,
    );
  return isa;
}

let opened: Device | undefined;
let watch: ((device: Device) => Device) | undefined;
/** Devices that are opened from now on are seen through `by` (profile.ts). */
export function watchKernels(by: (device: Device) => Device): void {
  watch = by;
}
/** The engine that was opened last, with its threads; opens one when there is none. */
export const currentCpu = (): Device => opened ?? openCpu();

/**
 * Opens the engine. Throws EngineError when it is not built or `isa` is not offered by this processor.
 *
 * Each thread of a program (node:worker_threads) that opens it has a pool of its own, so several may compute at once. Without `threads` each
 * takes all cores: with several at work, give each its share. A pool ends with its thread; a model that was not closed keeps its memory.
 * Opened again in the same thread, the pool has the number of threads that was given last.
 */
export function openCpu(options: CpuOptions = {}): Device {
  const protos = prototypes();
  const offered = isaList();
  const isa = chooseIsa(options.isa);
  const lib = openLibrary(isa);
  const device: Record<string, unknown> = {};
  for (const [name, proto] of protos)
    device[name.slice(3).replace(/_(\w)/g, (_, c: string) => c.toUpperCase())] = lib.func(proto);
  const native = device as Record<string, Kernel>;
  if (native.init(options.threads ?? 0) !== 0)
    throw new EngineError(
      `The ${isa} engine could not start: the operating system does not offer its registers. Set LYCEUM_ISA to one of: ${offered.join(", ")}.`,
    );

  const { alloc, mapFile } = native;
  const memory = totalmem();
  const view = (p: Ptr, bytes: number): ArrayBuffer => koffi.view(p, bytes);
  const made = Object.assign(device, {
    isa,
    cpuName: native.cpuName() as string,
    threads: native.threads() as number,
    alloc(bytes: number): Ptr {
      // The system hands out addresses beyond its memory, and ends the process when they are filled.
      const p = bytes > memory ? 0 : (alloc(bytes) as Ptr);
      if (p === 0)
        throw new EngineError(
          `Out of memory: ${(bytes / 2 ** 20).toFixed(0)} MiB could not be allocated; this machine has ${(memory / 2 ** 20).toFixed(0)}. Use a smaller batch, context or model.`,
        );
      return p;
    },
    mapFile(path: string) {
      const size = [0];
      const ptr = mapFile(path, size) as Ptr;
      if (ptr === 0) throw new EngineError(`${path} cannot be opened, or is empty.`);
      return { ptr, bytes: Number(size[0]) };
    },
    bytes: (p: Ptr, length: number) => new Uint8Array(view(p, length)),
    f32: (p: Ptr, length: number) => new Float32Array(view(p, length * 4)),
    i32: (p: Ptr, length: number) => new Int32Array(view(p, length * 4)),
    u16: (p: Ptr, length: number) => new Uint16Array(view(p, length * 2)),
  }) as unknown as Device;
  opened = watch ? watch(made) : made;
  return opened;
}
