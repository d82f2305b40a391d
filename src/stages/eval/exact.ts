/**
 * Exact match: is a reply one of the accepted answers? Two strictnesses, since a chat model answers in sentences:
 *
 *   exact      the whole reply is an answer, as SQuAD compares (Rajpurkar et al. 2016): letter case, punctuation and
 *              English articles aside
 *   contains   an answer stands in the reply, as whole words where words are written apart
 */
import { average, wilson } from "./interval.js";
import type { Reply } from "./replies.js";
import type { Question } from "./tasks.js";

export interface ExactResult {
  questions: number;
  /** Share of replies that are an accepted answer, and its 95% interval. */
  exact: number;
  exactInterval: [number, number];
  /** Share of replies that contain one. */
  contains: number;
  containsInterval: [number, number];
  /** Mean tokens of a reply. */
  length: number;
  groups: Record<string, { exact: number; contains: number; questions: number }>;
}
export interface ExactOutcome {
  exact: boolean;
  contains: boolean;
}

export function judgeAnswer(reply: string, answers: readonly string[], isChat: boolean): ExactOutcome {
  // A base model goes on after its answer; the line that it ends is the answer.
  const said = isChat ? reply : (reply.trim().split(/\r?\n/, 1)[0] ?? "");
  return { exact: isExact(said, answers), contains: isRight(reply, answers) };
}

export function summarizeExact(
  questions: readonly Question[],
  outcomes: readonly ExactOutcome[],
  replies: readonly Reply[],
): ExactResult {
  const count = (key: keyof ExactOutcome, group?: string): number =>
    outcomes.filter((o, i) => o[key] && (group === undefined || questions[i].group === group)).length;
  const [exact, contains] = [wilson(count("exact"), questions.length), wilson(count("contains"), questions.length)];
  const groups: ExactResult["groups"] = {};
  for (const group of new Set(questions.map((q) => q.group))) {
    const n = questions.filter((q) => q.group === group).length;
    groups[group] = { exact: count("exact", group) / n, contains: count("contains", group) / n, questions: n };
  }
  return {
    questions: questions.length,
    exact: exact.share,
    exactInterval: exact.interval,
    contains: contains.share,
    containsInterval: contains.interval,
    length: average(replies.map((r) => r.tokens)),
    groups,
  };
}

const fold = (text: string): string => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim();

/** Whether a reply is an answer: letter case, width, punctuation, white space and English articles aside. */
export function isExact(reply: string, answers: readonly string[]): boolean {
  const bare = (text: string): string => {
    const folded = fold(text);
    const words = folded
      .replace(/[\p{P}$+<=>^`|~]/gu, "")
      .replace(/(?<![\p{L}\p{N}_])(a|an|the)(?![\p{L}\p{N}_])/gu, " ");
    // An answer that is nothing but punctuation or an article is compared as it is.
    return words.replace(/\s+/g, " ").trim() || folded;
  };
  const said = bare(reply);
  return answers.some((answer) => bare(answer) === said);
}

/** Whether a reply contains an answer: letter case and width aside, and for words written with spaces, as whole words. */
export function isRight(reply: string, answers: readonly string[]): boolean {
  const text = fold(reply);
  return answers.some((answer) => {
    const wanted = fold(answer);
    if (/[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u.test(wanted))
      return text.includes(wanted);
    const escaped = wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp(`(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "u").test(text);
  });
}
