/** A run of the built program that is killed again and again, and resumed until it comes to its end. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";

const bin = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const moments = [0.55, 0.9, 0.7, 0.45, 0.8, 0.65];

function sameFiles(a: string, b: string): void {
  const names = readdirSync(a).sort();
  expect(readdirSync(b).sort()).toEqual(names);
  for (const name of names)
    if (statSync(join(a, name)).isDirectory()) sameFiles(join(a, name), join(b, name));
    else expect(readFileSync(join(a, name)).equals(readFileSync(join(b, name))), name).toBe(true);
}

/**
 * Runs `lyceum STAGE CONFIG` in folder `cwd` twice, once in peace and once killed and resumed, and expects the same bytes of both.
 * The first kill comes with the first checkpoint, the others at shares of the time that the run in peace took: a moment in
 * milliseconds would be after the end on one machine and before the beginning on another.
 */
export async function killAndResume(stage: string, config: string, cwd: string): Promise<void> {
  const [whole, killed] = [join(cwd, `whole-${stage}`), join(cwd, `killed-${stage}`)];
  const began = performance.now();
  expect(spawnSync(process.execPath, [bin, stage, config, "--out", whole], { cwd }).status).toBe(0);
  const wholeMs = performance.now() - began;
  const checkpoints = (run: string): string[] =>
    existsSync(join(run, "checkpoints")) ? readdirSync(join(run, "checkpoints")).sort() : [];
  let kills = 0;
  for (let round = 0; !existsSync(join(killed, "model")); round++) {
    expect(round).toBeLessThan(moments.length + 2);
    const args = [bin, stage, config, "--out", killed, ...(round > 0 ? ["--resume"] : [])];
    const child = spawn(process.execPath, args, { cwd, stdio: "ignore" });
    const ended = new Promise((done) => child.on("close", done));
    if (round === 0) while (child.exitCode === null && checkpoints(killed).length === 0) await sleep(2);
    else if (round <= moments.length) await Promise.race([ended, sleep(moments[round - 1]! * wholeMs)]);
    else await ended;
    if (child.exitCode === null) {
      child.kill("SIGKILL");
      kills++;
    }
    await ended;
  }
  expect(kills).toBeGreaterThan(0);
  sameFiles(join(killed, "model"), join(whole, "model"));
  const last = checkpoints(whole).at(-1)!;
  sameFiles(join(killed, "checkpoints", last), join(whole, "checkpoints", last));
}
