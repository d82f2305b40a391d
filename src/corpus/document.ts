/** What travels through the corpus pipeline: a document, what a rule found in it, and the spans that it would cut. */
import { exactKey } from "./exact.js";

export interface Document {
  id: string;
  /** The record brings no id: `id` says where it lies. */
  unnamed?: true;
  text: string;
  url?: string;
  /** ISO 639-1 where there is one, else 639-3; given by the record or by the language stage. */
  language?: string;
  /** Where the record lies: line (or record number, from 1) and, in a WARC, the byte offset. */
  source: { file: string; line: number; offset?: number };
  /** Name of the source in the recipe. */
  dataset: string;
  metadata: Record<string, unknown>;
}

/**
 * What chance goes by where it decides about a document: its id, or the text where it has none of its own. By the place of a file, the
 * same corpus would be split otherwise in another folder.
 */
export const chanceKey = ({ unnamed, id, text }: Pick<Document, "unnamed" | "id" | "text">): string =>
  unnamed ? exactKey(text) : id;

/**
 * Whether what was read as text is none: a program or an archive has NULs early on (Git asks the same), and among a hundred characters more
 * than one that controls something. A stray one costs no text. NO_TEXT says so.
 */
export function isBinary(text: string): boolean {
  const head = text.slice(0, 8000);
  return head.includes("\0") && (head.match(CONTROLS)?.length ?? 0) > head.length / 100;
}
/** Those that texts have no use for: no line ends, tabs, form feeds, colours of terminals. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROLS = /[\0-\x07\x0e-\x1a\x1c-\x1f\x7f]/g;
export const NO_TEXT = "not text: it holds NULs, as programs and archives do";

/** Lone surrogates and NUL become the replacement character: no writer of UTF-8 can keep them. */
export const storable = (text: string): string => text.toWellFormed().replaceAll("\0", "\ufffd");

/** One rule's judgement of one document. Every rule is recorded, not only the first that fails. */
export interface Finding {
  stage: string;
  rule: string;
  value: number | string;
  threshold?: number | string;
  verdict: "pass" | "drop" | "edit";
  detail?: string;
}

/** A piece of the text that is to go (or to be replaced). Offsets are UTF-16 units. The text itself stays whole until the last stage. */
export interface Span {
  start: number;
  end: number;
  reason: string;
  replacement?: string;
}

/** A record that could not be used: kept aside and listed, never silently dropped. */
export interface Rejected {
  file: string;
  line: number;
  reason: string;
  offset?: number;
}

/** For a message that nothing can be used: why not, as the first of the records says that were set aside from `from` on. */
export function firstReason(rejected: readonly Rejected[], from = 0): string {
  const first = rejected[from];
  return first ? ` ${first.file}:${first.line}: ${first.reason}.` : " There is nothing in there.";
}

/** Where places in the text after the spans lie in the text before them. */
export function spanMap(text: string, spans: readonly Span[]): { start(at: number): number; end(at: number): number } {
  const pieces: { at: number; from: number; to: number; same: boolean }[] = [];
  let length = 0;
  let from = 0;
  const add = (to: number, size: number, same: boolean): void => {
    if (size > 0) pieces.push({ at: length, from, to, same });
    length += size;
    from = to;
  };
  for (const span of [...spans].sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (span.end <= from && span.end > span.start) continue;
    if (span.start >= from) {
      add(span.start, span.start - from, true);
      add(span.end, span.replacement?.length ?? 0, false);
    }
    from = Math.max(from, span.end);
  }
  add(text.length, text.length - from, true);
  const pieceAt = (at: number): (typeof pieces)[number] => {
    let low = 0;
    let high = pieces.length - 1;
    while (low < high) {
      const mid = (low + high + 1) >> 1;
      if (pieces[mid].at <= at) low = mid;
      else high = mid - 1;
    }
    return pieces[low];
  };
  return {
    start(at) {
      const piece = pieceAt(at);
      return piece.same ? piece.from + at - piece.at : piece.from;
    },
    end(at) {
      const piece = pieceAt(at - 1);
      return piece.same ? piece.from + at - piece.at : piece.to;
    },
  };
}

/** The text after the spans; overlapping spans are joined, the first one's replacement counts. Spans need no order. */
export function applySpans(text: string, spans: readonly Span[]): string {
  if (spans.length === 0) return text;
  const ordered = [...spans].sort((a, b) => a.start - b.start || b.end - a.end);
  let out = "";
  let at = 0;
  for (const span of ordered) {
    if (span.end <= at && span.end > span.start) continue;
    if (span.start >= at) out += text.slice(at, span.start) + (span.replacement ?? "");
    at = Math.max(at, span.end);
  }
  return out + text.slice(at);
}
