/**
 * Direct preference optimization (Rafailov et al. 2023; notes 4.2.3): align with preferences without a reward model and
 * without sampling. The policy itself is the reward model: r(x, y) = beta (log p(y | x) - log p_ref(y | x)).
 *
 *   Delta = (log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))     sums over reply tokens
 *   loss  = -log sigmoid(beta Delta)
 *
 * The reference is the model that training starts from; its log-probabilities are computed once and kept in the run
 * folder, so one model is in memory. Other losses of the family differ in `preferenceLoss` only.
 */
import { existsSync, readFileSync } from "node:fs";
import { z } from "zod";
import { shuffled } from "../corpus/shards.js";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { type EncodedReply, replyBatch } from "../dialogue/preference.js";
import { installTemplate } from "../dialogue/templates.js";
import { loadLlama, saveLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { attachLora, loadAdapter, mergeLora, saveAdapter } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import { Grid } from "../parallel/grid.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { loraSchema, trainingSettings } from "../run/settings.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { encodedPreferences, logSigmoid, preferenceData, sigmoid } from "./reward.js";

const natural = z.int().min(1);

export const dpoSchema = z.strictObject({
  stage: z.literal("dpo").optional(),
  ...trainingSettings,
  /** The SFT model: where the policy starts, and the reference. */
  from: z.string().min(1),
  template: z.enum(["notes", "alpaca", "chatml"]).optional(),
  data: preferenceData,
  /** Pairs of a micro-batch. */
  batchSize: natural.default(8),
  loss: z.enum(["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "kto"]).default("sigmoid"),
  beta: z.number().positive().default(0.1),
  /** Share of the preferences that are taken to be the wrong way round: conservative DPO, or with `robust` its unbiased form. */
  labelSmoothing: z.number().min(0).lt(0.5).default(0),
  referenceFree: z.boolean().default(false),
  /** IPO: means over the reply's tokens instead of sums. */
  lengthAverage: z.boolean().default(false),
  /** SimPO's margin. */
  gamma: z.number().min(0).default(0.5),
  /** Weight of the mean negative log-likelihood of the chosen replies, which keeps them likely (Pang et al. 2024). */
  nll: z.number().min(0).default(0),
  lora: loraSchema.optional(),
});
export type DpoConfig = z.output<typeof dpoSchema>;

/** Sums of log p over the reply tokens of a pair, under policy and reference, and the number of those tokens. */
export interface PairLogProbs {
  chosen: number;
  rejected: number;
  refChosen: number;
  refRejected: number;
  chosenTokens: number;
  rejectedTokens: number;
}
export type PreferenceLossOptions = Pick<
  DpoConfig,
  "loss" | "beta" | "labelSmoothing" | "referenceFree" | "lengthAverage" | "gamma"
>;

/**
 * Mean loss over pairs, and its derivatives by the policy's sums log p(chosen) and log p(rejected).
 *   sigmoid  -(1-s) log sigmoid(beta D) - s log sigmoid(-beta D)             s = labelSmoothing (Mitchell 2023: conservative DPO)
 *   robust   the same with + s, over 1 - 2s                                  Chowdhury et al. 2024
 *   ipo      (D - 1 / (2 beta))^2                                            Azar et al. 2023
 *   hinge    max(0, 1 - beta D)                                              Zhao et al. 2023 (SLiC)
 *   simpo    -log sigmoid(beta (mean chosen - mean rejected) - gamma)        Meng et al. 2024; no reference
 *   orpo     -mean chosen - beta log sigmoid(log odds ratio)                 Hong et al. 2024; no reference
 *   kto      1 - sigmoid(beta (r_chosen - z)), 1 - sigmoid(beta (z - r_rejected))   Ethayarajh et al. 2024, on pairs
 */
export function preferenceLoss(
  pairs: readonly PairLogProbs[],
  o: PreferenceLossOptions,
): { loss: number; dChosen: number[]; dRejected: number[] } {
  const { beta, labelSmoothing: s } = o;
  const n = pairs.length;
  const dChosen = pairs.map(() => 0);
  const dRejected = pairs.map(() => 0);
  let loss = 0;
  const ref = (x: number): number => (o.referenceFree ? 0 : x);
  const ratios = pairs.map((p) => ({ chosen: p.chosen - ref(p.refChosen), rejected: p.rejected - ref(p.refRejected) }));
  const mean = (key: "chosen" | "rejected"): number => ratios.reduce((sum, r) => sum + r[key], 0) / n;
  // KTO's reference point: how far the policy has moved on average over the replies of the other kind; not differentiated.
  const moved = { chosen: Math.max(0, mean("chosen")), rejected: Math.max(0, mean("rejected")) };

  pairs.forEach((p, i) => {
    const r = ratios[i];
    const delta = r.chosen - r.rejected;
    let slope: number; // d loss / d delta
    if (o.loss === "sigmoid") {
      loss += -(1 - s) * logSigmoid(beta * delta) - s * logSigmoid(-beta * delta);
      slope = beta * (s * sigmoid(beta * delta) - (1 - s) * sigmoid(-beta * delta));
    } else if (o.loss === "robust") {
      loss += (-(1 - s) * logSigmoid(beta * delta) + s * logSigmoid(-beta * delta)) / (1 - 2 * s);
      slope = (-beta * ((1 - s) * sigmoid(-beta * delta) + s * sigmoid(beta * delta))) / (1 - 2 * s);
    } else if (o.loss === "hinge") {
      loss += Math.max(0, 1 - beta * delta);
      slope = beta * delta < 1 ? -beta : 0;
    } else if (o.loss === "ipo") {
      const [nc, nr] = o.lengthAverage ? [p.chosenTokens, p.rejectedTokens] : [1, 1];
      const error = r.chosen / nc - r.rejected / nr - 1 / (2 * beta);
      loss += error * error;
      dChosen[i] = (2 * error) / nc / n;
      dRejected[i] = (-2 * error) / nr / n;
      return;
    } else if (o.loss === "kto") {
      const good = sigmoid(beta * (r.chosen - moved.rejected));
      const bad = sigmoid(beta * (moved.chosen - r.rejected));
      loss += (1 - good + (1 - bad)) / 2;
      dChosen[i] = (-beta * good * (1 - good)) / 2 / n;
      dRejected[i] = (beta * bad * (1 - bad)) / 2 / n;
      return;
    } else {
      const [c, j] = [p.chosen / p.chosenTokens, p.rejected / p.rejectedTokens];
      if (o.loss === "simpo") {
        const x = beta * (c - j) - o.gamma;
        loss += -logSigmoid(x);
        dChosen[i] = (-beta * sigmoid(-x)) / p.chosenTokens / n;
        dRejected[i] = (beta * sigmoid(-x)) / p.rejectedTokens / n;
      } else {
        // log odds(y) = log p - log(1 - p), with p the geometric mean over tokens; its slope by log p is 1 / (1 - p).
        const x = c - j - (Math.log(-Math.expm1(c)) - Math.log(-Math.expm1(j)));
        loss += -c - beta * logSigmoid(x);
        dChosen[i] = (-1 + (beta * sigmoid(-x)) / Math.expm1(c)) / p.chosenTokens / n;
        dRejected[i] = (-beta * sigmoid(-x)) / Math.expm1(j) / p.rejectedTokens / n;
      }
      return;
    }
    dChosen[i] = slope / n;
    dRejected[i] = -slope / n;
  });
  return { loss: loss / n, dChosen, dRejected };
}

/** A chosen and a rejected reply to one prompt, and what the reference says of them. */
interface Pair {
  chosen: EncodedReply;
  rejected: EncodedReply;
  refChosen: number;
  refRejected: number;
}

export async function dpo(config: DpoConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const tokenizer = Tokenizer.load(resumed ?? config.from);
  if (config.template || tokenizer.chatTemplate === undefined) installTemplate(tokenizer, config.template ?? "notes");
  const { train, validation, rejected } = encodedPreferences(config.data, tokenizer);
  const aside = run.setAside(rejected);
  if (aside) console.error(aside);

  const { seed, precision } = config;
  const load = (dir: string): Llama => loadLlama(device, dir, precision, { vocabSize: tokenizer.vocabSize, grid });
  const pairs = { train: pairsOf(train), validation: pairsOf(validation) };
  // Before anything is trained, the model is its own reference.
  const referenceFile = `${run.dir}/reference.json`;
  const known = existsSync(referenceFile);
  grid.world.barrier(true);
  if (!known) {
    const reference = load(config.from);
    run.write(
      "reference.json",
      JSON.stringify([...pairs.train, ...pairs.validation].map((p) => pairSums(reference, [p])[0])),
    );
    reference.close();
    grid.world.barrier(true);
  }
  const sums = JSON.parse(readFileSync(referenceFile, "utf8")) as { chosen: number; rejected: number }[];
  [...pairs.train, ...pairs.validation].forEach((p, i) => {
    Object.assign(p, { refChosen: sums[i].chosen, refRejected: sums[i].rejected });
  });

  const model = load(resumed && !config.lora ? resumed : config.from);
  Object.assign(model.config, { eosTokenId: tokenizer.eosId, padTokenId: tokenizer.padId });
  if (config.lora) attachLora(model, config.lora, seed);
  const perStep = config.batchSize * config.gradientAccumulation;
  const steps = config.steps ?? Math.max(1, Math.ceil(((config.epochs ?? 1) * pairs.train.length) / perStep));
  model.recompute = config.recompute;
  const mine = grid.share(config.batchSize, "batchSize");
  Grid.agree(grid.world, "data", JSON.stringify(pairs));
  const trainer = new Trainer(model.trainable, config.optimizer, config.schedule, steps, {
    memory: grid.stateMemory(),
    checkEvery: config.parallel.checkEvery,
  });
  if (resumed) {
    if (config.lora) loadAdapter(model, resumed);
    trainer.load(resumed, run.startStep);
  }
  console.error(
    `${(model.count / 1e6).toFixed(2)}M parameters, ${pairs.train.length} pairs, ${steps} steps of ${perStep}, loss ${config.loss}`,
  );

  const tape = new Tape(device);
  let current: Pair[] = [];
  await runLoop(run, config, {
    steps,
    show: [
      "loss",
      "gradNorm",
      "learningRate",
      "rewards/margins",
      "rewards/accuracies",
      "validationLoss",
      "validation/rewards/accuracies",
    ],
    step(step) {
      current = Array.from({ length: perStep }, (_, i) => {
        const at = (step - 1) * perStep + i;
        return pairs.train[
          shuffled(at % pairs.train.length, pairs.train.length, seed, Math.floor(at / pairs.train.length))
        ];
      });
      const seen: PairLogProbs[] = [];
      const metrics = trainer.step(step, () => {
        let loss = 0;
        for (let i = 0; i < perStep; i += config.batchSize) {
          const result = backwardPairs(
            model,
            tape,
            current.slice(i + mine.from, i + mine.to),
            config,
            config.gradientAccumulation,
            i + config.batchSize === perStep,
          );
          loss += result.loss;
          seen.push(...result.pairs);
        }
        return loss;
      });
      const tokens = current.reduce((n, p) => n + p.chosen.ids.length + p.rejected.ids.length, 0);
      return { tokens, metrics: { ...metrics, ...pairMetrics(seen, config.beta) } };
    },
    ...(pairs.validation.length > 0 && {
      evaluate() {
        const found = pairSums(model, pairs.validation);
        const { loss } = preferenceLoss(found, config);
        const named = Object.entries(pairMetrics(found, config.beta)).map(([k, v]) => [`validation/${k}`, v]);
        return { validationLoss: loss, ...Object.fromEntries(named) };
      },
    }),
    stateBytes: () => trainer.stateBytes(),
    batch: () => current.map((p) => ({ chosen: [...p.chosen.ids], rejected: [...p.rejected.ids] })),
    save(dir) {
      if (config.lora) saveAdapter(model, dir);
      else saveLlama(model, dir);
      if (run.first) tokenizer.save(dir);
      trainer.save(dir);
    },
  });
  mergeLora(model);
  trainer.results(run, (dir) => {
    saveLlama(model, dir);
    if (run.first) tokenizer.save(dir);
  });
  tape.close();
  trainer.close();
  model.close();
}

/** Every pair of every ranking: the better reply against each worse one. */
function pairsOf(rankings: readonly EncodedReply[][]): Pair[] {
  return rankings.flatMap((replies) =>
    replies.flatMap((chosen, i) =>
      replies.slice(i + 1).map((worse) => ({ chosen, rejected: worse, refChosen: 0, refRejected: 0 })),
    ),
  );
}

const repliesOf = (pairs: readonly Pair[]): EncodedReply[] => pairs.flatMap((p) => [p.chosen, p.rejected]);
function toPairs(pairs: readonly Pair[], sums: readonly number[]): PairLogProbs[] {
  return pairs.map((p, i) => ({
    chosen: sums[2 * i],
    rejected: sums[2 * i + 1],
    refChosen: p.refChosen,
    refRejected: p.refRejected,
    chosenTokens: p.chosen.ids.length - p.chosen.start,
    rejectedTokens: p.rejected.ids.length - p.rejected.start,
  }));
}

/** Log-probabilities of pairs without a gradient. */
function pairSums(model: Llama, pairs: readonly Pair[], batchSize = 32): PairLogProbs[] {
  const tape = new Tape(model.device, false);
  const found: PairLogProbs[] = [];
  for (let i = 0; i < pairs.length; i += batchSize) {
    const some = pairs.slice(i, i + batchSize);
    const batch = replyBatch(repliesOf(some));
    const logp = model.logProbs(tape, batch, batch.targets).toArray();
    found.push(
      ...toPairs(
        some,
        batch.spans.map((s) => sum(logp, s)),
      ),
    );
    tape.reset();
  }
  tape.arena.close();
  return found;
}
const sum = (x: Float32Array, { from, to }: { from: number; to: number }): number => {
  let total = 0;
  for (let i = from; i < to; i++) total += x[i];
  return total;
};

/** Leaves the gradient of the loss of some pairs, divided by the number of micro-batches. */
function backwardPairs(
  model: Llama,
  tape: Tape,
  pairs: readonly Pair[],
  config: DpoConfig,
  microBatches: number,
  last: boolean,
): { loss: number; pairs: PairLogProbs[] } {
  const batch = replyBatch(repliesOf(pairs));
  const logp = model.logProbs(tape, batch, batch.targets);
  const values = model.device.f32(logp.ptr, logp.size);
  const own = toPairs(
    pairs,
    batch.spans.map((s) => sum(values, s)),
  );
  // Every data-parallel process knows all pairs, and goes backward through its own.
  const { grid, trainable } = model;
  const found = grid.everyone(own);
  const first = grid.data.rank * own.length;
  const result = preferenceLoss(found, config);
  const chosenTokens = found.reduce((n, p) => n + p.chosenTokens, 0);
  const nll = -found.reduce((n, p) => n + p.chosen, 0) / chosenTokens;
  const seed = tape.tensor(F32, logp.shape);
  const gradient = model.device.f32(seed.ptr, logp.size).fill(0);
  batch.spans.forEach(({ from, to }, s) => {
    const i = first + (s >> 1);
    const slope = s % 2 === 0 ? result.dChosen[i] - config.nll / chosenTokens : result.dRejected[i];
    gradient.fill(slope / microBatches, from, to);
  });
  trainable.keeper.lastMicroBatch = last;
  tape.backward(logp, seed);
  trainable.keeper.lastMicroBatch = false;
  tape.reset();
  return { loss: (result.loss + config.nll * nll) / microBatches, pairs: found };
}

/** TRL's metrics: implicit rewards beta (log p - log p_ref), their margin, and how often the chosen one is ahead. */
function pairMetrics(pairs: readonly PairLogProbs[], beta: number): Record<string, number> {
  const mean = (f: (p: PairLogProbs) => number): number => pairs.reduce((s, p) => s + f(p), 0) / pairs.length;
  const chosen = (p: PairLogProbs): number => beta * (p.chosen - p.refChosen);
  const worse = (p: PairLogProbs): number => beta * (p.rejected - p.refRejected);
  return {
    "rewards/chosen": mean(chosen),
    "rewards/rejected": mean(worse),
    "rewards/margins": mean((p) => chosen(p) - worse(p)),
    "rewards/accuracies": mean((p) => (chosen(p) > worse(p) ? 1 : 0)),
    "logps/chosen": mean((p) => p.chosen),
    "logps/rejected": mean((p) => p.rejected),
  };
}
