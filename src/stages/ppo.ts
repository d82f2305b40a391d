/**
 * Proximal policy optimization from feedback (notes 4.2.3; Ouyang et al. 2022; Schulman et al. 2017), with its four models:
 *
 *   actor   starts as the SFT model, is trained          critic  starts as the reward model, is trained
 *   ref     the SFT model, frozen                         reward  the reward model, frozen
 *
 * One step: the actor replies to prompts; the reward model scores each reply at its last token; the reference scores the
 * actor's tokens (it writes none of its own), and every token pays for leaving it; the critic says what it expected before each
 * token; what came better than expected becomes more likely, in small clipped steps, for a few passes over the same replies.
 *
 *   r_t = -klCoef (log p(y_t) - log p_ref(y_t)), the score added at the last token
 *   A_t = sum_l (gamma lambda)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l})     (the notes' step 5 is lambda = 0)
 *
 * This file is the algorithm: its formulas, what a rollout gathers, the two updates, and the loop. Its settings are in
 * ppo-config.ts, the loading and saving of the models in four-models.ts, what it reports in ppo-metrics.ts.
 */
import type { Rejected } from "../corpus/read.js";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { replyBatch } from "../dialogue/preference.js";
import type { Llama } from "../nn/llama.js";
import { sumNumbers } from "../parallel/comm.js";
import { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { shuffled } from "../run/order.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { allTargets, backwardMeanLoss } from "./clm.js";
import { FourModels } from "./four-models.js";
import { pretrainingRows } from "./mix.js";
import type { PpoConfig } from "./ppo-config.js";
import { klOfReplies, replyTokens, shownMetrics, stepMetrics, Totals } from "./ppo-metrics.js";
import {
  checkFinite,
  type Experience,
  longestEpisode,
  promptsOfStep,
  readPrompts,
  replyLogProbs,
  replyValues,
  rollout,
  shareEpisodes,
  showEpisodes,
  tellUnmoved,
  valueRows,
} from "./rollout.js";

// ---- the formulas ----

/** The reward model's score, or a module's, as PPO uses it: clipped, and less for a reply that was cut off before its end. */
function shapedScore(score: number, finished: boolean, { clipReward, missingEosPenalty }: PpoConfig): number {
  const kept = clipReward > 0 ? Math.min(clipReward, Math.max(-clipReward, score)) : score;
  return finished ? kept : kept - missingEosPenalty;
}

/** Estimators of KL(p || p_ref) from a token drawn from p, given log p - log p_ref. k1 can be negative for one token. */
export const klOf = (logRatio: number, estimator: "k1" | "k3"): number =>
  estimator === "k1" ? logRatio : Math.expm1(-logRatio) + logRatio;

/** Rewards of a reply's tokens: each pays for its KL, the last one gets the score; or, with `after`, a place behind it. */
export function tokenRewards(
  logp: Float32Array,
  ref: Float32Array,
  score: number,
  klCoef: number,
  estimator: "k1" | "k3" = "k1",
  after = false,
): Float64Array {
  const rewards = new Float64Array(logp.length + (after ? 1 : 0));
  logp.forEach((p, t) => {
    rewards[t] = -klCoef * klOf(p - ref[t], estimator);
  });
  if (rewards.length > 0) rewards[rewards.length - 1] += score;
  return rewards;
}

/** Generalized advantage estimation (Schulman et al. 2016) in one reverse pass. V after the last token is 0. */
export function gae(
  rewards: Float64Array,
  values: ArrayLike<number>,
  gamma: number,
  lambda: number,
): { advantages: Float64Array; returns: Float64Array } {
  const advantages = new Float64Array(rewards.length);
  let next = 0;
  for (let t = rewards.length - 1; t >= 0; t--) {
    const delta = rewards[t] + gamma * (t + 1 < rewards.length ? values[t + 1] : 0) - values[t];
    next = delta + gamma * lambda * next;
    advantages[t] = next;
  }
  return { advantages, returns: advantages.map((a, t) => a + values[t]) };
}

/** Mean 0 (unless kept) and variance 1 over all numbers of all rows; the variance is the sample's, as in TRL. */
export function whiten(rows: readonly Float64Array[], keepMean = false): Float64Array[] {
  const n = rows.reduce((sum, r) => sum + r.length, 0);
  const mean = rows.reduce((sum, r) => sum + r.reduce((a, b) => a + b, 0), 0) / Math.max(1, n);
  const variance = rows.reduce((sum, r) => sum + r.reduce((a, b) => a + (b - mean) ** 2, 0), 0) / Math.max(1, n - 1);
  const scale = 1 / Math.sqrt(variance + 1e-8);
  return rows.map((r) => r.map((x) => (x - mean) * scale + (keepMean ? mean : 0)));
}

/**
 * max(-A rho, -A clip(rho, 1 +- range)) of one token, rho = exp(logp - old); its slope by logp; whether it was clipped. With `dualClip`,
 * a bad action's is at most -A dualClip (Ye et al. 2020).
 */
export function policyLoss(
  logp: number,
  old: number,
  advantage: number,
  range: number,
  dualClip = 0,
): { loss: number; slope: number; clipped: boolean } {
  const ratio = Math.exp(logp - old);
  const free = -advantage * ratio;
  const bounded = -advantage * Math.min(1 + range, Math.max(1 - range, ratio));
  if (bounded > free) return { loss: bounded, slope: 0, clipped: true };
  if (dualClip > 0 && advantage < 0 && free > -advantage * dualClip)
    return { loss: -advantage * dualClip, slope: 0, clipped: true };
  return { loss: free, slope: free, clipped: false };
}

/** 1/2 max((V - R)^2, (clip(V, Vold +- range) - R)^2) of one token, and its slope by V. */
export function valueLoss(
  value: number,
  old: number,
  target: number,
  range: number,
): { loss: number; slope: number; clipped: boolean } {
  const near = Math.min(old + range, Math.max(old - range, value));
  const free = (value - target) ** 2;
  const bounded = (near - target) ** 2;
  if (bounded > free) return { loss: bounded / 2, slope: 0, clipped: true };
  return { loss: free / 2, slope: value - target, clipped: false };
}

/** klCoef after a step: *= 1 + clip(KL / target - 1, +-0.2) n / horizon. */
export function adaptKlCoef(klCoef: number, kl: number, target: number, n: number, horizon: number): number {
  return klCoef * (1 + (Math.min(0.2, Math.max(-0.2, kl / target - 1)) * n) / horizon);
}

// ---- what the updates learn from ----

/** Rewards of the tokens, then advantages and returns. */
export function estimate(
  { scores, logp, ref, values }: Pick<Experience, "scores" | "logp" | "ref" | "values">,
  klCoef: number,
  config: Pick<
    PpoConfig,
    "gamma" | "lambda" | "klEstimator" | "scorePosition" | "maxTokens" | "whitenRewards" | "whitenAdvantages"
  >,
): { advantages: Float64Array[]; returns: Float64Array[] } {
  const { gamma, lambda, klEstimator } = config;
  // TRL has no place after a reply that is as long as replies may be.
  const after = (length: number): boolean => config.scorePosition === "trl" && length < config.maxTokens;
  let rewards = logp.map((row, i) => tokenRewards(row, ref[i], scores[i], klCoef, klEstimator, after(row.length)));
  if (config.whitenRewards) rewards = whiten(rewards, true);
  const estimates = rewards.map((r, i) => gae(r, values[i], gamma, lambda));
  const advantages = estimates.map((e, i) => e.advantages.subarray(0, logp[i].length));
  return {
    advantages: config.whitenAdvantages ? whiten(advantages) : advantages,
    returns: estimates.map((e) => e.returns),
  };
}

// ---- the updates ----

/**
 * Adds the gradient of the policy loss, and of the entropy bonus, of the replies of `minibatch` to the actor's. Returns the loss, and how
 * far the actor has moved from the policy that sampled: 1/2 mean (log rho)^2, TRL's approximate KL.
 */
export function backwardPolicy(
  actor: Llama,
  tape: Tape,
  x: Experience,
  minibatch: readonly number[],
  config: Pick<PpoConfig, "clipRange" | "dualClip" | "entropyCoef" | "temperature">,
  totals: Totals,
  /** False: other losses follow in the same step. */
  last = true,
): { loss: number; approxKl: number } {
  const { clipRange, dualClip, entropyCoef, temperature } = config;
  const { data } = actor.grid;
  const { keeper } = actor.trainable;
  const own = ownPart(actor, minibatch);
  const batch = replyBatch(own.map((i) => x.episodes[i]));
  const n = minibatch.reduce((sum, i) => sum + x.advantages[i].length, 0);

  const logp = actor.logProbs(tape, batch, batch.targets, temperature);
  const now = actor.device.f32(logp.ptr, logp.size);
  const gradient = tape.tensor(F32, logp.shape);
  const slopes = actor.device.f32(gradient.ptr, logp.size).fill(0);
  let [loss, clipped, ratios, approxKl] = [0, 0, 0, 0];
  batch.spans.forEach(({ from, to }, s) => {
    const { logp: olds, advantages } = x;
    for (let row = from; row < to; row++) {
      const [old, advantage] = [olds[own[s]][row - from], advantages[own[s]][row - from]];
      const token = policyLoss(now[row], old, advantage, clipRange, dualClip);
      loss += token.loss;
      clipped += token.clipped ? 1 : 0;
      slopes[row] = token.slope / n;
      ratios += Math.exp(now[row] - old);
      approxKl += (now[row] - old) ** 2 / 2;
    }
  });
  [loss, clipped, ratios, approxKl] = sumNumbers(data, [loss, clipped, ratios, approxKl]).map((sum) => sum / n);
  totals.add({
    "loss/policy_avg": loss,
    "policy/clipfrac_avg": clipped,
    "policy/approxkl_avg": approxKl,
    "val/ratio": ratios,
  });
  keeper.backward(last && entropyCoef === 0, () => tape.backward(logp, gradient));
  tape.reset();
  if (entropyCoef > 0) {
    const entropy = actor.entropies(tape, batch, batch.targets, temperature);
    const all = actor.device.f32(entropy.ptr, entropy.size);
    const [sum] = sumNumbers(data, [all.reduce((a, b) => a + b, 0)]);
    totals.add({ "policy/entropy_avg": sum / n });
    loss -= (entropyCoef * sum) / n;
    const bonus = tape.tensor(F32, entropy.shape);
    actor.device.fill(bonus.ptr, -entropyCoef / n, entropy.size, F32);
    keeper.backward(last, () => tape.backward(entropy, bonus));
    tape.reset();
  }
  return { loss, approxKl };
}

/** Adds the gradient of vfCoef times the value loss of the replies of `minibatch` to the critic's, and returns that loss. */
export function backwardValues(
  critic: Llama,
  tape: Tape,
  x: Experience,
  minibatch: readonly number[],
  config: Pick<PpoConfig, "clipRangeValue" | "vfCoef">,
  totals: Totals,
): number {
  const own = ownPart(critic, minibatch);
  const batch = replyBatch(own.map((i) => x.episodes[i]));
  const n = minibatch.reduce((sum, i) => sum + x.returns[i].length, 0);
  const values = critic.values(tape, batch, valueRows(batch));
  const now = critic.device.f32(values.ptr, values.size);
  const gradient = tape.tensor(F32, values.shape);
  const slopes = critic.device.f32(gradient.ptr, values.size).fill(0);
  let [loss, clipped] = [0, 0];
  batch.spans.forEach(({ from }, s) => {
    x.returns[own[s]].forEach((target, t) => {
      const token = valueLoss(now[from + t], x.values[own[s]][t], target, config.clipRangeValue);
      loss += token.loss;
      clipped += token.clipped ? 1 : 0;
      slopes[from + t] = (config.vfCoef * token.slope) / n;
    });
  });
  [loss, clipped] = sumNumbers(critic.grid.data, [loss, clipped]).map((sum) => sum / n);
  totals.add({ "loss/value_avg": loss, "val/clipfrac_avg": clipped });
  critic.trainable.keeper.backward(true, () => tape.backward(values, gradient));
  tape.reset();
  return config.vfCoef * loss;
}

/** The replies of a minibatch that are this process's to work on. */
export function ownPart({ grid }: Llama, minibatch: readonly number[]): number[] {
  const { from, to } = grid.share(minibatch.length, "the last minibatch");
  return minibatch.slice(from, to);
}

// ---- the stage ----

/** Tokens of a row of mixed-in text at least, where the model's context has them: an episode may be much shorter. */
const MIX_ROW = 256;
export async function ppo(config: PpoConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  if (grid.tensor.size * grid.pipeline.size > 1)
    throw new UserError(
      "ppo runs on several processes with parallel.data and parallel.zero, not with tensor or pipeline.",
      2,
    );
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const { seed, temperature, maxTokens, batchSize, minibatchSize, epochs, pretrainMix, klEstimator } = config;
  const tokenizer = Tokenizer.load(config.from);
  const rejected: Rejected[] = [];
  const prompts = await readPrompts(config, new DialogueEncoder(tokenizer), rejected);
  const minibatches = Math.ceil(batchSize / minibatchSize);
  const policy = { dir: config.from, tokenizer, longest: longestEpisode(prompts, maxTokens) };
  const updates = config.steps * epochs * minibatches;
  const models = await FourModels.open(device, grid, config, policy, updates, run, resumed);
  const { actor, critic, actorTrainer, criticTrainer, state } = models;
  const rowLength = Math.min(Math.max(MIX_ROW, policy.longest), actor.config.maxPositionEmbeddings);
  const separator = tokenizer.separatorId;
  const text =
    pretrainMix && (await pretrainingRows(pretrainMix.train, tokenizer, separator, rowLength, seed, rejected));
  run.setAside(rejected);
  console.error(models.memory());

  const mine = grid.share(batchSize, "batchSize");
  const mixed = grid.share(pretrainMix?.batchSize ?? grid.data.size, "pretrainMix.batchSize");
  grid.share(Math.min(minibatchSize, batchSize), "minibatchSize");
  const tape = run.own(new Tape(device));
  /** Of the step at hand. */
  let experience!: Experience;
  let rolloutSeconds = 0;
  /** What the step is working on, for the file that is left when a number is not finite. */
  let batch: unknown;

  /** The actor replies to its prompts, each process to its share of them; everybody looks at the replies. */
  const makeExperience = async (step: number): Promise<Experience> => {
    const asked = promptsOfStep(prompts, step, batchSize, seed).slice(mine.from, mine.to);
    batch = asked.map(({ ids, source }) => ({ ids: [...ids], source }));
    const own = rollout(actor, tokenizer, asked, {
      maxTokens,
      temperature,
      seed: seed * 1_000_003 + step,
      firstRow: mine.from,
    });
    batch = own.map((e) => ({ ids: [...e.ids], start: e.start, source: e.prompt.source }));
    const ownScores = (await models.judge.score(own)).map((s, i) => shapedScore(s, own[i].finished, config));
    batch = own.map((e, i) => ({ ids: [...e.ids], start: e.start, source: e.prompt.source, score: ownScores[i] }));
    // Not what generation reported: the same kernels as in the update, so that the first ratio is 1 to the bit.
    const ownLogp = replyLogProbs(actor, own, temperature);
    const ownRef = models.withReference((reference) => replyLogProbs(reference, own, temperature));
    const ownValues = replyValues(critic, own);
    checkFinite(`Step ${step}: a log-probability of the actor`, ownLogp);
    checkFinite(`Step ${step}: a log-probability of the reference`, ownRef);
    checkFinite(`Step ${step}: a value of the critic`, ownValues);
    const { episodes, scores, perToken } = shareEpisodes(grid, own, ownScores, [ownLogp, ownRef, ownValues]);
    const [logp, ref, values] = perToken;
    // Scores are told above the reward model's mean; a critic that began as that model counts from its own zero.
    const mean = state.criticMean;
    const above = { scores, logp, ref, values: values.map((row) => row.map((value) => value - mean)) };
    const { advantages, returns } = estimate(above, state.klCoef, config);
    return { ...above, episodes, values, advantages, returns: returns.map((row) => row.map((value) => value + mean)) };
  };

  /** Update `at` of the actor: PPO's loss, and with pretrainMix that of some rows of text. Returns how far it has moved. */
  const updateActor = (at: number, x: Experience, minibatch: readonly number[], totals: Totals): number => {
    let approxKl = 0;
    const { gradNorm } = actorTrainer.step(at, () => {
      const policy = backwardPolicy(actor, tape, x, minibatch, config, totals, !text);
      approxKl = policy.approxKl;
      if (!text || !pretrainMix) return policy.loss;
      const first = (at - 1) * pretrainMix.batchSize + mixed.from;
      const rows = Array.from({ length: mixed.to - mixed.from }, (_, i) => text(first + i));
      const ptx = backwardMeanLoss(actor, tape, [allTargets(rows)], pretrainMix.weight).loss;
      totals.add({ "loss/ptx": ptx });
      return policy.loss + pretrainMix.weight * ptx;
    });
    totals.add({ "policy/gradNorm": gradNorm });
    return approxKl;
  };

  /** A few passes over the replies, in minibatches. Returns how many; they end early when the policy has moved too far. */
  const update = (step: number, x: Experience, totals: Totals): number => {
    for (let epoch = 0; epoch < epochs; epoch++) {
      const order = x.episodes.map((_, i) => shuffled(i, x.episodes.length, seed + step, epoch));
      for (let m = 0; m < minibatches; m++) {
        const minibatch = order.slice(m * minibatchSize, (m + 1) * minibatchSize);
        const at = ((step - 1) * epochs + epoch) * minibatches + m + 1;
        const approxKl = updateActor(at, x, minibatch, totals);
        criticTrainer.step(at, () => backwardValues(critic, tape, x, minibatch, config, totals));
        if (config.klLimit > 0 && approxKl > config.klLimit) return epoch + (m + 1) / minibatches;
      }
    }
    return epochs;
  };

  const tellIfUnmoved = tellUnmoved(
    config.steps - run.startStep,
    "all replies had the same score: what is learned from that is noise. A reward that tells replies apart or a higher temperature may help.",
  );
  await runLoop(run, config, {
    steps: config.steps,
    show: shownMetrics,
    async prepare(step) {
      const began = performance.now();
      experience = await models.holding(() => makeExperience(step));
      rolloutSeconds = (performance.now() - began) / 1000;
    },
    step(step) {
      const began = performance.now();
      const { scores } = experience;
      tellIfUnmoved(scores.length > 1 && scores.every((s) => s === scores[0]));
      const totals = new Totals();
      const passes = update(step, experience, totals);
      const seconds = { rollout: rolloutSeconds, update: (performance.now() - began) / 1000 };
      const metrics = stepMetrics(
        experience,
        totals,
        { klCoef: state.klCoef, kl: (r) => klOf(r, klEstimator) },
        seconds,
        passes,
      );
      if (config.klTarget)
        state.klCoef = adaptKlCoef(
          state.klCoef,
          klOfReplies(experience),
          config.klTarget,
          experience.episodes.length,
          config.klHorizon,
        );
      return { tokens: replyTokens(experience), metrics };
    },
    ...(config.samples.count > 0 && {
      evaluate: () => ({}),
      sample: (step) =>
        step === 0 ? undefined : showEpisodes(experience.episodes, experience.scores, config.samples.count),
    }),
    stateBytes: () => models.stateBytes(),
    batch: () => batch,
    save: (dir) => models.save(dir, run),
  });
  models.result(run);
}
