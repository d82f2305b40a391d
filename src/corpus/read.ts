/** Documents from files: JSONL with a `text` field (plain or .gz), or plain text (one document a file). Streaming. */
import { createReadStream, existsSync, statSync } from "node:fs";
import { createInterface } from "node:readline";
import { createGunzip } from "node:zlib";
import { UserError } from "../run/errors.js";
import type { Document, Rejected } from "./document.js";

export type { Document, Rejected } from "./document.js";

export async function* readDocuments(files: readonly string[], rejected: Rejected[]): AsyncGenerator<Document> {
  for (const file of files) {
    if (!existsSync(file))
      throw new UserError(`${file} does not exist. It is named under data.train or data.validation.`, 2);
    if (statSync(file).size === 0) {
      rejected.push({ file, line: 0, reason: "the file is empty" });
      continue;
    }
    if (/\.jsonl(\.gz)?$/.test(file)) yield* readJsonl(file, rejected);
    else if (/\.(txt|md|text)(\.gz)?$/.test(file))
      yield { id: file, text: await readText(file), source: { file, line: 1 }, dataset: "", metadata: {} };
    else
      throw new UserError(
        `${file}: cannot tell its format by its name. Known are .jsonl, .jsonl.gz, .txt, .txt.gz and .md.`,
        2,
      );
  }
}

function open(file: string): NodeJS.ReadableStream {
  const raw = createReadStream(file);
  if (!file.endsWith(".gz")) return raw;
  const gunzip = createGunzip();
  raw.on("error", (e) => gunzip.destroy(e));
  return raw.pipe(gunzip);
}

async function* readJsonl(file: string, rejected: Rejected[]): AsyncGenerator<Document> {
  let line = 0;
  try {
    for await (const row of createInterface({ input: open(file), crlfDelay: Number.POSITIVE_INFINITY })) {
      line++;
      const text = line === 1 ? row.replace(/^\uFEFF/, "") : row;
      if (text.trim() === "") continue;
      const reject = (reason: string): void => void rejected.push({ file, line, reason });
      let record: { text?: unknown; id?: unknown };
      try {
        record = JSON.parse(text);
      } catch (error) {
        reject(`not JSON: ${(error as Error).message}`);
        continue;
      }
      if (typeof record?.text !== "string") reject('there is no field "text" with a string in it');
      else if (record.text.trim() === "") reject("the text is empty");
      else
        yield {
          id: String(record.id ?? `${file}:${line}`),
          text: record.text,
          source: { file, line },
          dataset: "",
          metadata: {},
        };
    }
  } catch (error) {
    if (error instanceof UserError) throw error;
    rejected.push({ file, line: line + 1, reason: `reading stopped here: ${(error as Error).message}` });
  }
}

async function readText(file: string): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of open(file)) pieces.push(piece as unknown as Buffer);
  return Buffer.concat(pieces)
    .toString("utf8")
    .replace(/^\uFEFF/, "");
}
