/**
 * Documents from files, for training: whatever a corpus build reads too (JSONL with a `text` field, plain, .gz or .zst;
 * Parquet; WARC; HTML), plain text (one document a file, of up to 536 million characters, or those between lines of <|endoftext|>), and
 * folders of these. Streaming.
 */
import { constants } from "node:buffer";
import { statSync } from "node:fs";
import { chanceKey, type Document, isBinary, NO_TEXT, type Rejected } from "./document.js";
import { readPieces } from "./input/bytes.js";
import { documentsOf } from "./input/documents.js";
import { formatOf, KNOWN, listFiles } from "./input/source.js";

export type { Document, Rejected } from "./document.js";

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
      reject({ file, line: 0, reason: `its format cannot be told by its name. Known are ${KNOWN}` });
      continue;
    }
    const documents = isPlainText(file) ? readText(file, reject) : documentsOf([file], "", reject);
    for await (const document of documents)
      if (document.text.trim() === "") reject({ ...document.source, reason: "the text is empty" });
      else if (byFile || seen++ % size === rank) yield { ...document, id: chanceKey(document) };
  }
}

const isPlainText = (file: string): boolean => formatOf(file) === "text" && !/\.zst$/i.test(file);

const TOO_LARGE = `oversized: a text file without <|endoftext|> lines between its documents is one, and of at most ${Math.floor(constants.MAX_STRING_LENGTH / 1e6)} million characters; cut it into several files, or make it JSONL with a document a line`;
/** No more bytes can be a string: of UTF-8 three at most are one of its units. */
const MAX_BYTES = 3 * constants.MAX_STRING_LENGTH;

/** Between documents of one file, on a line of its own, as TinyStories and others have it. */
const SEPARATOR = "<|endoftext|>";
/** Where a file has no separator this far in, it is one document. */
const HEAD = 2 ** 20;

/** A plain text file: one document, or those between separators. */
async function* readText(file: string, reject: (record: Rejected) => void): AsyncGenerator<Document> {
  const onDisk = statSync(file).size;
  if (onDisk === 0) return reject({ file, line: 0, reason: "the file is empty" });
  const isPacked = /\.gz$/i.test(file);
  let held: Buffer[] = [];
  let size = 0;
  let separated = false;
  let line = 1;
  const document = async function* (bytes: Uint8Array): AsyncGenerator<Document> {
    const { text, reason } = await textOf(bytes);
    if (reason !== undefined) reject({ file, line, reason });
    else yield { id: file, unnamed: true, text: text!, source: { file, line }, dataset: "", metadata: {} };
    for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) line++;
  };
  for await (const { data, damage } of readPieces(file)) {
    if (damage !== undefined) return reject({ file, line, reason: `it cannot be read: ${damage}` });
    held.push(Buffer.from(data.buffer, data.byteOffset, data.length));
    size += data.length;
    if (!separated && size - data.length > HEAD) {
      if (size > MAX_BYTES || (onDisk > MAX_BYTES && !isPacked)) return reject({ file, line, reason: TOO_LARGE });
      continue;
    }
    let rest = Buffer.concat(held);
    for (let at = separatorIn(rest, false); at; at = separatorIn(rest, false)) {
      separated = true;
      if (at.start > 0 || line > 1) yield* document(rest.subarray(0, at.start));
      line++;
      rest = rest.subarray(at.end);
    }
    if (rest.length > MAX_BYTES) return reject({ file, line, reason: TOO_LARGE });
    held = [rest];
  }
  let rest = Buffer.concat(held);
  const last = separated ? separatorIn(rest, true) : undefined; // without a line end
  if (last) rest = rest.subarray(0, last.start);
  if (!separated || rest.toString("latin1").trim() !== "") yield* document(rest);
}

/** The first separator's line; `whole`: the text ends where the bytes do. */
function separatorIn(bytes: Buffer, whole: boolean): { start: number; end: number } | undefined {
  for (let start = bytes.indexOf(SEPARATOR); start >= 0; start = bytes.indexOf(SEPARATOR, start + 1)) {
    if (start > 0 && bytes[start - 1] !== 10) continue;
    let end = start + SEPARATOR.length;
    if (bytes[end] === 13) end++;
    if (bytes[end] === 10) return { start, end: end + 1 };
    if (whole && end >= bytes.length) return { start, end };
  }
  return undefined;
}

async function textOf(bytes: Uint8Array): Promise<{ text?: string; reason?: string }> {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); // drops the byte order mark
  } catch {
    // Not UTF-8; or of more bytes than a string has characters, which Node decodes only piece by piece.
    const { decodePieces } = await import("./html/charset.js");
    const decoded = decodePieces(bytes);
    if (decoded.replaced > 0.01) return { reason: "not text in any encoding that could be told" };
    if (decoded.pieces.reduce((n, piece) => n + piece.length, 0) > constants.MAX_STRING_LENGTH)
      return { reason: TOO_LARGE };
    text = decoded.pieces.join("");
  }
  return isBinary(text) ? { reason: NO_TEXT } : { text };
}
