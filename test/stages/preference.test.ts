/** Alignment stages on a model of a few thousand parameters: they do what they promise, and resume exactly. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { DialogueEncoder } from "../../src/dialogue/mask.js";
import type { EncodedReply } from "../../src/dialogue/preference.js";
import { generate } from "../../src/generate/generate.js";
import { loadForGeneration } from "../../src/generate/loaded.js";
import { RunFolder } from "../../src/run/folder.js";
import { STAGES } from "../../src/stages/registry.js";
import { encodedPreferences, preferenceData } from "../../src/stages/reward.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-align-"));
afterAll(() => rmSync(root, { recursive: true, force: true }), 60_000);
const file = (name: string): string => join(root, name);
const jsonl = (name: string, records: object[]): string => {
  writeFileSync(file(name), records.map((r) => JSON.stringify(r)).join("\n"));
  return file(name);
};

async function run(name: string, stage: string, settings: object, resume = false): Promise<string> {
  const quiet = stage === "prefer" ? {} : { logEvery: 1000, evalEvery: 0, saveEvery: 0 };
  const config = STAGES[stage].schema.parse({ threads: 2, ...quiet, ...settings });
  const folder = RunFolder.open(file(name), config, { resume, keepCheckpoints: 5 });
  try {
    await STAGES[stage].run(config as never, folder);
  } finally {
    folder.close();
  }
  return `${file(name)}/model`;
}
const metrics = (name: string): Record<string, number>[] =>
  readFileSync(`${file(name)}/metrics.jsonl`, "utf8")
    .trim()
    .split("\n")
    .map((r) => JSON.parse(r));
const mean = (rows: Record<string, number>[], key: string): number =>
  rows.reduce((n, r) => n + r[key], 0) / rows.length;

const animals = ["cat", "dog", "owl", "fox"];
let sftModel: string;
const prompts = file("prompts.jsonl");
const judge = file("judge.mjs");

beforeAll(async () => {
  jsonl(
    "text.jsonl",
    Array.from({ length: 64 }, (_, i) => ({
      id: `${i}`,
      text: `I see the ${animals[i % 4]} and the ${animals[(i >> 2) % 4]}.`,
    })),
  );
  jsonl(
    "sft.jsonl",
    Array.from({ length: 64 }, (_, i) => ({
      instruction: `What is ${i % 16}?`,
      output: `${animals[(i * 7 + (i >> 4)) % 4]}`,
    })),
  );
  jsonl(
    "prompts.jsonl",
    Array.from({ length: 16 }, (_, i) => ({ prompt: `What is ${i}?` })),
  );
  writeFileSync(judge, 'export default (prompt, reply) => (reply.includes("owl") ? 1 : 0);\n');
  const pretrained = await run("base", "pretrain", {
    data: { train: [file("text.jsonl")], validationShare: 0, contextLength: 32 },
    model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4 },
    tokenizer: { vocabSize: 300 },
    batchSize: 4,
    steps: 60,
    optimizer: { learningRate: 5e-3 },
  });
  sftModel = await run("sft", "sft", {
    from: pretrained,
    data: { train: [file("sft.jsonl")], validationShare: 0, contextLength: 48 },
    batchSize: 8,
    steps: 200,
    optimizer: { learningRate: 5e-3 },
  });
}, 60_000);

const policy = { prompts: [prompts], maxTokens: 6, temperature: 1, samples: { count: 0 } };

test("PPO with a reward function learns what is rewarded; its first ratio is 1 and its first KL 0", async () => {
  await run("ppo", "ppo", {
    from: sftModel,
    reward: judge,
    ...policy,
    steps: 25,
    batchSize: 32,
    minibatchSize: 16,
    klCoef: 0.01,
    optimizer: { learningRate: 1e-3 },
    criticOptimizer: { learningRate: 1e-3 },
  });
  const rows = metrics("ppo");
  expect(mean(rows.slice(0, 3), "objective/scores")).toBeLessThan(0.7);
  expect(mean(rows.slice(-3), "objective/scores")).toBeGreaterThan(0.9);
  expect(rows[0]["objective/kl"]).toBe(0);
  for (const key of [
    "objective/entropy",
    "objective/rlhf_reward",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/value_avg",
    "val/ratio",
    "val/explained_variance",
  ])
    expect(rows[0]).toHaveProperty([key]);
  await run("first", "ppo", {
    from: sftModel,
    reward: judge,
    ...policy,
    steps: 1,
    epochs: 1,
    batchSize: 16,
    minibatchSize: 16,
  });
  const [first] = metrics("first");
  expect(first["val/ratio"]).toBe(1);
  expect(first["policy/approxkl_avg"]).toBe(0);
  expect(first["policy/clipfrac_avg"]).toBe(0);
}, 60_000);

test("GRPO learns it too", async () => {
  await run("grpo", "grpo", {
    from: sftModel,
    reward: judge,
    ...policy,
    steps: 40,
    epochs: 2,
    batchSize: 8,
    groupSize: 8,
    optimizer: { learningRate: 1e-3 },
  });
  const rows = metrics("grpo");
  expect(rows[0].reward).toBeLessThan(0.7);
  expect(mean(rows.slice(-3), "reward")).toBeGreaterThan(0.9);
}, 60_000);

test("with a very large klCoef the policy stays where it is", async () => {
  await run("still", "ppo", {
    from: sftModel,
    reward: judge,
    ...policy,
    steps: 8,
    batchSize: 32,
    klCoef: 100,
    optimizer: { learningRate: 1e-3 },
  });
  await run("free", "ppo", {
    from: sftModel,
    reward: judge,
    ...policy,
    steps: 8,
    batchSize: 32,
    klCoef: 0,
    optimizer: { learningRate: 1e-3 },
  });
  const [still, free] = ["still", "free"].map((n) => Math.abs(metrics(n)[7]["objective/kl"]));
  expect(still).toBeLessThan(0.1 * free);
}, 60_000);

test("the whole path: own replies judged, a reward model, DPO, PPO against the reward model", async () => {
  await run("prefer", "prefer", { from: sftModel, reward: judge, prompts: [prompts], maxTokens: 6, samples: 8 });
  const pairs = file("prefer/preferences.jsonl");
  const reward = await run("reward", "reward", {
    from: sftModel,
    data: { train: [pairs], validationShare: 0 },
    batchSize: 8,
    steps: 80, // from random chance: after 40 some batches still have a pair the wrong way round
    optimizer: { learningRate: 1e-3 },
  });
  expect(mean(metrics("reward").slice(-5), "accuracy")).toBeGreaterThan(0.95);
  const config = JSON.parse(readFileSync(`${reward}/config.json`, "utf8"));
  expect(config.architectures).toEqual(["LlamaForSequenceClassification"]);
  expect(config.reward_mean).toBeTypeOf("number");

  await run("dpo", "dpo", {
    from: sftModel,
    data: { train: [pairs], validationShare: 0 },
    batchSize: 4,
    steps: 40,
    optimizer: { learningRate: 5e-4 },
  });
  const rows = metrics("dpo");
  expect(rows[0].loss).toBeCloseTo(Math.LN2, 6);
  expect(mean(rows.slice(-4), "rewards/accuracies")).toBe(1);
  expect(mean(rows.slice(-4), "rewards/margins")).toBeGreaterThan(0.1);

  await run("rlhf", "ppo", {
    from: sftModel,
    reward,
    ...policy,
    steps: 20,
    batchSize: 32,
    klCoef: 0.02,
    optimizer: { learningRate: 1e-3 },
    criticOptimizer: { learningRate: 1e-3 },
  });
  const rlhf = metrics("rlhf");
  expect(mean(rlhf.slice(-3), "objective/scores")).toBeGreaterThan(mean(rlhf.slice(0, 3), "objective/scores") + 0.5);
}, 90_000);

const sameFiles = (a: string, b: string): void => {
  const names = readdirSync(a).sort();
  expect(readdirSync(b).sort()).toEqual(names);
  for (const name of names)
    if (statSync(`${a}/${name}`).isDirectory()) sameFiles(`${a}/${name}`, `${b}/${name}`);
    else expect(readFileSync(`${a}/${name}`).equals(readFileSync(`${b}/${name}`)), name).toBe(true);
};

test.each(["reward", "dpo", "ppo", "ppo with LoRA", "ppo with everything", "grpo"])(
  "%s resumes to the same bytes",
  async (name) => {
    const pairs = jsonl(
      "pairs.jsonl",
      animals.flatMap((a, i) => [
        { prompt: `What is ${i}?`, chosen: "owl", rejected: `${a}${i}` },
        { prompt: `And ${i}?`, completions: ["x", a, `${a}s`], ranking: [2, 0, 1] },
      ]),
    );
    const data = { train: [pairs], validationShare: 0 };
    const settings = {
      reward: { from: sftModel, data, batchSize: 2 },
      dpo: { from: sftModel, data, batchSize: 2, nll: 0.1 },
      ppo: {
        from: sftModel,
        reward: judge,
        ...policy,
        batchSize: 8,
        minibatchSize: 4,
        entropyCoef: 0.01,
        klTarget: 1,
        klHorizon: 100,
      },
      "ppo with LoRA": { from: sftModel, reward: judge, ...policy, batchSize: 8, minibatchSize: 4, lora: { rank: 2 } },
      "ppo with everything": {
        from: sftModel,
        reward: judge,
        ...policy,
        batchSize: 8,
        minibatchSize: 4,
        pretrainMix: { train: [file("text.jsonl")], batchSize: 2, weight: 0.5 },
        optimizer: { ema: 0.8 },
        parallel: { offload: "disk" },
        recompute: true,
        whitenRewards: true,
        dualClip: 3,
        klEstimator: "k3",
        scorePosition: "trl",
      },
      grpo: { from: sftModel, reward: judge, ...policy, batchSize: 2, groupSize: 4 },
    }[name]!;
    const stage = name.split(" ")[0];
    const whole = `resume-${stage}-${name.length}`;
    const cut = `${whole}-cut`;
    for (const n of [whole, cut]) await run(n, stage, { ...settings, steps: 5, saveEvery: 2 });
    for (const n of ["checkpoints/000004", "checkpoints/000005", "model"])
      rmSync(`${file(cut)}/${n}`, { recursive: true });
    await run(cut, stage, { ...settings, steps: 5, saveEvery: 2 }, true);
    sameFiles(`${file(whole)}/model`, `${file(cut)}/model`);
    sameFiles(`${file(whole)}/checkpoints/000005`, `${file(cut)}/checkpoints/000005`);
  },
  60_000,
);

/** Replies to the 16 prompts: greedy, or at a temperature of 1, `times` for each. */
function replies(dir: string, times = 0): string[] {
  const { model, tokenizer } = loadForGeneration(dir, { precision: "fp32", threads: 2 });
  const encoder = new DialogueEncoder(tokenizer);
  const ids = Array.from({ length: 16 * (times || 1) }, (_, i) =>
    encoder.prompt([{ role: "user", content: `What is ${i % 16}?` }]),
  );
  const options = { maxTokens: 24, stop: [tokenizer.eosId!], ...(times && { temperature: 1, seed: 1 }) };
  const found = generate(model, ids, options).map((r) => tokenizer.decode(r.ids, { skipSpecialTokens: true }).trim());
  model.close();
  return found;
}
const among = (texts: readonly string[], known: readonly string[]): number =>
  texts.filter((text) => known.includes(text)).length;

