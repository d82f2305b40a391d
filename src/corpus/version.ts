/** The version of the code that decides what a build writes: work of an earlier run is reused only if it is the same. */
import { readdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { sha256 } from "./hash.js";

/** Modules that only read what a build has left. */
const READERS = /^(?:report|report-page|why|whatif|diff|funnel)\./;
/** The engine's files that know of words and merges. */
const BPE = /^bpe/;

let corpus: string | undefined;
let tokenizer: string | undefined;

/** A hash of this folder's modules and of the text kernels, as they run: nobody has to remember to raise a number. */
export const codeVersion = (): string =>
  (corpus ??= hashOf([...modules("./").filter(([name]) => !READERS.test(name)), ...files("../../native/text/")]));

/** The same of what trains a tokenizer and turns text into ids. */
export const tokenizerVersion = (): string =>
  (tokenizer ??= hashOf([...modules("../tokenizer/"), ...files("../../native/").filter(([name]) => BPE.test(name))]));

type File = [name: string, path: string];

/** Everything in a folder, and in those in it; folders are named from this file. */
function files(folder: string): File[] {
  const path = fileURLToPath(new URL(folder, import.meta.url));
  return readdirSync(path, { recursive: true, encoding: "utf8" }).map((name) => [name, join(path, name)]);
}

function modules(folder: string): File[] {
  const extension = extname(fileURLToPath(import.meta.url));
  return files(folder).filter(([name]) => name.endsWith(extension) && !name.endsWith(".d.ts"));
}

const hashOf = (list: readonly File[]): string =>
  sha256(
    list
      .map(([, path]) => path)
      .sort()
      .map((path) => sha256(readFileSync(path)))
      .join("\n"),
  );
