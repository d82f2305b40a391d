/**
 * Preferences (notes 4.2.3): {prompt, chosen, rejected}, or {prompt, completions, ranking} with K replies, as texts or as
 * message lists. A pair is a ranking of two. KTO also learns from single replies, {prompt, completion, label}. A record that cannot teach
 * anything is set aside with its reason.
 */
import { firstReason, type Rejected } from "../corpus/read.js";
import { packSequences, type TokenBatch } from "../nn/llama.js";
import { UserError } from "../run/errors.js";
import { recordsOf } from "./jsonl.js";
import { type DialogueEncoder, replyStart, type Sample } from "./mask.js";
import { alpacaQuestion, checkTurns, messagesFrom, turnsOf, withSystem } from "./records.js";
import type { Message } from "./templates.js";

export interface Preference {
  prompt: Message[];
  /** Best first. */
  replies: string[];
  /** Of a single reply: whether it is a good one. */
  good?: boolean;
  source: { file: string; line: number };
}

type Json = Record<string, unknown>;

/** Every usable record of the files. `single`: replies that stand alone with a label, too. Throws UserError when a file is missing, or when no record is usable. */
export async function readPreferences(
  files: readonly string[],
  rejected: Rejected[],
  single = false,
): Promise<Preference[]> {
  const found: Preference[] = [];
  const before = rejected.length;
  for await (const { file, line, value, error } of recordsOf(files, "preferences")) {
    const result = error ?? toPreference(value, single);
    if (typeof result === "string") rejected.push({ file, line, reason: result });
    else found.push({ ...result, source: { file, line } });
  }
  if (found.length === 0)
    throw new UserError(`${files.join(", ")}: no preference can be used.${firstReason(rejected, before)}`);
  return found;
}

export function toPreference(record: unknown, single = false): Omit<Preference, "source"> | string {
  if (typeof record !== "object" || record === null || Array.isArray(record)) return "the record is not a JSON object";
  const r = record as Json;
  const isLabelled = r.label !== undefined && r.completion !== undefined;
  if (isLabelled && !single) return "it is one reply with a label; only DPO's loss: kto learns from such";
  const replies = isLabelled ? labelled(r) : repliesOf(r);
  if (typeof replies === "string") return replies;
  const prompt = promptOf(r, replies.sharedPrompt);
  if (typeof prompt === "string") return prompt;
  // Behind a prompt in HH's layout a reply begins with the blank that follows "Assistant:".
  const texts = isHh(r.prompt) ? replies.texts.map((t) => t.trim()) : replies.texts;
  const empty = texts.findIndex((t) => t.trim() === "");
  if (empty >= 0) return `reply ${empty + 1} is empty`;
  const twin = texts.findIndex((t, i) => texts.indexOf(t) !== i);
  if (twin >= 0) return `replies ${texts.indexOf(texts[twin]) + 1} and ${twin + 1} are equal: nothing is preferred`;
  if (texts.some((t) => /\p{Cs}/u.test(t))) return "a reply holds half of a surrogate pair";
  return { prompt, replies: texts, ...(isLabelled && { good: Boolean(r.label) }) };
}

const isHh = (prompt: unknown): boolean => typeof prompt === "string" && turnsOf(prompt) !== undefined;

/** TRL's form for KTO: a completion, and whether it is a good one. */
function labelled({ completion, label }: Json): { texts: string[]; sharedPrompt?: Message[] } | string {
  if (![true, false, 0, 1].includes(label as boolean))
    return `its label is ${JSON.stringify(label)}; it must be true or false`;
  const reply = lastReply(completion);
  return typeof reply === "string" ? `completion: ${reply}` : { texts: [reply.text], sharedPrompt: reply.before };
}

/** The replies, best first; from message lists also the messages that they share. */
function repliesOf(r: Json): { texts: string[]; sharedPrompt?: Message[] } | string {
  if (r.chosen !== undefined || r.rejected !== undefined) {
    const pair = [r.chosen, r.rejected].map(lastReply);
    const bad = pair.findIndex((p) => typeof p === "string");
    if (bad >= 0) return `${bad === 0 ? "chosen" : "rejected"}: ${pair[bad] as string}`;
    const [chosen, rejected] = pair as { text: string; before: Message[] }[];
    if (JSON.stringify(chosen.before) !== JSON.stringify(rejected.before))
      return "chosen and rejected answer different conversations";
    return { texts: [chosen.text, rejected.text], sharedPrompt: chosen.before };
  }
  const { completions, ranking } = r;
  if (!Array.isArray(completions))
    return `its keys (${Object.keys(r).join(", ") || "none"}) are of no known format: a preference has prompt, chosen and rejected, or prompt, completions and ranking`;
  if (completions.length < 2 || completions.some((c) => typeof c !== "string"))
    return '"completions" must be two or more texts';
  const order = ranking as number[];
  const sorted = Array.isArray(ranking) ? [...order].sort((a, b) => a - b) : [];
  if (sorted.length !== completions.length || sorted.some((n, i) => n !== i))
    return `"ranking" must hold each number from 0 to ${completions.length - 1} once, the best completion first`;
  return { texts: order.map((i) => completions[i] as string) };
}

