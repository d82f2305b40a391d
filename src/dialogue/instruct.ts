/**
 * Self-instruct (Wang et al. 2022): a set of instructions grows from a few seeds by a teacher that is shown some and asked for
 * more. As in Alpaca (Taori et al. 2023) a task comes whole, with its output, and many tasks in one reply; new here is
 * that each prompt names the types that the set still lacks, by the shares of InstructGPT's prompts.
 */
import { firstReason, type Rejected } from "../corpus/read.js";
import { UserError } from "../run/errors.js";
import { shuffled } from "../run/order.js";
import { recordsOf } from "./jsonl.js";
import { canonicalType, INSTRUCTGPT, largestRemainder } from "./mixture.js";
import { toConversation } from "./records.js";
import { NearCopies, rougeWords } from "./rouge.js";
import { type KeptTask, TaskFile } from "./task-file.js";
import { type Example, type Listed, type PromptLanguage, readTaskList, type Task, taskPrompt } from "./task-list.js";
import type { Teacher } from "./teacher.js";

export interface Seed extends Example {
  source: { file: string; line: number };
}

export interface InstructOptions {
  seeds: readonly Seed[];
  /** How many tasks the file is to hold. */
  count: number;
  out: string;
  resume?: boolean;
  /** Of what is shown and asked. */
  seed?: number;
  /** Tasks that a prompt asks for. */
  tasksPerPrompt?: number;
  /** Tasks that a prompt shows; one of four has grown, once there are some (Wang et al. 2022, section 2.2: two of eight). */
  examples?: number;
  /** Prompts of a round: they are asked at once, and know nothing of one another. */
  batchSize?: number;
  /** ROUGE-L above which an instruction is a copy. */
  similarity?: number;
  /** Rounds in a row that may bring nothing. */
  patience?: number;
  onRound?: (report: InstructReport) => void;
}

export interface InstructReport {
  kept: number;
  /** Rounds asked so far, those before a resume among them. */
  rounds: number;
  /** Reason -> candidates set aside for it. */
  rejected: Record<string, number>;
  types: { type: string; wanted: number; kept: number }[];
}

/** The seeds of a file (or a folder of files): records of one instruction and its output. Throws UserError when none can be used. */
export async function readSeeds(path: string, rejected: Rejected[]): Promise<Seed[]> {
  const seeds: Seed[] = [];
  const before = rejected.length;
  for await (const { file, line, value, error } of recordsOf([path], "seeds")) {
    const seed = error ?? toSeed(value);
    if (typeof seed === "string") rejected.push({ file, line, reason: seed });
    else seeds.push({ ...seed, source: { file, line } });
  }
  if (seeds.length > 0) return seeds;
  throw new UserError(`${path}: no seed can be used.${firstReason(rejected, before)}`);
}

function toSeed(value: unknown): Example | string {
  const conversation = toConversation(value);
  if (typeof conversation === "string") return conversation;
  const { messages, type } = conversation;
  if (messages.length !== 2) return "a seed is one instruction and its output, without a system message or more turns";
  const [{ content, input = "" }, { content: output }] = messages;
  const example = { instruction: content.trim(), input: input.trim(), output: output.trim() };
  if (example.instruction === "") return "there is no instruction";
  if (type === undefined) return example;
  const known = canonicalType(type);
  if (Object.hasOwn(INSTRUCTGPT, known)) return { ...example, type: known };
  return `its type "${type}" is none of ${Object.keys(INSTRUCTGPT).join(", ")}`;
}

/** Alpaca's list of words for what a text cannot show, shortened to those that seldom mean anything else, and in Chinese. */
const NO_TEXT =
  /\b(?:images?|pictures?|photos?|photographs?|videos?|audio|diagrams?|flowcharts?|graphs?|attached|attachments?)\b|\b(?:draw|sketch|paint) (?:me|an?|the) (?!conclusion)|图片|图像|照片|视频|音频|录音|附件|流程图|[画绘](?:制)?(?:一|出|个)/iu;
const PLACEHOLDER =
  /^[<[({【（][^\n]{0,80}(?:insert|provide|paste|your|here|此处|这里|粘贴|插入)[^\n]{0,80}[>\])}】）]$/iu;

