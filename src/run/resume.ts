/** Beginning again in a folder that a run is in: what may be written over, and which settings a resumed run may change. */
import {
  closeSync,
  existsSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statSync,
} from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { parse } from "yaml";
import { UserError } from "./errors.js";
import { namedBy } from "./named.js";

/** What a run leaves before its first step. */
const BEFORE_TRAINING =
  /^((config\.yaml|inputs\.json|rejected\.jsonl|reference\.json|not-finite(-\d+)?\.json)(\.partial)?|run\.lock.*|data|samples|checkpoints|events\.out\.tfevents\..*)$/;
/** What stands in its folder before its settings do. */
const BEFORE_CONFIG = /^(run\.lock.*|checkpoints|config\.yaml\.partial)$/;
/** Checkpoints, and those that were not whole when the run was killed. Other names in their folder are somebody's. */
export const CHECKPOINT = /^\d{6,}$/;
export const PARTIAL = /^\.\d{6,}$/;
/** What a run writes into the folders of its data/. */
const PREPARED = /^(tokens\.bin|documents\.bin|manifest\.json|tokenizer\.json|tokenizer_config\.json)$/;

/** What a run's config.yaml begins with: a folder that has another one, or none, is somebody else's. */
const HEADER = "# lyceum ";
const IN = ", in ";
/** The text of config.yaml: its first line says by which version, and from which folder relative names are meant. */
export const configText = (version: string, yaml: string): string =>
  `${HEADER}${version}${IN}${process.cwd()}\n${yaml}`;

/**
 * What a folder holds: nothing yet; a run that ended before its first step, by a mistake in its data, say; a run; or what
 * is none of Lyceum's.
 */
export function contentsOf(dir: string): "nothing" | "preparation" | "run" | "other" {
  if (!existsSync(dir)) return "nothing";
  const names = readdirSync(dir);
  const kind = (name: string) => statSync(`${dir}/${name}`, { throwIfNoEntry: false });
  const [config, checkpoints] = ["config.yaml", "checkpoints"].map((name) => names.includes(name));
  if (config && !kind("config.yaml")?.isFile()) return "other";
  if (checkpoints && !kind("checkpoints")?.isDirectory()) return "other";
  const steps = checkpoints ? readdirSync(`${dir}/checkpoints`) : [];
  if (steps.some((n) => CHECKPOINT.test(n))) return "run";
  const own = steps.every((n) => PARTIAL.test(n));
  if (!config || !readFileSync(`${dir}/config.yaml`, "utf8").startsWith(HEADER))
    return own && names.every((n) => BEFORE_CONFIG.test(n)) ? "nothing" : "other";
  return own && names.every((n) => BEFORE_TRAINING.test(n) || (n === "metrics.jsonl" && kind(n)?.size === 0))
    ? "preparation"
    : "run";
}

/** Removes what a run left that ended before its first step, and nothing else. */
export function clearPreparation(dir: string): void {
  clearData(dir);
  clear(`${dir}/samples`, /^\d+\.txt$/);
  clear(`${dir}/checkpoints`, PARTIAL);
  clear(dir, /^(?!config\.yaml$|run\.lock.*|data$|samples$|checkpoints$)/);
}
/** Removes the token shards, and the tokenizer, that a run made. */
export function clearData(dir: string): void {
  for (const name of ["train", "validation", "train.partial", "validation.partial", "tokenizer"])
    clear(`${dir}/data/${name}`, PREPARED);
  clear(`${dir}/data`);
}

/** Removes what has such names in a folder, and the folder when nothing else is in it. What a link leads to is somebody's. */
function clear(dir: string, names?: RegExp): void {
  if (!lstatSync(dir, { throwIfNoEntry: false })?.isDirectory()) return;
  for (const name of readdirSync(dir)) if (names?.test(name)) rmSync(`${dir}/${name}`, { recursive: true });
  if (readdirSync(dir).length === 0) rmdirSync(dir);
}

/** Settings that a run is: with another one it would be another run. A name stands for all keys under it. */
const FIXED = ["stage", "seed", "precision", "model", "tokenizer", "from", "template", "lora", "data"];
/** Settings that change nothing of what is computed. */
const SILENT = ["threads", "logEvery", "keepCheckpoints", "parallel"];
/** Settings that a run is watched, saved and spread over memory by: what comes out is the same with others. */
const WATCHING = ["evalEvery", "evalBatches", "samples", "saveEvery", "recompute"];

/**
 * Compares the settings of a run that goes on at `step` with those it has had. Returns what has changed, for people.
 * Throws UserError (exit code 2) where a setting has changed that cannot. Where no step was done yet any may: then token
 * shards that were made with others are thrown away.
 * Of a stage that is done, `given` are the settings without defaults: only what would have come out otherwise counts, and a key
 * that is new with this version is not a change.
 */
