/** `lyceum eval MODEL_DIR... --tasks FILE`: models side by side on the same tasks. */
import { UserError } from "../run/errors.js";
import { evaluateOnTasks, modelNames } from "../stages/eval/evaluation.js";
import { describeTasks } from "../stages/eval/table.js";
import { number, whole } from "./generate.js";

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
  const { precision } = flags;
  if (precision !== undefined && precision !== "fp32" && precision !== "bf16")
    throw new UserError(`--precision is "${precision}"; it must be fp32 or bf16.`, 2);
  const evaluation = await evaluateOnTasks(
    {
      models,
      tasks: flags.tasks,
      reward: flags.reward,
      against: flags.against,
      maxTokens: whole("max-tokens", flags.maxTokens, 1),
      batchSize: whole("batch-size", flags.batchSize, 1),
      temperature: number("temperature", flags.temperature, 0),
      seed: whole("seed", flags.seed, 0, Number.MAX_SAFE_INTEGER),
      ...(flags.context !== undefined && { context: whole("context", flags.context, 2) }),
      samples: whole("samples", flags.samples, 0),
      ...(precision && { precision }),
      threads: whole("threads", flags.threads, 0),
    },
    (line) => console.error(line),
  );
  console.log(flags.json ? JSON.stringify(evaluation) : describeTasks(evaluation, modelNames(models)));
}
