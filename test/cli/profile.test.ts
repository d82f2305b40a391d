/** `lyceum profile`: what it measures of a run, and what it says to a file that it cannot measure. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { command, type ProfileFlags } from "../../src/cli/profile.js";
import { command as runStage } from "../../src/cli/stage.js";

// A peak far too low: every step is above it, and it is measured again after each.
const peak = vi.hoisted(() => ({ underrated: false }));
vi.mock("../../src/device/peak.js", async (original) => {
  const real = await original<typeof import("../../src/device/peak.js")>();
  const peakFlops: typeof real.peakFlops = (...given) => {
    const flops = real.peakFlops(...given);
    return peak.underrated ? 1 : flops;
  };
  return { peakFlops };
});

const dir = mkdtempSync(join(tmpdir(), "lyceum-profile-test-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const LAYERS = 2;
const config = join(dir, "p.yaml");
writeFileSync(
  config,
  `stage: pretrain
data: { train: [text.jsonl], contextLength: 32 }
model: { hiddenSize: 32, intermediateSize: 64, numLayers: ${LAYERS}, numHeads: 4 }
tokenizer: { vocabSize: 300 }
batchSize: 4
`,
);
const document = (i: number): string => JSON.stringify({ id: String(i), text: `Sentence ${i % 7}, number ${i}.` });
writeFileSync(join(dir, "text.jsonl"), Array.from({ length: 90 }, (_, i) => document(i)).join("\n"));

interface Row {
  kernel: string;
  calls: number;
  seconds: number;
}
async function output(flags: ProfileFlags, file = config): Promise<string> {
  const log = vi.spyOn(console, "log").mockImplementation(() => {});
  const error = vi.spyOn(console, "error").mockImplementation(() => {});
  try {
    await command(file, flags);
    return log.mock.calls.map(([text]) => String(text)).join("\n");
  } finally {
    log.mockRestore();
    error.mockRestore();
  }
}

test("kernels of a step, without those of evaluation; products by shape; a Chrome trace of every call", async () => {
  const trace = join(dir, "trace.json");
  const result = JSON.parse(await output({ steps: "3", json: true, trace })) as {
    secondsPerStep: number;
    outsideKernels: number;
    kernels: Row[];
    products: Row[];
  };
  const calls = (name: string): number | undefined => result.kernels.find((k) => k.kernel === name)?.calls;
  // Evaluation after the last step would add forward calls, and log p alone.
  expect(calls("attentionForward")).toBe(LAYERS);
  expect(calls("attentionBackward")).toBe(LAYERS);
  // The backward pass has not kept the results, but makes them on its way.
  expect(calls("rmsnormForward")).toBe(2 * LAYERS + 1);
  expect(calls("rmsnormBackward")).toBe(2 * LAYERS + 1);
  expect(calls("swigluForward")).toBe(LAYERS);
  expect(calls("swigluBackward")).toBe(LAYERS);
  expect(calls("rope")).toBeUndefined();
  expect(calls("logprobForwardBackward")).toBe(1);
  expect(calls("logprobForward")).toBeUndefined();
  // Four matrices a layer, forward and twice backward.
  expect(calls("matmul")).toBe(12 * LAYERS);
  expect(result.products.reduce((n, p) => n + p.calls, 0)).toBe(12 * LAYERS);
  expect(result.products.map((p) => p.kernel)).toContain("128x128x32 nt");
  const inside = result.kernels.reduce((n, k) => n + k.seconds, 0);
  expect(inside + result.outsideKernels).toBeCloseTo(result.secondsPerStep, 3);

  const { traceEvents } = JSON.parse(readFileSync(trace, "utf8")) as { traceEvents: { name: string; dur: number }[] };
  expect(traceEvents).toHaveLength(3 * result.kernels.reduce((n, k) => n + k.calls, 0));
  expect(traceEvents.every((e) => e.dur > 0)).toBe(true);
});

test("what is measured between two steps is none of theirs", async () => {
  peak.underrated = true;
  try {
    const { kernels, products } = JSON.parse(await output({ steps: "3", json: true })) as {
      kernels: Row[];
      products: Row[];
    };
    expect(products.map((p) => p.kernel).filter((shape) => shape.startsWith("768x"))).toEqual([]);
    expect(kernels.find((k) => k.kernel === "matmul")?.calls).toBe(12 * LAYERS);
  } finally {
    peak.underrated = false;
  }
});

test("a trace that cannot be written is told before anything is measured", async () => {
  await expect(output({ steps: "1000000", trace: join(dir, "none/trace.json") })).rejects.toThrow(/ENOENT/);
});

test("for people: a table with the step's time, its kernels, and what is outside of them", async () => {
  const text = await output({ steps: "1" });
  expect(text).toMatch(/^a step takes [\d.]+ ms \(\d+ tokens\/s\)/);
  expect(text).toMatch(/\nmatmul +24 /);
  expect(text).toMatch(/\noutside kernels +[\d.]+ +[\d.]+%\n/);
});

test("a stage of alignment: log p of pairs forward and backward, without what comes before the first step", async () => {
  const silent = vi.spyOn(console, "error").mockImplementation(() => {});
  const told = vi.spyOn(console, "log").mockImplementation(() => {});
  await runStage("pretrain", config, { out: join(dir, "run"), set: ["steps=1"] });
  silent.mockRestore();
  told.mockRestore();
  const pair = (i: number): object => ({
    prompt: `Number ${i}?`,
    chosen: `Sentence ${i}${"!".repeat(i)}`,
    rejected: "Number.",
  });
  writeFileSync(join(dir, "pairs.jsonl"), Array.from({ length: 8 }, (_, i) => JSON.stringify(pair(i))).join("\n"));
  const file = join(dir, "dpo.yaml");
  writeFileSync(file, "from: run/model\ndata: { train: [pairs.jsonl], contextLength: 64 }\nbatchSize: 4\nbeta: 0.2\n");
  const text = await output({ steps: "3", json: true }, file); // beta tells that it is DPO's
  const { kernels, products } = JSON.parse(text) as { kernels: Row[]; products: Row[] };
  const calls = (name: string): number | undefined => kernels.find((k) => k.kernel === name)?.calls;
  // The reference's log p was computed before: a step goes through the model once.
  expect(calls("attentionForward")).toBe(LAYERS);
  expect(calls("attentionBackward")).toBe(LAYERS);
  expect(calls("logprobForward")).toBe(1);
  expect(calls("logprobBackward")).toBe(1);
  // No two steps have as many tokens; still there are four matrices and three products of each.
  expect(products).toHaveLength(12);
  const shapes = products.map((p) => p.kernel);
  for (const shape of [/^\d+-\d+x128x32 nt$/, /^\d+-\d+x32x128 nn$/, /^128x32x\d+-\d+ tn$/])
    expect(shapes.some((s) => shape.test(s))).toBe(true);
});

test("what it cannot measure: steps that are no number, other stages, whole recipes", async () => {
  await expect(command(config, { steps: "many" })).rejects.toThrow(/--steps is "many"; it must be a whole number/);
  await expect(command(config, { steps: "0" })).rejects.toThrow(
    /--steps is "0"; it must be a whole number from 1 up\.$/,
  );
  const prefer = command(config, { steps: "1", stage: "prefer" });
  await expect(prefer).rejects.toThrow(/--stage is "prefer"; profile measures steps of pretrain, sft, reward/);
  const recipe = join(dir, "r.yaml");
  writeFileSync(recipe, "stages: []\n");
  await expect(command(recipe, { steps: "1" })).rejects.toThrow(/r.yaml is a recipe of several stages/);
  const replies = join(dir, "replies.yaml");
  writeFileSync(replies, "from: run/model\nreward: judge.mjs\nprompts: [x.jsonl]\n");
  await expect(command(replies, { steps: "1" })).rejects.toThrow(
    /replies.yaml does not say which stage it is for, and its keys suit prefer, ppo, grpo: give --stage ppo or --stage grpo\.$/,
  );
  writeFileSync(replies, "from: run/model\nreward: judge.mjs\nprompts: [x.jsonl]\nsamples: 4\n");
  await expect(command(replies, { steps: "1" })).rejects.toThrow(
    /replies.yaml has the keys of the stage prefer; profile measures steps of pretrain, sft, reward, dpo, ppo, grpo\.$/,
  );
});
