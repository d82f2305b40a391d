/**
 * Group relative policy optimization (Shao et al. 2024): PPO without a critic. Several replies to each prompt are each
 * other's baseline; a reply's advantage, the same for all of its tokens, is how far its score is above its group's mean.
 *
 *   A = (score - mean of its group) / standard deviation of its group          (`scaleByStd: false`: Dr. GRPO, Liu et al. 2025)
 *   loss per token = max(-A rho, -A clip(rho, 1 +- eps)) + klCoef k3(log p - log p_ref)
 *
 * A minibatch's loss is the mean over its tokens (`lossType: bnpo`, TRL's name); the paper's takes each reply's mean first (`lossType: grpo`).
 *
 * It fits rewards that can be checked (a function in a module) as well as reward models.
 */
import { z } from "zod";
import type { Rejected } from "../corpus/read.js";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { type EncodedReply, replyBatch } from "../dialogue/preference.js";
import { loadLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { attachLora, withoutLora } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import { sumNumbers } from "../parallel/comm.js";
import { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { shuffled } from "../run/order.js";
import { averageOfAll, batchSizeSchema, rateFalls, rolloutSettings } from "../run/settings.js";
import { holding } from "../tensor/parameters.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { goOn, saveCheckpoint, saveResult } from "./checkpoint.js";
import { openJudge } from "./judge.js";
import { klOf, ownPart, policyLoss } from "./ppo.js";
import {
  checkFinite,
  type Episode,
  longestEpisode,
  type PerToken,
  promptsOfStep,
  readPrompts,
  replyLogProbs,
  rollout,
  shareEpisodes,
  showEpisodes,
  tellUnmoved,
} from "./rollout.js";

const natural = z.int().min(1);

export const grpoSchema = z
  .strictObject({
    stage: z.literal("grpo").optional(),
    ...rolloutSettings,
    /** Prompts of a rollout, and replies to each. */
    batchSize: batchSizeSchema.default(8),
    groupSize: z.int().min(2).default(8),
    /** Passes over a rollout's replies, in minibatches of this many. */
    epochs: natural.default(1),
    minibatchSize: natural.default(32),
    klCoef: z.number().min(0).default(0.04),
    scaleByStd: z.boolean().default(true),
    /**
     * What a token counts, by TRL's names. bnpo: every token of a minibatch the same; grpo: every reply the same, whatever its
     * length (Shao et al. 2024); dr_grpo: a token 1 / maxTokens of a reply (Liu et al. 2025).
     */
    lossType: z.enum(["bnpo", "grpo", "dr_grpo"]).default("bnpo"),
    missingEosPenalty: z.number().min(0).default(0),
  })
  .refine(...averageOfAll)
  .refine(...rateFalls);
export type GrpoConfig = z.output<typeof grpoSchema>;

/** Advantage of each score within its group of `size` neighbours. A group of equal scores teaches nothing: 0. */
export function groupAdvantages(scores: readonly number[], size: number, scaleByStd = true): number[] {
  return scores.map((score, i) => {
    const group = scores.slice(i - (i % size), i - (i % size) + size);
    const { mean, std } = momentsOf(group);
    return (score - mean) / (scaleByStd ? std + 1e-4 : 1); // TRL's epsilon
  });
}
/** The mean of a sample, and its standard deviation. */
function momentsOf(x: readonly number[]): { mean: number; std: number } {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  return { mean, std: Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / (x.length - 1)) };
}

/** Loss of one token: the clipped policy loss and the k3 penalty; its slope by log p. */
export function grpoLoss(
  logp: number,
  old: number,
  ref: number,
  advantage: number,
  o: { clipRange: number; klCoef: number },
): { loss: number; slope: number; kl: number; clipped: boolean } {
  const policy = policyLoss(logp, old, advantage, o.clipRange);
  const kl = klOf(logp - ref, "k3");
  return {
    loss: policy.loss + o.klCoef * kl,
    slope: policy.slope - o.klCoef * Math.expm1(ref - logp),
    kl,
    clipped: policy.clipped,
  };
}

/** What a token of each reply counts in the loss of a minibatch. */
export function tokenWeights(
  lengths: readonly number[],
  { lossType, maxTokens }: Pick<GrpoConfig, "lossType" | "maxTokens">,
): number[] {
  const tokens = lengths.reduce((a, b) => a + b, 0);
  return lengths.map((length) => {
    if (lossType === "bnpo") return 1 / tokens;
    return 1 / lengths.length / (lossType === "grpo" ? length : maxTokens);
  });
}

/**
 * Adds the gradient of the loss of the replies of `minibatch` to the actor's, each process that of its share; tells that loss, and the means
 * over their tokens of KL and clipping.
 */
export function backwardGroups(
  actor: Llama,
  tape: Tape,
  minibatch: readonly number[],
  x: { episodes: readonly EncodedReply[]; old: PerToken; reference: PerToken; advantages: readonly number[] },
  config: Pick<GrpoConfig, "clipRange" | "klCoef" | "temperature" | "lossType" | "maxTokens">,
): { loss: number; kl: number; clipped: number } {
  const own = ownPart(actor, minibatch);
  const batch = replyBatch(own.map((i) => x.episodes[i]));
  const lengths = minibatch.map((i) => x.old[i].length);
  const tokens = lengths.reduce((a, b) => a + b, 0);
  const all = tokenWeights(lengths, config);
  const weights = new Map(minibatch.map((i, k) => [i, all[k]]));
  const logp = actor.logProbs(tape, batch, batch.targets, config.temperature);
  const now = actor.device.f32(logp.ptr, logp.size);
  const gradient = tape.tensor(F32, logp.shape);
  const slopes = actor.device.f32(gradient.ptr, logp.size).fill(0);
  let [loss, kl, clipped] = [0, 0, 0];
  batch.spans.forEach(({ from, to }, s) => {
    const i = own[s];
    const weight = weights.get(i)!;
    for (let row = from; row < to; row++) {
      const t = row - from;
      const token = grpoLoss(now[row], x.old[i][t], x.reference[i][t], x.advantages[i], config);
      loss += token.loss * weight;
      kl += token.kl / tokens;
      clipped += (token.clipped ? 1 : 0) / tokens;
      slopes[row] = token.slope * weight;
    }
  });
  actor.trainable.keeper.backward(true, () => tape.backward(logp, gradient));
  tape.reset();
  [loss, kl, clipped] = sumNumbers(actor.grid.data, [loss, kl, clipped]);
  return { loss, kl, clipped };
}

export async function grpo(config: GrpoConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  if (grid.tensor.size * grid.pipeline.size > 1)
    throw new UserError(
      "grpo runs on several processes with parallel.data and parallel.zero, not with tensor or pipeline.",
      2,
    );
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const { precision, seed, temperature, batchSize, groupSize, minibatchSize } = config;
  const tokenizer = Tokenizer.load(resumed ?? config.from);
  const rejected: Rejected[] = [];
  const prompts = await readPrompts(config, new DialogueEncoder(tokenizer), rejected);
  run.setAside(rejected);

  // Groups stay together; of a minibatch every process has its share.
  const mine = grid.share(batchSize, "batchSize");
  const replies = batchSize * groupSize;
  grid.share(Math.min(minibatchSize, replies), "minibatchSize");
  const policy = { dir: config.from, tokenizer, longest: longestEpisode(prompts, config.maxTokens) };
  const judge = run.own(await openJudge(config.reward, device, precision, policy, grid));
  const actor = run.own(loadLlama(device, resumed && !config.lora ? resumed : config.from, precision, { grid }));
  if (config.lora) attachLora(actor, config.lora, seed);
  actor.recompute = config.recompute;
  // Without a KL term there is no reference; with LoRA it is the actor without its adapters.
  const ref =
    config.lora || config.klCoef === 0
      ? undefined
      : run.own(loadLlama(device, config.from, precision, { trainable: false, grid, name: "ref" }));
  const sets = [actor, ref].flatMap((model) => model?.parameters ?? []);
  const perStep = config.epochs * Math.ceil(replies / minibatchSize);
  const trainer = run.own(
    new Trainer(actor.trainable, config.optimizer, config.schedule, config.steps * perStep, {
      memory: grid.stateMemory("actor"),
      checkEvery: config.parallel.checkEvery,
    }),
  );
  const trained = { run, model: actor, trainer, tokenizer };
  if (resumed) goOn(trained, resumed);

  const tape = run.own(new Tape(device));
  let episodes: Episode[] = [];
  let scores: number[] = [];
  /** log p of each reply token: of the policy that sampled, and of the reference. */
  let perToken: PerToken[] = [];
  /** What the step is working on, for the file that is left when a number is not finite. */
  let batch: unknown;

  /** Each process replies to its prompts and looks at its replies; then everybody has all of them. */
  const makeExperience = async (step: number) => {
    const asked = promptsOfStep(prompts, step, batchSize, seed)
      .slice(mine.from, mine.to)
      .flatMap((p) => Array.from({ length: groupSize }, () => p));
    batch = asked.map(({ ids, source }) => ({ ids: [...ids], source }));
    const own = rollout(actor, tokenizer, asked, {
      maxTokens: config.maxTokens,
      temperature,
      seed: seed * 1_000_003 + step,
      firstRow: mine.from * groupSize,
    });
    const shown = own.map((e) => ({ ids: [...e.ids], start: e.start, source: e.prompt.source }));
    batch = shown;
    const ownScores = (await judge.score(own)).map((s, i) => (own[i].finished ? s : s - config.missingEosPenalty));
    batch = shown.map((e, i) => ({ ...e, score: ownScores[i] }));
    const ask = (model: Llama) => replyLogProbs(model, own, temperature);
    const ownOld = ask(actor);
    const ownReference = config.klCoef === 0 ? ownOld : ref ? ask(ref) : withoutLora(actor, () => ask(actor));
    checkFinite(`Step ${step}: a log-probability of the actor`, ownOld);
    checkFinite(`Step ${step}: a log-probability of the reference`, ownReference);
    return shareEpisodes(grid, own, ownScores, [ownOld, ownReference]);
  };

  const tellIfUnmoved = tellUnmoved(
    config.steps - run.startStep,
    "all replies to a prompt had equal rewards: nothing is learned from that. A reward that tells replies apart, a higher temperature or a larger groupSize may help.",
  );
  await runLoop(run, config, {
    steps: config.steps,
    show: ["reward", "loss", "kl", "clip_ratio", "val/reply_length"],
    async prepare(step) {
      // While replies are written and read, weights that lie elsewhere (ZeRO-3, offload) are here.
      ({ episodes, scores, perToken } = await holding(sets, () => makeExperience(step)));
    },
    step(step) {
      const [old, reference] = perToken;
      const advantages = groupAdvantages(scores, groupSize, config.scaleByStd);

      const totals = { loss: 0, kl: 0, clipped: 0, gradNorm: 0 };
      let update = (step - 1) * perStep;
      for (let epoch = 0; epoch < config.epochs; epoch++) {
        const order = episodes.map((_, i) => shuffled(i, replies, seed + step, epoch));
        for (let from = 0; from < replies; from += minibatchSize) {
          const minibatch = order.slice(from, from + minibatchSize);
          const result = trainer.step(++update, () => {
            const found = backwardGroups(actor, tape, minibatch, { episodes, old, reference, advantages }, config);
            totals.kl += found.kl / perStep;
            totals.clipped += found.clipped / perStep;
            return found.loss;
          });
          totals.loss += result.loss / perStep;
          totals.gradNorm += result.gradNorm / perStep;
        }
      }
      const tokens = episodes.reduce((n, e) => n + e.ids.length - e.start, 0);
      const groups = Array.from({ length: replies / groupSize }, (_, g) =>
        momentsOf(scores.slice(g * groupSize, (g + 1) * groupSize)),
      );
      const average = (of: (group: (typeof groups)[number]) => number): number =>
        groups.reduce((sum, group) => sum + of(group), 0) / groups.length;
      tellIfUnmoved(groups.every((g) => g.std === 0));
      const metrics = {
        loss: totals.loss,
        reward: average((g) => g.mean),
        reward_std: average((g) => g.std),
        kl: totals.kl,
        clip_ratio: totals.clipped,
        gradNorm: totals.gradNorm,
        "val/reply_length": tokens / replies,
      };
      return { tokens, metrics };
    },
    ...(config.samples.count > 0 && {
      evaluate: () => ({}),
      sample: () => (episodes.length === 0 ? undefined : showEpisodes(episodes, scores, config.samples.count)),
    }),
    stateBytes: () => trainer.stateBytes(),
    batch: () => batch,
    save: (dir) => saveCheckpoint(trained, dir),
  });
  saveResult(trained);
}
