/**
 * Group relative policy optimization (Shao et al. 2024): PPO without a critic. Several replies to each prompt are each
 * other's baseline; a reply's advantage, the same for all of its tokens, is how far its score is above its group's mean.
 *
 *   A = (score - mean of its group) / spread of its group          (`scaleByStd: false`: Dr. GRPO, Liu et al. 2025)
 *   loss per token = max(-A rho, -A clip(rho, 1 +- eps)) + klCoef k3(log p - log p_ref)
 *
 * It fits rewards that can be checked (a function in a module) as well as reward models.
 */
import { z } from "zod";
import type { Rejected } from "../corpus/read.js";
import { shuffled } from "../corpus/shards.js";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { replyBatch } from "../dialogue/preference.js";
import { loadLlama, saveLlama } from "../nn/folder.js";
import { attachLora, loadAdapter, mergeLora, saveAdapter, withoutLora } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import { NonFiniteError } from "../run/errors.js";
import { onlyAlone, type RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { loraSchema, trainingSettings } from "../run/settings.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { klOf, policyLoss } from "./ppo.js";
import { type Episode, openJudge, type PerToken, readPrompts, replyLogProbs, rollout } from "./rollout.js";

const natural = z.int().min(1);
const { epochs: _, gradientAccumulation: __, ...shared } = trainingSettings;

export const grpoSchema = z.strictObject({
  stage: z.literal("grpo").optional(),
  ...shared,
  /** Rollouts, each with its updates. */
  steps: natural.default(100),
  from: z.string().min(1),
  /** A reward model's folder, or a .mjs module whose default export is (prompt, reply) => number. */
  reward: z.string().min(1),
  prompts: z.array(z.string().min(1)).min(1),
  maxPromptLength: natural.default(128),
  maxTokens: natural.default(64),
  temperature: z.number().positive().default(1),
  /** Prompts of a rollout, and replies to each. */
  batchSize: natural.default(8),
  groupSize: z.int().min(2).default(8),
  /** Passes over a rollout's replies, in minibatches of this many. */
  epochs: natural.default(1),
  minibatchSize: natural.default(32),
  clipRange: z.number().positive().default(0.2),
  klCoef: z.number().min(0).default(0.04),
  scaleByStd: z.boolean().default(true),
  missingEosPenalty: z.number().min(0).default(0),
  lora: loraSchema.optional(),
  samples: z.strictObject({ count: z.int().min(0).default(3) }).prefault({}),
});
export type GrpoConfig = z.output<typeof grpoSchema>;

/** Advantage of each score within its group of `size` neighbours. A group of equal scores teaches nothing: 0. */
export function groupAdvantages(scores: readonly number[], size: number, scaleByStd = true): number[] {
  return scores.map((score, i) => {
    const group = scores.slice(i - (i % size), i - (i % size) + size);
    const mean = group.reduce((a, b) => a + b, 0) / size;
    // The sample's standard deviation, and TRL's epsilon.
    const std = Math.sqrt(group.reduce((a, b) => a + (b - mean) ** 2, 0) / (size - 1));
    return (score - mean) / (scaleByStd ? std + 1e-4 : 1);
  });
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

export async function grpo(config: GrpoConfig, run: RunFolder): Promise<void> {
  onlyAlone("grpo", run);
  const device = openCpu({ threads: config.threads });
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const { precision, seed, temperature } = config;
  const tokenizer = Tokenizer.load(config.from);
  const rejected: Rejected[] = [];
  const prompts = readPrompts(config.prompts, new DialogueEncoder(tokenizer), config.maxPromptLength, rejected);
  const aside = run.setAside(rejected);
  if (aside) console.error(aside);

  const actor = loadLlama(device, resumed && !config.lora ? resumed : config.from, precision);
  if (config.lora) attachLora(actor, config.lora, seed);
  const ref = config.lora ? undefined : loadLlama(device, config.from, precision, { trainable: false });
  const judge = await openJudge(config.reward, device, precision, tokenizer, config.from);
  const replies = config.batchSize * config.groupSize;
  const perStep = config.epochs * Math.ceil(replies / config.minibatchSize);
  const trainer = new Trainer(actor.trainable, config.optimizer, config.schedule, config.steps * perStep);
  if (resumed) {
    if (config.lora) loadAdapter(actor, resumed);
    trainer.load(resumed, run.startStep * perStep);
  }

  const tape = new Tape(device);
  let episodes: Episode[] = [];
  let scores: number[] = [];
  await runLoop(run, config, {
    steps: config.steps,
    show: ["loss", "reward", "kl", "clip_ratio", "val/reply_length"],
    async step(step) {
      const chosen = Array.from({ length: replies }, (_, i) => {
        const at = (step - 1) * config.batchSize + Math.floor(i / config.groupSize);
        return prompts[shuffled(at % prompts.length, prompts.length, seed, Math.floor(at / prompts.length))];
      });
      episodes = rollout(actor, tokenizer, chosen, {
        maxTokens: config.maxTokens,
        temperature,
        seed: seed * 1_000_003 + step,
      });
      scores = (await judge.score(episodes)).map((s, i) => (episodes[i].finished ? s : s - config.missingEosPenalty));
      const advantages = groupAdvantages(scores, config.groupSize, config.scaleByStd);
      const old = replyLogProbs(actor, episodes, temperature);
      const refOf = (): PerToken => replyLogProbs(ref ?? actor, episodes, temperature);
      const reference = ref ? refOf() : withoutLora(actor, refOf);
      if (old.some((row) => row.some((p) => !Number.isFinite(p))))
        throw new NonFiniteError(`Step ${step}: a log-probability`);

      const totals = { loss: 0, kl: 0, clipped: 0, gradNorm: 0 };
      let update = (step - 1) * perStep;
      for (let epoch = 0; epoch < config.epochs; epoch++) {
        const order = episodes.map((_, i) => shuffled(i, replies, seed + step, epoch));
        for (let from = 0; from < replies; from += config.minibatchSize) {
          const which = order.slice(from, from + config.minibatchSize);
          const batch = replyBatch(which.map((i) => episodes[i]));
          const n = batch.spans.reduce((sum, s) => sum + s.to - s.from, 0);
          const result = trainer.step(++update, () => {
            const logp = actor.logProbs(tape, batch, batch.targets, temperature);
            const now = device.f32(logp.ptr, logp.size);
            const gradient = tape.tensor(F32, logp.shape);
            const slopes = device.f32(gradient.ptr, logp.size).fill(0);
            let loss = 0;
            batch.spans.forEach(({ from: first, to }, s) => {
              const i = which[s];
              for (let row = first; row < to; row++) {
                const t = row - first;
                const token = grpoLoss(now[row], old[i][t], reference[i][t], advantages[i], config);
                loss += token.loss / n;
                totals.kl += token.kl / n / perStep;
                totals.clipped += (token.clipped ? 1 : 0) / n / perStep;
                slopes[row] = token.slope / n;
              }
            });
            tape.backward(logp, gradient);
            tape.reset();
            return loss;
          });
          totals.loss += result.loss / perStep;
          totals.gradNorm += result.gradNorm / perStep;
        }
      }
      const tokens = episodes.reduce((n, e) => n + e.ids.length - e.start, 0);
      const mean = scores.reduce((a, b) => a + b, 0) / replies;
      const spread = Math.sqrt(scores.reduce((a, b) => a + (b - mean) ** 2, 0) / replies);
      const metrics = {
        loss: totals.loss,
        reward: mean,
        reward_std: spread,
        kl: totals.kl,
        clip_ratio: totals.clipped,
        gradNorm: totals.gradNorm,
        "val/reply_length": tokens / replies,
      };
      return { tokens, metrics };
    },
    ...(config.samples.count > 0 && {
      evaluate: () => ({}),
      sample: () =>
        episodes.length === 0
          ? undefined
          : episodes
              .slice(0, config.samples.count)
              .map((e, i) => `${e.prompt.messages.at(-1)?.content} -> ${e.text}  [${scores[i].toFixed(2)}]`)
              .join("\n"),
    }),
    batch: () => episodes.map((e, i) => ({ ids: [...e.ids], start: e.start, score: scores[i] })),
    save(dir) {
      if (config.lora) saveAdapter(actor, dir);
      else saveLlama(actor, dir);
      tokenizer.save(dir);
      trainer.save(dir);
    },
  });
  mergeLora(actor);
  run.result("model", (dir) => {
    saveLlama(actor, dir);
    tokenizer.save(dir);
  });
  tape.arena.close();
  trainer.close();
  actor.close();
  ref?.close();
  judge.close();
}
