/** The version of the code that decides what a build writes: work of an earlier run is reused only if it is the same. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { sha256 } from "./hash.js";

/** Modules that only read what a build has left. */
const READERS = /^(?:report|report-page|why|whatif|diff|funnel)\./;

let version: string | undefined;

/** A hash of this folder's modules and of the text kernels, as they run: nobody has to remember to raise a number. */
export function codeVersion(): string {
  if (version !== undefined) return version;
  const here = fileURLToPath(import.meta.url);
  const folder = dirname(here);
  const sources = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(extname(here)) && !file.endsWith(".d.ts") && !READERS.test(file))
    .map((file) => join(folder, file));
  const kernels = fileURLToPath(new URL("../../native/text/", import.meta.url));
  sources.push(...readdirSync(kernels).map((file) => join(kernels, file)));
  version = sha256(
    sources
      .sort()
      .map((file) => sha256(readFileSync(file)))
      .join("\n"),
  );
  return version;
}
