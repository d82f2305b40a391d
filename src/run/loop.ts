/**
 * The training loop that all stages share: steps, metrics, evaluation, samples, checkpoints, signals, and stopping when
 * numbers are no longer finite. A stage supplies what a step is.
 */
import { setImmediate } from "node:timers/promises";
import { NonFiniteError, systemMessage, UserError } from "./errors.js";
import { latestStep, type RunFolder } from "./folder.js";
import { duration, mebibytes, openProgress, type Progress, peakMemory } from "./progress.js";
import { writeReport } from "./report.js";

export interface StepResult {
  /** Tokens trained on, for the speed; and, for the utilisation (MFU), operations that this takes. Of all processes. */
  tokens: number;
  flops?: number;
  /** Written to metrics.jsonl; `loss` is shown. */
  metrics: { loss: number } & Record<string, number>;
}

export interface LoopStage {
  steps: number;
  /** What a step needs and what changes nothing of the models, as a rollout: where it fails, the steps before it are saved. */
  prepare?(step: number): Promise<void>;
  /** Does step 1 .. steps. Throws NonFiniteError before anything is updated with numbers that are not finite. */
  step(step: number): StepResult | Promise<StepResult>;
  /** Losses on held-out data and the like; also called after the last step. */
  evaluate?(step: number): Record<string, number>;
  /** Text to look at: kept in samples/, and shown. Called with evaluate, and before the first step. */
  sample?(step: number): string | undefined;
  /** Writes everything that resuming needs. */
  save(dir: string): void;
  /** Bytes of this process's parameters, gradients and optimizer state, as the ZeRO paper counts them; written for each process. */
  stateBytes?(): number;
  /** What the step worked on, for the file that is left behind when its loss is NaN. */
  batch(): unknown;
  /** The metrics of the progress line, of which the first is told at the end; default: those without a "/" in their name, and the loss. All are in metrics.jsonl. */
  show?: readonly string[];
  /** Measures how many operations all processes together can do in a second, for the utilisation; all call it. */
  peakFlops?(): number;
}

export interface LoopSettings {
  logEvery: number;
  evalEvery: number;
  saveEvery: number;
}

/** Milliseconds between two writings of report.html at least. */
const REPORT_EVERY = 30_000;

/**
 * What asks a run to save and stop; a closed terminal too. The last one is what Open MPI's mpirun hands on to all processes
 * (on the others it gives them a second); MPICH's hands on SIGINT.
 */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2"] as const;

/** A step that comes so near the peak makes one ask whether something else was running when that was measured; so often at most. */
const NEAR_PEAK = 0.9;
const MEASURED_AGAIN = 10;

