/**
 * Direct preference optimization (Rafailov et al. 2023; notes 4.2.3): align with preferences without a reward model and
 * without sampling. The policy itself is the reward model: r(x, y) = beta (log p(y | x) - log p_ref(y | x)).
 *
 *   Delta = (log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))     sums over reply tokens
 *   loss  = -log sigmoid(beta Delta)
 *
 * The reference is the model that training starts from. Its log-probabilities are computed once and cached in the run folder, keyed by the
 * times of the reference's files and a hash of the pairs, so that only one model is in memory. The other losses of the family (dpo-loss.ts) need nothing else.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { z } from "zod";
import { openCpu } from "../device/cpu.js";
import { F32 } from "../device/device.js";
import { fingerprintOf } from "../dialogue/pack.js";
import { type EncodedReply, replyBatch } from "../dialogue/preference.js";
import { installTemplate, TEMPLATE_NAMES } from "../dialogue/templates.js";
import { loadLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { attachLora } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { visited } from "../run/order.js";
import { averageOfAll, batchSizeSchema, lengthOf, loraSchema, rateFalls, trainingSettings } from "../run/settings.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { goOn, saveCheckpoint, saveResult } from "./checkpoint.js";
import {
  hasReference,
  movedBy,
  type PairLogProbs,
  PREFERENCE_LOSSES,
  type PreferenceLossOptions,
  preferenceLoss,
} from "./dpo-loss.js";
import { encodedPreferences, preferenceData } from "./preference-data.js";
import { policyContext, replyLogProbs } from "./rollout.js";

export const dpoSchema = z
  .strictObject({
    stage: z.literal("dpo").optional(),
    ...trainingSettings,
    /** The SFT model: where the policy starts, and the reference. */
    from: z.string().min(1),
    template: z.enum(TEMPLATE_NAMES).optional(),
    data: preferenceData,
    /** Pairs of a micro-batch. */
    batchSize: batchSizeSchema.default(8),
    loss: z.enum(PREFERENCE_LOSSES).default("sigmoid"),
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
  })
  .refine((c) => c.labelSmoothing === 0 || c.loss === "sigmoid" || c.loss === "robust", {
    path: ["labelSmoothing"],
    message: "0 where loss is neither sigmoid nor robust: the others know no share of wrong preferences",
  })
  .refine((c) => !c.lengthAverage || c.loss === "ipo", {
    path: ["lengthAverage"],
    message: "false where loss is not ipo: simpo and orpo average by themselves, the others sum",
  })
  .refine(...averageOfAll)
  .refine(...rateFalls);
export type DpoConfig = z.output<typeof dpoSchema>;

/** A chosen and a rejected reply to one prompt, and what the reference says of them. */
export interface Pair {
  chosen: EncodedReply;
  rejected: EncodedReply;
  refChosen: number;
  refRejected: number;
  /** KTO: this prompt under a reply to another one. */
  other?: EncodedReply;
  refOther?: number;
}

export async function dpo(config: DpoConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const tokenizer = Tokenizer.load(resumed ?? config.from);
  // A run that goes on has all weights of its own, but beneath adapters; the model it began with may be gone.
  const base = resumed && !config.lora ? resumed : config.from;
  const knownTokens = Tokenizer.load(base).vocabSize;
  if (config.template || tokenizer.chatTemplate === undefined) installTemplate(tokenizer, config.template ?? "notes");
  const { train, validation, rejected } = await encodedPreferences(
    config.data,
    tokenizer,
    policyContext(base),
    config.loss === "kto",
  );
  run.setAside(rejected);

  const { seed, precision } = config;
  const load = (dir: string): Llama => loadLlama(device, dir, precision, { vocabSize: tokenizer.vocabSize, grid });
  const pairs = { train: pairsOf(train), validation: pairsOf(validation) };
  const all = [...pairs.train, ...pairs.validation];
  if (config.loss === "kto") addOthers(all, config.data.contextLength);
  const data = fingerprintOf(partsOf(all));
  if (grid.world.size > 1) Grid.agree(grid.world, "data", data);
  if (hasReference(config)) {
    const known = { of: fingerprintOf([data, precision]), files: fingerprintOf(filesOf(config.from)) };
    addReference(all, known, run, grid, () => {
      // Before anything is trained, the model is its own reference.
      const reference = load(config.from);
      const sums = pairSums(reference, all);
      reference.close();
      if (sums.some((p) => ![p.chosen, p.rejected, p.other ?? 0].every(Number.isFinite)))
        throw new UserError(
          `${config.from}: a log-probability of the reference is not finite. The weights of this model are damaged.`,
        );
      return sums;
    });
  }

  const model = run.own(load(base));
  Object.assign(model.config, { eosTokenId: tokenizer.eosId, padTokenId: tokenizer.padId });
  if (config.lora) attachLora(model, config.lora, seed, { from: knownTokens, to: tokenizer.vocabSize });
  const perStep = config.batchSize * config.gradientAccumulation;
  const { steps, told } = lengthOf(config, pairs.train.length, perStep);
  model.recompute = config.recompute;
  const mine = grid.share(config.batchSize, "batchSize");
  const trainer = run.own(
    new Trainer(model.trainable, config.optimizer, config.schedule, steps, {
      memory: grid.stateMemory(),
      checkEvery: config.parallel.checkEvery,
    }),
  );
  const trained = { run, model, trainer, tokenizer };
  if (resumed) goOn(trained, resumed);
  console.error(
    `${(model.count / 1e6).toFixed(2)}M parameters, ${pairs.train.length} pairs, ${told}, loss ${config.loss}`,
  );

  const tape = run.own(new Tape(device));
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
      const { train } = pairs;
      current = Array.from({ length: perStep }, (_, i) => train[visited((step - 1) * perStep + i, train.length, seed)]);
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
      return { tokens, metrics: { ...metrics, ...pairMetrics(seen, config) } };
    },
    ...(pairs.validation.length > 0 && {
      evaluate() {
        const found = pairSums(model, pairs.validation);
        const loss = preferenceLoss(found, config).loss + config.nll * meanNll(found);
        const named = Object.entries(pairMetrics(found, config)).map(([k, v]) => [`validation/${k}`, v]);
        return { validationLoss: loss, ...Object.fromEntries(named) };
      },
    }),
    stateBytes: () => trainer.stateBytes(),
    batch: () => current.map((p) => ({ chosen: [...p.chosen.ids], rejected: [...p.rejected.ids] })),
    save: (dir) => saveCheckpoint(trained, dir),
  });
  saveResult(trained);
}

