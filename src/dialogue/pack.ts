/**
 * Packing: several samples in one row of at most `contextLength` tokens, none seeing another, no padding anywhere.
 * First-fit decreasing (Johnson 1973) within windows of samples, so that memory stays bounded and the order stays random.
 */
import { createHash } from "node:crypto";
import type { TokenBatch } from "../nn/llama.js";
import { packSequences } from "../nn/llama.js";
import type { Sample } from "./mask.js";

const WINDOW = 1024;

/** Rows of sample numbers whose lengths sum to at most contextLength. A sample that is longer has a row of its own. */
export function packRows(lengths: readonly number[], contextLength: number): number[][] {
  const rows: number[][] = [];
  for (let start = 0; start < lengths.length; start += WINDOW) {
    const window = lengths.slice(start, start + WINDOW).map((length, i) => ({ length, index: start + i }));
    window.sort((a, b) => b.length - a.length || a.index - b.index);
    const open: { free: number; row: number[] }[] = [];
    for (const { length, index } of window) {
      const place = open.find((r) => r.free >= length);
      if (place) {
        place.free -= length;
        place.row.push(index);
      } else open.push({ free: contextLength - length, row: [index] });
    }
    rows.push(...open.map((r) => r.row));
  }
  return rows;
}

/**
 * A hash of tokens in their order, each list with its length, and of texts beside them: whether two processes, or a run and the one
 * that goes on with it, have the same data. Many tokens are more than one text can hold, so they are not made one.
 */
export function fingerprintOf(parts: Iterable<Int32Array | Uint8Array | string | number>): string {
  const hash = createHash("sha256");
  for (const part of parts) {
    hash.update(typeof part === "object" ? `${part.length} ` : `${part}\n`);
    if (typeof part === "object") hash.update(part);
  }
  return hash.digest("hex");
}

/** Samples end to end with their targets: position i should predict token i + 1 of its sample if that is trainable, else -1. */
export function sampleBatch(samples: readonly Sample[]): TokenBatch & { targets: Int32Array } {
  const batch = packSequences(samples.map((s) => s.ids));
  const targets = new Int32Array(batch.ids.length).fill(-1);
  samples.forEach((s, n) => {
    for (let i = 0; i + 1 < s.ids.length; i++) if (s.trainable[i + 1]) targets[batch.cuSeqlens[n] + i] = s.ids[i + 1];
  });
  return { ...batch, targets };
}
