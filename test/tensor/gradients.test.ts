/** Gradients lie where activations were: from their first write in a step to the update, and with the same bytes as anywhere else. */
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { Llama } from "../../src/nn/llama.js";
import { AdamW } from "../../src/optim/adamw.js";
import { allTargets, backwardMeanLoss } from "../../src/stages/clm.js";
import { Tape } from "../../src/tensor/tensor.js";

const device = currentCpu();
/** Vectors of 40 numbers leave gaps between parameters, in which activations were in the step before. */
const config = parseLlamaConfig(
  {
    vocab_size: 100,
    hidden_size: 40,
    intermediate_size: 96,
    num_hidden_layers: 6,
    num_attention_heads: 2,
    max_position_embeddings: 64,
    tie_word_embeddings: true,
  },
  "test",
);
const batches = [3, 5].map((stride) =>
  allTargets(Array.from({ length: 2 }, (_, s) => Int32Array.from({ length: 48 }, (_, i) => (i * stride + s) % 100))),
);
const bytes = (model: Llama, where: "ptr" | "gradPtr"): string =>
  [...model.parameters.named()].map((t) => Buffer.from(device.bytes(t[where], t.size * 2)).toString("hex")).join();

/** Three steps. `aside`: gradients get memory of their own, as in a program without an arena. */
function train({ aside = false, microBatches = 1, recompute = false } = {}) {
  const model = new Llama(device, config, "bf16");
  model.recompute = recompute;
  model.parameters.initialize(1, 0.02);
  const { keeper, units } = model.parameters;
  const open = keeper.openGrads.bind(keeper);
  if (aside) keeper.openGrads = (unit) => open(unit);
  const optimizer = new AdamW(model.trainable, { betas: [0.9, 0.95], eps: 1e-8, weightDecay: 0.1, gradClip: 1 });
  const tape = new Tape(device);
  const places: number[][] = [];
  const values: unknown[] = [];
  for (let step = 0; step < 3; step++) {
    expect(units.every((u) => u.grads === 0)).toBe(true);
    const { loss } = backwardMeanLoss(model, tape, batches.slice(0, microBatches));
    const gradients = bytes(model, "gradPtr");
    places.push(units.map((u) => u.grads));
    const norm = optimizer.gradNorm();
    optimizer.update(1e-2, norm);
    values.push({ loss, norm, gradients, weights: bytes(model, "ptr") });
  }
  expect([...model.parameters.named()].every((t) => t.gradPtr === 0)).toBe(true);
  expect(() => optimizer.update(1e-2, 0)).toThrow("no gradients: gradNorm()");
  const { peakBytes } = tape.arena;
  const gradientBytes = keeper.stateBytes().gradients;
  tape.close();
  optimizer.close();
  model.close();
  return { values, places, peakBytes, gradientBytes };
}

test.each([
  { microBatches: 1, recompute: false },
  { microBatches: 2, recompute: false },
  { microBatches: 1, recompute: true },
])("the same losses, norms, gradients and weights as in memory of their own: %o", (how) => {
  const together = train(how);
  const apart = train({ ...how, aside: true });
  expect(together.values).toEqual(apart.values);
  expect(together.places[0].every((p) => p !== 0)).toBe(true);
  expect(together.places[1]).toEqual(together.places[0]);
  expect(together.places[2]).toEqual(together.places[0]);
});

test("the peak of a step is less than that of its activations and all gradients", () => {
  const together = train();
  const apart = train({ aside: true });
  expect(apart.peakBytes).toBeGreaterThan(2 * apart.gradientBytes);
  const saved = apart.peakBytes + apart.gradientBytes - together.peakBytes;
  expect(saved).toBeGreaterThan(0.7 * apart.gradientBytes);
});

test("in bf16 the gradient of many micro-batches is as near to fp32's as that of one", () => {
  const rows = Array.from({ length: 256 }, (_, s) =>
    Int32Array.from({ length: 24 }, (_, i) => (i * (s + 3) + s) % 100),
  );
  const gradient = (precision: "bf16" | "fp32", microBatches: number): number[] => {
    const model = new Llama(device, config, precision);
    model.parameters.initialize(1, 0.05);
    const tape = new Tape(device);
    const each = rows.length / microBatches;
    const parts = Array.from({ length: microBatches }, (_, m) => allTargets(rows.slice(m * each, (m + 1) * each)));
    backwardMeanLoss(model, tape, parts);
    model.parameters.settleGrads();
    const all = model.parameters.parameters.flatMap((p) => [...p.gradArray()]);
    tape.close();
    model.close();
    return all;
  };
  const exact = gradient("fp32", 1);
  const norm = Math.hypot(...exact);
  const off = (microBatches: number): number =>
    Math.hypot(...gradient("bf16", microBatches).map((x, i) => x - exact[i])) / norm;
  const one = off(1);
  expect(one).toBeLessThan(0.02);
  for (const microBatches of [16, 256]) expect(off(microBatches)).toBeLessThan(1.1 * one);
});

test("gradients that are read before the step's last backward pass are refused", () => {
  const model = new Llama(device, config, "bf16");
  model.parameters.initialize(1, 0.02);
  const tape = new Tape(device);
  backwardMeanLoss(model, tape, batches, 1, false);
  expect(() => model.parameters.settleGrads()).toThrow("no backward pass was said to be the step's last");
  model.parameters.clearGrads();
  expect(model.parameters.parameters.every((p) => p.gradPtr === 0 && !p.gradWritten)).toBe(true);
  tape.close();
  model.close();
});

test("a gradient that waits is there when its tape is closed, and its model may be closed first or last", () => {
  for (const first of ["tape", "model"]) {
    const model = new Llama(device, config, "bf16");
    model.parameters.initialize(1, 0.02);
    const tape = new Tape(device);
    backwardMeanLoss(model, tape, batches);
    const gradients = bytes(model, "gradPtr");
    if (first === "tape") {
      tape.close();
      expect(bytes(model, "gradPtr")).toEqual(gradients);
      const [p] = model.parameters.parameters;
      model.parameters.clearGrads();
      expect(p.gradPtr).toBe(0);
      expect(p.gradArray().every((x) => x === 0)).toBe(true);
      expect(p.gradForAccumulation()).not.toBe(0); // without a tape
    }
    model.close();
    if (first === "model") tape.close();
  }
});
