/**
 * Decontamination: runs of 13 words that stand in an evaluation set too (Brown et al. 2020, arXiv 2005.14165, appendix C). Words in lower
 * case without punctuation; in scripts without spaces a character is a word. An item of fewer words is looked for whole, down to 8 words as there.
 */
import { openTextKernels } from "../device/text.js";
import { UserError } from "../run/errors.js";
import type { Finding, Span } from "./document.js";
import { wordsOf } from "./substring.js";

export interface DecontaminateOptions {
  /** Words of a run. */
  n: number;
  /** Items with fewer words are in every text, and are left out. */
  minWords: number;
  /** drop: the document goes. cut: the run goes with `margin` characters around it, as GPT-3 did. */
  mode: "drop" | "cut";
  margin: number;
  /** With cut, a piece shorter than this goes too; a document in more than `maxPieces` pieces goes as a whole. */
  minPiece: number;
  maxPieces: number;
}
export const DECONTAMINATE_DEFAULTS: DecontaminateOptions = {
  n: 13,
  minWords: 8,
  mode: "drop",
  margin: 200,
  minPiece: 200,
  maxPieces: 10,
};

/** From a 64-bit hash to a number, with open addressing: a Map of BigInt would take ten times the memory. */
class HashTable {
  private keys = new BigUint64Array(1024);
  private values = new Int32Array(1024);
  size = 0;
  set(key: bigint, value: number): void {
    if (this.size * 2 >= this.keys.length) this.grow();
    const at = this.find(key);
    if (this.values[at] !== 0) return;
    this.keys[at] = key;
    this.values[at] = value + 1;
    this.size++;
  }
  get(key: bigint): number | undefined {
    const value = this.values[this.find(key)];
    return value === 0 ? undefined : value - 1;
  }
  private find(key: bigint): number {
    const mask = this.keys.length - 1;
    let at = Number(key & 0xffffffffn) & mask;
    while (this.values[at] !== 0 && this.keys[at] !== key) at = (at + 1) & mask;
    return at;
  }
  private grow(): void {
    const { keys, values } = this;
    this.keys = new BigUint64Array(keys.length * 2);
    this.values = new Int32Array(values.length * 2);
    this.size = 0;
    for (let i = 0; i < keys.length; i++) if (values[i] !== 0) this.set(keys[i], values[i] - 1);
  }
}

export interface Contamination {
  /** Evaluation set and item, as given to `addEvaluation`. */
  set: string;
  item: string;
  /** UTF-16 offsets of the run in the document. */
  start: number;
  end: number;
}

export class Decontaminator {
  readonly options: DecontaminateOptions;
  private readonly items: { set: string; item: string }[] = [];
  /** By words of a run: n for most, fewer for short items. */
  private readonly tables = new Map<number, HashTable>();
  /** Items too short to look for, by set. */
  readonly skipped = new Map<string, number>();

  constructor(options: Partial<DecontaminateOptions> = {}) {
    this.options = { ...DECONTAMINATE_DEFAULTS, ...options };
    const { n, minWords, mode } = this.options;
    if (!Number.isInteger(n) || n < 2)
      throw new UserError(`decontaminate.words is ${n}; it must be a whole number of words, at least 2.`, 2);
    if (!Number.isInteger(minWords) || minWords < 1 || minWords > n)
      throw new UserError(`decontaminate.minWords is ${minWords}; it must be from 1 to decontaminate.words (${n}).`, 2);
    if (mode !== "drop" && mode !== "cut")
      throw new UserError(`decontaminate.mode is "${mode}"; it is drop or cut.`, 2);
  }

  /** One item of an evaluation set: question, context and answer as one text, or each by itself. False: it is too short to look for. */
  addEvaluation(set: string, item: string, text: string): boolean {
    const { tokens } = wordsOf(text.normalize("NFC"));
    const words = Math.min(this.options.n, tokens.length);
    if (words < this.options.minWords) {
      if (words > 0) this.skipped.set(set, (this.skipped.get(set) ?? 0) + 1);
      return false;
    }
    let table = this.tables.get(words);
    if (!table) {
      table = new HashTable();
      this.tables.set(words, table);
    }
    this.items.push({ set, item });
    for (const hash of windows(tokens, words)) table.set(hash, this.items.length - 1);
    return true;
  }

