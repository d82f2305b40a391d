/** Step time against published throughput and against arithmetic. */
import { expect, test } from "vitest";
import { type Cluster, makeCluster } from "../../src/plan/cluster.js";
import { collectiveBytes, collectiveSeconds, LINK_EFFICIENCY } from "../../src/plan/collectives.js";
import { trainingFlops } from "../../src/plan/compute.js";
import { type Layout, layout, type Workload, workload } from "../../src/plan/layout.js";
import { stageParameters } from "../../src/plan/memory.js";
import { llamaShape, namedShape } from "../../src/plan/shape.js";
import { simulateRing } from "../../src/plan/simulate.js";
import { stepTime } from "../../src/plan/time.js";

/** Seconds of a step when gradients are sent after the backward pass, as Megatron-LM did in 2021, and not beside it. */
function withoutOverlap(w: Workload, l: Layout, c: Cluster): number {
  const { seconds, parts } = stepTime(w, l, c);
  const group = { size: l.data, perNode: Math.min(l.data, c.devicesPerNode / l.tensor) };
  return seconds - parts.gradients + collectiveSeconds(2 * stageParameters(w.shape, 0, l), group, c, 2);
}

/**
 * TFLOP/s of a device as Megatron-LM reports them (Narayanan et al. 2021, equation 3, recomputation included), of the best of the
 * micro-batch sizes and chunks that the authors chose among.
 */
function megatron(
  name: string,
  tensor: number,
  pipeline: number,
  devices: number,
  batch: number,
  micro = [1, 2, 4, 8],
) {
  const shape = namedShape(name)!;
  const w = workload({ shape, globalBatch: batch, contextLength: 2048, attention: "full", logits: "full" });
  const c = makeCluster({ device: "a100-80", devices });
  const data = devices / tensor / pipeline;
  const { numLayers: L, hiddenSize: h } = shape;
  const flops = 96 * batch * 2048 * L * h * h * (1 + 2048 / (6 * h) + 51200 / (16 * L * h));
  let best = 0;
  for (const microBatch of micro)
    for (const chunks of [1, 2, 3, 4]) {
      const m = batch / data / microBatch;
      if (!Number.isInteger(m)) continue;
      if (chunks > 1 && (pipeline === 1 || m % pipeline || (L / pipeline) % chunks)) continue;
      const l = layout({ name, data, tensor, pipeline, microBatch, chunks, recompute: true });
      best = Math.max(best, flops / withoutOverlap(w, l, c) / devices / 1e12);
    }
  return best;
}

// Model, tensor, pipeline, devices, batch, measured TFLOP/s a device.
test.each([
  ["1.7B", 1, 1, 32, 512, 137],
  ["3.6B", 2, 1, 64, 512, 138],
  ["7.5B", 4, 1, 128, 512, 142],
  ["18.4B", 8, 1, 256, 1024, 135],
  ["39.1B", 8, 2, 512, 1536, 138],
  ["76.1B", 8, 4, 1024, 1792, 140],
  ["145.6B", 8, 8, 1536, 2304, 148],
  ["310.1B", 8, 16, 1920, 2160, 155],
  ["529.6B", 8, 35, 2520, 2520, 163],
  ["1008B", 8, 64, 3072, 3072, 163],
] as const)("Narayanan et al. 2021, table 1: %s within 6% of what was measured", (name, t, p, n, batch, measured) => {
  expect(Math.abs(megatron(name, t, p, n, batch) / measured - 1)).toBeLessThan(0.06);
});

test.each([
  ["175B", 12, 384, 1536, 153],
  ["175B", 12, 768, 1536, 149],
  ["175B", 12, 1536, 1536, 141],
  ["529.6B", 35, 560, 2240, 171],
  ["529.6B", 35, 1120, 2240, 167],
  ["529.6B", 35, 2240, 2240, 159],
] as const)("and its table 2, 3D rows: %s, pipeline %i, on %i devices within 8%", (name, p, n, batch, measured) => {
  expect(Math.abs(megatron(name, 8, p, n, batch, [1]) / measured - 1)).toBeLessThan(0.08);
});

// Layers 126 of the real model are 128 here, so that 16 stages of 8 chunks have the same number (as the authors arranged it).
test.each([
  [8192, 64, 32, 430],
  [16384, 128, 16, 400],
] as const)(
  "Llama 3 405B on %i H100 (Dubey et al. 2024, table 4): TFLOP/s within 5%",
  (devices, data, micro, measured) => {
    const shape = llamaShape("405B", [128, 16384, 128, 8, 53248, 128256]);
    const w = workload({ shape, globalBatch: data * micro, contextLength: 8192 });
    const l = layout({ name: "", data, tensor: 8, pipeline: 16, zero: 1, chunks: 8, sequenceParallel: true });
    const c = makeCluster({ device: "h100", devices });
    expect(Math.abs((stepTime(w, l, c).utilisation * c.flops) / 1e12 / measured - 1)).toBeLessThan(0.05);
  },
);

test("training operations come to 6 for each parameter and token, and attention's share", () => {
  const shape = namedShape("7B")!;
  const weights = shape.parameters - shape.vocabSize * shape.hiddenSize;
  const attention = 6 * shape.numLayers * shape.hiddenSize * 4096; // 12 L d T / 2, causal
  expect(trainingFlops(shape, 4096, "blocked") / (6 * weights + attention)).toBeCloseTo(1, 3);
});

