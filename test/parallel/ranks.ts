/** Starts a program on several ranks under mpirun. Tests that use it are skipped where no mpirun is installed. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

export const hasMpi = spawnSync("mpirun", ["--version"]).status === 0;

/** Runs `node FILE ARGS` on n ranks. What rank r writes as JSON to $RESULTS/r.json is results[r] (lines of ranks may mix). */
export function runRanks(n: number, file: string, args: readonly string[] = [], env: Record<string, string> = {}) {
  const folder = mkdtempSync(`${tmpdir()}/lyceum-ranks-`);
  const r = spawnSync("mpirun", ["--oversubscribe", "-np", String(n), process.execPath, file, ...args], {
    encoding: "utf8",
    timeout: 110_000,
    env: { ...process.env, ...env, RESULTS: folder, OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" },
  });
  const results = Array.from({ length: n }, (_, rank) => `${folder}/${rank}.json`)
    .filter((path) => existsSync(path))
    .map((path) => JSON.parse(readFileSync(path, "utf8")));
  return { status: r.status, stdout: r.stdout, stderr: r.stderr, results };
}

export const program = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
