/**
 * `lyceum schema`: the JSON Schema of the configuration files, from the very schemas that check them. They are published in
 * schema/, for editors: `# yaml-language-server: $schema=../schema/recipe.json`.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { recipeSchema as corpusSchema } from "../corpus/recipe.js";
import { clusterSchema } from "../plan/cluster.js";
import { nearest } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { STAGES } from "../stages/registry.js";
import { recipeSchema } from "./run.js";

type Json = Record<string, unknown>;

/** The schema of a file as users write it: defaults may be left out. */
function jsonSchema(schema: z.ZodType): Json {
  const json = z.toJSONSchema(schema, { io: "input", target: "draft-7" }) as Json;
  return withoutLargest(json) as Json;
}

/** zod writes the largest safe integer as the maximum of every whole number, which tells a reader nothing. */
function withoutLargest(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutLargest);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key, v]) => !(key === "maximum" && v === Number.MAX_SAFE_INTEGER))
      .map(([key, v]) => [key, withoutLargest(v)]),
  );
}

/** A recipe: every stage has the keys of its own kind, and may have a name. */
function recipe(): Json {
  const whole = jsonSchema(recipeSchema) as Json & { properties: Json };
  const kinds = Object.keys(STAGES);
  const definitions = Object.fromEntries(
    kinds.map((kind) => {
      const { $schema: _, ...own } = jsonSchema(STAGES[kind].schema) as Json & {
        properties: Json;
        required?: string[];
      };
      const properties = { ...own.properties, stage: { const: kind }, name: { type: "string" } };
      return [kind, { ...own, properties, required: ["stage", ...(own.required ?? [])] }];
    }),
  );
  const items = { oneOf: kinds.map((kind) => ({ $ref: `#/definitions/${kind}` })) };
  return { ...whole, properties: { ...whole.properties, stages: { type: "array", minItems: 1, items } }, definitions };
}

/** Every kind of file, by name: recipe, the stages, corpus, cluster. */
export function schemas(): Record<string, Json> {
  const all: [string, Json][] = [
    ["recipe", recipe()],
    ...Object.entries(STAGES).map(([name, { schema }]): [string, Json] => [name, jsonSchema(schema)]),
    ["corpus", jsonSchema(corpusSchema)],
    ["cluster", jsonSchema(clusterSchema)],
  ];
  return Object.fromEntries(all.map(([name, json]) => [name, { title: `lyceum ${name}`, ...json }]));
}

export function command(name: string | undefined, flags: { out?: string }): void {
  const all = schemas();
  if (flags.out !== undefined) {
    mkdirSync(flags.out, { recursive: true });
    for (const [kind, json] of Object.entries(all))
      writeFileSync(`${flags.out}/${kind}.json`, `${JSON.stringify(json, null, 2)}\n`);
    console.log(`${flags.out}: ${Object.keys(all).join(", ")}`);
    return;
  }
  const kind = name ?? "recipe";
  if (!Object.hasOwn(all, kind)) {
    const near = nearest(kind, Object.keys(all));
    throw new UserError(
      `There is no configuration "${kind}". ${near ? `Did you mean "${near}"? ` : ""}Known are ${Object.keys(all).join(", ")}.`,
      2,
    );
  }
  console.log(JSON.stringify(all[kind], null, 2));
}
