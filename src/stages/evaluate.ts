/**
 * Evaluation on held-out questions: every model answers greedily, a reply is right when it contains one of the accepted
 * answers. Base and tuned models stand side by side: what fine-tuning adds, and what was known before.
 */
import { basename, dirname } from "node:path";
import { z } from "zod";
import { DialogueEncoder } from "../dialogue/mask.js";
import { jsonRecords } from "../dialogue/records.js";
import { generate } from "../generate/generate.js";
import { type Loaded, loadForGeneration } from "../generate/loaded.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { type Question, questionOf } from "./eval/tasks.js";
import { openJudge, replyLogProbs, rollout } from "./rollout.js";

export const evaluateSchema = z.strictObject({
  stage: z.literal("evaluate").optional(),
  /** Model folders; the first ones in the table. */
  models: z.array(z.string().min(1)).min(1),
  /** JSONL with question, answers (or answer), and optionally field and language. */
  file: z.string().min(1),
  maxTokens: z.int().min(1).default(48),
  batchSize: z.int().min(1).default(32),
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

export function readQuestions(file: string): Question[] {
  return [...jsonRecords(file)].map(({ line, value, error }) => {
    const question = error ?? questionOf((value ?? {}) as Record<string, unknown>);
    if (typeof question === "string") throw new UserError(`${file}:${line}: ${question}.`);
    return question;
  });
}

/** Whether a reply contains an answer: letter case and width aside, and for words written with spaces, as whole words. */
export function isRight(reply: string, answers: readonly string[]): boolean {
  const fold = (s: string): string => s.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim();
  const text = fold(reply);
  return answers.some((answer) => {
    const wanted = fold(answer);
    if (/[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u.test(wanted))
      return text.includes(wanted);
    const escaped = wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp(`(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "u").test(text);
  });
}

/** The questions of a config: those of its field. */
const questionsOf = (config: EvaluateConfig): Question[] =>
  readQuestions(config.file).filter((q) => config.field === undefined || q.group.split(" ").includes(config.field));

/** Greedy replies of one model. A tuned model is asked through its chat template; a base model continues the question. */
export function answer(
  { model, tokenizer, stop }: Loaded,
  questions: readonly string[],
  { maxTokens, batchSize }: { maxTokens: number; batchSize: number },
): string[] {
  const encoder = tokenizer.chatTemplate === undefined ? undefined : new DialogueEncoder(tokenizer);
  const prompts = questions.map((content) => encoder?.prompt([{ role: "user", content }]) ?? tokenizer.encode(content));
  const replies: string[] = [];
  for (let i = 0; i < prompts.length; i += batchSize)
    for (const { ids } of generate(model, prompts.slice(i, i + batchSize), { maxTokens, temperature: 0, stop }))
      replies.push(tokenizer.decode(ids, { skipSpecialTokens: true }).trim());
  return replies;
}

export async function evaluateModels(config: EvaluateConfig): Promise<ModelResult[]> {
  const questions = questionsOf(config);
  if (questions.length === 0)
    throw new UserError(
      `${config.file}: there are no questions in it${config.field ? ` of the field "${config.field}"` : ""}.`,
    );
  const texts = questions.map((q) => q.question);
  const reference = config.reference === undefined ? undefined : loadForGeneration(config.reference);
  const results: ModelResult[] = [];
  for (const dir of config.models) {
    const loaded = loadForGeneration(dir);
    const replies = answer(loaded, texts, config);
    const right = replies.map((reply, i) => isRight(reply, questions[i].answers));
    const groups: ModelResult["groups"] = {};
    questions.forEach(({ group }, i) => {
      groups[group] ??= { right: 0, total: 0 };
      groups[group].total++;
      if (right[i]) groups[group].right++;
    });
    const length = replies.reduce((n, r) => n + loaded.tokenizer.encode(r).length, 0) / replies.length;
    const result: ModelResult = { model: dir, replies, right, groups, length };
    if (config.reward) result.scores = await judged(config.reward, loaded, texts, replies);
    if (reference && loaded.tokenizer.chatTemplate !== undefined)
      result.kl = sampledKl(loaded, reference, texts, config);
    loaded.model.close();
    results.push(result);
  }
  const standard = results.find((r) => r.model === config.reference)?.scores;
  for (const r of results)
    if (standard && r.scores)
      r.winRate =
        r.scores.reduce((n, s, i) => n + (s > standard[i] ? 1 : s === standard[i] ? 0.5 : 0), 0) / standard.length;
  reference?.model.close();
  return results;
}

async function judged(
  source: string,
  { model, tokenizer }: Loaded,
  questions: readonly string[],
  replies: readonly string[],
): Promise<number[]> {
  const judge = await openJudge(source, model.device, model.precision, tokenizer, "the model");
  const encoder = tokenizer.chatTemplate === undefined ? undefined : new DialogueEncoder(tokenizer);
  const episodes = questions.map((content, line) => {
    const messages = [{ role: "user", content }] as const;
    const prompt = encoder?.prompt([...messages]) ?? Int32Array.from(tokenizer.encode(content));
    const ids = Int32Array.from([
      ...prompt,
      ...tokenizer.encode(replies[line], { allowSpecial: false }),
      ...(tokenizer.eosId === undefined ? [] : [tokenizer.eosId]),
    ]);
    return {
      prompt: { messages: [...messages], ids: prompt, source: { file: "the questions", line: line + 1 } },
      ids,
      start: prompt.length,
      text: replies[line],
      finished: true,
    };
  });
  const scores = await judge.score(episodes);
  judge.close();
  return scores;
}

/** Mean over prompts of log p(reply) - log p_ref(reply), the reply sampled from the model: an estimate of KL(p || p_ref). */
function sampledKl(
  { model, tokenizer }: Loaded,
  reference: Loaded,
  questions: readonly string[],
  { maxTokens }: EvaluateConfig,
): number {
  const encoder = new DialogueEncoder(tokenizer);
  const prompts = questions.map((content, line) => {
    const messages = [{ role: "user" as const, content }];
    return { messages, ids: encoder.prompt(messages), source: { file: "the questions", line: line + 1 } };
  });
  const episodes = rollout(model, tokenizer, prompts, { maxTokens, temperature: 1, seed: 1 });
  const [own, ref] = [model, reference.model].map((m) => replyLogProbs(m, episodes, 1));
  return own.reduce((sum, row, i) => sum + row.reduce((s, p, t) => s + p - ref[i][t], 0), 0) / own.length;
}

/** As a stage of a recipe: prints, and leaves evaluation.json. */
export async function evaluate(config: EvaluateConfig, run: RunFolder): Promise<void> {
  const results = await evaluateModels(config);
  const names = config.models.map((dir) => basename(basename(dir) === "model" ? dirname(dir) : dir));
  console.log(describeEvaluation(config, results, names));
  run.result("model", () => {}); // a finished stage is known by it
  run.write(
    "evaluation.json",
    `${JSON.stringify(
      results.map((r, i) => ({ name: names[i], ...r })),
      null,
      2,
    )}\n`,
  );
}

/** The result for people: some questions with every model's reply, then the table. */
export function describeEvaluation(
  config: EvaluateConfig,
  results: readonly ModelResult[],
  names: readonly string[],
): string {
  const questions = questionsOf(config);
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
  row("mean reward", (r) => r.scores && (r.scores.reduce((a, b) => a + b, 0) / r.scores.length).toFixed(2));
  row("judged better", (r) => (r.winRate === undefined ? undefined : `${Math.round(r.winRate * 100)}%`));
  row("KL", (r) => r.kl?.toFixed(2));
  if (config.reward) row("tokens of a reply", (r) => r.length.toFixed(1));
  return lines.join("\n");
}
const shorten = (text: string): string => {
  const line = text.replace(/\s+/g, " ");
  return line.length > 90 ? `${line.slice(0, 90)}…` : line;
};
