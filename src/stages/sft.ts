/**
 * Supervised fine-tuning (notes 4.2.2): causal language modelling on conversations, where only the replies have a loss.
 *
 * The loss of a step is the mean over the reply tokens of the whole accumulated batch, so that k micro-batches equal one
 * large batch. Samples are packed into rows; none sees another. Optionally a part of every step is pretraining text,
 * which keeps what the base model knew (Ouyang et al. 2022, section 3.5, do the same under PPO).
 */
import { existsSync } from "node:fs";
import { z } from "zod";
import type { Rejected } from "../corpus/read.js";
import { openCpu } from "../device/cpu.js";
import { CONSTRUCTIONS, DialogueEncoder, type Sample } from "../dialogue/mask.js";
import { canonicalType, drawMixture, mixtureWeights } from "../dialogue/mixture.js";
import { fingerprintOf, packRows, sampleBatch } from "../dialogue/pack.js";
import { type Conversation, readConversations } from "../dialogue/records.js";
import { installTemplate, RecordError, TEMPLATE_NAMES } from "../dialogue/templates.js";
import { generate } from "../generate/generate.js";
import { describePositions, readLlamaConfig } from "../nn/config.js";
import { loadLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { attachLora } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { isValidation, shuffled } from "../run/order.js";
import {
  averageOfAll,
  batchSizeSchema,
  lengthOf,
  loraSchema,
  pathsSchema,
  rateFalls,
  tellHeldOut,
  trainingSettings,
} from "../run/settings.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { goOn, saveCheckpoint, saveResult } from "./checkpoint.js";
import { allTargets, backwardMeanLoss, meanLoss, type TargetBatch } from "./clm.js";
import { pretrainingRows, pretrainMixSchema } from "./mix.js";

const natural = z.int().min(1);

export const sftSchema = z
  .strictObject({
    stage: z.literal("sft").optional(),
    ...trainingSettings,
    /** The base model: any Hugging Face folder. */
    from: z.string().min(1),
    /** Default: the template that the base model's tokenizer brings, else `notes`. */
    template: z.enum(TEMPLATE_NAMES).optional(),
    data: z.strictObject({
      train: pathsSchema,
      validation: pathsSchema.optional(),
      validationShare: z.number().min(0).lt(1).default(0.02),
      construction: z.enum(CONSTRUCTIONS).default("all"),
      /** Tokens of a row, and of a sample at most; longer samples are cut at the end. */
      contextLength: z.int().min(2).default(256),
      packing: z.boolean().default(true),
      /** `instructgpt`, or weights by the records' `type`. */
      mixture: z
        .union([z.literal("instructgpt"), z.strictObject({ weights: z.record(z.string(), z.number().min(0)) })])
        .optional(),
    }),
    /** Rows of a micro-batch. */
    batchSize: batchSizeSchema.default(16),
    pretrainMix: pretrainMixSchema.optional(),
    lora: loraSchema.optional(),
    samples: z
      .strictObject({
        prompts: z.array(z.string()).default([]),
        maxTokens: natural.default(64),
        temperature: z.number().min(0).default(0),
      })
      .prefault({}),
  })
  .refine(...averageOfAll)
  .refine(...rateFalls);
export type SftConfig = z.output<typeof sftSchema>;

export async function sft(config: SftConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;
  const tokenizer = resumed ? Tokenizer.load(resumed) : tunedTokenizer(config);
  // A run that goes on has all weights of its own; the model it began with may be gone.
  const base = existsSync(config.from) ? Tokenizer.load(config.from) : tokenizer;
  const { train, validation, report, rejected } = await readSamples(config, tokenizer);
  const mix =
    config.pretrainMix &&
    (await pretrainingRows(
      config.pretrainMix.train,
      tokenizer,
      base.separatorId,
      config.data.contextLength,
      config.seed,
      rejected,
    ));
  for (const line of report) console.error(line);
  run.setAside(rejected);
  tellHeldOut(config.data, validation.length);

  const model = run.own(
    loadLlama(device, resumed && !config.lora ? resumed : config.from, config.precision, {
      vocabSize: tokenizer.vocabSize,
      grid,
    }),
  );
  model.recompute = config.recompute;
  Object.assign(model.config, { eosTokenId: tokenizer.eosId, padTokenId: tokenizer.padId });
  if (config.data.contextLength > model.config.maxPositionEmbeddings)
    throw new UserError(
      `data.contextLength is ${config.data.contextLength}, but the model was made for ${describePositions(model.config)}.`,
      2,
    );
  if (config.lora) attachLora(model, config.lora, config.seed, { from: base.vocabSize, to: tokenizer.vocabSize });
  const asked = samplePrompts(config, tokenizer, model.config.maxPositionEmbeddings);

  const rows = new SampleRows(train, config);
  const mine = grid.share(config.batchSize, "batchSize");
  const rowsPerStep = config.batchSize * config.gradientAccumulation;
  if (grid.world.size > 1) Grid.agree(grid.world, "data", fingerprintOf(partsOf(train)));
  const { steps, told } = lengthOf(
    config,
    rows.inEpoch(0).length,
    rowsPerStep,
    ` rows of up to ${config.data.contextLength} tokens`,
  );
  const trainer = run.own(
    new Trainer(model.trainable, config.optimizer, config.schedule, steps, {
      memory: grid.stateMemory(),
      checkEvery: config.parallel.checkEvery,
    }),
  );
  const trained = { run, model, trainer, tokenizer };
  if (resumed) goOn(trained, resumed);
  const { pretrainMix, gradientAccumulation } = config;
  // Rows of text beside each micro-batch; too few for all processes, they go through in one piece.
  const pieces = (pretrainMix?.batchSize ?? 0) % grid.data.size === 0 ? gradientAccumulation : 1;
  const textRows = ((pretrainMix?.batchSize ?? 0) * gradientAccumulation) / pieces;
  const mixed = grid.share(
    textRows,
    pieces === gradientAccumulation ? "pretrainMix.batchSize" : "pretrainMix.batchSize x gradientAccumulation",
  );
  console.error(
    `${(model.count / 1e6).toFixed(2)}M parameters${config.lora ? `, ${model.trainable.count.toLocaleString("en-US")} of them trained (LoRA)` : ""}, ` +
      `${train.length} records, ${told}`,
  );
  console.error(`${trainer.memory()}${grid.world.size > 1 ? ", of this process" : ""}`);

  const tape = run.own(new Tape(device));
  let batches: TargetBatch[] = [];
  await runLoop(run, config, {
    steps,
    peakFlops: () => grid.peakFlops(config.precision),
    step(step) {
      /** This process's share of each of the step's `count` pieces, of `size` rows. */
      const shares = <T>(
        count: number,
        size: number,
        { from, to }: { from: number; to: number },
        row: (index: number) => T,
      ): T[][] =>
        Array.from({ length: count }, (_, piece) => {
          const first = ((step - 1) * count + piece) * size + from;
          return Array.from({ length: to - from }, (_, i) => row(first + i));
        });
      batches = shares(gradientAccumulation, config.batchSize, mine, (index) => rows.at(index)).map((samples) =>
        sampleBatch(samples.flat()),
      );
      const texts = mix ? shares(pieces, textRows, mixed, mix).map(allTargets) : [];
      let pretrainLoss: number | undefined;
      const metrics = trainer.step(step, () => {
        const { loss } = backwardMeanLoss(model, tape, batches, 1, texts.length === 0);
        if (texts.length > 0) pretrainLoss = backwardMeanLoss(model, tape, texts, pretrainMix!.weight).loss;
        return loss;
      });
      const all = (of: (batch: TargetBatch) => number): number =>
        grid.data.size * [...batches, ...texts].reduce((n, b) => n + of(b), 0);
      return {
        tokens: all((b) => b.ids.length),
        flops: all((b) => model.trainingFlops(b, b.targets)),
        metrics: { ...metrics, ...(pretrainLoss !== undefined && { pretrainLoss }) },
      };
    },
    ...(validation.length > 0 && {
      evaluate: () => {
        const { loss } = meanLoss(model, inBatches(validation, config.batchSize * 4), tape.arena);
        return { validationLoss: loss, perplexity: Math.exp(loss) };
      },
    }),
    sample: () => sampleText(model, tokenizer, asked, config),
    stateBytes: () => trainer.stateBytes(),
    batch: () =>
      batches.map(({ ids, targets, cuSeqlens }) => ({
        ids: [...ids],
        targets: [...targets],
        cuSeqlens: [...cuSeqlens],
      })),
    save: (dir) => saveCheckpoint(trained, dir),
  });
  saveResult(trained);
}

/** The base model's tokenizer with the conversation template in it. Throws UserError when it is another model's. */
export function tunedTokenizer(config: SftConfig): Tokenizer {
  const tokenizer = Tokenizer.load(config.from);
  const { vocabSize } = readLlamaConfig(config.from);
  if (tokenizer.vocabSize > vocabSize)
    throw new UserError(
      `${config.from}: its tokenizer has ${tokenizer.vocabSize} tokens, but the model only ${vocabSize}: they do not belong together.`,
    );
  if (config.template || tokenizer.chatTemplate === undefined) installTemplate(tokenizer, config.template ?? "notes");
  return tokenizer;
}

/** A conversation and what is trained on of it. */
interface Example {
  conversation: Conversation;
  samples: Sample[];
}

/** The records as tokens, all in their order and split into training and validation, with lines on what was drawn and cut. */
export async function readSamples(
  config: SftConfig,
  tokenizer: Tokenizer,
): Promise<{ train: Example[]; validation: Sample[]; records: Example[]; report: string[]; rejected: Rejected[] }> {
  const { data } = config;
  const encoder = new DialogueEncoder(tokenizer);
  const rejected: Rejected[] = [];
  const encode = (conversations: Conversation[]): Example[] =>
    conversations.flatMap((conversation) => {
      const samples = encoder.samples(conversation.messages, data.construction, data.contextLength);
      if (Array.isArray(samples)) return [{ conversation, samples }];
      rejected.push({ ...conversation.source, reason: samples.rejected });
      return [];
    });
  const records = encode(await readConversations(data.train, rejected));
  // By what is said: wherever the file lies the same records are held out, and no copy of one is on both sides.
  const held = (r: Example): boolean =>
    !data.validation && isValidation(JSON.stringify(r.conversation.messages), data.validationShare);
  const train = records.filter((r) => !held(r));
  if (records.length === 0)
    throw new UserError(`${data.train.join(", ")}: no token of any record can be trained on.${reasons(rejected)}`);
  if (train.length === 0)
    throw new UserError(
      `${data.train.join(", ")}: all ${records.length} records are held out for validation, and none is left to train on. Give more, or set data.validationShare to 0.`,
    );
  const validation = data.validation
    ? encode(await readConversations(data.validation, rejected))
    : records.filter(held);
  const report: string[] = [];
  const cut = [...new Set([...records, ...validation])].flatMap((r) => r.samples).filter((s) => s.cut);
  if (cut.length > 0)
    report.push(
      `cut: ${cut.length} records are longer than data.contextLength, ${data.contextLength} tokens; ${cut.reduce((n, s) => n + s.cut!, 0)} tokens of them are left out`,
    );
  if (data.mixture)
    for (const row of drawMixture(typesOf(train), weightsOf(data.mixture), config.seed, 0).report)
      report.push(
        `mixture: ${row.type} wanted ${(row.wanted * 100).toFixed(1)}%, drawn ${(row.drawn * 100).toFixed(1)}%, ${row.records} records, each ${row.repeats.toFixed(2)} times an epoch`,
      );
  return { train, validation: validation.flatMap((r) => r.samples), records, report, rejected };
}

/** Why records were set aside, the commonest reason first, each with how often and where first. */
function reasons(rejected: readonly Rejected[]): string {
  const byReason = new Map<string, Rejected[]>();
  for (const r of rejected) byReason.set(r.reason, [...(byReason.get(r.reason) ?? []), r]);
  const sorted = [...byReason.values()].sort((a, b) => b.length - a.length);
  return sorted
    .slice(0, 3)
    .map((list) => `\n       ${list.length} times, first at ${list[0].file}:${list[0].line}: ${list[0].reason}`)
    .join("");
}
/** What training reads of the records: their types, for mixtures, and their tokens with the mask. */
function* partsOf(records: readonly Example[]): Generator<Int32Array | Uint8Array | string | number> {
  for (const { conversation, samples } of records) {
    yield canonicalType(conversation.type);
    yield samples.length;
    for (const { ids, trainable } of samples) yield* [ids, trainable];
  }
}
const typesOf = (records: readonly Example[]): string[] => records.map((r) => canonicalType(r.conversation.type));
const weightsOf = (m: NonNullable<SftConfig["data"]["mixture"]>) => mixtureWeights(m === "instructgpt" ? m : m.weights);

/** The rows of all epochs, one after the other: drawn or shuffled, then packed; each epoch a function of (seed, epoch). */
class SampleRows {
  private readonly epochs: Sample[][][] = [];

  constructor(
    private readonly records: readonly Example[],
    private readonly config: SftConfig,
  ) {}

  inEpoch(epoch: number): Sample[][] {
    const { records, config } = this;
    const { data, seed } = config;
    const order = data.mixture
      ? drawMixture(typesOf(records), weightsOf(data.mixture), seed, epoch).order
      : records.map((_, i) => shuffled(i, records.length, seed, epoch));
    const samples = order.flatMap((i) => records[i].samples);
    if (!data.packing) return samples.map((s) => [s]);
    const rows = packRows(
      samples.map((s) => s.ids.length),
      data.contextLength,
    ).map((row) => row.map((i) => samples[i]));
    return rows.map((_, i) => rows[shuffled(i, rows.length, seed + 1, epoch)]);
  }

  at(index: number): Sample[] {
    let rest = index;
    for (let epoch = 0; ; epoch++) {
      this.epochs[epoch] ??= this.inEpoch(epoch);
      if (rest < this.epochs[epoch].length) return this.epochs[epoch][rest];
      rest -= this.epochs[epoch].length;
    }
  }
}

function* inBatches(samples: readonly Sample[], size: number): Generator<TargetBatch> {
  for (let i = 0; i < samples.length; i += size) yield sampleBatch(samples.slice(i, i + size));
}

/** samples.prompts as tokens. Throws UserError for one that cannot be asked, with its key. */
function samplePrompts({ samples }: SftConfig, tokenizer: Tokenizer, context: number): Int32Array[] {
  const encoder = new DialogueEncoder(tokenizer);
  return samples.prompts.map((content, i) => {
    const key = `samples.prompts.${i}`;
    let ids: Int32Array;
    try {
      ids = encoder.prompt([{ role: "user", content }]);
    } catch (error) {
      throw error instanceof RecordError ? new UserError(`${key}: ${error.message}`, 2) : error;
    }
    if (ids.length >= context)
      throw new UserError(
        `${key} has ${ids.length} tokens in its template; the model's context of ${context} leaves no room for a reply.`,
        2,
      );
    return ids;
  });
}

/** How the model answers the prompts, which are `ids` as tokens. */
function sampleText(
  model: Llama,
  tokenizer: Tokenizer,
  ids: readonly Int32Array[],
  config: SftConfig,
): string | undefined {
  const { prompts, maxTokens, temperature } = config.samples;
  if (prompts.length === 0) return undefined;
  const stop = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  return generate(model, ids, { maxTokens, temperature, seed: config.seed, stop })
    .map((reply, i) => `${prompts[i]} -> ${tokenizer.decode(reply.ids, { skipSpecialTokens: true })}`)
    .join("\n");
}
