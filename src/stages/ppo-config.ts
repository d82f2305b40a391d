/** The settings of PPO, with the usual defaults (Ouyang et al. 2022; TRL's last PPO). */
import { z } from "zod";
import {
  averageOfAll,
  batchSizeSchema,
  loraSchema,
  optimizerSchema,
  pathsSchema,
  rateFalls,
  scheduleSchema,
  trainingSettings,
} from "../run/settings.js";
import { pretrainMixSchema } from "./mix.js";

const natural = z.int().min(1);
const { epochs: _, gradientAccumulation: __, ...shared } = trainingSettings;

export const ppoSchema = z
  .strictObject({
    stage: z.literal("ppo").optional(),
    ...shared,
    /** Samples are shown every so many steps, with their scores. */
    evalEvery: z.int().min(0).default(10),
    /** A rollout takes long, and what scores it may fail. */
    saveEvery: z.int().min(0).default(10),
    /** Rollouts, each with its passes of updates. */
    steps: natural.default(100),
    /** The SFT model: actor and reference. */
    from: z.string().min(1),
    /** The reward model's folder; or a .mjs module whose default export is (prompt, reply) => number. */
    reward: z.string().min(1),
    /** Where the critic starts; default: the reward model, and with a module the SFT model. */
    critic: z.string().optional(),
    /** The critic's head starts at zero instead of as the reward model's. */
    criticHeadZero: z.boolean().default(false),
    prompts: pathsSchema,
    maxPromptLength: natural.default(128),
    maxTokens: natural.default(64),
    temperature: z.number().positive().default(1),
    /** Prompts of a rollout, and replies of a minibatch. */
    batchSize: batchSizeSchema.default(32),
    minibatchSize: natural.default(16),
    epochs: natural.default(4),
    criticOptimizer: optimizerSchema
      .refine((o) => o.ema === 0, { path: ["ema"], message: "0: the critic is not among the results" })
      .prefault({}),
    criticSchedule: scheduleSchema.prefault({}),
    gamma: z.number().min(0).max(1).default(1),
    lambda: z.number().min(0).max(1).default(0.95),
    clipRange: z.number().positive().default(0.2),
    clipRangeValue: z.number().positive().default(0.2),
    /** Ye et al. 2020: bound on the loss of a bad action that became much more likely; 0: off. */
    dualClip: z
      .number()
      .min(0)
      .refine((c) => c === 0 || c > 1, {
        message: "0, or more than 1: below, no bad action would ever become less likely",
      })
      .default(0),
    vfCoef: z.number().positive().default(0.1),
    entropyCoef: z.number().min(0).default(0),
    klCoef: z.number().min(0).default(0.05),
    /** k1 = log p - log p_ref; k3 = exp(-k1) - 1 + k1, never negative (Schulman 2020). */
    klEstimator: z.enum(["k1", "k3"]).default("k1"),
    /** Adaptive controller (Ziegler et al. 2019): klCoef is steered so that the KL of a reply comes near `target`. */
    klTarget: z.number().positive().optional(),
    klHorizon: z.number().positive().default(10000),
    /** An update pass ends when the policy has moved this far from the one that sampled; 0: off. */
    klLimit: z.number().min(0).default(0.2),
    /** Subtracted from the score of a reply that did not come to its end. */
    missingEosPenalty: z.number().min(0).default(1),
    /** `last`: the score belongs to the last token; `trl`: to the place after it, whose value is the one of the finished reply. */
    scorePosition: z.enum(["last", "trl"]).default("last"),
    whitenAdvantages: z.boolean().default(true),
    /** Divide rewards by their spread; their mean is kept. */
    whitenRewards: z.boolean().default(false),
    /** Scores are clipped to +- this; 0: off. */
    clipReward: z.number().min(0).default(0),
    /** PPO-ptx: pretraining text added to every update of the actor (Ouyang et al. 2022, equation 2; weight is their gamma). */
    pretrainMix: pretrainMixSchema.optional(),
    lora: loraSchema.optional(),
    samples: z.strictObject({ count: z.int().min(0).default(3) }).prefault({}),
  })
  .refine(...averageOfAll)
  .refine(...rateFalls)
  .refine((c) => rateFalls[0]({ optimizer: c.criticOptimizer, schedule: c.criticSchedule }), {
    path: ["criticSchedule", "minLearningRate"],
    message: "at most criticOptimizer.learningRate",
  });
export type PpoConfig = z.output<typeof ppoSchema>;
