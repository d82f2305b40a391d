/**
 * Rules for Chinese, counted in characters, because words are not separated there.
 *
 * Thresholds from two published pipelines: FineWeb-2's configuration for cmn_Hani (Penedo et al. 2025, arXiv 2506.20920; its n words are
 * taken as 2n characters here) and ChineseWebText's rules (Chen et al. 2023, arXiv 2311.01149, section 3.2: length, mean length of a line,
 * share of Chinese characters, 13-grams seen before). Marks and bullets as in Gopher.
 */
import { countOf, type Measured, ratio } from "./measure.js";
import { duplicateGramChars, gramLevels, offsetsOf, repeated, topGramChars } from "./repetition.js";
import type { Rule, Signals } from "./rules.js";

const rule = (name: string, kind: Rule["kind"], threshold: number): Rule => ({
  name: `zh.${name}`,
  signal: `zh.${name.replace(/^(min|max)(\w)/, (_, __, c: string) => c.toLowerCase())}`,
  kind,
  threshold,
});

const TOP: [number, number][] = [
  [4, 0.256],
  [6, 0.201],
  [8, 0.171],
];
const DUPLICATE: [number, number][] = [
  [10, 0.198],
  [12, 0.182],
  [13, 0.5],
  [14, 0.167],
  [16, 0.154],
  [18, 0.14],
  [20, 0.127],
];

export const ZH: Rule[] = [
  rule("minCharacters", "min", 200),
  rule("maxCharacters", "max", 200_000),
  rule("minHanFraction", "min", 0.3),
  rule("minMeanLineLength", "min", 10),
  rule("minPunctuatedLines", "min", 0.106),
  rule("minStopWords", "min", 2),
  rule("maxHashRatio", "max", 0.1),
  rule("maxEllipsisRatio", "max", 0.1),
  rule("maxBulletLines", "max", 0.9),
  rule("maxEllipsisLines", "max", 0.3),
  rule("maxDuplicateLines", "max", 0.287),
  rule("maxDuplicateLineChars", "max", 0.2),
  ...TOP.map(([n, t]) => rule(`maxTop${n}GramChars`, "max", t)),
  ...DUPLICATE.map(([n, t]) => rule(`maxDuplicate${n}GramChars`, "max", t)),
];

/** FineWeb-2's stop words for cmn_Hani that are words (its list also has a middle dot). */
const STOP_WORDS = [..."的年在月是和日了於為有被人中为他與後也而由"];

const TERMINAL = /[\p{Sentence_Terminal}"”』」…]$/u;
const BULLET = /^[•·●○◆◇■□▪★☆※\-–—]/;

export function zh(doc: Measured): Signals {
  const lines = doc.text.split("\n").filter((line) => line.trim() !== "");
  let bullets = 0;
  let ellipses = 0;
  let punctuated = 0;
  let inLines = 0;
  for (const raw of lines) {
    const line = raw.trim();
    inLines += doc.length(line);
    if (BULLET.test(line)) bullets++;
    if (line.endsWith("...") || line.endsWith("…")) ellipses++;
    if (TERMINAL.test(line.slice(-2))) punctuated++;
  }
  const units = codePoints(doc.text);
  const byLine = repeated(lines, (line) => doc.length(line));
  const total = units.ids.length;
  const signals: Signals = {
    "zh.characters": total,
    "zh.hanFraction": ratio(units.han, total),
    "zh.meanLineLength": ratio(inLines, lines.length),
    "zh.punctuatedLines": ratio(punctuated, lines.length),
    "zh.stopWords": STOP_WORDS.filter((w) => doc.text.includes(w)).length,
    "zh.hashRatio": ratio(countOf(doc.text, "#"), total),
    "zh.ellipsisRatio": ratio(countOf(doc.text, "...") + countOf(doc.text, "…"), total),
    "zh.bulletLines": ratio(bullets, lines.length),
    "zh.ellipsisLines": ratio(ellipses, lines.length),
    "zh.duplicateLines": ratio(byLine.count, lines.length),
    "zh.duplicateLineChars": ratio(byLine.chars, total),
  };
  const offsets = offsetsOf(new Uint8Array(total).fill(1));
  const top = new Set(TOP.map(([n]) => n));
  const duplicate = new Set(DUPLICATE.map(([n]) => n));
  for (const level of gramLevels(units.ids, units.distinct, 20)) {
    if (top.has(level.n)) signals[`zh.top${level.n}GramChars`] = ratio(topGramChars(level, offsets, 0), total);
    if (duplicate.has(level.n))
      signals[`zh.duplicate${level.n}GramChars`] = ratio(duplicateGramChars(level, offsets), total);
  }
  return signals;
}

/** The characters that are no white space, as ids, and how many of them are Han. */
function codePoints(text: string): { ids: Int32Array; distinct: number; han: number } {
  const known = new Map<number, number>();
  const isHan: boolean[] = [];
  const ids = new Int32Array(text.length);
  let count = 0;
  let han = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.codePointAt(i)!;
    if (code > 0xffff) i++;
    let id = known.get(code);
    if (id === undefined) {
      const char = String.fromCodePoint(code);
      id = /\s/u.test(char) ? -1 : isHan.length;
      known.set(code, id);
      if (id >= 0) isHan.push(/\p{Script=Han}/u.test(char));
    }
    if (id < 0) continue;
    if (isHan[id]) han++;
    ids[count++] = id;
  }
  return { ids: ids.subarray(0, count), distinct: isHan.length, han };
}