/** Every pair of every ranking: the better reply against each worse one. */
function pairsOf(rankings: readonly EncodedReply[][]): Pair[] {
  return rankings.flatMap((replies) =>
    replies.flatMap((chosen, i) =>
      replies.slice(i + 1).map((worse) => ({ chosen, rejected: worse, refChosen: 0, refRejected: 0 })),
    ),
  );
}

/**
 * Gives each pair its prompt with a reply to another one, of the next pair that has such a reply: in turn a chosen and a rejected one, where both will do (of single
 * replies the two of a pair answer different prompts). Cut where the two together are longer than the context.
 */
export function addOthers(pairs: readonly Pair[], contextLength: number): void {
  const promptOf = ({ ids, start }: EncodedReply): string => ids.subarray(0, start).join();
  pairs.forEach((pair, i) => {
    const own = promptOf(pair.chosen);
    let other: EncodedReply | undefined;
    for (let step = 1; step < pairs.length && !other; step++) {
      const { chosen, rejected } = pairs[(i + step) % pairs.length];
      other = (i % 2 === 0 ? [chosen, rejected] : [rejected, chosen]).find((reply) => promptOf(reply) !== own);
    }
    if (!other)
      throw new UserError("All preferences have the same prompt; loss: kto needs replies to other prompts as well.");
    const prompt = pair.chosen.ids.subarray(0, pair.chosen.start);
    const reply = other.ids.subarray(other.start, other.start + contextLength - prompt.length);
    pair.other = { ids: Int32Array.from([...prompt, ...reply]), start: prompt.length };
  });
}

/** What the losses read of the pairs. */
function* partsOf(pairs: readonly Pair[]): Generator<Int32Array | number> {
  for (const { chosen, rejected, other } of pairs)
    for (const { ids, start } of [chosen, rejected, ...(other ? [other] : [])]) yield* [ids, start];
}

/** By what a folder's weights and settings are known: reading all of a large model would take as long as some steps. */
function* filesOf(dir: string): Generator<string | number> {
  if (!existsSync(dir)) return;
  for (const name of readdirSync(dir).sort()) {
    if (name !== "config.json" && !name.endsWith(".safetensors")) continue;
    const { size, mtimeMs } = statSync(`${dir}/${name}`);
    yield* [name, size, mtimeMs];
  }
}
/** reference.json */
interface Reference {
  /** Hashes of the pairs, and of what the weights are known by. */
  of: string;
  files: string;
  sums: PairLogProbs[];
}
/**
 * Tells each pair what the reference says of it. That is computed where the run's folder does not hold it yet: numbers of other pairs or other weights may lie
 * there, where a run is begun again. A run that goes on keeps its own, wherever it has been copied to. The first process says, for all.
 */
