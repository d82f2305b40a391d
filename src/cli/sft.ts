/** `lyceum sft CONFIG.yaml`, and `--show-mask`: which tokens of the records are trained. */
import { dirname } from "node:path";
import { showMask } from "../dialogue/show.js";
import { check, overridden, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { readSamples, sftSchema, tunedTokenizer } from "../stages/sft.js";
import { checkFiles, locate, type StageFlags, command as stage } from "./stage.js";

export interface SftFlags extends StageFlags {
  fromBase?: string;
  showMask?: string | true;
}

export async function command(file: string, flags: SftFlags): Promise<void> {
  if (flags.fromBase && flags.set?.some((text) => /^from *=/.test(text)))
    throw new UserError("--from-base and --set from=... both name the base model: leave one out.", 2);
  const set = [...(flags.set ?? []), ...(flags.fromBase ? [`from=${JSON.stringify(flags.fromBase)}`] : [])];
  const typed = set.map((text, i) =>
    i < (flags.set?.length ?? 0) ? `--set ${text}` : `--from-base ${flags.fromBase}`,
  );
  if (flags.showMask !== undefined) return show(file, set, typed, flags.showMask === true ? "5" : flags.showMask);
  return stage("sft", file, { ...flags, set, typed });
}

async function show(file: string, set: string[], typed: string[], count: string): Promise<void> {
  if (!/^[1-9]\d*$/.test(count)) throw new UserError(`--show-mask is "${count}"; it must be a number of records.`, 2);
  const source = overridden(readYaml(file), set, typed);
  const config = check(sftSchema, { ...source, value: locate(source.value, dirname(file)) });
  checkFiles(config, source);
  const tokenizer = tunedTokenizer(config);
  const { records, rejected } = await readSamples(config, tokenizer);
  const colour = process.stdout.isTTY === true && !process.env.NO_COLOR;
  for (const { conversation, samples } of records.slice(0, Number(count)))
    for (const sample of samples) {
      const trained = sample.trainable.reduce((n, t) => n + t, 0);
      console.log(
        `--- ${conversation.source.file}:${conversation.source.line}  ${sample.ids.length} tokens, ${trained} trained`,
      );
      console.log(showMask(sample, tokenizer, colour));
    }
  for (const r of rejected) console.error(`set aside: ${r.file}:${r.line}: ${r.reason}`);
}
