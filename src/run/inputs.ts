/**
 * What a run reads again when it goes on: data, prompts, and frozen weights. `inputs.json` keeps a fingerprint of each, so that a run is not
 * continued on something else without a word.
 */
import { createHash, type Hash } from "node:crypto";
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { UserError } from "./errors.js";
import { FILES } from "./resume.js";

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

/** Stages that ask the weights they began with while they train: as a reference, or beneath adapters. */
const asksFrom = ({ stage, lora }: { stage?: unknown; lora?: unknown }): boolean =>
  lora !== undefined || stage === "ppo" || stage === "grpo" || stage === "dpo";

/**
 * Compares what the run in `dir` goes on with at `step` with what it began with, and returns what is to be told of it. At step 0 it notes what
 * it begins with: the text of a new inputs.json. Throws UserError (exit code 2) where data or weights are others; a reward module may be mended.
 */
export function checkInputs(dir: string, config: unknown, step: number): { changes: string[]; text?: string } {
  const inputs = inputsOf(config);
  if (step === 0) return { changes: [], text: `${JSON.stringify(inputs, null, 2)}\n` };
  const path = `${dir}/${FILE}`;
  if (!existsSync(path)) return { changes: [] }; // of an earlier version
  let before: Inputs;
  try {
    before = JSON.parse(readFileSync(path, "utf8")) as Inputs;
  } catch {
    return { changes: [] };
  }
  const changed = Object.entries(inputs).filter(([key, now]) => before[key] && before[key].sha256 !== now.sha256);
  const fixed = changed.find(([, { name }]) => !isModule(name));
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

const isModule = (name: string): boolean => /\.m?js$/.test(name);

function inputsOf(config: unknown): Inputs {
  const found: Inputs = {};
  const settings = (config ?? {}) as Record<string, unknown>;
  // Pretraining keeps its data as tokens, and its weights in the checkpoint.
  if (settings.stage === "pretrain") return found;
  const skipped = new Set(["tokenizer", "critic", ...(asksFrom(settings) ? [] : ["from"])]);
  const visit = (value: unknown, path: string, isFile: boolean): void => {
    if (typeof value === "string") {
      if (isFile && existsSync(value)) found[path] = { name: value, ...fingerprint(value) };
    } else if (typeof value === "object" && value !== null)
      for (const [key, inner] of Object.entries(value)) {
        const at = path ? `${path}.${key}` : key;
        if (at === "samples" || skipped.has(at)) continue;
        visit(inner, at, Array.isArray(value) ? isFile : FILES.has(key));
      }
  };
  visit(settings, "", false);
  return found;
}

/** Of a file, or of all files in a folder, by their names in it. */
function fingerprint(path: string): { bytes: number; sha256: string } {
  const hash = createHash("sha256");
  let bytes = 0;
  const visit = (at: string, name: string): void => {
    const stat = statSync(at, { throwIfNoEntry: false });
    if (stat?.isDirectory()) for (const entry of readdirSync(at).sort()) visit(`${at}/${entry}`, `${name}/${entry}`);
    if (!stat?.isFile()) return;
    hash.update(`${name}\0${stat.size}\0`);
    bytes += stat.size;
    addContent(hash, at, stat.size);
  };
  visit(path, "");
  return { bytes, sha256: hash.digest("hex") };
}

function addContent(hash: Hash, path: string, size: number): void {
  const fd = openSync(path, "r");
  try {
    const buffer = Buffer.alloc(PIECE);
    const pieces = size <= WHOLE ? Math.ceil(size / PIECE) : PIECES;
    const step = size <= WHOLE ? PIECE : (size - PIECE) / (PIECES - 1); // from the first byte to the last
    for (let i = 0; i < pieces; i++)
      hash.update(buffer.subarray(0, readSync(fd, buffer, 0, PIECE, Math.round(i * step))));
  } finally {
    closeSync(fd);
  }
}
