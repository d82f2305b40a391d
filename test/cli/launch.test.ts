/** What `lyceum launch` makes of signals, with an mpirun that only tells which ones reach it. Runs the built program (dist/). */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";

const bin = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const dir = mkdtempSync(join(tmpdir(), "lyceum-launch-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Ends by itself with code $ENDS at the first signal that is in $ENDS_BY. */
const MPIRUN = `#!${process.execPath}
if (process.argv.includes("--version")) console.log(process.env.VERSION);
else {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR2", "SIGTSTP", "SIGCONT"])
    process.on(signal, () => {
      console.log(signal);
      if (process.env.ENDS_BY.split(" ").includes(signal)) process.exit(Number(process.env.ENDS));
    });
  setTimeout(() => {}, 20_000);
  console.log("begun");
}
`;
writeFileSync(join(dir, "mpirun"), MPIRUN, { mode: 0o755 });
const OPENMPI = "mpirun (Open MPI) 4.1.4";
const MPICH = "HYDRA build details:\n    Version: 4.0.2";

function launch(version: string, endsBy: string, ends: number) {
  const child = spawn(process.execPath, [bin, "launch", "-n", "2", "--", "pretrain", "p.yaml"], {
    env: {
      ...process.env,
      PATH: `${dir}${delimiter}${process.env.PATH}`,
      VERSION: version,
      ENDS_BY: endsBy,
      ENDS: String(ends),
    },
  });
  const ended = new Promise((done) => child.on("close", done));
  let said = "";
  child.stdout.on("data", (d) => {
    said += d;
  });
  /** Until mpirun has said these lines, and no other. */
  const hears = async (...lines: string[]): Promise<void> => {
    const all = ["begun", ...lines].map((line) => `${line}\n`).join("");
    while (said.length < all.length && child.exitCode === null) await sleep(5);
    expect(said).toBe(all);
  };
  return { child, ended, hears };
}

test.each([
  ["Open MPI", OPENMPI, "SIGUSR2"],
  ["MPICH", MPICH, "SIGINT"],
] as const)("%s hands on a first Ctrl-C, and is ended by a second", async (_, version, request) => {
  const { child, ended, hears } = launch(version, "SIGTERM", 1);
  await hears();
  child.kill("SIGINT");
  await hears(request);
  child.kill("SIGTERM");
  await hears(request, "SIGTERM");
  expect(await ended).toBe(130);
});

test("stopped before its processes listen, a job ends as one that was interrupted; one that fails then has its own code", async () => {
  for (const [version, code, expected] of [
    [OPENMPI, 140, 130],
    [MPICH, 2, 130],
    [OPENMPI, 1, 1],
  ] as const) {
    const { child, ended, hears } = launch(version, "SIGINT SIGUSR2", code);
    await hears();
    child.kill("SIGUSR2");
    expect(await ended).toBe(expected);
  }
});

const state = (child: ChildProcess): string =>
  spawnSync("ps", ["-o", "stat=", "-p", String(child.pid)], { encoding: "utf8" }).stdout;

test("Ctrl-Z stops launch and the job until both go on; Ctrl-\\ ends both", async () => {
  const { child, ended, hears } = launch(OPENMPI, "SIGTERM", 3);
  await hears();
  child.kill("SIGTSTP");
  await hears("SIGTSTP");
  while (!state(child).startsWith("T")) await sleep(5);
  child.kill("SIGCONT");
  await hears("SIGTSTP", "SIGCONT");
  expect(state(child)).not.toMatch(/^T/);
  child.kill("SIGQUIT");
  await hears("SIGTSTP", "SIGCONT", "SIGTERM");
  expect(await ended).toBe(3);
});
