/**
 * A list of tasks as a teacher is asked for it and as it is read again: Self-instruct's prompt of examples (Wang et al. 2022,
 * table 5) with the fields that Alpaca writes all at once (Taori et al. 2023), and the wanted type of each task.
 */
import { canonicalType, INSTRUCTGPT } from "./mixture.js";

/** An instruction record in Alpaca's fields; `type` is a key of INSTRUCTGPT. */
export interface Task {
  type: string;
  instruction: string;
  input: string;
  output: string;
}
/** A task that is shown to the teacher; a seed may have no type. */
export type Example = Omit<Task, "type"> & { type?: string };
export type PromptLanguage = "en" | "zh";

const FIELDS = ["type", "instruction", "input", "output"] as const;
type Field = (typeof FIELDS)[number];

interface Frame {
  labels: Record<Field, string>;
  nothing: string;
  head: string;
  examples: string;
  ask: (count: number) => string;
  typeName: (type: string) => string;
  /** What a type means to someone who never read the table of InstructGPT. */
  gloss: Record<string, string>;
}

const EN: Frame = {
  labels: { type: "Type", instruction: "Instruction", input: "Input", output: "Output" },
  nothing: "<none>",
  head: `You write tasks that an assistant will learn from. A task has four fields: its type; the instruction, in a person's words;
the input that the instruction is about; and the output, which is what a good assistant answers.

- No two tasks are alike: change the subject, the wording and the form (orders, questions, requests).
- The assistant reads and writes text and does nothing else: no pictures, sounds, files, links or errands.
- An instruction has one or two sentences. An input is complete and concrete, never a placeholder; write <none> where no input is needed.
- An output is correct and complete, and as long as the task needs.`,
  examples: "Examples:",
  ask: (n) =>
    `Write ${n === 1 ? "one new task" : `${n} new tasks`} in this form and in the language of the examples, each field with the number of its task, from 1. Write nothing else. Wanted:`,
  typeName: (type) => type,
  gloss: {
    generation: "a text of a given kind is to be written",
    open_qa: "a question that is answered from general knowledge",
    brainstorming: "several ideas or suggestions",
    chat: "an everyday remark or question that wants a friendly reply",
    rewrite: "the text in the input is to be translated, corrected or put differently",
    summarization: "the text in the input is to be told in fewer words",
    classification: "the text in the input belongs to one of the classes that the instruction names",
    other: "something that none of the usual types covers, such as reasoning, a sum or code",
    closed_qa: "a question that the text in the input answers",
    extract: "certain things are to be picked out of the text in the input",
  },
};

const ZH: Frame = {
  labels: { type: "类型", instruction: "指令", input: "输入", output: "输出" },
  nothing: "<无>",
  head: `请编写供助手学习的任务。每个任务有四项：类型；指令，即用户会怎样提出要求；输入，即指令所针对的内容；输出，即好的助手给出的回答。

- 任务之间不得雷同：题材、措辞和句式（命令、提问、请求）都要变化。
- 助手只能读写文字：不要涉及图片、声音、文件、链接或需要动手去做的事。
- 指令写一到两句。输入要具体完整，不用占位符；不需要输入时写 <无>。
- 输出要正确、完整，长短与任务相称。`,
  examples: "示例：",
  ask: (n) => `请按上面的格式用中文写 ${n} 个新任务，每一项前写上任务的编号，从 1 开始。不要写其他内容。要求的类型：`,
  typeName: (type) => INSTRUCTGPT[type].chinese,
  gloss: {
    generation: "写出某一种文字",
    open_qa: "凭常识和知识回答问题",
    brainstorming: "提出若干想法或建议",
    chat: "日常的一句话或问题，友好地回应",
    rewrite: "翻译、改正或改写输入中的文字",
    summarization: "用更少的话讲出输入中的内容",
    classification: "把输入中的文字归入指令所列的类别之一",
    other: "以上类型之外的任务，例如推理、计算或代码",
    closed_qa: "根据输入中的文字回答问题",
    extract: "从输入的文字中找出指定的内容",
  },
};

const FRAMES: Record<PromptLanguage, Frame> = { en: EN, zh: ZH };

/** The prompt for types.length new tasks of these types, in this order, after the examples. */
export function taskPrompt(language: PromptLanguage, examples: readonly Example[], types: readonly string[]): string {
  const { head, labels, nothing, examples: title, ask, typeName, gloss } = FRAMES[language];
  const shown = examples.map((example, i) => {
    const { type } = example;
    const fields = { ...example, type: type === undefined ? "" : typeName(type) };
    const known = FIELDS.filter((f) => f !== "type" || type !== undefined);
    return known.map((f) => `${i + 1}. ${labels[f]}: ${fields[f] || nothing}`).join("\n");
  });
  const wanted = types.map((type, i) => `${i + 1}. ${typeName(type)} (${gloss[type]})`);
  return `${head}\n\n${title}\n\n${shown.join("\n\n")}\n\n${ask(types.length)}\n${wanted.join("\n")}`;
}

/** A task of the reply, or why it is none. */
export interface Listed {
  /** Its place in the reply, from 1. */
  item: number;
  task?: Task;
  reason?: string;
  /** Where there is no task: what the teacher wrote instead. */
  text?: string;
}

