/**
 * Evaluation on held-out questions: every model answers greedily, a reply is right when it contains one of the accepted
 * answers (eval/exact.ts). Base and tuned models stand side by side: what fine-tuning adds, and what was known before.
 */
import { resolve } from "node:path";
import { z } from "zod";
import { recordsOf } from "../dialogue/jsonl.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { type Loaded, loadForGeneration } from "../generate/loaded.js";
import { readLlamaConfig } from "../nn/config.js";
import { hasScalarHead } from "../nn/folder.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { batchSizeSchema, pathsSchema } from "../run/settings.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { modelNames } from "./eval/evaluation.js";
import { judgeAnswer } from "./eval/exact.js";
import { average, winRate } from "./eval/interval.js";
import { openScorer } from "./eval/judge.js";
import { atRecord, replyTo } from "./eval/replies.js";
import { shorten } from "./eval/table.js";
import { askedIn, type Question, taskOf } from "./eval/tasks.js";
import { checkReads } from "./judge.js";
import { longestEpisode, type Prompt, replyLogProbs, rollout } from "./rollout.js";

export const evaluateSchema = z.strictObject({
  stage: z.literal("evaluate").optional(),
  /** Model folders; the first ones in the table. */
  models: pathsSchema,
  /** JSONL with question, answers (or answer), and optionally field and language. */
  file: z.string().min(1),
  maxTokens: z.int().min(1).default(48),
  batchSize: batchSizeSchema.default(32),
  /** Only the questions of this field. */
  field: z.string().optional(),
  /** Who judges the replies beside the accepted answers: a .mjs module (prompt, reply) => number, or a reward model. */
  reward: z.string().optional(),
  /** The model that others are held against: share of replies judged better (ties count half), and KL of sampled replies. */
  reference: z.string().optional(),
  /** Questions printed with every model's reply. */
  show: z.int().min(0).default(8),
});
export type EvaluateConfig = z.output<typeof evaluateSchema>;

export interface ModelResult {
  model: string;
  replies: string[];
  right: boolean[];
  groups: Record<string, { right: number; total: number }>;
  /** Mean tokens of a reply. */
  length: number;
  /** With a judge: the score of each reply. */
  scores?: number[];
  /** Against the reference: share of replies judged better, ties counting half; mean KL of a sampled reply, in nats. */
  winRate?: number;
  kl?: number;
}

type SourcedQuestion = Question & { source: { file: string; line: number } };

export async function readQuestions(path: string): Promise<SourcedQuestion[]> {
  const questions: SourcedQuestion[] = [];
  for await (const { file, line, value, error, unread } of recordsOf([path], "questions")) {
    if (unread) continue;
    const task = error ?? taskOf(value);
    if (typeof task === "string") throw new UserError(`${file}:${line}: ${task}.`);
    if (task.kind !== "question")
      throw new UserError(
        `${file}:${line}: this stage asks questions with "answers"; \`lyceum eval --tasks ${file}\` knows the others.`,
      );
    const { kind: _, ...question } = task;
    questions.push({ ...question, source: { file, line } });
  }
  return questions;
}

/** The questions of a config: those of its field. */
const questionsOf = async (config: EvaluateConfig): Promise<SourcedQuestion[]> =>
  (await readQuestions(config.file)).filter(
    (q) => config.field === undefined || q.group.split(" ").includes(config.field),
  );

export async function evaluateModels(
  config: EvaluateConfig,
  mustGoOn = async (): Promise<void> => {},
): Promise<ModelResult[]> {
  const questions = await questionsOf(config);
  if (questions.length === 0)
    throw new UserError(
      `${config.file}: there are no questions in it${config.field ? ` of the field "${config.field}"` : ""}.`,
    );
  const asked = questions.map((question) => ({ messages: askedIn(question), source: question.source }));
  const { models, reward } = config;
  for (const dir of [...models, ...(config.reference === undefined ? [] : [config.reference])])
    if (hasScalarHead(dir))
      throw new UserError(
        `${dir} is a reward model and writes no texts. Name it under \`reward\` to judge with it.`,
        2,
      );
  const unread = new Set<string>();
  for (const dir of config.reference === undefined ? [] : models)
    try {
      checkReference(config.reference!, dir, asked, config);
    } catch (error) {
      // Which replies are better, a judge can say of any two models.
      if (!(error instanceof UserError) || reward === undefined) throw error;
      console.error(`${error.message} ${dir} is compared without KL.`);
      unread.add(dir);
    }
  const reference = config.reference === undefined ? undefined : loadForGeneration(config.reference);
  const isReference = (dir: string): boolean =>
    config.reference !== undefined && resolve(dir) === resolve(config.reference);
  // A reference that is no column is only asked for the replies that the others' are held against.
  const unlisted = reward !== undefined && config.reference !== undefined && !models.some(isReference);
  const results: ModelResult[] = [];
  const resultOf = async (dir: string): Promise<ModelResult> => {
    const loaded = loadForGeneration(dir);
    try {
      const replies = replyTo(loaded, asked, config);
      const isChat = loaded.tokenizer.chatTemplate !== undefined;
      const right = replies.map(
        ({ text }, i) => judgeAnswer(text, questions[i].answers, isChat, questions[i].reasoned).contains,
      );
      const groups: ModelResult["groups"] = {};
      questions.forEach(({ group }, i) => {
        groups[group] ??= { right: 0, total: 0 };
        groups[group].total++;
        if (right[i]) groups[group].right++;
      });
      const length = average(replies.map((r) => r.tokens));
      const result: ModelResult = { model: dir, replies: replies.map((r) => r.text), right, groups, length };
      if (reward) {
        const scorer = await openScorer(reward, loaded);
        try {
          result.scores = (await scorer.score(asked, replies)).scores;
        } finally {
          scorer.close();
        }
      }
      if (
        reference &&
        results.length < models.length &&
        !unread.has(dir) &&
        loaded.tokenizer.chatTemplate !== undefined
      )
        result.kl = sampledKl(loaded, reference, asked, config);
      return result;
    } finally {
      loaded.model.close();
    }
  };
  try {
    for (const dir of unlisted ? [...models, config.reference!] : models) {
      await mustGoOn();
      results.push(await resultOf(dir));
    }
  } finally {
    reference?.model.close();
  }
  const standard = results.find((r) => isReference(r.model))?.scores;
  for (const r of results) if (standard && r.scores) r.winRate = winRate(r.scores, standard).share;
  return results.slice(0, models.length);
}

