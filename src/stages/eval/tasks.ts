/**
 * The records that a model is evaluated on. What a record asks is told by its keys:
 *
 *   {text}                         perplexity
 *   {question, answers}            exact match
 *   {question, choices, answer}    multiple choice; answer is the index of the right one, from 0
 *   {prompt}                       generation, for reward and win rate
 *
 * or those of a known benchmark (benchmarks.ts). A question may be called prompt, and a prompt or question be a list of messages. What a model
 * has to read beside it (context or input, history, system) is put to it as in fine-tuning.
 *
 * A bad record stops the evaluation: two scores over different records cannot be compared.
 */
import { recordsOf } from "../../dialogue/jsonl.js";
import { promptOf } from "../../dialogue/preference.js";
import type { Message } from "../../dialogue/templates.js";
import { UserError } from "../../run/errors.js";
import { benchmarkOf, type Known } from "./benchmarks.js";

export interface Source {
  file: string;
  line: number;
}
export interface Question {
  question: string;
  /** What is asked, where it is more than the question: with its context, behind a system message. */
  messages?: Message[];
  answers: string[];
  /** Row of a table: language and field of the record, or "all". */
  group: string;
  /** Whether the answer stands at the end of a way to it, as in GSM8K. */
  reasoned?: true;
}
export interface Choice {
  question: string;
  /** As a question's. */
  messages?: Message[];
  choices: string[];
  /** Index of the right choice. */
  answer: number;
  group: string;
  /** What a base model goes on from, where it is not the question. */
  query?: string;
}
type Fields = Record<string, unknown>;
type Sourced<T> = T & { source: Source };

export interface Tasks {
  texts: Sourced<{ text: string }>[];
  questions: Sourced<Question>[];
  choices: Sourced<Choice>[];
  prompts: Sourced<{ messages: Message[] }>[];
}

/** One record as the task that it is. */
export type Task =
  | { kind: "text"; text: string }
  | ({ kind: "question" } & Question)
  | ({ kind: "choice" } & Choice)
  | { kind: "prompt"; messages: Message[] };

/** Bad records that a message names; the others are counted. */
const NAMED = 5;

/** Throws UserError with the lines of the bad records, when a file cannot be read, and when there is no record at all. */
export async function readTasks(files: readonly string[]): Promise<Tasks> {
  const tasks: Tasks = { texts: [], questions: [], choices: [], prompts: [] };
  const bad: string[] = [];
  for await (const { file, line, value, error, unread } of recordsOf(files, "records to evaluate on")) {
    if (unread) continue; // what lies beside the records, as README.md does
    const task = error ?? taskOf(value);
    const source = { file, line };
    if (typeof task === "string") bad.push(`${file}:${line}: ${task}.`);
    else if (task.kind === "text") tasks.texts.push({ text: task.text, source });
    else if (task.kind === "prompt") tasks.prompts.push({ messages: task.messages, source });
    else if (task.kind === "question") {
      const { kind: _, ...question } = task;
      tasks.questions.push({ ...question, source });
    } else {
      const { kind: _, ...choice } = task;
      tasks.choices.push({ ...choice, source });
    }
  }
  if (bad.length > 0) {
    const rest = bad.length > NAMED ? `\nand ${bad.length - NAMED} more.` : "";
    throw new UserError(
      `${bad.slice(0, NAMED).join("\n")}${rest}\nCorrect or remove ${bad.length === 1 ? "this record" : "these records"}: all models must be measured on the same ones.`,
    );
  }
  if (Object.values(tasks).every((list) => list.length === 0))
    throw new UserError(`${files.join(", ")}: there are no records in it.`);
  return tasks;
}

/** The task of a record, or what is wrong with it. */
export function taskOf(record: unknown): Task | string {
  if (typeof record !== "object" || record === null || Array.isArray(record)) return "the record is not a JSON object";
  const own = record as Fields;
  const known = benchmarkOf(own);
  const r = known ? { ...own, ...known } : own;
  if (r.choices !== undefined) return choiceOf(r, known);
  if (Array.isArray(known?.answers) && known.answers.length === 0) return HIDDEN;
  const answered = r.answers !== undefined || (r.prompt !== undefined && r.answer !== undefined);
  if (r.question !== undefined || answered) {
    const question = questionOf(r, known);
    return typeof question === "string" ? question : { kind: "question", ...question };
  }
  if (r.prompt !== undefined) {
    const messages = messagesOf(r);
    return typeof messages === "string" ? messages : { kind: "prompt", messages };
  }
  if (r.text !== undefined) {
    if (isThere(r.system)) return 'a "text" is read as it is, without the "system" beside it: leave that out';
    const wrong = textError(r.text, "text");
    return wrong ?? { kind: "text", text: r.text as string };
  }
  return `its keys (${Object.keys(r).join(", ") || "none"}) are of no known task: known are text; question and answers; question, choices and answer; prompt; those of the benchmarks in docs/evaluation.md`;
}

