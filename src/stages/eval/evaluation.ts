/** Models side by side on the same tasks: each is loaded once, measured on everything, and closed before the next. */
import { basename, dirname, resolve } from "node:path";
import { type Loaded, loadForGeneration } from "../../generate/loaded.js";
import { readLlamaConfig } from "../../nn/config.js";
import { hasScalarHead } from "../../nn/folder.js";
import type { Precision } from "../../nn/llama.js";
import { UserError } from "../../run/errors.js";
import { type ChoiceResult, multipleChoice, summarizeChoice } from "./choice.js";
import { type ExactOutcome, type ExactResult, judgeAnswer, summarizeExact } from "./exact.js";
import { average, bootstrapMean, winRate } from "./interval.js";
import { openScorer, type Scorer, type Scores } from "./judge.js";
import { type Perplexity, perplexity } from "./perplexity.js";
import { plainText, type Reply, type ReplyOptions, replyTo } from "./replies.js";
import { askedIn, readTasks, type Source, type Tasks } from "./tasks.js";

export interface EvaluationOptions extends ReplyOptions {
  /** Model folders: the columns of the table. */
  models: string[];
  /** JSONL files of task records. */
  tasks: string[];
  /** Who scores replies to {prompt} records: a .mjs module (prompt, reply) => number, or a reward model's folder. */
  reward?: string;
  /** The model folder whose replies the others' are held against; needs `reward`. */
  against?: string;
  /** Tokens of a window for perplexity at most. */
  context?: number;
  /** Side-by-side samples. */
  samples?: number;
  /** Default: as each model was saved. */
  precision?: Precision;
  /** 0, the default: all cores. */
  threads?: number;
}

export interface RewardResult {
  prompts: number;
  /** Mean score of the replies, its 95% interval, and the scores' standard deviation; with a reward only. */
  mean?: number;
  interval?: [number, number];
  std?: number;
  /** Mean tokens of a reply. */
  length: number;
  /** Share of replies that the model ended itself. */
  finished: number;
  /** Replies that were too long for the reward model's context, when there are any: it read their beginning. */
  cut?: number;
}
export interface WinRateResult {
  against: string;
  prompts: number;
  /** Share of prompts on which the reply is scored higher, ties counting half, and its 95% interval. */
  winRate: number;
  interval: [number, number];
  wins: number;
  ties: number;
  losses: number;
}
/** What one model reached; a task without records is absent. */
export interface TaskResults {
  perplexity?: Perplexity;
  exact?: ExactResult;
  choice?: ChoiceResult;
  reward?: RewardResult;
  winRate?: WinRateResult;
}
export interface SideBySide extends Source {
  prompt: string;
  replies: { model: string; text: string; right?: boolean; score?: number }[];
}
export interface Evaluation {
  models: { model: string; tasks: TaskResults }[];
  samples: SideBySide[];
}

/** Everything that was found out about one model. */
interface Measured {
  model: string;
  tasks: TaskResults;
  answers: { replies: Reply[]; outcomes: ExactOutcome[] };
  generations: { replies: Reply[]; scores?: number[] };
}

/** `progress` is told each model before its work begins. */
export async function evaluateOnTasks(
  options: EvaluationOptions,
  progress: (line: string) => void = () => {},
): Promise<Evaluation> {
  const tasks = await readTasks(options.tasks);
  const against = checkOptions(options, tasks);
  const measured: Measured[] = [];
  let scorer: Scorer | undefined;
  try {
    for (const dir of against === undefined ? options.models : [...options.models, against]) {
      // The model that is no column is only asked what the win rate needs.
      const own = measured.length < options.models.length ? tasks : { ...NONE, prompts: tasks.prompts };
      progress(`${dir}: ${counts(own)}`);
      const loaded = loadForGeneration(dir, options);
      try {
        if (options.reward !== undefined) scorer ??= await openScorer(options.reward, loaded);
        measured.push(await measure(dir, loaded, own, options, scorer));
      } finally {
        loaded.model.close();
      }
    }
  } finally {
    scorer?.close();
  }
  const standard = measured.find((m) => options.against !== undefined && same(m.model, options.against));
  for (const m of measured) if (standard && m !== standard) m.tasks.winRate = winsOf(m, standard);
  return {
    models: measured.slice(0, options.models.length).map(({ model, tasks: results }) => ({ model, tasks: results })),
    samples: sideBySide(tasks, measured, options.samples ?? 0),
  };
}

const NONE: Tasks = { texts: [], questions: [], choices: [], prompts: [] };
const same = (a: string, b: string): boolean => resolve(a) === resolve(b);

