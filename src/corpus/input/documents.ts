/** Files of any known format as documents, for commands that need no build. */
import type { Document, Rejected } from "../document.js";
import { parseRecord } from "../parse.js";
import { listFiles, readSource } from "./source.js";

/** Throws UserError for files that are not there or not known; what a record is not good for goes to `rejected`. */
export async function* documentsOf(
  paths: readonly string[],
  dataset: string,
  rejected: (record: Rejected) => void,
  maxRecordBytes = 64_000_000,
): AsyncGenerator<Document> {
  const context = {
    dataset,
    label: (file: string) => file,
    mode: "fast" as const,
    timeout: 20,
    maxRecordBytes,
    judgeUrl: () => [],
  };
  const limits = { maxRecordBytes, fixed: true };
  for await (const { record } of readSource(listFiles(paths, "the command"), { file: 0, records: 0 }, limits)) {
    if (record.skip) continue;
    const parsed = await parseRecord(record, context);
    if ("document" in parsed) yield parsed.document;
    else rejected(parsed);
  }
}
