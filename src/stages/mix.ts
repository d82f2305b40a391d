/**
 * Pretraining text mixed into a later stage, so that what was learned from it is not forgotten: in fine-tuning, and in
 * PPO, where InstructGPT calls it PPO-ptx (Ouyang et al. 2022, section 3.5 and equation 2).
 */
import { z } from "zod";
import { type Rejected, readDocuments } from "../corpus/read.js";
import { shuffled } from "../corpus/shards.js";
import { UserError } from "../run/errors.js";
import { pathsSchema } from "../run/settings.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

export const pretrainMixSchema = z.strictObject({
  train: pathsSchema,
  /** Rows of pretraining text beside each micro-batch. */
  batchSize: z.int().min(1).default(4),
  /** Their mean loss is added with this weight. */
  weight: z.number().positive().default(1),
});

/** Documents, cut to the context's length: row(index) in an endless shuffled order. */
export async function pretrainingRows(
  files: readonly string[],
  tokenizer: Tokenizer,
  contextLength: number,
  seed: number,
  rejected: Rejected[],
): Promise<(index: number) => Uint32Array> {
  const documents: Uint32Array[] = [];
  for await (const { text } of readDocuments(files, rejected, "pretrainMix.train"))
    documents.push(tokenizer.encode(text, { allowSpecial: false }).slice(0, contextLength));
  const usable = documents.filter((d) => d.length > 1);
  if (usable.length === 0) throw new UserError(`${files.join(", ")}: there is no text to mix in.`);
  return (index) => usable[shuffled(index % usable.length, usable.length, seed + 2, Math.floor(index / usable.length))];
}
