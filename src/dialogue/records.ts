/**
 * Instruction and conversation records: Alpaca (instruction, input, output; Dolly's context and response), ShareGPT (conversations),
 * OpenAI (messages), TRL (prompt, completion), one JSON object a line, one JSON array a file, or Parquet. The format is told by the keys of
 * each record. A record that cannot be trained on is set aside with its file, line and reason.
 */
import { firstReason, type Rejected } from "../corpus/read.js";
import { UserError } from "../run/errors.js";
import { recordsOf } from "./jsonl.js";
import type { Message } from "./templates.js";

export interface Conversation {
  messages: Message[];
  /** Kind of instruction, for mixtures. */
  type?: string;
  source: { file: string; line: number };
}

type Json = Record<string, unknown>;
/** A map and not an object: a role "constructor" is then as unknown as any other. */
const ROLES = new Map<unknown, Message["role"]>([
  ["system", "system"],
  ["developer", "system"],
  ["user", "user"],
  ["human", "user"],
  ["prompter", "user"],
  ["assistant", "assistant"],
  ["gpt", "assistant"],
  ["bot", "assistant"],
  ["model", "assistant"],
  ["chatgpt", "assistant"],
]);
const isNothing = (value: unknown): value is null | undefined => value === undefined || value === null;

/** Every usable conversation of the files, in order. Throws UserError when a file cannot be read, or when no record is usable. */
export async function readConversations(files: readonly string[], rejected: Rejected[]): Promise<Conversation[]> {
  const conversations: Conversation[] = [];
  const before = rejected.length;
  for await (const { file, line, value, error } of recordsOf(files, "conversations")) {
    const source = { file, line };
    const result = error ?? toConversation(value);
    if (typeof result === "string") rejected.push({ ...source, reason: result });
    else conversations.push({ ...result, source });
  }
  if (conversations.length === 0)
    throw new UserError(`${files.join(", ")}: no record can be used.${firstReason(rejected, before)}`);
  return conversations;
}

/** A record of any of the formats above, or the reason why it cannot be trained on. */
export function toConversation(record: unknown): Omit<Conversation, "source"> | string {
  if (typeof record !== "object" || record === null || Array.isArray(record)) return "the record is not a JSON object";
  const r = record as Json;
  const { type } = r;
  if (!isNothing(type) && typeof type !== "string" && typeof type !== "number")
    return '"type" is neither a text nor a number';
  const messages = messagesOf(r);
  if (typeof messages === "string") return messages;
  const wrong = checkTurns(messages);
  if (wrong) return wrong;
  // A last question that nobody answered teaches nothing; what was answered before it does.
  if (messages.at(-1)?.role !== "assistant") messages.pop();
  if (messages.at(-1)?.role !== "assistant")
    return "the last message is not the assistant's: there is no reply to learn";
  if (messages.every((m) => m.role !== "assistant" || m.weight === 0))
    return "every reply in it has the weight 0: there is none to learn";
  return { messages, ...(!isNothing(type) && { type: String(type) }) };
}

/** The messages of a record of any of the formats above, in whatever order they stand there, or what is wrong with it. */
export function messagesOf(r: Json): Message[] | string {
  const key = ["messages", "conversations", "conversation"].find((k) => !isNothing(r[k]));
  let messages: Message[] | string;
  if (key) messages = Array.isArray(r[key]) ? listed(r[key], key) : `"${key}" is not a list`;
  else if (r.instruction !== undefined) messages = alpaca(r);
  else if (r.prompt !== undefined && r.completion !== undefined)
    messages = r.label === false || r.label === 0 ? "its label says that the reply is a bad one" : completed(r);
  else
    return `its keys (${Object.keys(r).join(", ") || "none"}) are of no known format: Alpaca has instruction and output, ShareGPT conversations, OpenAI messages, TRL prompt and completion`;
  return typeof messages === "string" ? messages : withSystem(r, messages);
}

/** The messages behind the record's own "system", where it has one. */
export function withSystem({ system }: Json, messages: Message[]): Message[] | string {
  // An empty system message says nothing; a template would still write its frame.
  const own = messages[0]?.role === "system" && messages[0].content.trim() === "" ? messages.slice(1) : messages;
  if (isNothing(system) || system === "") return own;
  if (typeof system !== "string") return '"system" is not text';
  if (own[0]?.role === "system")
    return own[0].content === system ? own : 'there is a "system" and also a system message';
  return [{ role: "system", content: system }, ...own];
}

function alpaca(r: Json): Message[] | string {
  const isDolly = r.output === undefined && r.response !== undefined;
  const output = isDolly ? r.response : r.output;
  const question = alpacaQuestion(r);
  if (typeof question === "string") return question;
  if (typeof output !== "string") return isNothing(output) ? 'there is no "output"' : '"output" is not text';
  return [...question, { role: "assistant", content: output }];
}

