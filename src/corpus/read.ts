/**
 * Documents from files, for training: whatever a corpus build reads too (JSONL with a `text` field, plain, .gz or .zst;
 * Parquet; WARC; HTML), plain text (one document a file, of up to 536 million characters, or those between lines of <|endoftext|>), and
 * folders of these. Streaming.
 */
import { constants, isUtf8 } from "node:buffer";
import { statSync } from "node:fs";
import { chanceKey, type Document, isBinary, NO_TEXT, type Rejected } from "./document.js";
import { readPieces } from "./input/bytes.js";
import { documentsOf } from "./input/documents.js";
import { formatOf, listFiles, noFormat } from "./input/source.js";

export { type Document, firstReason, type Rejected } from "./document.js";

/**
 * Every document that can be trained on, in order; one without an id has the hash of its text for one. The others go to `rejected`.
 * Throws UserError (exit code 2) for a path that is not there or not of a known format. `where`: what names the paths, for that
 * message. `share`: of several processes each reads every so many of the files, or where there are fewer files than processes,
 * takes every so many of the documents.
 */
export async function* readDocuments(
  paths: readonly string[],
  rejected: Rejected[],
  where = "data.train or data.validation",
  { rank, size }: { rank: number; size: number } = { rank: 0, size: 1 },
): AsyncGenerator<Document> {
  const files = listFiles(paths, where, true);
  const byFile = files.length >= size;
  // Where all read a file, one tells what cannot be used of it.
  const reject = (record: Rejected): void => void ((byFile || rank === 0) && rejected.push(record));
  let seen = 0;
  for (const [f, file] of files.entries()) {
    if (byFile && f % size !== rank) continue;
    if (formatOf(file) === undefined) {
      reject({ file, line: 0, reason: noFormat(file) });
      continue;
    }
    const documents = isPlainText(file) ? readText(file, reject) : documentsOf([file], "", reject);
    for await (const document of documents)
      if (document.text.trim() === "") reject({ ...document.source, reason: "the text is empty" });
      else if (byFile || seen++ % size === rank) yield { ...document, id: chanceKey(document) };
  }
}

const isPlainText = (file: string): boolean => formatOf(file) === "text";

const TOO_LARGE = `oversized: a text file without <|endoftext|> lines in its first MiB is one document, and of at most ${Math.floor(constants.MAX_STRING_LENGTH / 1e6)} million characters; cut it into several files, or make it JSONL with a document a line`;
const TOO_LONG = `oversized: no <|endoftext|> line within ${Math.floor(constants.MAX_STRING_LENGTH / 1e6)} MB, which is what a document may have`;
/** No more bytes can be a string: of UTF-8 three at most are one of its units. */
const MAX_BYTES = 3 * constants.MAX_STRING_LENGTH;

/** Between documents of one file, on a line of its own, as TinyStories and others have it. */
const SEPARATOR = "<|endoftext|>";
const SEPARATOR_LINE = /^<\|endoftext\|>\r?(?:\n|$(?![\r\n]))/gm;
/** A file of UTF-8 with a separator this far in is read document by document; any other as a whole. */
const HEAD = 2 ** 20;

/** A plain text file: one document, or those between separators. */
async function* readText(file: string, reject: (record: Rejected) => void): AsyncGenerator<Document> {
  const onDisk = statSync(file).size;
  if (onDisk === 0) return reject({ file, line: 0, reason: "the file is empty" });
  const tooLarge = onDisk > MAX_BYTES && !/\.(gz|zst)$/i.test(file);
  const documents = new Documents(file, reject);
  let held: Buffer[] = [];
  let size = 0;
  let separated: boolean | undefined;
  for await (const { data, damage } of readPieces(file)) {
    if (damage !== undefined) return reject({ file, line: documents.line, reason: `it cannot be read: ${damage}` });
    const piece = Buffer.from(data.buffer, data.byteOffset, data.length);
    size += piece.length;
    if (separated) {
      yield* documents.add(piece);
      continue;
    }
    held.push(piece);
    if (separated === undefined && size > HEAD) {
      const head = Buffer.concat(held);
      const { hasEscapes } = await import("./html/charset.js");
      const readable = isUtf8(head.subarray(0, head.lastIndexOf(10) + 1)) && !hasEscapes(head);
      separated = readable && separatorIn(head, true, false) !== undefined;
      held = [head];
      if (separated) yield* documents.add(head);
    }
    if (!separated && (size > MAX_BYTES || (separated === false && tooLarge)))
      return reject({ file, line: 1, reason: TOO_LARGE });
  }
  if (separated) yield* documents.end();
  else {
    const { text, reason } = await textOf(Buffer.concat(held));
    if (reason !== undefined) reject({ file, line: 1, reason });
    else yield* documents.within(text!);
  }
}

