/**
 * Exact substring deduplication at sequence level: spans of at least N tokens that stand in the corpus more than once
 * (Lee et al. 2022, arXiv 2107.06499, section 4.1; N = 50 there).
 *
 * Defined by windows of N tokens, so that two methods can find the same: a window is repeated if the same N tokens stand elsewhere, inside
 * a document and without overlap. `keep-first` removes every window at least N after its first place; `remove-all` removes all. In memory
 * the windows are grouped by a suffix array; beyond that by hashes on disk (windows.ts).
 */
import { openTextKernels } from "../device/text.js";
import { UserError } from "../run/errors.js";
import type { Span } from "./document.js";
import { WindowFiles } from "./windows.js";
import { lowerCase, unitClasses } from "./words.js";

export interface SubstringOptions {
  /** N: tokens of the shortest span. */
  length: number;
  mode: "keep-first" | "remove-all";
  /** Up to so many tokens the suffix array is used: it takes 36 bytes a token. */
  memoryTokens: number;
  /** Where the hashed windows go when there are more (16 bytes a token); removed in the end. */
  directory?: string;
}
export const SUBSTRING_DEFAULTS: SubstringOptions = { length: 50, mode: "keep-first", memoryTokens: 40_000_000 };

/** Offsets in tokens of one document. */
export interface TokenSpan {
  start: number;
  end: number;
}

export interface Tokens {
  tokens: Uint32Array;
  /** Where each token begins in the text, in UTF-16 units. */
  starts: Int32Array;
}

/** Used again by every call: a token has at least one unit, so they are as long as the longest text. */
let units = new Uint16Array(1 << 16);
let cutTokens = new Uint32Array(1 << 16);
let cutStarts = new Int32Array(1 << 16);

/** Words and symbols as 32-bit hashes: the tokens of this stage, whatever tokenizer the recipe has. Case and marks count. */
export const tokensOf = (text: string): Tokens => cut(text, null);
/** Words only, in lower case. */
export const wordsOf = (text: string): Tokens => cut(text, lowerCase());

function cut(text: string, fold: Uint16Array | null): Tokens {
  const n = text.length;
  if (units.length < n) {
    units = new Uint16Array(n * 2);
    cutTokens = new Uint32Array(n * 2);
    cutStarts = new Int32Array(n * 2);
  }
  Buffer.from(units.buffer, units.byteOffset, units.byteLength).write(text, "utf16le");
  const count = openTextKernels().suffixTokens(units, n, unitClasses(), fold, cutTokens, cutStarts);
  return { tokens: cutTokens.slice(0, count), starts: cutStarts.slice(0, count) };
}

/** Spans of tokens as spans of the text: from the first token to the beginning of the one after the last. */
export const textSpans = (spans: readonly TokenSpan[], starts: Int32Array, text: string): Span[] =>
  spans.map(({ start, end }) => ({
    start: starts[start],
    end: end < starts.length ? starts[end] : text.length,
    reason: "substring",
  }));

/** Places where windows begin that are to go. */
export interface Marks {
  /** The first marked place that is not before `from`; -1 if there is none. */
  next(from: number): number;
  /** The last marked place that is not behind `from`; -1 if there is none. It is asked for where one is near. */
  previous(from: number): number;
}

/** Joins the windows that begin at the marked places into spans, document by document. A window lies in one document. */
export function spansFromMarks(marks: Marks, ends: readonly number[], length: number): TokenSpan[][] {
  let start = 0;
  let at = marks.next(0);
  return ends.map((end) => {
    const spans: TokenSpan[] = [];
    while (at >= 0 && at < end) {
      // A window that begins inside this one, or where it ends, goes on with the span: on from the last of them.
      let last = at;
      for (let further = at; ; last = further) {
        further = marks.previous(Math.min(last + length, end - 1));
        if (further === last) break;
      }
      spans.push({ start: at - start, end: last + length - start });
      at = marks.next(last + 1);
    }
    start = end;
    return spans;
  });
}

/** Marks as bits, the lowest of a byte first. */
function bitMarks(bits: Uint8Array, n: number): Marks {
  const marked = (at: number): boolean => ((bits[Math.floor(at / 8)] >> (at % 8)) & 1) === 1;
  return {
    next(from) {
      for (let at = from; at < n; at++) {
        if (at % 8 === 0) while (at < n && bits[at / 8] === 0) at += 8;
        if (at < n && marked(at)) return at;
      }
      return -1;
    },
    previous(from) {
      let at = from;
      while (at >= 0 && !marked(at)) at--;
      return at;
    },
  };
}

/** In memory: tokens of all documents laid end to end, `ends[d]` = where document d ends. */
export function repeatedSpans(
  tokens: Uint32Array,
  ends: readonly number[],
  options: Pick<SubstringOptions, "length" | "mode">,
): TokenSpan[][] {
  const { length, mode } = options;
  const n = tokens.length;
  // One piece of memory, and what follows the sort lies where the sort had its work: new memory takes longer than the arithmetic.
  const work = 24 * n + 64;
  const memory = new ArrayBuffer(work + 8 * n);
  const sa = new Uint32Array(memory, work, n);
  const rank = new Uint32Array(memory, work + 4 * n, n);
  const kernels = openTextKernels();
  kernels.suffixSort(tokens, n, length, sa, rank, new Uint8Array(memory, 0, work));
  const room = new Uint32Array(memory, 0, n);
  for (let d = 0, i = 0; d < ends.length; d++) for (const end = ends[d]; i < end; i++) room[i] = end - i;
  const marks = new Uint8Array(memory, 4 * n, n).fill(0);
  kernels.suffixRepeats(sa, rank, n, length, room, mode === "keep-first" ? 1 : 0, marks);
  return spansFromMarks(
    { next: (from) => marks.indexOf(1, from), previous: (from) => marks.lastIndexOf(1, from) },
    ends,
    length,
  );
}

/**
 * Takes the documents one after the other and finds what is repeated; goes to disk when they grow beyond `memoryTokens`.
 * The order of `add` says which place is the first.
 */
export class RepeatFinder {
  readonly options: SubstringOptions;
  private pieces: Uint32Array[] = [];
  private readonly ends: number[] = [];
  private total = 0;
  private files?: WindowFiles;

  constructor(options: Partial<SubstringOptions> = {}) {
    this.options = { ...SUBSTRING_DEFAULTS, ...options };
  }

  add(tokens: Uint32Array): void {
    this.total += tokens.length;
    this.ends.push(this.total);
    if (!this.files && this.total > this.options.memoryTokens) {
      if (!this.options.directory)
        throw new UserError(
          `The corpus has more than ${this.options.memoryTokens} tokens, too many for the suffix array, and no directory for its windows was given.`,
        );
      this.files = new WindowFiles(this.options.directory, this.options.length);
      for (const piece of this.pieces) this.files.add(piece);
      this.pieces = [];
    }
    if (this.files) this.files.add(tokens);
    else this.pieces.push(tokens);
  }

  /** Removes the files on disk, for a run that ends before `finish`. */
  close(): void {
    this.files?.close();
    this.files = undefined;
  }

  /** The spans of every document, in the order of `add`; ends the finder. */
  finish(): TokenSpan[][] {
    const { length, mode } = this.options;
    if (this.files) {
      try {
        return spansFromMarks(bitMarks(this.files.marks(mode), this.total), this.ends, length);
      } finally {
        this.close();
      }
    }
    const all = new Uint32Array(this.total);
    let at = 0;
    for (const piece of this.pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    this.pieces = [];
    return repeatedSpans(all, this.ends, this.options);
  }
}
