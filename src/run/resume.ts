/** Beginning again in a folder that a run is in: what may be written over, and which settings a resumed run may change. */
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { basename } from "node:path";
import { parse } from "yaml";
import { UserError } from "./errors.js";

/** What a run leaves before its first step. */
const BEFORE_TRAINING = /^(config\.yaml(\.partial)?|run\.lock|data|samples|checkpoints|rejected\.jsonl|events\..*)$/;

/** Whether all that the run in a folder has is preparation: it ended before its first step, by a mistake in its data, say. */
export function nothingTrained(dir: string): boolean {
  const names = readdirSync(dir);
  return (
    names.includes("config.yaml") &&
    readFileSync(`${dir}/config.yaml`, "utf8").startsWith("# lyceum ") &&
    names.every((n) => BEFORE_TRAINING.test(n) || (n === "metrics.jsonl" && statSync(`${dir}/${n}`).size === 0)) &&
    (!names.includes("checkpoints") || !readdirSync(`${dir}/checkpoints`).some((n) => /^\d+$/.test(n)))
  );
}

/** Removes what `nothingTrained` allows; the lock stays. */
export function clearPreparation(dir: string): void {
  for (const name of readdirSync(dir)) if (name !== "run.lock") rmSync(`${dir}/${name}`, { recursive: true });
}

/** Settings that a run is: with another one it would be another run. A name stands for all keys under it. */
const FIXED = ["stage", "seed", "precision", "model", "tokenizer", "from", "template", "lora", "data"];
/** Settings that change nothing of what is computed. */
const SILENT = ["threads", "logEvery", "keepCheckpoints", "parallel"];

/**
 * Compares the settings of a run that goes on at `step` with those it has had. Returns what has changed, for people.
 * Throws UserError (exit code 2) where a setting has changed that cannot. Where no step was done yet any may: then token
 * shards that were made with others are thrown away.
 */
export function changedSettings(dir: string, config: unknown, step: number): string[] {
  const file = `${dir}/config.yaml`;
  if (!existsSync(file)) return [];
  let before: unknown;
  try {
    before = parse(readFileSync(file, "utf8"));
  } catch {
    return []; // edited by hand: the new settings are written over it
  }
  const changes = differences(before, JSON.parse(JSON.stringify(config)));
  const fixed = changes.filter(({ path }) => FIXED.includes(path.split(".")[0]));
  if (step === 0) {
    if (fixed.length > 0) rmSync(`${dir}/data`, { recursive: true, force: true });
  } else if (fixed.length > 0) {
    const { path, from, to } = fixed[0];
    throw new UserError(
      `${dir} holds a run in which ${path} was ${from}; now it is ${to}. A run goes on with the ${FIXED.join(", ")} that it began with. Set it back, or name another folder with --out.`,
      2,
    );
  }
  return changes
    .filter(({ path }) => !SILENT.includes(path.split(".")[0]))
    .map(({ path, from, to }) => `${path} was ${from}, now it is ${to}`);
}

interface Difference {
  path: string;
  from: string;
  to: string;
}

const isGroup = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const told = (value: unknown): string => (value === undefined ? "not set" : JSON.stringify(value));

function differences(before: unknown, after: unknown, path = ""): Difference[] {
  if (isGroup(before) && isGroup(after)) {
    const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    return keys.flatMap((key) => differences(before[key], after[key], path ? `${path}.${key}` : key));
  }
  return same(before, after) ? [] : [{ path, from: told(before), to: told(after) }];
}

/** Files may be named from another folder than before: their names count. */
function same(a: unknown, b: unknown): boolean {
  if (typeof a === "string" && typeof b === "string") return basename(a) === basename(b);
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((x, i) => same(x, b[i]));
  return isGroup(a) && isGroup(b) ? differences(a, b).length === 0 : a === b;
}
