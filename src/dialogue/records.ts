/**
 * Instruction and conversation records: Alpaca (instruction, input, output), ShareGPT (conversations), OpenAI
 * (messages), one JSON object a line or one JSON array a file. The format is told by the keys of each record.
 * A record that cannot be trained on is set aside with its file, line and reason.
 */
import { existsSync, readFileSync } from "node:fs";
import type { Rejected } from "../corpus/read.js";
import { UserError } from "../run/errors.js";
import type { Message } from "./templates.js";

export interface Conversation {
  messages: Message[];
  /** Kind of instruction, for mixtures. */
  type?: string;
  source: { file: string; line: number };
}

type Json = Record<string, unknown>;
const ROLES: Record<string, Message["role"]> = {
  system: "system",
  user: "user",
  human: "user",
  prompter: "user",
  assistant: "assistant",
  gpt: "assistant",
  bot: "assistant",
  model: "assistant",
  chatgpt: "assistant",
};

/** Every usable conversation of the files, in order. Throws UserError when a file is missing, or when no record is usable. */
export function readConversations(files: readonly string[], rejected: Rejected[]): Conversation[] {
  const conversations: Conversation[] = [];
  for (const file of files) {
    if (!existsSync(file))
      throw new UserError(`${file} does not exist. It is named under data.train or data.validation.`, 2);
    for (const { line, value, error } of jsonRecords(file)) {
      const source = { file, line };
      if (error !== undefined) {
        rejected.push({ ...source, reason: error });
        continue;
      }
      const result = toConversation(value);
      if (typeof result === "string") rejected.push({ ...source, reason: result });
      else conversations.push({ ...result, source });
    }
  }
  if (conversations.length === 0) {
    const first = rejected[0];
    throw new UserError(
      `${files.join(", ")}: no record can be used.${first ? ` ${first.file}:${first.line}: ${first.reason}.` : " There is nothing in there."}`,
    );
  }
  return conversations;
}

/** The records of a JSONL file, or of a JSON array, with their lines (in an array: their numbers). */
export function* jsonRecords(file: string): Generator<{ line: number; value?: unknown; error?: string }> {
  const text = new TextDecoder("utf-8").decode(readFileSync(file)); // drops the byte order mark; broken bytes become U+FFFD
  if (/^\s*\[/.test(text)) {
    let list: unknown[];
    try {
      list = JSON.parse(text) as unknown[];
    } catch (error) {
      yield { line: 1, error: `not JSON: ${(error as Error).message}` };
      return;
    }
    for (const [i, value] of list.entries()) yield { line: i + 1, value };
    return;
  }
  let line = 0;
  for (const row of text.split("\n")) {
    line++;
    if (row.trim() === "") continue;
    if (row.includes("\uFFFD")) {
      yield { line, error: "there are bytes in it that are not UTF-8" };
      continue;
    }
    try {
      yield { line, value: JSON.parse(row) };
    } catch (error) {
      yield { line, error: `not JSON: ${(error as Error).message}` };
    }
  }
}

/** A record of any of the three formats, or the reason why it cannot be trained on. */
export function toConversation(record: unknown): Omit<Conversation, "source"> | string {
  if (typeof record !== "object" || record === null || Array.isArray(record)) return "the record is not a JSON object";
  const r = record as Json;
  const messages = messagesOf(r);
  if (typeof messages === "string") return messages;
  const wrong = checkTurns(messages);
  if (wrong) return wrong;
  if (messages.at(-1)?.role !== "assistant")
    return "the last message is not the assistant's: there is no reply to learn";
  return { messages, ...(typeof r.type === "string" && { type: r.type }) };
}

function messagesOf(r: Json): Message[] | string {
  if (Array.isArray(r.messages)) return listed(r.messages, "role", "content", "messages");
  if (Array.isArray(r.conversations)) return listed(r.conversations, "from", "value", "conversations");
  if (r.instruction === undefined)
    return `its keys (${Object.keys(r).join(", ") || "none"}) are of no known format: Alpaca has instruction and output, ShareGPT conversations, OpenAI messages`;
  const { instruction, input = "", output, system, history = [] } = r;
  for (const [key, value] of Object.entries({ instruction, input, output }))
    if (typeof value !== "string")
      return value === undefined || value === null ? `there is no "${key}"` : `"${key}" is not text`;
  if (!Array.isArray(history)) return '"history" is not a list of [instruction, reply] pairs';
  const messages: Message[] = typeof system === "string" && system !== "" ? [{ role: "system", content: system }] : [];
  for (const pair of history) {
    if (!Array.isArray(pair) || pair.length !== 2 || pair.some((t) => typeof t !== "string"))
      return '"history" is not a list of [instruction, reply] pairs';
    messages.push({ role: "user", content: pair[0] as string }, { role: "assistant", content: pair[1] as string });
  }
  const user: Message = { role: "user", content: instruction as string };
  if (input !== "") user.input = input as string;
  messages.push(user, { role: "assistant", content: output as string });
  return messages;
}

/** Messages in either spelling (role and content, from and value), or what is wrong with them. */
export function messagesFrom(list: unknown[]): Message[] | string {
  const sharegpt = (list[0] as Json | undefined)?.from !== undefined;
  return sharegpt ? listed(list, "from", "value", "messages") : listed(list, "role", "content", "messages");
}

function listed(list: unknown[], roleKey: string, textKey: string, where: string): Message[] | string {
  const messages: Message[] = [];
  for (const [i, entry] of list.entries()) {
    const m = entry as Json | null;
    const role = ROLES[String(m?.[roleKey])];
    if (!role)
      return `${where}[${i}].${roleKey} is ${JSON.stringify(m?.[roleKey])}; known are ${Object.keys(ROLES).join(", ")}`;
    if (typeof m?.[textKey] !== "string") return `${where}[${i}].${textKey} is not text`;
    messages.push({ role, content: m[textKey] });
  }
  return messages;
}

/** What is wrong with the order or the content of the turns; undefined: nothing. */
export function checkTurns(messages: readonly Message[]): string | undefined {
  const turns = messages[0]?.role === "system" ? messages.slice(1) : messages;
  if (turns.length === 0) return "there are no messages in it";
  for (const [i, { role, content }] of turns.entries()) {
    const expected = i % 2 === 0 ? "user" : "assistant";
    if (role !== expected) return `message ${i + 1} is the ${role}'s where the ${expected}'s turn is`;
    if (content.trim() === "" && !turns[i].input)
      return role === "assistant" ? `reply ${(i + 1) / 2} is empty` : `message ${i + 1} is empty`;
    if (/\p{Cs}/u.test(content)) return `message ${i + 1} holds half of a surrogate pair`;
  }
  return undefined;
}
