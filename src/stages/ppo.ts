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
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { z } from "zod";
import type { Rejected } from "../corpus/read.js";
import { shuffled } from "../corpus/shards.js";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { replyBatch } from "../dialogue/preference.js";
import { loadLlama, saveLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { attachLora, loadAdapter, mergeLora, saveAdapter, withoutLora } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import { sumNumbers } from "../parallel/comm.js";
import { Grid } from "../parallel/grid.js";
import { NonFiniteError, UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { mebibytes } from "../run/progress.js";
import { loraSchema, optimizerSchema, scheduleSchema, trainingSettings } from "../run/settings.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { allTargets, backwardMeanLoss } from "./clm.js";
import { pretrainingRows, pretrainMixSchema } from "./mix.js";
import { type Episode, openJudge, type PerToken, readPrompts, replyLogProbs, replyValues, rollout } from "./rollout.js";

const natural = z.int().min(1);
const { epochs: _, gradientAccumulation: __, ...shared } = trainingSettings;

export const ppoSchema = z.strictObject({
  stage: z.literal("ppo").optional(),
  ...shared,
  /** Rollouts, each with its passes of updates. */
  steps: natural.default(100),
  /** The SFT model: actor and reference. */
  from: z.string().min(1),
  /** The reward model's folder; or a .mjs module whose default export is (prompt, reply) => number. */
  reward: z.string().min(1),
  /** Where the critic starts; default: the reward model, and with a module the SFT model. */
  critic: z.string().optional(),
  /** The critic's head starts at zero instead of as the reward model's. */
  criticHeadZero: z.boolean().default(false),
  prompts: z.array(z.string().min(1)).min(1),
  maxPromptLength: natural.default(128),
  maxTokens: natural.default(64),
  temperature: z.number().positive().default(1),
  /** Prompts of a rollout, and replies of a minibatch. */
  batchSize: natural.default(32),
  minibatchSize: natural.default(16),
  epochs: natural.default(4),
  criticOptimizer: optimizerSchema.prefault({}),
  criticSchedule: scheduleSchema.prefault({}),
  gamma: z.number().min(0).max(1).default(1),
  lambda: z.number().min(0).max(1).default(0.95),
  clipRange: z.number().positive().default(0.2),
  clipRangeValue: z.number().positive().default(0.2),
  /** Ye et al. 2020: bound on the loss of a bad action that became much more likely; 0: off. */
  dualClip: z.number().min(0).default(0),
  vfCoef: z.number().positive().default(0.1),
  entropyCoef: z.number().min(0).default(0),
  klCoef: z.number().min(0).default(0.05),
  /** k1 = log p - log p_ref; k3 = exp(-k1) - 1 + k1, never negative (Schulman 2020). */
  klEstimator: z.enum(["k1", "k3"]).default("k1"),
  /** Adaptive controller (Ziegler et al. 2019): klCoef is steered so that the KL of a reply comes near `target`. */
  klTarget: z.number().positive().optional(),
  klHorizon: z.number().positive().default(10000),
  /** An update pass ends when the policy has moved this far from the one that sampled; 0: off. */
  klLimit: z.number().min(0).default(0.2),
  /** Subtracted from the score of a reply that did not come to its end. */
  missingEosPenalty: z.number().min(0).default(1),
  /** `last`: the score belongs to the last token; `trl`: to the one after it. */
  scorePosition: z.enum(["last", "trl"]).default("last"),
  whitenAdvantages: z.boolean().default(true),
  /** Divide rewards by their spread; their mean is kept. */
  whitenRewards: z.boolean().default(false),
  /** Scores are clipped to +- this; 0: off. */
  clipReward: z.number().min(0).default(0),
  /** PPO-ptx: pretraining text added to every update of the actor (Ouyang et al. 2022, equation 2; weight is their gamma). */
  pretrainMix: pretrainMixSchema.optional(),
  lora: loraSchema.optional(),
  samples: z.strictObject({ count: z.int().min(0).default(3) }).prefault({}),
});
export type PpoConfig = z.output<typeof ppoSchema>;

// ---- the formulas ----

/** Rewards of a reply's tokens: each pays for its KL, the last one gets the score. */
export function tokenRewards(
  logp: Float32Array,
  ref: Float32Array,
  score: number,
  klCoef: number,
  estimator: "k1" | "k3" = "k1",
): Float64Array {
  const rewards = Float64Array.from(logp, (p, t) => -klCoef * klOf(p - ref[t], estimator));
  if (rewards.length > 0) rewards[rewards.length - 1] += score;
  return rewards;
}
/** Estimators of KL(p || p_ref) from a token drawn from p, given log p - log p_ref. k1 can be negative for one token. */
export const klOf = (logRatio: number, estimator: "k1" | "k3"): number =>
  estimator === "k1" ? logRatio : Math.expm1(-logRatio) + logRatio;

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

/** Mean 0 (unless kept) and variance 1 over all numbers of all rows. */
export function whiten(rows: readonly Float64Array[], keepMean = false): Float64Array[] {
  const n = rows.reduce((sum, r) => sum + r.length, 0);
  const mean = rows.reduce((sum, r) => sum + r.reduce((a, b) => a + b, 0), 0) / Math.max(1, n);
  const variance = rows.reduce((sum, r) => sum + r.reduce((a, b) => a + (b - mean) ** 2, 0), 0) / Math.max(1, n);
  const scale = 1 / Math.sqrt(variance + 1e-8);
  return rows.map((r) => r.map((x) => (x - mean) * scale + (keepMean ? mean : 0)));
}

/** max(-A rho, -A clip(rho, 1 +- range)) of one token, rho = exp(logp - old); its slope by logp; whether it was clipped. */
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
  if (bounded > free) return { loss: bounded / 2, slope: near === value ? near - target : 0, clipped: true };
  return { loss: free / 2, slope: value - target, clipped: false };
}

/** klCoef after a step: *= 1 + clip(KL / target - 1, +-0.2) n / horizon. */
export function adaptKlCoef(klCoef: number, kl: number, target: number, n: number, horizon: number): number {
  return klCoef * (1 + (Math.min(0.2, Math.max(-0.2, kl / target - 1)) * n) / horizon);
}

// ---- the stage ----

/** What a rollout gathered: everything that the updates need, fixed while they run. */
interface Experience {
  episodes: Episode[];
  scores: number[];
  /** Of the policy that sampled, of the reference, and the critic's expectations. */
  logp: PerToken;
  ref: PerToken;
  values: PerToken;
  advantages: Float64Array[];
  returns: Float64Array[];
}

interface State {
  klCoef: number;
  actorUpdates: number;
  criticUpdates: number;
}

export async function ppo(config: PpoConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  if (grid.tensor.size * grid.pipeline.size > 1)
    throw new UserError(
      "ppo runs on several processes with parallel.data and parallel.zero, not with tensor or pipeline.",
      2,
    );
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const { precision, seed } = config;
  const tokenizer = Tokenizer.load(config.from);
  const encoder = new DialogueEncoder(tokenizer);
  const rejected: Rejected[] = [];
  const prompts = readPrompts(config.prompts, encoder, config.maxPromptLength, rejected);
  const aside = run.setAside(rejected);
  if (aside) console.error(aside);

  // The four models. With LoRA the reference is the actor without its adapters.
  const actor = loadLlama(device, resumed && !config.lora ? resumed : config.from, precision, { grid });
  actor.recompute = config.recompute;
  if (config.lora) attachLora(actor, config.lora, seed);
  const ref = config.lora
    ? undefined
    : loadLlama(device, config.from, precision, { trainable: false, grid, name: "ref" });
  const judge = await openJudge(config.reward, device, precision, tokenizer, config.from, grid);
  const isModule = /\.[cm]?js$/.test(config.reward);
  const criticFrom = resumed ? `${resumed}/critic` : (config.critic ?? (isModule ? config.from : config.reward));
  const critic = loadLlama(device, criticFrom, precision, { head: "scalar", seed, grid });
  critic.recompute = config.recompute;
  if (!resumed && (config.criticHeadZero || (isModule && !config.critic)))
    for (const t of critic.parameters.named(true))
      if (t.name.startsWith("score")) device.fill(t.ptr, 0, t.size, critic.parameters.dtype);
  reportMemory(actor, ref, critic, judge.bytes);

  const state: State = resumed ? readState(resumed) : { klCoef: config.klCoef, actorUpdates: 0, criticUpdates: 0 };
  const updates = config.steps * config.epochs * Math.ceil(config.batchSize / config.minibatchSize);
  const mine = grid.share(config.batchSize, "batchSize");
  grid.share(config.minibatchSize, "minibatchSize");
  const { checkEvery } = config.parallel;
  const actorTrainer = new Trainer(actor.trainable, config.optimizer, config.schedule, updates, {
    memory: grid.stateMemory("actor"),
    checkEvery,
  });
  const criticTrainer = new Trainer(critic.trainable, config.criticOptimizer, config.criticSchedule, updates, {
    memory: grid.stateMemory("critic"),
    checkEvery,
  });
  if (resumed) {
    if (config.lora) loadAdapter(actor, resumed);
    actorTrainer.load(resumed, state.actorUpdates);
    criticTrainer.load(resumed, state.criticUpdates, "critic-optimizer");
  }

  /** The actor replies, and everybody looks at the replies. */
  const gather = async (step: number): Promise<Experience> => {
    const models = [actor, critic, ref].filter((m) => m !== undefined);
    for (const m of models) m.parameters.keeper.hold(true);
    try {
      return await look(step);
    } finally {
      for (const m of models) m.parameters.keeper.hold(false);
    }
  };
  /** Each data-parallel process with its share of the prompts; what it finds, all know. */
  const look = async (step: number): Promise<Experience> => {
    const chosen = Array.from({ length: config.batchSize }, (_, i) => {
      const at = (step - 1) * config.batchSize + i;
      return prompts[shuffled(at % prompts.length, prompts.length, seed, Math.floor(at / prompts.length))];
    });
    const { temperature, maxTokens } = config;
    const own = rollout(actor, tokenizer, chosen.slice(mine.from, mine.to), {
      maxTokens,
      temperature,
      seed: seed * 1_000_003 + step,
      firstRow: mine.from,
    });
    const ownScores = (await judge.score(own)).map((score, i) => {
      const kept = config.clipReward > 0 ? Math.min(config.clipReward, Math.max(-config.clipReward, score)) : score;
      return own[i].finished ? kept : kept - config.missingEosPenalty;
    });
    // Not what generation reported: the same kernels as in the update, so that the first ratio is 1 to the bit.
    const ownLogp = replyLogProbs(actor, own, temperature);
    const refOf = (): PerToken => replyLogProbs(ref ?? actor, own, temperature);
    const ownReference = ref ? refOf() : withoutLora(actor, refOf);
    for (const row of [...ownLogp, ...ownReference])
      if (row.some((p) => !Number.isFinite(p))) throw new NonFiniteError(`Step ${step}: a log-probability`);
    const all = share(grid, own, ownScores, [ownLogp, ownReference, replyValues(critic, own)]);
    const { episodes, scores } = all;
    const [logp, reference, values] = all.perToken;

    let rewards = episodes.map((_, i) =>
      tokenRewards(logp[i], reference[i], scores[i], state.klCoef, config.klEstimator),
    );
    if (config.whitenRewards) rewards = whiten(rewards, true);
    const estimates = rewards.map((r, i) => gaeOf(r, values[i], config));
    const advantages = estimates.map((e) => e.advantages);
    return {
      episodes,
      scores,
      logp,
      ref: reference,
      values,
      advantages: config.whitenAdvantages ? whiten(advantages) : advantages,
      returns: estimates.map((e) => e.returns),
    };
  };

  const text =
    config.pretrainMix &&
    (await pretrainingRows(config.pretrainMix.train, tokenizer, actor.config.maxPositionEmbeddings, seed, rejected));
  const mixed = grid.share(config.pretrainMix?.batchSize ?? grid.data.size, "pretrainMix.batchSize");
  /** Rows of pretraining text for update `at` of the actor. */
  const textOf = (at: number): Uint32Array[] | undefined =>
    text &&
    Array.from({ length: mixed.to - mixed.from }, (_, i) =>
      text((at - 1) * config.pretrainMix!.batchSize + mixed.from + i),
    );

  const tape = new Tape(device);
  let experience: Experience | undefined;
  await runLoop(run, config, {
    steps: config.steps,
    show: ["objective/scores", "objective/kl", "policy/clipfrac_avg", "val/explained_variance", "val/reply_length"],
    async step(step) {
      const began = performance.now();
      experience = await gather(step);
      const sampled = performance.now();
      const { episodes, scores } = experience;
      const totals = new Totals();
      passes: for (let epoch = 0; epoch < config.epochs; epoch++) {
        const order = episodes.map((_, i) => shuffled(i, episodes.length, seed + step, epoch));
        for (let from = 0; from < order.length; from += config.minibatchSize) {
          const which = order.slice(from, from + config.minibatchSize);
          const at =
            ((step - 1) * config.epochs + epoch) * Math.ceil(config.batchSize / config.minibatchSize) +
            from / config.minibatchSize +
            1;
          const moved = updateActor(actor, tape, actorTrainer, experience, which, config, at, totals, textOf(at));
          state.actorUpdates++;
          updateCritic(critic, tape, criticTrainer, experience, which, config, at, totals);
          state.criticUpdates++;
          if (config.klLimit > 0 && moved > config.klLimit) break passes;
        }
      }
      const kl = mean(episodes.map((_, i) => sumOf(experience!.logp[i], (p, t) => p - experience!.ref[i][t])));
      const tokens = episodes.reduce((n, e) => n + e.ids.length - e.start, 0);
      const metrics = {
        loss: totals.mean("loss/policy_avg"),
        ...totals.all(),
        "objective/kl": kl,
        "objective/entropy": mean(experience.logp.map((row) => -sumOf(row, (p) => p))),
        "objective/scores": mean(scores),
        "objective/non_score_reward": -state.klCoef * kl,
        "objective/rlhf_reward": mean(scores) - state.klCoef * kl,
        "val/explained_variance": explainedVariance(experience),
        "val/reply_length": tokens / episodes.length,
        "val/num_eos_tokens": episodes.filter((e) => e.finished).length,
        klCoef: state.klCoef,
        "rollout/tokensPerSecond": Math.round(tokens / ((sampled - began) / 1000)),
        "update/tokensPerSecond": Math.round((tokens * config.epochs) / ((performance.now() - sampled) / 1000)),
      };
      if (config.klTarget)
        state.klCoef = adaptKlCoef(state.klCoef, kl, config.klTarget, episodes.length, config.klHorizon);
      return { tokens, metrics };
    },
    ...(config.samples.count > 0 && {
      evaluate: () => ({}),
      sample: () =>
        experience?.episodes
          .slice(0, config.samples.count)
          .map((e, i) => `${e.prompt.messages.at(-1)?.content} -> ${e.text}  [${experience!.scores[i].toFixed(2)}]`)
          .join("\n"),
    }),
    stateBytes: () => actorTrainer.stateBytes() + criticTrainer.stateBytes(),
    batch: () =>
      experience?.episodes.map((e, i) => ({ ids: [...e.ids], start: e.start, score: experience!.scores[i] })),
    save(dir) {
      if (config.lora) saveAdapter(actor, dir);
      else saveLlama(actor, dir);
      if (run.first) tokenizer.save(dir);
      actorTrainer.save(dir);
      saveLlama(critic, `${dir}/critic`);
      criticTrainer.save(dir, "critic-optimizer");
      if (run.first) writeFileSync(`${dir}/state.json`, JSON.stringify(state));
    },
  });
  mergeLora(actor);
  actorTrainer.results(run, (dir) => {
    saveLlama(actor, dir);
    if (run.first) tokenizer.save(dir);
  });
  tape.arena.close();
  for (const t of [actorTrainer, criticTrainer]) t.close();
  for (const m of [actor, critic, ref]) m?.close();
  judge.close();
}

/** What each data-parallel process has found on its own episodes, as lists over all of them. */
function share(grid: Grid, episodes: Episode[], scores: number[], perToken: PerToken[]) {
  if (grid.data.size === 1) return { episodes, scores, perToken };
  const rows = grid.everyone(
    episodes.map((e, i) => ({
      episode: { ...e, ids: [...e.ids], prompt: { ...e.prompt, ids: [...e.prompt.ids] } },
      score: scores[i],
      perToken: perToken.map((list) => [...list[i]]),
    })),
  );
  return {
    episodes: rows.map(({ episode: e }): Episode => {
      return { ...e, ids: Int32Array.from(e.ids), prompt: { ...e.prompt, ids: Int32Array.from(e.prompt.ids) } };
    }),
    scores: rows.map((r) => r.score),
    perToken: perToken.map((_, k) => rows.map((r) => Float32Array.from(r.perToken[k]))),
  };
}

/** This process's share of a minibatch, and the tokens of all replies in it. */
function part({ grid }: Llama, x: Experience, which: readonly number[]): { own: number[]; tokens: number } {
  const { from, to } = grid.share(which.length, "the last minibatch");
  const tokens = which.reduce((n, i) => n + x.episodes[i].ids.length - x.episodes[i].start, 0);
  return { own: which.slice(from, to), tokens };
}

/** Rewards to advantages; with `trl`, the score stands one place after the last token, so the last token keeps its own KL. */
function gaeOf(rewards: Float64Array, values: Float32Array, config: PpoConfig) {
  const { gamma, lambda } = config;
  if (config.scorePosition === "last") return gae(rewards, values, gamma, lambda);
  // TRL's extra place has the value of the state after the last token, which is the last value again here.
  const longer = Float64Array.from([...rewards, 0]);
  const { advantages, returns } = gae(longer, [...values, values[values.length - 1] ?? 0], gamma, lambda);
  return { advantages: advantages.slice(0, -1), returns: returns.slice(0, -1) };
}

/** One update of the actor from some of the replies. Returns how far it has moved from the policy that sampled. */
function updateActor(
  actor: Llama,
  tape: Tape,
  trainer: Trainer,
  x: Experience,
  which: number[],
  config: PpoConfig,
  at: number,
  totals: Totals,
  text?: readonly Uint32Array[],
): number {
  const { own, tokens: n } = part(actor, x, which);
  const batch = replyBatch(own.map((i) => x.episodes[i]));
  let moved = 0;
  const { gradNorm } = trainer.step(at, () => {
    const logp = actor.logProbs(tape, batch, batch.targets, config.temperature);
    const now = actor.device.f32(logp.ptr, logp.size);
    const seed = tape.tensor(F32, logp.shape);
    const slopes = actor.device.f32(seed.ptr, logp.size).fill(0);
    let loss = 0;
    let clipped = 0;
    let ratios = 0;
    batch.spans.forEach(({ from, to }, s) => {
      const { [own[s]]: old } = x.logp;
      for (let row = from; row < to; row++) {
        const t = row - from;
        const token = policyLoss(now[row], old[t], x.advantages[own[s]][t], config.clipRange, config.dualClip);
        loss += token.loss;
        clipped += token.clipped ? 1 : 0;
        slopes[row] = token.slope / n;
        const logRatio = now[row] - old[t];
        ratios += Math.exp(logRatio);
        moved += Math.expm1(logRatio) - logRatio; // k3 the other way round: KL(old || new)
      }
    });
    [loss, clipped, ratios, moved] = sumNumbers(actor.grid.data, [loss, clipped, ratios, moved]);
    moved /= n;
    totals.add({
      "loss/policy_avg": loss / n,
      "policy/clipfrac_avg": clipped / n,
      "policy/approxkl_avg": moved,
      "val/ratio": ratios / n,
    });
    const { keeper } = actor.trainable;
    keeper.lastMicroBatch = config.entropyCoef === 0 && !text;
    tape.backward(logp, seed);
    keeper.lastMicroBatch = false;
    tape.reset();
    if (config.entropyCoef > 0) {
      const entropy = actor.entropies(tape, batch, batch.targets, config.temperature);
      const all = actor.device.f32(entropy.ptr, entropy.size);
      const [sum] = sumNumbers(actor.grid.data, [all.reduce((a, b) => a + b, 0)]);
      const gradient = tape.tensor(F32, entropy.shape);
      actor.device.fill(gradient.ptr, -config.entropyCoef / n, entropy.size, F32);
      totals.add({ "policy/entropy_avg": sum / n });
      tape.backward(entropy, gradient);
      tape.reset();
      loss -= config.entropyCoef * sum;
    }
    if (text) {
      const { weight } = config.pretrainMix!;
      const ptx = backwardMeanLoss(actor, tape, [allTargets(text)], weight).loss;
      totals.add({ "loss/ptx": ptx });
      loss += weight * ptx * n;
    }
    return loss / n;
  });
  totals.add({ "policy/gradNorm": gradNorm });
  return moved;
}

function updateCritic(
  critic: Llama,
  tape: Tape,
  trainer: Trainer,
  x: Experience,
  which: number[],
  config: PpoConfig,
  at: number,
  totals: Totals,
): void {
  const { own, tokens: n } = part(critic, x, which);
  const batch = replyBatch(own.map((i) => x.episodes[i]));
  trainer.step(at, () => {
    const values = critic.values(tape, batch);
    const now = critic.device.f32(values.ptr, values.size);
    const seed = tape.tensor(F32, values.shape);
    const slopes = critic.device.f32(seed.ptr, values.size).fill(0);
    let loss = 0;
    let clipped = 0;
    batch.spans.forEach(({ from, to }, s) => {
      const i = own[s];
      for (let row = from; row < to; row++) {
        const token = valueLoss(now[row], x.values[i][row - from], x.returns[i][row - from], config.clipRangeValue);
        loss += token.loss;
        clipped += token.clipped ? 1 : 0;
        slopes[row] = (config.vfCoef * token.slope) / n;
      }
    });
    [loss, clipped] = sumNumbers(critic.grid.data, [loss, clipped]);
    totals.add({ "loss/value_avg": loss / n, "val/clipfrac_avg": clipped / n });
    critic.trainable.keeper.lastMicroBatch = true;
    tape.backward(values, seed);
    critic.trainable.keeper.lastMicroBatch = false;
    tape.reset();
    return (config.vfCoef * loss) / n;
  });
}

/** Share of the returns' variance that the critic foresaw; 1 is perfect, 0 no better than the mean. */
function explainedVariance({ returns, values }: Experience): number {
  const flat = returns.flatMap((row, i) => Array.from(row, (r, t) => ({ r, error: r - values[i][t] })));
  const [mr, me] = [mean(flat.map((x) => x.r)), mean(flat.map((x) => x.error))];
  const variance = mean(flat.map((x) => (x.r - mr) ** 2));
  return variance > 0 ? 1 - mean(flat.map((x) => (x.error - me) ** 2)) / variance : 0;
}

/** Means over the updates of a step. */
class Totals {
  private readonly sums = new Map<string, { sum: number; n: number }>();
  add(values: Record<string, number>): void {
    for (const [key, value] of Object.entries(values)) {
      const entry = this.sums.get(key) ?? { sum: 0, n: 0 };
      this.sums.set(key, { sum: entry.sum + value, n: entry.n + 1 });
    }
  }
  mean(key: string): number {
    const entry = this.sums.get(key);
    return entry ? entry.sum / entry.n : Number.NaN;
  }
  all(): Record<string, number> {
    return Object.fromEntries([...this.sums.keys()].map((key) => [key, this.mean(key)]));
  }
}

const mean = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / Math.max(1, x.length);
const sumOf = (row: Float32Array, f: (x: number, t: number) => number): number =>
  row.reduce((s, x, t) => s + f(x, t), 0);

function readState(dir: string): State {
  const path = `${dir}/state.json`;
  if (!existsSync(path)) throw new Error(`${path} is missing`);
  return JSON.parse(readFileSync(path, "utf8")) as State;
}

/** The sizes of the four models: trained ones hold 16 bytes a parameter, frozen ones 2 (in fp32: 16 and 4). */
function reportMemory(actor: Llama, ref: Llama | undefined, critic: Llama, rewardBytes: number): void {
  const width = actor.precision === "bf16" ? 2 : 4;
  const trained = (m: Llama): number => m.parameters.count * width + m.trainable.count * (16 - width);
  const list = [
    ["actor", trained(actor)],
    ["critic", trained(critic)],
    ["ref", ref ? ref.parameters.count * width : 0],
    ["reward", rewardBytes],
  ] as const;
  console.error(
    `models: ${list.map(([name, bytes]) => `${name} ${bytes > 0 ? mebibytes(bytes) : "none of its own"}`).join(", ")}`,
  );
}
