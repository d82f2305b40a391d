/**
 * Records of a JSONL file, of a file that is one JSON array, or of the rows of a Parquet file, one at a time. What cannot be read is told
 * with its line. Bytes are checked before they are text: an invalid one would otherwise become U+FFFD, and be trained on.
 */
import { constants } from "node:buffer";
import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { relative } from "node:path";
import { readLines } from "../corpus/input/lines.js";
import { readParquet } from "../corpus/input/parquet.js";
import { filesIn, isMisnamed, MISNAMED } from "../corpus/input/source.js";
import { UserError } from "../run/errors.js";

export interface JsonRecord {
  /** Line of the file; in an array the number of the record, from 1. */
  line: number;
  value?: unknown;
  /** Why it could not be read. */
  error?: string;
  /** It stands for a file of a folder that is none of records: notes, licences. */
  unread?: true;
}

const PARQUET = /\.parquet$/i;
const PACKED = /\.(jsonl?|ndjson)\.(gz|zst)$/i;
const OF_RECORDS = /\.((jsonl?|ndjson)(\.(gz|zst))?|parquet)$/i;
const TABLE = /\.(csv|tsv|xlsx?|ods)$/i;
const KNOWN = ".jsonl, .jsonl.gz, .jsonl.zst, .json, .json.gz, .json.zst, .parquet";
const LIMITS = { maxRecordBytes: 2 ** 28 };

/**
 * The records of files and of folders of files (in the order of their names, hidden ones aside; one of no known format is a record that
 * cannot be read). JSONL may be packed (.gz, .zst), which is told by the name, as Parquet is. Throws UserError for what is not there; `holds` says what should be.
 */
export async function* recordsOf(
  paths: readonly string[],
  holds: string,
): AsyncGenerator<JsonRecord & { file: string }> {
  for (const file of paths.flatMap((path) => filesOf(path, holds))) {
    if (!paths.includes(file) && (isMisnamed(file) || !OF_RECORDS.test(file))) {
      const error = isMisnamed(file) ? MISNAMED : `its format cannot be told by its name. Known are ${KNOWN}`;
      yield { file, line: 1, error, unread: true };
      continue;
    }
    if (TABLE.test(file))
      throw new UserError(
        `${file}: tables are not read. Write its rows as JSON, one to a line (.jsonl), or as Parquet.`,
        2,
      );
    const isParquet = PARQUET.test(file);
    if (!isParquet && !PACKED.test(file)) {
      for (const record of jsonRecords(file)) yield { file, ...withoutNulls(record) };
      continue;
    }
    const stream = (isParquet ? readParquet : readLines)(file, { file: 0, records: 0 }, LIMITS);
    for await (const { record } of stream) {
      const { line, reason, bytes } = record;
      const read = reason === undefined ? parse(bytes) : { error: reason };
      if (read) yield { file, line, ...withoutNulls(read) };
    }
  }
}

function filesOf(path: string, holds: string): string[] {
  if (!existsSync(path)) throw new UserError(`${path} does not exist; it should hold ${holds}.`, 2);
  if (!statSync(path).isDirectory()) return [path];
  const found = filesIn(path, (file) => OF_RECORDS.test(file))
    .filter((file) => !/(?:^|[/\\])\./.test(relative(path, file)))
    .sort((a, b) => (a < b ? -1 : 1));
  if (found.some((file) => OF_RECORDS.test(file))) return found;
  throw new UserError(`${path}: there is no file of ${holds} in this folder. Known are ${KNOWN}.`, 2);
}

const CHUNK = 1 << 22;
const LINE_FEED = 10;
const COMPRESSED = [Buffer.of(0x1f, 0x8b), Buffer.of(0x28, 0xb5, 0x2f, 0xfd)]; // gzip, Zstandard

/**
 * The records of `file`, in order; empty lines are none. JSONL is read as a stream, an array as a whole.
 * Throws UserError when the file does not exist, is a folder, may not be read, or is compressed.
 */