function addReference(
  pairs: readonly Pair[],
  { of, files }: Omit<Reference, "sums">,
  run: RunFolder,
  grid: Grid,
  compute: () => PairLogProbs[],
): void {
  const file = `${run.dir}/reference.json`;
  const stored = existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Reference) : undefined;
  const fits = stored?.of === of && (run.startStep > 0 || stored.files === files);
  const [[known]] = grid.world.gatherNumbers([run.first && fits ? 1 : 0]);
  if (!known) {
    run.write("reference.json", JSON.stringify({ of, files, sums: compute() }));
    grid.world.barrier(true);
  }
  const { sums } = JSON.parse(readFileSync(file, "utf8")) as Reference;
  pairs.forEach((pair, i) => {
    const { chosen, rejected, other } = sums[i];
    Object.assign(pair, { refChosen: chosen, refRejected: rejected, ...(other !== undefined && { refOther: other }) });
  });
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
    ...(p.refOther !== undefined && { refOther: p.refOther }),
  }));
}

/** Log-probabilities of pairs without a gradient. */
function pairSums(model: Llama, pairs: readonly Pair[]): PairLogProbs[] {
  const found = toPairs(pairs, replySums(model, repliesOf(pairs)));
  addOtherSums(model, pairs, found);
  return found;
}
function addOtherSums(model: Llama, pairs: readonly Pair[], found: readonly PairLogProbs[]): void {
  const others = pairs.flatMap((p) => p.other ?? []);
  if (others.length === 0) return;
  replySums(model, others).forEach((other, i) => {
    found[i].other = other;
  });
}
/** log p of whole replies. */
const replySums = (model: Llama, replies: readonly EncodedReply[]): number[] =>
  replyLogProbs(model, replies, 1, 64).map((row) => sum(row, { from: 0, to: row.length }));
const sum = (x: Float32Array, { from, to }: { from: number; to: number }): number => {
  let total = 0;
  for (let i = from; i < to; i++) total += x[i];
  return total;
};

/** Mean negative log-likelihood of the tokens of the chosen replies. */
const meanNll = (pairs: readonly PairLogProbs[]): number =>
  -pairs.reduce((n, p) => n + p.chosen, 0) / pairs.reduce((n, p) => n + p.chosenTokens, 0);

/** Adds the gradient of the loss of some pairs, divided by the number of micro-batches, to the policy's. */
export function backwardPairs(
  model: Llama,
  tape: Tape,
  pairs: readonly Pair[],
  config: PreferenceLossOptions & { nll: number },
  microBatches = 1,
  last = true,
): { loss: number; pairs: PairLogProbs[] } {
  const batch = replyBatch(repliesOf(pairs));
  const logp = model.logProbs(tape, batch, batch.targets);
  const values = model.device.f32(logp.ptr, logp.size);
  const own = toPairs(
    pairs,
    batch.spans.map((s) => sum(values, s)),
  );
  addOtherSums(model, pairs, own);
  // Every data-parallel process knows all pairs, and goes backward through its own.
  const { grid, trainable } = model;
  const found = grid.everyone(own);
  const first = grid.data.rank * own.length;
  const result = preferenceLoss(found, config);
  const chosenTokens = found.reduce((n, p) => n + p.chosenTokens, 0);
  const seed = tape.tensor(F32, logp.shape);
  const gradient = model.device.f32(seed.ptr, logp.size).fill(0);
  batch.spans.forEach(({ from, to }, s) => {
    const i = first + (s >> 1);
    const slope = s % 2 === 0 ? result.dChosen[i] - config.nll / chosenTokens : result.dRejected[i];
    gradient.fill(slope / microBatches, from, to);
  });
  trainable.keeper.backward(last, () => tape.backward(logp, seed));
  tape.reset();
  return { loss: (result.loss + config.nll * meanNll(found)) / microBatches, pairs: found };
}

/**
 * TRL's metrics: implicit rewards, their margin, and how often the chosen one is ahead. The implicit reward of a reply is
 * beta (log p - log p_ref); where there is no reference, beta log p, for SimPO and ORPO the mean over its tokens.
 */
function pairMetrics(pairs: readonly PairLogProbs[], o: PreferenceLossOptions): Record<string, number> {
  const mean = (f: (p: PairLogProbs) => number): number => pairs.reduce((s, p) => s + f(p), 0) / pairs.length;
  const perToken = o.loss === "simpo" || o.loss === "orpo";
  const reward = (logp: number, ref: number, tokens: number): number =>
    (o.beta * (hasReference(o) ? logp - ref : logp)) / (perToken ? tokens : 1);
  const chosen = (p: PairLogProbs): number => reward(p.chosen, p.refChosen, p.chosenTokens);
  const worse = (p: PairLogProbs): number => reward(p.rejected, p.refRejected, p.rejectedTokens);
  return {
    "rewards/chosen": mean(chosen),
    "rewards/rejected": mean(worse),
    "rewards/margins": mean((p) => chosen(p) - worse(p)),
    "rewards/accuracies": mean((p) => (chosen(p) > worse(p) ? 1 : 0)),
    "logps/chosen": mean((p) => p.chosen),
    "logps/rejected": mean((p) => p.rejected),
    ...(pairs[0]?.other !== undefined && { kl: movedBy(pairs) }),
  };
}
