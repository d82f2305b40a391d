/**
 * The reward model (notes 4.2.3): a language model whose output matrix is replaced by one number, trained on ranked
 * replies so that the better one gets the larger number.
 *
 *   loss = mean over the K (K - 1) / 2 pairs of a prompt of  -log sigmoid(r_better - r_worse)
 *
 * (Ouyang et al. 2022, equation 1; all pairs of a prompt in one pass). The reward of a reply is read at its last token.
 */
import { z } from "zod";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { fingerprintOf } from "../dialogue/pack.js";
import type { EncodedReply } from "../dialogue/preference.js";
import { installTemplate, TEMPLATE_NAMES, templateOf } from "../dialogue/templates.js";
import { readLlamaConfig } from "../nn/config.js";
import { loadLlama } from "../nn/folder.js";
import { type Llama, packSequences, type TokenBatch } from "../nn/llama.js";
import { Trainer } from "../optim/trainer.js";
import { Grid } from "../parallel/grid.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { visited } from "../run/order.js";
import { batchSizeSchema, lengthOf, rateFalls, trainingSettings } from "../run/settings.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { goOn, saveCheckpoint, saveResult } from "./checkpoint.js";
import { encodedPreferences, preferenceData } from "./preference-data.js";

export const rewardSchema = z
  .strictObject({
    stage: z.literal("reward").optional(),
    ...trainingSettings,
    /** The model whose body it starts from: the SFT model, or another (smaller) one. */
    from: z.string().min(1),
    /** Random weights in the shape of `from`: a reward model from scratch. */
    fromScratch: z.boolean().default(false),
    template: z.enum(TEMPLATE_NAMES).optional(),
    data: preferenceData,
    /** Prompts of a micro-batch, each with all its replies. */
    batchSize: batchSizeSchema.default(8),
    /** The better reply must lead by this much. */
    margin: z.number().min(0).default(0),
    /** Weight of (r_better + r_worse)^2, which keeps rewards near 0 (Eisenstein et al. 2023). */
    centering: z.number().min(0).default(0),
    /** After training, note the mean reward of the training replies, which PPO subtracts. */
    normalize: z.boolean().default(true),
  })
  .refine(...rateFalls);
export type RewardConfig = z.output<typeof rewardSchema>;

export const sigmoid = (x: number): number => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
/** log sigmoid(x), without overflow. */
export const logSigmoid = (x: number): number => (x >= 0 ? -Math.log1p(Math.exp(-x)) : x - Math.log1p(Math.exp(x)));

/**
 * The ranking loss. `groups`: rewards of each prompt's replies, best first. Returns the mean over prompts of the mean
 * over pairs, its gradient in the same shape, and the difference of every pair.
 */
export function rankingLoss(
  groups: readonly (readonly number[])[],
  { margin = 0, centering = 0 }: { margin?: number; centering?: number } = {},
): { loss: number; gradients: number[][]; differences: number[] } {
  let loss = 0;
  const differences: number[] = [];
  const gradients = groups.map((rewards) => {
    const g = rewards.map(() => 0);
    const scale = 2 / (rewards.length * (rewards.length - 1)) / groups.length;
    for (let i = 0; i < rewards.length; i++)
      for (let j = i + 1; j < rewards.length; j++) {
        const difference = rewards[i] - rewards[j];
        const sum = rewards[i] + rewards[j];
        differences.push(difference);
        loss += scale * (-logSigmoid(difference - margin) + centering * sum * sum);
        const d = -sigmoid(margin - difference);
        g[i] += scale * (d + 2 * centering * sum);
        g[j] += scale * (-d + 2 * centering * sum);
      }
    return g;
  });
  return { loss, gradients, differences };
}

/** How good a reward model is at telling the better reply, and at what it should not do. */
export function rewardMetrics(
  groups: readonly (readonly { reward: number; length: number }[])[],
  /** Of the loss that was trained. */
  options: { margin?: number; centering?: number } = {},
): Record<string, number> {
  const rewards = groups.map((g) => g.map((x) => x.reward));
  const { loss, differences } = rankingLoss(rewards, options);
  const flat = groups.flat();
  const mean = average(flat.map((x) => x.reward));
  return {
    loss,
    accuracy: accuracyOf(differences),
    margin: average(differences),
    calibrationError: calibrationError(differences),
    rewardMean: mean,
    rewardStd: deviation(flat.map((x) => x.reward)),
    lengthCorrelation: correlation(
      flat.map((x) => x.reward),
      flat.map((x) => x.length),
    ),
  };
}
const average = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / Math.max(1, x.length);
/** Share of pairs whose better reply has the greater reward; a tie is half right. */
const accuracyOf = (differences: readonly number[]): number =>
  average(differences.map((d) => (d > 0 ? 1 : d === 0 ? 0.5 : 0)));

