/** The files of one source of a recipe, as one stream of raw records; the format is told by the name. */
import { existsSync, readdirSync, realpathSync, type Stats, statSync } from "node:fs";
import { join, relative } from "node:path";
import { UserError } from "../../run/errors.js";
import { Held, readPieces } from "./bytes.js";
import { readJson } from "./json.js";
import { oversized, readLines } from "./lines.js";
import { readParquet } from "./parquet.js";
import { type Limits, type Position, type RawRecord, unusable } from "./record.js";
import { readText } from "./text.js";
import { readWarc } from "./warc.js";

const PACKED = [".gz", ".zst"];
/** How the names of each format end, and what may stand behind that. */
const ENDINGS: Record<Format, { names: string[]; packed?: string[]; language?: true }> = {
  warc: { names: [".warc", ".wet"], packed: [".gz"] },
  jsonl: { names: [".jsonl", ".ndjson"], packed: PACKED },
  json: { names: [".json"], packed: PACKED },
  parquet: { names: [".parquet"] },
  html: { names: [".html", ".htm", ".xhtml", ".xhtm"], packed: PACKED, language: true },
  text: { names: [".txt", ".text", ".md", ".markdown", ".rst"], packed: PACKED },
};
export type Format = "warc" | "jsonl" | "json" | "parquet" | "html" | "text";

const FORMATS = (Object.entries(ENDINGS) as [Format, (typeof ENDINGS)[Format]][]).map(
  ([format, { names, packed = [], language }]) => {
    // As manuals are told apart: page.html.de, page.html.pt-br.
    const more = [...packed.map((end) => `\\${end}`), ...(language ? ["\\.[a-z]{2}(?:-[a-z]{2})?"] : [])];
    const name = new RegExp(`(?:${names.map((end) => `\\${end}`).join("|")})(?:${["", ...more].join("|")})$`, "i");
    return { format, name };
  },
);

/** A name that is not UTF-8 is told with replacement characters in it, and by that one there is no file. */
export const isMisnamed = (file: string): boolean => file.includes("\ufffd") && !existsSync(file);

/** What Hugging Face's libraries write beside the records of a data set. */
const ABOUT_DATA = /(?:^|[/\\])(?:dataset_infos?|dataset_dict|state)\.json$/;

const formatByName = (file: string): Format | undefined =>
  ABOUT_DATA.test(file) ? undefined : FORMATS.find(({ name }) => name.test(file))?.format;

export const formatOf = (file: string): Format | undefined => (isMisnamed(file) ? undefined : formatByName(file));

const KNOWN = Object.values(ENDINGS)
  .map(({ names, packed = [] }) => [...names, ...packed.map((end) => `${names[0]}${end}`)].join(", "))
  .join(", ");
export const MISNAMED = "its name is not UTF-8, and it cannot be read by another: rename it";

/** Why a file of no known format is none that can be read. */
export const noFormat = (file: string): string =>
  isMisnamed(file) ? MISNAMED : `its format cannot be told by its name. Known are ${KNOWN}`;

/**
 * Files as they will be read: folders are walked, in the order of their names. Throws UserError for what is not there. `all`: also those
 * files of a folder whose format is not known (hidden ones aside), and whose names are not UTF-8; `readSource` lists them.
 */
export function listFiles(paths: readonly string[], where: string, all = false): string[] {
  const files: string[] = [];
  for (const path of paths) {
    if (!existsSync(path)) throw new UserError(`${path} does not exist. It is named under ${where}.`, 2);
    if (statSync(path).isDirectory()) {
      const isListed = (file: string): boolean =>
        (all || isMisnamed(file)) && !/(?:^|[/\\])\./.test(relative(path, file));
      const found = filesIn(path, (file) => formatByName(file) !== undefined, where)
        .filter((file) => formatByName(file) !== undefined || isListed(file))
        .sort((a, b) => (a < b ? -1 : 1));
      const misnamed = all ? undefined : found.find(isMisnamed);
      if (misnamed !== undefined) throw unreadable(misnamed, MISNAMED, where);
      if (!found.some(formatOf))
        throw new UserError(`${path}: there is no file in this folder that can be read. Known are ${KNOWN}.`, 2);
      for (const file of found) files.push(file);
    } else if (formatOf(path) === undefined)
      throw new UserError(`${path}: cannot tell its format by its name. Known are ${KNOWN}.`, 2);
    else files.push(path);
  }
  return files;
}

