/**
 * Exact match: is a reply one of the accepted answers? Two strictnesses, since a chat model answers in sentences:
 *
 *   exact      the whole reply is an answer, as SQuAD compares (Rajpurkar et al. 2016): letter case, punctuation and
 *              English articles aside
 *   contains   an answer stands in the reply, as whole words where words are written apart
 *
 * Numbers are compared as numbers: 1,000 is 1000, and 18 stands neither in 18,000 nor in -18. Where a task has its replies reason
 * (GSM8K), they name many numbers on the way, and the one they arrive at counts, as in the Language Model Evaluation Harness (Gao et al. 2021):
 *
 *   exact      the reply is the number, or has it behind "####" as the benchmark's own answers do (strict-match)
 *   contains   it is the last number of the reply (flexible-extract)
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

/** `reasoned`: the reply may be a way to a number, and what it arrives at counts. */
export function judgeAnswer(
  reply: string,
  answers: readonly string[],
  isChat: boolean,
  reasoned = false,
): ExactOutcome {
  // A base model goes on after its answer; the line that it ends is the answer.
  const said = isChat ? reply : (reply.trim().split(/\r?\n/, 1)[0] ?? "");
  const exact = isExact(said, answers);
  if (!reasoned) return { exact, contains: isRight(reply, answers) };
  const wanted = answers.map(numberOf);
  const isWanted = (value: string | undefined): boolean => value !== undefined && wanted.includes(value);
  const marked = exact || isWanted(numbersIn(reply, MARKED)[0]);
  return { exact: marked, contains: marked || isWanted(numbersIn(reply).at(-1)) };
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

const ARTICLES = /(?<![\p{L}\p{N}_])(a|an|the)(?![\p{L}\p{N}_])/gu;
/** SQuAD's string.punctuation, with the punctuation of all scripts. */
const PUNCTUATION = /[\p{P}$+<=>^`|~]/gu;

/**
 * Whether a reply is an answer: letter case, width, punctuation, white space and English articles aside. A number is compared as one: its
 * sign and its point are no punctuation.
 */
export function isExact(reply: string, answers: readonly string[]): boolean {
  const bare = (text: string): string => {
    const folded = fold(text);
    const words = folded.replace(PUNCTUATION, "").replace(ARTICLES, " ");
    // An answer that is nothing but punctuation or an article is compared as it is.
    return words.replace(/\s+/g, " ").trim() || folded;
  };
  const [said, number] = [bare(reply), numberOf(reply)];
  return answers.some((answer) => {
    const wanted = numberOf(answer);
    return wanted === undefined ? bare(answer) === said : wanted === number;
  });
}

/**
 * Whether a reply contains an answer: a number among its numbers; anything else letter case and width aside, and for words written with
 * spaces, as whole words.
 */
export function isRight(reply: string, answers: readonly string[]): boolean {
  const text = fold(reply);
  const numbers = numbersIn(reply);
  return answers.some((answer) => {
    const number = numberOf(answer);
    if (number !== undefined) return numbers.includes(number);
    const wanted = fold(answer);
    const escaped = `${UNCUT_BEFORE}${wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}${UNCUT_AFTER}`;
    const isUnspaced = new RegExp(UNSPACED, "u").test(wanted);
    return new RegExp(isUnspaced ? escaped : `(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "u").test(text);
  });
}

const UNSPACED = String.raw`[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]`;
/** Of a script that is written with spaces: what touches it is the same word. */
const LETTER = String.raw`(?!${UNSPACED})\p{L}`;
/** Between digits they make one thing of both: 3.14, 1/2, 10:30, 2^10, 18,000. A list's comma, and a range's or a date's hyphen, do not. */
const JOINT = String.raw`(?:[.:/\u2044^]|,(?=\d{3}(?!\d)))`;
/** What begins or ends with a digit does so where the number does. */
const UNCUT_BEFORE = String.raw`(?<!\d${JOINT}?(?=\d))`;
const UNCUT_AFTER = String.raw`(?!(?<=\d)${JOINT}?\d)`;
/** No hyphen of a range or a word (3-4, F-16), nor behind a bracket, a percent sign or a price: there it subtracts. */
const MINUS = String.raw`(?<minus>(?<!\p{N}|${LETTER}|[)\]%]|\d\p{Sc})[-\u2212\u2013]\p{Sc}?)`;
/** 18 thousand, 18万, 3 1/2: more than the 18, the 3. A 千克 is a kilogram. */
const GOES_ON = String.raw`\s?(?:[十百万萬亿億]|千(?![克米瓦])|(?:hundred|thousand|million|billion|trillion)(?!\p{L})|(?<=\s)\d+[/\u2044]\d)`;
const DIGITS = String.raw`(?<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\.)\.\d+)`;
const NUMBER = String.raw`${MINUS}?${UNCUT_BEFORE}(?<![\p{N}√]|${LETTER}[-\u2010]?)${DIGITS}${UNCUT_AFTER}(?!\p{N}|${LETTER}|${GOES_ON})`;
const ANYWHERE = new RegExp(NUMBER, "gu");
/** Behind the sign that ends GSM8K's answers. */
const MARKED = new RegExp(`(?<=####\\s*\\p{Sc}?)${NUMBER}`, "gu");

/** The numbers that stand in a text, in their order, each number in one spelling: 1,000.50 as 1000.5. */
const numbersIn = (text: string, pattern = ANYWHERE): string[] =>
  Array.from(fold(text).matchAll(pattern), ({ groups: { minus, digits } = {} }) => {
    const [whole, decimals = ""] = digits.replaceAll(",", "").split(".");
    const fraction = decimals.replace(/0+$/, "");
    return `${minus ? "-" : ""}${whole || "0"}${fraction && `.${fraction}`}`;
  });

/** The number that a text is, with signs of money and percent, punctuation and articles around it. */
function numberOf(text: string): string | undefined {
  const around = fold(text)
    .replace(ANYWHERE, "")
    .replace(PUNCTUATION, "")
    .replace(/\p{Sc}/gu, "")
    .replace(ARTICLES, "");
  const numbers = numbersIn(text);
  return numbers.length === 1 && around.trim() === "" ? numbers[0] : undefined;
}