function deviation(x: readonly number[]): number {
  const mean = average(x);
  return Math.sqrt(average(x.map((v) => (v - mean) ** 2)));
}
function correlation(x: readonly number[], y: readonly number[]): number {
  const [mx, my] = [average(x), average(y)];
  const cov = average(x.map((v, i) => (v - mx) * (y[i] - my)));
  const spread = Math.sqrt(average(x.map((v) => (v - mx) ** 2)) * average(y.map((v) => (v - my) ** 2)));
  return spread > 0 ? cov / spread : 0;
}
/** Expected calibration error (Guo et al. 2017) of "the one with the larger reward is better" over ten bins of confidence. */
function calibrationError(differences: readonly number[]): number {
  const bins = Array.from({ length: 10 }, () => ({ n: 0, confidence: 0, right: 0 }));
  for (const d of differences) {
    const confidence = sigmoid(Math.abs(d));
    const bin = bins[Math.min(9, Math.floor((confidence - 0.5) * 20))];
    bin.n++;
    bin.confidence += confidence;
    bin.right += d > 0 ? 1 : d === 0 ? 0.5 : 0; // a tie is half right, as in accuracy
  }
  return bins.reduce((e, b) => e + Math.abs(b.confidence - b.right), 0) / Math.max(1, differences.length);
}

/** Where the reward is read: the last token of each sequence. */
const lastRows = ({ cuSeqlens }: TokenBatch): Int32Array => cuSeqlens.slice(1).map((end) => end - 1);

/** The reward of each sequence of ids: the head's number at its last token. */
export function scoreSequences(model: Llama, sequences: readonly ArrayLike<number>[], batchSize = 64): number[] {
  const tape = new Tape(model.device, false);
  const scores: number[] = [];
  try {
    for (let i = 0; i < sequences.length; i += batchSize) {
      const batch = packSequences(sequences.slice(i, i + batchSize));
      const last = lastRows(batch);
      const values = model.values(tape, batch, last).toArray();
      for (const row of last) scores.push(values[row]);
      tape.reset();
    }
  } finally {
    tape.close();
  }
  return scores;
}

/**
 * Transformers reads a reward at the last token that is not padding, so padding may be no token that replies end with, as it is in many chat models. Another
 * one is named then that no reply ends with; none, where there is none: Transformers asks for one before it reads a batch, and single replies are right.
 */
function padApart(tokenizer: Tokenizer): void {
  const ends = [tokenizer.eosId, tokenizer.tokenToId(templateOf(tokenizer).endOfTurn)];
  const isApart = (id: number | undefined): boolean => id !== undefined && !ends.includes(id);
  if (isApart(tokenizer.padId)) return;
  const { unk_token, bos_token } = tokenizer.config as Record<string, string | { content: string } | undefined>;
  const names = [unk_token, bos_token].map((token) => (typeof token === "object" ? token.content : token));
  tokenizer.config.pad_token = ["<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", ...names].find(
    (name) => name !== undefined && isApart(tokenizer.tokenToId(name)),
  );
}

/** Of two replies any correlation is 1 or -1. */
const ENOUGH_TO_CORRELATE = 10;

