/** Fine-tuning and alignment on several ranks against one process: each stage from the same model and data. */
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { beforeAll, expect, test } from "vitest";
import { hasMpi, program, runRanks } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-stages-`);
const lyceum = program("../../dist/cli/main.js");
const lines = (records: unknown[]): string => records.map((r) => `${JSON.stringify(r)}\n`).join("");
const things = ["sun", "moon", "star", "sea", "hill", "tree", "bird", "fish"];
const colours = ["red", "blue", "green", "gold"];
const pairs = things.flatMap((thing, i) => colours.map((colour, j) => ({ thing, colour, at: i * colours.length + j })));

writeFileSync(
  `${root}/text.jsonl`,
  lines(pairs.map(({ thing, colour }) => ({ text: `the ${thing} is ${colour} and the ${thing} is old` }))),
);
writeFileSync(
  `${root}/sft.jsonl`,
  lines(
    pairs.map(({ thing, colour }) => ({
      instruction: `what is the ${thing}?`,
      input: "",
      output: `the ${thing} is ${colour}`,
    })),
  ),
);
writeFileSync(
  `${root}/prefs.jsonl`,
  lines(
    pairs.map(({ thing, colour, at }) => ({
      prompt: `what is the ${thing}?`,
      chosen: `the ${thing} is ${colour}`,
      rejected: at % 2 ? `${colour}` : `a ${thing}`,
    })),
  ),
);
writeFileSync(`${root}/judge.mjs`, "export default (prompt, reply) => reply.length / 20;\n");
const common = "seed: 3\nprecision: fp32\nthreads: 1\nsteps: 5\nevalEvery: 0\n";
const stages: Record<string, string> = {
  base: `${common}model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4, numKvHeads: 2 }
tokenizer: { vocabSize: 300 }
data: { train: [text.jsonl], contextLength: 32 }
batchSize: 4
`,
  sft: `${common}from: base/model
data: { train: [sft.jsonl], contextLength: 64 }
pretrainMix: { train: [text.jsonl], batchSize: 4 }
batchSize: 4
gradientAccumulation: 2
`,
  reward: `${common}from: base/model
data: { train: [prefs.jsonl], contextLength: 64 }
batchSize: 4
`,
  dpo: `${common}from: base/model
data: { train: [prefs.jsonl], contextLength: 64 }
batchSize: 4
nll: 0.1
loss: kto
`,
  ppo: `${common}from: tuned/model
reward: judge.mjs
prompts: [prefs.jsonl]
maxTokens: 8
batchSize: 8
minibatchSize: 4
epochs: 2
entropyCoef: 0.01
`,
};

/** Losses of a stage, step by step. */
function run(name: string, out: string, ranks: number, settings: string[] = [], stage = name): number[] {
  const args = [stage, `${root}/${name}.yaml`, "--out", `${root}/${out}`];
  if (settings.length > 0) args.push("--set", ...settings);
  const { status, stderr } = runRanks(ranks, lyceum, args, { LYCEUM_MPI_TIMEOUT: "20" });
  expect(status, stderr).toBe(0);
  const rows = readFileSync(`${root}/${out}/metrics.jsonl`, "utf8").trim().split("\n");
  return rows.map((row) => (JSON.parse(row) as { loss: number }).loss);
}
const alone = new Map<string, number[]>();
beforeAll(() => {
  if (!hasMpi) return;
  for (const [name, text] of Object.entries(stages)) writeFileSync(`${root}/${name}.yaml`, text);
  run("base", "base", 1, [], "pretrain");
  run("sft", "tuned", 1);
});

test.runIf(hasMpi).each([
  ["sft", 2, ["parallel.zero=2"]],
  ["sft", 2, ["parallel.pipeline=2"]],
  ["sft", 2, ["lora.rank=4", "parallel.zero=3"]],
  ["reward", 2, ["parallel.zero=1"]],
  ["reward", 2, ["parallel.tensor=2"]],
  ["reward", 2, ["parallel.pipeline=2"]],
  ["dpo", 2, ["parallel.zero=3"]],
  ["dpo", 2, ["parallel.tensor=2"]],
  ["dpo", 2, ["parallel.pipeline=2"]],
  ["ppo", 2, []],
  ["ppo", 2, ["parallel.zero=3"]],
] as [string, number, string[]][])("%s on %i ranks, %s", (name, ranks, settings) => {
  const own = settings.filter((s) => !s.startsWith("parallel."));
  const key = `${name} ${own.join(" ")}`;
  if (!alone.has(key)) alone.set(key, run(name, `alone ${key}`, 1, own));
  const expected = alone.get(key)!;
  const found = run(name, `${name} ${settings.join(" ")}`, ranks, settings);
  expect(found).toHaveLength(5);
  for (const [i, loss] of found.entries())
    expect(Math.abs(loss - expected[i]), `step ${i + 1}: ${loss}, alone ${expected[i]}`).toBeLessThan(
      1e-5 * Math.max(1, Math.abs(expected[i])),
    );
});

test.runIf(hasMpi)("what cannot be shared out says so", () => {
  const error = (name: string, setting: string): string =>
    runRanks(2, lyceum, [
      name,
      `${root}/${name}.yaml`,
      "--out",
      `${root}/${name} refused`,
      "--set",
      ...setting.split(" "),
    ]).stderr;
  expect(error("ppo", "parallel.tensor=2")).toMatch(
    /ppo runs on several processes with parallel\.data and parallel\.zero/,
  );
  writeFileSync(`${root}/grpo.yaml`, stages.ppo.replace(/minibatchSize.*|epochs.*|entropyCoef.*/g, ""));
  expect(error("grpo", "seed=4")).toMatch(/grpo runs in one process; 2 were started/);
  expect(error("sft", "parallel.tensor=2 lora.rank=4")).toMatch(/Adapters \(lora\) sit on whole matrices/);
});