function* jsonRecords(file: string): Generator<JsonRecord> {
  const fd = open(file);
  try {
    const start = Buffer.alloc(4096);
    const head = start.subarray(0, readSync(fd, start, 0, start.length, 0));
    if (COMPRESSED.some((magic) => head.subarray(0, magic.length).equals(magic)))
      throw new UserError(
        `${file} is compressed: name it .jsonl.gz or .jsonl.zst if it is JSONL, else unpack it first.`,
        2,
      );
    const isArray = new TextDecoder().decode(head).trimStart().startsWith("[");
    const isLong = fstatSync(fd).size > constants.MAX_STRING_LENGTH;
    if (isArray && isLong && parse(head.subarray(0, head.indexOf(LINE_FEED)))?.error !== undefined)
      throw new UserError(
        `${file} is one JSON array of more than ${Math.floor(constants.MAX_STRING_LENGTH / 2 ** 20)} MiB, which is more than one text can hold. Write one object a line: jq -c '.[]' ${file} > records.jsonl`,
        2,
      );
    if (!isLong && (isArray || file.endsWith(".json"))) {
      const records = wholeFile(file);
      if (records) return yield* records;
    }
    let line = 0;
    for (const bytes of linesOf(fd)) {
      line++;
      const record = parse(bytes);
      if (record) yield { line, ...record };
    }
  } finally {
    closeSync(fd);
  }
}

function open(file: string): number {
  try {
    const fd = openSync(file, "r");
    if (!fstatSync(fd).isDirectory()) return fd;
    closeSync(fd);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new UserError(
      code === "ENOENT"
        ? `${file} does not exist. Name a file of records, one JSON object a line.`
        : `${file} cannot be read: ${(error as Error).message}`,
      2,
    );
  }
  throw new UserError(`${file} is a folder. Name the files in it.`, 2);
}

/** A file that is one JSON value; undefined when it is JSONL after all. */
function wholeFile(file: string): JsonRecord[] | undefined {
  const bytes = readFileSync(file);
  const whole = parse(bytes);
  if (!whole) return [];
  if (Array.isArray(whole.value)) return whole.value.map((value, i) => ({ line: i + 1, value }));
  if (whole.error === undefined) return [{ line: 1, value: whole.value }];
  const end = bytes.indexOf(LINE_FEED);
  if (end >= 0 && parse(bytes.subarray(0, end))?.error === undefined) return undefined;
  const at = /position (\d+)/.exec(whole.error);
  const before = at ? new TextDecoder().decode(bytes).slice(0, Number(at[1])) : "";
  return [{ line: before.split("\n").length, error: whole.error }];
}

/** Undefined for nothing but spaces. */
function parse(bytes: Uint8Array): { value?: unknown; error?: string } | undefined {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); // drops the byte order mark
  } catch {
    return { error: "there are bytes in it that are not UTF-8" };
  }
  if (text.trim() === "") return undefined;
  try {
    return { value: JSON.parse(text) };
  } catch (error) {
    return { error: `not JSON: ${(error as Error).message}` };
  }
}

/** Of a table, which has a null wherever a record lacks a column, the record. */
function withoutNulls<T extends { value?: unknown }>(read: T): T {
  const { value } = read;
  if (typeof value !== "object" || value === null || Array.isArray(value)) return read;
  return { ...read, value: Object.fromEntries(Object.entries(value).filter(([, v]) => v !== null)) };
}

/** The lines of a file, without their line feeds. */
function* linesOf(fd: number): Generator<Uint8Array> {
  let rest: Uint8Array[] = [];
  let position = 0;
  for (;;) {
    const chunk = Buffer.alloc(CHUNK);
    const read = readSync(fd, chunk, 0, CHUNK, position);
    if (read === 0) break;
    position += read;
    let start = 0;
    for (let end = chunk.indexOf(LINE_FEED); end >= 0 && end < read; end = chunk.indexOf(LINE_FEED, start)) {
      yield rest.length > 0 ? Buffer.concat([...rest, chunk.subarray(start, end)]) : chunk.subarray(start, end);
      rest = [];
      start = end + 1;
    }
    if (start < read) rest.push(chunk.subarray(start, read));
  }
  if (rest.length > 0) yield Buffer.concat(rest);
}
