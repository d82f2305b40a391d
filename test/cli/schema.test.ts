/** The published JSON Schemas say what the program checks. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { parse } from "yaml";
import { schemas } from "../../src/cli/schema.js";
import { STAGES } from "../../src/stages/registry.js";

interface Node {
  type?: string;
  properties?: Record<string, Node>;
  required?: string[];
  additionalProperties?: boolean;
  definitions?: Record<string, Node>;
  default?: unknown;
  minimum?: number;
  maximum?: number;
  enum?: string[];
  const?: string;
  anyOf?: Node[];
}
const all = schemas() as Record<string, Node>;

test("every kind of file has one; keys, defaults and limits are those of the settings", () => {
  expect(Object.keys(all)).toEqual(["recipe", ...Object.keys(STAGES), "corpus", "cluster"]);
  const { properties = {}, required, additionalProperties } = all.pretrain;
  expect(additionalProperties).toBe(false);
  expect(required).toEqual(["data"]);
  expect(properties.batchSize).toEqual({ type: "integer", minimum: 1, maximum: 65536, default: 16 });
  expect(properties.precision.enum).toEqual(["bf16", "fp32"]);
  expect(properties.data.properties?.train.anyOf?.map((t) => t.type)).toEqual(["string", "array"]);
  expect(JSON.stringify(all)).not.toContain(String(Number.MAX_SAFE_INTEGER));
});

test("a recipe's stages have the keys of their kind: those of the quickstart are all known", () => {
  const { stages } = parse(readFileSync("recipes/quickstart.yaml", "utf8")) as { stages: Record<string, unknown>[] };
  for (const stage of stages) {
    const kind = all.recipe.definitions?.[stage.stage as string];
    expect(kind?.properties?.stage.const).toBe(stage.stage);
    expect(Object.keys(kind?.properties ?? {})).toEqual(expect.arrayContaining(Object.keys(stage)));
    expect(Object.keys(stage)).toEqual(expect.arrayContaining(kind?.required ?? []));
  }
});
