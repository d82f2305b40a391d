/** Alignment stages on a model of a few thousand parameters: they do what they promise, and resume exactly. */
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { Rejected } from "../../src/corpus/read.js";
import { DialogueEncoder } from "../../src/dialogue/mask.js";
import { type EncodedReply, readPreferences } from "../../src/dialogue/preference.js";
import { generate } from "../../src/generate/generate.js";
import { loadForGeneration } from "../../src/generate/loaded.js";
import { RunFolder } from "../../src/run/folder.js";
import { openSafetensors } from "../../src/run/safetensors.js";
import { lengthOf } from "../../src/run/settings.js";
import { dpoSchema } from "../../src/stages/dpo.js";
import { grpoSchema } from "../../src/stages/grpo.js";
import { ppoSchema } from "../../src/stages/ppo-config.js";
import { encodedPreferences, preferenceData } from "../../src/stages/preference-data.js";
import { STAGES } from "../../src/stages/registry.js";
import { readPrompts, tellUnmoved } from "../../src/stages/rollout.js";
import { sftSchema } from "../../src/stages/sft.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-align-"));
afterAll(() => rmSync(root, { recursive: true, force: true }), 60_000);
const file = (name: string): string => join(root, name);
const jsonl = (name: string, records: object[]): string => {
  writeFileSync(file(name), records.map((r) => JSON.stringify(r)).join("\n"));
  return file(name);
};

