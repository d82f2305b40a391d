/** Starts a program on several ranks under mpirun. Tests that use it are skipped where no mpirun is installed. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { openSafetensors } from "../../src/run/safetensors.js";

export const hasMpi = spawnSync("mpirun", ["--version"]).status === 0;
export const asRoot = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" };

/**
 * Runs `node FILE ARGS` on n ranks; 0: without mpirun. What rank r writes as JSON to $RESULTS/r.json is results[r]
 * (lines of ranks may mix).
 */
export function runRanks(n: number, file: string, args: readonly string[] = [], env: Record<string, string> = {}) {
  const folder = mkdtempSync(`${tmpdir()}/lyceum-ranks-`);
  const node = [process.execPath, file, ...args];
  const [command, ...rest] = n === 0 ? node : ["mpirun", "--oversubscribe", "-np", String(n), ...node];
  const r = spawnSync(command, rest, {
    encoding: "utf8",
    timeout: 280_000,
    env: { ...process.env, ...env, RESULTS: folder, ...asRoot },
  });
  const results = Array.from({ length: n }, (_, rank) => `${folder}/${rank}.json`)
    .filter((path) => existsSync(path))
    .map((path) => JSON.parse(readFileSync(path, "utf8")));
  return { status: r.status, stdout: r.stdout, stderr: r.stderr, results };
}

export const program = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

export interface Job {
  ranks: number;
  stage: string;
  /** The YAML file, and the run folder. */
  file: string;
  out: string;
  resume?: boolean;
  set?: string[];
  /** What it said, once it has run. */
  stderr?: string;
}

/** Runs jobs, those of as many ranks in one set of processes, in their order. `env`: the environment of all. */
export function runJobs(jobs: readonly Job[], env: Record<string, string> = {}): void {
  for (const ranks of [...new Set(jobs.map((job) => job.ranks))].sort()) {
    const group = jobs.filter((job) => job.ranks === ranks);
    const list = `${mkdtempSync(`${tmpdir()}/lyceum-jobs-`)}/jobs.json`;
    writeFileSync(list, JSON.stringify(group));
    const { stderr } = runRanks(ranks === 1 ? 0 : ranks, program("stage.program.mjs"), [list], env);
    const said = stderr.split(/^=== job \d+\n/m).slice(1);
    for (const [i, job] of group.entries()) job.stderr = said[i] ?? `did not run:\n${stderr}`;
  }
}

/** The rows of a run's metrics.jsonl. */
export function metrics(dir: string): Record<string, unknown>[] {
  const rows = readFileSync(`${dir}/metrics.jsonl`, "utf8").trim().split("\n");
  return rows.map((row) => JSON.parse(row) as Record<string, unknown>);
}

/** Every tensor of a model's folder, its bytes read as fp32 (of bf16 ones: two in one number, good for comparing bits). */
export function tensors(dir: string): Map<string, Float32Array> {
  const file = openSafetensors(dir);
  const all = new Map<string, Float32Array>();
  for (const name of file.names()) {
    const bytes = new Uint8Array(file.info(name).bytes);
    file.readInto(name, bytes);
    all.set(name, new Float32Array(bytes.buffer));
  }
  file.close();
  return all;
}

/**
 * Norm of the difference of two models over the norm of one. Of all tensors together: Adam divides a gradient by its own
 * size, so a single element whose gradient is all rounding may move by a learning rate.
 */
function distance(a: Map<string, Float32Array>, b: Map<string, Float32Array>): number {
  expect([...a.keys()].sort()).toEqual([...b.keys()].sort());
  let [difference, norm] = [0, 0];
  for (const [name, x] of a) {
    const y = b.get(name)!;
    expect(x.length, name).toBe(y.length);
    x.forEach((v, i) => {
      difference += (v - y[i]) ** 2;
      norm += v * v;
    });
  }
  return Math.sqrt(difference / norm);
}

/** Losses and parameters of all steps equal those of another run to 1e-5. */
export function expectSame(run: Job, reference: Job, steps = 10): void {
  expect(run.stderr).not.toMatch(/error|did not run/);
  const [found, expected] = [metrics(run.out), metrics(reference.out)].map((rows) => rows.map((r) => r.loss as number));
  expect(found).toHaveLength(steps);
  // A loss that passes through 0, as PPO's does, is compared with 1.
  for (const [i, loss] of found.entries())
    expect(Math.abs(loss - expected[i]), `step ${i + 1}: ${loss}, alone ${expected[i]}`).toBeLessThan(
      1e-5 * (Math.abs(expected[i]) < 0.5 ? 1 : Math.abs(expected[i])),
    );
  expect(distance(tensors(`${run.out}/model`), tensors(`${reference.out}/model`))).toBeLessThan(1e-5);
}
