/** A stage from code: its settings are those of its YAML file, checked in the same way, and what it leaves is in its folder. */
import type { z } from "zod";
import { check } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { RunFolder } from "../run/folder.js";
import type { MetricValues } from "../run/metrics.js";
import type { dpoSchema } from "./dpo.js";
import type { evaluateSchema } from "./evaluate.js";
import type { grpoSchema } from "./grpo.js";
import type { ppoSchema } from "./ppo-config.js";
import type { preferSchema } from "./prefer.js";
import type { pretrainSchema } from "./pretrain.js";
import { STAGES } from "./registry.js";
import type { rewardSchema } from "./reward.js";
import type { sftSchema } from "./sft.js";

/** What each stage can be told: docs/configuration.md. */
export interface StageSettings {
  pretrain: z.input<typeof pretrainSchema>;
  sft: z.input<typeof sftSchema>;
  reward: z.input<typeof rewardSchema>;
  prefer: z.input<typeof preferSchema>;
  ppo: z.input<typeof ppoSchema>;
  grpo: z.input<typeof grpoSchema>;
  dpo: z.input<typeof dpoSchema>;
  evaluate: z.input<typeof evaluateSchema>;
}

export interface StageOptions {
  /** The run's folder. */
  out: string;
  /** Goes on from its last checkpoint, where there is one. */
  resume?: boolean;
  /** When it is aborted, the run is saved after the step at hand, and ends with a UserError of exit code 130. */
  signal?: AbortSignal;
  /** Told after every step, with what metrics.jsonl has of it. */
  onStep?: (step: number, metrics: MetricValues) => void;
}

/** Runs a stage, and returns its folder. Throws UserError for settings that are wrong, and whatever ends the run. */
export async function train<S extends keyof StageSettings>(
  stage: S,
  settings: StageSettings[S],
  { out, resume, signal, onStep }: StageOptions,
): Promise<string> {
  if (!Object.hasOwn(STAGES, stage))
    throw new UserError(`There is no stage "${stage}"; known are ${Object.keys(STAGES).join(", ")}.`, 2);
  const { schema, run } = STAGES[stage];
  const config = check(schema, { file: `settings of ${stage}`, value: settings, place: () => "" }) as object;
  const { keepCheckpoints = 1 } = config as { keepCheckpoints?: number };
  const folder = RunFolder.open(out, { stage, ...config }, { resume, keepCheckpoints });
  folder.signal = signal;
  folder.onStep = onStep;
  try {
    await folder.mustGoOn();
    await run(config as never, folder);
  } finally {
    folder.close();
  }
  return out;
}
