/**
 * FineWeb's own rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6), measured and with the thresholds of datatrove's
 * FineWebQualityFilter: 0.01 for characters in duplicate lines, where that section says 0.1, and two rules more.
 */
import { countOf, type Measured, ratio } from "./measure.js";
import { repeated } from "./repetition.js";
import type { Rule, Signals } from "./rules.js";

export const FINEWEB: Rule[] = [
  { name: "fineweb.minLines", signal: "fineweb.lines", kind: "min", threshold: 1 },
  { name: "fineweb.minPunctuatedLines", signal: "fineweb.punctuatedLines", kind: "min", threshold: 0.12 },
  { name: "fineweb.maxShortLines", signal: "fineweb.shortLines", kind: "max", threshold: 0.67 },
  { name: "fineweb.maxDuplicateLineChars", signal: "fineweb.duplicateLineChars", kind: "max", threshold: 0.01 },
  { name: "fineweb.maxNewLinesPerWord", signal: "fineweb.newLinesPerWord", kind: "max", threshold: 0.3 },
];
/** A line of at most this many characters is short. */
export const FINEWEB_SHORT_LINE = 30;

/** datatrove's TERMINAL_PUNCTUATION: Unicode's sentence terminals and the closing quotes. */
const TERMINAL = /[\p{Sentence_Terminal}"”]$/u;

export function fineweb(doc: Measured, shortLine: number = FINEWEB_SHORT_LINE): Signals {
  const lines = doc.text.split("\n").filter((line) => line.trim() !== "");
  const newLines = countOf(doc.text, "\n");
  let short = 0;
  let punctuated = 0;
  for (const line of lines) {
    if (doc.length(line) <= shortLine) short++;
    // Only the end is tested: an unanchored search would read every long line.
    if (TERMINAL.test(line.slice(-2))) punctuated++;
  }
  return {
    "fineweb.lines": lines.length,
    "fineweb.punctuatedLines": ratio(punctuated, lines.length),
    "fineweb.shortLines": ratio(short, lines.length),
    "fineweb.duplicateLineChars": ratio(repeated(lines, (l) => doc.length(l)).chars, doc.chars - newLines),
    "fineweb.newLinesPerWord": ratio(newLines, doc.words.count),
  };
}
