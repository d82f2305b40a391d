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
  /** Up to so many tokens the suffix array is used: it takes 41 bytes a token. */
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

/** Words and symbols as 32-bit hashes: the tokens of this stage, when the recipe gives no tokenizer. Case and marks count. */
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

/** Joins the windows that begin at the marked places into spans, document by document. */
export function spansFromMarks(
  marked: (at: number) => boolean,
  ends: readonly number[],
  length: number,
): TokenSpan[][] {
  let start = 0;
  return ends.map((end) => {
    const spans: TokenSpan[] = [];
    for (let i = start; i + length <= end; i++) {
      if (!marked(i)) continue;
      const last = spans.at(-1);
      if (last && i - start <= last.end) last.end = i - start + length;
      else spans.push({ start: i - start, end: i - start + length });
    }
    start = end;
    return spans;
  });
}

/** In memory: tokens of all documents laid end to end, `ends[d]` = where document d ends. */
export function repeatedSpans(
  tokens: Uint32Array,
  ends: readonly number[],
  options: Pick<SubstringOptions, "length" | "mode">,
): TokenSpan[][] {
  const { length, mode } = options;
  const n = tokens.length;
  const room = new Uint32Array(n);
  for (let d = 0, i = 0; d < ends.length; d++) for (; i < ends[d]; i++) room[i] = ends[d] - i;
  const sa = new Uint32Array(n);
  const rank = new Uint32Array(n);
  const marks = new Uint8Array(n);
  const kernels = openTextKernels();
  kernels.suffixSort(tokens, n, length, sa, rank, new Uint8Array(24 * n + 64));
  kernels.suffixRepeats(sa, rank, n, length, room, mode === "keep-first" ? 1 : 0, marks);
  return spansFromMarks((at) => marks[at] === 1, ends, length);
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
    const { length, mode } = this.options;
    if (!Number.isInteger(length) || length < 2)
      throw new UserError(`substring.length is ${length}; it must be a whole number of tokens, at least 2.`, 2);
    if (mode !== "keep-first" && mode !== "remove-all")
      throw new UserError(`substring.mode is "${mode}"; it is keep-first or remove-all.`, 2);
  }

  get onDisk(): boolean {
    return this.files !== undefined;
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
        const marks = this.files.marks(mode);
        return spansFromMarks((at) => ((marks[Math.floor(at / 8)] >> (at % 8)) & 1) === 1, this.ends, length);
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
