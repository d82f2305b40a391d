/** Fine-tuning and alignment on several ranks against one process: each stage from the same model and data. */
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { beforeAll, describe, expect, test } from "vitest";
import { expectSame, hasMpi, type Job, runJobs } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-stages-`);
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
data: { train: [text.jsonl], validationShare: 0, contextLength: 32 }
batchSize: 4
`,
  sft: `${common}from: base/model
data: { train: [sft.jsonl], validationShare: 0, contextLength: 64 }
pretrainMix: { train: [text.jsonl], batchSize: 4 }
batchSize: 4
gradientAccumulation: 2
`,
  reward: `${common}from: base/model
data: { train: [prefs.jsonl], validationShare: 0, contextLength: 64 }
batchSize: 4
`,
  dpo: `${common}from: base/model
data: { train: [prefs.jsonl], validationShare: 0, contextLength: 64 }
batchSize: 4
nll: 0.1
loss: kto
`,
  grpo: `${common}from: tuned/model
reward: judge.mjs
prompts: [prefs.jsonl]
maxTokens: 8
batchSize: 4
groupSize: 4
minibatchSize: 12
epochs: 2
lossType: grpo
`,
  prefer: "from: tuned/model\nreward: judge.mjs\nprompts: [prefs.jsonl]\n",
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

const jobs: Job[] = [];
function job(ranks: number, name: string, set: string[], stage = name, out = `${name} ${ranks} ${set.join(" ")}`): Job {
  const made = { ranks, stage, file: `${root}/${name}.yaml`, out: `${root}/${out}`, set };
  jobs.push(made);
  return made;
}
job(1, "base", [], "pretrain", "base");
job(1, "sft", [], "sft", "tuned");
const alone = new Map<string, Job>();
const sequence = ["parallel.tensor=2", "parallel.sequence=true"];
const cases = (
  [
    ["sft", 2, ["parallel.zero=2"]],
    ["sft", 2, sequence],
    ["sft", 2, ["parallel.pipeline=2"]],
    ["sft", 2, ["lora.rank=4", "parallel.zero=3"]],
    ["sft", 4, ["parallel.pipeline=2", "parallel.tensor=2"]],
    ["reward", 2, ["parallel.zero=1"]],
    ["reward", 2, ["parallel.tensor=2"]],
    ["reward", 2, sequence],
    ["reward", 2, ["parallel.pipeline=2"]],
    ["reward", 4, ["parallel.tensor=2", "parallel.zero=2"]],
    ["dpo", 2, ["parallel.zero=3"]],
    ["dpo", 2, ["parallel.tensor=2"]],
    ["dpo", 2, ["parallel.pipeline=2"]],
    ["dpo", 4, ["parallel.pipeline=2", ...sequence]],
    ["ppo", 2, []],
    ["ppo", 2, ["parallel.zero=1"]],
    ["ppo", 2, ["parallel.zero=3", "parallel.offload=disk"]],
    ["ppo", 4, ["parallel.zero=2"]],
    ["grpo", 2, []],
    ["grpo", 2, ["parallel.zero=3", "parallel.offload=disk"]],
    ["grpo", 2, ["lora.rank=4", "parallel.zero=2"]],
    ["grpo", 4, ["parallel.zero=1"]],
    ["grpo", 2, [`reward=${root}/reward 1 /model`, "parallel.zero=3"]],
  ] as [string, number, string[]][]
).map(([name, ranks, set]) => {
  const own = set.filter((s) => !s.startsWith("parallel."));
  const key = `${name} ${own.join(" ")}`;
  if (!alone.has(key)) alone.set(key, job(1, name, own));
  return [name, ranks, set.join(" "), job(ranks, name, set), alone.get(key)!] as const;
});
const refused = {
  ppo: job(2, "ppo", ["parallel.tensor=2"]),
  grpo: job(2, "grpo", ["parallel.pipeline=2"]),
  prefer: job(2, "prefer", []),
  lora: job(2, "sft", ["parallel.tensor=2", "lora.rank=4"]),
};

describe.runIf(hasMpi)("stages on several ranks", () => {
  beforeAll(() => {
    for (const [name, text] of Object.entries(stages)) writeFileSync(`${root}/${name}.yaml`, text);
    runJobs(jobs, { LYCEUM_MPI_TIMEOUT: "60" });
  }, 600_000);

  test.each(cases)("%s on %i ranks, %s: as one process", (_, _ranks, _set, run, reference) =>
    expectSame(run, reference, 5),
  );

  test("what cannot be shared out says so", () => {
    expect(refused.ppo.stderr).toMatch(/ppo runs on several processes with parallel\.data and parallel\.zero/);
    expect(refused.grpo.stderr).toMatch(/grpo runs on several processes with parallel\.data and parallel\.zero/);
    expect(refused.prefer.stderr).toMatch(/prefer runs in one process; 2 were started/);
    expect(refused.lora.stderr).toMatch(/Adapters \(lora\) sit on whole matrices/);
  });
});
