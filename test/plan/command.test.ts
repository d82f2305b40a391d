/** `lyceum plan` as a user meets it: subjects, flags, JSON, the table, the picture, mistakes. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { command, type PlanFlags } from "../../src/cli/plan.js";
import { hubShape } from "../../src/plan/shape.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-plan-"));
const recipe = join(dir, "recipe.yaml");
writeFileSync(
  recipe,
  `stages:
  - stage: pretrain
    model: { hiddenSize: 192, intermediateSize: 512, numLayers: 4, numHeads: 6 }
    tokenizer: { vocabSize: 6000 }
    data: { train: [x.jsonl], contextLength: 128 }
    batchSize: 8
    steps: 100
  - { stage: sft, from: pretrain, data: { train: [x.jsonl] }, batchSize: 8 }
  - { stage: evaluate, models: [sft], file: x.jsonl }
  - { stage: reward, from: sft, data: { train: [x.jsonl] } }
  - { stage: dpo, name: direct, from: sft, data: { train: [x.jsonl] }, batchSize: 16 }
  - { stage: ppo, from: sft, reward: reward, prompts: [x.jsonl], maxTokens: 40, batchSize: 64 }
`,
);
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function printed(flags: PlanFlags): Promise<string> {
  const log = vi.spyOn(console, "log").mockImplementation(() => {});
  try {
    await command(flags);
    return log.mock.calls.map((c) => c.join(" ")).join("\n");
  } finally {
    log.mockRestore();
  }
}
interface Row {
  strategy: string;
  fits: boolean;
  parameters: number;
  gradients: number;
  optimizer: number;
  activations: number;
  buffers: number;
  kvCache: number;
  total: number;
  stepSeconds: number;
  tokensPerSecond: number;
  days: number;
  cost: number | null;
  models?: { role: string; bytes: number }[];
}
const json = async (flags: PlanFlags) =>
  JSON.parse(await printed({ ...flags, json: true })) as {
    model: { parameters: number };
    strategies: Row[];
    chosen: string;
    contextLength: number;
    globalBatch: number;
    assumptions: string[];
    deepspeed: Record<string, { gpu: number; cpu: number }>;
  };

test("--model 7.5B --stage pretrain --devices 64 --json: the ZeRO paper's numbers", async () => {
  const report = await json({ model: "7.5B", stage: "pretrain", devices: "64" });
  const of = (name: string) => report.strategies.find((s) => s.strategy === name)!;
  const states = ["ddp", "zero1", "zero2", "zero3"].map((name) => {
    const s = of(name);
    return Number(((s.parameters + s.gradients + s.optimizer) / 1e9).toFixed(1));
  });
  expect(states).toEqual([120, 31.4, 16.6, 1.9]);
  for (const s of report.strategies) {
    const sum = s.parameters + s.gradients + s.optimizer + Math.max(s.activations, s.kvCache) + s.buffers;
    expect(s.total / sum).toBeCloseTo(1, 9);
    expect(s.tokensPerSecond).toBeCloseTo((512 * 2048) / s.stepSeconds, 0);
    expect(s.days).toBeCloseTo((20 * 7.5e9) / s.tokensPerSecond / 86400, 6);
    expect(s.cost).toBeNull();
  }
  expect(report.deepspeed.zero2.gpu).toBeCloseTo(4 * 7.5e9 + (16 * 7.5e9) / 64, 0);
});

test("PPO with four 7B models on 4 devices: 240 GB as in the notes, and what that assumes", async () => {
  const report = await json({ model: "7B", stage: "ppo", devices: "4", context: "1024", batch: "64" });
  const { models } = report.strategies.find((s) => s.strategy === "zero3")!;
  const sum = 4 * models!.reduce((n, m) => n + m.bytes, 0);
  expect(Math.abs(sum / 240e9 - 1)).toBeLessThan(0.02);
  expect(report.assumptions.join("\n")).toContain(
    "actor 107.8 GB, critic 107.8 GB, ref 13.5 GB (frozen), reward 13.5 GB (frozen): 242.6 GB of model states, 60.6 GB on each of 4",
  );
});

test("a recipe: its stages, their shapes and batches; the critic is the reward model", async () => {
  const first = await json({ model: recipe, devices: "1" });
  expect(first.contextLength).toBe(128);
  expect(first.globalBatch).toBe(8);
  expect(first.model.parameters).toBe(6000 * 192 + 4 * (4 * 192 * 192 + 3 * 192 * 512 + 2 * 192) + 192);
  const ppo = await json({ model: recipe, stage: "ppo", devices: "1" });
  expect([ppo.contextLength, ppo.globalBatch]).toEqual([128 + 40, 64]);
  expect(ppo.model.parameters).toBe(first.model.parameters);
  const dpo = await json({ model: recipe, stage: "dpo", devices: "1" });
  expect(dpo.globalBatch).toBe(32); // 16 preferences
  const text = await printed({ model: recipe, devices: "1" });
  expect(text).toContain("pretrain of recipe on 1 x a100-80");
  expect(text).toContain(", 102k tokens"); // 100 steps of 8 x 128
});

test("a recipe is checked as `run` checks it; --set reaches a stage by its name", async () => {
  const flags = { model: recipe, devices: "1" };
  expect((await json({ ...flags, set: ["pretrain.batchSize=4"] })).globalBatch).toBe(4);
  expect((await json({ ...flags, stage: "dpo", set: ["direct.batchSize=8"] })).globalBatch).toBe(16);
  await expect(command({ ...flags, set: ["pretrain.batchsize=4"] })).rejects.toThrow(
    /--set pretrain.batchsize=4: there is no key "batchsize". Did you mean "batchSize"/,
  );
  const empty = join(dir, "empty.yaml");
  writeFileSync(empty, "stages:\n  - null\n");
  await expect(command({ model: empty })).rejects.toThrow(/stages.0 is null; it must be a group of keys/);
  writeFileSync(join(dir, "null.json"), "null");
  await expect(command({ model: join(dir, "null.json") })).rejects.toThrow(/null.json does not hold a JSON object/);
});

test("a cluster that would take for ever is refused", async () => {
  await expect(command({ model: "7B", devices: "1000001" })).rejects.toThrow(/plans are made for 1000000 at most/);
  await expect(command({ model: "7B", devices: "10001", simulate: "0.1" })).rejects.toThrow(/--simulate is for 10000/);
});

test("LoRA: gradients and optimizer of the adapters only", async () => {
  const flags = { model: recipe, stage: "sft", devices: "1" };
  const whole = await json(flags);
  expect(whole.strategies[0].optimizer).toBe(12 * whole.model.parameters);
  const lora = await json({ ...flags, set: ["stages.1.lora.rank=4", "stages.1.lora.targets=[qkv]"] });
  const adapters = 4 * 4 * (192 + 3 * 192); // layers x rank x (in + out)
  expect(lora.strategies[0].optimizer).toBe(12 * adapters);
  expect(lora.strategies[0].parameters).toBe(2 * (whole.model.parameters + adapters));
  const file = join(dir, "sft.yaml"); // a stage of its own, from a folder
  writeFileSync(file, "stage: sft\nfrom: test/golden/llama/gqa-tied\ndata: {train: [x.jsonl]}\n");
  expect((await json({ model: file, devices: "1" })).model.parameters).toBe(99136);
});

const ppoFile = (name: string, more: string): string => {
  const file = join(dir, name);
  const common = "from: test/golden/llama/gqa-tied\nprompts: [x.jsonl]\nmaxTokens: 40\n";
  writeFileSync(file, `${common}${more}`);
  return file;
};

test("PPO's critic and reward model: as the file names them, and no reward model where a module gives the rewards", async () => {
  const models = async (name: string, more: string) => {
    const report = await json({ model: ppoFile(name, `stage: ppo\n${more}`), devices: "1" });
    const { parameters, models } = report.strategies[0];
    expect(parameters).toBe(2 * Object.values(sizes(models!)).reduce((n, m) => n + m, 0));
    return { ...sizes(models!), told: report.assumptions.join("\n") };
  };
  // Parameters, from the bytes of 16 for each that is trained and 2 for each that is frozen.
  const sizes = (list: { role: string; bytes: number }[]): Record<string, number> =>
    Object.fromEntries(list.map(({ role, bytes }) => [role, bytes / (/actor|critic/.test(role) ? 16 : 2)]));
  const [small, other] = ["gqa-tied", "linear-3-layers"].map(
    (name) => hubShape(`test/golden/llama/${name}`).parameters,
  );
  const byModule = await models("module.yaml", "reward: judge.mjs\n");
  expect(byModule).toMatchObject({ actor: small, critic: small, ref: small });
  expect(byModule).not.toHaveProperty("reward");
  expect(byModule.told).toContain("3 models in memory");
  expect(byModule.told).toContain("the reward is a module");
  const reward = "reward: test/golden/llama/linear-3-layers\n";
  expect(await models("model.yaml", reward)).toMatchObject({ actor: small, critic: other, ref: small, reward: other });
  const own = await models("critic.yaml", `${reward}critic: test/golden/llama/gqa-tied\n`);
  expect(own).toMatchObject({ critic: small, reward: other });
  expect(await models("both.yaml", "reward: judge.mjs\ncritic: test/golden/llama/linear-3-layers\n")).toMatchObject({
    critic: other,
  });
});

test("GRPO: no critic, the replies of a group, and no reference where nothing is compared with it", async () => {
  const planned = async (more: string) => {
    const report = await json({ model: ppoFile("grpo.yaml", `stage: grpo\n${more}`), devices: "1" });
    return { ...report, roles: report.strategies[0].models?.map((m: { role: string }) => m.role) };
  };
  const reward = "reward: test/golden/llama/linear-3-layers\n";
  const both = await planned(`${reward}batchSize: 6\ngroupSize: 4\n`);
  expect(both.roles).toEqual(["actor", "ref", "reward"]);
  expect([both.contextLength, both.globalBatch]).toEqual([128 + 40, 24]);
  expect(both.assumptions.join("\n")).toContain(
    "GRPO: replies of 40 tokens are written, scored by all models, and trained on once",
  );
  expect(both.assumptions.at(-1)).toContain("those of data parallelism and ZeRO only");
  expect((await planned(`${reward}klCoef: 0\n`)).roles).toEqual(["actor", "reward"]);
  expect((await planned("reward: judge.mjs\n")).roles).toEqual(["actor", "ref"]);
});

test("a file's keys tell its stage, and what plan does not cover is told as what it is", async () => {
  const planned = async (file: string): Promise<string> => (await printed({ model: file, devices: "1" })).split(" ")[0];
  const ours = "reward: judge.mjs\n";
  expect(await planned(ppoFile("ppo.yaml", `${ours}criticOptimizer: { learningRate: 1e-4 }\n`))).toBe("ppo");
  const sft = join(dir, "lora.yaml");
  writeFileSync(sft, "from: test/golden/llama/gqa-tied\ndata: {train: [x.jsonl], packing: false}\n");
  expect(await planned(sft)).toBe("sft");
  writeFileSync(
    sft,
    "from: test/golden/llama/gqa-tied\ndata: {train: [x.jsonl]}\nbeta: 0.1\nbatch_size: 4\nbatchsise: 4\n",
  );
  await expect(planned(sft)).rejects.toThrow(/there is no key "batchsise". Did you mean "batchSize"/); // as DPO's
  for (const [more, message] of [
    [
      "samples: 4\n",
      /prefer.yaml has the keys of the stage prefer; plan covers pretrain, sft, reward, dpo, ppo, grpo\.$/,
    ],
    ["stage: prefer\n", /stage in .*prefer.yaml is "prefer"; plan covers/],
  ] as const)
    await expect(planned(ppoFile("prefer.yaml", ours + more))).rejects.toThrow(message);
  expect(await planned(ppoFile("grpo.yaml", `${ours}groupSize: 4\n`))).toBe("grpo");
  await expect(planned("recipes/corpus-demo.yaml")).rejects.toThrow(/is the recipe of a corpus; plan covers/);
});

test("the last assumption tells which layouts Lyceum runs, of this stage", async () => {
  const last = async (flags: PlanFlags): Promise<string> => (await json(flags)).assumptions.at(-1)!;
  for (const stage of ["pretrain", "sft", "reward", "dpo"])
    expect(await last({ model: "7B", stage, devices: "8" })).toContain(
      `For ${stage} Lyceum, which computes on CPUs, runs all but the interleaved ones`,
    );
  expect(await last({ model: "7B", stage: "ppo", devices: "8" })).toContain(
    "For ppo Lyceum, which computes on CPUs, runs those of data parallelism and ZeRO only",
  );
  const lora = { model: recipe, stage: "sft", devices: "1", set: ["stages.1.lora.rank=4"] };
  expect(await last(lora)).toContain(
    "For sft with LoRA Lyceum, which computes on CPUs, runs those of data parallelism and ZeRO only",
  );
});

test("the table names the chosen layout and a reason for each of the others; the picture shows them", async () => {
  const svg = join(dir, "plan.svg");
  const text = await printed({ model: "13B", stage: "sft", devices: "16", price: "2", tokens: "1B", svg });
  expect(text).toMatch(/^sft of 13B on 16 x a100-80 \(80\.0 GB each, 8 a node\), 1B tokens/);
  expect(text).toMatch(/Cheapest that fits: \S+ as dp\S+\./);
  expect(text).toMatch(/\n {2}ddp +needs \d+\.\d GB and 75\.2 GB can be used/);
  expect(text).toContain("cost");
  const picture = readFileSync(svg, "utf8");
  for (const name of ["ddp", "zero3-infinity", "3d-zero1", "does not fit", "80.0 GB"]) expect(picture).toContain(name);
  expect(picture.match(/<rect/g)!.length).toBeGreaterThan(30);
  expect(picture.match(/<(rect|text|line|svg|title)\b/g)!.length).toBeGreaterThan(60);
});

test("--simulate: the chosen layout on devices that differ", async () => {
  const text = await printed({ model: "7B", devices: "64", simulate: "0.02" });
  expect(text).toMatch(
    /Simulated on 64 devices, .* s when all are equally fast, and .* s \(\d+\.\d% more\) when they differ; a device then spends/,
  );
  const { simulated } = (await json({ model: "7B", devices: "64", simulate: "0" })) as unknown as {
    simulated: { even: number; uneven: number };
  };
  expect(simulated.uneven).toBeCloseTo(simulated.even, 6);
});

test("a cluster file, flags over it, and its mistakes with line and nearest key", async () => {
  const file = join(dir, "cluster.yaml");
  writeFileSync(file, "name: ours\ndevice: h100\ndevices: 16\nmemoryGB: 94\npricePerHour: 3\n");
  const report = (await json({ model: "7B", cluster: file, devices: "32" })) as unknown as {
    cluster: { name: string; memory: number; devices: number; flops: number };
  };
  expect(report.cluster).toMatchObject({ name: "ours", memory: 94e9, devices: 32, flops: 989e12 });
  await expect(json({ model: "7B", cluster: file, device: "v100-32" })).rejects.toThrow(
    /--cluster .*cluster.yaml describes a device, and --device v100-32 is another: leave one out/,
  );
  writeFileSync(file, "# nothing yet\n");
  await expect(json({ model: "7B", cluster: file })).rejects.toThrow(/cluster.yaml describes no cluster: it is empty/);
  writeFileSync(file, "device: h100\nmemryGB: 94\n");
  await expect(json({ model: "7B", cluster: file })).rejects.toThrow(
    /cluster.yaml:2:1: there is no key "memryGB". Did you mean "memoryGB"\?/,
  );
});

test.each([
  [{ model: "seven" }, /--model seven is neither a file or folder nor a size/],
  [{ model: "7B", stage: "pretrian" }, /--stage is "pretrian"; plan covers pretrain, .* Did you mean "pretrain"\?/],
  [{ model: "7B", device: "h10" }, /no device "h10". Did you mean "h100"\?/],
  [{ model: "7B", devices: "many" }, /--devices is "many"; it must be a number above 0/],
  [{ model: "7B", devices: "2.5" }, /--devices is "2.5"; it must be a whole number/],
  [{ model: "7B", set: ["a=1"] }, /--set changes settings of a YAML file, and --model 7B is not one/],
  [{ model: "7B", attention: "flash" }, /--attention is "flash"; it must be blocked or full/],
  [{ model: "7B", stage: "ppo", context: "512", reply: "512" }, /--reply 512 must be less than the context/],
  [{ model: "none.yaml" }, /none.yaml does not exist/],
  [{ model: "7B", simulate: "3%" }, /--simulate is "3%"; it must be a share from 0 to 1/],
  [{ model: recipe, stage: "prefer" }, /--stage is "prefer"; plan covers pretrain, sft, reward, dpo, ppo, grpo\.$/],
  [{ model: "test/golden" }, /there is no config.json in it/],
] as [PlanFlags, RegExp][])("a mistake in %j is told", async (flags, message) => {
  await expect(printed(flags)).rejects.toThrow(message);
});
