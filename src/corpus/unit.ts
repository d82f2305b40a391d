/**
 * The two steps of a unit of work, as pure functions of its input: reading (records to documents) and judging (documents to
 * signals, decisions, spans, and what deduplication needs). They run in worker threads or in place, with the same bytes out.
 */
import { basename } from "node:path";
import { getDomain } from "tldts";
import type { Document, Finding, Rejected, Span } from "./document.js";
import { exactKey } from "./exact.js";
import { BuildFolder, readRows, toRows } from "./folder.js";
import type { Position, RawRecord } from "./input/record.js";
import { type JudgeContext, judge, loadEvaluations } from "./judge.js";
import { MinHasher } from "./minhash.js";
import { type ParseContext, parseRecord } from "./parse.js";
import { AGAINST, type Recipe } from "./recipe.js";
import { type BlockList, UrlFilter } from "./url.js";

/** A document as it is stored, with what the URL filter said. */
export type Row = Document & { urlFindings?: Finding[] };

export interface Counts {
  documents: number;
  bytes: number;
  rejected: number;
  kept: number;
  keptBytes: number;
  /** By stage, then rule: documents that it drops first, and documents that it would drop. */
  rules: Record<string, { stage: string; first: number; any: number; bytes: number }>;
  languages: Record<string, number>;
}

export interface ReadMarker {
  key: string;
  files: Record<string, number>;
  start: Position;
  next: Position;
  /** Nothing of the source comes after this unit. */
  last: boolean;
  records: number;
  documents: number;
  rejected: number;
  bytes: number;
}
export interface JudgedMarker {
  key: string;
  files: Record<string, number>;
  counts: Counts;
}

/** A kept document in index/UNIT.jsonl: what deduplication and the last stage need of it. */
export interface IndexEntry {
  id: string;
  row: number;
  /** UTF-16 units and UTF-8 bytes of the text that is left. */
  length: number;
  bytes: number;
  /** That text is not the document's own: spans were cut or replaced. */
  cut: boolean;
  /** Where the row stands in the documents file. */
  offset: number;
  size: number;
  /** Of the normalised text (exact.ts). */
  key: string;
}

export interface ReadTask {
  step: "read";
  unit: string;
  source: string;
  key: string;
  judgeKey: string;
  start: Position;
  next: Position;
  last: boolean;
  /** Records, and their bytes end to end. */
  records: Omit<RawRecord, "bytes">[];
  lengths: number[];
  bytes: Uint8Array;
}
export interface JudgeTask {
  step: "judge";
  unit: string;
  source: string;
  key: string;
}
export type Task = ReadTask | JudgeTask;

export interface WorkerSetup {
  dir: string;
  recipe: Recipe;
  blockLists: BlockList[];
  /** Of every source: how its files are called in ids. */
  labels: Map<string, Map<string, string>>;
}

/**
 * Characters that the documents of a unit hold together. A unit is cut by its bytes as they lie in the file (4 MB), in which pages may be packed
 * once more: none becomes so long that was not made to fill the memory. What is longer in the file itself is taken as it is.
 */
const MAX_UNPACKED = 1 << 26;

/** The documents of a unit's records, and what could not be used. */
export async function documentsIn(
  { records, lengths, bytes }: Pick<ReadTask, "records" | "lengths" | "bytes">,
  context: ParseContext,
  most = Math.max(MAX_UNPACKED, bytes.length),
): Promise<{ rows: Row[]; rejected: Rejected[] }> {
  const tooMuch = `oversized: the records before it have unpacked to more than ${(most / 1e6).toFixed(0)} MB of text (a smaller unit.records would take more of them)`;
  const rows: Row[] = [];
  const rejected: Rejected[] = [];
  let at = 0;
  let characters = 0;
  for (const [i, record] of records.entries()) {
    const reason = record.reason ?? (characters > most ? tooMuch : undefined);
    const parsed = await parseRecord({ ...record, bytes: bytes.subarray(at, at + lengths[i]), reason }, context);
    at += lengths[i];
    if ("document" in parsed) {
      characters += parsed.document.text.length;
      rows.push(parsed.url.length > 0 ? { ...parsed.document, urlFindings: parsed.url } : parsed.document);
    } else rejected.push(parsed);
  }
  return { rows, rejected };
}

export class Worker {
  private readonly folder: BuildFolder;
  private readonly recipe: Recipe;
  private readonly urls: UrlFilter;
  private readonly labels: WorkerSetup["labels"];
  private context: Promise<JudgeContext> | undefined;
  private hasher: MinHasher | undefined;

  constructor(setup: WorkerSetup) {
    this.folder = new BuildFolder(setup.dir);
    this.recipe = setup.recipe;
    this.urls = new UrlFilter(setup.recipe.url, setup.blockLists);
    this.labels = setup.labels;
  }

  async run(task: Task): Promise<{ read?: ReadMarker; judged: JudgedMarker }> {
    if (task.step === "judge")
      return { judged: await this.judge(task, readRows<Row>(this.folder.rows("documents", task.unit))) };
    const { marker, rows } = await this.read(task);
    const judged = await this.judge({ ...task, key: task.judgeKey }, rows);
    return { read: marker, judged };
  }

