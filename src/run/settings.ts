/** The settings that training stages share: how each is repeated, batched, optimized, watched and saved; and what those ask for that learn from replies. */
import { resolve } from "node:path";
import { z } from "zod";

const natural = z.int().min(1);
const count = z.int().min(0);

/** Files or folders: a list, or one alone. */
export const pathsSchema = z.union([
  z
    .string()
    .min(1)
    .transform((path) => [path]),
  z.array(z.string().min(1)).min(1),
]);

/** Rows (prompts, replies) that are worked on at once. More would be no batch of any use, and their tokens more than an array holds. */
export const batchSizeSchema = natural.max(65536);

export const optimizerSchema = z.strictObject({
  learningRate: z.number().positive().default(1e-3),
  betas: z.tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)]).default([0.9, 0.95]),
  eps: z.number().positive().default(1e-8),
  weightDecay: z.number().min(0).default(0.1),
  /** Global gradient norm above which gradients are scaled down; 0: off. */
  gradClip: z.number().min(0).default(1),
  /** Decay of an exponential moving average of the weights, saved beside them as model-ema/; 0: none. */
  ema: z.number().min(0).lt(1).default(0),
});

export const scheduleSchema = z.strictObject({
  kind: z.enum(["cosine", "wsd", "linear", "constant"]).default("cosine"),
  /** Steps, or a share of all steps when below 1. */
  warmupSteps: z.number().min(0).default(0.05),
  /** Where the decay ends; as a share of the peak when not given. */
  minLearningRate: z.number().min(0).optional(),
  decayShare: z.number().min(0).max(1).default(0.2),
});

/** Matrices that adapters can sit on: queries, keys and values together, gate and up together. */
export const LORA_TARGETS = ["qkv", "o_proj", "gate_up", "down_proj"] as const;

export const loraSchema = z.strictObject({
  rank: natural.default(8),
  alpha: z.number().positive().default(16),
  targets: z
    .array(z.enum(LORA_TARGETS))
    .min(1)
    .default([...LORA_TARGETS]),
});

/** For stages that have both: `.refine(...averageOfAll)`. Told before a recipe's first stage begins. */
export const averageOfAll: [
  (config: { lora?: unknown; optimizer: { ema: number } }) => boolean,
  { path: string[]; message: string },
] = [
  ({ lora, optimizer }) => lora === undefined || optimizer.ema === 0,
  { path: ["optimizer", "ema"], message: "0 with lora: what is averaged is a whole model's weights" },
];

/** For every stage: `.refine(...rateFalls)`. */
export const rateFalls: [
  (config: {
    optimizer: { learningRate: number };
    schedule: { kind: string; minLearningRate?: number | undefined };
  }) => boolean,
  { path: string[]; message: string },
] = [
  ({ optimizer, schedule: { kind, minLearningRate } }) =>
    kind === "constant" || minLearningRate === undefined || minLearningRate <= optimizer.learningRate,
  { path: ["schedule", "minLearningRate"], message: "at most optimizer.learningRate, from which the rate falls" },
];

/** Updates of a run over `count` examples (rows, pairs, prompts), `perStep` of them each; and for people, with the passes over the data that these are. */
export function lengthOf(
  config: { steps?: number | undefined; epochs?: number | undefined },
  count: number,
  perStep: number,
  of = "",
): { steps: number; told: string } {
  const steps = config.steps ?? Math.max(1, Math.ceil(((config.epochs ?? 1) * count) / perStep));
  const epochs = ((steps * perStep) / count).toFixed(1);
  return { steps, told: `${steps} ${steps === 1 ? "step" : "steps"} of ${perStep}${of} (${epochs} epochs)` };
}

/** Says when `count`, what is measured between steps, is nothing, or is what is trained on. */
export function tellHeldOut(
  { train, validation = [] }: { train: readonly string[]; validation?: readonly string[] | undefined },
  count: number,
): void {
  if (count === 0)
    console.error(
      validation.length > 0
        ? `no validation: nothing in ${validation.join(", ")} can be used`
        : "no validation: nothing is held out (see data.validation and data.validationShare)",
    );
  const trained = new Set(train.map((path) => resolve(path)));
  const both = validation.filter((path) => trained.has(resolve(path)));
  if (both.length > 0)
    console.error(
      `warning: ${both.join(", ")} is under data.train and under data.validation: validation measures what was trained on.`,
    );
}

/** Several processes, under mpirun (docs/parallel.md). */
export const parallelSchema = z.strictObject({
  /** Replicas that train on different rows; all processes that tensor and pipeline leave when not given. */
  data: natural.optional(),
  /** Processes that share each layer. */
  tensor: natural.default(1),
  /** Sequence parallelism: these share out norms and residuals too, token by token. */
  sequence: z.boolean().default(false),
  /** Processes that have different layers. */
  pipeline: natural.default(1),
  /** When micro-batches (gradientAccumulation) go through a pipeline: as soon as they can, or all forward first. */
  schedule: z.enum(["1f1b", "gpipe"]).default("1f1b"),
  /** ZeRO stage: what the replicas share out (1: optimizer state, 2: gradients too, 3: parameters too). */
  zero: z.union([z.literal(0), z.literal(1), z.literal(2), z.literal(3)]).default(0),
  /** Where the optimizer's state, and with zero 3 the parameters, lie between uses. */
  offload: z.enum(["none", "disk"]).default("none"),
  /** Every so many steps the replicas are compared, bit by bit; 0: never. */
  checkEvery: count.default(100),
});
export type ParallelSettings = z.output<typeof parallelSchema>;

/** Spread into the schema of a stage. */
export const trainingSettings = {
  seed: count.default(1),
  precision: z.enum(["bf16", "fp32"]).default("bf16"),
  /** 0: all cores. */
  threads: count.default(0),
  steps: natural.optional(),
  epochs: z.number().positive().optional(),
  gradientAccumulation: natural.default(1),
  optimizer: optimizerSchema.prefault({}),
  schedule: scheduleSchema.prefault({}),
  logEvery: natural.default(10),
  /** 0: only at the end. */
  evalEvery: count.default(100),
  /** 0: only at the end. */
  saveEvery: count.default(500),
  keepCheckpoints: natural.default(2),
  /** Layers are computed again in the backward pass, and only their inputs are kept (Chen et al. 2016). */
  recompute: z.boolean().default(false),
  parallel: parallelSchema.prefault({}),
};

/** Of prefer, ppo and grpo: a model answers prompts, and a judge scores the replies. */
export const replySettings = {
  /** The SFT model; in ppo and grpo actor and reference. */
  from: z.string().min(1),
  /** A reward model's folder, or a .mjs module whose default export is (prompt, reply) => number. */
  reward: z.string().min(1),
  prompts: pathsSchema,
  maxPromptLength: natural.default(128),
  maxTokens: natural.default(64),
  temperature: z.number().positive().default(1),
};

const { epochs: _, gradientAccumulation: __, ...ofTraining } = trainingSettings;
/** Of ppo and grpo, which learn from them. */
export const rolloutSettings = {
  ...ofTraining,
  ...replySettings,
  /** Samples are shown every so many steps, with their scores. */
  evalEvery: count.default(10),
  /** A rollout takes long, and what scores it may fail. */
  saveEvery: count.default(10),
  /** Rollouts, each with its updates. */
  steps: natural.default(100),
  clipRange: z.number().positive().default(0.2),
  lora: loraSchema.optional(),
  samples: z.strictObject({ count: count.default(3) }).prefault({}),
};

export type OptimizerSettings = z.output<typeof optimizerSchema>;
export type ScheduleSettings = z.output<typeof scheduleSchema>;