test("DPO on the model's own replies keeps it able to answer; on invented ones its margins are perfect and its text is broken", async () => {
  expect(among(replies(sftModel), animals)).toBeGreaterThanOrEqual(15);
  // On-policy: the model's own replies, judged; few gentle steps, and a little of the chosen replies' own likelihood.
  await run("own-pairs", "prefer", { from: sftModel, reward: judge, prompts: [prompts], maxTokens: 6, samples: 8 });
  await run("own-dpo", "dpo", {
    from: sftModel,
    data: { train: [`${file("own-pairs")}/preferences.jsonl`], validationShare: 0, contextLength: 48 },
    beta: 0.2,
    nll: 0.2,
    batchSize: 8,
    steps: 40,
    optimizer: { learningRate: 3e-4 },
  });
  // Off-policy: replies that nobody would give, and many steps without anything that holds the model to its language.
  const pairs = Array.from({ length: 16 }, (_, i) => ({
    prompt: `What is ${i}?`,
    chosen: `I see the owl and the ${animals[i % 4]}.`,
    rejected: animals[(i * 7) % 4],
  }));
  await run("invented-dpo", "dpo", {
    from: sftModel,
    data: { train: [jsonl("invented.jsonl", pairs)], validationShare: 0, contextLength: 64 },
    beta: 0.1,
    batchSize: 8,
    steps: 150,
    optimizer: { learningRate: 3e-3 },
  });
  const own = replies(`${file("own-dpo")}/model`);
  expect(among(own, animals)).toBeGreaterThanOrEqual(15);
  // The four animals are about equally likely before, and which one a greedy reply has is chance: so many are drawn. The standard error
  // of a share is 0.02; the few steps add 0.13.
  const [before, after] = [sftModel, `${file("own-dpo")}/model`].map((dir) => among(replies(dir, 32), ["owl"]) / 512);
  expect(after).toBeGreaterThan(before + 0.08);

  // Every number that training shows is perfect; yet what the model says is neither what was preferred nor an answer.
  const last = metrics("invented-dpo").slice(-10);
  expect(mean(last, "rewards/accuracies")).toBe(1);
  expect(mean(last, "rewards/margins")).toBeGreaterThan(mean(metrics("own-dpo").slice(-10), "rewards/margins") * 5);
  const broken = replies(`${file("invented-dpo")}/model`);
  expect(among(broken, [...animals, ...pairs.map((p) => p.chosen)])).toBeLessThanOrEqual(2);
}, 60_000);