test("bytes sent in a step: 2 P for DDP, ZeRO-1 and ZeRO-2, 3 P for ZeRO-3 (Rajbhandari et al. 2020, section 7)", () => {
  const shape = namedShape("7.5B")!;
  const w = workload({ shape, globalBatch: 64, contextLength: 1024 });
  const c = makeCluster({ devices: 64 });
  const sent = (zero: 0 | 1 | 2 | 3): number => stepTime(w, layout({ name: "", data: 64, zero }), c).sent.data;
  const ring = (2 * 7.5e9 * 63) / 64; // bytes of one pass in bf16
  expect(([0, 1, 2, 3] as const).map((z) => Number((sent(z) / ring).toFixed(6)))).toEqual([2, 2, 2, 3]);
  // With micro-batches ZeRO-3 gathers and scatters for each of them.
  const four = stepTime({ ...w, globalBatch: 256 }, layout({ name: "", data: 64, zero: 3 }), c).sent.data;
  expect(four / ring).toBeCloseTo(12, 6);
});

test("the formula of a collective is what the simulated ring takes", () => {
  const c = makeCluster({ devices: 8, intraLatencyUs: 5 });
  const simulated = simulateRing(new Float64Array(8), 1e9, c.intraBandwidth * LINK_EFFICIENCY, c.intraLatency);
  expect(collectiveSeconds(1e9, { size: 8, perNode: 8 }, c, 2)).toBeCloseTo(simulated[0], 9);
  expect(collectiveSeconds(1e9, { size: 1, perNode: 1 }, c, 2)).toBe(0);
  expect(collectiveBytes(1e9, 8, 2)).toBe(1.75e9);
});

test("tensor parallelism sends 4 sums of the hidden states a layer and micro-batch, 6 with recomputation", () => {
  const shape = namedShape("7B")!;
  const w = workload({ shape, globalBatch: 8, contextLength: 2048 });
  const c = makeCluster({ devices: 8 });
  const of = (recompute: boolean) => stepTime(w, layout({ name: "", tensor: 8, recompute }), c);
  const hidden = 2048 * 4096 * 2;
  expect(of(false).sent.tensor).toBeCloseTo(4 * 32 * 8 * 2 * hidden * (7 / 8), 0);
  expect(of(true).sent.tensor / of(false).sent.tensor).toBeCloseTo(1.5, 10);
  expect(of(true).seconds / of(false).seconds).toBeGreaterThan(1.25);
});

test("PPO writes, scores and updates; its parts add up", () => {
  const shape = namedShape("7B")!;
  const w = workload({ stage: "ppo", shape, globalBatch: 64, contextLength: 1024, updateEpochs: 1 });
  const t = stepTime(w, layout({ name: "", data: 8, zero: 3 }), makeCluster({ devices: 8 }));
  expect(Object.values(t.parts).reduce((a, b) => a + b, 0)).toBeCloseTo(t.seconds, 10);
  const lora = stepTime({ ...w, adapters: 1e6 }, layout({ name: "", data: 8, zero: 3 }), makeCluster({ devices: 8 }));
  expect(lora.parts.scoring).toBeCloseTo(t.parts.scoring, 10); // the reference is the actor, and is asked all the same
  expect(lora.parts.pipeline).toBeLessThan(t.parts.pipeline);
  // 512 tokens, each reading 13.5 GB of weights at 2 TB/s.
  expect(t.parts.generation).toBeGreaterThan((512 * 2 * shape.parameters) / 2039e9);
  expect(t.parts.scoring).toBeGreaterThan(0);
  expect(t.utilisation).toBeLessThan(0.65);
});

test("GRPO is PPO without the critic; without a reference one look at the replies less", () => {
  const shape = namedShape("7B")!;
  const some = { shape, globalBatch: 64, contextLength: 1024, updateEpochs: 1 };
  const of = (more: Partial<Workload>) =>
    stepTime(workload({ ...some, ...more }), layout({ name: "", data: 8, zero: 3 }), makeCluster({ devices: 8 })).parts;
  const [ppo, grpo, free] = [of({ stage: "ppo" }), of({ stage: "grpo" }), of({ stage: "grpo", reference: false })];
  expect(grpo.generation).toBe(ppo.generation);
  expect(grpo.pipeline / ppo.pipeline).toBeCloseTo(1 / 2, 10);
  expect(grpo.scoring / ppo.scoring).toBeCloseTo(3 / 4, 10); // of four models of one size
  expect(free.scoring / ppo.scoring).toBeCloseTo(2 / 4, 10);
  const adapters = of({ stage: "grpo", adapters: 1e6, reference: false });
  expect(adapters.scoring).toBeCloseTo(free.scoring, 10);
});

test("fp32 takes longer to write replies: twice the bytes of weights and caches", () => {
  const shape = namedShape("7B")!;
  const c = makeCluster({ devices: 8 });
  const of = (precision: "bf16" | "fp32", globalBatch: number): number => {
    const w = workload({ stage: "ppo", shape, globalBatch, contextLength: 1024, precision });
    return stepTime(w, layout({ name: "", data: 8 }), c).parts.generation;
  };
  expect(of("fp32", 64) / of("bf16", 64)).toBeCloseTo(2, 10);
  const one = (4 * shape.parameters + 4 * 2 * 32 * 4096 * 768) / c.memoryBandwidth; // past: 512 of prompt and half of the reply
  expect(of("fp32", 8)).toBeCloseTo(512 * one, 10);
});

test("many micro-batches: what is not simulated is exactly what further ones cost", () => {
  const shape = namedShape("1.7B")!;
  const c = makeCluster({ devices: 8 });
  const l = layout({ name: "", pipeline: 8 });
  const step = (m: number): number => stepTime(workload({ shape, globalBatch: m }), l, c).parts.pipeline;
  const each = (step(16) - step(14)) / 2; // both simulated whole
  expect(step(100)).toBeCloseTo(step(16) + 84 * each, 8);
});
