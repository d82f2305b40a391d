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
  run(config: never, folder: RunFolder): Promise<void>;
}

export const STAGES: Record<string, Stage> = {
  pretrain: { schema: pretrainSchema, run: pretrain },
  sft: { schema: sftSchema, run: sft },
  reward: { schema: rewardSchema, run: reward },
  prefer: { schema: preferSchema, run: prefer },
  ppo: { schema: ppoSchema, run: ppo },
  grpo: { schema: grpoSchema, run: grpo },
  dpo: { schema: dpoSchema, run: dpo },
  evaluate: { schema: evaluateSchema, run: evaluate },
};
