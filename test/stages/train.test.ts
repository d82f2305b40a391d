/** Whole stages on a few sentences: what a run leaves behind, exact resume, and losses that do not depend on how the work is cut. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { Rejected } from "../../src/corpus/read.js";
import { openCpu } from "../../src/device/cpu.js";
import { DialogueEncoder, type Sample } from "../../src/dialogue/mask.js";
import { packRows, sampleBatch } from "../../src/dialogue/pack.js";
import { generate } from "../../src/generate/generate.js";
import { loadForGeneration } from "../../src/generate/loaded.js";
import { loadLlama, saveLlama } from "../../src/nn/folder.js";
import { type Llama, packSequences } from "../../src/nn/llama.js";
import { RunFolder } from "../../src/run/folder.js";
import { backwardMeanLoss, meanLoss, type TargetBatch } from "../../src/stages/clm.js";
import { pretrainingRows } from "../../src/stages/mix.js";
import { pretrain, pretrainSchema } from "../../src/stages/pretrain.js";
import { sft, sftSchema } from "../../src/stages/sft.js";
import { train } from "../../src/stages/train.js";
import { Tape } from "../../src/tensor/tensor.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-stages-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const animals = ["cat", "dog", "owl", "fox", "hen", "bee", "猫", "狗"];
writeFileSync(
  join(root, "text.jsonl"),
  Array.from({ length: 80 }, (_, i) =>
    JSON.stringify({
      id: `d${i}`,
      text: `The ${animals[i % 8]} number ${i % 10} sees the ${animals[(i * 3) % 8]}. It runs away.`,
    }),
  ).join("\n"),
);
writeFileSync(
  join(root, "sft.jsonl"),
  Array.from({ length: 40 }, (_, i) =>
    JSON.stringify({
      instruction: `What does the ${animals[i % 8]} see?`,
      input: i % 3 ? "" : "Tell me.",
      output: `The ${animals[(i * 3) % 8]}.`,
    }),
  ).join("\n"),
);
const base = {
  threads: 2,
  logEvery: 100,
  data: { train: [join(root, "text.jsonl")], validationShare: 0.1, contextLength: 32 },
  model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4, numKvHeads: 2 },
  tokenizer: { vocabSize: 330 },
  batchSize: 4,
  optimizer: { learningRate: 3e-3 },
  samples: { prompts: ["The cat"], maxTokens: 4 },
};
const tuning = {
  threads: 2,
  logEvery: 100,
  from: join(root, "base/model"),
  data: { train: [join(root, "sft.jsonl")], validationShare: 0.1, contextLength: 64 },
  batchSize: 2,
  optimizer: { learningRate: 3e-3 },
};

async function runIn(name: string, stage: "pretrain" | "sft", settings: object, resume = false): Promise<string> {
  const dir = join(root, name);
  const run = RunFolder.open(dir, settings, { resume, keepCheckpoints: 3 });
  try {
    if (stage === "pretrain") await pretrain(pretrainSchema.parse(settings), run);
    else await sft(sftSchema.parse(settings), run);
  } finally {
    run.close();
  }
  return dir;
}
const rows = (dir: string): Record<string, number>[] =>
  readFileSync(`${dir}/metrics.jsonl`, "utf8")
    .trim()
    .split("\n")
    .map((r) => JSON.parse(r) as Record<string, number>);
const sameFiles = (a: string, b: string): void => {
  const names = readdirSync(a).sort();
  expect(readdirSync(b).sort()).toEqual(names);
  for (const name of names) expect(readFileSync(`${a}/${name}`).equals(readFileSync(`${b}/${name}`)), name).toBe(true);
};

beforeAll(async () => {
  await runIn("base", "pretrain", { ...base, steps: 30, evalEvery: 10, saveEvery: 10 });
});

test("pretraining learns, and its folder holds what is needed to explain, resume and repeat it", () => {
  const dir = join(root, "base");
  const metrics = rows(dir);
  expect(metrics).toHaveLength(30);
  expect(metrics[29].loss).toBeLessThan(metrics[0].loss * 0.7);
  expect(metrics[29].perplexity).toBeCloseTo(Math.exp(metrics[29].validationLoss), 6);
  expect(metrics[29].bitsPerByte).toBeGreaterThan(0);
  expect(readdirSync(dir).filter((n) => !n.startsWith("events."))).toEqual([
    "checkpoints",
    "config.yaml",
    "data",
    "inputs.json",
    "metrics.jsonl",
    "model",
    "report.html",
    "samples",
  ]);
  expect(readdirSync(`${dir}/checkpoints`)).toEqual(["000010", "000020", "000030"]);
  expect(readdirSync(`${dir}/model`).sort()).toEqual([
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]);
  expect(readFileSync(`${dir}/samples/000000.txt`, "utf8")).toMatch(/^The cat\|/);
});

test.each(["bf16", "fp32"] as const)("a resumed run ends with the same bytes, %s", async (precision) => {
  const settings = { ...base, precision, steps: 12, saveEvery: 5, evalEvery: 0, gradientAccumulation: 2 };
  const whole = await runIn(`whole-${precision}`, "pretrain", settings);
  // As after a kill between step 5 and step 10: later checkpoints and the result do not exist yet.
  const cut = await runIn(`cut-${precision}`, "pretrain", settings);
  for (const name of ["checkpoints/000010", "checkpoints/000012", "model"])
    rmSync(`${cut}/${name}`, { recursive: true });
  await runIn(`cut-${precision}`, "pretrain", settings, true);
  sameFiles(`${whole}/model`, `${cut}/model`);
  sameFiles(`${whole}/checkpoints/000012`, `${cut}/checkpoints/000012`);
  const losses = (dir: string): number[] => rows(dir).map((r) => r.loss);
  expect(losses(cut)).toEqual(losses(whole));
});

test.each([
  ["full", {}],
  ["LoRA", { lora: { rank: 4, alpha: 8 } }],
  ["mixture and pretraining text", { pretrainMix: { train: [join(root, "text.jsonl")], batchSize: 2 } }],
  ["micro-batches", { gradientAccumulation: 2, pretrainMix: { train: [join(root, "text.jsonl")], batchSize: 2 } }],
])("fine-tuning resumes to the same bytes: %s", async (name, more) => {
  const settings = { ...tuning, ...more, steps: 8, saveEvery: 3, evalEvery: 0 };
  const whole = await runIn(`sft-${name}`, "sft", settings);
  const cut = await runIn(`sft-cut-${name}`, "sft", settings);
  for (const n of ["checkpoints/000006", "checkpoints/000008", "model"]) rmSync(`${cut}/${n}`, { recursive: true });
  await runIn(`sft-cut-${name}`, "sft", settings, true);
  sameFiles(`${whole}/model`, `${cut}/model`);
  const metrics = rows(whole);
  expect(metrics[7].loss).toBeLessThan(metrics[0].loss);
});

test("pretraining text in a later stage: every token of a document is a target once, its end among them; bad records are listed", async () => {
  const tokenizer = Tokenizer.load(tuning.from);
  const end = tokenizer.eosId!;
  const long = Array.from({ length: 40 }, (_, i) => animals[i % 8]).join(" ");
  const bad = join(root, "mix.jsonl");
  writeFileSync(bad, `${JSON.stringify({ text: long })}\nno json\n${JSON.stringify({ text: "a cat" })}\n`);
  const rejected: Rejected[] = [];
  const row = await pretrainingRows([bad], tokenizer, tokenizer.separatorId, 8, 1, rejected);
  expect(rejected.map((r) => r.line)).toEqual([2]);
  const documents = [long, "a cat"].map((text) => [end, ...tokenizer.encode(text), end]);
  const count = documents.reduce((n, d) => n + Math.ceil((d.length - 1) / 7), 0);
  const rows = Array.from({ length: count }, (_, i) => [...row(i)]);
  expect(rows.every((r) => r.length > 1 && r.length <= 8)).toBe(true);
  expect(new Set(Array.from({ length: count }, (_, i) => String([...row(count + i)])))).toEqual(
    new Set(rows.map(String)),
  );
  const sorted = (ids: number[]): number[] => ids.sort((a, b) => a - b);
  expect(sorted(rows.flatMap((r) => r.slice(1)))).toEqual(sorted(documents.flatMap((d) => d.slice(1))));

  const settings = { ...tuning, steps: 1, evalEvery: 0, pretrainMix: { train: [bad], batchSize: 1 } };
  const dir = await runIn("mix-aside", "sft", settings);
  expect(readFileSync(`${dir}/rejected.jsonl`, "utf8")).toMatch(/mix.jsonl","line":2/);
});

test("fine-tuning refuses a reward model, a prompt without room, and data that is all held out", async () => {
  const refuses = (name: string, settings: object, message: RegExp) =>
    expect(runIn(name, "sft", { ...tuning, steps: 1, evalEvery: 0, ...settings })).rejects.toThrow(message);
  const reward = join(root, "scalar");
  const model = loadLlama(openCpu(), tuning.from, "fp32", { head: "scalar" });
  saveLlama(model, reward);
  Tokenizer.load(tuning.from).save(reward);
  model.close();
  await refuses("no-lm", { from: reward }, /scalar holds a reward or value model/);
  const prompts = ["Hi", "long ".repeat(600)];
  await refuses("no-room", { samples: { prompts } }, /samples.prompts.1 has \d+ tokens.*context of 512/);
  const data = { ...tuning.data, validationShare: 0.999999 };
  await refuses("no-data", { data }, /all 40 records are held out.*data.validationShare to 0/);
});

test("of a corpus that is shorter than a row, a row is all; the speed is told of the tokens that there are", async () => {
  const said = vi.spyOn(console, "error").mockImplementation(() => {});
  const data = { ...base.data, contextLength: 100_000 };
  const settings = { ...base, data, samples: {}, batchSize: 1, steps: 1, evalEvery: 0 };
  const dir = await runIn("long-row", "pretrain", settings);
  await expect(runIn("large-batch", "pretrain", { ...settings, batchSize: 65536 })).rejects.toThrow(
    /batchSize is 65536, and a row has \d+ tokens: .*gradientAccumulation/,
  );
  const lines = said.mock.calls.map(([line]) => String(line));
  said.mockRestore();
  const tokens = Number(/there are (\d+) tokens: each row is all of them/.exec(lines[0])?.[1]);
  expect(lines[1]).toContain(`1 step of 1 x ${tokens} tokens (1.0 epochs)`);
  expect(rows(dir)[0].mfu ?? 0).toBeLessThan(5);
});

test("a loss that is not finite stops the run before it reaches the model, and leaves the batch", async () => {
  const settings = {
    ...base,
    steps: 30,
    saveEvery: 2,
    evalEvery: 0,
    precision: "fp32",
    optimizer: { learningRate: 1e30, gradClip: 0 },
    schedule: { warmupSteps: 0 },
  };
  await expect(runIn("nan", "pretrain", settings)).rejects.toThrow(
    /Step \d+: the (loss|gradient's norm) is not finite.*batch of that step is in.*--resume/s,
  );
  const batch = JSON.parse(readFileSync(join(root, "nan/not-finite.json"), "utf8")) as { ids: number[] }[];
  expect(batch[0].ids).toHaveLength(4 * 32);
  expect(existsSync(join(root, "nan/model"))).toBe(false);
});

function gradientOf(model: Llama, batches: TargetBatch[]): { loss: number; gradient: Float32Array } {
  const tape = new Tape(model.device);
  model.parameters.clearGrads();
  const { loss } = backwardMeanLoss(model, tape, batches);
  model.parameters.settleGrads();
  const gradient = Float32Array.from(
    [...model.parameters.named()].flatMap((t) => [...model.device.f32(t.gradPtr, t.size)]),
  );
  tape.arena.close();
  return { loss, gradient };
}
const distance = (a: Float32Array, b: Float32Array): number => {
  let [difference, norm] = [0, 0];
  a.forEach((x, i) => {
    difference += (x - b[i]) ** 2;
    norm += x * x;
  });
  return Math.sqrt(difference / norm);
};

test("micro-batches equal one large batch; packed rows equal single ones; split equals all", () => {
  const device = openCpu({ threads: 2 });
  const { tokenizer } = loadForGeneration(join(root, "sft-full/model"));
  const model = loadLlama(device, join(root, "sft-full/model"), "fp32");
  const encoder = new DialogueEncoder(tokenizer);
  const turn = (q: string, a: string) =>
    [
      { role: "user", content: q },
      { role: "assistant", content: a },
    ] as const;
  const conversation = [
    ...turn("What does the cat see?", "The cat."),
    ...turn("And the dog?", "An owl, a bee and a fox."),
    ...turn("Why?", "It runs."),
  ];
  const all = encoder.samples(conversation, "all", 500) as Sample[];
  const others = [
    encoder.samples([...turn("Who?", "The hen.")], "all", 500),
    encoder.samples([...turn("A longer question: which animal number 3?", "猫")], "all", 500),
  ].flat() as Sample[];
  const samples = [...all, ...others];

  const large = gradientOf(model, [sampleBatch(samples)]);
  const micro = gradientOf(
    model,
    samples.map((s) => sampleBatch([s])),
  );
  expect(Math.abs(micro.loss - large.loss)).toBeLessThan(1e-6 * large.loss);
  expect(distance(large.gradient, micro.gradient)).toBeLessThan(1e-6);

  const packed = packRows(
    samples.map((s) => s.ids.length),
    200,
  ).map((row) => sampleBatch(row.map((i) => samples[i])));
  expect(packed.length).toBeLessThan(samples.length);
  expect(distance(large.gradient, gradientOf(model, packed).gradient)).toBeLessThan(1e-6);

  const split = encoder.samples(conversation, "split", 500) as Sample[];
  expect(split).toHaveLength(3);
  const asAll = meanLoss(model, [sampleBatch(all)]);
  const asSplit = meanLoss(model, [sampleBatch(split)]);
  expect(asSplit.targets).toBe(asAll.targets);
  expect(Math.abs(asSplit.loss - asAll.loss)).toBeLessThan(1e-6 * asAll.loss);
  expect(
    distance(gradientOf(model, [sampleBatch(all)]).gradient, gradientOf(model, [sampleBatch(split)]).gradient),
  ).toBeLessThan(1e-6);
  model.close();
});

test.each(["fp32", "bf16"] as const)(
  "greedy generation with the cache equals generation without it, token for token, %s",
  (precision) => {
    const { model, tokenizer } = loadForGeneration(join(root, "base/model"), { precision });
    const prompts = ["The cat number 3", "The", "It runs away. 狗"].map((p) => Array.from(tokenizer.encode(p)));
    const cached = generate(model, prompts, { maxTokens: 24 });
    const tape = new Tape(model.device, false);
    prompts.forEach((prompt, i) => {
      const ids = [...prompt];
      for (let n = 0; n < 24; n++) {
        const hidden = model.forward(tape, packSequences([ids]));
        const logits = model.logits(tape, hidden, Int32Array.of(ids.length - 1)).toArray();
        ids.push(logits.indexOf(Math.max(...logits)));
        tape.reset();
      }
      expect(cached[i].ids).toEqual(ids.slice(prompt.length));
    });
    tape.arena.close();
    model.close();
  },
);

test("a sampled reply depends on its seed and row, not on what else is in the batch", () => {
  const { model, tokenizer } = loadForGeneration(join(root, "base/model"), { precision: "fp32" });
  const prompt = Array.from(tokenizer.encode("The cat"));
  const other = Array.from(tokenizer.encode("It runs"));
  const options = { maxTokens: 12, temperature: 1, topP: 0.95, seed: 3 };
  const alone = generate(model, [prompt], options)[0].ids;
  expect(generate(model, [prompt, other, other], options)[0].ids).toEqual(alone);
  expect(generate(model, [prompt], { ...options, seed: 4 })[0].ids).not.toEqual(alone);
  model.close();
});

test("from code: stopped in the step in which it is asked for, with the reason; the program's signals stay its own", async () => {
  const out = join(root, "from-code");
  const controller = new AbortController();
  const heard: number[] = [];
  const before = process.listenerCount("SIGINT");
  const onStep = (step: number): void => {
    heard.push(process.listenerCount("SIGINT"));
    if (step === 2) controller.abort(new Error("enough"));
  };
  const error = await train("pretrain", { ...base, steps: 6 }, { out, signal: controller.signal, onStep }).catch(
    (e: unknown) => e as Error,
  );
  expect(error).toMatchObject({ message: expect.stringMatching(/saved at step 2 of 6/), cause: { message: "enough" } });
  expect(rows(out)).toHaveLength(2);
  expect(heard).toEqual([before, before]);
});

test("samples are shown where nothing is held out, too", async () => {
  const data = { ...base.data, validationShare: 0 };
  const dir = await runIn("no-validation", "pretrain", { ...base, data, steps: 4, evalEvery: 2 });
  expect(readdirSync(join(dir, "samples")).sort()).toEqual(["000000.txt", "000002.txt", "000004.txt"]);
});
