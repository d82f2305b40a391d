/** A raw record to a document: JSON fields, HTTP and HTML, or plain text; or the reason why it is none. */
import { constants } from "node:buffer";
import { type Document, type Finding, isBinary, NO_TEXT, type Rejected, storable } from "./document.js";
import type { RawRecord } from "./input/record.js";
import { SEVERAL } from "./input/text.js";
import { LANGUAGES } from "./script.js";

export interface ParseContext {
  dataset: string;
  /** A file's name for ids. */
  label(file: string): string;
  mode: "fast" | "readability";
  timeout: number;
  maxRecordBytes: number;
  judgeUrl(url: string | undefined): Finding[];
}

export interface Parsed {
  document: Document;
  url: Finding[];
}

const TOO_LONG = `oversized: a document has at most ${Math.floor(constants.MAX_STRING_LENGTH / 1e6)} million characters; ${SEVERAL}`;
const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Kept, because to import what is there already takes longer than to read a short text. */
let charsets: Promise<typeof import("./html/charset.js")> | undefined;

/** Never throws for what a record holds: the reason comes back. */
export async function parseRecord(record: RawRecord, context: ParseContext): Promise<Parsed | Rejected> {
  const rejected = (reason: string): Rejected => ({
    file: record.file,
    line: record.line,
    reason,
    ...(record.offset === undefined ? {} : { offset: record.offset }),
  });
  if (record.reason !== undefined) return rejected(record.reason);
  if (record.kind === "json") return fromJson(record, context, rejected);
  if (record.kind === "text") {
    charsets ??= import("./html/charset.js");
    const { decodePieces } = await charsets;
    const { pieces, replaced } = decodePieces(record.bytes, record.contentType);
    if (replaced > 0.01) return rejected("not text in any encoding that could be told");
    if (pieces.reduce((n, piece) => n + piece.length, 0) > constants.MAX_STRING_LENGTH) return rejected(TOO_LONG);
    const text = pieces.join("");
    if (isBinary(text)) return rejected(NO_TEXT);
    return document(record, context, { text: storable(text.replace(/^\uFEFF/, "")) });
  }
  return fromPage(record, context, rejected);
}

type Reject = (reason: string) => Rejected;

function document(
  record: RawRecord,
  context: ParseContext,
  fields: {
    text: string;
    id?: string;
    url?: string | undefined;
    language?: string;
    metadata?: Record<string, unknown>;
  },
): Parsed {
  const url = fields.url ?? record.url;
  const metadata = { ...fields.metadata };
  const id = fields.id ?? record.id;
  if (record.date !== undefined) metadata.date = record.date;
  return {
    document: {
      ...(id === undefined ? { id: placeOf(record, context), unnamed: true } : { id }),
      text: fields.text,
      ...(url === undefined ? {} : { url }),
      ...(fields.language === undefined ? {} : { language: fields.language }),
      source: {
        file: record.file,
        line: record.line,
        ...(record.offset === undefined ? {} : { offset: record.offset }),
      },
      dataset: context.dataset,
      metadata,
    },
    url: context.judgeUrl(url),
  };
}

/** WEB/page.html for a file that is one record, WEB/pages.jsonl:12 otherwise. */
function placeOf(record: RawRecord, { dataset, label }: ParseContext): string {
  const name = dataset === "" ? label(record.file) : `${dataset}/${label(record.file)}`;
  return record.whole ? name : `${name}:${record.line}`;
}

function fromJson(record: RawRecord, context: ParseContext, rejected: Reject): Parsed | Rejected {
  let source: string;
  try {
    source = utf8.decode(record.bytes);
  } catch {
    return rejected("not valid UTF-8");
  }
  if (source.trim() === "") return rejected("the line is empty");
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(source.replace(/^\uFEFF/, ""));
  } catch (error) {
    return rejected(`not JSON: ${(error as Error).message.slice(0, 200)}`);
  }
  if (fields === null || typeof fields !== "object" || typeof fields.text !== "string")
    return rejected(withoutText(fields));
  // Written as \ud800: no bytes of UTF-8 are half of a pair.
  if (!fields.text.isWellFormed()) return rejected("the text holds half of a surrogate pair");
  if (deeper(fields, MAX_NESTING)) return rejected(`the JSON is nested more than ${MAX_NESTING} levels deep`);
  const { text, id, url, metadata, ...more } = fields;
  const kept = { ...more, ...(metadata !== null && typeof metadata === "object" ? metadata : {}) };
  const language = languageOf(fields.language);
  const named = idOf(id, source);
  return document(record, context, {
    text: storable(text as string),
    ...(named === undefined ? {} : { id: named }),
    ...(typeof url === "string" ? { url } : {}),
    ...(language === undefined ? {} : { language }),
    metadata: kept,
  });
}