/** Runs the steps after run.startStep. Ends with a checkpoint of the last step. */
export async function runLoop(run: RunFolder, settings: LoopSettings, stage: LoopStage): Promise<void> {
  if (run.startStep > stage.steps)
    throw new UserError(
      `${run.dir} has done ${run.startStep} steps, and now it is to have ${stage.steps}: its model cannot be taken back. Set steps to ${run.startStep} or more, or name another folder with --out.`,
      2,
    );
  run.goesOn();
  const progress = openProgress(process.stderr, run.first);
  const began = performance.now();
  const alone = (run.world?.size ?? 1) === 1;
  let peak = stage.peakFlops?.() ?? 0;
  let measured = 0;
  const due = (every: number, step: number): boolean => step === stage.steps || (every > 0 && step % every === 0);
  let stopping = false;
  const onSignal = (): void => {
    if (stopping) process.exit(130);
    stopping = true;
    progress.note(
      "stopping after this step; once more to stop at once (what came after the last checkpoint is then lost)",
    );
  };
  const heard = run.hearsSignals ? SIGNALS : [];
  for (const signal of heard) process.on(signal, onSignal);
  let reported = began;
  let trained = 0;
  let [tokens, flops] = [0, 0];
  let told = "";
  try {
    if (run.startStep > 0) progress.note(`going on after step ${run.startStep} of ${stage.steps}`);
    else showSample(run, stage, 0, progress);
    for (let step = run.startStep + 1; step <= stage.steps; step++) {
      const start = performance.now();
      const sent = run.world?.bytesSent ?? 0;
      if (stage.prepare) await prepared(run, stage, step, alone);
      const result = await stage.step(step);
      const done = performance.now();
      const seconds = (done - start) / 1000;
      trained += seconds;
      tokens += result.tokens;
      flops += result.flops ?? 0;
      const speed = (result.flops ?? 0) / seconds;
      if (alone && stage.peakFlops && speed > NEAR_PEAK * peak && measured++ < MEASURED_AGAIN)
        peak = Math.max(peak, stage.peakFlops());
      if (peak > 0) peak = Math.max(peak, speed);
      const mfu = peak > 0 ? speed / peak : 0;
      const timing = {
        tokensPerSecond: Math.round(result.tokens / seconds),
        seconds: Number(seconds.toFixed(4)),
        ...(mfu > 0 && { mfu: Number(mfu.toFixed(3)) }),
        peakMemoryMiB: Math.round(peakMemory() / 2 ** 20),
      };
      await setImmediate(); // lets a signal in, before what is done about it
      const { world } = run;
      stopping ||= run.signal?.aborted === true;
      let stop = stopping;
      let perRank: { modelStateBytes?: number[]; bytesSent?: number[] } = stage.stateBytes
        ? { modelStateBytes: [stage.stateBytes()] }
        : {};
      if (world && world.size > 1) {
        // A signal may reach the processes in different steps: when one stops, all do.
        const all = world.gatherNumbers([stopping ? 1 : 0, stage.stateBytes?.() ?? 0, world.bytesSent - sent]);
        stop = all.some(([asked]) => asked === 1);
        perRank = { modelStateBytes: all.map(([, bytes]) => bytes), bytesSent: all.map(([, , bytes]) => bytes) };
      }
      const evaluated = stage.evaluate && due(settings.evalEvery, step) ? stage.evaluate(step) : undefined;
      const values = { ...result.metrics, ...evaluated, ...timing, ...perRank };
      run.metrics.write(step, values);
      run.onStep?.(step, values, done);
      stop ||= alone && run.signal?.aborted === true; // it may have been asked for just now
      const left = ((stage.steps - step) * trained) / (step - run.startStep);
      const shown = Object.entries({ ...result.metrics, ...evaluated }).filter(
        ([key]) => stage.show?.includes(key) ?? !key.includes("/"),
      );
      const [first] = stage.show ?? ["loss"];
      told = `${first} ${result.metrics[first].toFixed(4)}`;
      const share = peak > 0 ? flops / trained / peak : 0;
      const utilisation = share > 0 ? `  MFU ${Math.round(share * 100)}%` : "";
      const line = `step ${step}/${stage.steps}  ${format(shown)}  ${Math.round(tokens / trained)} tokens/s${utilisation}  ${duration(left)} left`;
      progress.status(line, due(settings.logEvery, step) || evaluated !== undefined);
      if (due(settings.evalEvery, step)) showSample(run, stage, step, progress);
      if (due(settings.saveEvery, step) || stop) {
        run.checkpoint(step, (dir) => stage.save(dir));
        // Now and then: it grows with the run, and can be written again at any time.
        if (step === stage.steps || stop || performance.now() - reported > REPORT_EVERY) {
          writeReport(run, stage.steps);
          reported = performance.now();
        }
      }
      if (stop && step < stage.steps) {
        world?.barrier(true); // the first to end ends the others
        const stopped = new UserError(
          `Stopped and saved at step ${step} of ${stage.steps}. The same command with --resume goes on from here.`,
          130,
        );
        if (run.signal?.aborted) stopped.cause = run.signal.reason;
        throw stopped;
      }
    }
    const took = duration((performance.now() - began) / 1000);
    if (run.startStep < stage.steps)
      progress.note(
        `done: ${stage.steps} steps, ${told}, ${Math.round(tokens / trained)} tokens/s, peak memory ${mebibytes(peakMemory())}, ${took}`,
      );
  } catch (error) {
    if (error instanceof NonFiniteError) throw explain(error, run, stage);
    throw error;
  } finally {
    progress.end();
    for (const signal of heard) process.off(signal, onSignal);
  }
}

/** Prepares a step. Of several processes, whose others wait elsewhere, nothing can be saved where one fails. */
async function prepared(run: RunFolder, stage: LoopStage, step: number, alone: boolean): Promise<void> {
  try {
    await stage.prepare?.(step);
  } catch (error) {
    const last = step - 1;
    if (!(error instanceof UserError) || !alone || last === 0) throw error;
    const told = error.message.replace(/\.?$/, ".");
    try {
      run.checkpoint(last, (dir) => stage.save(dir));
    } catch (unsaved) {
      const why = systemMessage(unsaved, run.dir) ?? (unsaved as Error).message;
      throw new UserError(`${told} Step ${last} could not be saved either: ${why}`, error.exitCode);
    }
    throw new UserError(
      `${told} Step ${last} is saved: the same command with --resume goes on from there.`,
      error.exitCode,
    );
  }
}

function showSample(run: RunFolder, stage: LoopStage, step: number, progress: Progress): void {
  const text = stage.sample?.(step);
  if (text === undefined) return;
  run.write(`samples/${String(step).padStart(6, "0")}.txt`, `${text}\n`);
  progress.note(text.replace(/^/gm, "    "));
}

function explain(error: NonFiniteError, run: RunFolder, stage: LoopStage): UserError {
  const path = run.writeOwn("not-finite", `${JSON.stringify(stage.batch())}\n`);
  const others = (run.world?.size ?? 1) > 1 ? ", what the other processes had of it beside that" : "";
  const step = latestStep(run.dir);
  const goOn =
    step > 0
      ? `The checkpoint of step ${step} is unharmed: --resume goes on from there`
      : "There is no checkpoint yet: --resume begins again";
  return new UserError(
    `${error.what} is not finite, so training stopped before it could reach the model. The batch of that step is in ${path}${others}. ` +
      "Usual causes are a learning rate that is too high, or a warm-up that is too short. " +
      `${goOn}, for example with --set optimizer.learningRate=LOWER.`,
  );
}

const NAMES: Record<string, string> = {
  learningRate: "lr",
  gradNorm: "grad",
  validationLoss: "val",
  perplexity: "ppl",
};
/** The numbers of a line; small ones (a learning rate) in scientific form. */
function format(values: readonly [string, number][]): string {
  return values
    .map(
      ([key, v]) =>
        `${NAMES[key] ?? key} ${Math.abs(v) >= 0.01 || v === 0 ? Number(v.toFixed(3)) : v.toExponential(1)}`,
    )
    .join("  ");
}