  private async read(task: ReadTask): Promise<{ marker: ReadMarker; rows: Row[] }> {
    const { extract, limits } = this.recipe;
    const context: ParseContext = {
      dataset: task.source,
      label: (file) => this.labels.get(task.source)?.get(file) ?? basename(file),
      mode: extract.mode,
      timeout: limits.timeout,
      maxRecordBytes: limits.maxRecordBytes,
      judgeUrl: (url) => this.urls.judge(url),
    };
    const { rows, rejected } = await documentsIn(task, context);
    const marker: ReadMarker = {
      key: task.key,
      files: {},
      start: task.start,
      next: task.next,
      last: task.last,
      records: task.records.length,
      documents: rows.length,
      rejected: rejected.length,
      bytes: task.bytes.length,
    };
    this.folder.commit(`${task.unit}.read`, marker as never, {
      [`documents/${task.unit}.jsonl`]: toRows(rows),
      [`rejected/${task.unit}.jsonl`]: toRows(rejected),
    });
    return { marker, rows };
  }

  private async judge(task: Omit<JudgeTask, "step">, rows: readonly Row[]): Promise<JudgedMarker> {
    this.context ??= this.prepare();
    const context = await this.context;
    const trusted =
      task.source === AGAINST || (this.recipe.sources.find((s) => s.name === task.source)?.trusted ?? false);
    const near = this.recipe.deduplicate?.near || undefined;
    if (near && !this.hasher) this.hasher = new MinHasher({ ...near, seed: this.recipe.seed });
    const hashes = this.hasher?.hashes ?? 0;
    const counts: Counts = {
      documents: rows.length,
      bytes: 0,
      rejected: 0,
      kept: 0,
      keptBytes: 0,
      rules: {},
      languages: {},
    };
    const signals: Record<string, unknown>[] = [];
    const decisions: unknown[] = [];
    const spans: Span[][] = [];
    const index: IndexEntry[] = [];
    const signatures = new Uint32Array(rows.length * hashes);
    const offsets = this.rowOffsets(rows);
    for (const [i, { urlFindings = [], ...document }] of rows.entries()) {
      const result = judge(document, urlFindings, trusted, context);
      const bytes = Buffer.byteLength(document.text);
      counts.bytes += bytes;
      const language = result.language ?? "und";
      counts.languages[language] = (counts.languages[language] ?? 0) + 1;
      const domain = document.url === undefined ? null : (getDomain(document.url) ?? null);
      signals.push({ id: document.id, language, domain, characters: document.text.length, ...finite(result.signals) });
      decisions.push({
        id: document.id,
        action: result.dropped ? "drop" : "keep",
        ...(result.dropped ? { stage: result.dropped.stage, rule: result.dropped.rule } : {}),
        findings: result.findings.map((f) => [
          f.stage,
          f.rule,
          f.value,
          f.threshold ?? null,
          f.verdict,
          ...(f.detail ? [f.detail] : []),
        ]),
      });
      spans.push(result.spans);
      for (const finding of result.findings) count(counts, finding, finding === result.dropped, bytes);
      if (result.dropped) continue;
      const keptBytes = Buffer.byteLength(result.text);
      index.push({
        id: document.id,
        row: i,
        length: result.text.length,
        bytes: keptBytes,
        cut: result.spans.length > 0,
        offset: offsets[i],
        size: offsets[i + 1] - offsets[i] - 1,
        key: exactKey(result.text),
      });
      if (this.hasher)
        this.hasher.signature(result.text, signatures.subarray(counts.kept * hashes, (counts.kept + 1) * hashes));
      counts.kept++;
      counts.keptBytes += keptBytes;
    }
    const marker: JudgedMarker = { key: task.key, files: {}, counts };
    const unit = task.unit;
    this.folder.commit(`${unit}.judged`, marker as never, {
      [`signals/${unit}.jsonl`]: toRows(signals),
      [`decisions/${unit}.jsonl`]: toRows(decisions),
      [`spans/${unit}.jsonl`]: toRows(spans),
      [`index/${unit}.jsonl`]: toRows(index),
      [`index/${unit}.bin`]: new Uint8Array(signatures.buffer, 0, counts.kept * hashes * 4),
    });
    return marker;
  }

  /** Byte offsets of the rows in the documents file. */
  private rowOffsets(rows: readonly Row[]): Float64Array {
    const offsets = new Float64Array(rows.length + 1);
    for (const [i, row] of rows.entries()) offsets[i + 1] = offsets[i] + Buffer.byteLength(JSON.stringify(row)) + 1;
    return offsets;
  }

  private async classifier(): Promise<JudgeContext["classifier"]> {
    const { classifier } = this.recipe;
    if (!classifier) return undefined;
    return (await import("./classifier.js")).QualityClassifier.load(classifier.model, classifier.label);
  }

  private async prepare(): Promise<JudgeContext> {
    const { loadIdentifier } = await import("./language.js");
    return {
      recipe: this.recipe,
      identifier: this.recipe.language ? await loadIdentifier() : undefined,
      evaluations: await loadEvaluations(this.recipe),
      classifier: await this.classifier(),
    };
  }
}

function count(counts: Counts, finding: Finding, first: boolean, bytes: number): void {
  counts.rules[finding.rule] ??= { stage: finding.stage, first: 0, any: 0, bytes: 0 };
  const rule = counts.rules[finding.rule];
  if (finding.verdict === "drop") rule.any++;
  if (first) {
    rule.first++;
    rule.bytes += bytes;
  }
}

/** JSON has no NaN: a signal that does not apply is null. */
const finite = (signals: Record<string, number>): Record<string, number | null> =>
  Object.fromEntries(Object.entries(signals).map(([name, value]) => [name, Number.isFinite(value) ? value : null]));