/** JSON.parse takes any depth, but what writes the rows goes down by itself, and its stack ends at some thousands. */
const MAX_NESTING = 500;

function deeper(value: object, levels: number): boolean {
  let level: object[] = [value];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > levels) return true;
    const below: object[] = [];
    for (const outer of level)
      for (const inner of Object.values(outer)) if (inner !== null && typeof inner === "object") below.push(inner);
    level = below;
  }
  return false;
}

/** The record's own id; undefined when it has none. */
function idOf(id: unknown, source: string): string | undefined {
  if (id === undefined || id === null || id === "") return undefined;
  if (typeof id === "object") return storable(JSON.stringify(id));
  // Beyond 2^53 several integers are the same number: they are told apart by their digits.
  if (typeof id === "number" && !Number.isSafeInteger(id))
    for (const [, digits] of source.matchAll(/"id"\s*:\s*(-?\d+)/g)) if (Number(digits) === id) return digits;
  return storable(String(id));
}

/** A language code (BCP 47) as lid.176 has it: "zh" of "zh-CN", "en" of "eng", "tl" as it is. Undefined for what is none, a name for one. */
function languageOf(value: unknown): string | undefined {
  if (typeof value !== "string" || !/^[a-z]{2,3}(?:[-_][a-z0-9]{1,8})*$/i.test(value)) return undefined;
  const own = value.split(/[-_]/)[0].toLowerCase();
  if (own === "und") return undefined;
  // Some of its codes have others in their place by now (fil for tl), under which no setting would be found.
  if (LANGUAGES.has(own)) return own;
  try {
    const { language } = new Intl.Locale(value.replaceAll("_", "-"));
    return language === "und" ? undefined : language;
  } catch {
    return undefined;
  }
}

const startsLikeHttp = (bytes: Uint8Array): boolean =>
  /^HTTP\/\d(?:\.\d)? \d{3}\b/.test(
    Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 16)).toString("latin1"),
  );

/** Says which fields there are: one of them may hold the text under another name. */
export function withoutText(fields: unknown): string {
  const names = fields !== null && typeof fields === "object" && !Array.isArray(fields) ? Object.keys(fields) : [];
  const list = names.length > 0 ? ` (its fields: ${names.slice(0, 12).join(", ")})` : "";
  return `there is no field "text" with a string in it${list}`;
}

async function fromPage(record: RawRecord, context: ParseContext, rejected: Reject): Promise<Parsed | Rejected> {
  const { parseHttp } = await import("./input/http.js");
  let { bytes, contentType } = record;
  // Some crawlers leave out the type of a response record.
  if (contentType === undefined ? startsLikeHttp(bytes) : /application\/http/i.test(contentType)) {
    const http = parseHttp(bytes, context.maxRecordBytes);
    if (http.reason !== undefined) return rejected(http.reason);
    if (http.status !== 200) return rejected(`HTTP status ${http.status}`);
    bytes = http.body;
    ({ contentType } = http);
  }
  const type = contentType?.split(";")[0].trim().toLowerCase();
  if (type && !/^(?:text\/(?:html|plain)|application\/xhtml\+xml)$/.test(type)) return rejected(`not a page: ${type}`);
  if (context.judgeUrl(record.url).some((f) => f.verdict === "drop")) return document(record, context, { text: "" });
  const { extractBytes, PageError } = await import("./extract.js");
  if (type === "text/plain") {
    const { decode } = await import("./html/charset.js");
    return document(record, context, { text: storable(decode(bytes, contentType).text) });
  }
  try {
    const page = extractBytes(bytes, contentType, { mode: context.mode, timeout: context.timeout });
    const metadata: Record<string, unknown> = {};
    if (page.title !== "") metadata.title = page.title;
    if (page.declaredLanguage !== undefined) metadata.declaredLanguage = page.declaredLanguage;
    if (page.published !== undefined) metadata.published = page.published;
    return document(record, context, { text: page.text, url: record.url ?? page.canonical, metadata });
  } catch (error) {
    if (error instanceof PageError) return rejected(`the page ${error.message}`);
    // A bug in a parser must not end a run of millions of pages; the record is listed with what happened.
    return rejected(`the page could not be extracted: ${(error as Error).message}`);
  }
}
