/**
 * Harmful words by language: the "List of Dirty, Naughty, Obscene and Otherwise Bad Words" (package naughty-words, CC BY 4.0), which
 * C4 used too (Raffel et al. 2020, section 2.2). There one word dropped a page, and with it much that is medical, or by minorities
 * (Dodge et al. 2021, arXiv 2104.08758, section 4.4); here the share of such words decides. `harmful.maxDistinct: 0` is C4's rule.
 */
import { createRequire } from "node:module";
import type { Finding } from "./document.js";
import { ratio } from "./heuristics/measure.js";
import { judge, type Rule, type Signals, type Thresholds } from "./heuristics/rules.js";
import { isSpaceless, SYMBOL, splitWords, unitClasses, wordAt } from "./words.js";

/** Thresholds of this project. */
export const HARMFUL: Rule[] = [
  { name: "harmful.maxFraction", signal: "harmful.fraction", kind: "max", threshold: 0.01 },
  { name: "harmful.maxDistinct", signal: "harmful.distinct", kind: "max", threshold: 5 },
];

/** Listed words that are parts of ordinary ones where words are not separated (datatrove's C4BadWordsFilter allows them too). */
const ALLOWED: Record<string, string[]> = { ja: ["sm", "グロ", "女の子"], zh: ["性"] };

const require = createRequire(import.meta.url);
/** ISO 639-1, and what the package names otherwise. */
const FILES: Record<string, string> = { nb: "no", nn: "no", tl: "fil" };

/** Words that begin with the same unit: the first word of a phrase, or the first character. */
type Index = Map<string, string[]>;
const indexes = new Map<string, Index | undefined>();

function listed(language: string): string[] | undefined {
  if (!/^[a-z]{2,3}$/.test(language)) return undefined;
  let words: string[];
  try {
    words = require(`naughty-words/${FILES[language] ?? language}.json`);
  } catch (error) {
    // The list of another language is no substitute: "dick" is German for thick.
    if ((error as NodeJS.ErrnoException).code === "MODULE_NOT_FOUND") return undefined;
    throw error;
  }
  const allowed = new Set(ALLOWED[language] ?? []);
  return words.map((w) => w.normalize("NFC").toLowerCase().trim()).filter((w) => w !== "" && !allowed.has(w));
}

function indexOf(language: string): Index | undefined {
  if (indexes.has(language)) return indexes.get(language);
  const words = listed(language);
  let index: Index | undefined;
  if (words) {
    index = new Map();
    for (const word of words) {
      const first = isSpaceless(language) ? word[0] : wordAt(splitWords(word), 0);
      index.set(
        first,
        [...(index.get(first) ?? []), word].sort((a, b) => b.length - a.length),
      );
    }
  }
  indexes.set(language, index);
  return index;
}

/** Every listed word in the text and how often; undefined when the language has no list. */
export function harmfulWords(text: string, language: string): Map<string, number> | undefined {
  const index = indexOf(language);
  if (!index) return undefined;
  const found = new Map<string, number>();
  const lower = text.normalize("NFC").toLowerCase();
  const hit = (at: number, key: string, whole: boolean): number => {
    for (const word of index.get(key) ?? []) {
      if (!lower.startsWith(word, at)) continue;
      // The next unit must not go on with the word: 1 is the class of letters and digits.
      if (whole && unitClasses()[lower.charCodeAt(at + word.length)] === 1) continue;
      found.set(word, (found.get(word) ?? 0) + 1);
      return word.length;
    }
    return 0;
  };
  if (isSpaceless(language)) {
    // Latin words among the ideographs keep their borders.
    const latin = (at: number): boolean => unitClasses()[lower.charCodeAt(at)] === 1;
    for (let i = 0; i < lower.length; i++) {
      if (latin(i) && i > 0 && latin(i - 1)) continue;
      i += Math.max(0, hit(i, lower[i], latin(i)) - 1);
    }
  } else {
    const words = splitWords(lower);
    for (let i = 0; i < words.count; i++) hit(words.starts[i], wordAt(words, i), true);
  }
  return found;
}

/** Measures and judges; `language` undefined, or without a list: recorded as not measured. */
export function evaluateHarmful(
  text: string,
  language: string | undefined,
  thresholds: Thresholds = {},
): { signals: Signals; findings: Finding[] } {
  const found = language ? harmfulWords(text, language) : undefined;
  const signals: Signals = { "harmful.fraction": Number.NaN, "harmful.distinct": Number.NaN };
  let detail: string | undefined;
  if (found) {
    const words = splitWords(text);
    let units = 0;
    for (let i = 0; i < words.count; i++) if (words.kinds[i] !== SYMBOL) units++;
    let count = 0;
    // A phrase weighs as many units as it has, so that the fraction is one of the text.
    for (const [word, times] of found) count += times * splitWords(word).count;
    signals["harmful.fraction"] = ratio(count, units);
    signals["harmful.distinct"] = found.size;
    // The count and not the words: reports are read at work.
    if (found.size > 0) detail = `${[...found.values()].reduce((a, b) => a + b, 0)} hits, ${found.size} different`;
  }
  const findings = judge(HARMFUL, signals, thresholds).map((f) => ({
    ...f,
    stage: "harmful",
    ...(detail ? { detail } : {}),
    ...(found ? {} : { detail: `not measured: there is no list for ${language ?? "an unknown language"}` }),
  }));
  return { signals, findings };
}
