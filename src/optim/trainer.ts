/** One trained set of parameters: gradients in, clipping, the schedule's learning rate, an AdamW update. */

import type { z } from "zod";
import type { StateMemory } from "../parallel/offload.js";
import { check } from "../run/config.js";
import { NonFiniteError, UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { mebibytes } from "../run/progress.js";
import { optimizerSchema, scheduleSchema } from "../run/settings.js";
import type { ParameterSet } from "../tensor/parameters.js";
import { AdamW } from "./adamw.js";
import { learningRate, type ScheduleConfig } from "./schedule.js";
import { loadOptimizer, saveOptimizer } from "./state.js";

export class Trainer {
  readonly optimizer: AdamW;
  private readonly schedule: ScheduleConfig;
  private readonly peak: number;
  private readonly checkEvery: number;

  /** Settings as in a configuration: what is left out has its default. `steps`: of the whole run, for the schedule. */
  constructor(
    parameters: ParameterSet,
    optimizerSettings: z.input<typeof optimizerSchema>,
    scheduleSettings: z.input<typeof scheduleSchema>,
    private readonly steps: number,
    /** Where the optimizer's state lies; and every how many steps replicas are compared. */
    options: { memory?: StateMemory; checkEvery?: number } = {},
  ) {
    if (!Number.isInteger(steps) || steps < 1)
      throw new UserError(`steps is ${steps}; it must be a whole number from 1.`, 2);
    const place = (): string => "";
    const optimizer = check(optimizerSchema, { file: "the optimizer's settings", value: optimizerSettings, place });
    const schedule = check(scheduleSchema, { file: "the schedule's settings", value: scheduleSettings, place });
    if (optimizer.ema && parameters.units.some((u) => u.name === "adapters"))
      throw new UserError("optimizer.ema averages a whole model's weights; it cannot be used with lora.", 2);
    this.checkEvery = options.checkEvery ?? 0;
    this.optimizer = new AdamW(parameters, optimizer, options.memory);
    this.peak = optimizer.learningRate;
    const { warmupSteps, minLearningRate } = schedule;
    if (warmupSteps > steps)
      console.error(
        `schedule.warmupSteps is ${warmupSteps}, of ${steps} steps: the learning rate never comes to ${this.peak}`,
      );
    this.schedule = {
      ...schedule,
      warmupSteps: warmupSteps < 1 ? Math.round(warmupSteps * steps) : warmupSteps,
      minLearningRate: minLearningRate ?? this.peak / 10,
    };
  }

  /**
   * One optimizer step: `backward` leaves the gradients, over as many micro-batches as it likes, and returns the loss.
   * Throws NonFiniteError, before the update, when the loss or the gradient's norm is not finite.
   */
  step(step: number, backward: () => number): { loss: number; gradNorm: number; learningRate: number } {
    const loss = backward();
    if (!Number.isFinite(loss)) throw new NonFiniteError(`Step ${step}: the loss`);
    const gradNorm = this.optimizer.gradNorm();
    if (!Number.isFinite(gradNorm)) throw new NonFiniteError(`Step ${step}: the gradient's norm`);
    const rate = learningRate(this.peak, step, this.steps, this.schedule);
    this.optimizer.update(rate, gradNorm);
    if (this.checkEvery > 0 && step % this.checkEvery === 0) this.optimizer.parameters.keeper.verify();
    return { loss, gradNorm, learningRate: rate };
  }

  /** Bytes of parameters, gradients and optimizer state in this process, as the ZeRO paper counts them. */
  stateBytes(): number {
    const { parameters, gradients } = this.optimizer.parameters.keeper.stateBytes();
    return parameters + gradients + this.optimizer.stateBytes();
  }

  /** The same for people, and what of it lies on disk. */
  memory(): string {
    const { parameters: set, memory } = this.optimizer;
    const { parameters, gradients, onDisk } = set.keeper.stateBytes();
    const size = (bytes: number, disk = false): string =>
      `${bytes < 10 * 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : mebibytes(bytes)}${disk ? " (on disk)" : ""}`;
    return `model states: parameters ${size(parameters, onDisk)}, gradients ${size(gradients)}, optimizer ${size(this.optimizer.stateBytes(), memory.onDisk)}`;
  }

  /** The run's results, each written by `write`: model/, by which a finished run is known, and before it averaged weights as model-ema/. */
  results(run: RunFolder, write: (dir: string) => void): void {
    if (this.optimizer.ema) this.optimizer.withAverage(() => run.result("model-ema", write));
    run.result("model", write);
  }

  save(dir: string, name = "optimizer"): void {
    saveOptimizer(this.optimizer, `${dir}/${name}.safetensors`);
  }
  load(dir: string, name = "optimizer"): void {
    loadOptimizer(this.optimizer, `${dir}/${name}.safetensors`);
  }
  close(): void {
    this.optimizer.close();
  }
}
