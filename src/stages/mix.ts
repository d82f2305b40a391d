/**
 * Pretraining text mixed into a later stage, so that what was learned from it is not forgotten: in fine-tuning, and in
 * PPO, where InstructGPT calls it PPO-ptx (Ouyang et al. 2022, section 3.5 and equation 2).
 */
import { z } from "zod";
import { firstReason, type Rejected, readDocuments } from "../corpus/read.js";
import { UserError } from "../run/errors.js";
import { visited } from "../run/order.js";
import { batchSizeSchema, pathsSchema } from "../run/settings.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

export const pretrainMixSchema = z.strictObject({
  train: pathsSchema,
  /** Rows of pretraining text beside each micro-batch. */
  batchSize: batchSizeSchema.default(4),
  /** Their mean loss is added with this weight. */
  weight: z.number().positive().default(1),
});

/**
 * Documents as rows of `contextLength` tokens at most: row(index) in an endless shuffled order. A longer document is several rows, of
 * which each begins with the last token of the one before, so that every token is a target once. As in pretraining,
 * `separator` stands before each and closes it.
 */
export async function pretrainingRows(
  files: readonly string[],
  tokenizer: Tokenizer,
  separator: number | undefined,
  contextLength: number,
  seed: number,
  rejected: Rejected[],
): Promise<(index: number) => Uint32Array> {
  const rows: Uint32Array[] = [];
  const before = rejected.length;
  for await (const { text } of readDocuments(files, rejected, "pretrainMix.train")) {
    const ids = tokenizer.encode(text, { allowSpecial: false });
    const document = separator === undefined ? ids : new Uint32Array(ids.length + 2).fill(separator);
    if (separator !== undefined) document.set(ids, 1);
    for (let from = 0; from + 1 < document.length; from += contextLength - 1)
      rows.push(document.slice(from, from + contextLength));
  }
  if (rows.length === 0)
    throw new UserError(`${files.join(", ")}: there is no text to mix in.${firstReason(rejected, before)}`);
  return (index) => rows[visited(index, rows.length, seed + 2)];
}
