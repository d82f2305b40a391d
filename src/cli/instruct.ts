/** `lyceum instruct SEEDS --teacher T --out FILE`: grows instruction records, one by one, so that nothing is lost when it ends. */
import { appendFileSync, existsSync, readFileSync, truncateSync } from "node:fs";
import { type Grown, grow, readTasks } from "../dialogue/instruct.js";
import { INSTRUCTGPT } from "../dialogue/mixture.js";
import { openTeacher } from "../dialogue/teacher.js";
import { UserError } from "../run/errors.js";
import { openProgress } from "../run/progress.js";

export interface InstructFlags {
  teacher: string;
  out: string;
  model?: string;
  count: string;
  resume?: boolean;
  seed: string;
  temperature: string;
  maxTokens: string;
  perMinute: string;
  timeout: string;
  json?: boolean;
}

export async function command(seedFile: string, flags: InstructFlags): Promise<void> {
  const number = (flag: string, text: string, least: number): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < least)
      throw new UserError(`--${flag} is "${text}"; it must be a number from ${least} up.`, 2);
    return value;
  };
  const count = number("count", flags.count, 1);
  const seeds = readTasks(seedFile);
  const { out } = flags;
  if (existsSync(out) && !flags.resume)
    throw new UserError(`${out} is there already. Add --resume to go on with it, or name another file with --out.`, 2);
  const before = flags.resume ? readGrown(out) : [];
  const teacher = openTeacher(flags.teacher, {
    ...(flags.model && { model: flags.model }),
    temperature: number("temperature", flags.temperature, 0),
    maxTokens: number("max-tokens", flags.maxTokens, 1),
    perMinute: number("per-minute", flags.perMinute, 1),
    timeout: number("timeout", flags.timeout, 0.001),
    retries: 5,
  });
  const progress = openProgress();
  const reasons = new Map<string, number>();
  const types = new Map<string, number>();
  const note = (map: Map<string, number>, key: string): Map<string, number> => map.set(key, (map.get(key) ?? 0) + 1);
  for (const t of before) note(types, t.type);
  let requests = 0;
  try {
    await grow(
      teacher,
      seeds,
      before,
      { count, seed: number("seed", flags.seed, 0) },
      {
        keep(task) {
          appendFileSync(out, `${JSON.stringify(task)}\n`);
          note(types, task.type);
        },
        refuse(refused) {
          appendFileSync(`${out}.rejected.jsonl`, `${JSON.stringify(refused)}\n`);
          note(reasons, refused.reason.replace(/too near to .*/, "too near to one that is there"));
        },
        progress(request, kept) {
          requests++;
          progress.status(`request ${request}: ${kept} of ${count} records`, requests % 10 === 0);
        },
      },
    );
  } finally {
    progress.end();
    teacher.close();
  }
  const kept = [...types.values()].reduce((a, b) => a + b, 0);
  const refused = Object.fromEntries([...reasons].sort((a, b) => b[1] - a[1]));
  if (flags.json) {
    console.log(JSON.stringify({ kept, requests, refused, types: Object.fromEntries(types) }));
    return;
  }
  console.log(`${kept} records in ${out}, by ${teacher.name} in ${requests} requests`);
  for (const [type, { share }] of Object.entries(INSTRUCTGPT)) {
    const n = types.get(type) ?? 0;
    console.log(
      `  ${type.padEnd(16)} ${String(n).padStart(6)}  ${((100 * n) / kept).toFixed(1).padStart(5)}% (InstructGPT ${share}%)`,
    );
  }
  if (reasons.size > 0) console.log(`not taken (${out}.rejected.jsonl):`);
  for (const [reason, n] of Object.entries(refused)) console.log(`  ${String(n).padStart(6)}  ${reason}`);
}

/** The records of an earlier run. A last line that was cut short when that run was killed goes. */
function readGrown(file: string): Grown[] {
  if (!existsSync(file)) return [];
  const text = readFileSync(file, "utf8");
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  if (whole.length < text.length) truncateSync(file, Buffer.byteLength(whole));
  return whole
    .split("\n")
    .filter((line) => line !== "")
    .map((line, i) => {
      try {
        const task = JSON.parse(line) as Grown;
        if (typeof task.instruction === "string" && Number.isInteger(task.request)) return task;
      } catch {}
      throw new UserError(`${file}:${i + 1} was not written by lyceum instruct, so it cannot be gone on with.`, 2);
    });
}