/** A question with its accepted answers (`answers`, or one `answer`), or what is wrong with it. */
function questionOf(r: Fields, known?: Known): Question | string {
  const asking = askingOf(r);
  if (typeof asking === "string") return asking;
  const answers = Array.isArray(r.answers) ? r.answers : r.answer === undefined ? [] : [r.answer];
  if (answers.length === 0) return 'a question needs "answers", a list of the accepted ones';
  const bad = answers.findIndex((a) => textError(a, "") !== undefined);
  if (bad >= 0) return `answers[${bad}]${textError(answers[bad], "")}`;
  return { ...asking, answers: answers as string[], group: groupOf(r), ...(known?.reasoned && { reasoned: true }) };
}

/** `known`: of a benchmark, whose questions stay as they are, two choices that are the same among them. */
function choiceOf(r: Fields, known?: Known): Task | string {
  const asking = askingOf(r);
  if (typeof asking === "string") return asking;
  const { choices, answer } = r;
  if (!Array.isArray(choices) || choices.length < 2) return '"choices" must be a list of two or more texts';
  const bad = choices.findIndex((c) => textError(c, "") !== undefined);
  if (bad >= 0) return `choices[${bad}]${textError(choices[bad], "")}`;
  const twin = choices.findIndex((c, i) => choices.indexOf(c) !== i);
  if (twin >= 0 && !known) return `choices[${choices.indexOf(choices[twin])}] and choices[${twin}] are the same`;
  if (known && (answer === undefined || answer === "" || answer === -1)) return HIDDEN;
  if (typeof answer !== "number" || !Number.isInteger(answer) || answer < 0 || answer >= choices.length)
    return `"answer" is ${JSON.stringify(answer) ?? "missing"}; it must be the index of the right choice, 0 to ${choices.length - 1}`;
  // The harness's words know of no context that somebody put beside a benchmark's question.
  const query = known?.query === undefined || asking.messages ? {} : { query: known.query };
  return { kind: "choice", ...asking, choices: choices as string[], answer, group: groupOf(r), ...query };
}

/** What a model is asked: the question, and all messages where these are more. Or what is wrong with it. */
function askingOf(r: Fields): Pick<Question, "question" | "messages"> | string {
  const key = r.question === undefined && r.prompt !== undefined ? "prompt" : "question";
  if (r.question !== undefined && r.prompt !== undefined)
    return 'there is a "question" and also a "prompt": leave one of them out';
  const wrong = Array.isArray(r[key]) ? undefined : textError(r[key], key);
  if (wrong) return wrong;
  const messages = messagesOf(r);
  if (typeof messages === "string") return messages;
  const [{ content: question }] = messages.slice(-1);
  return messages.length === 1 && !messages[0].input ? { question } : { question, messages };
}

/** Replies to learn from: asked without a word for its prompt alone, such a record would seem to count whole. */
const TAUGHT = ["chosen", "rejected", "completion", "completions"];
/** What stands beside a question and belongs to it. */
const BESIDE = ["context", "input", "history"];

/** The messages that a record asks, read as in fine-tuning (Alpaca's input, Dolly's context), or what is wrong with them. */
function messagesOf(r: Fields): Message[] | string {
  const taught = TAUGHT.filter((key) => isThere(r[key]));
  if (taught.length > 0)
    return `it holds ${taught.map((key) => `"${key}"`).join(" and ")}, replies to learn from, which no task compares: leave them out, and the prompt is asked`;
  const asked = r.question ?? r.prompt;
  const beside = BESIDE.filter((key) => isThere(r[key]));
  if (beside.length === 0) return promptOf({ prompt: asked, system: r.system });
  if (typeof asked !== "string") return `"${beside[0]}" stands beside a list of messages: write it into one of them`;
  if (beside.includes("context") && beside.includes("input"))
    return 'there is a "context" and also an "input": join them in one';
  const notText = beside.find((key) => key !== "history" && typeof r[key] !== "string");
  if (notText) return `"${notText}" is not text`;
  const input = isThere(r.context) ? r.context : r.input;
  return promptOf({ instruction: asked, input, history: r.history, system: r.system });
}
/** Parquet has null, and some files an empty text, where a record has no such key. */
const isThere = (value: unknown): boolean =>
  value !== undefined && value !== null && value !== "" && !(Array.isArray(value) && value.length === 0);

/** What a model is asked in a question or choice. */
export const askedIn = ({ messages, question }: Pick<Question, "question" | "messages">): Message[] =>
  messages ?? [{ role: "user", content: question }];

const HIDDEN = "the right answer is hidden, as in the test splits of many benchmarks: take the validation split";

const groupOf = (r: Fields): string =>
  [r.language, r.field].filter((v) => typeof v === "string" && v !== "").join(" ") || "all";

function textError(value: unknown, name: string): string | undefined {
  const what = name && `"${name}"`;
  if (value === undefined) return `there is no ${what}`;
  if (typeof value !== "string") return `${what} is not text`;
  if (value.trim() === "") return `${what} is empty`;
  return /\p{Cs}/u.test(value) ? `${what} holds half of a surrogate pair` : undefined;
}
