/** `lyceum generate MODEL`: continues prompts. */
import { type GenerateOptions, generate } from "../generate/generate.js";
import { loadForGeneration } from "../generate/loaded.js";
import { UserError } from "../run/errors.js";
import { number, precision, whole } from "./flags.js";

export interface SamplingFlags {
  maxTokens: string;
  temperature?: string;
  topK: string;
  topP: string;
  minP: string;
  repetitionPenalty: string;
  seed: string;
  greedy?: boolean;
  precision?: string;
  threads: string;
  int8?: boolean;
}

/** The sampling options of generate and chat. */
export function samplingOf(flags: SamplingFlags): GenerateOptions {
  const temperature = number("--temperature", flags.temperature ?? (flags.greedy ? "0" : "0.8"), 0);
  if (flags.greedy && temperature > 0)
    throw new UserError(`--greedy has no temperature, and --temperature is ${flags.temperature}: leave one out.`, 2);
  return {
    maxTokens: whole("--max-tokens", flags.maxTokens, 1),
    temperature,
    topK: whole("--top-k", flags.topK, 0),
    topP: number("--top-p", flags.topP, 0, 1),
    minP: number("--min-p", flags.minP, 0, 1),
    repetitionPenalty: number("--repetition-penalty", flags.repetitionPenalty, 1e-6),
    seed: whole("--seed", flags.seed, 0, Number.MAX_SAFE_INTEGER),
  };
}

/** `packed`: for many replies, one after the other. */
export function openModel(dir: string, flags: SamplingFlags, packed = false) {
  const kind = flags.precision === undefined ? {} : { precision: precision(flags.precision) };
  const threads = whole("--threads", flags.threads, 0);
  const weights = flags.int8 ? "int8" : packed ? "packed" : undefined;
  return loadForGeneration(dir, { ...kind, threads, ...(weights && { weights }) });
}

export function command(dir: string, flags: SamplingFlags & { prompt: string[]; json?: boolean }): void {
  const options = samplingOf(flags);
  const { model, tokenizer, stop, weights } = openModel(dir, flags);
  const prompts = flags.prompt.map((p) => Array.from(tokenizer.encode(p, { addSpecialTokens: true })));
  prompts.forEach((ids, i) => {
    if (ids.length > 0) return;
    const start = tokenizer.bosId ?? tokenizer.separatorId;
    if (start === undefined)
      throw new UserError(`--prompt ${i + 1} is empty, and the tokenizer has no token to begin with.`, 2);
    ids.push(start);
  });
  // One prompt on a terminal is shown as it comes.
  const streaming = !flags.json && prompts.length === 1;
  const decoder = tokenizer.stream({ continues: true });
  let shown = false; // not before it is known that it can be continued
  const onToken = (_: number, id: number): undefined => {
    if (!shown) process.stdout.write(flags.prompt[0]);
    shown = true;
    process.stdout.write(stop.includes(id) ? "" : decoder.push(id));
  };
  const replies = generate(model, prompts, {
    ...options,
    stop,
    ...(weights && { weights }),
    ...(streaming && { onToken }),
  });
  if (streaming) {
    process.stdout.write(`${decoder.end()}\n`);
    return;
  }
  const results = replies.map(({ ids, logProbs, finish }, i) => ({
    prompt: flags.prompt[i],
    text: tokenizer.decode(ids, { skipSpecialTokens: true, continues: true }),
    ids,
    logProbs,
    finish,
  }));
  if (flags.json) console.log(JSON.stringify(results.length === 1 ? results[0] : results));
  else for (const r of results) console.log(`${r.prompt}${r.text}\n`);
}
