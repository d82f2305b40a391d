/** A process that dies: the job ends, says who, and leaves checkpoints that fewer processes can go on from. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout } from "node:timers/promises";
import { beforeAll, expect, test } from "vitest";
import { hasMpi, program, runRanks } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-failure-`);
const lyceum = program("../../dist/cli/main.js");
const settings = ["--set", "parallel.zero=3"];

beforeAll(() => {
  const words = ["sun", "moon", "star", "sea", "hill", "tree", "bird", "fish"];
  const texts = Array.from({ length: 64 }, (_, i) => words.map((_, j) => words[(i + j * (1 + (i % 3))) % 8]).join(" "));
  writeFileSync(`${root}/text.jsonl`, texts.map((text) => `${JSON.stringify({ text })}\n`).join(""));
  writeFileSync(
    `${root}/p.yaml`,
    `seed: 3
model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4 }
tokenizer: { vocabSize: 300 }
data: { train: [text.jsonl], contextLength: 32 }
batchSize: 4
steps: 100000
threads: 1
evalEvery: 0
saveEvery: 1
keepCheckpoints: 2
`,
  );
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

// A checkpoint at every step: the kill meets forward, backward, a sum or a checkpoint, as it comes.
test.runIf(hasMpi && existsSync("/proc/self/comm")).each([0, 1, 2, 3])(
  "a rank killed at some moment (%i)",
  async (round) => {
    const dir = `${root}/run${round}`;
    const child = spawn(
      "mpirun",
      [
        "--oversubscribe",
        "-np",
        "2",
        process.execPath,
        lyceum,
        "pretrain",
        `${root}/p.yaml`,
        "--out",
        dir,
        ...settings,
      ],
      {
        env: { ...process.env, OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" },
      },
    );
    let stderr = "";
    child.stderr.on("data", (data) => {
      stderr += data;
    });
    const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
    for (
      let waited = 0;
      !readdirSync(root).includes(`run${round}`) || !existsSync(`${dir}/checkpoints/000002`);
      waited++
    ) {
      if (waited > 400 || child.exitCode !== null) throw new Error(`no checkpoint: ${stderr}`);
      await setTimeout(50);
      if (existsSync(`${dir}/checkpoints`) && readdirSync(`${dir}/checkpoints`).some((name) => Number(name) > 2)) break;
    }
    await setTimeout(37 * round);
    const ranks = ranksOf(child.pid!);
    process.kill(ranks[round % 2], "SIGKILL");
    const killed = performance.now();
    expect(await ended).not.toBe(0);
    expect(performance.now() - killed).toBeLessThan(30_000);
    expect(stderr).toMatch(new RegExp(`process rank ${round % 2} with PID \\d+ on node \\S+ exited on signal 9`));

    // mpirun may be gone a moment before the last of its processes.
    while (ranks.some((pid) => existsSync(`/proc/${pid}`))) await setTimeout(50);

    // One process goes on from what is whole.
    const whole = readdirSync(`${dir}/checkpoints`)
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .sort((a, b) => a - b)
      .at(-1)!;
    const more = runRanks(1, lyceum, [
      "pretrain",
      `${root}/p.yaml`,
      "--out",
      dir,
      "--resume",
      ...settings,
      `steps=${whole + 2}`,
    ]);
    expect(more.stderr).toContain(`going on after step ${whole} of ${whole + 2}`);
    expect(more.status).toBe(0);
  },
);
