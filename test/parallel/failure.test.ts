/** A process that dies, or stops: the job ends, says who, and leaves checkpoints that other processes can go on from. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import { asRoot, hasMpi, metrics, program, runRanks } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-failure-`);
const lyceum = program("../../dist/cli/main.js");
const hook = pathToFileURL(program("kill.hook.mjs")).href;

beforeAll(() => {
  const words = ["sun", "moon", "star", "sea", "hill", "tree", "bird", "fish"];
  const texts = Array.from({ length: 64 }, (_, i) => words.map((_, j) => words[(i + j * (1 + (i % 3))) % 8]).join(" "));
  writeFileSync(`${root}/text.jsonl`, texts.map((text) => `${JSON.stringify({ text })}\n`).join(""));
  writeFileSync(
    `${root}/p.yaml`,
    `seed: 3
model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4 }
tokenizer: { vocabSize: 300 }
data: { train: [text.jsonl], contextLength: 32, validationShare: 0 }
batchSize: 4
steps: 100000
threads: 1
evalEvery: 0
saveEvery: 2
keepCheckpoints: 2
`,
  );
});

function start(dir: string, set: string[], env: Record<string, string> = {}, node: string[] = []) {
  const args = [...node, lyceum, "pretrain", `${root}/p.yaml`, "--out", dir];
  const child = spawn("mpirun", ["--oversubscribe", "-np", "2", process.execPath, ...args, "--set", ...set], {
    env: { ...process.env, ...env, ...asRoot },
  });
  const said = { stderr: "" };
  child.stderr.on("data", (data) => {
    said.stderr += data;
  });
  const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
  return { child, said, ended };
}

/** Goes on from the checkpoint that is there, and does `more` steps. */
function resume(dir: string, ranks: number, set: string[], more: number): void {
  const steps = readdirSync(`${dir}/checkpoints`).filter((name) => /^\d+$/.test(name));
  const whole = Math.max(...steps.map(Number));
  const args = ["pretrain", `${root}/p.yaml`, "--out", dir, "--resume", "--set", ...set, `steps=${whole + more}`];
  const { stderr, status } = runRanks(ranks === 1 ? 0 : ranks, lyceum, args);
  expect(stderr).toContain(`going on after step ${whole} of ${whole + more}`);
  expect(status).toBe(0);
  expect(metrics(dir).map((row) => row.step)).toEqual(Array.from({ length: whole + more }, (_, i) => i + 1));
}

describe.runIf(hasMpi)("failure", () => {
  test.each([
    ["forward", 1, ["parallel.zero=3"], 1],
    ["backward", 0, ["parallel.zero=2"], 1],
    ["all-reduce", 1, ["parallel.zero=0"], 2],
    ["checkpoint", 1, ["parallel.zero=3"], 1],
  ] as [string, number, string[], number][])("rank killed in %s (rank %i)", async (place, rank, set, thenRanks) => {
    const dir = `${root}/${place}`;
    // In step 3, after the checkpoint of step 2; or while that of step 4 is written.
    const env = { KILL_AT: place, KILL_RANK: String(rank), KILL_STEP: place === "checkpoint" ? "4" : "3" };
    const { said, ended } = start(dir, set, env, ["--import", hook]);
    let killed = 0;
    while (killed === 0) {
      await setTimeout(20);
      if (said.stderr.includes(`killed in ${place}`)) killed = performance.now();
      else if (await Promise.race([ended.then(() => true), setTimeout(1, false)])) break;
    }
    expect(await ended).not.toBe(0);
    expect(said.stderr).toContain(`killed in ${place}`);
    expect(performance.now() - killed).toBeLessThan(30_000);
    expect(said.stderr).toMatch(new RegExp(`process rank ${rank} with PID \\d+ on node \\S+ exited on signal 9`));
    const whole = readdirSync(`${dir}/checkpoints`).filter((name) => /^\d+$/.test(name));
    expect(whole).toEqual(["000002"]);
    resume(dir, thenRanks, set, 3);
  });

  /** The processes of the job: mpirun's children (and theirs), which run node. */
  function ranksOf(pid: number): number[] {
    const children = spawnSync("pgrep", ["-P", String(pid)], { encoding: "utf8" })
      .stdout.split("\n")
      .filter(Boolean)
      .map(Number);
    return children.flatMap((child) => {
      const name = readFileSync(`/proc/${child}/comm`, "utf8").trim();
      return name === "node" || name === "MainThread" ? [child] : ranksOf(child);
    });
  }

  // The first rank, which speaks for all otherwise, is the one that is missing: the other must say it.
  test.runIf(existsSync("/proc/self/comm"))("a rank that stands still is named by the others", async () => {
    const dir = `${root}/still`;
    // Without checkpoints, in which the others would wait for it as long as it takes.
    const { child, said, ended } = start(dir, ["parallel.zero=1", "saveEvery=0"], { LYCEUM_MPI_TIMEOUT: "4" });
    const begun = (): boolean => existsSync(`${dir}/metrics.jsonl`) && statSync(`${dir}/metrics.jsonl`).size > 0;
    while (!begun() && child.exitCode === null) await setTimeout(50);
    expect(child.exitCode, said.stderr).toBeNull();
    const ranks = ranksOf(child.pid!);
    const rankOf = (pid: number): string =>
      /OMPI_COMM_WORLD_RANK=(\d+)/.exec(readFileSync(`/proc/${pid}/environ`, "utf8"))![1];
    const first = ranks.find((pid) => rankOf(pid) === "0")!;
    process.kill(first, "SIGSTOP");
    const stopped = performance.now();
    // A stopped process does not end by itself when mpirun asks it to.
    const watch = setInterval(() => {
      if (!said.stderr.includes("has waited")) return;
      clearInterval(watch);
      process.kill(first, "SIGKILL");
    }, 200);
    expect(await ended).not.toBe(0);
    expect(performance.now() - stopped).toBeLessThan(30_000);
    expect(said.stderr).toMatch(/rank 1 on \S+ has waited 4 s in .* for: rank 0 on \S+\. The job ends\./);
  });
});