/** What is asked in Alpaca's form, and in Dolly's, whose `context` is the input: the history, and the instruction. */
export function alpacaQuestion(r: Json): Message[] | string {
  const { instruction } = r;
  const input = r.input ?? (r.output === undefined ? r.context : undefined) ?? "";
  const history = r.history ?? [];
  for (const [key, value] of Object.entries({ instruction, input }))
    if (typeof value !== "string") return isNothing(value) ? `there is no "${key}"` : `"${key}" is not text`;
  const pairs = '"history" is not a list of [instruction, reply] pairs';
  if (!Array.isArray(history)) return pairs;
  const messages: Message[] = [];
  for (const pair of history) {
    if (!Array.isArray(pair) || pair.length !== 2 || pair.some((t) => typeof t !== "string")) return pairs;
    messages.push({ role: "user", content: pair[0] as string }, { role: "assistant", content: pair[1] as string });
  }
  const user: Message = { role: "user", content: instruction as string };
  if (input !== "") user.input = input as string;
  return [...messages, user];
}

/**
 * Anthropic's HH writes a conversation as one text, turn after turn; that is told by how it begins. A prompt ends with "Assistant:", the
 * beginning of no turn of its own. Any other text: undefined.
 */
export function turnsOf(text: string, isPrompt = false): Message[] | undefined {
  if (!/^\s*Human: /.test(text)) return undefined;
  const [, ...parts] = `\n\n${text.trimStart()}`.split(/\n\n(Human|Assistant): ?/);
  const turns = parts.flatMap((role, i): Message[] =>
    i % 2 === 0 ? [{ role: role === "Human" ? "user" : "assistant", content: parts[i + 1].trim() }] : [],
  );
  const last = turns.at(-1);
  return isPrompt && last?.role === "assistant" && last.content === "" ? turns.slice(0, -1) : turns;
}

/** TRL's prompt and completion, each a text or a list of messages. */
function completed(r: Json): Message[] | string {
  const messages: Message[] = [];
  for (const [key, role] of [
    ["prompt", "user"],
    ["completion", "assistant"],
  ] as const) {
    const value = r[key];
    if (typeof value === "string") messages.push(...(turnsOf(value, role === "user") ?? [{ role, content: value }]));
    else if (!Array.isArray(value)) return `"${key}" is neither a text nor a list of messages`;
    else {
      const list = listed(value, key);
      if (typeof list === "string") return list;
      messages.push(...list);
    }
  }
  return messages;
}

/** Messages in either spelling (role and content, from and value), or what is wrong with them. */
export const messagesFrom = (list: unknown[]): Message[] | string => listed(list, "messages");

function listed(list: unknown[], where: string): Message[] | string {
  const messages: Message[] = [];
  for (const [i, entry] of list.entries()) {
    if (typeof entry !== "object" || entry === null) return `${where}[${i}] is not a message`;
    const m = entry as Json;
    const [roleKey, textKey] = isNothing(m.from) ? ["role", "content"] : ["from", "value"];
    const role = ROLES.get(m[roleKey]);
    if (!role)
      return `${where}[${i}].${roleKey} is ${JSON.stringify(m[roleKey])}; known are ${[...ROLES.keys()].join(", ")}`;
    const content = textOf(m[textKey]);
    if (content === undefined)
      return Array.isArray(m.tool_calls)
        ? `${where}[${i}] calls a tool; only texts are learned`
        : `${where}[${i}].${textKey} is not text`;
    const { input } = m;
    const asked = role === "user" && typeof input === "string" && input !== "";
    const unlearned = role === "assistant" && m.weight === 0; // OpenAI's
    messages.push({ role, content, ...(asked && { input }), ...(unlearned && { weight: 0 }) });
  }
  return messages;
}

/** A content: a text, or OpenAI's list of text parts. Undefined for anything else, images among it. */
function textOf(content: unknown): string | undefined {
  if (typeof content === "string") return content;
  if (!Array.isArray(content) || content.length === 0) return undefined;
  const parts = content.map((part: Json | null) => (part?.type === "text" ? part.text : undefined));
  return parts.every((t) => typeof t === "string") ? parts.join("") : undefined;
}

/** What is wrong with the order or the content of the turns; undefined: nothing. */
export function checkTurns(messages: readonly Message[]): string | undefined {
  const first = messages[0]?.role === "system" ? 1 : 0;
  if (messages.length === first) return "there are no messages in it";
  for (const [i, { role, content, input = "" }] of messages.entries()) {
    const turn = i - first;
    const expected = turn % 2 === 0 ? "user" : "assistant";
    if (turn >= 0 && role !== expected) return `message ${i + 1} is the ${role}'s where the ${expected}'s turn is`;
    if (content.trim() === "" && input.trim() === "")
      return role === "assistant" ? `reply ${(turn + 1) / 2} is empty` : `message ${i + 1} is empty`;
    if (/\p{Cs}/u.test(content + input)) return `message ${i + 1} holds half of a surrogate pair`;
  }
  return undefined;
}
