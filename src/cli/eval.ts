/** `lyceum eval MODEL_DIR... --tasks FILE`: models side by side on the same tasks. */
import { evaluateOnTasks, modelNames } from "../stages/eval/evaluation.js";
import { describeTasks } from "../stages/eval/table.js";
import { number, precision, whole } from "./flags.js";

export interface EvalFlags {
  tasks: string[];
  reward?: string;
  against?: string;
  maxTokens: string;
  batchSize: string;
  temperature: string;
  seed: string;
  context?: string;
  samples: string;
  precision?: string;
  threads: string;
  json?: boolean;
}

export async function command(models: string[], flags: EvalFlags): Promise<void> {
  const evaluation = await evaluateOnTasks(
    {
      models,
      tasks: flags.tasks,
      reward: flags.reward,
      against: flags.against,
      maxTokens: whole("--max-tokens", flags.maxTokens, 1),
      batchSize: whole("--batch-size", flags.batchSize, 1),
      temperature: number("--temperature", flags.temperature, 0),
      seed: whole("--seed", flags.seed, 0, Number.MAX_SAFE_INTEGER),
      ...(flags.context !== undefined && { context: whole("--context", flags.context, 2) }),
      samples: whole("--samples", flags.samples, 0),
      ...(flags.precision !== undefined && { precision: precision(flags.precision) }),
      threads: whole("--threads", flags.threads, 0),
    },
    (line) => console.error(line),
  );
  console.log(flags.json ? JSON.stringify(evaluation) : describeTasks(evaluation, modelNames(models)));
}