/** Why a task teaches nothing or nothing good, or undefined: Self-instruct's and Alpaca's heuristics. */
export function validateTask({ instruction, input, output }: Task): { reason: string; detail?: string } | undefined {
  if (/\uFFFD|\p{Cs}|(?![\t\n\r])\p{Cc}/u.test(instruction + input + output)) return { reason: "broken characters" };
  const words = rougeWords(instruction).length;
  if (words < 3) return { reason: "instruction of fewer than 3 words" };
  if (words > 150) return { reason: "instruction of more than 150 words" };
  if (!/^[\p{L}\p{N}\p{Ps}\p{Pi}"'`¿¡]/u.test(instruction)) return { reason: "instruction begins with a sign" };
  const shown = NO_TEXT.exec(instruction);
  if (shown) return { reason: "about what is not text", detail: shown[0] };
  if (PLACEHOLDER.test(input)) return { reason: "input is a placeholder", detail: input };
  if (rougeWords(output).join(" ") === rougeWords(instruction).join(" "))
    return { reason: "output repeats the instruction" };
  return undefined;
}

/** Chinese where it has Chinese characters and no kana. */
export const languageOf = (text: string): PromptLanguage =>
  /\p{Script=Han}/u.test(text) && !/[\p{Script=Hiragana}\p{Script=Katakana}]/u.test(text) ? "zh" : "en";

/** How many tasks of each type make `count` at InstructGPT's shares. */
export const typeQuotas = (count: number): Map<string, number> =>
  largestRemainder(
    Object.entries(INSTRUCTGPT).map(([type, { share }]) => [type, (share / SHARES) * count]),
    count,
  );
const SHARES = Object.values(INSTRUCTGPT).reduce((sum, { share }) => sum + share, 0);

/** The seeds and what has grown: what a new task is compared with, and which types are still wanted. */
class TaskSet {
  /** How many have grown; by the language of their instructions. */
  size = 0;
  private readonly grown: Record<PromptLanguage, Task[]> = { en: [], zh: [] };
  private readonly copies: NearCopies;
  private readonly quotas: Map<string, number>;

  constructor(
    private readonly seeds: readonly Seed[],
    count: number,
    similarity: number,
  ) {
    this.copies = new NearCopies(similarity);
    this.quotas = typeQuotas(count);
    for (const { instruction, source } of seeds) this.copies.add(instruction, `${source.file}:${source.line}`);
  }

  add(task: Task, name: string): void {
    this.size++;
    this.grown[languageOf(task.instruction)].push(task);
    this.copies.add(task.instruction, name);
    this.quotas.set(task.type, (this.quotas.get(task.type) ?? 0) - 1);
  }

  /** Why a task cannot be taken. The type comes last: a task set aside for it is good, and there are enough of its kind. */
  fault(task: Task): { reason: string; detail?: string } | undefined {
    const invalid = validateTask(task);
    if (invalid) return invalid;
    const near = this.copies.find(task.instruction);
    if (near) return { reason: "near copy", detail: `ROUGE-L ${near.score.toFixed(2)} with ${near.name}` };
    if ((this.quotas.get(task.type) ?? 0) <= 0) return { reason: "enough of its type", detail: task.type };
    return undefined;
  }

  /** Every type as often as it is still wanted. */
  missing(): string[] {
    return [...this.quotas].flatMap(([type, left]) => Array<string>(Math.max(0, left)).fill(type));
  }

  /** What prompt `number` of the run shows: tasks of one language, so that the new ones are written in it. */
  examples(number: number, wanted: number, seed: number): { language: PromptLanguage; shown: Example[] } {
    const pick = <T>(list: readonly T[], i: number, stream: number, epoch: number): T =>
      list[shuffled(i, list.length, seed + stream, epoch)];
    const { length } = this.seeds;
    // Every seed leads in its turn, so that languages come as often as they do among the seeds.
    const leader = pick(this.seeds, number % length, 0, Math.floor(number / length));
    const language = languageOf(leader.instruction);
    const others = this.seeds.filter((s) => s !== leader && languageOf(s.instruction) === language);
    const grown = this.grown[language];
    const ofGrown = Math.min(Math.floor(wanted / 4), grown.length);
    const ofOthers = Math.min(wanted - 1 - ofGrown, others.length);
    const shown: Example[] = [leader];
    for (let i = 0; i < ofOthers; i++) shown.push(pick(others, i, 1, number));
    for (let i = 0; i < ofGrown; i++) shown.push(pick(grown, i, 2, number));
    return { language, shown };
  }
}

type Candidate = Listed & { reply: number };
const sameTask = (a: Task, b: Task): boolean =>
  a.instruction === b.instruction && a.input === b.input && a.output === b.output;

/**
 * Asks the teacher until the file holds `count` tasks. What is asked is a function of the seed, the round and the tasks of
 * the rounds before; so a run that was killed and resumed ends with the same file, if its teacher says the same again.
 * Throws UserError when the teacher brings nothing for `patience` rounds, or cannot be asked; what has grown is kept.
 */
export async function instruct(teacher: Teacher, options: InstructOptions): Promise<InstructReport> {
  const { seeds, count, out, seed = 1, tasksPerPrompt = 8, examples = 4, batchSize = 4, patience = 8 } = options;
  const file = new TaskFile(out, options.resume);
  const set = new TaskSet(seeds, count, options.similarity ?? 0.7);
  let round = file.lastRound ?? 0;
  let rounds = file.lastRound === undefined ? 0 : round + 1;
  file.kept.forEach((task, i) => {
    if (task.round < round) set.add(task, `${out}:${i + 1}`);
  });
  /** Of a round that may not have been finished: written, but unknown to the prompts of that round, as they were then. */
  let written = file.kept.filter((task) => task.round === round);
  if (file.kept.length < count) file.reopen(round);

  for (let idle = 0; file.kept.length < count; round++) {
    const missing = set.missing();
    const prompts = Math.min(batchSize, Math.ceil(missing.length / tasksPerPrompt));
    const asked = Array.from({ length: prompts }, (_, p) => {
      const types = Array.from({ length: tasksPerPrompt }, (_, i) => {
        const slot = (p * tasksPerPrompt + i) % missing.length;
        return missing[shuffled(slot, missing.length, seed + 3, round)];
      });
      const { language, shown } = set.examples(round * batchSize + p, examples, seed);
      return { types, prompt: taskPrompt(language, shown, types) };
    });
    const answers = await teacher.ask(
      asked.map((a) => a.prompt),
      round * batchSize,
    );
    const candidates = answers.flatMap(({ text, whole }, p): Candidate[] =>
      readTaskList(text, asked[p].types, !whole).map((listed) => ({ ...listed, reply: p + 1 })),
    );
    const before = set.size;
    rounds = round + 1;
    take(candidates, written);
    written = [];
    idle = set.size > before ? 0 : idle + 1;
    options.onRound?.(report());
    if (idle >= patience && file.kept.length < count) throw barren();
  }
  return report();

  function take(candidates: readonly Candidate[], written: readonly KeptTask[]): void {
    const name = (task: KeptTask): string => `${out}:${file.kept.indexOf(task) + 1}`;
    // Said again word for word, what is written is met in its place; otherwise it must be known before anything else is.
    const again = written.every((w) => candidates.some(({ task }) => task && sameTask(task, w)));
    if (!again) for (const w of written) set.add(w, name(w));
    const seen = new Set<KeptTask>();
    for (const { task, reason, text, item, reply } of candidates) {
      const own = task && written.find((w) => !seen.has(w) && sameTask(task, w));
      if (own) {
        seen.add(own);
        if (again) set.add(own, name(own));
        continue;
      }
      let fault = reason === undefined && task ? set.fault(task) : { reason: reason ?? "no task in the reply" };
      if (!fault && file.kept.length >= count) fault = { reason: "more than were asked for" };
      if (fault) file.setAside({ round, reply, item, ...fault }, task ?? { text });
      else if (task) {
        const kept = { ...task, teacher: teacher.name, round };
        file.keep(kept);
        set.add(kept, name(kept));
      }
    }
  }

  function report(): InstructReport {
    return {
      kept: file.kept.length,
      rounds,
      rejected: Object.fromEntries([...file.reasons].sort(([, a], [, b]) => b - a)),
      types: [...typeQuotas(count)].map(([type, wanted]) => ({
        type,
        wanted,
        kept: file.kept.filter((t) => t.type === type).length,
      })),
    };
  }

  function barren(): UserError {
    const [most] = Object.entries(report().rejected);
    return new UserError(
      `${teacher.name} brought no new task in ${patience} rounds; ${out} holds ${file.kept.length} of ${count}. ` +
        `${most ? `The most frequent reason is "${most[0]}" (${most[1]} times); ${file.rejectedPath} lists them all. ` : ""}` +
        "Give more and more different seeds, a higher --temperature, or a stronger teacher.",
    );
  }
}
