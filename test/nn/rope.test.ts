/** Rotary frequencies against Transformers', for every scaling. */
import { expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { llamaConfigJson, parseLlamaConfig } from "../../src/nn/config.js";
import { inverseFrequencies, ropeTables } from "../../src/nn/rope.js";
import * as gold from "./golden.js";

interface Golden {
  config: { rope_parameters: { rope_type: string } };
  positions: number;
  frequencies: number[];
  factor: number;
}
const cases = gold.readJson(`${gold.folder("rope")}.json`) as Golden[];

test.each(cases.map((c, i) => [c.config.rope_parameters.rope_type, i, c] as const))("%s, %i", (_, __, golden) => {
  const config = parseLlamaConfig(golden.config, "config.json");
  const frequencies = inverseFrequencies(config, golden.positions);
  expect(frequencies).toHaveLength(golden.frequencies.length);
  frequencies.forEach((f, i) => {
    expect(Math.abs(f / golden.frequencies[i] - 1)).toBeLessThan(2e-6);
  });
  // What is written is read as the same, in both spellings.
  const written = llamaConfigJson(config, "float32");
  expect(parseLlamaConfig(written, "config.json")).toEqual(config);
  expect(parseLlamaConfig({ ...written, rope_parameters: undefined }, "config.json")).toEqual(config);
  const device = openCpu();
  const tables = ropeTables(device, config, 2);
  expect(device.f32(tables.cos, 1)[0]).toBeCloseTo(golden.factor, 6); // cos 0, scaled
  device.free(tables.cos, tables.bytes);
  device.free(tables.sin, tables.bytes);
});
