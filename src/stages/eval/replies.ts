/** Replies of a model to prompts: a chat model is asked through its template, a base model continues the text. */
import { DialogueEncoder } from "../../dialogue/mask.js";
import { type Message, RecordError } from "../../dialogue/templates.js";
import { generate } from "../../generate/generate.js";
import type { Loaded } from "../../generate/loaded.js";
import { UserError } from "../../run/errors.js";
import type { Source } from "./tasks.js";

export interface Asked {
  messages: Message[];
  source: Source;
}
export interface Reply {
  text: string;
  /** Without the token that ended it. */
  tokens: number;
  /** Whether the model ended it, and not the limit. */
  finished: boolean;
}
export interface ReplyOptions {
  maxTokens: number;
  batchSize: number;
  /** 0, the default: greedy. */
  temperature?: number;
  seed?: number;
}

/** What `encode` gives. Throws UserError with the record when the chat template refuses it. */
export function atRecord<T>({ file, line }: Source, encode: () => T): T {
  try {
    return encode();
  } catch (error) {
    throw error instanceof RecordError ? new UserError(`${file}:${line}: ${error.message}`) : error;
  }
}

/** Throws UserError with the record when a prompt leaves no room in the context, or is refused by the chat template. */
export function replyTo(
  { model, tokenizer, stop }: Loaded,
  asked: readonly Asked[],
  { maxTokens, batchSize, temperature = 0, seed = 0 }: ReplyOptions,
): Reply[] {
  const encoder = tokenizer.chatTemplate === undefined ? undefined : new DialogueEncoder(tokenizer);
  const context = model.config.maxPositionEmbeddings;
  const prompts = asked.map(({ messages, source }) => {
    const ids =
      (encoder && atRecord(source, () => encoder.prompt(messages))) ??
      tokenizer.encode(plainText(messages), { allowSpecial: false, addSpecialTokens: true });
    if (ids.length >= context)
      throw new UserError(
        `${source.file}:${source.line}: the prompt of ${ids.length} tokens leaves no room for a reply in the model's context of ${context}.`,
      );
    return ids;
  });
  const replies: Reply[] = [];
  for (let i = 0; i < prompts.length; i += batchSize)
    // What is drawn depends on the seed and the prompt's number, not on how many are asked at once.
    for (const { ids, finish } of generate(model, prompts.slice(i, i + batchSize), {
      maxTokens,
      temperature,
      stop,
      seed,
      firstRow: i,
    }))
      replies.push({
        text: withoutThought(tokenizer.decode(ids, { skipSpecialTokens: true })).trim(),
        tokens: ids.length - (finish === "stop" ? 1 : 0),
        finished: finish === "stop",
      });
  return replies;
}

const THOUGHT_ENDS = "</think>";
/** What a model says, without what it thought before (Qwen3, DeepSeek-R1, whose template begins the thought): that is not its answer. */
export function withoutThought(text: string): string {
  const end = text.indexOf(THOUGHT_ENDS);
  if (end >= 0) return text.slice(end + THOUGHT_ENDS.length);
  return text.trimStart().startsWith("<think>") ? "" : text; // it did not come to an end
}

/** A conversation for a model that knows no turns. */
export const plainText = (messages: readonly Message[]): string =>
  messages.map((m) => [m.content, m.input].filter(Boolean).join("\n")).join("\n");
