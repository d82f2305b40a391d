/** `lyceum instruct SEEDS --teacher T --out FILE`: grows instruction records, one by one, so that nothing is lost when it ends. */
import type { Rejected } from "../corpus/read.js";
import { type InstructReport, instruct, readSeeds } from "../dialogue/instruct.js";
import { INSTRUCTGPT } from "../dialogue/mixture.js";
import { openTeacher } from "../dialogue/teacher.js";
import { UserError } from "../run/errors.js";
import { openProgress } from "../run/progress.js";
import { number, whole } from "./flags.js";

export interface InstructFlags {
  teacher: string;
  out: string;
  model?: string;
  count: string;
  resume?: boolean;
  seed: string;
  tasks: string;
  examples: string;
  batchSize: string;
  similarity: string;
  temperature: string;
  maxTokens: string;
  perMinute: string;
  timeout: string;
  json?: boolean;
}

export async function command(seedFile: string, flags: InstructFlags): Promise<void> {
  const { out } = flags;
  const seed = whole("--seed", flags.seed, 0, Number.MAX_SAFE_INTEGER);
  const options = {
    count: whole("--count", flags.count, 1),
    out,
    ...(flags.resume && { resume: true }),
    seed,
    tasksPerPrompt: whole("--tasks", flags.tasks, 1),
    examples: whole("--examples", flags.examples, 1),
    batchSize: whole("--batch-size", flags.batchSize, 1),
    similarity: number("--similarity", flags.similarity, 0, 1),
  };
  const progress = openProgress();
  const asking = {
    ...(flags.model && { model: flags.model }),
    temperature: number("--temperature", flags.temperature, 0),
    maxTokens: whole("--max-tokens", flags.maxTokens, 1),
    seed,
    perMinute: number("--per-minute", flags.perMinute, 0.001),
    timeout: number("--timeout", flags.timeout, 0.001),
    retries: 5,
    note: progress.note,
  };
  if (flags.model && !/^https?:/.test(flags.teacher))
    throw new UserError(
      `--model ${flags.model} is the name that a service has for its model; --teacher ${flags.teacher} is a folder: leave --model out.`,
      2,
    );
  const rejected: Rejected[] = [];
  const seeds = await readSeeds(seedFile, rejected);
  for (const r of rejected) progress.note(`set aside: ${r.file}:${r.line}: ${r.reason}`);
  const teacher = openTeacher(flags.teacher, asking);
  try {
    const report = await instruct(teacher, {
      ...options,
      seeds,
      onRound: ({ kept, rounds }) => progress.status(`round ${rounds}: ${kept} of ${options.count} tasks`, true),
    });
    if (flags.json) console.log(JSON.stringify(report));
    else print(report, out);
  } finally {
    progress.end();
    teacher.close();
  }
}

function print({ kept, rounds, rejected, types }: InstructReport, out: string): void {
  console.error(`${kept} tasks after ${rounds} rounds`);
  for (const { type, kept: n, wanted } of types)
    console.error(
      `  ${type.padEnd(16)} ${String(n).padStart(6)} of ${String(wanted).padEnd(6)} (InstructGPT ${INSTRUCTGPT[type].share}%)`,
    );
  const reasons = Object.entries(rejected);
  if (reasons.length > 0) console.error("set aside:");
  for (const [reason, n] of reasons) console.error(`  ${String(n).padStart(6)}  ${reason}`);
  console.log(out);
}
