/**
 * The last stage: cuts are made, documents that are left are split into train and validation by the hash of their id (or of
 * their text, if they have none), sources are mixed by weight, and all is tokenized into shards. What became of every document is written beside it (outcome/).
 */
import { closeSync, existsSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { isValidation } from "../run/order.js";
import { applySpans, chanceKey, type Document, type Span } from "./document.js";
import type { Duplicate, UnitOfSource } from "./duplicates.js";
import { type BuildFolder, diskError, readRows, toRows } from "./folder.js";
import { uniform } from "./hash.js";
import { AGAINST, type Recipe } from "./recipe.js";
import { type Manifest, readManifest, writeShards } from "./shards.js";
import type { Row } from "./unit.js";

/** A row of outcome/UNIT.jsonl. */
export interface Outcome {
  id: string;
  action: "keep" | "drop";
  stage?: string;
  rule?: string;
  split?: "train" | "validation";
  characters?: number;
}

export interface SourceShare {
  source: string;
  documents: number;
  bytes: number;
  tokens: number;
  /** Share of the tokens that the recipe's weights ask for; undefined without weights. */
  wanted: number | undefined;
  share: number;
  /** How often the average document of the source is taken. */
  epochs: number;
}

export interface Finished {
  tooShort: number;
  tooShortBytes: number;
  kept: number;
  train: Manifest | undefined;
  validation: Manifest | undefined;
  mix: SourceShare[];
  /** Sources of which nothing is left, and what took most of each. */
  emptied: { source: string; documents: number; rule: string; took: number }[];
}

type Kept = Pick<Document, "id" | "unnamed" | "text">;

const sideOf = (document: Kept, recipe: Recipe): "train" | "validation" =>
  isValidation(chanceKey(document), recipe.split.validation) ? "validation" : "train";

/** Writes kept/UNIT.jsonl and outcome/UNIT.jsonl, unit by unit: memory does not grow with the corpus. */
export function writeKept(folder: BuildFolder, units: readonly UnitOfSource[], recipe: Recipe): Finished {
  const finished: Finished = {
    tooShort: 0,
    tooShortBytes: 0,
    kept: 0,
    train: undefined,
    validation: undefined,
    mix: [],
    emptied: [],
  };
  const bySource = new Map<string, SourceShare>();
  const losses = new Map<string, Map<string, number>>();
  for (const { unit, source } of units) {
    if (source === AGAINST) continue;
    const documents = readRows<Row>(folder.rows("documents", unit));
    const decisions = readRows<{ action: "keep" | "drop"; stage?: string; rule?: string }>(
      folder.rows("decisions", unit),
    );
    const spans = readRows<Span[]>(folder.rows("spans", unit));
    const duplicates = readRows<Duplicate | null>(folder.rows("duplicates", unit));
    const repeats = readRows<Span[]>(folder.path(`repeats/${unit}.jsonl`));
    const kept: Kept[] = [];
    const outcomes: Outcome[] = [];
    for (const [i, document] of documents.entries()) {
      const { id } = document;
      const decision = decisions[i];
      const twin = duplicates[i];
      if (decision.action === "drop") {
        outcomes.push({ id, action: "drop", stage: decision.stage ?? "", rule: decision.rule ?? "" });
        continue;
      }
      if (twin) {
        outcomes.push({ id, action: "drop", stage: `${twin.kind}-duplicates`, rule: `deduplicate.${twin.kind}` });
        continue;
      }
      const text = applySpans(document.text, [...spans[i], ...repeats[i]]).trim();
      if (text.length < recipe.minCharacters) {
        outcomes.push({ id, action: "drop", stage: "length", rule: "minCharacters" });
        finished.tooShort++;
        finished.tooShortBytes += Buffer.byteLength(text);
        continue;
      }
      const { urlFindings: _, ...fields } = document;
      const left = { ...fields, text };
      kept.push(left);
      outcomes.push({ id, action: "keep", split: sideOf(left, recipe), characters: text.length });
      finished.kept++;
      const share = bySource.get(source) ?? {
        source,
        documents: 0,
        bytes: 0,
        tokens: 0,
        wanted: undefined,
        share: 0,
        epochs: 1,
      };
      share.documents++;
      share.bytes += Buffer.byteLength(text);
      bySource.set(source, share);
    }
    const lost = losses.get(source) ?? new Map<string, number>();
    losses.set(source, lost);
    for (const outcome of outcomes)
      if (outcome.rule !== undefined) lost.set(outcome.rule, (lost.get(outcome.rule) ?? 0) + 1);
    folder.write(`kept/${unit}.jsonl`, toRows(kept));
    folder.write(`outcome/${unit}.jsonl`, toRows(outcomes));
  }
  finished.mix = [...bySource.values()];
  for (const [source, lost] of losses) {
    const [most] = [...lost].sort((a, b) => b[1] - a[1]);
    if (bySource.has(source) || !most) continue;
    const documents = [...lost.values()].reduce((a, b) => a + b, 0);
    finished.emptied.push({ source, documents, rule: most[0], took: most[1] });
  }
  return finished;
}

/** Tokenizes what is kept, and says how the tokens are shared between the sources. */
export async function writeTokens(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  recipe: Recipe,
  finished: Finished,
  note: (text: string) => void,
): Promise<void> {
  if (recipe.tokenizer === undefined || finished.kept === 0) return;
  const tokenizer = await tokenizerOf(folder, units, recipe, finished, note);
  const epochs = planMix(recipe, finished, folder, units, (text) => tokenizer.encode(text).length);
  for (const split of ["train", "validation"] as const) {
    const dir = folder.path(`shards/${split}`);
    const owners: string[] = [];
    const manifest = await writeShards(mixed(folder, units, recipe, split, epochs, owners), tokenizer, dir).catch(
      (error) => {
        throw diskError(error, dir);
      },
    );
    if (manifest.documents === 0) {
      rmSync(dir, { recursive: true });
      continue;
    }
    finished[split] = manifest;
    if (split === "train") countTokens(dir, owners, finished);
  }
  tokenizer.save(folder.path("tokenizer"));
}

type Source = { name: string; epochs: number };

async function tokenizerOf(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  recipe: Recipe,
  finished: Finished,
  note: (text: string) => void,
) {
  const { Tokenizer } = await import("../tokenizer/tokenizer.js");
  if (typeof recipe.tokenizer === "string") return Tokenizer.load(recipe.tokenizer);
  const { trainBpe } = await import("../tokenizer/train.js");
  const { sample, ...options } = recipe.tokenizer!;
  note(`training a tokenizer of ${options.vocabSize} tokens`);
  return trainBpe(sampleTexts(folder, units, recipe, finished, sample), options);
}

/**
 * About `size` characters of what training will see, from beginning to end, each source by its part of the mix; bytes stand for
 * tokens, which there are none of yet. The whole mix, where it is not larger.
 */
function* sampleTexts(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  recipe: Recipe,
  finished: Finished,
  size: number,
): Generator<string> {
  const sources = new Map<string, { epochs: number; characters: number; seen: number; taken: number }>();
  for (const { name, epochs } of planMix(recipe, finished, folder, units, Buffer.byteLength))
    sources.set(name, { epochs, characters: 0, seen: 0, taken: 0 });
  for (const { unit, source } of units)
    if (source !== AGAINST)
      for (const { split, characters = 0 } of readRows<Outcome>(folder.rows("outcome", unit)))
        if (split === "train") sources.get(source)!.characters += characters;
  let whole = 0;
  for (const { epochs, characters } of sources.values()) whole += epochs * characters;
  const part = Math.min(1, size / whole);
  for (const { unit, source: name } of units) {
    if (name === AGAINST) continue;
    const source = sources.get(name)!;
    // Chosen by their lengths: most of the corpus is not read again for it.
    const times: number[] = [];
    for (const { action, split, characters = 0 } of readRows<Outcome>(folder.rows("outcome", unit))) {
      if (action !== "keep") continue;
      let n = 0;
      if (split === "train") {
        source.seen += characters;
        for (; source.taken < part * source.epochs * source.seen; source.taken += characters) n++;
      }
      times.push(n);
    }
    const taken = times.filter((n) => n > 0);
    if (taken.length === 0) continue;
    const rows = readRows<Document>(folder.path(`kept/${unit}.jsonl`), (row) => times[row] > 0);
    for (const [i, { text }] of rows.entries()) for (let n = 0; n < taken[i]; n++) yield text;
  }
}

function* keptDocuments(folder: BuildFolder, units: readonly UnitOfSource[]): Generator<Document> {
  for (const { unit, source } of units)
    if (source !== AGAINST) yield* readRows<Document>(folder.path(`kept/${unit}.jsonl`));
}

/** Documents of a source that are tokenized to tell how many tokens a byte makes there. */
const SAMPLE = 200;

/**
 * How often each source is taken, so that its share of the tokens is its share of the weights and the total stays what it
 * is (the sampling proportions of GPT-3, Brown et al. 2020, table 2.2, and of RedPajama).
 */
function planMix(
  recipe: Recipe,
  finished: Finished,
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  tokensOf: (text: string) => number,
): Source[] {
  const weights = recipe.sources.map((s) => s.weight);
  if (weights.every((w) => w === undefined)) return recipe.sources.map(({ name }) => ({ name, epochs: 1 }));
  const estimates = finished.mix.map((share) => {
    let tokens = 0;
    let bytes = 0;
    let n = 0;
    for (const { text } of keptDocuments(
      folder,
      units.filter((u) => u.source === share.source),
    )) {
      if (n++ >= SAMPLE) break;
      tokens += tokensOf(text);
      bytes += Buffer.byteLength(text);
    }
    return { source: share.source, tokens: bytes === 0 ? 0 : (share.bytes * tokens) / bytes };
  });
  const weightOf = (name: string): number => recipe.sources.find((s) => s.name === name)?.weight ?? 1;
  const total = estimates.reduce((n, e) => n + e.tokens, 0);
  const sum = estimates.reduce((n, e) => n + weightOf(e.source), 0);
  return estimates.map(({ source, tokens }) => {
    const wanted = weightOf(source) / sum;
    const share = finished.mix.find((m) => m.source === source)!;
    share.wanted = wanted;
    share.epochs = (wanted * total) / tokens;
    return { name: source, epochs: share.epochs };
  });
}

/** The documents of a side, each as often as its source's epochs say; the fraction is drawn by the hash of the id (or of the text). */
function* mixed(
  folder: BuildFolder,
  units: readonly UnitOfSource[],
  recipe: Recipe,
  split: "train" | "validation",
  sources: readonly Source[],
  owners: string[],
): Generator<Document> {
  const epochs = new Map(sources.map((s) => [s.name, s.epochs]));
  for (const document of keptDocuments(folder, units)) {
    if (sideOf(document, recipe) !== split) continue;
    const wanted = split === "validation" ? 1 : (epochs.get(document.dataset) ?? 1);
    const times = Math.floor(wanted) + (uniform(recipe.seed, "mix", chanceKey(document)) < wanted % 1 ? 1 : 0);
    for (let i = 0; i < times; i++) {
      owners.push(document.dataset);
      yield document;
    }
  }
}

function countTokens(dir: string, owners: readonly string[], finished: Finished): void {
  const lengths = readFileSync(`${dir}/documents.bin`);
  const bySource = new Map<string, number>();
  for (const [i, source] of owners.entries())
    bySource.set(source, (bySource.get(source) ?? 0) + lengths.readUInt32LE(i * 4));
  const total = readManifest(dir)!.tokens;
  for (const share of finished.mix) {
    share.tokens = bySource.get(share.source) ?? 0;
    share.share = share.tokens / total;
  }
}

/** rejected.jsonl: the units' lists one after the other. */
export function joinRejected(folder: BuildFolder, units: readonly UnitOfSource[]): void {
  const file = folder.path("rejected.jsonl");
  const out = openSync(`${file}.partial`, "w");
  try {
    for (const { unit } of units) {
      const part = folder.path(`rejected/${unit}.jsonl`);
      if (existsSync(part)) writeSync(out, readFileSync(part));
    }
  } catch (error) {
    throw diskError(error, file);
  } finally {
    closeSync(out);
  }
  renameSync(`${file}.partial`, file);
}