/** Throws UserError when the reference cannot read the tokens that a model may give. A base model's replies it is not shown. */
function checkReference(
  reference: string,
  dir: string,
  asked: readonly Omit<Prompt, "ids">[],
  { maxTokens }: EvaluateConfig,
): void {
  const tokenizer = Tokenizer.load(dir);
  if (tokenizer.chatTemplate === undefined) return;
  const encoder = new DialogueEncoder(tokenizer);
  const prompts = asked.map(({ messages, source }) => ({ ids: atRecord(source, () => encoder.prompt(messages)) }));
  const longest = Math.min(longestEpisode(prompts, maxTokens), readLlamaConfig(dir).maxPositionEmbeddings);
  checkReads("reference", reference, { dir, tokenizer, longest });
}

/** Mean over prompts of log p(reply) - log p_ref(reply), the reply sampled from the model: an estimate of KL(p || p_ref). */
function sampledKl(
  { model, tokenizer }: Loaded,
  reference: Loaded,
  asked: readonly Omit<Prompt, "ids">[],
  { maxTokens }: EvaluateConfig,
): number {
  const encoder = new DialogueEncoder(tokenizer);
  const prompts = asked.map((a) => ({ ...a, ids: encoder.prompt(a.messages) }));
  const episodes = rollout(model, tokenizer, prompts, { maxTokens, temperature: 1, seed: 1 });
  const [own, ref] = [model, reference.model].map((m) => replyLogProbs(m, episodes, 1));
  return own.reduce((sum, row, i) => sum + row.reduce((s, p, t) => s + p - ref[i][t], 0), 0) / own.length;
}

/** As a stage of a recipe: prints, and leaves evaluation.json. */
export async function evaluate(config: EvaluateConfig, run: RunFolder): Promise<void> {
  const results = await evaluateModels(config, () => run.mustGoOn());
  const names = modelNames(config.models);
  console.log(await describeEvaluation(config, results, names));
  run.write(
    "evaluation.json",
    `${JSON.stringify(
      results.map((r, i) => ({ name: names[i], ...r })),
      null,
      2,
    )}\n`,
  );
  run.result("model", () => {}); // a finished stage is known by it
}

/** The result for people: some questions with every model's reply, then the table. */
export async function describeEvaluation(
  config: EvaluateConfig,
  results: readonly ModelResult[],
  names: readonly string[],
): Promise<string> {
  const questions = await questionsOf(config);
  const lines: string[] = [];
  const width = Math.max(...names.map((n) => n.length));
  const every = Math.max(1, Math.floor(questions.length / Math.max(1, config.show)));
  for (let i = 0, shown = 0; i < questions.length && shown < config.show; i += every, shown++) {
    lines.push(questions[i].question);
    results.forEach((r, m) => {
      lines.push(`  ${names[m].padEnd(width)}  ${r.right[i] ? "✓" : "✗"} ${shorten(r.replies[i])}`);
    });
  }
  const groups = Object.keys(results[0].groups);
  const first = Math.max("held-out questions".length, ...groups.map((g) => g.length));
  const cell = (text: string, m: number): string => text.padStart(Math.max(names[m].length, 8) + 2);
  lines.push("", `${"held-out questions".padEnd(first)}${names.map((n, m) => cell(n, m)).join("")}`);
  for (const group of groups)
    lines.push(
      `${group.padEnd(first)}${results.map((r, m) => cell(`${r.groups[group].right}/${r.groups[group].total}`, m)).join("")}`,
    );
  const row = (name: string, value: (r: ModelResult) => string | undefined): void => {
    if (results.some((r) => value(r) !== undefined))
      lines.push(`${name.padEnd(first)}${results.map((r, m) => cell(value(r) ?? "", m)).join("")}`);
  };
  row("mean reward", (r) => r.scores && average(r.scores).toFixed(2));
  row("judged better", (r) => (r.winRate === undefined ? undefined : `${Math.round(r.winRate * 100)}%`));
  row("KL", (r) => r.kl?.toFixed(2));
  if (config.reward) row("tokens of a reply", (r) => r.length.toFixed(1));
  return lines.join("\n");
}
