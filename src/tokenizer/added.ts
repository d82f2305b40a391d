/** Added tokens: texts that are one token whatever stands around them, found before anything else is done. */
import type { Normalize } from "./components.js";
import type { Before } from "./pretokenize.js";
import { characterClasses } from "./unicode.js";

/** A text to encode, and what stands before it. */
export interface Plain {
  text: string;
  before: Before;
}
/** Parts of a text: plain ones, and the ids of tokens between them. */
export type Piece = Plain | number;

/** As in tokenizer.json. */
export interface AddedToken {
  id: number;
  content: string;
  /** Left out by decode when special tokens are skipped. */
  special: boolean;
  /** White space before, or after, belongs to the token. */
  lstrip: boolean;
  rstrip: boolean;
  /** Sought in the normalized text, and its own text normalized. */
  normalized?: boolean;
  /** Only where it is no part of a longer word. */
  single_word?: boolean;
}

export function specialToken(id: number, content: string): AddedToken {
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return { id, content, ...flags };
}

/** What `single_word` takes for a part of a word: \w of Rust's regex crate. */
const WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const isSpace = (text: string, at: number): boolean => characterClasses()[text.charCodeAt(at)] === 3;

/** One set of tokens that are sought in the same text. */
class Finder {
  private readonly tokens = new Map<string, AddedToken>();
  private readonly expression: RegExp;
  /** How every token begins: a text without it needs no search. */
  private readonly lead: string;

  constructor(tokens: readonly [content: string, token: AddedToken][]) {
    for (const [content, token] of tokens) if (content !== "") this.tokens.set(content, token);
    // The longest first: of those that begin at one place, it is the one found.
    const contents = [...this.tokens.keys()].sort((a, b) => b.length - a.length);
    this.expression = new RegExp(contents.map((c) => c.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "g");
    this.lead = contents.reduce((lead, c) => {
      let n = 0;
      while (n < lead.length && lead[n] === c[n]) n++;
      return lead.slice(0, n);
    }, contents[0] ?? "");
  }

  /** The text between tokens, and the tokens' ids, in order. */
  split(text: string): (string | number)[] {
    if (text === "") return [];
    if (this.tokens.size === 0 || !text.includes(this.lead)) return [text];
    const out: (string | number)[] = [];
    let from = 0;
    for (const { 0: content, index } of text.matchAll(this.expression)) {
      const token = this.tokens.get(content)!;
      let [start, stop] = [index, index + content.length];
      if (token.single_word && (wordBefore(text, start) || wordAt(text, stop))) continue;
      if (token.lstrip) while (start > from && isSpace(text, start - 1)) start--;
      if (token.rstrip) while (stop < text.length && isSpace(text, stop)) stop++;
      // Hugging Face finds a token once more in white space that the one before has taken, except where it has lstrip.
      if (token.lstrip && stop <= from) continue;
      if (start > from) out.push(text.slice(from, start));
      out.push(token.id);
      from = stop;
    }
    if (from < text.length) out.push(text.slice(from));
    return out;
  }
}

const wordAt = (text: string, at: number): boolean =>
  at < text.length && WORD.test(String.fromCodePoint(text.codePointAt(at)!));
function wordBefore(text: string, end: number): boolean {
  if (end === 0) return false;
  const isLow = end > 1 && (text.charCodeAt(end - 1) & 0xfc00) === 0xdc00;
  return wordAt(text, end - (isLow ? 2 : 1));
}

export class AddedTokens {
  private readonly raw: Finder;
  private readonly normalized: Finder;

  constructor(
    tokens: Iterable<AddedToken>,
    private readonly normalize: Normalize,
  ) {
    const all = [...tokens];
    this.raw = new Finder(all.filter((t) => !t.normalized).map((t) => [t.content, t]));
    this.normalized = new Finder(all.filter((t) => t.normalized).map((t) => [normalize(t.content), t]));
  }

  /** Normalized text to encode, and ids that stand between. First the tokens of the text as it is, then the normalized. */
  split(text: string, before: Before): Piece[] {
    return this.raw.split(text).flatMap((piece, i): Piece[] => {
      if (typeof piece === "number") return [piece];
      const outer = i > 0 ? "token" : before;
      return this.normalized
        .split(this.normalize(piece, outer !== "text"))
        .map((inner, k) => (typeof inner === "number" ? inner : { text: inner, before: k > 0 ? "token" : outer }));
    });
  }
}
