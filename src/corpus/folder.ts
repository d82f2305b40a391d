/**
 * The folder of a build. Rows of the same unit and number belong together:
 *   documents/WEB-000000.jsonl   what was extracted, whole; nothing is ever cut from it
 *   signals/, decisions/, spans/ every score; every rule's verdict; what would be cut
 *   duplicates/, repeats/        a document's twin; the runs in it that stand elsewhere too
 *   outcome/                     what became of it, and on which side of the split it is
 *   rejected.jsonl  funnel.json  report.html  kept/*.jsonl  shards/train  shards/validation  manifest.json
 * Files of a unit appear under their names when they are whole. units/ holds a marker of each unit and step, written last.
 */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { UserError } from "../run/errors.js";

export const ROWS = ["documents", "signals", "decisions", "spans", "duplicates", "outcome"] as const;
export type Rows = (typeof ROWS)[number];

/** A file's content, whole or piece by piece. */
export type Content = string | Uint8Array | Iterable<string>;

/** A step's files and their sizes; a file of another size was not written to its end. */
export interface Marker {
  /** Hash of all that the step depends on. */
  key: string;
  files: Record<string, number>;
}

export class BuildFolder {
  constructor(readonly dir: string) {}

  static open(dir: string): BuildFolder {
    if (
      existsSync(dir) &&
      readdirSync(dir).length > 0 &&
      !existsSync(join(dir, "units")) &&
      !existsSync(join(dir, "recipe.yaml"))
    )
      throw new UserError(`${dir} is not empty and is not a corpus build. Name another folder with --out.`, 2);
    mkdirSync(join(dir, "units"), { recursive: true });
    return new BuildFolder(dir);
  }

  path(name: string): string {
    return join(this.dir, name);
  }
  rows(kind: Rows, unit: string): string {
    return join(this.dir, kind, `${unit}.jsonl`);
  }

  /** Writes files of a step, then its marker; one of an earlier recipe goes before the first of them. Names are relative to the folder. */
  commit(marker: string, value: Marker & Record<string, unknown>, files: Record<string, Content>): void {
    rmSync(this.path(`units/${marker}.json`), { force: true });
    value.files = {};
    for (const [name, data] of Object.entries(files)) {
      this.write(name, data);
      value.files[name] = statSync(this.path(name)).size;
    }
    this.write(`units/${marker}.json`, JSON.stringify(value));
  }

  /** Whole or not at all. */
  write(name: string, data: Content): void {
    const file = this.path(name);
    mkdirSync(dirname(file), { recursive: true });
    const partial = `${file}.partial`;
    try {
      if (typeof data === "string" || data instanceof Uint8Array) writeFileSync(partial, data);
      else {
        const handle = openSync(partial, "w");
        try {
          for (const piece of data) writeFileSync(handle, piece);
        } finally {
          closeSync(handle);
        }
      }
      renameSync(partial, file);
    } catch (error) {
      throw diskError(error, file);
    }
  }

  /** The marker of a finished step with this key; undefined when the step must be done (again). */
  finished<T extends Marker>(marker: string, key: string | undefined): T | undefined {
    const file = this.path(`units/${marker}.json`);
    if (!existsSync(file)) return undefined;
    let value: T;
    try {
      value = JSON.parse(readFileSync(file, "utf8")) as T;
    } catch {
      return undefined; // not written to its end: the machine stopped
    }
    if (key !== undefined && value.key !== key) return undefined;
    for (const [name, size] of Object.entries(value.files)) {
      const at = this.path(name);
      if (!existsSync(at) || statSync(at).size !== size) return undefined;
    }
    return value;
  }

  /** Removes files of units that are no longer among `units`, and what a killed run left of its windows (windows.ts). */
  removeStale(units: ReadonlySet<string>): void {
    rmSync(this.path("windows"), { recursive: true, force: true });
    for (const kind of [...ROWS, "repeats", "rejected", "index", "kept", "units"]) {
      const dir = this.path(kind);
      if (!existsSync(dir)) continue;
      for (const name of readdirSync(dir)) {
        const unit = name.replace(/\.(?:read|judged|finished)\.json$|\.(?:jsonl|bin)$/, "");
        if (!units.has(unit) && unit !== "all") rmSync(join(dir, name), { recursive: true });
      }
    }
  }
}

/** Write errors as people understand them; the build goes on where it was when it is started again. */
export function diskError(error: unknown, file: string): Error {
  const { code, message } = error as { code?: string; message: string };
  if (code === "ENOSPC" || code === "EDQUOT")
    return new UserError(
      `The disk is full (while writing ${file}). Free some space and start the same command again: it goes on where it was.`,
    );
  if (code === "EACCES" || code === "EROFS" || code === "EPERM")
    return new UserError(`${file} cannot be written: ${message}`);
  return error as Error;
}

export const unitName = (source: string, number: number): string => `${source}-${String(number).padStart(6, "0")}`;

/** Rows of a JSONL file of the build, all or those that are wanted. Line by line: the whole file as one string takes twice as long. */
export function readRows<T>(file: string, wanted?: (row: number) => boolean): T[] {
  const bytes = readFileSync(file);
  const rows: T[] = [];
  for (let start = 0, row = 0; start < bytes.length; row++) {
    const end = bytes.indexOf(10, start);
    if (wanted === undefined || wanted(row)) rows.push(JSON.parse(bytes.toString("utf8", start, end)) as T);
    start = end + 1;
  }
  return rows;
}
/** As lines of JSON, in pieces: all rows of a unit may be longer than a string can be. */
export function* toRows(rows: readonly unknown[]): Iterable<string> {
  let lines: string[] = [];
  let length = 0;
  for (const row of rows) {
    const line = `${JSON.stringify(row)}\n`;
    lines.push(line);
    length += line.length;
    if (length < 1 << 20) continue;
    yield lines.join("");
    lines = [];
    length = 0;
  }
  yield lines.join("");
}