async function run(
  name: string,
  stage: string,
  settings: object,
  resume = false,
  prepare: (folder: RunFolder) => void = () => {},
): Promise<string> {
  const quiet = stage === "prefer" ? {} : { logEvery: 1000, evalEvery: 0, saveEvery: 0 };
  const config = STAGES[stage].schema.parse({ threads: 2, ...quiet, ...settings });
  const folder = RunFolder.open(file(name), config, { resume, keepCheckpoints: 5 });
  prepare(folder);
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
  const common = bad(
    "common.cjs",
    "Object.defineProperty(exports, '__esModule', { value: true }); exports.default = () => 1;",
  );
  await ppo("common", common); // as TypeScript writes it
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

test("KTO learns from single replies, more of one kind than of the other, with no pair among them", async () => {
  const labelled = (name: string, goodOnes: number, badOnes: number) =>
    jsonl(name, [
      ...Array.from({ length: goodOnes }, (_, i) => ({ prompt: `What is ${i}?`, completion: "owl", label: true })),
      ...Array.from({ length: badOnes }, (_, i) => ({ prompt: `Name ${i}.`, completion: "cat", label: false })),
    ]);
  const settings = (path: string, loss: string) => ({
    from: sftModel,
    data: { train: [path], validationShare: 0 },
    loss,
    batchSize: 4,
    steps: 30,
    optimizer: { learningRate: 5e-4 },
  });
  await run("labelled", "dpo", settings(labelled("labelled.jsonl", 3, 9), "kto"));
  const rows = metrics("labelled");
  const gained = (key: string): number => rows.at(-1)![key] - rows[0][key];
  expect(gained("rewards/chosen")).toBeGreaterThan(0);
  expect(gained("rewards/rejected")).toBeLessThan(0);
  const good = labelled("good.jsonl", 4, 0);
  await expect(run("all-good", "dpo", settings(good, "kto"))).rejects.toThrow(
    /All 4 single replies to train on are good ones/,
  );
  await expect(run("other-loss", "dpo", settings(good, "sigmoid"))).rejects.toThrow(/only DPO's loss: kto learns/);
}, 60_000);

test("which preferences are held out depends on their prompts, not on where the file lies; no prompt is on both sides", async () => {
  const pairs = Array.from({ length: 60 }, (_, i) => ({
    prompt: `Number ${i % 30}?`,
    chosen: `a ${animals[i % 4]} ${i}`,
    rejected: `no ${animals[i % 3]} ${i}`,
  }));
  const tokenizer = Tokenizer.load(sftModel);
  const split = async (name: string) => {
    mkdirSync(dirname(file(name)), { recursive: true });
    const data = preferenceData.parse({ train: [jsonl(name, pairs)], validationShare: 0.3, contextLength: 64 });
    const { train, validation } = await encodedPreferences(data, tokenizer, 64);
    return { train, validation };
  };
  const here = await split("here/pairs.jsonl");
  expect(await split("there/deeper/pairs.jsonl")).toEqual(here);
  const prompt = (r: EncodedReply[]): string => String(r[0].ids.slice(0, r[0].start));
  const trained = new Set(here.train.map(prompt));
  expect(here.validation.length).toBeGreaterThan(4);
  expect(here.validation.length % 2).toBe(0); // both pairs of a prompt
  for (const r of here.validation) expect(trained.has(prompt(r))).toBe(false);
});

const toy = (name: string, count = 8): string =>
  jsonl(
    name,
    Array.from({ length: count }, (_, i) => ({ prompt: `What is ${i}?`, chosen: "owl", rejected: "cat" })),
  );

test("DPO's reference is of the weights, the pairs and the loss that are trained, whatever a run before has left", async () => {
  const data = { train: [toy("kept.jsonl")], validationShare: 0 };
  const settings = { from: sftModel, data, batchSize: 4, steps: 1, precision: "fp32" };
  const broken = {
    ...settings,
    steps: 2,
    optimizer: { learningRate: 1e30, gradClip: 0 },
    schedule: { warmupSteps: 0 },
  };
  await expect(run("kept", "dpo", broken)).rejects.toThrow(/is not finite.*--resume/s);
  const base = `${file("base")}/model`;
  await run("kept", "dpo", { ...settings, from: base }, true);
  await run("fresh", "dpo", { ...settings, from: base });
  expect(metrics("kept")[0].loss).toBeCloseTo(Math.LN2, 6);
  expect(metrics("kept")[0].loss).toBe(metrics("fresh")[0].loss);

  // Going on with KTO: what the reference says of replies to other prompts was not asked before.
  const first = JSON.parse(readFileSync(`${file("fresh")}/reference.json`, "utf8"));
  rmSync(`${file("fresh")}/model`, { recursive: true });
  await run("fresh", "dpo", { ...settings, from: base, loss: "kto", steps: 2 }, true);
  const then = JSON.parse(readFileSync(`${file("fresh")}/reference.json`, "utf8"));
  expect(then.of).not.toBe(first.of);
  expect(then.sums.every((p: { other: number }) => p.other < 0)).toBe(true);
  expect(metrics("fresh").at(-1)!.kl).toBeLessThan(1);
}, 60_000);

test("what marks a stage as finished is written last", async () => {
  const stop = (method: "write" | "result", name: string) => (folder: RunFolder) => {
    const own = folder[method].bind(folder) as (name: string, what: never) => string;
    folder[method] = (given: string, what: never) => {
      if (given === name) throw new Error("killed");
      return own(given, what);
    };
  };
  const finished = (name: string): boolean => readdirSync(file(name)).includes("model");
  const asked = { from: sftModel, reward: judge, prompts: [prompts], maxTokens: 6, samples: 8 };
  await expect(run("last-prefer", "prefer", asked, false, stop("write", "preferences.jsonl"))).rejects.toThrow(
    "killed",
  );
  expect(finished("last-prefer")).toBe(false);
  const data = { train: [toy("last.jsonl")], validationShare: 0 };
  const averaged = { from: sftModel, data, batchSize: 4, steps: 1, optimizer: { ema: 0.5 } };
  await expect(run("last-ema", "reward", averaged, false, stop("result", "model-ema"))).rejects.toThrow("killed");
  expect(finished("last-ema")).toBe(false);
  // And the reward model has such an average, with the mean reward that its own scores have.
  await run("last-ema", "reward", averaged, true);
  const mean = (name: string): number =>
    JSON.parse(readFileSync(`${file("last-ema")}/${name}/config.json`, "utf8")).reward_mean;
  expect(mean("model-ema")).not.toBe(mean("model"));
}, 60_000);

test("a reward model's padding is no token that replies end with; where there is another one, that", async () => {
  const data = { train: [toy("pad.jsonl")], validationShare: 0 };
  for (const [name, special, wanted] of [
    ["pad-other", {}, "<|pad|>"],
    ["pad-bos", { "<|pad|>": "<|filler|>" }, "<|endoftext|>"],
  ] as const) {
    const from = file(`${name}-policy`);
    cpSync(sftModel, from, { recursive: true });
    for (const [old, token] of Object.entries(special))
      for (const part of ["tokenizer.json", "tokenizer_config.json"])
        writeFileSync(`${from}/${part}`, readFileSync(`${from}/${part}`, "utf8").replaceAll(old, token));
    const config = JSON.parse(readFileSync(`${from}/tokenizer_config.json`, "utf8"));
    writeFileSync(`${from}/tokenizer_config.json`, JSON.stringify({ ...config, pad_token: "<|end|>" }));
    const reward = await run(name, "reward", { from, data, batchSize: 4, steps: 1 });
    const tokenizer = Tokenizer.load(reward);
    expect(tokenizer.padId).toBe(tokenizer.tokenToId(wanted));
    expect(JSON.parse(readFileSync(`${reward}/config.json`, "utf8")).pad_token_id).toBe(tokenizer.padId);
  }
}, 60_000);

test("scores without their mean, and a critic that begins as the reward model: what the mean is makes no difference", async () => {
  const data = { train: [toy("mean.jsonl")], validationShare: 0 };
  const reward = await run("mean", "reward", { from: sftModel, precision: "fp32", data, batchSize: 4, steps: 5 });
  const config = JSON.parse(readFileSync(`${reward}/config.json`, "utf8"));
  const first = async (name: string, more: object): Promise<Record<string, number>> => {
    const shifted = file(`${name}-rm`);
    cpSync(reward, shifted, { recursive: true });
    writeFileSync(`${shifted}/config.json`, JSON.stringify({ ...config, ...more }));
    // Without gamma or lambda below 1 the values' zero would only move all advantages alike.
    const settings = { from: sftModel, reward: shifted, ...policy, precision: "fp32", steps: 1, batchSize: 8 };
    await run(name, "ppo", { ...settings, gamma: 1, lambda: 0.9 });
    return metrics(name)[0];
  };
  const [none, much] = [await first("mean-0", { reward_mean: 0 }), await first("mean-5", { reward_mean: 5 })];
  expect(much["objective/scores"]).toBeCloseTo(none["objective/scores"] - 5, 3);
  // The score of a finished reply and the critic's value of its end are both below by five.
  expect(much["loss/value_avg"]).toBeCloseTo(none["loss/value_avg"], 3);
  expect(much["policy/gradNorm"]).toBeCloseTo(none["policy/gradNorm"], 3);
}, 60_000);

test("a reward model or a critic that cannot see a prompt and its reply is refused", async () => {
  const data = { train: [toy("short.jsonl")], validationShare: 0 };
  const reward = await run("short", "reward", { from: sftModel, data, batchSize: 4, steps: 1 });
  const shape = JSON.parse(readFileSync(`${reward}/config.json`, "utf8"));
  writeFileSync(`${reward}/config.json`, JSON.stringify({ ...shape, max_position_embeddings: 8 }));
  const settings = { from: sftModel, ...policy, steps: 1, batchSize: 4 };
  const message = (role: string) =>
    new RegExp(`The ${role} .*short/model was made for 8 positions.*may be \\d+ tokens`);
  await expect(run("short1", "ppo", { ...settings, reward })).rejects.toThrow(message("reward model"));
  await expect(run("short2", "ppo", { ...settings, reward: judge, critic: reward })).rejects.toThrow(message("critic"));
  await expect(run("short3", "grpo", { ...settings, reward })).rejects.toThrow(message("reward model"));
  const asked = { from: sftModel, reward, prompts: [prompts], maxTokens: 6 };
  await expect(run("short4", "prefer", asked)).rejects.toThrow(message("reward model"));
}, 60_000);

test("a module judges the instruction with its input, and so do the preferences that are made of it", async () => {
  const seen = file("seen.txt");
  const module = file("input.mjs");
  writeFileSync(
    module,
    `import { appendFileSync } from "node:fs";
export default (prompt, reply) => (appendFileSync(${JSON.stringify(seen)}, prompt + "\\n"), reply.length % 7 + (reply.includes("owl") ? 1 : 0));`,
  );
  const records = Array.from({ length: 4 }, (_, i) => ({ instruction: "What is", input: ` ${i}?`, output: "cat" }));
  await run("input", "prefer", {
    from: sftModel,
    reward: module,
    prompts: [jsonl("input.jsonl", records)],
    maxTokens: 6,
    samples: 8,
  });
  expect(new Set(readFileSync(seen, "utf8").trim().split("\n"))).toEqual(
    new Set([0, 1, 2, 3].map((i) => `What is ${i}?`)),
  );
  for (const { prompt } of await readPreferences([`${file("input")}/preferences.jsonl`], []))
    expect(prompt).toEqual([{ role: "user", content: "What is", input: expect.stringMatching(/^ \d\?$/) }]);
}, 60_000);

test("a prompt that the chat template refuses is set aside with its line", async () => {
  const tokenizer = Tokenizer.load(sftModel);
  tokenizer.config.chat_template =
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}<|end|>{% endfor %}";
  const asked = jsonl("system.jsonl", [
    {
      prompt: [
        { role: "system", content: "s" },
        { role: "user", content: "a" },
      ],
    },
    { prompt: "b" },
  ]);
  const rejected: Rejected[] = [];
  const o = { from: sftModel, prompts: [asked], maxPromptLength: 100, maxTokens: 4 };
  expect(await readPrompts(o, new DialogueEncoder(tokenizer), rejected)).toHaveLength(1);
  expect(rejected).toEqual([{ file: asked, line: 1, reason: expect.stringContaining("no system") }]);
});

test("rewards that tell nothing apart are told, in a short run at its end, and in a long one once", async () => {
  const said = vi.spyOn(console, "error").mockImplementation(() => {});
  const lines = (): string[] =>
    said.mock.calls.map(([line]) => String(line)).filter((line) => /one after the other/.test(line));
  try {
    const flat = file("flat.mjs");
    writeFileSync(flat, "export default () => 1;");
    const settings = {
      from: sftModel,
      reward: flat,
      prompts: [prompts],
      maxTokens: 4,
      batchSize: 4,
      minibatchSize: 4,
      steps: 2,
    };
    await run("flat-ppo", "ppo", settings);
    expect(lines()).toEqual([
      expect.stringMatching(/^in 2 steps one after the other all replies had the same score: .* noise/),
    ]);
    said.mockClear();
    const tell = tellUnmoved(100, "x");
    for (const unmoved of [true, true, false, true, true, true, true, true, true, true]) tell(unmoved);
    expect(lines()).toEqual(["in 5 steps one after the other x"]);
  } finally {
    said.mockRestore();
  }
});

test("what a run says of its length, and of nothing that is held out", async () => {
  expect(lengthOf({}, 10, 4)).toEqual({ steps: 3, told: "3 steps of 4 (1.2 epochs)" });
  expect(lengthOf({ epochs: 0.1 }, 5, 64)).toEqual({ steps: 1, told: "1 step of 64 (12.8 epochs)" });
  expect(lengthOf({ epochs: 9, steps: 2 }, 8, 4, " rows").told).toBe("2 steps of 4 rows (1.0 epochs)");
  const said = vi.spyOn(console, "error").mockImplementation(() => {});
  try {
    const one = jsonl("one-pair.jsonl", [{ prompt: "a", chosen: "b c d", rejected: "e" }]);
    const settings = { from: sftModel, data: { train: [one], contextLength: 64 }, batchSize: 1, steps: 1 };
    for (const stage of ["reward", "dpo"]) {
      said.mockClear();
      await run(`one-${stage}`, stage, settings);
      const lines = said.mock.calls.map(([line]) => String(line));
      expect(lines).toContainEqual(expect.stringContaining("no validation: nothing is held out"));
      expect(lines.filter((line) => line.includes("warning"))).toEqual([]); // of two replies any correlation is perfect
      said.mockClear();
      const data = { ...settings.data, validation: [one] };
      await run(`same-${stage}`, stage, { ...settings, data });
      expect(said.mock.calls.map(([line]) => String(line))).toContainEqual(
        expect.stringMatching(/^warning: .*one-pair.jsonl is under data.train and under data.validation/),
      );
    }
  } finally {
    said.mockRestore();
  }
});

test("prompts of every form: what the user asked last, with what stands before it, whatever answers it", async () => {
  const tokenizer = Tokenizer.load(sftModel);
  const u = (content: string) => ({ role: "user", content });
  const a = (content: string) => ({ role: "assistant", content });
  const system = { role: "system", content: "s" };
  const asked = jsonl("forms.jsonl", [
    { prompt: "q", system: "s" },
    { question: "q", answer: 7 },
    { instruction: "q", input: "i" },
    { instruction: "q", output: "" },
    { messages: [u("q"), a("r")] },
    { messages: [u("q"), a("r"), u("and then?")] },
    { prompt: "\n\nHuman: q\n\nAssistant:" },
    { messages: [a("r")] },
    { text: "q" },
  ]);
  const rejected: Rejected[] = [];
  const o = { from: sftModel, prompts: [asked], maxPromptLength: 100, maxTokens: 4 };
  const prompts = await readPrompts(o, new DialogueEncoder(tokenizer), rejected);
  expect(prompts.map((p) => p.messages)).toEqual([
    [system, u("q")],
    [u("q")],
    [{ ...u("q"), input: "i" }],
    [u("q")],
    [u("q")],
    [u("q"), a("r"), u("and then?")],
    [u("q")],
  ]);
  expect(rejected.map((r) => r.line)).toEqual([8, 9]);
});

test("validation losses are those that are trained", async () => {
  const [train] = [[toy("validated.jsonl")]];
  const data = { train, validation: train };
  const settings = { from: sftModel, data, batchSize: 8, steps: 1, precision: "fp32", evalEvery: 1 };
  const still = { optimizer: { learningRate: 1e-20 } };
  await run("validated-dpo", "dpo", { ...settings, ...still, nll: 0.5 });
  const [dpo] = metrics("validated-dpo");
  expect(dpo.loss).toBeGreaterThan(Math.LN2 + 0.01);
  expect(dpo.validationLoss).toBeCloseTo(dpo.loss, 5);
  await run("validated-reward", "reward", { ...settings, ...still, margin: 2, centering: 0.5 });
  const [reward] = metrics("validated-reward");
  expect(reward["validation/loss"]).toBeCloseTo(reward.loss, 5);
  expect(reward.loss).toBeGreaterThan(1.5);
}, 60_000);

test("preferences that are all held out are told as such", async () => {
  const all = preferenceData.parse({ train: [toy("held.jsonl", 2)], validationShare: 0.999999, contextLength: 64 });
  await expect(encodedPreferences(all, Tokenizer.load(sftModel), 64)).rejects.toThrow(
    /all 2 preferences are held out.*data.validationShare to 0/,
  );
});

test("settings that a loss would not read, and averages that are not kept, are refused", () => {
  const dpo = (settings: object) => STAGES.dpo.schema.safeParse({ from: "a", data: { train: ["b"] }, ...settings });
  const at = (result: ReturnType<typeof dpo>) => result.error?.issues.map((i) => i.path.join("."));
  for (const loss of ["hinge", "ipo", "simpo", "orpo", "kto"])
    expect(at(dpo({ loss, labelSmoothing: 0.1 }))).toEqual(["labelSmoothing"]);
  expect(at(dpo({ loss: "hinge", lengthAverage: true }))).toEqual(["lengthAverage"]);
  for (const settings of [
    { loss: "robust", labelSmoothing: 0.1 },
    { labelSmoothing: 0.1 },
    { loss: "ipo", lengthAverage: true },
  ])
    expect(dpo(settings).success).toBe(true);
  const ppo = { from: "a", reward: "b", prompts: ["c"], criticOptimizer: { ema: 0.9 } };
  expect(at(STAGES.ppo.schema.safeParse(ppo))).toEqual(["criticOptimizer.ema"]);
});

test("an average of adapters is refused with the settings, before a recipe's first stage begins", () => {
  for (const schema of [sftSchema, dpoSchema, ppoSchema, grpoSchema]) {
    const said = (more: object): string =>
      JSON.stringify(schema.safeParse({ ...more, optimizer: { ema: 0.9 } }).error?.issues ?? []);
    const complete = { from: "a", data: { train: ["b"] }, reward: "c", prompts: ["d"] };
    const known = Object.fromEntries(Object.entries(complete).filter(([key]) => key in schema.shape));
    expect(said({ ...known, lora: {} })).toContain("0 with lora");
    expect(said(known)).toBe("[]");
  }
});

test("GRPO goes on with as many updates as its checkpoint has, whatever a minibatch is now", async () => {
  const settings = {
    from: sftModel,
    reward: judge,
    ...policy,
    batchSize: 2,
    groupSize: 4,
    minibatchSize: 2,
    saveEvery: 1,
  };
  await run("updates", "grpo", { ...settings, steps: 1 });
  rmSync(`${file("updates")}/model`, { recursive: true });
  await run("updates", "grpo", { ...settings, minibatchSize: 8, steps: 2 }, true);
  const state = openSafetensors(`${file("updates")}/checkpoints/000002/optimizer.safetensors`);
  expect(state.metadata().step).toBe("5"); // 4 of two replies each, and one of eight
  state.close();
}, 60_000);