  /** How many different runs are looked for. */
  get runs(): number {
    return [...this.tables.values()].reduce((sum, t) => sum + t.size, 0);
  }

  /** All runs of the text that stand in an evaluation set; ones that overlap are joined, under the first one's item. */
  find(text: string): Contamination[] {
    // Evaluation items are in NFC; composing the letters here would move the offsets, so only the hashes come from that form.
    const same = text.normalize("NFC") === text;
    const { tokens, starts } = wordsOf(text);
    const hashed = same ? tokens : wordsOf(text.normalize("NFC")).tokens;
    const found: Contamination[] = [];
    // Where normalising changes the number of words, offsets would be wrong: then the text's own form has to do.
    const searched = hashed.length === tokens.length ? hashed : tokens;
    const hits: { at: number; words: number; item: number }[] = [];
    for (const [words, table] of this.tables) {
      windows(searched, words).forEach((hash, at) => {
        const item = table.get(hash);
        if (item !== undefined) hits.push({ at, words, item });
      });
    }
    hits.sort((a, b) => a.at - b.at || b.words - a.words);
    for (const { at, words, item } of hits) {
      const start = starts[at];
      const end = endOfWord(text, starts, at + words - 1);
      const last = found.at(-1);
      if (last && start <= last.end) last.end = Math.max(last.end, end);
      else found.push({ ...this.items[item], start, end });
    }
    return found;
  }

  /** Judges one document. */
  evaluate(text: string): { findings: Finding[]; spans: Span[]; hits: Contamination[] } {
    const hits = this.find(text);
    const finding: Finding = {
      stage: "decontaminate",
      rule: "decontaminate.runs",
      value: hits.length,
      threshold: 0,
      verdict: "pass",
    };
    if (hits.length === 0) return { findings: [finding], spans: [], hits };
    const { set, item, start, end } = hits[0];
    finding.detail = `${set} ${item}: "${text.slice(start, Math.min(end, start + 120)).replace(/\s+/g, " ")}"`;
    const spans = this.options.mode === "cut" ? this.cuts(text, hits) : [];
    const kept = text.length - spans.reduce((sum, s) => sum + s.end - s.start, 0);
    const pieces = spans.length + 1;
    finding.verdict = this.options.mode === "cut" && pieces <= this.options.maxPieces && kept > 0 ? "edit" : "drop";
    return { findings: [finding], spans: finding.verdict === "edit" ? spans : [], hits };
  }

  private cuts(text: string, hits: readonly Contamination[]): Span[] {
    const { margin, minPiece } = this.options;
    const spans: Span[] = [];
    for (const hit of hits) {
      const start = Math.max(0, hit.start - margin);
      const end = Math.min(text.length, hit.end + margin);
      const last = spans.at(-1);
      // A piece between two cuts that is too short goes with them.
      if (last && start - last.end < minPiece) last.end = end;
      else spans.push({ start: start < minPiece ? 0 : start, end, reason: "decontaminate.runs" });
    }
    const last = spans[spans.length - 1];
    if (text.length - last.end < minPiece) last.end = text.length;
    return spans;
  }
}

function windows(tokens: Uint32Array, words: number): BigUint64Array {
  const hashes = new BigUint64Array(Math.max(0, tokens.length - words + 1));
  openTextKernels().suffixWindows(tokens, tokens.length, words, 0, hashes);
  return hashes;
}

/** The last unit of word i: up to the next word there may be marks and spaces, which do not belong to it. */
function endOfWord(text: string, starts: Int32Array, i: number): number {
  const next = i + 1 < starts.length ? starts[i + 1] : text.length;
  const word = /^[\p{L}\p{M}\p{N}_]+/u.exec(text.slice(starts[i], next));
  return starts[i] + Math.max(1, word?.[0].length ?? 1);
}