export async function reward(config: RewardConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const tokenizer = Tokenizer.load(resumed ?? config.from);
  if (config.template || tokenizer.chatTemplate === undefined) installTemplate(tokenizer, config.template ?? "notes");
  const { train, validation, rejected } = await encodedPreferences(
    config.data,
    tokenizer,
    readLlamaConfig(resumed ?? config.from).maxPositionEmbeddings,
  );
  run.setAside(rejected);

  const { seed, precision } = config;
  const model = run.own(
    loadLlama(device, resumed ?? config.from, precision, {
      head: "scalar",
      vocabSize: tokenizer.vocabSize,
      seed,
      grid,
    }),
  );
  model.recompute = config.recompute;
  if (config.fromScratch && !resumed) model.parameters.initialize(seed, model.config.initializerRange);
  padApart(tokenizer);
  Object.assign(model.config, { eosTokenId: tokenizer.eosId, padTokenId: tokenizer.padId });
  const perStep = config.batchSize * config.gradientAccumulation;
  const { steps, told } = lengthOf(config, train.length, perStep);
  const mine = grid.share(config.batchSize, "batchSize");
  if (grid.world.size > 1)
    Grid.agree(
      grid.world,
      "data",
      fingerprintOf(train.flatMap((group) => [group.length, ...group.flatMap(({ ids, start }) => [ids, start])])),
    );
  const trainer = run.own(
    new Trainer(model.trainable, config.optimizer, config.schedule, steps, {
      memory: grid.stateMemory(),
      checkEvery: config.parallel.checkEvery,
    }),
  );
  const trained = { run, model, trainer, tokenizer };
  if (resumed) goOn(trained, resumed);
  console.error(`${(model.count / 1e6).toFixed(2)}M parameters, ${train.length} ranked prompts, ${told}`);

  const tape = run.own(new Tape(device));
  let current: EncodedReply[][] = [];
  const measure = (groups: readonly EncodedReply[][]): Record<string, number> => {
    const scores = scoreSequences(
      model,
      groups.flat().map((r) => r.ids),
    );
    let next = 0;
    const scored = groups.map((g) => g.map((r) => ({ reward: scores[next++], length: r.ids.length - r.start })));
    return rewardMetrics(scored, config);
  };
  await runLoop(run, config, {
    steps,
    show: ["loss", "gradNorm", "learningRate", "accuracy", "validation/loss", "validation/accuracy"],
    step(step) {
      current = Array.from({ length: perStep }, (_, i) => train[visited((step - 1) * perStep + i, train.length, seed)]);
      const differences: number[] = [];
      const seen: number[] = [];
      const metrics = trainer.step(step, () => {
        let loss = 0;
        for (let i = 0; i < perStep; i += config.batchSize) {
          const groups = current.slice(i + mine.from, i + mine.to);
          const batch = packSequences(groups.flat().map((r) => r.ids));
          const last = lastRows(batch);
          const values = model.values(tape, batch, last);
          const all = device.f32(values.ptr, values.size);
          let s = 0;
          const rewards = groups.map((g) => g.map(() => all[last[s++]]));
          // Every process knows all rewards, and goes backward through its own.
          const everyone = grid.everyone(rewards);
          const result = rankingLoss(everyone, config);
          const gradients = result.gradients.slice(mine.from, mine.to);
          const seedGradient = tape.tensor(F32, values.shape);
          const gradient = device.f32(seedGradient.ptr, values.size).fill(0);
          s = 0;
          for (const g of gradients.flat()) gradient[last[s++]] = g / config.gradientAccumulation;
          const isLast = i + config.batchSize === perStep;
          model.trainable.keeper.backward(isLast, () => tape.backward(values, seedGradient));
          tape.reset();
          loss += result.loss / config.gradientAccumulation;
          differences.push(...result.differences);
          seen.push(...everyone.flat());
        }
        return loss;
      });
      const tokens = current.flat().reduce((n, r) => n + r.ids.length, 0);
      const spread = {
        accuracy: accuracyOf(differences),
        margin: average(differences),
        rewardMean: average(seen),
        rewardStd: deviation(seen),
      };
      return { tokens, metrics: { ...metrics, ...spread } };
    },
    ...(validation.length > 0 && {
      evaluate: () => Object.fromEntries(Object.entries(measure(validation)).map(([k, v]) => [`validation/${k}`, v])),
    }),
    stateBytes: () => trainer.stateBytes(),
    batch: () => current.map((g) => g.map((r) => [...r.ids])),
    save: (dir) => saveCheckpoint(trained, dir),
  });
  const measured = validation.length > 0 ? validation : train;
  const last = measure(measured);
  const { lengthCorrelation } = last;
  console.error(
    `${measured.length} ${validation.length > 0 ? "held-out" : "training"} ${measured.length === 1 ? "prompt" : "prompts"}: ${Object.entries(
      last,
    )
      .map(([name, value]) => `${name} ${value.toFixed(3)}`)
      .join(", ")}`,
  );
  if (Math.abs(lengthCorrelation) > 0.9 && measured.flat().length >= ENOUGH_TO_CORRELATE)
    console.error(
      `warning: the reward follows the length of a reply (correlation ${lengthCorrelation.toFixed(2)}). Check that the preferred replies are not simply the ${lengthCorrelation > 0 ? "longer" : "shorter"} ones.`,
    );
  // Of a thousand prompts, spread over the training data: what they are like, not all of them.
  const some = train.filter((_, i) => i % Math.ceil(train.length / 1000) === 0);
  saveResult(trained, (): Record<string, number> => {
    if (!config.normalize) return {};
    const { rewardMean, rewardStd } = measure(some);
    return { reward_mean: rewardMean, reward_std: rewardStd };
  });
}