/** Throws UserError for what can be known to be wrong before any work. Returns `against` when it is no column itself. */
function checkOptions({ models, tasks: files, reward, against }: EvaluationOptions, tasks: Tasks): string | undefined {
  const twin = models.findIndex((dir, i) => models.findIndex((other) => same(dir, other)) !== i);
  if (twin >= 0) throw new UserError(`${models[twin]} is named twice.`, 2);
  for (const dir of against === undefined ? models : [...models, against]) {
    readLlamaConfig(dir);
    if (hasScalarHead(dir))
      throw new UserError(
        `${dir} is a reward model and writes no texts. Judge others' replies with it: --reward ${dir}.`,
      );
  }
  if (against !== undefined && reward === undefined)
    throw new UserError(
      `--against ${against} needs --reward, a module or a reward model that says which reply is better.`,
      2,
    );
  if (against !== undefined && models.every((dir) => same(dir, against)))
    throw new UserError(`--against ${against} is the only model: name another one to hold against it.`, 2);
  if (reward !== undefined && tasks.prompts.length === 0)
    throw new UserError(
      `--reward ${reward} scores replies to {"prompt": ...} records, and ${files.join(", ")} has none of them.`,
      2,
    );
  return against !== undefined && !models.some((dir) => same(dir, against)) ? against : undefined;
}

const counts = (tasks: Tasks): string =>
  Object.entries(tasks)
    .filter(([, list]) => list.length > 0)
    .map(([name, list]) => `${list.length} ${list.length === 1 ? name.slice(0, -1) : name}`)
    .join(", ");

async function measure(
  dir: string,
  loaded: Loaded,
  tasks: Tasks,
  options: EvaluationOptions,
  scorer: Scorer | undefined,
): Promise<Measured> {
  const { texts, questions, choices, prompts } = tasks;
  const results: TaskResults = {};
  if (texts.length > 0) results.perplexity = perplexity(loaded, texts, dir, options.context);
  if (choices.length > 0) results.choice = summarizeChoice(choices, multipleChoice(loaded, choices));
  const replies = replyTo(
    loaded,
    questions.map((question) => ({ messages: askedIn(question), source: question.source })),
    options,
  );
  const isChat = loaded.tokenizer.chatTemplate !== undefined;
  const outcomes = replies.map(({ text }, i) => judgeAnswer(text, questions[i].answers, isChat, questions[i].reasoned));
  if (questions.length > 0) results.exact = summarizeExact(questions, outcomes, replies);
  const generated = replyTo(loaded, prompts, options);
  const judged = prompts.length > 0 ? await scorer?.score(prompts, generated) : undefined;
  if (prompts.length > 0) results.reward = summarizeReward(generated, judged);
  return {
    model: dir,
    tasks: results,
    answers: { replies, outcomes },
    generations: { replies: generated, scores: judged?.scores },
  };
}

function summarizeReward(replies: readonly Reply[], judged: Scores | undefined): RewardResult {
  const score = judged && bootstrapMean(judged.scores);
  return {
    prompts: replies.length,
    ...(score && { mean: score.mean, interval: score.interval, std: score.std }),
    length: average(replies.map((r) => r.tokens)),
    finished: average(replies.map((r) => (r.finished ? 1 : 0))),
    ...(judged?.cut && { cut: judged.cut }),
  };
}

function winsOf({ generations: own }: Measured, { model, generations: other }: Measured): WinRateResult | undefined {
  if (!own.scores || !other.scores) return undefined;
  const equal = (i: number): boolean =>
    own.replies[i].text === other.replies[i].text && own.replies[i].finished === other.replies[i].finished;
  // The same reply is a tie, even where a reward model in another batch rounds differently.
  const scores = own.scores.map((score, i) => (equal(i) ? other.scores![i] : score));
  const { share, interval, n, wins, ties, losses } = winRate(scores, other.scores);
  return { against: model, prompts: n, winRate: share, interval, wins, ties, losses };
}

/** Some questions and prompts, spread evenly over the records, with the reply of every model. */
function sideBySide({ questions, prompts }: Tasks, measured: readonly Measured[], count: number): SideBySide[] {
  const all: SideBySide[] = [
    ...questions.map((question, i) => ({
      ...question.source,
      prompt: plainText(askedIn(question)),
      replies: measured.flatMap(({ model, answers: { replies, outcomes } }) =>
        replies[i] ? [{ model, text: replies[i].text, right: outcomes[i].contains }] : [],
      ),
    })),
    ...prompts.map(({ messages, source }, i) => ({
      ...source,
      prompt: plainText(messages),
      replies: measured.map(({ model, generations: { replies, scores } }) => ({
        model,
        text: replies[i].text,
        ...(scores && { score: scores[i] }),
      })),
    })),
  ];
  const shown = Math.min(count, all.length);
  return Array.from({ length: shown }, (_, i) => all[Math.floor((i * all.length) / shown)]);
}

/** Short names for the models: the folder's, or that of the run which the folder `model` is in; the paths when two agree. */
export function modelNames(dirs: readonly string[]): string[] {
  const names = dirs.map((dir) => {
    const path = resolve(dir);
    return basename(path) === "model" ? basename(dirname(path)) : basename(path);
  });
  return new Set(names).size === names.length ? names : [...dirs];
}
