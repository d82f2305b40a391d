/**
 * Causal language modelling, the task of pretraining and of supervised fine-tuning alike: predict the next token.
 * The two differ in which tokens have a target.
 */

import type { TokenBatch } from "../nn/llama.js";
import { type Llama, packSequences } from "../nn/llama.js";
import { sumNumbers } from "../parallel/comm.js";
import { inFlight, schedule as scheduleOf } from "../parallel/pipeline.js";
import type { Arena } from "../tensor/arena.js";
import { Tape, type Tensor } from "../tensor/tensor.js";

/** Sequences end to end, and for each token the one that should follow; -1: not trained. */
export interface TargetBatch extends TokenBatch {
  targets: Int32Array;
}

const trained = (batch: TargetBatch): number => batch.targets.reduce((n, t) => n + (t >= 0 ? 1 : 0), 0);

/**
 * Adds to the parameters' gradients that of the mean loss over every target of every batch, of all data-parallel processes: k
 * micro-batches, or k processes, give what one large batch would. `scale` multiplies the gradient (and not the loss that is returned), for objectives that add several means.
 */
export function backwardMeanLoss(
  model: Llama,
  tape: Tape,
  batches: readonly TargetBatch[],
  scale = 1,
  /** False: other losses follow in the same step. */
  last = true,
): { loss: number; targets: number } {
  const { data, pipeline, schedule } = model.grid;
  const { keeper } = model.trainable;
  const [targets] = sumNumbers(data, [batches.reduce((n, b) => n + trained(b), 0)]);
  let loss = 0;
  const underWay: Tensor[] = [];
  const place = [schedule, pipeline.rank, pipeline.size, batches.length] as const;
  const lanes = inFlight(...place);
  // One after the other; in a pipeline several are under way at once, each with a tape of its own.
  for (const { pass, microBatch } of scheduleOf(...place)) {
    const batch = batches[microBatch];
    const own = tape.lane(microBatch % lanes);
    if (pass === "forward") {
      const weights = Float32Array.from(batch.targets, (t) => (t >= 0 ? scale / Math.max(1, targets) : 0));
      const result = model.loss(own, batch, batch.targets, weights);
      loss += result.loss / scale;
      underWay[microBatch] = result.logp;
      // The output matrix has its gradient now already (crossEntropy). Where other passes come before this one's backward pass, it is added up here.
      if (model.pipe.last && lanes > 1) keeper.backward(false, () => {});
    } else {
      keeper.backward(last && microBatch === batches.length - 1, () => own.backward(underWay[microBatch]));
      own.reset();
    }
  }
  model.pipe.flush();
  return { loss: sumNumbers(data, sumNumbers(pipeline, [loss]))[0], targets };
}

/**
 * Mean negative log-likelihood (nats) over every target. `arena`: one that no step is under way in. Between steps the training's is free,
 * and so evaluation needs no memory of its own.
 */
export function meanLoss(
  model: Llama,
  batches: Iterable<TargetBatch>,
  arena?: Arena,
): { loss: number; targets: number } {
  const tape = new Tape(model.device, false, arena);
  let sum = 0;
  let targets = 0;
  try {
    for (const batch of batches) {
      const logp = model.logProbs(tape, batch, batch.targets).toArray();
      for (const [i, target] of batch.targets.entries()) if (target >= 0) sum -= logp[i];
      targets += trained(batch);
      tape.reset();
    }
  } finally {
    if (arena) tape.reset();
    else tape.close();
  }
  return { loss: sum / Math.max(1, targets), targets };
}

/** Sequences as a batch in which every token is a target but the first of each. */
export function allTargets(sequences: readonly ArrayLike<number>[]): TargetBatch {
  const batch = packSequences(sequences);
  const targets = new Int32Array(batch.ids.length).fill(-1);
  for (let s = 0; s < sequences.length; s++)
    for (let i = batch.cuSeqlens[s]; i + 1 < batch.cuSeqlens[s + 1]; i++) targets[i] = batch.ids[i + 1];
  return { ...batch, targets };
}
