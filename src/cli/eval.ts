/** `lyceum eval MODEL_DIR... --tasks FILE`: models side by side on the same tasks. */
import { UserError } from "../run/errors.js";
import { evaluateOnTasks, modelNames } from "../stages/eval/evaluation.js";
import { describeTasks } from "../stages/eval/table.js";

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
      temperature: atLeast("temperature", flags.temperature, 0),
      seed: whole("seed", flags.seed, 0),
      ...(flags.context !== undefined && { context: whole("context", flags.context, 2) }),
      samples: whole("samples", flags.samples, 0),
      ...(precision && { precision }),
      threads: whole("threads", flags.threads, 0),
    },
    (line) => console.error(line),
  );
  console.log(flags.json ? JSON.stringify(evaluation) : describeTasks(evaluation, modelNames(models)));
}

function atLeast(flag: string, text: string, low: number): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value) || value < low)
    throw new UserError(`--${flag} is "${text}"; it must be a number from ${low} up.`, 2);
  return value;
}
function whole(flag: string, text: string, low: number): number {
  if (!/^\d+$/.test(text)) throw new UserError(`--${flag} is "${text}"; it must be a whole number from ${low} up.`, 2);
  return atLeast(flag, text, low);
}
