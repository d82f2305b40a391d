/** Plain text: a file is one document, or those are that lie between lines of <|endoftext|>, as TinyStories and others have it. */
import { isUtf8 } from "node:buffer";
import { Held, headOf, readPieces } from "./bytes.js";
import { oversized } from "./lines.js";
import { type Limits, type Piece, type Position, type RawRecord, unusable } from "./record.js";

const SEPARATOR = "<|endoftext|>";
const LINE_FEED = 10;
const CARRIAGE_RETURN = 13;
const BYTE_ORDER_MARK = Buffer.from("\ufeff");
/** Bytes that tell the encoding; no more are looked at for that in a page either. */
const HEAD = 2 ** 16;
export const SEVERAL = `a text file is one document, or several with a line of ${SEPARATOR} between them`;

/** A document's number is the line that it begins at. What `next` tells is where it begins, because its lines are to be counted again. */
export async function* readText(
  file: string,
  from: Position,
  limits: Limits,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const head = await headOf(file, HEAD);
  const charset = await charsetOf(head);
  const start = from.seek ?? 0;
  // Two bytes a character: separators are looked for in UTF-8, whose places are none of the file.
  const isWide = charset?.startsWith("utf-16");
  const pieces = isWide ? asUtf8(readPieces(file), charset!) : readPieces(file, start);
  const isPlain = !isWide && !/\.(gz|zst)$/i.test(file);
  const open = new Held(limits.maxRecordBytes);
  let skip = start === 0 && head.indexOf(BYTE_ORDER_MARK) === 0 ? BYTE_ORDER_MARK.length : 0;
  let offset = start + skip;
  let line = start === 0 ? 1 : from.records;
  let lines = 0;
  let damage: string | undefined;
  /** The beginning of a line, that may be a separator's; and whether the bytes after it begin a line. */
  let held: Buffer = Buffer.alloc(0);
  let begins = true;
  const add = (bytes: Buffer): void => {
    for (let at = bytes.indexOf(LINE_FEED); at >= 0; at = bytes.indexOf(LINE_FEED, at + 1)) lines++;
    open.add(bytes);
  };
  const record = (whole: boolean): RawRecord => {
    const place = isWide ? undefined : offset;
    if (damage !== undefined) return unusable(file, line, `it cannot be read: ${damage}`, place);
    if (open.isTooLong) return unusable(file, line, `${oversized(open.size, limits)}; ${SEVERAL}`, place);
    const bytes = open.take();
    const contentType = charset === undefined || isWide ? undefined : `text/plain; charset=${charset}`;
    return { kind: "text", bytes, file, line, offset: place, contentType, whole };
  };
  for await (const { data, damage: missing } of pieces) {
    if (missing !== undefined) {
      // What is missing may have been a separator: the document goes up to the next one there is.
      damage ??= missing;
      add(held);
      [held, begins] = [Buffer.alloc(0), true];
      continue;
    }
    const more = Buffer.from(data.buffer, data.byteOffset, data.length).subarray(skip);
    skip -= Math.min(skip, data.length);
    const bytes = held.length === 0 ? more : Buffer.concat([held, more]);
    let at = 0;
    for (let found = separatorIn(bytes, at, begins); found; found = separatorIn(bytes, at, begins)) {
      add(bytes.subarray(at, found.start));
      const isNone = line === 1 && open.size === 0 && damage === undefined; // a file may begin with a separator
      if (!isNone && line > from.records) yield { record: record(false), next: isPlain ? offset : undefined };
      offset += open.size + found.end - found.start;
      line += lines + 1;
      lines = 0;
      damage = undefined;
      open.clear();
      begins = true;
      at = found.end;
    }
    const undecided = openLine(bytes, at, begins);
    add(bytes.subarray(at, undecided));
    held = bytes.subarray(undecided);
    if (undecided > at) begins = bytes[undecided - 1] === LINE_FEED;
  }
  const isClosed = /^<\|endoftext\|>\r?$/.test(held.toString("latin1"));
  if (!isClosed) add(held);
  // What is blank behind the last separator is no document.
  const isOver = line > 1 && damage === undefined && open.isBlank();
  if (!isOver && !(isClosed && open.size === 0) && line > from.records)
    yield { record: record(line === 1 && !isClosed), next: isPlain ? offset : undefined };
}

/** The first separator's line from a place on, at which a line may begin. */
function separatorIn(bytes: Buffer, from: number, begins: boolean): { start: number; end: number } | undefined {
  for (let start = bytes.indexOf(SEPARATOR, from); start >= 0; start = bytes.indexOf(SEPARATOR, start + 1)) {
    if (start > from ? bytes[start - 1] !== LINE_FEED : !begins) continue;
    let end = start + SEPARATOR.length;
    if (bytes[end] === CARRIAGE_RETURN) end++;
    if (bytes[end] === LINE_FEED) return { start, end: end + 1 };
  }
  return undefined;
}

/** Where the last line begins, if what there is of it may be a separator's beginning; else where the bytes end. */
function openLine(bytes: Buffer, from: number, begins: boolean): number {
  const earliest = bytes.length - SEPARATOR.length - 1;
  const last = Math.max(from, earliest - 1);
  const feed = bytes.subarray(last).lastIndexOf(LINE_FEED);
  const start = feed >= 0 ? last + feed + 1 : begins && from >= earliest ? from : bytes.length;
  return `${SEPARATOR}\r`.startsWith(bytes.toString("latin1", start)) ? start : bytes.length;
}

/** Told once for all documents of a file: one of them may be too short for that. Undefined for UTF-8, and where each is to be asked. */
async function charsetOf(head: Buffer): Promise<string | undefined> {
  const end = head.lastIndexOf(LINE_FEED) + 1;
  const lines = end > 0 ? head.subarray(0, end) : head;
  if (isUtf8(lines)) return undefined;
  const { decodePieces } = await import("../html/charset.js");
  const { charset, from } = decodePieces(lines);
  return charset === "utf-8" || from === "default" ? undefined : charset;
}

async function* asUtf8(pieces: AsyncIterable<Piece>, charset: string): AsyncGenerator<Piece> {
  const decoder = new TextDecoder(charset);
  for await (const piece of pieces)
    yield piece.damage === undefined
      ? { ...piece, data: Buffer.from(decoder.decode(piece.data, { stream: true })) }
      : piece;
  yield { data: Buffer.from(decoder.decode()), offset: undefined };
}
