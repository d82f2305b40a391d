/** `lyceum run RECIPE.yaml`: the stages of a recipe, one after the other, each in a folder of its own. */
import { existsSync } from "node:fs";
import { resolve as absolute, basename, dirname, extname, sep } from "node:path";
import { z } from "zod";
import { readLlamaConfig } from "../nn/config.js";
import { launched } from "../parallel/mpi.js";
import { type ConfigSource, check, nearest, overridden, placeOf, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { latestStep, RunFolder } from "../run/folder.js";
import { isRewardModule, namedBy } from "../run/named.js";
import { duration } from "../run/progress.js";
import { changedSettings } from "../run/resume.js";
import { checkRewardModule } from "../stages/judge.js";
import { positionsOfNew } from "../stages/pretrain.js";
import { STAGES } from "../stages/registry.js";
import { checkFiles, locate, runStage, type StageFlags, tellUnused } from "./stage.js";

type Json = Record<string, unknown>;
export const recipeSchema = z.strictObject({
  name: z.string().optional(),
  /** Where the stages' folders are made; --out overrides it. */
  out: z.string().min(1).optional(),
  /** The seed of every stage that names none. */
  seed: z.int().min(0).optional(),
  stages: z.array(z.looseObject({ stage: z.string(), name: z.string().optional() })).min(1),
});

export async function command(file: string, flags: StageFlags): Promise<void> {
  const processes = launched()?.size ?? 1;
  if (processes > 1)
    throw new UserError(
      `A recipe runs in one process; ${processes} were started. Start its stages one after the other, each from a file of its own (lyceum launch -n ${processes} -- pretrain ...), or the recipe without mpirun.`,
      2,
    );
  const raw = readYaml(file);
  const { stage, stages, data, sources } = raw.value as Json;
  if (stages === undefined && sources !== undefined)
    throw new UserError(`${file} is the recipe of a corpus: lyceum corpus build ${file}`, 2);
  if (stages === undefined && data !== undefined)
    throw new UserError(
      `${file} holds the settings of one stage, and no \`stages\`: lyceum ${typeof stage === "string" && STAGES[stage] ? stage : "pretrain (or sft, ...)"} ${file}`,
      2,
    );
  const source = overriddenStages(raw, flags.set ?? []);
  const recipe = check(recipeSchema, source);
  const out = flags.out ?? recipe.out ?? `runs/${recipe.name ?? basename(file, extname(file))}`;

  // Every stage is checked before the first one runs: an hour of pretraining should not end in a typing error.
  const made = new Map<string, Made>();
  /** Whether a file or folder is in that of an earlier stage. */
  const isMade = (path: string): boolean =>
    [...made.keys()].some((name) => `${absolute(path)}${sep}`.startsWith(`${absolute(out, name)}${sep}`));
  const meant = (path: string): string => {
    const near = nearest(
      path,
      [...made.keys()].filter((name) => name !== path),
    );
    return ` Nor has an earlier stage made it.${near ? ` Did you mean the stage "${near}"?` : ""}`;
  };
  const plan = recipe.stages.map((raw, i) => {
    const { stage, name = stage, ...rest } = raw;
    const entry = STAGES[stage];
    const inStage = (path: readonly PropertyKey[]): PropertyKey[] => ["stages", i, ...path];
    const at: ConfigSource = {
      ...source,
      place: (path) => source.place(inStage(path)),
      set: (path) => source.set?.(inStage(path)),
    };
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
    const begun = latestStep(`${out}/${name}`) > 0 || existsSync(`${out}/${name}/model`);
    if (!flags.resume || !begun) checkFiles(config, at, isMade, i > 0 ? meant : undefined);
    const context = contextOf(stage, config, made);
    if (!flags.resume || !begun) {
      checkContext(config, context, at);
      if (typeof config.reward === "string" && isRewardModule(config.reward)) checkRewardModule(config.reward);
    }
    made.set(name, { ...madeBy(stage, `${out}/${name}`), ...(context !== undefined && { context }) });
    return { stage, name, entry, config, given: rest };
  });

  if (flags.resume && !plan.some(({ name }) => existsSync(`${out}/${name}`)))
    console.error(`${out} holds nothing to go on with: the recipe begins anew`);

  const began = performance.now();
  for (const [i, { stage, name, entry, config, given }] of plan.entries()) {
    const dir = `${out}/${name}`;
    const settings = { stage, ...config };
    if (flags.resume && existsSync(`${dir}/model`)) {
      const changes = changedSettings(dir, settings, Math.max(1, latestStep(dir)), given);
      if (changes.length === 0) {
        console.error(`[${i + 1}/${plan.length}] ${name}: done already`);
        continue;
      }
      const later = plan.slice(i + 1).find((p) => existsSync(`${out}/${p.name}`));
      if (later)
        throw new UserError(
          `${dir} is done, but ${changes.join("; ")}; and ${out}/${later.name} was made after it. Set it back, or name another folder with --out.`,
          2,
        );
    }
    console.error(`[${i + 1}/${plan.length}] ${name}`);
    tellUnused(stage, given, config);
    const keepCheckpoints = (config.keepCheckpoints as number | undefined) ?? 1;
    const open = (): RunFolder => RunFolder.open(dir, settings, { resume: flags.resume, keepCheckpoints });
    await runStage(dir, open, (folder) => entry.run(config, folder));
  }
  const last = plan.filter(({ name }) => made.get(name)?.model).at(-1);
  const model = last && made.get(last.name)?.model;
  const use = last && (USES[last.stage] ?? USES.chat)(model as string);
  console.log(
    `\n${duration((performance.now() - began) / 1000)} in all.${model ? ` The model is in ${model}; ${use}` : ""}`,
  );
}

/** What can be done with a stage's model. */
const USES: Record<string, (model: string) => string> = {
  pretrain: (model) => `it continues texts:\n  npx lyceum generate ${model} --prompt TEXT`,
  reward: (model) => `it scores replies:\n  npx lyceum score ${model} --file PREFERENCES`,
  chat: (model) => `talk to it:\n  npx lyceum chat ${model}`,
};

/** What a stage will have made in its folder, for those after it. */
interface Made {
  model?: string;
  /** Its positions. */
  context?: number;
  preferences?: string;
}
function madeBy(stage: string, dir: string): Made {
  if (stage === "evaluate") return {};
  return stage === "prefer" ? { preferences: `${dir}/preferences.jsonl` } : { model: `${dir}/model` };
}

/** Positions of the model that a stage trains: of the one it begins with, or of a new one; undefined where that cannot be known yet. */
function contextOf(stage: string, config: Json, made: ReadonlyMap<string, Made>): number | undefined {
  const { from, model, data } = config as { from?: string; model?: Json; data?: { contextLength?: number } };
  if (from === undefined)
    return stage === "pretrain" && data?.contextLength !== undefined
      ? positionsOfNew(model?.maxPositionEmbeddings as number | undefined, data.contextLength)
      : undefined;
  const earlier = [...made.values()].find((m) => m.model === from);
  if (earlier) return earlier.context;
  return existsSync(`${from}/config.json`) ? readLlamaConfig(from).maxPositionEmbeddings : undefined;
}

/** Throws UserError where a stage's rows or replies are longer than its model can be. */
function checkContext(config: Json, context: number | undefined, at: ConfigSource): void {
  if (context === undefined) return;
  const { data, maxTokens } = config as { data?: { contextLength?: number }; maxTokens?: number };
  const rows = data?.contextLength ?? 0;
  if (rows > context)
    throw new UserError(
      `${placeOf(at, ["data", "contextLength"])}: data.contextLength is ${rows}, but the model was made for ${context} positions.`,
      2,
    );
  if (maxTokens !== undefined && maxTokens >= context)
    throw new UserError(
      `${placeOf(at, ["maxTokens"])}: maxTokens is ${maxTokens}; the model's context is ${context}, prompt and reply together.`,
      2,
    );
}

/** `--set sft.steps=10` for the stage of that name, as well as `--set stages.1.steps=10`. */
export function overriddenStages(source: ConfigSource, overrides: readonly string[]): ConfigSource {
  const { stages } = source.value as { stages?: { stage?: unknown; name?: unknown }[] };
  const names = Array.isArray(stages) ? stages.map((s) => s?.name ?? s?.stage) : [];
  const set = overrides.map((text) => {
    const [, name, rest] = /^([^.=]+)\.(.+)$/s.exec(text) ?? [];
    const index = names.indexOf(name);
    return name !== undefined && index >= 0 ? `stages.${index}.${rest}` : text;
  });
  return overridden(
    source,
    set,
    overrides.map((text) => `--set ${text}`),
  );
}

/** Names of earlier stages become their model folders, or the preferences that they made. */
function resolve(value: unknown, made: ReadonlyMap<string, Made>, key = ""): unknown {
  if (typeof value === "string") {
    const { model, preferences } = made.get(value) ?? {};
    const named = namedBy(key);
    return (named === "data" ? preferences : named && model) ?? value;
  }
  if (Array.isArray(value)) return value.map((v) => resolve(v, made, key));
  if (value === null || typeof value !== "object" || key === "samples") return value; // whose prompts are texts
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, made, k)]));
}
