/**
 * .json: one array of records, or JSON lines; and records that are written over several lines. The beginning tells which. All are read as a
 * stream, so that an array may be longer than a string.
 */
import { Held, headOf, readPieces } from "./bytes.js";
import { oversized, readLines } from "./lines.js";
import { type Limits, type Position, type RawRecord, unusable } from "./record.js";

interface Read {
  record: RawRecord;
  next: number | undefined;
}

const HEAD = 2 ** 16;
const [LINE_FEED, QUOTE, COMMA, BACKSLASH] = [10, 34, 44, 92];
const [OPEN_BRACKET, CLOSE_BRACKET, OPEN_BRACE, CLOSE_BRACE] = [91, 93, 123, 125];

export async function* readJson(file: string, from: Position, limits: Limits): AsyncGenerator<Read> {
  const head = await headOf(file, HEAD);
  const begin = beginOf(head, head.indexOf("\ufeff") === 0 ? 3 : 0);
  const isArray = head[begin] === OPEN_BRACKET;
  // Lines go on at the next one behind a record that is broken, so they are read as lines wherever they are some.
  if (isArray || goesOn(head, begin)) yield* readValues(file, from, limits, isArray, isArray ? begin + 1 : begin);
  else yield* readLines(file, from, limits);
}

/** Whether the first record does not end where its line does. */
function goesOn(head: Buffer, begin: number): boolean {
  const end = head.indexOf(LINE_FEED, begin);
  const value = new Value();
  return end >= 0 && value.end(head.subarray(0, end), begin) === undefined && value.isOpen;
}

/** Records that stand in an array, or behind each other. Their number is their place there. */
async function* readValues(
  file: string,
  from: Position,
  limits: Limits,
  isArray: boolean,
  begin: number,
): AsyncGenerator<Read> {
  const isPacked = /\.(gz|zst)$/i.test(file);
  const start = from.seek ?? 0;
  let skip = from.seek === undefined ? begin : 0;
  let offset = start; // of the piece
  let place = start; // of the record
  let number = from.seek === undefined ? 0 : from.records;
  let value: Value | undefined;
  let isClosed = false;
  const held = new Held(limits.maxRecordBytes);
  const read = (next: number | undefined): Read[] => {
    const record: RawRecord = held.isTooLong
      ? unusable(file, ++number, oversized(held.size, limits), place)
      : { kind: "json", bytes: held.take(), file, line: ++number, offset: place };
    held.clear();
    return number > from.records ? [{ record, next }] : [];
  };
  const last = (reason: string, at: number): Read[] =>
    ++number > from.records ? [{ record: unusable(file, number, reason, at), next: undefined }] : [];
  for await (const { data, damage } of readPieces(file, start)) {
    if (damage !== undefined) {
      // How deep it goes on behind that is not known.
      const reason = `${value ? "cut off: " : ""}${damage}; what comes after it in the file is not read`;
      return yield* last(reason, offset);
    }
    let at = Math.min(skip, data.length);
    skip -= at;
    for (;;) {
      if (!value) {
        at = beginOf(data, at);
        if (at >= data.length) break;
        if (isClosed) {
          const reason =
            "there is more behind the end of the array, which is not read: a .json file is one array, or JSON lines";
          return yield* last(reason, offset + at);
        }
        if (isArray && data[at] === CLOSE_BRACKET) {
          isClosed = true;
          at++;
          continue;
        }
        value = new Value();
        place = offset + at;
      }
      const isFirst = held.size === 0;
      let end = value.end(data, at);
      // A bracket that closes nothing is a record of its own, and no good one.
      if (end === at && isFirst) end++;
      held.add(data.subarray(at, end));
      if (end === undefined) break;
      at = end;
      value = undefined;
      yield* read(isPacked ? undefined : offset + at);
    }
    offset += data.length;
  }
  if (isArray && !isClosed) yield* last("cut off: the file ends inside its array", value ? place : offset);
  else if (value) yield* read(undefined);
}

/** Where something other than spaces and commas stands. */
function beginOf(bytes: Uint8Array, from: number): number {
  let at = from;
  while (at < bytes.length && isBetween(bytes[at])) at++;
  return at;
}
const isBetween = (byte: number): boolean => byte <= 32 || byte === COMMA;

/** A value of JSON of which only the end is looked for. What is in it is told by JSON.parse. */
class Value {
  private depth = 0;
  private inString = false;
  private isEscaped = false;

  /** Brackets are open that a later line may close; a string goes over no line. */
  get isOpen(): boolean {
    return this.depth > 0 && !this.inString;
  }

  /** Where it ends; undefined when it goes on behind the bytes. */
  end(bytes: Uint8Array, from: number): number | undefined {
    for (let at = from; at < bytes.length; at++) {
      const byte = bytes[at];
      if (this.inString) {
        if (this.isEscaped) this.isEscaped = false;
        else if (byte === BACKSLASH) this.isEscaped = true;
        // One that is not closed ends with its line, so that it costs its own record and not all after it.
        else if (byte === QUOTE || byte === LINE_FEED) {
          this.inString = false;
          if (this.depth === 0) return at + 1;
        }
      } else if (byte === QUOTE) this.inString = true;
      else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) this.depth++;
      else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
        if (this.depth === 0) return at;
        if (--this.depth === 0) return at + 1;
      } else if (this.depth === 0 && isBetween(byte)) return at;
    }
    return undefined;
  }
}