const KEYS = new Map<string, Field>(
  Object.values(FRAMES).flatMap(({ labels }) => FIELDS.map((f) => [labels[f].toLowerCase(), f] as const)),
);
const LINE = new RegExp(
  `^[\\s>#*_-]*(?:(\\d+)\\s*[.)．、:：]?[\\s*_]*)?(${[...KEYS.keys()].join("|")})[\\s*_]*[:：](?:\\*\\*|__)?\\s*(.*)$`,
  "iu",
);
/** A line that only numbers a task: "### 3", "**Task 3**", "3." */
const HEADING = /^\s*(?:[#*_]+\s*(?:task|任务)?|task|任务)\s*\d+\s*[.):：]?[\s*_]*$|^\s*\d+[.)]\s*$/iu;
const RULE = /^\s*(?:#{2,}|[-*_=]{3,})\s*$/;
const NOTHING = /^[<([（【《]?\s*(?:no ?input|none|nothing|n\/a|empty|无|空|无输入)\s*[>)\]）】》]?[.。]?$/iu;

/**
 * The tasks of a reply. Labels may be decorated or unnumbered, as teachers like to do; but where the reply
 * numbers its labels, and not only the first of each task, an unnumbered one is text: an output may contain "Input: 3".
 * `cut`: the reply ended at the token limit, so that its last task is not whole. `wanted`: the types that were asked for,
 * taken where the teacher names none. Never empty: a reply without a task is one entry with its reason.
 */
export function readTaskList(reply: string, wanted: readonly string[], cut = false): Listed[] {
  const lines = reply.replace(/^\s*<think>[\s\S]*?(?:<\/think>|$)/, "").split(/\r?\n/);
  const matches = lines.map((line) => LINE.exec(line));
  const numbered = new Set(matches.flatMap((m) => (m?.[1] ? [fieldOf(m)] : [])));
  const fields = matches.map((m) =>
    m && (m[1] || (numbered.size < 2 && !numbered.has(fieldOf(m)))) ? fieldOf(m) : undefined,
  );
  const drafts: Draft[] = [];
  let into: string[] | undefined;
  for (const [i, line] of lines.entries()) {
    const field = fields[i];
    if (field) {
      if (startsTask(drafts.at(-1), field)) drafts.push({ fields: new Map() });
      const draft = drafts[drafts.length - 1];
      if (draft.fields.has(field)) draft.twice ??= field;
      into = [matches[i]![3]];
      draft.fields.set(field, into);
    } else if (!headsTask(i)) into?.push(line);
  }
  if (drafts.length === 0) {
    const text = reply.trim();
    if (cut) return [{ item: 1, reason: CUT, text: text.slice(0, 400) }];
    return [{ item: 1, reason: text === "" ? "the reply is empty" : "no task in the reply", text: text.slice(0, 400) }];
  }
  return drafts.map((d, i) => finish(d, i, wanted, cut && i === drafts.length - 1));

  /** Only right before the next task: an output may hold numbers on lines of their own. */
  function headsTask(i: number): boolean {
    if (!HEADING.test(lines[i])) return false;
    const next = lines.findIndex((line, j) => j > i && line.trim() !== "");
    const field = next < 0 ? undefined : fields[next];
    return field !== undefined && startsTask(drafts.at(-1), field);
  }
}

const fieldOf = (match: RegExpExecArray): Field => KEYS.get(match[2].toLowerCase())!;

interface Draft {
  fields: Map<Field, string[]>;
  /** A field that stands in it more than once. */
  twice?: Field;
}
const CUT = "cut off at the token limit";

/** Type and instruction come first: where they come again, the next task begins. */
function startsTask(draft: Draft | undefined, key: Field): boolean {
  if (!draft) return true;
  if (key === "type") return draft.fields.size > 0;
  return key === "instruction" && (draft.fields.has("instruction") || draft.fields.has("output"));
}

function finish({ fields, twice }: Draft, i: number, wanted: readonly string[], cut: boolean): Listed {
  const text = (field: Field): string => tidy(fields.get(field) ?? []);
  const input = text("input");
  const named = canonicalType(text("type").replace(/\s*[(（].*$/su, ""));
  const type = fields.has("type") && Object.hasOwn(INSTRUCTGPT, named) ? named : (wanted[i] ?? "other");
  const task = {
    type,
    instruction: text("instruction"),
    input: NOTHING.test(input) ? "" : input,
    output: text("output"),
  };
  const missing = (["instruction", "output"] as const).find((f) => task[f] === "");
  const reason = cut ? CUT : twice ? `two fields "${twice}"` : missing && `no ${missing}`;
  return { item: i + 1, task, ...(reason && { reason }) };
}

/** A field's lines without rules between tasks at its end, and without half of a code fence around the whole list. */
function tidy(lines: readonly string[]): string {
  const kept = [...lines];
  const last = (): string => kept.at(-1) ?? "";
  const halfFence = (): boolean =>
    last().trim() === "```" && kept.filter((l) => l.trimStart().startsWith("```")).length % 2 === 1;
  while (kept.length > 0 && (last().trim() === "" || RULE.test(last()) || halfFence())) kept.pop();
  return kept.join("\n").trim();
}
