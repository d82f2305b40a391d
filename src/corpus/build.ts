/**
 * `corpus build`: reads the sources unit by unit (in place, or in worker threads), deduplicates, and writes what is kept.
 * A unit that was finished by an earlier run with the same input, settings and code is not done again; what is written does
 * not depend on the number of workers nor on how often the run was killed.
 *
 * Under mpirun each process does every so many of the units, in one folder that all of them see. Then they exchange the bands of
 * their MinHash signatures, and the first process does the rest, as if an earlier run had done the units.
 */
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { resolve } from "node:path";
import type { Comm } from "../parallel/comm.js";
import { toYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { takeLock } from "../run/lock.js";
import { duration, type Progress, peakMemory } from "../run/progress.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import { type SharedBands, shareBands } from "./bands.js";
import { type Duplicates, findDuplicates, nearOptions, type UnitOfSource } from "./duplicates.js";
import { type Finished, joinRejected, writeKept, writeTokens } from "./finish.js";
import { BuildFolder, type Marker, unitName } from "./folder.js";
import {
  addCounts,
  checkConservation,
  documentStages,
  emptyCounts,
  type FunnelStage,
  funnelLines,
  nextStage,
} from "./funnel.js";
import { sha256 } from "./hash.js";
import type { Position } from "./input/record.js";
import { loadEvaluations } from "./judge.js";
import { type Plan, planBuild, type SourcePlan } from "./plan.js";
import { openPool, type Pool } from "./pool.js";
import { AGAINST, type Recipe } from "./recipe.js";
import type { Counts, JudgedMarker, ReadMarker } from "./unit.js";
import { cutUnits, type UnitInput } from "./units.js";
import { loadBlockLists } from "./url.js";
import { codeVersion, tokenizerVersion } from "./version.js";

export interface BuildSummary {
  stages: FunnelStage[];
  counts: Counts;
  duplicates: Duplicates;
  finished: Finished;
  /** Units done in this run, and taken over from earlier ones. */
  units: { read: number; judged: number; reused: number };
  seconds: number;
  /** Processor time of this process, all its threads together. */
  cpuSeconds: number;
  peakMemory: number;
}

export interface BuildProgress extends Progress {
  /** Shows lines in place of those that it showed before; only on a terminal. */
  picture?(lines: readonly string[]): void;
}

interface Unit extends UnitOfSource {
  read: ReadMarker;
  judged: JudgedMarker;
}

export async function build(
  recipe: Recipe,
  dir: string,
  workers: number,
  progress: BuildProgress,
): Promise<BuildSummary> {
  const began = Date.now();
  const folder = BuildFolder.open(dir);
  const plan = planBuild(recipe);
  const release = takeLock(folder.path("build.lock"));
  try {
    await noteEvaluations(recipe, folder, plan, progress);
    return await buildAll(recipe, folder, plan, workers, progress, began);
  } finally {
    progress.end();
    release();
  }
}

/** How much of the evaluation sets is not looked for. Fails where one cannot be used, before anything is read. Loads none when all is read and judged. */
async function noteEvaluations(
  recipe: Recipe,
  folder: BuildFolder,
  plan: Plan,
  progress: BuildProgress,
): Promise<void> {
  if (!recipe.decontaminate || plan.sources.every((source) => isFinished(folder, source))) return;
  const evaluations = await loadEvaluations(recipe);
  for (const [set, n] of evaluations?.skipped ?? [])
    progress.note(
      `${set}: texts of fewer than ${evaluations!.options.minWords} words are not looked for (decontaminate.minWords): ${n.toLocaleString("en-US")}`,
    );
}

/** The same on all processes of a job; only the first has a summary. */
export async function buildTogether(
  recipe: Recipe,
  dir: string,
  workers: number,
  progress: BuildProgress,
  world: Comm,
): Promise<BuildSummary | undefined> {
  const began = Date.now();
  const first = world.rank === 0;
  const folder = first ? BuildFolder.open(dir) : undefined;
  const release = folder && takeLock(folder.path("build.lock"));
  world.barrier(true);
  const own = folder ?? BuildFolder.open(dir);
  const plan = planBuild(recipe);
  try {
    if (first) await noteEvaluations(recipe, own, plan, progress);
    const work = { read: 0, judged: 0, reused: 0 };
    const done = await readAndJudge(own, recipe, plan, workers, progress, work, world);
    world.barrier(true);
    const works = world.gatherNumbers([work.read, work.judged, work.reused]);
    const bands = await bandsOfAll(own, recipe, world, done);
    const summary = first ? await buildAll(recipe, own, plan, workers, progress, began, bands) : undefined;
    // Nobody leaves before all is written. (One that fails ends the job: it must not wait for the others here.)
    world.barrier(true);
    // To the first process, which did the rest, all of them were done already.
    const [read, judged, reused] = [0, 1, 2].map((i) => works.reduce((n, counts) => n + counts[i], 0));
    return summary && { ...summary, units: { read, judged, reused } };
  } finally {
    progress.end();
    release?.();
  }
}

/**
 * Who shares a band among the units of all processes, of which this one has done `done`; undefined when that is not asked for, or
 * when an earlier run has finished all. Signatures are read from the units' files, which a build that is killed finds again.
 */
async function bandsOfAll(
  folder: BuildFolder,
  recipe: Recipe,
  world: Comm,
  done: readonly Unit[],
): Promise<SharedBands | undefined> {
  const options = nearOptions(recipe);
  if (!options) return undefined;
  const own = done.map(({ unit, kept, judged: { key } }) => ({ unit, kept, judged: { key } }));
  const lists = world.gatherText(JSON.stringify(own)).map((text) => JSON.parse(text) as typeof own);
  // Unit u is the work of process u mod N.
  const count = lists.reduce((n, list) => n + list.length, 0);
  const units = Array.from({ length: count }, (_, u) => lists[u % world.size][Math.floor(u / world.size)]);
  const finished =
    world.rank === 0 && folder.finished(ALL, finishKey(recipe, units, await namedTokenizer(recipe))) !== undefined;
  if (world.gatherNumbers([finished ? 1 : 0])[0][0] === 1) return undefined;
  return shareBands(folder, units, options, world);
}

async function buildAll(
  recipe: Recipe,
  folder: BuildFolder,
  plan: Plan,
  workers: number,
  progress: BuildProgress,
  began: number,
  bands?: SharedBands,
): Promise<BuildSummary> {
  const work = { read: 0, judged: 0, reused: 0 };
  const units = await readAndJudge(folder, recipe, plan, workers, progress, work);
  folder.removeStale(new Set(units.map((u) => u.unit)));
  const counts = emptyCounts();
  for (const { source, judged, read } of units)
    if (source !== AGAINST) addCounts(counts, { ...judged.counts, rejected: read.rejected });
  const { duplicates, finished } = await finish(folder, recipe, units, progress, bands);
  const stages = stagesOf(recipe, counts, duplicates, finished);
  checkConservation(stages);
  const summary: BuildSummary = {
    stages,
    counts,
    duplicates,
    finished,
    units: work,
    seconds: (Date.now() - began) / 1000,
    cpuSeconds: cpuSeconds(),
    peakMemory: peakMemory(),
  };
  // Without times: the same bytes for every run.
  const { seconds: _, cpuSeconds: __, peakMemory: ___, units: ____, ...lasting } = summary;
  folder.write("funnel.json", `${JSON.stringify(lasting, null, 2)}\n`);
  return summary;
}

/** What Ctrl-C is here, and under mpirun. */
const INTERRUPTS = ["SIGINT", "SIGUSR2"] as const;
/** All units, or of several processes this one's. After Ctrl-C it ends with the next unit. */
async function readAndJudge(
  folder: BuildFolder,
  recipe: Recipe,
  plan: Plan,
  workers: number,
  progress: BuildProgress,
  work: BuildSummary["units"],
  share?: { rank: number; size: number },
): Promise<Unit[]> {
  const labels = new Map(plan.sources.map((source) => [source.name, source.labels]));
  const setup = { dir: folder.dir, recipe, blockLists: loadBlockLists(recipe.url), labels };
  const pool = await openPool(setup, workers);
  const stop = new AbortController();
  const onInterrupt = (): void => {
    if (stop.signal.aborted) process.exit(130);
    stop.abort(new UserError("Stopped. The same command goes on with what is left to do.", 130));
  };
  for (const signal of INTERRUPTS) process.on(signal, onInterrupt);
  try {
    return await unitsBy(pool, folder, recipe, plan, progress, work, stop.signal, share);
  } finally {
    for (const signal of INTERRUPTS) process.off(signal, onInterrupt);
    await pool.close();
  }
}

async function unitsBy(
  pool: Pool,
  folder: BuildFolder,
  recipe: Recipe,
  plan: Plan,
  progress: BuildProgress,
  work: BuildSummary["units"],
  stop: AbortSignal,
  share: { rank: number; size: number } = { rank: 0, size: 1 },
): Promise<Unit[]> {
  if (share.rank === 0) {
    // From here on the files may be of two recipes; what asks the build goes by the funnel, which is written last.
    rmSync(folder.path("funnel.json"), { force: true });
    folder.write("recipe.yaml", toYaml(recipe));
  }
  const units: Unit[] = [];
  let seen = 0;
  const running = new Set<Promise<void>>();
  // The first one; a job may fail while nobody waits for it.
  let failure: { error: unknown } | undefined;
  const check = (): void => {
    if (failure) throw failure.error;
    stop.throwIfAborted();
  };
  const show = tracker(plan, progress);
  const submit = async (job: Promise<void>): Promise<void> => {
    const tracked = job
      .catch((error) => {
        failure ??= { error };
      })
      .finally(() => running.delete(tracked));
    running.add(tracked);
    if (running.size >= pool.size * 2) await Promise.race(running);
    check();
  };
  for (const source of plan.sources)
    await eachUnit(folder, recipe, source, async (unit, input, read) => {
      if (seen++ % share.size !== share.rank) return;
      const at: Partial<Unit> = { unit, source: source.name, priority: source.priority };
      units.push(at as Unit);
      const done = (result: { read?: ReadMarker; judged: JudgedMarker }, marker: ReadMarker): void => {
        Object.assign(at, {
          read: marker,
          judged: result.judged,
          documents: marker.documents,
          kept: result.judged.counts.kept,
        });
        show(source.name, marker, result.judged.counts);
      };
      if (input) {
        work.read++;
        await submit(
          pool
            .run({ step: "read", unit, source: source.name, key: source.readKey, judgeKey: source.judgeKey, ...input })
            .then((r) => done(r, r.read!)),
        );
        return;
      }
      const judged = folder.finished<JudgedMarker>(`${unit}.judged`, source.judgeKey);
      if (judged) {
        work.reused++;
        done({ judged }, read!);
      } else {
        work.judged++;
        await submit(
          pool.run({ step: "judge", unit, source: source.name, key: source.judgeKey }).then((r) => done(r, read!)),
        );
      }
    });
  await Promise.all(running);
  check();
  return units;
}

/** Every unit of a source in order: as input to be read, or as the marker of an earlier run that read it. */
async function eachUnit(
  folder: BuildFolder,
  recipe: Recipe,
  source: SourcePlan,
  visit: (unit: string, input: UnitInput | undefined, read: ReadMarker | undefined) => Promise<void>,
): Promise<void> {
  let position: Position = { file: 0, records: 0 };
  for (let n = 0; ; ) {
    const known = knownUnit(folder, source, n, position);
    if (known) {
      await visit(unitName(source.name, n++), undefined, known);
      if (known.last) return;
      position = known.next;
      continue;
    }
    // The reader stays open from here on, until a unit turns up that is done already.
    for await (const input of cutUnits(source.files, position, recipe.unit, recipe.limits)) {
      await visit(unitName(source.name, n++), input, undefined);
      position = input.next;
      if (input.last) return;
      if (knownUnit(folder, source, n, position)) break;
    }
  }
}

/** A source's unit `n`, when an earlier run has read it from the same place on. */
function knownUnit(folder: BuildFolder, source: SourcePlan, n: number, start: Position): ReadMarker | undefined {
  const read = folder.finished<ReadMarker>(`${unitName(source.name, n)}.read`, source.readKey);
  return read && JSON.stringify(read.start) === JSON.stringify(start) ? read : undefined;
}

/** Whether earlier runs have read and judged every unit of a source. */
function isFinished(folder: BuildFolder, source: SourcePlan): boolean {
  let position: Position = { file: 0, records: 0 };
  for (let n = 0; ; n++) {
    const read = knownUnit(folder, source, n, position);
    if (!read || !folder.finished(`${unitName(source.name, n)}.judged`, source.judgeKey)) return false;
    if (read.last) return true;
    position = read.next;
  }
}

/** Seconds between two pictures on a terminal, and between two lines elsewhere. */
const REDRAW = 0.2;
const LINE = 30;

function tracker(plan: Plan, progress: BuildProgress): (source: string, read: ReadMarker, counts: Counts) => void {
  const began = Date.now();
  let bytes = 0;
  let drawn = 0;
  let lined = 0;
  const total = emptyCounts();
  return (source, read, counts) => {
    bytes += read.bytes;
    addCounts(total, { ...counts, rejected: read.rejected });
    const seconds = Math.max(0.001, (Date.now() - began) / 1000);
    if (seconds - drawn < REDRAW && seconds - lined < LINE) return;
    drawn = seconds;
    const keep = seconds - lined >= LINE;
    if (keep) lined = seconds;
    // Unpacked input is larger than its files, so for packed ones this is the most that it can take.
    const left = bytes < plan.bytes ? `, ${duration(((plan.bytes - bytes) / bytes) * seconds)} left` : "";
    const text =
      `${source}: ${total.documents.toLocaleString("en-US")} documents, ${total.kept.toLocaleString("en-US")} kept so far, ` +
      `${(bytes / 1e6).toFixed(1)} MB, ${(total.documents / seconds).toFixed(0)} documents/s, ${(bytes / 1e6 / seconds).toFixed(1)} MB/s${left}`;
    if (progress.picture) progress.picture([...funnelLines(documentStages(total), 3), text]);
    else progress.status(text, keep);
  };
}

/** Marker of deduplication and the last stage: one for both, as each looks at the whole corpus. */
const ALL = "all.finished";

/** The one that the recipe names; undefined when it names none, or has one trained. */
async function namedTokenizer({ tokenizer }: Recipe): Promise<Tokenizer | undefined> {
  if (typeof tokenizer !== "string") return undefined;
  return (await import("../tokenizer/tokenizer.js")).Tokenizer.load(tokenizer);
}

/** Hash of all that deduplication and the last stage depend on. */
function finishKey(
  recipe: Recipe,
  units: readonly { unit: string; judged: { key: string } }[],
  named: Tokenizer | undefined,
): string {
  const { deduplicate, minCharacters, split, tokenizer, seed } = recipe;
  const weights = recipe.sources.map((s) => [s.name, s.priority, s.weight]);
  return sha256(
    JSON.stringify([
      codeVersion(),
      tokenizer === undefined ? undefined : tokenizerVersion(),
      units.map((u) => [u.unit, u.judged.key]),
      deduplicate,
      minCharacters,
      split,
      tokenizer,
      // What the ids go by, and what ends a document; not the chat template.
      named && [named.fingerprint, named.separatorId],
      seed,
      weights,
    ]),
  );
}

async function finish(
  folder: BuildFolder,
  recipe: Recipe,
  units: readonly Unit[],
  progress: Progress,
  bands?: SharedBands,
): Promise<{ duplicates: Duplicates; finished: Finished }> {
  const named = await namedTokenizer(recipe);
  const key = finishKey(recipe, units, named);
  const before = folder.finished<Marker & { duplicates: Duplicates; finished: Finished }>(ALL, key);
  if (before) {
    // Its chat template may be another one by now.
    if (before.finished.train ?? before.finished.validation) named?.save(folder.path(TOKENIZER));
    return before;
  }
  // It must not stand beside files of another recipe, if this run does not come to its end.
  rmSync(folder.path(`units/${ALL}.json`), { force: true });
  progress.status("looking for duplicates", false);
  const duplicates = findDuplicates(folder, units, recipe, bands);
  progress.status("writing what is kept", false);
  const finished = writeKept(folder, units, recipe);
  joinRejected(folder, units);
  progress.status("tokenizing", false);
  // Those of an earlier recipe; unless this one names its tokenizer.
  for (const part of [...SHARDS, TOKENIZER])
    if (typeof recipe.tokenizer !== "string" || resolve(recipe.tokenizer) !== resolve(folder.path(part)))
      rmSync(folder.path(part), { recursive: true, force: true });
  await writeTokens(folder, units, recipe, finished, (text) => progress.status(text, false));
  const marker = { key, files: sizes(folder, units, recipe), duplicates, finished };
  folder.write(`units/${ALL}.json`, JSON.stringify(marker));
  return marker;
}

const SHARDS = ["shards/train", "shards/validation"];
const TOKENIZER = "tokenizer";

/** Of the files that `finish` leaves. */
function sizes(folder: BuildFolder, units: readonly Unit[], recipe: Recipe): Marker["files"] {
  const files = ["rejected.jsonl"];
  for (const { unit, source } of units)
    for (const kind of source === AGAINST ? ["duplicates", "repeats"] : ["duplicates", "repeats", "kept", "outcome"])
      files.push(`${kind}/${unit}.jsonl`);
  const { tokenizer } = recipe;
  // A tokenizer that the recipe names is copied anew by every run.
  for (const dir of tokenizer === undefined ? [] : typeof tokenizer === "string" ? SHARDS : [...SHARDS, TOKENIZER])
    if (existsSync(folder.path(dir))) for (const name of readdirSync(folder.path(dir))) files.push(`${dir}/${name}`);
  return Object.fromEntries(files.map((name) => [name, statSync(folder.path(name)).size]));
}

function stagesOf(recipe: Recipe, counts: Counts, duplicates: Duplicates, finished: Finished): FunnelStage[] {
  const stages = documentStages(counts);
  const rule = (name: string, n: number, bytes: number) => [{ rule: name, first: n, any: n, bytes }];
  if (recipe.deduplicate?.exact)
    stages.push(
      nextStage(stages, "exact-duplicates", rule("deduplicate.exact", duplicates.exact, duplicates.exactBytes)),
    );
  if (recipe.deduplicate?.near)
    stages.push(nextStage(stages, "near-duplicates", rule("deduplicate.near", duplicates.near, duplicates.nearBytes)));
  stages.push(nextStage(stages, "length", rule("minCharacters", finished.tooShort, finished.tooShortBytes)));
  stages.push({
    stage: "kept",
    in: stages[stages.length - 1].kept,
    kept: finished.kept,
    dropped: 0,
    failed: 0,
    bytesDropped: 0,
    rules: [],
  });
  return stages;
}

const cpuSeconds = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
