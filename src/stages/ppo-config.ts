/** The settings of PPO, with the usual defaults (Ouyang et al. 2022; TRL's last PPO). */
import { z } from "zod";
import {
  averageOfAll,
  batchSizeSchema,
  optimizerSchema,
  rateFalls,
  rolloutSettings,
  scheduleSchema,
} from "../run/settings.js";
import { pretrainMixSchema } from "./mix.js";

const natural = z.int().min(1);

export const ppoSchema = z
  .strictObject({
    stage: z.literal("ppo").optional(),
    ...rolloutSettings,
    /** Where the critic starts; default: the reward model, and with a module the SFT model. */
    critic: z.string().optional(),
    /** The critic's head starts at zero instead of as the reward model's. */
    criticHeadZero: z.boolean().default(false),
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
  })
  .refine(...averageOfAll)
  .refine(...rateFalls)
  .refine((c) => rateFalls[0]({ optimizer: c.criticOptimizer, schedule: c.criticSchedule }), {
    path: ["criticSchedule", "minLearningRate"],
    message: "at most criticOptimizer.learningRate",
  });
export type PpoConfig = z.output<typeof ppoSchema>;
