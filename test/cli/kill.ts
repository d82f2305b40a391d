/** A run of the built program that is killed again and again, and resumed until it comes to its end. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";

const bin = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const moments = [0.55, 0.9, 0.7, 0.45, 0.8, 0.65];

/**
 * Runs `lyceum` with `args` in folder `cwd` until `out` (under `cwd`) has a model. The first kill comes with the first
 * checkpoint, the others at shares of `wholeMs`, the time of a run that nobody kills: a moment in milliseconds would be
 * after the end on one machine and before the beginning on another.
 */
export async function killAndResume(args: string[], cwd: string, out: string, wholeMs: number): Promise<void> {
  const saved = (): boolean => {
    const folder = join(cwd, out, "checkpoints");
    return existsSync(folder) && readdirSync(folder).length > 0;
  };
  let kills = 0;
  for (let round = 0; !existsSync(join(cwd, out, "model")); round++) {
    expect(round).toBeLessThan(moments.length + 2);
    const child = spawn(process.execPath, [bin, ...args, "--out", out, ...(round > 0 ? ["--resume"] : [])], {
      cwd,
      stdio: "ignore",
    });
    const ended = new Promise((done) => child.on("close", done));
    if (round === 0) while (child.exitCode === null && !saved()) await sleep(2);
    else if (round <= moments.length) await Promise.race([ended, sleep(moments[round - 1]! * wholeMs)]);
    else await ended;
    if (child.exitCode === null) {
      child.kill("SIGKILL");
      kills++;
    }
    await ended;
  }
  expect(kills).toBeGreaterThan(0);
}
