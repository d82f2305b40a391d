/**
 * The run folder: everything a run needs to be explained, resumed or repeated.
 *   config.yaml    resolved, with the version        metrics.jsonl, events.*   what happened
 *   inputs.json    fingerprints of what it reads
 *   checkpoints/000500/   whole or not there at all   samples/, model/          what came out
 *   report.html    all of it on one page
 * A checkpoint is written under a name that starts with a dot, synced, and renamed when it is whole.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { setImmediate } from "node:timers/promises";
import type { Comm } from "../parallel/comm.js";
import { toYaml } from "./config.js";
import { UserError } from "./errors.js";
import { checkInputs } from "./inputs.js";
import { holdsLock, takeLock } from "./lock.js";
import { Metrics, type MetricValues } from "./metrics.js";
import { CHECKPOINT, changedSettings, clearPreparation, configText, contentsOf, PARTIAL } from "./resume.js";
import { VERSION } from "./version.js";

const stepName = (step: number): string => String(step).padStart(6, "0");

export class RunFolder {
  readonly metrics: Metrics;
  private readonly owned: { close(): void }[] = [];
  /** Asks the run to save and stop, as Ctrl-C does. */
  signal: AbortSignal | undefined;
  /** Whether the signals that end a program ask for that too. In somebody else's program they are its own. */
  hearsSignals = true;
  /** Told of each step, and when it was done, on the clock of performance.now(). */
  onStep: ((step: number, values: MetricValues, done: number) => void) | undefined;

  private constructor(
    readonly dir: string,
    /** Step of the checkpoint that this run goes on from; 0: from the start. */
    readonly startStep: number,
    private readonly keep: number,
    /** All processes of the run. The first of them writes for all, but for the parts of a checkpoint. */
    readonly world: Comm | undefined,
    /** Gives the folder's lock back, which the first process has. */
    private readonly release: () => void = () => {},
    /** Text of config.yaml, until it is written. */
    private settings?: string,
  ) {
    this.metrics = new Metrics(dir, startStep, this.first);
  }

  get first(): boolean {
    return (this.world?.rank ?? 0) === 0;
  }
  /** All processes, for as long as it takes. */
  private meet(): void {
    this.world?.barrier(true);
  }

  /** Opens `dir` for one run. Throws when it holds a run already and `resume` is not asked for, or when another process writes it. */
  static open(
    dir: string,
    config: unknown,
    options: { resume?: boolean | undefined; keepCheckpoints: number; world?: Comm },
  ): RunFolder {
    const { world } = options;
    if (world && world.rank > 0) {
      world.barrier(true); // the first process makes the folder
      return new RunFolder(dir, world.gatherNumbers([0])[0][0], options.keepCheckpoints, world);
    }
    const begin = (): boolean => mayBegin(dir, options.resume);
    begin(); // a folder that is something else is left as it is, without so much as a lock in it
    try {
      makeFolder(dir);
    } catch (error) {
      // On a read-only file system the folder is said not to exist.
      const gone = (error as NodeJS.ErrnoException).code === "ENOENT";
      throw gone
        ? new UserError(`${dir} cannot be made: nothing can be written there. Name another folder with --out.`)
        : error;
    }
    const release = takeLock(`${dir}/run.lock`);
    try {
      // Asked again: before the lock was had, another process may have begun a run here, and ended it.
      if (begin()) clearPreparation(dir);
      makeFolder(`${dir}/checkpoints`);
      for (const name of readdirSync(`${dir}/checkpoints`))
        if (PARTIAL.test(name)) rmSync(`${dir}/checkpoints/${name}`, { recursive: true });
      const start = latestStep(dir);
      if (start > 0) mustHoldSomething(dir, start);
      const inputs = checkInputs(dir, config, start);
      const changes = [...changedSettings(dir, config, start), ...inputs.changes];
      if (start > 0 && changes.length > 0) console.error(`since the run began: ${changes.join("; ")}`);
      const settings = configText(VERSION, toYaml(config));
      const run = new RunFolder(dir, start, options.keepCheckpoints, world, release, settings);
      if (start === 0) run.goesOn();
      if (inputs.text !== undefined) writeWhole(`${dir}/inputs.json`, inputs.text);
      world?.barrier(true);
      world?.gatherNumbers([start]);
      return run;
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Writes the settings. Of a run that goes on it is called when its checkpoint is loaded: one that cannot be changes nothing. */
  goesOn(): void {
    if (this.settings !== undefined) writeWhole(`${this.dir}/config.yaml`, this.settings);
    this.settings = undefined;
  }

  checkpointDir(step: number): string {
    return `${this.dir}/checkpoints/${stepName(step)}`;
  }

  /**
   * Writes a checkpoint with `write(dir)`, in all processes; it exists when all of it is on disk, and then older ones
   * than `keep` go. A process that fails on the way leaves the checkpoints that are there as they are.
   */
  checkpoint(step: number, write: (dir: string) => void): void {
    const final = this.checkpointDir(step);
    if (existsSync(final)) return;
    this.together(`${this.dir}/checkpoints/.${stepName(step)}`, write, (partial) => {
      syncAll(partial);
      publish(partial, final);
    });
    if (!this.first) return;
    const steps = checkpointSteps(this.dir);
    for (const old of steps.slice(0, Math.max(0, steps.length - this.keep)))
      rmSync(this.checkpointDir(old), { recursive: true });
  }

  /** Writes a result folder (such as model/) whole or not at all. */
  result(name: string, write: (dir: string) => void): string {
    const final = `${this.dir}/${name}`;
    const old = `${this.dir}/.${name}.old`;
    this.together(`${this.dir}/.${name}`, write, (partial) => {
      rmSync(old, { recursive: true, force: true });
      syncAll(partial);
      if (existsSync(final)) renameSync(final, old);
      publish(partial, final);
      rmSync(old, { recursive: true, force: true });
    });
    return final;
  }

  /** All processes meet around what is done on the disk, however slow it is. */
  private together(partial: string, write: (dir: string) => void, publish: (partial: string) => void): void {
    if (this.first) {
      this.checkLock();
      rmSync(partial, { recursive: true, force: true });
      mkdirSync(partial, { recursive: true });
    }
    this.meet();
    try {
      write(partial);
    } catch (error) {
      // On a full disk what is half written stands in the way of everything else.
      if (this.first) rmSync(partial, { recursive: true, force: true });
      throw error;
    }
    this.meet();
    if (this.first) {
      this.checkLock();
      publish(partial);
    }
    this.meet();
  }
  /** Throws a UserError where another process may have gone on in this folder, while this one stood still. */
  private checkLock(): void {
    if (!holdsLock(`${this.dir}/run.lock`))
      throw new UserError(
        `${this.dir}/run.lock is no longer this process's: it was deleted, or another process took the folder over, as it may when one stands still for minutes (a paused container, a machine that slept). Nothing more is saved by this one; the same command with --resume goes on from the last checkpoint.`,
      );
  }

  /** Work that the first process does for all, such as writing token shards; the others wait. */
  async once(work: () => Promise<void>): Promise<void> {
    if (this.first) await work();
    this.meet();
  }

  /** Writes a text file of the run whole or not at all; `name` may hold folders. */
  write(name: string, text: string): string {
    const path = `${this.dir}/${name}`;
    if (!this.first) return path;
    mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    writeWhole(path, text);
    return path;
  }

  /** What each process has of its own: NAME.json, of the processes after the first NAME-RANK.json. */
  writeOwn(name: string, text: string): string {
    const path = `${this.dir}/${this.first ? name : `${name}-${this.world?.rank}`}.json`;
    writeWhole(path, text);
    return path;
  }

  /** Lists records that were set aside; and tells how many they are. */
  setAside(records: readonly { file: string; line: number; reason: string }[]): void {
    if (records.length === 0) return;
    const path = this.write("rejected.jsonl", `${records.map((r) => JSON.stringify(r)).join("\n")}\n`);
    const { file, line, reason } = records[0];
    const counts = new Map<string, number>();
    for (const r of records) counts.set(r.reason, (counts.get(r.reason) ?? 0) + 1);
    const others = [...counts].filter(([why]) => why !== reason).sort((a, b) => b[1] - a[1]);
    const more = others.slice(0, 3).map(([why, n]) => `; ${n} for: ${why}`);
    console.error(
      `${records.length} records set aside (${path}); the first is ${file}:${line}: ${reason}${more.join("")}${others.length > 3 ? "; ..." : ""}`,
    );
  }

  /** What is closed with the run, however that ends: models and what trains them hold memory that nobody else gives back. */
  own<T extends { close(): void }>(thing: T): T {
    this.owned.push(thing);
    return thing;
  }

  /** Throws a UserError where the run was asked to stop; for stages that are not made of steps. */
  async mustGoOn(): Promise<void> {
    await setImmediate(); // lets whoever asks for it ask
    if (this.signal?.aborted) throw new UserError(`${this.dir}: stopped before its end, as was asked for.`, 130);
  }

  close(): void {
    try {
      for (const thing of this.owned.splice(0).reverse()) thing.close();
    } finally {
      this.metrics.close();
      this.release();
    }
  }
}

/**
 * Whether what is in `dir` has to be cleared away before a run begins there. Throws UserError (exit code 2) where none may: in a
 * folder that is none of a run's, and in one that holds a run unless `resume`.
 */
function mayBegin(dir: string, resume: boolean | undefined): boolean {
  if (existsSync(dir) && !statSync(dir).isDirectory())
    throw new UserError(`${dir} is a file; a run needs a folder. Name another one with --out.`, 2);
  const holds = contentsOf(dir);
  if (holds === "other")
    throw new UserError(`${dir} is not empty and is not a run. Name another folder with --out.`, 2);
  if (holds === "run" && !resume)
    throw new UserError(
      `${dir} already holds a run${latestStep(dir) ? ` (checkpoint at step ${latestStep(dir)})` : ""}. Add --resume to go on with it, or name another folder with --out.`,
      2,
    );
  return holds === "preparation" && !resume;
}

/** As mkdir -p. Node's own tries for ever where a folder that is there says of a new name that it does not exist, as /proc does. */
function makeFolder(dir: string): void {
  if (existsSync(dir)) return;
  if (dirname(dir) !== dir) makeFolder(dirname(dir));
  try {
    mkdirSync(dir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

/** For work that is not shared out yet: throws a UserError when several processes were started for it. */
export function onlyAlone(name: string, { world }: RunFolder): void {
  if (world && world.size > 1)
    throw new UserError(`${name} runs in one process; ${world.size} were started. Start it without mpirun.`, 2);
}

/** Steps of the whole checkpoints, ascending. */
export function checkpointSteps(dir: string): number[] {
  if (!existsSync(`${dir}/checkpoints`)) return [];
  return readdirSync(`${dir}/checkpoints`)
    .filter((name) => CHECKPOINT.test(name))
    .map(Number)
    .sort((a, b) => a - b);
}
/** A checkpoint is whole when it has its name: one that is empty, or a file, lost its contents later. */
function mustHoldSomething(dir: string, step: number): void {
  const path = `${dir}/checkpoints/${stepName(step)}`;
  const folder = statSync(path).isDirectory();
  if (folder && readdirSync(path).length > 0) return;
  const older = checkpointSteps(dir).at(-2);
  throw new UserError(
    `The checkpoint ${path} is damaged: it is ${folder ? "an empty folder" : "a file, where a folder is meant"}. Delete it; --resume then ${older === undefined ? "has none to go on from, and begins with step 1" : `goes on from the one before, of step ${older}`}.`,
  );
}
export const latestStep = (dir: string): number => checkpointSteps(dir).at(-1) ?? 0;

function publish(partial: string, final: string): void {
  renameSync(partial, final);
  sync(final.slice(0, final.lastIndexOf("/")));
}
function syncAll(dir: string): void {
  for (const name of readdirSync(dir)) {
    const path = `${dir}/${name}`;
    if (statSync(path).isDirectory()) syncAll(path);
    else sync(path);
  }
  sync(dir);
}
function sync(path: string): void {
  const fd = openSync(path, "r");
  fsyncSync(fd);
  closeSync(fd);
}
function writeWhole(path: string, text: string): void {
  writeFileSync(`${path}.partial`, text);
  sync(`${path}.partial`);
  renameSync(`${path}.partial`, path);
}
