/** Rotary frequencies against Transformers', for every scaling. */
import { expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { llamaConfigJson, parseLlamaConfig } from "../../src/nn/config.js";
import { inverseFrequencies, RopeTables } from "../../src/nn/rope.js";
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
  const tables = new RopeTables(device, config);
  tables.reach(2);
  expect(device.f32(tables.cos, 1)[0]).toBeCloseTo(golden.factor, 6); // cos 0, scaled
  tables.close();
});

test("tables grow with what is asked for, up to the model's positions, and say the same", () => {
  const config = parseLlamaConfig(
    {
      vocab_size: 9,
      hidden_size: 16,
      intermediate_size: 8,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      max_position_embeddings: 3000,
    },
    "test",
  );
  const device = openCpu();
  const tables = new RopeTables(device, config);
  tables.reach(5);
  expect(tables.bytes).toBe(2 * 1024 * 4 * 4);
  const [at, before] = [tables.cos, device.f32(tables.cos, 1024 * 4).slice()];
  tables.reach(1024);
  expect(tables.cos).toBe(at);
  tables.reach(1025);
  expect(device.f32(tables.cos, 1024 * 4)).toEqual(before);
  expect(device.f32(at, 1024 * 4)).toEqual(before); // for a pass that has begun with them
  expect(device.f32(tables.sin, 2048 * 4)[2047 * 4]).toBe(Math.fround(Math.sin(2047)));
  tables.reach(3000);
  expect(device.f32(tables.sin, 3000 * 4)[2999 * 4]).toBe(Math.fround(Math.sin(2999)));
  expect(tables.bytes).toBe(2 * (1024 + 2048 + 3000) * 4 * 4);
  expect(() => tables.reach(3001)).toThrow(RangeError);
  tables.close();
});