/** The documents of one file, with the lines that they begin at. */
class Documents {
  line = 1;
  /** What is open: bytes without a separator's line, and the last of them. */
  private open: Buffer[] = [];
  private size = 0;
  private tail: Buffer = Buffer.alloc(0);

  constructor(
    private readonly file: string,
    private readonly reject: (record: Rejected) => void,
  ) {}

  /** Those of a text that is there as a whole. */
  *within(text: string): Generator<Document> {
    let from = 0;
    for (const { 0: separator, index } of text.matchAll(SEPARATOR_LINE)) {
      if (index > 0) yield* this.document(text.slice(from, index));
      this.line++;
      from = index + separator.length;
    }
    if (from === 0 || text.slice(from).trim() !== "") yield* this.document(text.slice(from));
  }

  /** Those that end in the next bytes of a file of UTF-8. */
  *add(piece: Buffer): Generator<Document> {
    let rest = this.line === 1 && this.size === 0 && piece.indexOf("\ufeff") === 0 ? piece.subarray(3) : piece;
    for (;;) {
      // A separator may have begun in the bytes before.
      const searched = this.size === 0 ? rest : Buffer.concat([this.tail, rest]);
      const found = separatorIn(searched, this.size === this.tail.length, false);
      if (!found) break;
      const before = this.size - this.tail.length;
      if (before + found.start > 0 || this.line > 1) yield* this.bytes(before + found.start, rest);
      this.line++;
      rest = searched.subarray(found.end);
      [this.open, this.size, this.tail] = [[], 0, rest.subarray(0, 0)];
    }
    if (rest.length === 0) return;
    this.tail = Buffer.concat([this.tail, rest.subarray(-2 * SEPARATOR.length)]).subarray(-2 * SEPARATOR.length);
    this.size += rest.length;
    // Of one too long to be read, the length is enough.
    if (this.size > constants.MAX_STRING_LENGTH) this.open = [];
    else this.open.push(rest);
  }

  *end(): Generator<Document> {
    const last = separatorIn(this.tail, this.size === this.tail.length, true); // without a line end
    const length = this.size - (last ? this.tail.length - last.start : 0);
    if (length > this.tail.length || this.tail.subarray(0, length).toString("latin1").trim() !== "")
      yield* this.bytes(length);
  }

  /** What is open, with the `more`, up to a length: a document. */
  private *bytes(length: number, more: Buffer = Buffer.alloc(0)): Generator<Document> {
    const { file, line } = this;
    if (length > constants.MAX_STRING_LENGTH) return this.reject({ file, line, reason: TOO_LONG });
    const bytes = (this.open.length === 0 ? more : Buffer.concat([...this.open, more])).subarray(0, length);
    if (isUtf8(bytes)) return yield* this.document(bytes.toString("utf8"));
    this.reject({ file, line, reason: "not UTF-8, as the beginning of the file is" });
    for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) this.line++;
  }

  private *document(text: string): Generator<Document> {
    const { file, line } = this;
    if (isBinary(text)) this.reject({ file, line, reason: NO_TEXT });
    else yield { id: file, unnamed: true, text, source: { file, line }, dataset: "", metadata: {} };
    for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) this.line++;
  }
}

/** The first separator's line. `begins`: a document begins with these bytes; `ends`: the text ends where they do. */
function separatorIn(bytes: Buffer, begins: boolean, ends: boolean): { start: number; end: number } | undefined {
  for (let start = bytes.indexOf(SEPARATOR); start >= 0; start = bytes.indexOf(SEPARATOR, start + 1)) {
    if (start > 0 ? bytes[start - 1] !== 10 : !begins) continue;
    let end = start + SEPARATOR.length;
    if (bytes[end] === 13) end++;
    if (bytes[end] === 10) return { start, end: end + 1 };
    if (ends && end >= bytes.length) return { start, end };
  }
  return undefined;
}

/** The text of bytes in whatever encoding; whether it is text at all is asked of each document. */
async function textOf(bytes: Uint8Array): Promise<{ text?: string; reason?: string }> {
  const { decodePieces, hasEscapes } = await import("./html/charset.js");
  try {
    if (!hasEscapes(bytes)) return { text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) }; // drops the byte order mark
  } catch {
    // Not UTF-8; or of more bytes than a string has characters, which Node decodes only piece by piece.
  }
  const decoded = decodePieces(bytes);
  if (decoded.replaced > 0.01) return { reason: "not text in any encoding that could be told" };
  if (decoded.pieces.reduce((n, piece) => n + piece.length, 0) > constants.MAX_STRING_LENGTH)
    return { reason: TOO_LARGE };
  return { text: decoded.pieces.join("") };
}
