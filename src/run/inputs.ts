/**
 * What a run reads again when it goes on: data, prompts, and frozen weights. `inputs.json` keeps a fingerprint of each, so that a run is not
 * continued on something else without a word.
 */
import { createHash, type Hash } from "node:crypto";
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, realpathSync, statSync } from "node:fs";
import { join, resolve, sep } from "node:path";
import { UserError } from "./errors.js";
import { isRewardModule, namedBy } from "./named.js";
import { clearData } from "./resume.js";

interface Fingerprint {
  name: string;
  bytes: number;
  sha256: string;
}
type Inputs = Record<string, Fingerprint>;

const FILE = "inputs.json";
/** Files up to this are read whole; of larger ones, so many pieces. */
const WHOLE = 64 * 2 ** 20;
const PIECES = 64;
const PIECE = 2 ** 20;

/** Stages that ask the weights they began with while they train: as a reference, or beneath adapters. (DPO keeps what its reference said.) */
const asksFrom = ({ stage, lora, klCoef }: { stage?: unknown; lora?: unknown; klCoef?: unknown }): boolean =>
  lora !== undefined || stage === "ppo" || (stage === "grpo" && klCoef !== 0);

/**
 * Compares what the run in `dir` goes on with at `step` with what it began with, and returns what is to be told of it. At step 0 it notes what
 * it begins with: the text of a new inputs.json; tokens that were made of other data are thrown away. Throws UserError (exit code 2) where data or weights are
 * others; a reward module may be mended.
 */
export function checkInputs(dir: string, config: unknown, step: number): { changes: string[]; text?: string } {
  const { stage } = (config ?? {}) as { stage?: unknown };
  const skipped = ["tokenizer", "critic", ...(asksFrom(config ?? {}) ? [] : ["from"])];
  const inputs = inputsOf(config, existsSync(dir) ? realpathSync(dir) : resolve(dir), skipped);
  const before = notedIn(`${dir}/${FILE}`);
  const isOther = ([key, now]: [string, Fingerprint]): boolean =>
    before?.[key]?.sha256 !== undefined && before[key].sha256 !== now.sha256;
  if (step === 0) {
    if (stage === "pretrain" && Object.entries(inputs).some(isOther)) clearData(dir);
    return { changes: [], text: `${JSON.stringify(inputs, null, 2)}\n` };
  }
  if (before === undefined) return { changes: [] };
  // Documents that a run has made tokens of are not read again.
  const keepsTokens = stage === "pretrain" && existsSync(`${dir}/data/train/manifest.json`);
  const changed = Object.entries(inputs).filter(
    (input) => isOther(input) && !(keepsTokens && !isShards(input[1].name)),
  );
  const fixed = changed.find(([, { name }]) => !isRewardModule(name));
  if (fixed) {
    const [key, { name, bytes }] = fixed;
    const was = before[key].bytes === bytes ? "" : ` (it had ${before[key].bytes} bytes, now it has ${bytes})`;
    throw new UserError(
      `${name} (${key}) is not what the run in ${dir} began with${was}: its steps would be another run's. Put it back, or name another folder with --out.`,
      2,
    );
  }
  return { changes: changed.map(([, { name }]) => `${name} has changed`) };
}

/**
 * What all processes of a job read, each for itself, as hashes. Pretraining's documents are read by the first one alone, unless a tokenizer is made of them as well, by all
 * together.
 */
export function sharedInputs(dir: string, config: unknown): Record<string, string> {
  const { stage, tokenizer } = (config ?? {}) as { stage?: unknown; tokenizer?: unknown };
  const ofFirst = stage === "pretrain" && typeof tokenizer !== "object";
  const inputs = Object.entries(inputsOf(config, resolve(dir), []));
  const shared = inputs.filter(([key, { name }]) => !ofFirst || !key.startsWith("data.") || isShards(name));
  return Object.fromEntries(shared.map(([key, { name, sha256 }]) => [key, `${name} (${sha256.slice(0, 12)})`]));
}

/** Undefined where there is none: of an earlier version, or not to be read. */
function notedIn(path: string): Inputs | undefined {
  try {
    return { ...(JSON.parse(readFileSync(path, "utf8")) as Inputs) };
  } catch {
    return undefined;
  }
}

