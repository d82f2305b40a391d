/**
 * C4's rules (Raffel et al. 2020, JMLR 21/20-074, section 2.2), in the order and with the thresholds of datatrove's C4QualityFilter: lines
 * first, then the page. The paper's final text says 3 sentences and 5 words, where datatrove has 5 and 3.
 */
import type { Finding, Span } from "../document.js";
import { countSentences } from "../words.js";
import type { Measured } from "./measure.js";
import { type Rule, type Signals, type Thresholds, thresholdOf } from "./rules.js";

/** Thresholds of lines change what is left of the page, so a new one needs the text. */
export const LINE_RULES: Rule[] = [
  { name: "c4.maxWordLength", signal: "c4.longestWord", kind: "max", threshold: 1000, needsText: true },
  { name: "c4.lineCitations", signal: "c4.citations", kind: "max", threshold: 0, needsText: true },
  { name: "c4.lineTerminalMarks", signal: "c4.linesWithoutMark", kind: "max", threshold: 0, needsText: true },
  { name: "c4.minWordsPerLine", signal: "c4.linesTooShort", kind: "min", threshold: 3, needsText: true },
  { name: "c4.lineJavascript", signal: "c4.linesJavascript", kind: "max", threshold: 0, needsText: true },
  { name: "c4.linePolicy", signal: "c4.linesPolicy", kind: "max", threshold: 0, needsText: true },
];
export const PAGE_RULES: Rule[] = [
  { name: "c4.minSentences", signal: "c4.sentences", kind: "min", threshold: 5 },
  { name: "c4.maxLoremIpsum", signal: "c4.loremIpsum", kind: "max", threshold: 0 },
  { name: "c4.maxCurlyBracket", signal: "c4.curlyBracket", kind: "max", threshold: 0 },
];

const CITATION = /\[\d*\]|\[edit\]|\[citation needed\]/g;
const END_MARKS = [".", "?", "!", '"', "'"];
const POLICY = ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"];

/**
 * Signals of the page that is left, one finding (verdict edit) for every kind of line that goes, and the spans. With the
 * spans cut out, what remains is the text that datatrove writes.
 */
export function c4(doc: Measured, overrides: Thresholds): { signals: Signals; findings: Finding[]; spans: Span[] } {
  const limits = Object.fromEntries(LINE_RULES.map((r) => [r.name, thresholdOf(r, overrides)]));
  const removed: Record<string, number> = Object.fromEntries(LINE_RULES.map((r) => [r.name, 0]));
  const spans: Span[] = [];
  const signals: Signals = { "c4.sentences": 0, "c4.loremIpsum": 0, "c4.curlyBracket": 0 };
  let lastKept = -1;
  for (let i = 0; i < doc.lines.length; i++) {
    const { start, end, next } = doc.lines[i];
    const verdict = judgeLine(doc.text.slice(start, end), limits);
    if (verdict.citations.length > 0 && verdict.rule !== "c4.maxWordLength")
      removed["c4.lineCitations"] += verdict.citations.length;
    if (verdict.rule === "lorem") signals["c4.loremIpsum"]++;
    else if (verdict.rule === "curly") signals["c4.curlyBracket"]++;
    else if (verdict.rule) {
      removed[verdict.rule]++;
      spans.push({ start, end: next, reason: verdict.rule });
      continue;
    }
    if (!verdict.rule) signals["c4.sentences"] += countSentences(verdict.text);
    lastKept = i;
    const raw = doc.text.slice(start, end);
    const lead = raw.length - raw.trimStart().length;
    if (lead > 0) spans.push({ start, end: start + lead, reason: "c4.trim" });
    for (const [from, to] of verdict.citations)
      spans.push({ start: start + from, end: start + to, reason: "c4.lineCitations" });
    const tail = raw.trimEnd().length;
    if (tail < raw.length) spans.push({ start: start + tail, end, reason: "c4.trim" });
  }
  // The line end after the last kept line goes too, as the kept lines are joined by line ends.
  if (lastKept >= 0 && doc.lines[lastKept].next > doc.lines[lastKept].end)
    spans.push({ start: doc.lines[lastKept].end, end: doc.lines[lastKept].next, reason: "c4.trim" });
  const findings: Finding[] = [];
  for (const rule of LINE_RULES) {
    signals[rule.signal] = removed[rule.name];
    const threshold = limits[rule.name];
    if (threshold === undefined) continue;
    const edited = removed[rule.name] > 0;
    const what = rule.name === "c4.lineCitations" ? "citation marks" : "lines";
    findings.push({
      stage: "heuristics",
      rule: rule.name,
      value: removed[rule.name],
      threshold,
      verdict: edited ? "edit" : "pass",
      ...(edited && { detail: `${removed[rule.name]} ${what} cut of ${doc.lines.length} lines` }),
    });
  }
  return { signals, findings, spans };
}

type Verdict = { rule: string; text: string; citations: [number, number][] };

function judgeLine(raw: string, limits: Record<string, number | undefined>): Verdict {
  const citations: [number, number][] = [];
  let text = raw.trim();
  const verdict = (rule: string): Verdict => ({ rule, text, citations });
  const words = text.split(/\s+/).filter((w) => w !== "");
  const longest = limits["c4.maxWordLength"];
  if (longest !== undefined && words.some((w) => w.length > longest)) return verdict("c4.maxWordLength");
  if (limits["c4.lineCitations"] !== undefined && text.includes("[")) {
    const lead = raw.length - raw.trimStart().length;
    for (const m of text.matchAll(CITATION)) citations.push([lead + m.index, lead + m.index + m[0].length]);
    text = text.replace(CITATION, "");
  }
  if (
    limits["c4.lineTerminalMarks"] !== undefined &&
    (!END_MARKS.some((m) => text.endsWith(m)) || text.endsWith("..."))
  )
    return verdict("c4.lineTerminalMarks");
  const fewest = limits["c4.minWordsPerLine"];
  if (fewest !== undefined && words.length < fewest) return verdict("c4.minWordsPerLine");
  const lower = text.toLowerCase();
  if (lower.includes("lorem ipsum")) return verdict("lorem");
  if (limits["c4.lineJavascript"] !== undefined && lower.includes("javascript")) return verdict("c4.lineJavascript");
  if (text.includes("{")) return verdict("curly");
  if (limits["c4.linePolicy"] !== undefined && POLICY.some((p) => lower.includes(p))) return verdict("c4.linePolicy");
  return verdict("");
}
