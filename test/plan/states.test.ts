/** Shapes and model states against published numbers. */
import { expect, test } from "vitest";
import { hubShape, layerParameters, namedShape } from "../../src/plan/shape.js";
import { deepspeedZero2, deepspeedZero3, modelStates, stateTotal, type Zero } from "../../src/plan/states.js";

const GB = 1e9;
const GiB = 2 ** 30;

test("ZeRO, figure 1 (Rajbhandari et al. 2020): 7.5B on 64 devices takes 120, 31.4, 16.6 and 1.9 GB", () => {
  const P = namedShape("7.5B")!.parameters;
  expect(P).toBe(7.5e9);
  const total = (zero: Zero): number =>
    stateTotal(modelStates(P, { zero, offload: "none", ranks: 64, precision: "bf16" }).device) / GB;
  expect(([0, 1, 2, 3] as const).map((z) => Number(total(z).toFixed(1)))).toEqual([120, 31.4, 16.6, 1.9]);
});

test("16 bytes a parameter, 12 of them Adam's; in fp32 16 too; frozen parameters have no gradient", () => {
  const at = { zero: 0, offload: "none", ranks: 1 } as const;
  expect(modelStates(1e6, { ...at, precision: "bf16" }).device).toEqual({
    parameters: 2e6,
    gradients: 2e6,
    optimizer: 12e6,
  });
  expect(stateTotal(modelStates(1e6, { ...at, precision: "fp32" }).device)).toBe(16e6);
  expect(stateTotal(modelStates(1e6, { ...at, precision: "bf16" }, 0).device)).toBe(2e6);
});

test("offload moves states from the device to main memory and loses none", () => {
  for (const offload of ["none", "optimizer", "all"] as const) {
    const { device, host } = modelStates(1e9, { zero: 3, offload, ranks: 8, precision: "bf16" });
    expect(stateTotal(device) + stateTotal(host)).toBeCloseTo(2e9, 0);
    expect(device.parameters).toBe(offload === "all" ? 0 : 0.25e9);
    expect(device.optimizer).toBe(offload === "none" ? 1.5e9 : 0);
  }
});

test("DeepSpeed's estimators: the tables of its documentation (t5-3b: 2851M parameters, largest layer 32M, 8 GPUs)", () => {
  const nodes = { gpusPerNode: 8, nodes: 1 };
  const shown = ({ cpu, gpu }: { cpu: number; gpu: number }) => [cpu, gpu].map((b) => Number((b / GiB).toFixed(2)));
  expect(shown(deepspeedZero2(2851e6, nodes, true))).toEqual([127.45, 5.31]);
  expect(shown(deepspeedZero2(2851e6, nodes, false))).toEqual([127.45, 15.93]);
  const zero3 = (offload: "none" | "optimizer" | "all", init: boolean) =>
    shown(deepspeedZero3(2851e6, 32e6, nodes, offload, init));
  expect(zero3("all", true)).toEqual([71.69, 0.12]);
  expect(zero3("all", false)).toEqual([127.45, 0.12]);
  expect(zero3("optimizer", true)).toEqual([63.72, 0.78]);
  expect(zero3("optimizer", false)).toEqual([127.45, 0.78]);
  expect(zero3("none", true)).toEqual([1.43, 6.09]);
  expect(zero3("none", false)).toEqual([127.45, 6.09]);
});

test("names: published shapes, or a shape of about the named size", () => {
  expect(namedShape("7B")!.parameters).toBe(6_738_415_616); // Llama 2 7B as Hugging Face counts it
  expect(namedShape("13b")!.parameters).toBe(13_015_864_320);
  expect(namedShape("70B")!.parameters).toBe(68_976_648_192);
  expect(namedShape("8B")!.parameters).toBe(8_030_261_248);
  for (const name of ["30M", "350M", "2.8B", "33B", "1.1T"]) {
    const s = namedShape(name)!;
    const matrices = 12 * s.numLayers * s.hiddenSize ** 2 + s.vocabSize * s.hiddenSize;
    expect(matrices / s.parameters, name).toBeGreaterThan(0.7);
    expect(matrices / s.parameters, name).toBeLessThan(1.5);
    expect(layerParameters(s)).toBeGreaterThan(0);
  }
  expect(namedShape("seven")).toBeUndefined();
});

test("a Hugging Face folder: the parameters that its config gives are those of its file", () => {
  const folder = (name: string): number =>
    hubShape(new URL(`../golden/llama/${name}`, import.meta.url).pathname).parameters;
  // From the headers of the safetensors files themselves.
  expect(folder("mha-untied")).toBe(COUNTS["mha-untied"]);
  for (const name of ["gqa-tied", "qwen2-tied", "qwen3-untied"] as const) expect(folder(name)).toBe(COUNTS[name]);
  expect(() => hubShape("package.json")).toThrow(/package.json: hidden_size must be a positive whole number/);
});
const COUNTS = { "mha-untied": 111552, "gqa-tied": 99136, "qwen2-tied": 97408, "qwen3-untied": 128576 };
