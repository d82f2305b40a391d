/** `lyceum score RM_DIR --file PREFS.jsonl`: what a reward model gives to replies. */
import type { Rejected } from "../corpus/read.js";
import { openCpu } from "../device/cpu.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { encodePreference, readPreferences } from "../dialogue/preference.js";
import { readLlamaConfig } from "../nn/config.js";
import { hasScalarHead, loadLlama } from "../nn/folder.js";
import { UserError } from "../run/errors.js";
import { scoreSequences } from "../stages/reward.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { precision } from "./flags.js";

export async function command(dir: string, flags: { file: string; precision: string; json?: boolean }): Promise<void> {
  const kind = precision(flags.precision);
  readLlamaConfig(dir);
  if (!hasScalarHead(dir)) throw new UserError(`${dir} is not a reward model: there is no score.weight in it.`);
  const model = loadLlama(openCpu(), dir, kind, { head: "scalar", trainable: false });
  const encoder = new DialogueEncoder(Tokenizer.load(dir));
  const rejected: Rejected[] = [];
  const records = (await readPreferences([flags.file], rejected)).flatMap((p) => {
    const replies = encodePreference(encoder, p, model.config.maxPositionEmbeddings);
    if (typeof replies !== "string") return [{ source: p.source, replies }];
    rejected.push({ ...p.source, reason: replies });
    return [];
  });
  const scores = scoreSequences(
    model,
    records.flatMap((r) => r.replies.map((e) => e.ids)),
  );
  let next = 0;
  const results = records.map(({ source, replies }) => ({ ...source, rewards: replies.map(() => scores[next++]) }));
  for (const r of rejected) console.error(`set aside: ${r.file}:${r.line}: ${r.reason}`);
  if (flags.json) console.log(JSON.stringify(results.map(({ line, rewards }) => ({ line, rewards }))));
  else
    for (const { file, line, rewards } of results)
      console.log(`${file}:${line}\t${rewards.map((r) => r.toFixed(4)).join("\t")}`);
}
