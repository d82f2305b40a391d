/** The moving average of the weights: its formula, what it leaves alone, and that it survives a checkpoint. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { BF16, F32 } from "../../src/device/device.js";
import { AdamW } from "../../src/optim/adamw.js";
import { loadOptimizer, saveOptimizer } from "../../src/optim/state.js";
import { ParameterSet } from "../../src/tensor/parameters.js";

const device = currentCpu();
const root = mkdtempSync(`${tmpdir()}/lyceum-ema-`);
afterAll(() => rmSync(root, { recursive: true, force: true }));
const config = { betas: [0.9, 0.95] as const, eps: 1e-8, weightDecay: 0.1, gradClip: 0, ema: 0.75 };
const make = (dtype: typeof F32 | typeof BF16): ParameterSet => {
  const spec = { shape: [5, 8], parts: [{ name: "w", rows: 5 }], init: "normal" as const, unit: "layer 0" };
  const set = new ParameterSet(device, dtype, [spec]);
  set.initialize(1, 1);
  return set;
};
const step = (o: AdamW, seed: number): void => {
  const [p] = o.parameters.parameters;
  device.randomNormal(p.gradForAccumulation(), p.size, seed, 0, 0, 1, o.parameters.dtype);
  o.update(0.1, o.gradNorm());
};

test.each([F32, BF16] as const)("the average follows ema + (1 - decay) (weights - ema), type %i", (dtype) => {
  const set = make(dtype);
  const [p] = set.parameters;
  const o = new AdamW(set, config);
  const weights = (): Float64Array => {
    const masters = device.alloc(p.size * 4);
    if (o.low) device.joinMaster(p.ptr, o.low, masters, p.size);
    else device.bytes(masters, p.size * 4).set(device.bytes(p.ptr, p.size * 4));
    const numbers = Float64Array.from(device.f32(masters, p.size));
    device.free(masters, p.size * 4);
    return numbers;
  };
  const wanted = weights();
  for (let i = 1; i <= 5; i++) {
    step(o, i);
    for (const [k, w] of weights().entries()) wanted[k] = 0.75 * wanted[k] + 0.25 * w;
  }
  const trained = p.toArray();
  let inside: Float32Array = new Float32Array();
  o.withAverage(() => {
    inside = p.toArray();
  });
  const tolerance = dtype === F32 ? 1e-6 : 1 / 128;
  for (const [k, w] of wanted.entries())
    expect(Math.abs(inside[k] - w)).toBeLessThanOrEqual(tolerance * Math.max(1, Math.abs(w)));
  expect(inside).not.toEqual(trained);
  expect(p.toArray()).toEqual(trained);

  saveOptimizer(o, `${root}/optimizer-${dtype}.safetensors`);
  const again = new AdamW(make(dtype), config);
  loadOptimizer(again, `${root}/optimizer-${dtype}.safetensors`);
  expect(again.step).toBe(5);
  expect(device.f32(again.ema, o.length)).toEqual(device.f32(o.ema, o.length));
});
