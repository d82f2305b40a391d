/**
 * Documents from files, for training: whatever a corpus build reads too, and folders of these. Streaming. A text may be as long as a string
 * can be, 536 million characters.
 */
import { constants } from "node:buffer";
import { chanceKey, type Document, type Rejected } from "./document.js";
import { documentsOf } from "./input/documents.js";
import { formatOf, listFiles, noFormat } from "./input/source.js";

export { type Document, firstReason, type Rejected } from "./document.js";

/** Bytes: of UTF-8 three at most are one of a string's units. */
const LONGEST_TEXT = 3 * constants.MAX_STRING_LENGTH;

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
    const most = formatOf(file) === "text" ? LONGEST_TEXT : undefined;
    for await (const document of documentsOf([file], "", reject, most))
      if (document.text.trim() === "") reject({ ...document.source, reason: "the text is empty" });
      else if (byFile || seen++ % size === rank) yield { ...document, id: chanceKey(document) };
  }
}
