/** `lyceum corpus ...`: parse, call the corpus pipeline, print. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { isBinary, NO_TEXT } from "../corpus/document.js";
import { type ExtractOptions, extractBytes, PageError } from "../corpus/extract.js";
import { decodePieces } from "../corpus/html/charset.js";
import { loadIdentifier } from "../corpus/language.js";
import { UserError } from "../run/errors.js";

/** Pages larger than this are refused: no text is that long, and a tree of it would not fit into memory. */
const MAX_PAGE = 16 * 2 ** 20;

export async function extract(files: string[], options: { json?: boolean; mode: string }): Promise<void> {
  if (options.mode !== "fast" && options.mode !== "readability")
    throw new UserError(`--mode ${options.mode}: it must be fast or readability.`, 2);
  const identifier = await loadIdentifier();
  for (const file of files) {
    const { title, text } = page(file, { mode: options.mode, timeout: 60 });
    const { language } = identifier.identify(text);
    if (options.json) console.log(JSON.stringify({ title, text, language }));
    else console.log(`${title}\n\n${text}`);
  }
}

function page(file: string, options: ExtractOptions): { title: string; text: string } {
  if (file !== "-" && !existsSync(file)) throw new UserError(`${file} does not exist.`, 2);
  if (file !== "-" && statSync(file).isDirectory())
    throw new UserError(`${file} is a folder. Name HTML files; for a folder, write a recipe for "corpus build".`, 2);
  const size = file === "-" ? 0 : statSync(file).size;
  if (size > MAX_PAGE)
    throw new UserError(
      `${file} has ${(size / 2 ** 20).toFixed(0)} MiB; pages of up to ${MAX_PAGE / 2 ** 20} MiB are read.`,
    );
  try {
    const bytes = readFileSync(file === "-" ? 0 : file);
    if (isBinary(decodePieces(bytes.subarray(0, 16_384)).pieces.join(""))) throw new UserError(`${file}: ${NO_TEXT}.`);
    return extractBytes(bytes, undefined, options);
  } catch (error) {
    if (error instanceof PageError) throw new UserError(`${file} ${error.message}.`);
    throw error;
  }
}
