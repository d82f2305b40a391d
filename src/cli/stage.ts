/** `lyceum pretrain | sft | ...`: one stage, from a YAML file. */

import { existsSync } from "node:fs";
import { basename, dirname, extname } from "node:path";
import { readLlamaConfig } from "../nn/config.js";
import type { Comm } from "../parallel/comm.js";
import { type ConfigSource, check, overridden, placeOf, readYaml } from "../run/config.js";
import { systemMessage, UserError } from "../run/errors.js";
import { latestStep, RunFolder } from "../run/folder.js";
import { sharedInputs } from "../run/inputs.js";
import { isRewardModule, namedBy } from "../run/named.js";
import { VERSION } from "../run/version.js";
import { joinWorld } from "./world.js";

type Json = Record<string, unknown>;

export interface StageFlags {
  out?: string;
  resume?: boolean;
  set?: string[];
  /** What the user wrote for each of these, where that is not --set. */
  typed?: string[];
}

/** Files and folders are looked for beside the YAML file first, then from the current folder. */
export function locate(value: unknown, beside: string, key = ""): unknown {
  if (typeof value === "string" && namedBy(key)) {
    const near = `${beside}/${value}`;
    return !value.startsWith("/") && beside !== "." && existsSync(near) ? near : value;
  }
  if (Array.isArray(value)) return value.map((v) => locate(v, beside, key));
  if (value === null || typeof value !== "object" || key === "samples") return value; // whose prompts are texts
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, locate(v, beside, k)]));
}

/** A name like those of models on the Hugging Face Hub. */
const onTheHub = (name: string): string =>
  /^[\w.-]+\/[\w.-]+$/.test(name) && !name.startsWith("runs/")
    ? ` If it is a model on the Hub: nothing is downloaded here. Fetch it first (hf download ${name} --local-dir DIR) and name the folder.`
    : "";

/**
 * Throws UserError (exit code 2) for files and folders in a stage's settings that are not there. `made`: whether an earlier stage will
 * have made one; `hint`: what else may be meant.
 */
export function checkFiles(
  config: unknown,
  source: ConfigSource,
  made: (file: string) => boolean = () => false,
  hint: (file: string) => string = () => "",
): void {
  const wrong: string[] = [];
  const visit = (value: unknown, path: PropertyKey[], key: string): void => {
    if (typeof value === "string") {
      const named = namedBy(key);
      if (!named || value === "" || made(value)) return;
      const isFolder = named === "model" || (named === "model or module" && !isRewardModule(value));
      try {
        if (!existsSync(value))
          throw new UserError(`${value} does not exist.${hint(value)}${isFolder ? onTheHub(value) : ""}`);
        if (named === "model") readLlamaConfig(value);
      } catch (error) {
        wrong.push(
          `${placeOf(source, path)}: ${path.filter((k) => typeof k === "string").join(".")}: ${(error as Error).message}`,
        );
      }
    } else if (Array.isArray(value)) for (const [i, v] of value.entries()) visit(v, [...path, i], key);
    else if (typeof value === "object" && value !== null)
      // The prompts of `samples` are texts.
      for (const [k, v] of Object.entries(value)) if (k !== "samples") visit(v, [...path, k], k);
  };
  visit(config, [], "");
  if (wrong.length > 0) throw new UserError(wrong.join("\n       "), 2);
}

/** Says which of a stage's settings another one leaves without a meaning. `given`: without defaults. */
export function tellUnused(stage: string, given: Json, config: Json): void {
  const has = (key: string): boolean => given[key] !== undefined && given[key] !== null;
  const rollouts = stage === "ppo" || stage === "grpo"; // whose epochs are passes over a rollout
  if (has("steps") && has("epochs") && !rollouts) console.error(`epochs is not used: steps is ${given.steps}`);
  if (has("model") && has("from")) console.error(`model is not used: ${given.from} has its own shape`);
  const size = config.minibatchSize as number;
  const replies = (config.batchSize as number) * ((config.groupSize as number | undefined) ?? 1);
  if (!rollouts || !has("minibatchSize") || replies % size === 0) return;
  console.error(
    size > replies
      ? `minibatchSize is ${size}, and a rollout has ${replies} replies: each update is made on all of them`
      : `minibatchSize is ${size}, and a rollout has ${replies} replies: the last update is made on ${replies % size}`,
  );
}

/** Runs a stage by its name. Prints where its result is. */
export async function command(name: string, file: string, flags: StageFlags): Promise<void> {
  const { STAGES } = await import("../stages/registry.js");
  const { schema, run } = STAGES[name];
  const source = overridden(readYaml(file), flags.set ?? [], flags.typed);
  const { stages, sources } = (source.value ?? {}) as Json;
  if (Array.isArray(stages)) throw new UserError(`${file} is a recipe of several stages: lyceum run ${file}`, 2);
  if (Array.isArray(sources)) throw new UserError(`${file} is the recipe of a corpus: lyceum corpus build ${file}`, 2);
  const config = check(schema, { ...source, value: locate(source.value, dirname(file)) }) as Json & {
    keepCheckpoints?: number;
    threads?: number;
  };
  const dir = flags.out ?? `runs/${basename(file, extname(file))}`;
  const goesOn = flags.resume && latestStep(dir) > 0;
  // What a run has begun with it may no longer need. Files may be on the first host alone.
  const { launched } = await import("../parallel/mpi.js");
  const first = (launched()?.rank ?? 0) === 0;
  if (!goesOn && first) checkFiles(config, source);
  const world = await join(name, config, dir);
  if (flags.resume && !goesOn && first) console.error(`${dir} holds no checkpoint to go on from: the run begins anew`);
  if (first) tellUnused(name, source.value as Json, config);
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
  await runStage(dir, open, (folder) => run(config, folder));
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

/** Under mpirun: all processes of the job, once it is known that they run the same thing. */
async function join(stage: string, config: { threads?: number }, dir: string): Promise<Comm | undefined> {
  const world = await joinWorld();
  if (!world) return undefined;
  const { comm, device, threads } = world;
  const { whoIsWho } = await import("../parallel/mpi.js");
  const { Grid } = await import("../parallel/grid.js");
  config.threads ||= threads;
  Grid.agree(comm, "version", VERSION);
  // Other instructions round sums differently, and replicas would drift apart.
  Grid.agree(comm, "instruction set (LYCEUM_ISA makes it one)", device.isa);
  const { threads: _, ...rest } = config; // hosts may have more cores, or fewer processes
  Grid.agree(comm, "configuration", { ...rest, out: dir });
  Grid.agree(comm, "files", sharedInputs(dir, { stage, ...config }));
  whoIsWho(comm);
  return comm;
}
