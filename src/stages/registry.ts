/** The stages by the names that recipes and the command line use. */
import type { z } from "zod";
import type { RunFolder } from "../run/folder.js";
import { dpo, dpoSchema } from "./dpo.js";
import { evaluate, evaluateSchema } from "./evaluate.js";
import { grpo, grpoSchema } from "./grpo.js";
import { ppo } from "./ppo.js";
import { ppoSchema } from "./ppo-config.js";
import { prefer, preferSchema } from "./prefer.js";
import { pretrain, pretrainSchema } from "./pretrain.js";
import { reward, rewardSchema } from "./reward.js";
import { sft, sftSchema } from "./sft.js";

export interface Stage {
  schema: z.ZodType;
  /** `config`: what the schema has made of the settings. */
  run(config: unknown, folder: RunFolder): Promise<void>;
}
const stage = <S extends z.ZodType>(schema: S, run: (config: z.output<S>, folder: RunFolder) => Promise<void>) => ({
  schema,
  run: (config: unknown, folder: RunFolder) => run(config as z.output<S>, folder),
});

const stages = {
  pretrain: stage(pretrainSchema, pretrain),
  sft: stage(sftSchema, sft),
  reward: stage(rewardSchema, reward),
  prefer: stage(preferSchema, prefer),
  ppo: stage(ppoSchema, ppo),
  grpo: stage(grpoSchema, grpo),
  dpo: stage(dpoSchema, dpo),
  evaluate: stage(evaluateSchema, evaluate),
};
export const STAGES: Record<string, Stage> = stages;

/** What each stage can be told: docs/configuration.md. */
export type StageSettings = { [S in keyof typeof stages]: z.input<(typeof stages)[S]["schema"]> };