function lastReply(value: unknown): { text: string; before: Message[] } | string {
  if (value === undefined) return "there is none; a pair has both, chosen and rejected";
  const turns = typeof value === "string" ? turnsOf(value) : undefined;
  if (typeof value === "string" && !turns) return { text: value, before: [] };
  if (!turns && !Array.isArray(value)) return "it is neither a text nor a list of messages";
  const messages = turns ?? messagesFrom(value as unknown[]);
  if (typeof messages === "string") return messages;
  const last = messages.at(-1);
  if (last?.role !== "assistant") return "its last message is not the assistant's";
  return { text: last.content, before: messages.slice(0, -1) };
}

/** What a record asks for: its prompt or question, a text or a list, or an instruction with its input. None: no messages. */
function given(r: Json): Message[] | string {
  const key = r.prompt === undefined ? "question" : "prompt";
  const asked = r[key];
  if (typeof asked === "string") return turnsOf(asked, true) ?? [{ role: "user", content: asked }];
  if (asked === undefined) return r.instruction === undefined ? [] : alpacaQuestion(r);
  if (!Array.isArray(asked)) return `"${key}" is neither a text nor a list of messages`;
  const messages = messagesFrom(asked);
  return typeof messages === "string" ? `${key}: ${messages}` : messages;
}

/**
 * A prompt as messages: a text or a list, behind the record's "system", and before the messages that the replies' own lists share. Lists that begin
 * with the prompt have it already, after a system message perhaps (UltraFeedback's layout). Its last message is the user's.
 */
export function promptOf(r: Json, shared: Message[] = []): Message[] | string {
  const asked = given(r);
  if (typeof asked === "string") return asked;
  const prompt = withSystem(r, joined(asked, shared));
  if (typeof prompt === "string") return `prompt: ${prompt}`;
  if (prompt.length === 0) return 'there is no "prompt"';
  const wrong = checkTurns(prompt);
  if (wrong) return `prompt: ${wrong}`;
  return prompt.at(-1)?.role === "user" ? prompt : "the prompt does not end with the user's turn";
}

/** The prompt, and behind it what the replies' lists share, unless these tell the prompt again. */
function joined(asked: Message[], shared: Message[]): Message[] {
  const first = shared[0]?.role === "system" && asked[0]?.role !== "system" ? 1 : 0;
  const told = JSON.stringify(shared.slice(first, first + asked.length)) === JSON.stringify(asked);
  const whole = told ? shared : [...asked, ...shared];
  // Lists that tell the same question in other words (a blank at its end, its last turn only): who tells more of it is believed.
  const last = (messages: Message[]): string | undefined => messages.findLast((m) => m.role === "user")?.content.trim();
  const system = asked[0]?.role === "system" && shared[0]?.role !== "system" ? [asked[0]] : [];
  const both = last(asked) === last(shared) ? [[...system, ...shared], asked] : [];
  const others = both.sort((a, b) => b.length - a.length);
  const sound = (messages: Message[]): boolean => !checkTurns(messages) && messages.at(-1)?.role === "user";
  return sound(whole) ? whole : (others.find(sound) ?? whole);
}

/** One reply under its prompt as tokens. */
export interface EncodedReply {
  ids: Int32Array;
  /** Tokens start .. ids.length - 1 are the reply, its end-of-turn token included. */
  start: number;
}

/** All replies of a preference as tokens, or why they cannot be used. */
export function encodePreference(encoder: DialogueEncoder, p: Preference, maxLength: number): EncodedReply[] | string {
  const encoded: EncodedReply[] = [];
  for (const [i, content] of p.replies.entries()) {
    const samples = encoder.samples([...p.prompt, { role: "assistant", content }], "last", Number.POSITIVE_INFINITY);
    if (!Array.isArray(samples)) return samples.rejected;
    const sample: Sample = samples[0];
    const start = replyStart(sample);
    if (start >= maxLength) return `its prompt of ${start} tokens leaves no room for a reply in ${maxLength}`;
    if (sample.ids.length > maxLength)
      return `reply ${i + 1} and its prompt are ${sample.ids.length} tokens, more than ${maxLength}`;
    encoded.push({ ids: sample.ids, start });
  }
  return encoded;
}

/** Replies end to end, their own tokens as targets. Reply s is the rows spans[s].from .. spans[s].to - 1 of the batch. */
export function replyBatch(replies: readonly EncodedReply[]): TokenBatch & {
  targets: Int32Array;
  spans: { from: number; to: number }[];
} {
  const batch = packSequences(replies.map((r) => r.ids));
  const targets = new Int32Array(batch.ids.length).fill(-1);
  const spans = replies.map((r, s) => {
    const first = batch.cuSeqlens[s];
    // Row i predicts token i + 1: the row before a reply predicts its first token.
    for (let i = r.start - 1; i + 1 < r.ids.length; i++) targets[first + i] = r.ids[i + 1];
    return { from: first + r.start - 1, to: first + r.ids.length - 1 };
  });
  return { ...batch, targets, spans };
}