test("state on disk, and layers computed twice, change nothing", async () => {
  const settings = { from: sftModel, reward: judge, ...policy, steps: 3, batchSize: 8, minibatchSize: 4 };
  await run("here", "ppo", settings);
  await run("there", "ppo", { ...settings, parallel: { offload: "disk" }, recompute: true });
  sameFiles(`${file("here")}/model`, `${file("there")}/model`);
}, 60_000);

test("mistakes are told: a reward module that throws or gives no number, a language model as reward model, another tokenizer", async () => {
  const bad = (name: string, body: string): string => {
    writeFileSync(file(name), body);
    return file(name);
  };
  const ppo = (name: string, reward: string) =>
    run(name, "ppo", { from: sftModel, reward, ...policy, steps: 1, batchSize: 4 });
  await expect(ppo("e1", bad("throws.mjs", "export default () => { throw new Error('no table'); };"))).rejects.toThrow(
    /throws.mjs failed on the prompt of .*prompts.jsonl:\d+: no table/,
  );
  await expect(ppo("e2", bad("nan.mjs", "export default () => NaN;"))).rejects.toThrow(/gave NaN for a reply/);
  await expect(ppo("e3", bad("nothing.mjs", "export const x = 1;"))).rejects.toThrow(/no default export/);
  await expect(ppo("e4", sftModel)).rejects.toThrow(/is a language model, not a reward model/);
  const other = await run("other", "pretrain", {
    data: { train: [file("text.jsonl")], validationShare: 0, contextLength: 16 },
    model: { hiddenSize: 16, intermediateSize: 16, numLayers: 1, numHeads: 2 },
    tokenizer: { vocabSize: 262 },
    batchSize: 2,
    steps: 1,
  });
  const pairs = jsonl("pairs2.jsonl", [{ prompt: "a", chosen: "b", rejected: "c" }]);
  const reward = await run("other-reward", "reward", {
    from: other,
    data: { train: [pairs], validationShare: 0 },
    steps: 1,
    batchSize: 1,
  });
  await expect(ppo("e5", reward)).rejects.toThrow(/other-reward.*and the policy .*sft.* have different tokenizers/s);
  const critic = run("e6", "ppo", { from: sftModel, reward: judge, critic: reward, ...policy, steps: 1, batchSize: 4 });
  await expect(critic).rejects.toThrow(/The critic .*other-reward.*and the policy .*sft.* have different tokenizers/s);
  const words = bad("words.mjs", "export default () => { throw 'no such word'; };");
  await expect(ppo("e7", words)).rejects.toThrow(/failed on the prompt of .*prompts.jsonl:\d+: no such word/);
}, 60_000);

