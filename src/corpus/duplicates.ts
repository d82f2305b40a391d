/** Deduplication over the whole corpus: exact, then near, from the index that the units left. Writes a row beside every document. */
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { type SharedBands, shareBands } from "./bands.js";
import { applySpans, type Span, spanMap } from "./document.js";
import { exactDuplicates, type Overlap, overlapTable, type Standing, type Twin } from "./exact.js";
import { type BuildFolder, readRows, toRows } from "./folder.js";
import { checkMinHash, type MinHashOptions, type NearDuplicates, nearDuplicates } from "./minhash.js";
import { AGAINST, type Recipe } from "./recipe.js";
import { RepeatFinder, textSpans, tokensOf } from "./substring.js";
import type { IndexEntry, Row } from "./unit.js";

export interface UnitOfSource {
  unit: string;
  source: string;
  priority: number;
  documents: number;
  /** Documents in the unit's index, each with a signature. */
  kept: number;
}

/** A row of duplicates/UNIT.jsonl: null, or the document's twin. */
export interface Duplicate {
  kind: "exact" | "near";
  kept: string;
  dataset: string;
  similarity: number;
  /** Id of the document that all twins of the cluster were compared with. */
  cluster: string;
}

export interface Duplicates {
  exact: number;
  near: number;
  exactBytes: number;
  nearBytes: number;
  candidates: number;
  verified: number;
  /** Documents that were not compared with all that share a band with them, as these are too many. */
  limited: number;
  overlaps: Overlap[];
  /** Repeated runs that were cut out of documents that stay, and their characters. */
  repeats: number;
  repeatCharacters: number;
}

interface Entry extends Standing {
  dataset: string;
  unit: number;
  /** Place in the unit's index. */
  place: number;
  index: IndexEntry;
}

/** How a recipe looks for near duplicates; undefined when it does not. */
export const nearOptions = ({ deduplicate, seed }: Recipe): MinHashOptions | undefined =>
  deduplicate?.near ? checkMinHash({ ...deduplicate.near, seed }) : undefined;

/** `bands`: what several processes have found about the bands of these units; one alone finds it here. */
export function findDuplicates(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  recipe: Recipe,
  bands?: SharedBands,
): Duplicates {
  const settings = recipe.deduplicate;
  const result: Duplicates = {
    exact: 0,
    near: 0,
    exactBytes: 0,
    nearBytes: 0,
    candidates: 0,
    verified: 0,
    limited: 0,
    overlaps: [],
    repeats: 0,
    repeatCharacters: 0,
  };
  const rows: (Duplicate | null)[][] = units.map((u) => new Array(u.documents).fill(null));
  if (settings) {
    const entries = loadIndex(folder, units);
    const fixed = entries.findIndex((e) => e.dataset !== AGAINST);
    const first = fixed < 0 ? entries.length : fixed;
    let twins: Twin[] = settings.exact
      ? exactDuplicates(
          entries,
          entries.map((e) => e.index.key),
          first,
        )
      : [];
    mark(twins, "exact", entries, rows);
    const options = nearOptions(recipe);
    if (options) {
      const gone = new Set(twins.map((t) => t.index));
      const left = entries.flatMap((_, i) => (gone.has(i) ? [] : [i]));
      const near = findNear(folder, units, entries, left, options, first, bands);
      result.candidates = near.candidates;
      result.verified = near.verified;
      result.limited = near.limited;
      mark(near.twins, "near", entries, rows);
      // An exact copy of a document that went for a near twin belongs to that twin now.
      const moved = new Map(near.twins.map((t) => [t.index, t]));
      for (const twin of twins) {
        const to = moved.get(twin.kept);
        if (to)
          rows[entries[twin.index].unit][entries[twin.index].index.row] = row("exact", entries[to.kept], to.similarity);
        if (to) twin.kept = to.kept;
      }
      twins = [...twins, ...near.twins];
      for (const { index } of near.twins) result.nearBytes += entries[index].index.bytes;
      result.near = near.twins.length;
    }
    result.exact = twins.length - result.near;
    result.exactBytes = twins.slice(0, result.exact).reduce((n, t) => n + entries[t.index].index.bytes, 0);
    result.overlaps = overlapTable(entries, twins);
  }
  const cuts = settings?.substring ? findRepeats(folder, units, rows, settings.substring, result) : undefined;
  for (const [u, { unit, documents }] of units.entries())
    folder.write(`repeats/${unit}.jsonl`, toRows(cuts?.[u] ?? new Array(documents).fill([])));
  for (const [u, { unit }] of units.entries()) folder.write(`duplicates/${unit}.jsonl`, toRows(rows[u]));
  return result;
}

const row = (kind: Duplicate["kind"], kept: Entry, similarity: number): Duplicate => ({
  kind,
  kept: kept.id,
  dataset: kept.dataset,
  similarity: Math.round(similarity * 1e4) / 1e4,
  cluster: kept.id,
});

