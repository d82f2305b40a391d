/**
 * Scores of replies by a reward module, or by a reward model, which reads them as texts with its own tokenizer: unlike in
 * training, any model's replies can be judged, a base model's among them.
 */
import { existsSync } from "node:fs";
import { DialogueEncoder } from "../../dialogue/mask.js";
import { type Loaded, storedPrecision } from "../../generate/loaded.js";
import { readLlamaConfig } from "../../nn/config.js";
import { UserError } from "../../run/errors.js";
import { Tokenizer } from "../../tokenizer/tokenizer.js";
import { openJudge } from "../judge.js";
import type { Episode } from "../rollout.js";
import { type Asked, atRecord, type Reply } from "./replies.js";

export interface Scores {
  /** A finite number for each reply; higher is better. */
  scores: number[];
  /** Replies of which the reward model read the beginning only, since the rest is beyond its context. */
  cut: number;
}
export interface Scorer {
  name: string;
  score(asked: readonly Asked[], replies: readonly Pick<Reply, "text" | "finished">[]): Promise<Scores>;
  close(): void;
}

/** `source` as in openJudge. `beside`: a loaded model, whose engine a reward model shares. */
export async function openScorer(source: string, beside: Loaded): Promise<Scorer> {
  const isModel = !/\.[cm]?[jt]s$/.test(source) && existsSync(`${source}/config.json`);
  const tokenizer = isModel ? Tokenizer.load(source) : beside.tokenizer;
  const precision = isModel ? storedPrecision(source) : "fp32";
  // Its own reader: what is too long for it is cut below.
  const judge = await openJudge(source, beside.model.device, precision, { dir: source, tokenizer, longest: 0 });
  const encode = isModel ? replyEncoder(source, tokenizer) : () => ({ ids: new Int32Array(), start: 0, cut: false });
  return {
    name: source,
    close: () => judge.close(),
    async score(asked, replies) {
      let cut = 0;
      const episodes = asked.map(({ messages, source: from }, i): Episode => {
        const { text, finished } = replies[i];
        const { ids, start, cut: isCut } = encode({ messages, source: from }, text, finished);
        if (isCut) cut++;
        return { prompt: { messages, ids: ids.slice(0, start), source: from }, ids, start, text, finished };
      });
      return { scores: await judge.score(episodes), cut };
    },
  };
}

/** Prompt and reply as tokens of the reward model; a reply that was cut off has no end, as in PPO. */
function replyEncoder(dir: string, tokenizer: Tokenizer) {
  const encoder = new DialogueEncoder(tokenizer);
  const context = readLlamaConfig(dir).maxPositionEmbeddings;
  return (
    { messages, source }: Asked,
    text: string,
    finished: boolean,
  ): { ids: Int32Array; start: number; cut: boolean } => {
    const prompt = atRecord(source, () => encoder.prompt(messages));
    if (prompt.length >= context)
      throw new UserError(
        `${source.file}:${source.line}: the prompt of ${prompt.length} tokens leaves no room for a reply in the reward model's context of ${context}.`,
      );
    const end = finished && tokenizer.eosId !== undefined ? [tokenizer.eosId] : [];
    const opening = encoder.beforeReply(messages);
    // A space that the template writes (Llama 2's) was taken away where the reply was decoded.
    const reply = opening.trim() === "" ? opening + text : text;
    const said = tokenizer.encode(reply, { allowSpecial: false, before: tokenizer.endOf(prompt) });
    const ids = Int32Array.from([...prompt, ...said, ...end]);
    return { ids: ids.slice(0, context), start: prompt.length, cut: ids.length > context };
  };
}
