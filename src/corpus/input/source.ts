/** The files of one source of a recipe, as one stream of raw records; the format is told by the name. */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { UserError } from "../../run/errors.js";
import { readPieces } from "./bytes.js";
import { oversized, readLines } from "./lines.js";
import { readParquet } from "./parquet.js";
import { type Limits, type Position, type RawRecord, unusable } from "./record.js";
import { readWarc } from "./warc.js";

const FORMATS = {
  warc: /\.(?:warc|wet)(?:\.gz)?$/i,
  jsonl: /\.(?:jsonl|ndjson)(?:\.gz|\.zst)?$/i,
  parquet: /\.parquet$/i,
  html: /\.x?html?$|\.html?\.[a-z]{2}(?:-[a-z]{2})?$|\.[a-z]{2}(?:-[a-z]{2})?\.html?$/i,
  text: /\.(?:txt|md|text)(?:\.gz|\.zst)?$/i,
} as const;
export type Format = keyof typeof FORMATS;

export const formatOf = (file: string): Format | undefined =>
  (Object.keys(FORMATS) as Format[]).find((format) => FORMATS[format].test(file));

export const KNOWN = ".warc, .warc.gz, .wet.gz, .html, .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt, .md";

/**
 * Files as they will be read: folders are walked, in the order of their names. Throws UserError for what is not there. `all`: also those
 * files of a folder whose format is not known (hidden ones aside); `readSource` lists them.
 */
export function listFiles(paths: readonly string[], where: string, all = false): string[] {
  const files: string[] = [];
  for (const path of paths) {
    if (!existsSync(path)) throw new UserError(`${path} does not exist. It is named under ${where}.`, 2);
    if (statSync(path).isDirectory()) {
      const found = (readdirSync(path, { recursive: true }) as string[])
        .filter((name) => formatOf(name) !== undefined || (all && !/(?:^|[/\\])\./.test(name)))
        .map((name) => join(path, name))
        .filter((file) => isFile(file, where))
        .sort((a, b) => (a < b ? -1 : 1));
      if (!found.some(formatOf))
        throw new UserError(`${path}: there is no file in this folder that can be read. Known are ${KNOWN}.`, 2);
      for (const file of found) files.push(file);
    } else if (formatOf(path) === undefined)
      throw new UserError(`${path}: cannot tell its format by its name. Known are ${KNOWN}.`, 2);
    else files.push(path);
  }
  return files;
}

function isFile(file: string, where: string): boolean {
  try {
    return statSync(file).isFile();
  } catch (error) {
    if (formatOf(file) === undefined) return false;
    const { code, message } = error as NodeJS.ErrnoException;
    const why = code === "ENOENT" ? "it is a link to a file that is not there" : message;
    throw new UserError(`${file} cannot be read: ${why}. It lies in a folder that is named under ${where}.`, 2);
  }
}

/** All records from a position on, each with the position after it. A file whose format is not known is listed, or `asText` read as text. */
export async function* readSource(
  files: readonly string[],
  from: Position,
  limits: Limits,
  asText = false,
): AsyncGenerator<{ record: RawRecord; next: Position }> {
  for (let i = from.file; i < files.length; i++) {
    const file = files[i];
    const start = i === from.file ? from : { file: i, records: 0 };
    for await (const { record, next } of readFile(file, start, limits, asText))
      yield { record, next: { file: i, records: record.line, seek: next } };
  }
}

interface Read {
  record: RawRecord;
  next: number | undefined;
}
type Stream = AsyncIterable<Read>;

function readFile(file: string, from: Position, limits: Limits, asText: boolean): Stream {
  const listed = (reason: string): Stream =>
    once(from.records > 0 ? undefined : { record: unusable(file, 1, reason, 0), next: undefined });
  const format = formatOf(file) ?? (asText ? "text" : undefined);
  if (format === undefined) return listed(`its format cannot be told by its name. Known are ${KNOWN}`);
  if (statSync(file).size === 0) return listed("the file is empty");
  if (format === "jsonl") return readLines(file, from, limits);
  if (format === "warc") return readWarc(file, from, limits);
  if (format === "parquet") return readParquet(file, from, limits, "text");
  if (from.records > 0) return once<Read>(undefined);
  return wholeFile(file, format === "html" ? "html" : "text", limits);
}

async function* once<T>(value: T | undefined): AsyncGenerator<T> {
  if (value !== undefined) yield value;
}

/** A page or a text: the file is the record. */
async function* wholeFile(
  file: string,
  kind: "html" | "text",
  limits: Limits,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const { size } = statSync(file);
  if (size > limits.maxRecordBytes) {
    yield { record: unusable(file, 1, oversized(size, limits), 0), next: undefined };
    return;
  }
  if (!/\.(gz|zst)$/i.test(file)) {
    yield { record: { kind, bytes: readFileSync(file), file, line: 1, offset: 0 }, next: undefined };
    return;
  }
  const pieces: Uint8Array[] = [];
  let total = 0;
  for await (const { data, damage } of readPieces(file)) {
    total += data.length;
    const reason = damage ?? (total > limits.maxRecordBytes ? oversized(total, limits) : undefined);
    if (reason !== undefined) {
      yield { record: unusable(file, 1, reason, 0), next: undefined };
      return;
    }
    pieces.push(data);
  }
  yield { record: { kind, bytes: Buffer.concat(pieces), file, line: 1, offset: 0 }, next: undefined };
}