const unreadable = (file: string, why: string, where?: string): UserError =>
  new UserError(
    `${file} cannot be read: ${why}.${where === undefined ? "" : ` It lies in a folder that is named under ${where}.`}`,
    2,
  );

const isHidden = (name: string): boolean => name.startsWith(".");

/**
 * All files in a folder and below, and folders whose names are not UTF-8. What several names lead to is there once: under one that says what it is (`readable`), else that is
 * not hidden, else its own. So hidden folders come last, and links, whose way may lead back, before them: the Hub's cache and git-annex keep files under names of no format, and links to
 * them beside.
 */
export function filesIn(root: string, readable: (file: string) => boolean, where?: string): string[] {
  const files = new Map<string, string>();
  const links: string[] = [];
  const hidden: { folder: string; real: string }[] = [];
  const seen = new Set<string>();
  const walk = (folder: string, real: string): void => {
    if (seen.has(real)) return;
    seen.add(real);
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const file = join(folder, entry.name);
      const inside = join(real, entry.name);
      if (isMisnamed(file)) files.set(file, file);
      else if (entry.isSymbolicLink()) links.push(file);
      else if (entry.isDirectory() && isHidden(entry.name)) hidden.push({ folder: file, real: inside });
      else if (entry.isDirectory()) walk(file, inside);
      else if (entry.isFile()) add(file, inside);
    }
  };
  const add = (file: string, real: string): void => {
    const known = files.get(real);
    if (known === undefined || (readable(file) && !readable(known))) files.set(real, file);
  };
  walk(root, realpathSync(root));
  for (;;) {
    const link = links.shift();
    const folder = link === undefined ? hidden.shift() : undefined;
    if (link !== undefined) {
      const target = targetOf(link, where);
      if (target?.isDirectory()) walk(link, realpathSync(link));
      else if (target?.isFile()) add(link, realpathSync(link));
    } else if (folder) walk(folder.folder, folder.real);
    else return [...files.values()];
  }
}

function targetOf(link: string, where?: string): Stats | undefined {
  try {
    return statSync(link);
  } catch (error) {
    if (formatByName(link) === undefined) return undefined;
    const { code, message } = error as NodeJS.ErrnoException;
    throw unreadable(link, code === "ENOENT" ? "it is a link to a file that is not there" : message, where);
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
  const format = formatOf(file) ?? (asText && !isMisnamed(file) ? "text" : undefined);
  if (format === undefined) return listed(noFormat(file));
  if (statSync(file).size === 0) return listed("the file is empty");
  if (format === "jsonl") return readLines(file, from, limits);
  if (format === "json") return readJson(file, from, limits);
  if (format === "text") return readText(file, from, limits);
  if (format === "warc") return readWarc(file, from, limits);
  if (format === "parquet") return readParquet(file, from, limits, "text");
  if (from.records > 0) return once<Read>(undefined);
  return wholePage(file, limits);
}

async function* once<T>(value: T | undefined): AsyncGenerator<T> {
  if (value !== undefined) yield value;
}

/** The file is the record. */
async function* wholePage(file: string, limits: Limits): AsyncGenerator<Read> {
  const held = new Held(limits.maxRecordBytes);
  let reason: string | undefined;
  const { size } = statSync(file);
  if (!/\.(gz|zst)$/i.test(file) && size > limits.maxRecordBytes) reason = oversized(size, limits);
  else
    for await (const { data, damage } of readPieces(file)) {
      held.add(data);
      reason = damage ?? (held.isTooLong ? oversized(held.size, limits) : undefined);
      if (reason !== undefined) break;
    }
  const record: RawRecord =
    reason === undefined
      ? { kind: "html", bytes: held.take(), file, line: 1, offset: 0, whole: true }
      : unusable(file, 1, reason, 0);
  yield { record, next: undefined };
}
