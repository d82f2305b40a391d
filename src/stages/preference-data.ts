/** What the reward model, DPO and KTO learn from: preferences as tokens, split into training and validation. */
import { z } from "zod";
import { firstReason, type Rejected } from "../corpus/read.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { type EncodedReply, encodePreference, readPreferences } from "../dialogue/preference.js";
import { UserError } from "../run/errors.js";
import { isValidation } from "../run/order.js";
import { pathsSchema, tellHeldOut } from "../run/settings.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

export const preferenceData = z.strictObject({
  train: pathsSchema,
  validation: pathsSchema.optional(),
  validationShare: z.number().min(0).lt(1).default(0.1),
  contextLength: z.int().min(2).default(256),
});

export async function encodedPreferences(
  data: z.output<typeof preferenceData>,
  tokenizer: Tokenizer,
  /** Positions that the model was made for. */
  context: number,
  /** Single replies with a label too, as KTO learns from them. */
  single = false,
): Promise<{ train: EncodedReply[][]; validation: EncodedReply[][]; rejected: Rejected[] }> {
  if (data.contextLength > context)
    throw new UserError(
      `data.contextLength is ${data.contextLength}, but the model was made for ${context} positions.`,
      2,
    );
  const encoder = new DialogueEncoder(tokenizer);
  const rejected: Rejected[] = [];
  const encode = async (files: readonly string[]) =>
    (await readPreferences(files, rejected, single)).flatMap((p) => {
      const replies = encodePreference(encoder, p, data.contextLength);
      if (typeof replies !== "string") return [{ key: JSON.stringify(p.prompt), replies, good: p.good }];
      rejected.push({ ...p.source, reason: replies });
      return [];
    });
  const all = await encode(data.train);
  // By the prompt: wherever the file lies the same ones are held out, and no prompt is on both sides.
  const held = (key: string): boolean => !data.validation && isValidation(key, data.validationShare);
  const train = paired(all.filter((r) => !held(r.key)));
  if (all.length > 0 && train.length === 0)
    throw new UserError(
      `${data.train.join(", ")}: all ${all.length} preferences are held out for validation, and none is left to train on. Give more, or set data.validationShare to 0.`,
    );
  if (train.length === 0)
    throw new UserError(`${data.train.join(", ")}: no preference is left to train on.${firstReason(rejected)}`);
  const validation = data.validation ? await encode(data.validation) : all.filter((r) => held(r.key));
  const measured = paired(validation, true);
  tellHeldOut(data, measured.length);
  return { train, validation: measured, rejected };
}

/**
 * Rankings as they are; of single replies each good one with a bad one, whatever they answer: KTO looks at each alone. Of the kind that is
 * rarer some are taken again, so that both weigh the same (the paper's lambda_D n_D = lambda_U n_U).
 */
function paired(
  records: readonly { replies: EncodedReply[]; good: boolean | undefined }[],
  /** Those held out may lack a kind: then single replies are not measured. */
  isHeldOut = false,
): EncodedReply[][] {
  const of = (good: boolean): EncodedReply[] =>
    records.filter((r) => r.good === good).map(({ replies: [reply] }) => reply);
  const [good, bad] = [of(true), of(false)];
  const hasBoth = good.length > 0 && bad.length > 0;
  if (!hasBoth && !isHeldOut && good.length + bad.length > 0)
    throw new UserError(
      `All ${good.length + bad.length} single replies to train on are ${bad.length === 0 ? "good" : "bad"} ones: loss: kto needs both kinds.`,
    );
  const pairs = Array.from({ length: hasBoth ? Math.max(good.length, bad.length) : 0 }, (_, i) => [
    good[i % good.length],
    bad[i % bad.length],
  ]);
  return [...records.filter((r) => r.good === undefined).map((r) => r.replies), ...pairs];
}
