/**
 * Documents from files, for training: whatever a corpus build reads too (JSONL with a `text` field, plain, .gz or .zst;
 * Parquet; WARC; HTML), plain text (one document a file, of up to 536 million characters), and folders of these. Streaming.
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
    const documents = isPlainText(file) ? [await readText(file, reject)] : documentsOf([file], "", reject);
    for await (const document of documents)
      if (document === undefined) continue;
      else if (document.text.trim() === "") reject({ ...document.source, reason: "the text is empty" });
      else if (byFile || seen++ % size === rank) yield { ...document, id: chanceKey(document) };
  }
}

const isPlainText = (file: string): boolean => formatOf(file) === "text" && !/\.zst$/i.test(file);

const TOO_LARGE = `oversized: a text file is one document, and of at most ${Math.floor(constants.MAX_STRING_LENGTH / 1e6)} million characters; cut it into several files, or make it JSONL with a document a line`;
/** No more bytes can be a string: of UTF-8 three at most are one of its units. */
const MAX_BYTES = 3 * constants.MAX_STRING_LENGTH;

async function readText(file: string, reject: (record: Rejected) => void): Promise<Document | undefined> {
  const onDisk = statSync(file).size;
  if (onDisk === 0) return void reject({ file, line: 0, reason: "the file is empty" });
  if (onDisk > MAX_BYTES && !/\.gz$/i.test(file)) return void reject({ file, line: 1, reason: TOO_LARGE });
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const { data, damage } of readPieces(file)) {
    if (damage !== undefined) return void reject({ file, line: 1, reason: `it cannot be read: ${damage}` });
    pieces.push(data);
    size += data.length;
    if (size > MAX_BYTES) return void reject({ file, line: 1, reason: TOO_LARGE });
  }
  const bytes = Buffer.concat(pieces);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); // drops the byte order mark
  } catch {
    // Not UTF-8; or of more bytes than a string has characters, which Node decodes only piece by piece.
    const { decodePieces } = await import("./html/charset.js");
    const decoded = decodePieces(bytes);
    if (decoded.replaced > 0.01)
      return void reject({ file, line: 1, reason: "not text in any encoding that could be told" });
    if (decoded.pieces.reduce((n, piece) => n + piece.length, 0) > constants.MAX_STRING_LENGTH)
      return void reject({ file, line: 1, reason: TOO_LARGE });
    text = decoded.pieces.join("");
  }
  if (isBinary(text)) return void reject({ file, line: 1, reason: NO_TEXT });
  return { id: file, unnamed: true, text, source: { file, line: 1 }, dataset: "", metadata: {} };
}