export function changedSettings(dir: string, config: unknown, step: number, given?: unknown): string[] {
  const file = `${dir}/config.yaml`;
  if (!existsSync(file)) return [];
  const text = readFileSync(file, "utf8");
  const head = text.slice(0, text.indexOf("\n"));
  let before: unknown;
  try {
    before = parse(text);
  } catch {
    return []; // edited by hand: the new settings are written over it
  }
  if (!isGroup(before)) return [];
  const was = head.includes(IN) ? head.slice(head.indexOf(IN) + IN.length) : ".";
  const now: unknown = JSON.parse(JSON.stringify(config));
  const changes = differences(before, now, was).filter(
    ({ path, from }) => given === undefined || from !== UNSET || isSet(given, path),
  );
  const fixed = changes.filter(({ path }) => FIXED.includes(path.split(".")[0]));
  if (step === 0) {
    if (fixed.length > 0) clearData(dir);
  } else if (fixed.length > 0) {
    const { path, from, to } = fixed[0];
    throw new UserError(
      `${dir} holds a run in which ${path} was ${from}; now it is ${to}. A run goes on with the ${FIXED.join(", ")} that it began with. Set it back, or name another folder with --out.`,
      2,
    );
  }
  // What a step reads is told by its number: with another batch, some data would be left out or read twice.
  if (step > 0 && rowsOfStep(before) !== rowsOfStep(now))
    throw new UserError(
      `${dir} holds a run of ${rowsOfStep(before)} a step (batchSize x gradientAccumulation); now it is ${rowsOfStep(now)}. A run goes on with as many as it began with: set them back, or name another folder with --out.`,
      2,
    );
  const average = changes.find(
    ({ path, from, to }) => /(^|\.)ema$/.test(path) && (from === "0" || from === UNSET) && to !== "0",
  );
  if (step > 0 && average)
    throw new UserError(
      `${dir} holds a run without an average of its weights, and ${average.path} is now ${average.to}. An average begins with the first step: set it back to 0, or name another folder with --out.`,
      2,
    );
  const quiet = given === undefined ? SILENT : [...SILENT, ...WATCHING];
  return changes
    .filter(({ path }) => !quiet.includes(path.split(".")[0]))
    .map(({ path, from, to }) => `${path} was ${from}, now it is ${to}`);
}

interface Rows {
  batchSize?: number;
  gradientAccumulation?: number;
  pretrainMix?: { batchSize?: number };
}
/** batchSize x gradientAccumulation: how far a step goes in the data, and in the texts that are mixed in. */
function rowsOfStep(settings: unknown): string {
  const { batchSize = 1, gradientAccumulation = 1, pretrainMix } = (settings ?? {}) as Rows;
  const mixed = pretrainMix?.batchSize ? ` and ${pretrainMix.batchSize * gradientAccumulation} of pretrainMix` : "";
  return `${batchSize * gradientAccumulation} rows${mixed}`;
}

interface Difference {
  path: string;
  from: string;
  to: string;
}

const isGroup = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const UNSET = "not set";
const isSet = (settings: unknown, path: string): boolean =>
  path.split(".").reduce<unknown>((at, key) => (isGroup(at) ? at[key] : undefined), settings) !== undefined;
const told = (value: unknown): string => (value === undefined ? UNSET : JSON.stringify(value));

/** `was`: the folder from which names of files in `before` are meant. */
function differences(before: unknown, after: unknown, was: string, path = ""): Difference[] {
  if (isGroup(before) && isGroup(after)) {
    const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    return keys.flatMap((key) => differences(before[key], after[key], was, path ? `${path}.${key}` : key));
  }
  const files = !path.startsWith("samples.") && namedBy(path.slice(path.lastIndexOf(".") + 1)) !== undefined; // those prompts are texts
  if (same(before, after, files ? was : undefined)) return [];
  const [from, to] = [told(before), told(after)];
  return [{ path, from: from === to ? `${from}, seen from ${was}` : from, to }];
}

function same(a: unknown, b: unknown, was: string | undefined): boolean {
  if (typeof a === "string" && typeof b === "string" && was !== undefined) return sameFile(a, b, was);
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((x, i) => same(x, b[i], was));
  return isGroup(a) && isGroup(b) ? differences(a, b, was ?? ".").length === 0 : a === b;
}

/**
 * Whether two names mean one file or folder, or the second is a copy. Where the first is no longer there it may have moved, the run's
 * folder with it: then its own name counts, and with a name that Lyceum gives (every model is called model) that of the folder it is in.
 */
function sameFile(before: string, after: string, was: string): boolean {
  const [old, now] = [resolve(was, before), resolve(after)];
  if (old === now) return true;
  if (existsSync(old)) return existsSync(now) && isCopy(realpathSync(old), realpathSync(now));
  const name = (path: string): string =>
    (GIVEN.has(basename(path)) ? `${basename(dirname(path))}/` : "") + basename(path);
  return name(old) === name(now);
}
const GIVEN = new Set(["model", "model-ema", "tokenizer", "train", "validation", "preferences.jsonl"]);

/** Whether two files, or all that is in two folders, are equal byte by byte: models of one shape have equal names and sizes. */
function isCopy(a: string, b: string): boolean {
  if (a === b) return true;
  const [one, other] = [statSync(a), statSync(b)];
  if (one.isDirectory() && other.isDirectory()) {
    const [names, others] = [readdirSync(a).sort(), readdirSync(b).sort()];
    return names.join("/") === others.join("/") && names.every((name) => isCopy(`${a}/${name}`, `${b}/${name}`));
  }
  return one.isFile() && other.isFile() && one.size === other.size && equalBytes(a, b);
}
function equalBytes(a: string, b: string): boolean {
  const files = [openSync(a, "r"), openSync(b, "r")];
  try {
    const parts = files.map(() => Buffer.alloc(2 ** 20));
    for (;;) {
      const [n, m] = files.map((file, i) => readSync(file, parts[i]));
      if (n !== m || !parts[0].subarray(0, n).equals(parts[1].subarray(0, m))) return false;
      if (n === 0) return true;
    }
  } finally {
    for (const file of files) closeSync(file);
  }
}
