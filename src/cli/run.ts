/** `lyceum run RECIPE.yaml`: the stages of a recipe, one after the other, each in a folder of its own. */
import { existsSync } from "node:fs";
import { basename, dirname, extname } from "node:path";
import { z } from "zod";
import { applyOverrides, type ConfigSource, check, nearest, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { RunFolder } from "../run/folder.js";
import { duration } from "../run/progress.js";
import { describeEvaluation, evaluateModels, evaluateSchema } from "../stages/evaluate.js";
import { pretrain, pretrainSchema } from "../stages/pretrain.js";
import { sft, sftSchema } from "../stages/sft.js";
import { locate, type StageFlags } from "./stage.js";

type Json = Record<string, unknown>;
interface Entry {
  schema: z.ZodType;
  run(config: never, folder: RunFolder): Promise<void>;
}

/** Evaluation as a stage of a recipe: prints, and leaves evaluation.json. */
async function evaluate(config: z.output<typeof evaluateSchema>, run: RunFolder): Promise<void> {
  const results = evaluateModels(config);
  const names = config.models.map((dir) => basename(basename(dir) === "model" ? dirname(dir) : dir));
  console.log(describeEvaluation(config, results, names));
  run.result("model", () => {}); // a finished stage is known by it
  run.write(
    "evaluation.json",
    `${JSON.stringify(
      results.map((r, i) => ({ name: names[i], ...r })),
      null,
      2,
    )}\n`,
  );
}

const STAGES: Record<string, Entry> = {
  pretrain: { schema: pretrainSchema, run: pretrain },
  sft: { schema: sftSchema, run: sft },
  evaluate: { schema: evaluateSchema, run: evaluate },
};

const recipeSchema = z.strictObject({
  name: z.string().optional(),
  /** Where the stages' folders are made; --out overrides it. */
  out: z.string().optional(),
  /** The seed of every stage that names none. */
  seed: z.int().min(0).optional(),
  stages: z.array(z.looseObject({ stage: z.string(), name: z.string().optional() })).min(1),
});

/** Keys that may name an earlier stage in the place of a folder. */
const REFERENCES = ["from", "models", "reward", "reference", "tokenizer"];

export async function command(file: string, flags: StageFlags): Promise<void> {
  const source = readYaml(file);
  const recipe = check(recipeSchema, { ...source, value: applyOverrides(source.value, flags.set ?? []) });
  const out = flags.out ?? recipe.out ?? `runs/${recipe.name ?? basename(file, extname(file))}`;

  // Every stage is checked before the first one runs: an hour of pretraining should not end in a typing error.
  const made = new Map<string, string>();
  const plan = recipe.stages.map((raw, i) => {
    const { stage, name = stage, ...rest } = raw;
    const entry = STAGES[stage];
    const at: ConfigSource = { ...source, place: (path) => source.place(["stages", i, ...path]) };
    if (!entry) {
      const near = nearest(stage, Object.keys(STAGES));
      throw new UserError(
        `${file}:${at.place(["stage"])}: stages.${i}.stage is "${stage}"; ${near ? `did you mean "${near}"? ` : ""}Known are ${Object.keys(STAGES).join(", ")}.`,
        2,
      );
    }
    if (made.has(name))
      throw new UserError(`${file}: two stages are called "${name}"; give one of them another \`name\`.`, 2);
    const seeded =
      "shape" in entry.schema && "seed" in (entry.schema.shape as object) ? { seed: recipe.seed ?? 1 } : {};
    const value = { ...seeded, ...(locate(resolve(rest, made), dirname(file)) as Json) };
    const config = check(entry.schema, { ...at, value }) as Json;
    made.set(name, `${out}/${name}/model`);
    return { name, entry, config };
  });

  const began = performance.now();
  for (const [i, { name, entry, config }] of plan.entries()) {
    const dir = `${out}/${name}`;
    if (flags.resume && existsSync(`${dir}/model`)) {
      console.error(`[${i + 1}/${plan.length}] ${name}: done already`);
      continue;
    }
    console.error(`[${i + 1}/${plan.length}] ${name}`);
    const keepCheckpoints = (config.keepCheckpoints as number | undefined) ?? 1;
    const folder = RunFolder.open(dir, config, { resume: flags.resume, keepCheckpoints });
    try {
      await entry.run(config as never, folder);
    } finally {
      folder.close();
    }
  }
  const trained = plan.filter((p) => p.entry !== STAGES.evaluate).at(-1);
  console.log(
    `\n${duration((performance.now() - began) / 1000)} in all. ${trained ? `The model is in ${out}/${trained.name}/model; talk to it:\n  npx lyceum chat ${out}/${trained.name}/model` : ""}`,
  );
}

/** Names of earlier stages become their model folders. */
function resolve(value: Json, made: ReadonlyMap<string, string>): Json {
  const one = (v: unknown): unknown => (typeof v === "string" ? (made.get(v) ?? v) : v);
  return Object.fromEntries(
    Object.entries(value).map(([k, v]) => [k, REFERENCES.includes(k) ? (Array.isArray(v) ? v.map(one) : one(v)) : v]),
  );
}
