/**
 * The growing file of tasks, and beside it what was set aside. All that a resumed run must know is in these two: every line
 * tells the round that it came from, and a round that was not finished is the last one.
 */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { UserError } from "../run/errors.js";
import type { Task } from "./task-list.js";

/** A record of the file: Alpaca's fields, its type, and where it came from. */
export interface KeptTask extends Task {
  teacher: string;
  /** Number of the round of questions to the teacher, from 0. */
  round: number;
}
export interface SetAside {
  round: number;
  /** Which reply of the round and which task in it, both from 1. */
  reply: number;
  item: number;
  reason: string;
  detail?: string;
}

export class TaskFile {
  readonly rejectedPath: string;
  readonly kept: KeptTask[] = [];
  /** Reason -> how often, over all that was set aside. */
  readonly reasons = new Map<string, number>();
  /** The last round of which a line was written. */
  readonly lastRound: number | undefined;

  /** Throws UserError where `path` exists and is not to be resumed, or holds what this program did not write. */
  constructor(
    readonly path: string,
    resume = false,
  ) {
    this.rejectedPath = `${path.replace(/\.jsonl$/, "")}.rejected.jsonl`;
    if (!resume) {
      for (const file of [path, this.rejectedPath])
        if (existsSync(file) && statSync(file).size > 0)
          throw new UserError(`${file} exists. Go on with it by --resume, or give another --out.`, 2);
      mkdirSync(dirname(path), { recursive: true });
      for (const file of [path, this.rejectedPath]) writeFileSync(file, "");
      return;
    }
    this.kept = readOwn<KeptTask>(path, ["type", "instruction", "input", "output", "teacher"]);
    const aside = readOwn<SetAside>(this.rejectedPath, ["reason"]);
    for (const { reason } of aside) this.count(reason, 1);
    const rounds = [...this.kept, ...aside].map((r) => r.round);
    if (rounds.length > 0) this.lastRound = rounds.reduce((a, b) => Math.max(a, b));
  }

  keep(task: KeptTask): void {
    this.kept.push(task);
    appendFileSync(this.path, `${JSON.stringify(task)}\n`);
  }

  setAside(entry: SetAside, what: object): void {
    this.count(entry.reason, 1);
    appendFileSync(this.rejectedPath, `${JSON.stringify({ ...entry, ...what })}\n`);
  }

  /** Forgets what was set aside in `round`, which is asked for again. */
  reopen(round: number): void {
    const aside = readOwn<SetAside>(this.rejectedPath, ["reason"]);
    for (const { reason } of aside.filter((a) => a.round === round)) this.count(reason, -1);
    const rest = aside.filter((a) => a.round !== round);
    const next = `${this.rejectedPath}.next`;
    writeFileSync(next, rest.map((a) => `${JSON.stringify(a)}\n`).join(""));
    renameSync(next, this.rejectedPath);
  }

  private count(reason: string, more: number): void {
    const count = (this.reasons.get(reason) ?? 0) + more;
    if (count > 0) this.reasons.set(reason, count);
    else this.reasons.delete(reason);
  }
}

/** The records of a file that a killed run may have left in the middle of a line; that line is taken off. */
function readOwn<T>(path: string, texts: readonly string[]): T[] {
  if (!existsSync(path)) {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, "");
  }
  const bytes = readFileSync(path);
  const end = bytes.lastIndexOf("\n") + 1;
  const last = bytes.toString("utf8", end);
  const whole = parse(last) !== undefined;
  const lines = bytes.toString("utf8", 0, end).split("\n");
  // Half a line is one that begins as a record does; anything else is not this program's to cut.
  if (whole || (last !== "" && !last.startsWith("{"))) lines[lines.length - 1] = last;
  const records = lines.flatMap((line, i) => {
    if (line.trim() === "") return [];
    const record = parse(line);
    if (record && Number.isInteger(record.round) && texts.every((key) => typeof record[key] === "string"))
      return [record as T];
    throw new UserError(
      `${path}:${i + 1} is no record that lyceum instruct wrote, so that it cannot be resumed. Give another --out.`,
      2,
    );
  });
  if (whole) appendFileSync(path, "\n");
  else if (last !== "") truncateSync(path, end);
  return records;
}

function parse(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}
