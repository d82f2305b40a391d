/** How probable given texts are under a model: the tokens of a text, scored in batches that fit any memory. */
import type { EncodedReply } from "../../dialogue/preference.js";
import type { Llama } from "../../nn/llama.js";
import { NonFiniteError, UserError } from "../../run/errors.js";
import type { Tokenizer } from "../../tokenizer/tokenizer.js";
import { type PerToken, replyLogProbs } from "../rollout.js";

/** A token sequence whose tokens from `start` (1 or more) on are scored, and where it came from, for messages. */
export interface Scored extends EncodedReply {
  at: string;
}

/** Tokens of one forward pass: enough to keep the engine busy, few enough that activations stay small. */
const TOKENS = 4096;

/**
 * log p (nats) of the tokens ids[start ..] of each sequence, each given all tokens before it. Throws UserError when a
 * sequence is longer than the model's context or holds a token that the model does not know.
 */
export function logLikelihoods(model: Llama, sequences: readonly Scored[]): PerToken {
  const { maxPositionEmbeddings: context, vocabSize } = model.config;
  for (const { ids, at } of sequences) {
    if (ids.length > context)
      throw new UserError(`${at}: its ${ids.length} tokens are more than the model's context of ${context}.`);
    const unknown = ids.find((id) => id >= vocabSize);
    if (unknown !== undefined)
      throw new UserError(
        `${at}: token ${unknown} is beyond the model's vocabulary of ${vocabSize}: is the tokenizer the model's own?`,
      );
  }
  // Rows of like length together: the batch size follows from the longest.
  const order = sequences.map((_, i) => i).sort((a, b) => sequences[a].ids.length - sequences[b].ids.length);
  const found: PerToken = [];
  for (let i = 0; i < order.length; ) {
    let end = i;
    for (let tokens = 0; end < order.length; end++) {
      tokens += sequences[order[end]].ids.length;
      if (end > i && tokens > TOKENS) break;
    }
    const rows = order.slice(i, end);
    const logProbs = replyLogProbs(
      model,
      rows.map((row) => sequences[row]),
      1,
      rows.length,
    );
    logProbs.forEach((logp, r) => {
      if (!logp.every(Number.isFinite)) throw new NonFiniteError(`${sequences[rows[r]].at}: a log-probability`);
      found[rows[r]] = logp;
    });
    i = end;
  }
  return found;
}

/**
 * What stands before the first token of a text, as in training: the bos token; where there is none, the token that
 * separates documents. A chat model's eos is the end of a turn, so that the usual name of the separator goes before it.
 */
export function startToken(tokenizer: Tokenizer, dir: string): number {
  const start = tokenizer.bosId ?? tokenizer.tokenToId("<|endoftext|>") ?? tokenizer.separatorId;
  if (start === undefined)
    throw new UserError(
      `${dir}: the tokenizer names neither bos_token nor eos_token, so that nothing can stand before the first token of a text. Name one in tokenizer_config.json.`,
    );
  return start;
}
