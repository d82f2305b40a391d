/** `lyceum corpus dedup`: all pairs of near duplicates of files, with their true similarity. */

import type { Rejected } from "../corpus/document.js";
import { documentsOf } from "../corpus/input/documents.js";
import { bandingFor, checkMinHash, MinHasher, nearPairs } from "../corpus/minhash.js";
import { UserError } from "../run/errors.js";

export interface DedupFlags {
  threshold: string;
  shingle: string;
  bands?: string;
  rows?: string;
  json?: boolean;
}

export async function command(files: string[], flags: DedupFlags): Promise<void> {
  const number = (name: "threshold" | "shingle" | "bands" | "rows"): number | undefined => {
    if (flags[name] === undefined) return undefined;
    const value = Number(flags[name]);
    if (!Number.isFinite(value)) throw new UserError(`--${name} ${flags[name]}: it must be a number.`, 2);
    return value;
  };
  const [threshold, bands, rows] = [number("threshold")!, number("bands"), number("rows")];
  const asked = { threshold, shingle: number("shingle")!, bands, rows };
  checkMinHash(asked, (name) => `--${name}`);
  // A build may overlook a twin that is just similar enough, as FineWeb's does; a list of all pairs shall not.
  const given = { ...(bands !== undefined && { bands }), ...(rows !== undefined && { rows }) };
  const hasher = new MinHasher({ ...asked, ...bandingFor(threshold, given) });
  const ids: string[] = [];
  const texts: string[] = [];
  let rejected = 0;
  const reject = (r: Rejected): void => {
    rejected++;
    console.error(`${r.file}:${r.line}: ${r.reason}`);
  };
  for await (const { id, text } of documentsOf(files, "", reject)) {
    ids.push(id);
    texts.push(text);
  }
  const signatures = new Uint32Array(texts.length * hasher.hashes);
  for (const [i, text] of texts.entries())
    hasher.signature(text, signatures.subarray(i * hasher.hashes, (i + 1) * hasher.hashes));
  const pairs = nearPairs({ count: texts.length, signatures, textOf: (i) => texts[i] }, hasher.options);
  if (flags.json)
    console.log(JSON.stringify(pairs.map(({ a, b, similarity }) => ({ a: ids[a], b: ids[b], similarity }))));
  else {
    for (const { a, b, similarity } of pairs) console.log(`${similarity.toFixed(4)}  ${ids[a]}  ${ids[b]}`);
    console.error(
      `${pairs.length} pairs among ${texts.length} documents${rejected ? `; ${rejected} records could not be used` : ""}`,
    );
  }
}