function mark(
  twins: readonly Twin[],
  kind: Duplicate["kind"],
  entries: readonly Entry[],
  rows: (Duplicate | null)[][],
): void {
  for (const { index, kept, similarity } of twins)
    rows[entries[index].unit][entries[index].index.row] = row(kind, entries[kept], similarity);
}

function loadIndex(folder: BuildFolder, units: readonly UnitOfSource[]): Entry[] {
  return units.flatMap(({ unit, source, priority }, u) =>
    readRows<IndexEntry>(folder.path(`index/${unit}.jsonl`)).map((index, place) => ({
      id: index.id,
      priority,
      length: index.length,
      dataset: source,
      unit: u,
      place,
      index,
    })),
  );
}

function findNear(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  entries: readonly Entry[],
  left: readonly number[],
  options: MinHashOptions,
  fixed: number,
  bands = shareBands(folder, units, options),
): NearDuplicates {
  const hashes = options.bands * options.rows;
  const { documents, buckets } = bands.among(left);
  const signatures = new Uint32Array(documents.length * hashes);
  let loaded = -1;
  let own = new Uint32Array(0);
  for (const [i, entry] of documents.entries()) {
    const { unit, place } = entries[entry];
    if (unit !== loaded) {
      const bytes = readFileSync(folder.path(`index/${units[unit].unit}.bin`));
      own = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      loaded = unit;
    }
    signatures.set(own.subarray(place * hashes, (place + 1) * hashes), i * hashes);
  }
  const texts = new Texts(folder, units);
  try {
    const found = nearDuplicates(
      {
        documents: documents.map((i) => entries[i]),
        signatures,
        buckets,
        textOf: (i) => texts.of(entries[documents[i]]),
        fixed: documents.filter((i) => i < fixed).length,
      },
      options,
    );
    return { ...found, twins: found.twins.map((t) => ({ ...t, index: documents[t.index], kept: documents[t.kept] })) };
  } finally {
    texts.close();
  }
}

/** Spans of repeated runs for every row, in places of the whole text; the order of the sources says which place is the first. */
function findRepeats(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  twins: readonly (readonly (Duplicate | null)[])[],
  settings: { tokens: number; mode: "keep-first" | "remove-all"; memoryTokens: number },
  result: Duplicates,
): Span[][][] {
  const finder = new RepeatFinder({
    length: settings.tokens,
    mode: settings.mode,
    memoryTokens: settings.memoryTokens,
    directory: folder.path("windows"),
  });
  const rows: Span[][][] = units.map((u) => Array.from({ length: u.documents }, () => []));
  const eachLeft = function* (): Generator<{ u: number; row: number; text: string; spans: Span[] }> {
    for (const [u, { unit }] of units.entries()) {
      const documents = readRows<Row>(folder.rows("documents", unit));
      const spans = readRows<Span[]>(folder.rows("spans", unit));
      for (const { row } of readRows<IndexEntry>(folder.path(`index/${unit}.jsonl`)))
        if (!twins[u][row]) yield { u, row, text: documents[row].text, spans: spans[row] };
    }
  };
  try {
    for (const { text, spans } of eachLeft()) finder.add(tokensOf(applySpans(text, spans)).tokens);
    const found = finder.finish();
    let at = 0;
    for (const { u, row, text, spans } of eachLeft()) {
      const repeats = found[at++];
      if (repeats.length === 0) continue;
      const left = applySpans(text, spans);
      const places = spanMap(text, spans);
      for (const { start, end } of textSpans(repeats, tokensOf(left).starts, left)) {
        rows[u][row].push({ start: places.start(start), end: places.end(end), reason: "substring" });
        result.repeats++;
        result.repeatCharacters += end - start;
      }
    }
  } finally {
    finder.close();
  }
  return rows;
}

/** Texts of single documents, after their cuts, read from the build's files. */
class Texts {
  private readonly files = new Map<number, number>();
  private spans: { unit: number; rows: Span[][] } = { unit: -1, rows: [] };
  constructor(
    private readonly folder: BuildFolder,
    private readonly units: readonly UnitOfSource[],
  ) {}
  of({ unit, index }: Entry): string {
    let file = this.files.get(unit);
    if (file === undefined) {
      if (this.files.size > 200) this.close();
      file = openSync(this.folder.rows("documents", this.units[unit].unit), "r");
      this.files.set(unit, file);
    }
    const bytes = Buffer.alloc(index.size);
    readSync(file, bytes, 0, index.size, index.offset);
    const { text } = JSON.parse(bytes.toString("utf8")) as Row;
    if (!index.cut) return text;
    if (this.spans.unit !== unit)
      this.spans = { unit, rows: readRows<Span[]>(this.folder.rows("spans", this.units[unit].unit)) };
    return applySpans(text, this.spans.rows[index.row]);
  }
  close(): void {
    for (const file of this.files.values()) closeSync(file);
    this.files.clear();
  }
}
