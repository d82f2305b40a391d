/**
 * Gopher's quality and repetition rules (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 and table A1), measured as
 * datatrove measures them (GopherQualityFilter, GopherRepetitionFilter), with its thresholds.
 */
import { countOf, type Measured, ratio } from "./measure.js";
import { duplicateGramChars, gramLevels, offsetsOf, repeated, topGramChars } from "./repetition.js";
import type { Rule, Signals } from "./rules.js";

const rule = (name: string, kind: Rule["kind"], threshold: number): Rule => ({
  name: `gopher.${name}`,
  signal: `gopher.${name.replace(/^(min|max)(\w)/, (_, __, c: string) => c.toLowerCase())}`,
  kind,
  threshold,
});

export const GOPHER_QUALITY: Rule[] = [
  rule("minWords", "min", 50),
  rule("maxWords", "max", 100_000),
  rule("minMeanWordLength", "min", 3),
  rule("maxMeanWordLength", "max", 10),
  rule("maxHashRatio", "max", 0.1),
  rule("maxEllipsisRatio", "max", 0.1),
  rule("maxBulletLines", "max", 0.9),
  rule("maxEllipsisLines", "max", 0.3),
  // Called max_non_alpha_words_ratio there; it is the least fraction of words with a letter.
  rule("minAlphabeticWords", "min", 0.8),
  rule("minStopWords", "min", 2),
];

const TOP: [number, number][] = [
  [2, 0.2],
  [3, 0.18],
  [4, 0.16],
];
const DUPLICATE: [number, number][] = [
  [5, 0.15],
  [6, 0.14],
  [7, 0.13],
  [8, 0.12],
  [9, 0.11],
  [10, 0.1],
];

export const GOPHER_REPETITION: Rule[] = [
  rule("maxDuplicateLines", "max", 0.3),
  rule("maxDuplicateParagraphs", "max", 0.3),
  rule("maxDuplicateLineChars", "max", 0.2),
  rule("maxDuplicateParagraphChars", "max", 0.2),
  ...TOP.map(([n, t]) => rule(`maxTop${n}GramChars`, "max", t)),
  ...DUPLICATE.map(([n, t]) => rule(`maxDuplicate${n}GramChars`, "max", t)),
];

/** The paper's eight English words; it has no list for other languages, whose documents are not judged by it. */
const STOP_WORDS: Record<string, string[]> = { en: ["the", "be", "to", "of", "and", "that", "have", "with"] };

/** Fractions are of 1; lengths in characters. minStopWords counts different stop words, case-sensitive, as datatrove does. */
export function gopherQuality(doc: Measured): Signals {
  const { text, lines } = doc;
  const all = doc.words.count;
  const { words, chars, alphabetic } = doc.wordCounts();
  let bullets = 0;
  let ellipses = 0;
  for (let i = 0; i < lines.length; i++) {
    const line = doc.line(i).trim();
    if (line.startsWith("•") || line.startsWith("-")) bullets++;
    if (line.endsWith("...") || line.endsWith("…")) ellipses++;
  }
  // A document whose language nobody has told is taken for English, as there.
  const list = STOP_WORDS[doc.language ?? "en"];
  return {
    "gopher.words": words,
    "gopher.meanWordLength": ratio(chars, words),
    "gopher.hashRatio": ratio(countOf(text, "#"), all),
    "gopher.ellipsisRatio": ratio(countOf(text, "...") + countOf(text, "…"), all),
    "gopher.bulletLines": ratio(bullets, lines.length),
    "gopher.ellipsisLines": ratio(ellipses, lines.length),
    "gopher.alphabeticWords": ratio(alphabetic, all),
    "gopher.stopWords": list ? list.filter((w) => doc.distinctWords().has(w)).length : Number.NaN,
  };
}

export function gopherRepetition(doc: Measured): Signals {
  const { text, chars } = doc;
  const length = (part: string): number => doc.length(part);
  const paragraphs = text.trim().split(/\n{2,}/);
  const lines = text.split(/\n+/);
  const byParagraph = repeated(paragraphs, length);
  const byLine = repeated(lines, length);
  const signals: Signals = {
    "gopher.duplicateLines": ratio(byLine.count, lines.length),
    "gopher.duplicateParagraphs": ratio(byParagraph.count, paragraphs.length),
    "gopher.duplicateLineChars": ratio(byLine.chars, chars),
    "gopher.duplicateParagraphChars": ratio(byParagraph.chars, chars),
  };
  const { units, distinct, lengths } = doc.wordIds();
  const offsets = offsetsOf(lengths);
  for (const level of gramLevels(units, distinct, 10)) {
    if (level.n >= 2 && level.n <= 4)
      signals[`gopher.top${level.n}GramChars`] = ratio(topGramChars(level, offsets, 1), chars);
    if (level.n >= 5) signals[`gopher.duplicate${level.n}GramChars`] = ratio(duplicateGramChars(level, offsets), chars);
  }
  return signals;
}
