/**
 * Self-instruct (Wang et al. 2022; as Alpaca did it, Taori et al. 2023): a teacher is shown a few tasks and asked for more.
 * What comes back is checked, near copies of what is there are left out, and types that are short are asked for first.
 */
import { shuffled } from "../corpus/shards.js";
import { UserError } from "../run/errors.js";
import { jsonRecords } from "./jsonl.js";
import { canonicalType, INSTRUCTGPT } from "./mixture.js";
import { NearCopies, rougeWords } from "./rouge.js";
import type { Answer, Teacher } from "./teacher.js";

export interface Task {
  instruction: string;
  input: string;
  output: string;
  type: string;
}
/** A task that the teacher gave, and in which request. */
export interface Grown extends Task {
  request: number;
}
export interface Refused {
  request: number;
  reason: string;
  text: string;
}

/** Examples shown with each request, of which so many were grown, once there are some (Wang et al. 2022: 6 and 2). */
const SHOWN = 3;
const SHOWN_GROWN = 1;
/** Tasks asked for in one request. */
const ASKED = 8;
/** Requests in a row that may bring nothing new. */
const PATIENCE = 20;

/** Records with instruction, input (may be missing) and output. Throws a UserError at the first that is not one. */
export function readTasks(file: string): Task[] {
  const tasks: Task[] = [];
  for (const { line, value, error } of jsonRecords(file)) {
    const record = (error ? {} : value) as Record<string, unknown>;
    const { instruction, input = "", output, type } = record;
    if (typeof instruction !== "string" || typeof input !== "string" || typeof output !== "string")
      throw new UserError(
        `${file}:${line}: ${error ?? "a seed is a record with the texts instruction, input (or none) and output"}.`,
        2,
      );
    tasks.push({ instruction, input, output, type: canonicalType(typeof type === "string" ? type : undefined) });
  }
  if (tasks.length === 0) throw new UserError(`${file}: there is no seed.`, 2);
  return tasks;
}

const described = Object.entries(INSTRUCTGPT).map(([name, { chinese }]) => `${name} (${chinese})`);

/** What the teacher reads. `types`: the types to ask for, most wanted first. */
export function requestText(examples: readonly Task[], types: readonly string[]): string {
  const shown = examples.map((t, i) => block(i + 1, t)).join("\n");
  const first = examples.length + 1;
  return `Write new tasks for an assistant that reads and writes text, and solve each of them.

- Number them. Give each a Type, an Instruction, an Input and an Output, in exactly the form of the examples, with ### between tasks.
- The types are: ${described.join(", ")}. Write mostly: ${types.join(", ")}.
- Each instruction is one or two sentences, says all that is needed, and is about something else than the others. Vary the verbs; mix questions and requests.
- Input is a text that the instruction is about, with real content, at most 100 words; where none is needed write <none>.
- Nothing that needs pictures, sound, files, the web, or doing things in the world.
- The output is what a knowledgeable and careful person would answer. Keep to the language of the instruction; use the languages of the examples.

${shown}
###
Go on with tasks ${first} to ${first + ASKED - 1}:
`;
}
const block = (n: number, t: Task): string =>
  `###\n${n}. Type: ${t.type}\n${n}. Instruction: ${t.instruction}\n${n}. Input: ${t.input || "<none>"}\n${n}. Output: ${t.output}`;

