/** Exact duplicates: a hash of the normalised text, and which of several equal documents is kept. */
import { createHash } from "node:crypto";

/** What decides between twins: the source's priority (0 first), then the longer text, then the smaller id. */
export interface Standing {
  id: string;
  /** Place of the source in the recipe's order of preference; 0 is kept before 1. */
  priority: number;
  /** Characters of the text. */
  length: number;
}

const byId = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
/** Negative: a is kept before b. A total order as long as ids differ, so no result depends on the order of reading. */
export const keepBefore = (a: Standing, b: Standing): number =>
  a.priority - b.priority || b.length - a.length || byId(a.id, b.id);

/** NFC, one space for every run of white space, none at the ends: what a copy changes by accident. Case and marks stay. */
export const normalise = (text: string): string => text.normalize("NFC").replace(/\s+/g, " ").trim();

/** 32 hexadecimal digits (128 bits of SHA-256) of the normalised text; the same for texts that differ in white space only. */
export const exactKey = (text: string): string =>
  createHash("sha256").update(normalise(text)).digest("hex").slice(0, 32);

export interface Twin {
  /** Index of the document that goes. */
  index: number;
  /** Index of the document that stays in its place. */
  kept: number;
  similarity: number;
}

/**
 * Of every group with the same key the first by `keepBefore` stays. `fixed` documents, the first ones of the list, belong to
 * another data set (--against): they always stay, and come before all others.
 */
export function exactDuplicates(documents: readonly Standing[], keys: readonly string[], fixed = 0): Twin[] {
  const kept = new Map<string, number>();
  const better = (a: number, b: number): boolean =>
    a < fixed !== b < fixed ? a < fixed : keepBefore(documents[a], documents[b]) < 0;
  for (let i = 0; i < documents.length; i++) {
    const before = kept.get(keys[i]);
    if (before === undefined || better(i, before)) kept.set(keys[i], i);
  }
  const twins: Twin[] = [];
  for (let i = fixed; i < documents.length; i++) {
    const stays = kept.get(keys[i])!;
    if (stays !== i) twins.push({ index: i, kept: stays, similarity: 1 });
  }
  return twins;
}

export interface Overlap {
  /** Data set of the documents that go, and of those that stay. */
  from: string;
  against: string;
  documents: number;
  meanSimilarity: number;
  /** The first few, with real ids. */
  examples: { id: string; kept: string; similarity: number }[];
}

/** How much of each data set stands in each other: a row for every pair of sources that has twins, the largest first. */
export function overlapTable(
  documents: readonly { id: string; dataset: string }[],
  twins: readonly Twin[],
  examples = 5,
): Overlap[] {
  const rows = new Map<string, Overlap>();
  for (const { index, kept, similarity } of twins) {
    const from = documents[index].dataset;
    const against = documents[kept].dataset;
    const key = JSON.stringify([from, against]);
    let row = rows.get(key);
    if (!row) {
      row = { from, against, documents: 0, meanSimilarity: 0, examples: [] };
      rows.set(key, row);
    }
    row.documents++;
    row.meanSimilarity += similarity;
    if (row.examples.length < examples)
      row.examples.push({ id: documents[index].id, kept: documents[kept].id, similarity });
  }
  const table = [...rows.values()];
  for (const row of table) row.meanSimilarity /= row.documents;
  return table.sort((a, b) => b.documents - a.documents || byId(a.from, b.from) || byId(a.against, b.against));
}
