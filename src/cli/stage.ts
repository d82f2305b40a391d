/** `lyceum pretrain | sft | ...`: one stage, from a YAML file. */

import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, dirname, extname } from "node:path";
import type { Comm } from "../parallel/comm.js";
import { check, overridden, readYaml } from "../run/config.js";
import { systemMessage, UserError } from "../run/errors.js";
import { RunFolder, VERSION } from "../run/folder.js";
import { FILES } from "../run/resume.js";

export interface StageFlags {
  out?: string;
  resume?: boolean;
  set?: string[];
}

/** Files and folders are looked for beside the YAML file first, then from the current folder. */
export function locate(value: unknown, beside: string, key = ""): unknown {
  if (typeof value === "string" && FILES.has(key)) {
    const near = `${beside}/${value}`;
    return !value.startsWith("/") && beside !== "." && existsSync(near) ? near : value;
  }
  if (Array.isArray(value)) return value.map((v) => locate(v, beside, key));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, locate(v, beside, k)]));
}

/** Runs a stage by its name. Prints where its result is. */
export async function command(name: string, file: string, flags: StageFlags): Promise<void> {
  const { STAGES } = await import("../stages/registry.js");
  const { schema, run } = STAGES[name];
  const source = overridden(readYaml(file), flags.set ?? []);
  if (Array.isArray((source.value as { stages?: unknown } | null)?.stages))
    throw new UserError(`${file} is a recipe of several stages: lyceum run ${file}`, 2);
  const config = check(schema, { ...source, value: locate(source.value, dirname(file)) }) as {
    keepCheckpoints?: number;
    threads?: number;
  };
  const dir = flags.out ?? `runs/${basename(file, extname(file))}`;
  const world = await join(config, dir);
  const open = (): RunFolder =>
    RunFolder.open(
      dir,
      { stage: name, ...config },
      {
        resume: flags.resume,
        keepCheckpoints: config.keepCheckpoints ?? 1,
        ...(world && { world }),
      },
    );
  await runStage(dir, open, (folder) => run(config as never, folder));
  console.log(name === "prefer" ? `${dir}/preferences.jsonl` : `${dir}/model`);
}

/** Opens a stage's folder and does its work there. A full disk is told with the folder that it was met in. */
export async function runStage(
  dir: string,
  open: () => RunFolder,
  work: (folder: RunFolder) => Promise<void>,
): Promise<void> {
  let folder: RunFolder | undefined;
  try {
    folder = open();
    await work(folder);
  } catch (error) {
    const message = systemMessage(error, dir);
    throw message === undefined ? error : new UserError(message);
  } finally {
    folder?.close();
  }
}

/** Under mpirun: all processes of the job, each with its share of the host's cores; the first one speaks for all. */
async function join(config: { threads?: number }, dir: string): Promise<Comm | undefined> {
  const { launched, whoIsWho } = await import("../parallel/mpi.js");
  if (!launched()) return undefined;
  const { openCpu } = await import("../device/cpu.js");
  const { Grid, openWorld, threadsPerRank } = await import("../parallel/grid.js");
  const device = openCpu({ threads: 1 });
  const world = openWorld(device);
  config.threads ||= threadsPerRank(device, availableParallelism());
  if (world.rank > 0) console.error = console.log = () => {};
  Grid.agree(world, "version", VERSION);
  // Sums come out otherwise with other instructions, and replicas would drift apart.
  Grid.agree(world, "instruction set (LYCEUM_ISA makes it one)", device.isa);
  const { threads: _, ...rest } = config; // hosts may have more cores, or fewer processes
  Grid.agree(world, "configuration", { ...rest, out: dir });
  whoIsWho(world);
  return world;
}