test("a number that is not finite stops the run, and the replies of that step are left behind", async () => {
  const pairs = jsonl("pairs3.jsonl", [{ prompt: "a", chosen: "b", rejected: "c" }]);
  const critic = await run("broken-critic", "reward", {
    from: sftModel,
    data: { train: [pairs], validationShare: 0 },
    precision: "fp32",
    steps: 1,
    batchSize: 1,
  });
  const path = `${critic}/model.safetensors`;
  const bytes = readFileSync(path);
  const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString());
  bytes.writeFloatLE(Number.NaN, 8 + Number(bytes.readBigUInt64LE(0)) + header["score.weight"].data_offsets[0]);
  writeFileSync(path, bytes);
  const settings = { from: sftModel, reward: judge, ...policy, precision: "fp32", steps: 1, batchSize: 4 };
  await expect(run("nan", "ppo", { ...settings, critic })).rejects.toThrow(
    /Step 1: a value of the critic is not finite.*nan\/not-finite.json/s,
  );
  const batch = JSON.parse(readFileSync(file("nan/not-finite.json"), "utf8"));
  expect(batch).toHaveLength(4);
  expect(batch[0]).toMatchObject({ score: expect.any(Number), source: { file: prompts } });
  await expect(run("nan-reward", "grpo", { ...settings, reward: critic, batchSize: 2, groupSize: 2 })).rejects.toThrow(
    /A reward is not finite/,
  );
  const asked = JSON.parse(readFileSync(file("nan-reward/not-finite.json"), "utf8"));
  expect(asked[0].ids.length).toBeGreaterThan(asked[0].start);
}, 60_000);

