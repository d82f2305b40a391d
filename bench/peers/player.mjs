/**
 * Contestants of a benchmark: processes that stay and take turns (ours, peer, ours, ...), so that a change in the machine's mood
 * meets all of them. Figures are medians over the turns.
 */
import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { createInterface } from "node:readline";

/** The user's mistake: main.mjs prints its message and no stack trace. */
export class UsageError extends Error {}

/** A process that does what a line names and answers with one line of JSON. */
export class Player {
  /** `needs`: what a peer's Python, or else `where`, must have for it to run; `env`: added to the environment. */
  constructor(name, command, args, { needs, where = "that Python", env } = {}) {
    this.name = name;
    this.child = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, ...env } });
    this.errors = "";
    this.child.stderr.on("data", (text) => {
      this.errors += text;
    });
    this.child.stdin.on("error", () => {}); // a dead child is reported by turn()
    this.ended = new Promise((_, reject) => {
      const fail = (why) => {
        const last = this.errors.trim().split("\n").at(-1);
        const advice = needs ? ` Does ${where} have ${needs}? Without it only Lyceum is measured.` : "";
        reject(new UsageError(`"${name}", run by ${command}, ${why}.${last ? ` It said: ${last}.` : ""}${advice}`));
      };
      this.child.on("error", (error) => fail(`could not be started (${error.message})`));
      this.child.on("exit", (code, signal) => fail(`ended early (${signal ?? code})`));
    });
    this.ended.catch(() => {});
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }
  async turn(what) {
    this.child.stdin.write(`${what}\n`);
    const { value, done } = await Promise.race([this.lines.next(), this.ended]);
    return done ? await this.ended : JSON.parse(value);
  }
  close() {
    this.child.stdin.end();
    this.child.kill();
  }
}

/** Options (of parseArgs) that every benchmark with a peer takes. */
export const COMMON = {
  python: { type: "string" },
  json: { type: "boolean", default: false },
  only: { type: "string" },
  threads: { type: "string", default: String(availableParallelism()) },
  help: { type: "boolean", default: false },
};

export const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/** Throws a UsageError unless the options named are whole numbers above 0 (or absent). */
export function checkCounts(options, ...names) {
  for (const key of names)
    if (options[key] !== undefined && !/^[1-9]\d*$/.test(options[key]))
      throw new UsageError(`--${key} must be a whole number above 0, not "${options[key]}".`);
}