/** `own`: the run's folder, whose files are none of its inputs, wherever it lies. `skipped`: keys of what is not read again. */
function inputsOf(config: unknown, own: string, skipped: readonly string[]): Inputs {
  const found: Inputs = {};
  const { stage } = (config ?? {}) as { stage?: unknown };
  const visit = (value: unknown, path: string, named: ReturnType<typeof namedBy>): void => {
    if (typeof value === "string") {
      if (named && existsSync(value)) {
        const kind = named !== "data" ? OF_A_MODEL : stage === "pretrain" && isShards(value) ? OF_SHARDS : OF_DATA;
        found[path] = { name: value, ...fingerprint(value, kind, own) };
      }
    } else if (typeof value === "object" && value !== null)
      for (const [key, inner] of Object.entries(value)) {
        const at = path ? `${path}.${key}` : key;
        if (at === "samples" || skipped.includes(at)) continue;
        visit(inner, at, Array.isArray(value) ? named : namedBy(key));
      }
  };
  visit(config ?? {}, "", undefined);
  return found;
}

/** What is read of a model's folder. Notes, exports and whole runs may lie beside it. */
const OF_A_MODEL =
  /^(config|tokenizer|tokenizer_config|generation_config)\.json$|^chat_template\.jinja$|\.safetensors$/;

/** Token shards: their folder, or that of the corpus build that made them. */
const isShards = (path: string): boolean =>
  existsSync(`${path}/manifest.json`) || existsSync(`${path}/shards/train/manifest.json`);
const OF_SHARDS = /^(manifest\.json|tokens\.bin|documents\.bin)$/;
/** Files in folders that are read as data, hidden ones too. */
const OF_DATA = /\.(warc|wet|x?html?(\.[a-z]{2}(-[a-z]{2})?)?|jsonl?|ndjson|parquet|txt|md|text)(\.gz|\.zst)?$/i;

/** Of a file, or of what is read in a folder, by the names in it. What cannot be read is told by who reads it. */
function fingerprint(path: string, read: RegExp, own: string): { bytes: number; sha256: string } {
  const hash = createHash("sha256");
  let bytes = 0;
  for (const name of read === OF_A_MODEL ? modelFiles(path) : dataFiles(path, read, own)) {
    const file = name === "" ? path : join(path, name);
    try {
      const stat = statSync(file);
      if (!stat.isFile()) continue;
      hash.update(`${name}\0${stat.size}\0`);
      addContent(hash, file, stat.size);
      bytes += stat.size;
    } catch {}
  }
  return { bytes, sha256: hash.digest("hex") };
}

/** Names in a folder; "" for a file. */
function modelFiles(path: string): string[] {
  if (!statSync(path).isDirectory()) return [""];
  return readdirSync(path)
    .filter((name) => OF_A_MODEL.test(name))
    .sort();
}

/** The same below it too, once each, wherever links lead; without what lies in `own`. */
function dataFiles(path: string, read: RegExp, own: string): string[] {
  if (!statSync(path).isDirectory()) return [""];
  const names: string[] = [];
  const seen = new Set<string>();
  const visit = (below: string): void => {
    const real = realpathSync(join(path, below));
    if (seen.has(real) || real === own || real.startsWith(`${own}${sep}`)) return;
    seen.add(real);
    for (const entry of readdirSync(real)) {
      const name = join(below, entry);
      const stat = statSync(join(path, name), { throwIfNoEntry: false });
      if (stat?.isDirectory()) visit(name);
      else if (stat && read.test(entry)) names.push(name);
    }
  };
  visit("");
  return names.sort();
}

const buffer = Buffer.alloc(PIECE);
function addContent(hash: Hash, path: string, size: number): void {
  const fd = openSync(path, "r");
  try {
    const pieces = size <= WHOLE ? Math.ceil(size / PIECE) : PIECES;
    const step = size <= WHOLE ? PIECE : (size - PIECE) / (PIECES - 1); // from the first byte to the last
    for (let i = 0; i < pieces; i++)
      hash.update(buffer.subarray(0, readSync(fd, buffer, 0, PIECE, Math.round(i * step))));
  } finally {
    closeSync(fd);
  }
}