/** The tasks of an answer. What is not in the form asked for is listed; so is the last one when the answer was cut off. */
export function parseAnswer({ text, whole }: Answer): { tasks: Task[]; refused: { reason: string; text: string }[] } {
  const tasks: Task[] = [];
  const refused: { reason: string; text: string }[] = [];
  const pieces = text.split(/^\s*#{3,}\s*$/m).filter((piece) => /\S/.test(piece));
  for (const [i, piece] of pieces.entries()) {
    const field = (name: string, next: string): string | undefined =>
      new RegExp(`(?:^|\\n)\\s*(?:\\d+[.)]?)?\\s*\\**${name}\\**\\s*[:：]\\**\\s*([\\s\\S]*?)(?=${next}|$)`, "i").exec(
        piece,
      )?.[1];
    const ahead = (...names: string[]): string =>
      names.map((n) => `\\n\\s*(?:\\d+[.)]?)?\\s*\\**${n}\\**\\s*[:：]`).join("|");
    const instruction = field("Instruction", ahead("Input", "Output"));
    const output = field("Output", "(?!)");
    if (instruction === undefined || output === undefined) {
      // Words before the first task ("Here are ...") are manners, not a task.
      if (i > 0 || /Instruction/i.test(piece))
        refused.push({ reason: "not in the form asked for", text: piece.trim() });
      continue;
    }
    if (!whole && i === pieces.length - 1) {
      refused.push({ reason: "cut off at the answer's end", text: piece.trim() });
      continue;
    }
    const input = (field("Input", ahead("Output")) ?? "").trim();
    const type = field("Type", ahead("Instruction", "Input", "Output"))
      ?.trim()
      .split(/[\s(（,]/)[0];
    tasks.push({
      instruction: instruction.trim(),
      input: /^(<?\s*(none|no ?input|n\/a|无)\s*>?)?$/i.test(input) ? "" : input,
      output: output.trim(),
      type: known(type),
    });
  }
  return { tasks, refused };
}

function known(type: string | undefined): string {
  const name = canonicalType(type);
  return Object.hasOwn(INSTRUCTGPT, name) ? name : "other";
}

/** Words of tasks that a model which reads and writes text cannot do (the list that Self-instruct filters by). */
const BEYOND =
  /\b(images?|pictures?|photos?|graphs?|charts?|diagrams?|draw|plot|video|audio|music file|files?|websites? link|click)\b|图片|图像|照片|画一|视频|音频|文件/i;

/** Why a task cannot be taken, or undefined. */
export function fault({ instruction, input, output }: Task): string | undefined {
  const words = rougeWords(instruction).length;
  if (words < 3) return "the instruction has fewer than 3 words";
  if (words > 150) return "the instruction has more than 150 words";
  if (BEYOND.test(instruction)) return "the instruction asks for what text cannot do";
  if (/^[^\p{L}\p{N}"'“‘«《「(（¿¡]/u.test(instruction)) return "the instruction begins with a sign";
  if (output === "") return "the output is empty";
  if (input !== "" && output === input) return "the output is the input";
  if (output === instruction) return "the output is the instruction";
  return undefined;
}

/** Types by how far their share lies behind InstructGPT's. */
export function wanted(tasks: readonly Task[]): string[] {
  const total = Object.values(INSTRUCTGPT).reduce((n, { share }) => n + share, 0);
  const lack = (type: string): number =>
    INSTRUCTGPT[type].share / total - tasks.filter((t) => t.type === type).length / Math.max(1, tasks.length);
  return Object.keys(INSTRUCTGPT)
    .filter((type) => lack(type) > 0)
    .sort((a, b) => lack(b) - lack(a))
    .slice(0, 4);
}

export interface Growth {
  /** Called for every task as it is taken, and for every one that is not. */
  keep(task: Grown): void;
  refuse(refused: Refused): void;
  /** Called after each request. */
  progress?(requests: number, kept: number): void;
}

/**
 * Asks until `count` tasks have grown (those of an earlier run, `before`, included). What is asked is a function of the
 * seed, the request's number and the tasks there are. Throws a UserError when the teacher brings nothing new for long.
 */
export async function grow(
  teacher: Teacher,
  seeds: readonly Task[],
  before: readonly Grown[],
  options: { count: number; seed: number },
  growth: Growth,
): Promise<void> {
  const grown: Grown[] = [...before];
  const copies = new NearCopies();
  for (const [i, t] of seeds.entries()) copies.add(t.instruction, `seed ${i + 1}`);
  for (const [i, t] of grown.entries()) copies.add(t.instruction, `task ${i + 1}`);
  let barren = 0;
  for (let request = (grown.at(-1)?.request ?? 0) + 1; grown.length < options.count; request++) {
    const draw = <T>(list: readonly T[], n: number, stream: number): T[] =>
      Array.from(
        { length: Math.min(n, list.length) },
        (_, i) => list[shuffled(i, list.length, options.seed + stream, request)],
      );
    const own = draw(grown, SHOWN_GROWN, 1);
    const examples = [...draw(seeds, SHOWN - own.length, 0), ...own];
    const answer = await teacher.answer(
      requestText(examples, wanted([...seeds, ...grown])),
      options.seed * 1_000_003 + request,
    );
    const { tasks, refused } = parseAnswer(answer);
    for (const r of refused) growth.refuse({ request, ...r });
    let taken = 0;
    for (const task of tasks) {
      if (grown.length >= options.count) break;
      const near = copies.find(task.instruction);
      const why = fault(task) ?? (near && `too near to ${near.name} (ROUGE-L ${near.score.toFixed(2)})`);
      if (why) {
        growth.refuse({ request, reason: why, text: task.instruction });
        continue;
      }
      const kept = { ...task, request };
      copies.add(task.instruction, `task ${grown.push(kept)}`);
      growth.keep(kept);
      taken++;
    }
    growth.progress?.(request, grown.length);
    barren = taken > 0 ? 0 : barren + 1;
    if (barren >= PATIENCE)
      throw new UserError(
        `${teacher.name} brought no new task in ${PATIENCE} requests; ${grown.length} of ${options.count} are there. Give more and more different seeds, a higher --temperature, or a stronger teacher.`,
      );
  }
}
