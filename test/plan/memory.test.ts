/** Memory of a device against formulas from papers. */
import { expect, test } from "vitest";
import { type ActivationCase, cacheBytes, layerActivations, layerInput } from "../../src/plan/activations.js";
import { layout, workload } from "../../src/plan/layout.js";
import { deviceMemory } from "../../src/plan/memory.js";
import { namedShape } from "../../src/plan/shape.js";

const gpt3 = namedShape("175B")!;
const GB = 1e9;

test("a GPT layer keeps s b h (34 + 5 a s / h) bytes, split over t as Korthikanti et al. 2022 say (table 2)", () => {
  const [s, b, h, a] = [2048, 1, gpt3.hiddenSize, gpt3.numHeads];
  const c: ActivationCase = {
    tokens: s * b,
    contextLength: s,
    tensor: 1,
    sequenceParallel: false,
    precision: "bf16",
    attention: "full",
  };
  const sbh = s * b * h;
  expect(layerActivations(gpt3, c)).toBeCloseTo(sbh * (34 + (5 * a * s) / h), 0);
  expect(layerActivations(gpt3, { ...c, tensor: 8 })).toBeCloseTo(sbh * (10 + 24 / 8 + (5 * a * s) / (h * 8)), 0);
  const both = { ...c, tensor: 8, sequenceParallel: true };
  expect(layerActivations(gpt3, both)).toBeCloseTo((sbh / 8) * (34 + (5 * a * s) / h), 0);
  expect(layerInput(gpt3, c)).toBe(2 * sbh);
  // Blocked attention keeps the log-sum-exp of each row and head instead.
  expect(layerActivations(gpt3, { ...c, attention: "blocked" })).toBeCloseTo(34 * sbh + 4 * a * s, 0);
});

test("1F1B: the first stage holds as many micro-batches as there are stages, so one model's worth of activations", () => {
  const w = workload({ shape: gpt3, globalBatch: 64, attention: "full" });
  const flat = deviceMemory(w, layout({ name: "", pipeline: 1, tensor: 8 }));
  const deep = deviceMemory(w, layout({ name: "", pipeline: 8, tensor: 8 }));
  expect(deep.activationsKept / flat.activationsKept).toBeCloseTo(1, 2);
  expect(deep.optimizer).toBeLessThan(flat.optimizer / 7);
  const few = deviceMemory({ ...w, globalBatch: 2 }, layout({ name: "", pipeline: 8, tensor: 8 }));
  expect(few.activationsKept / flat.activationsKept).toBeLessThan(0.3);
});

test("the 7.5B model of the ZeRO paper, with all that a device holds", () => {
  const w = workload({ shape: namedShape("7.5B")!, globalBatch: 64, contextLength: 1024 });
  const of = (zero: 0 | 1 | 2 | 3) => deviceMemory(w, layout({ name: "", data: 64, zero }));
  const states = (m: ReturnType<typeof of>): number => (m.parameters + m.gradients + m.optimizer) / GB;
  expect(([0, 1, 2, 3] as const).map((z) => Number(states(of(z)).toFixed(1)))).toEqual([120, 31.4, 16.6, 1.9]);
  const m = of(3);
  expect(m.total).toBeCloseTo(states(m) * GB + m.buffers + m.activations, 0);
  expect(m.activationsRecomputed).toBeLessThan(m.activationsKept / 10);
});

test("PPO with four 7B models: the notes' 240 GB, 60 GB on each of four devices", () => {
  const w = workload({ stage: "ppo", shape: namedShape("7B")!, contextLength: 1024, globalBatch: 64 });
  const four = deviceMemory(w, layout({ name: "", data: 4, zero: 3 }));
  const perDevice = four.models.reduce((n, m) => n + m.bytes, 0);
  expect(four.models.map((m) => m.role)).toEqual(["actor", "critic", "ref", "reward"]);
  expect(perDevice / GB).toBeGreaterThan(0.98 * 60);
  expect(perDevice / GB).toBeLessThan(1.02 * 60);
  expect((4 * perDevice) / GB).toBeCloseTo(242.6, 1);
  // Each sequence of a replica's share, at 0.5 MiB a token (2 x 32 layers x 4096 x 2 bytes).
  expect(four.kvCache).toBe(16 * 1024 * 2 ** 19);
  expect(cacheBytes(namedShape("70B")!, 1, "bf16")).toBe(2 * 80 * 8 * 128 * 2);
});

test("a frozen reference costs its parameters, and Lyceum's DPO keeps none", () => {
  const w = workload({ stage: "dpo", shape: namedShape("7B")! });
  const one = deviceMemory(w, layout({ name: "" }));
  const two = deviceMemory({ ...w, residentReference: true }, layout({ name: "" }));
  expect(two.total - one.total).toBeCloseTo(2 * w.shape.parameters, 0);
});
