/** What `lyceum plan` plans for: a name, a Hugging Face config, or a YAML file of Lyceum's, told apart and read. */
import { existsSync, statSync } from "node:fs";
import { basename, dirname, extname } from "node:path";
import type { z } from "zod";
import { PLANNED_STAGES, type PlannedStage, type Workload, workload } from "../plan/layout.js";
import { hubShape, llamaShape, type ModelShape, namedShape } from "../plan/shape.js";
import { check, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { isRewardModule } from "../run/named.js";
import type { LORA_TARGETS, loraSchema } from "../run/settings.js";
import { locate } from "./stage.js";
import { coveredStage, stageOf } from "./stage-of.js";

type Json = Record<string, unknown>;

const COVERED = { stages: PLANNED_STAGES, says: "plan covers" };

export interface Subject {
  workload: Workload;
  /** The checked settings of the stage, when the subject is a YAML file. */
  config: Json | undefined;
}

export async function readSubject(model: string, stage: string | undefined, set: readonly string[]): Promise<Subject> {
  const wanted = stage === undefined ? undefined : await coveredStage(stage, `--stage is "${stage}"`, COVERED);
  if (/\.ya?ml$/.test(model)) return fromYaml(model, wanted, set);
  if (set.length > 0)
    throw new UserError(`--set changes settings of a YAML file, and --model ${model} is not one: leave --set out.`, 2);
  const isFile = existsSync(model);
  const shape = isFile ? hubShape(model) : namedShape(model);
  if (!shape)
    throw new UserError(
      `--model ${model} is neither a file or folder nor a size. Give a size such as 7B, 7.5B, 13B or 70B, a Hugging Face config.json or its folder, or a YAML file.`,
      2,
    );
  return { workload: workload({ shape, stage: wanted ?? "pretrain" }), config: undefined };
}

/** One stage's settings, or a recipe: then --stage tells which of its stages is meant (default: the first that plan covers). */
async function fromYaml(file: string, wanted: PlannedStage | undefined, set: readonly string[]): Promise<Subject> {
  const { STAGES } = await import("../stages/registry.js");
  const { recipeSchema, overriddenStages } = await import("./run.js");
  const raw = readYaml(file);
  const source = overriddenStages(raw, set);
  const value = locate(source.value, dirname(file)) as Json;
  if (value.stages === undefined) {
    const name = wanted ?? (await stageOf(file, value, COVERED));
    const config = check(STAGES[name].schema, { ...source, value }) as Json;
    return { workload: await workloadOf(name, config, () => undefined, file), config };
  }
  const list: Json[] = check(recipeSchema, { ...source, value }).stages;
  const planned = list.filter((s) => PLANNED_STAGES.includes(s.stage as PlannedStage));
  const chosen = wanted ? planned.find((s) => s.stage === wanted) : planned[0];
  if (!chosen)
    throw new UserError(
      `${file} has no stage ${wanted ?? "that plan covers"}; its stages are ${list.map((s) => s.stage).join(", ")}.`,
      2,
    );
  const index = list.indexOf(chosen);
  const { name: _, ...rest } = chosen;
  const stage = chosen.stage as PlannedStage;
  const config = check(STAGES[stage].schema, {
    ...source,
    value: rest,
    place: (path) => source.place(["stages", index, ...path]),
    set: (path) => source.set?.(["stages", index, ...path]),
  }) as Json;
  const earlier = (name: string): Json | undefined => list.slice(0, index).find((s) => (s.name ?? s.stage) === name);
  return { workload: await workloadOf(stage, config, earlier, file), config };
}

type Earlier = (name: string) => Json | undefined;

async function workloadOf(stage: PlannedStage, config: Json, earlier: Earlier, file: string): Promise<Workload> {
  const data = config.data as { contextLength?: number } | undefined;
  const shape = await shapeOf(config, earlier, file);
  const reply = config.maxTokens as number | undefined;
  const contextLength = data?.contextLength ?? ((config.maxPromptLength as number) ?? 0) + (reply ?? 0);
  const pairs = stage === "reward" || stage === "dpo" ? 2 : 1; // a preference is a chosen and a rejected reply
  // Micro-batches of a step, or replies to each prompt.
  const times = (config.gradientAccumulation ?? config.groupSize ?? 1) as number;
  const rows = (config.batchSize as number) * times;
  const others = stage === "ppo" || stage === "grpo" ? await otherModels(config, shape, earlier, file) : {};
  const lora = config.lora as z.output<typeof loraSchema> | undefined;
  return workload({
    stage,
    shape,
    contextLength,
    globalBatch: rows * pairs,
    precision: config.precision as Workload["precision"],
    replyLength: reply ?? 0,
    updateEpochs: (config.epochs as number | undefined) ?? 1,
    adapters: lora ? adapterParameters(shape, lora) : 0,
    ...others,
  });
}

/** The models beside the actor: of PPO (src/stages/four-models.ts) and of GRPO; one that is not there yet counts as large as the actor. */
async function otherModels(config: Json, shape: ModelShape, earlier: Earlier, file: string) {
  const { reward: from, critic, klCoef } = config as { reward: string; critic?: string; klCoef?: number };
  const reward = isRewardModule(from) ? undefined : await named(from, earlier, file, shape);
  return {
    reward,
    critic: critic === undefined ? (reward ?? shape) : await named(critic, earlier, file, shape),
    reference: klCoef !== 0,
  };
}

/** Parameters of LoRA's two factors beside the chosen matrices. */
function adapterParameters(s: ModelShape, { rank, targets }: z.output<typeof loraSchema>): number {
  const q = s.numHeads * s.headDim;
  const sizes: Record<(typeof LORA_TARGETS)[number], number> = {
    qkv: s.hiddenSize + q + 2 * s.numKvHeads * s.headDim,
    o_proj: q + s.hiddenSize,
    gate_up: s.hiddenSize + 2 * s.intermediateSize,
    down_proj: s.intermediateSize + s.hiddenSize,
  };
  return s.numLayers * rank * targets.reduce((n, t) => n + sizes[t], 0);
}

/** A model by the name of an earlier stage, or by its folder. */
async function named(from: string, earlier: Earlier, file: string, otherwise?: ModelShape): Promise<ModelShape> {
  const stage = earlier(from);
  if (stage) return shapeOf(stage, earlier, file);
  if (existsSync(`${from}/config.json`)) return hubShape(from);
  if (otherwise) return otherwise;
  throw new UserError(
    `${file}: ${from} is neither an earlier stage nor a model folder yet, so its size is not known. Plan the stage that makes it, or give --model a size.`,
    2,
  );
}

async function shapeOf(config: Json, earlier: Earlier, file: string): Promise<ModelShape> {
  const model = config.model as Record<string, number | boolean | string | undefined> | undefined;
  if (!model) {
    if (typeof config.from === "string") return named(config.from, earlier, file);
    throw new UserError(`${file} has neither \`model\` nor \`from\`, so the size of the model is not known.`, 2);
  }
  const number = (key: string, otherwise?: number): number => (model[key] as number | undefined) ?? otherwise!;
  const heads = number("numHeads");
  const vocabulary = await vocabularyOf(config.tokenizer, file);
  const tied = (model.tieWordEmbeddings as boolean | undefined) ?? true;
  const row = [
    number("numLayers"),
    number("hiddenSize"),
    heads,
    number("numKvHeads", heads),
    number("intermediateSize"),
    vocabulary,
  ] as const;
  const headDim = number("headDim", number("hiddenSize") / heads);
  const name = basename(file, extname(file));
  const note = `its matrices, with ${vocabulary} tokens in the vocabulary`;
  return llamaShape(name, row, tied, note, headDim, model.modelType as string | undefined);
}

async function vocabularyOf(tokenizer: unknown, file: string): Promise<number> {
  if (typeof tokenizer === "object" && tokenizer !== null) return (tokenizer as { vocabSize: number }).vocabSize;
  if (typeof tokenizer !== "string" || !existsSync(tokenizer) || !statSync(tokenizer).isDirectory())
    throw new UserError(
      `${file}: \`tokenizer\` is neither a folder that is there nor the settings of a new one, so the size of the vocabulary is not known.`,
      2,
    );
  const { Tokenizer } = await import("../tokenizer/tokenizer.js");
  return Tokenizer.load(tokenizer).vocabSize;
}