test.each(["kto", "simpo", "orpo", "ipo", "hinge", "robust"])(
  "%s learns a toy preference",
  async (loss) => {
    const pairs = jsonl(
      "toy.jsonl",
      Array.from({ length: 8 }, (_, i) => ({ prompt: `What is ${i}?`, chosen: "owl", rejected: "cat" })),
    );
    await run(`toy-${loss}`, "dpo", {
      from: sftModel,
      data: { train: [pairs], validationShare: 0 },
      loss,
      labelSmoothing: loss === "robust" ? 0.1 : 0,
      batchSize: 4,
      steps: 30,
      optimizer: { learningRate: 5e-4 },
    });
    const last = metrics(`toy-${loss}`).at(-1)!;
    expect(last["rewards/accuracies"]).toBe(1);
    expect(last["rewards/margins"]).toBeGreaterThan(0);
  },
  60_000,
);

test("which preferences are held out depends on their prompts, not on where the file lies; no prompt is on both sides", () => {
  const pairs = Array.from({ length: 60 }, (_, i) => ({
    prompt: `Number ${i % 30}?`,
    chosen: `a ${animals[i % 4]} ${i}`,
    rejected: `no ${animals[i % 3]} ${i}`,
  }));
  const tokenizer = Tokenizer.load(sftModel);
  const split = (name: string) => {
    mkdirSync(dirname(file(name)), { recursive: true });
    const data = preferenceData.parse({ train: [jsonl(name, pairs)], validationShare: 0.3, contextLength: 64 });
    const { train, validation } = encodedPreferences(data, tokenizer, 64);
    return { train, validation };
  };
  const here = split("here/pairs.jsonl");
  expect(split("there/deeper/pairs.jsonl")).toEqual(here);
  const prompt = (r: EncodedReply[]): string => String(r[0].ids.slice(0, r[0].start));
  const trained = new Set(here.train.map(prompt));
  expect(here.validation.length).toBeGreaterThan(4);
  expect(here.validation.length % 2).toBe(0); // both pairs of a prompt
  for (const r of here.validation) expect(trained.has(prompt(r))).toBe(false);
});
