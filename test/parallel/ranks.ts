/** Starts a program on several ranks under mpirun. Tests that use it are skipped where no mpirun is installed. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
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
