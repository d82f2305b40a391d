/**
 * Pretraining (notes 4.2.1): raw text -> tokenizer -> token shards -> causal language modelling from random weights.
 *
 * Documents lie end to end, each closed by the end-of-text token, and are cut into rows of `contextLength` tokens.
 * A document does not see its neighbours in a row. Rows are visited in a shuffled order that is a function of
 * (seed, epoch), so a resumed run sees the rows that were left.
 */
import { existsSync } from "node:fs";
import { z } from "zod";
import { firstReason, type Rejected, readDocuments } from "../corpus/read.js";
import { type PretrainBatch, readManifest, Shards, writeShards } from "../corpus/shards.js";
import { openCpu } from "../device/cpu.js";
import type { Device } from "../device/device.js";
import { readConversations } from "../dialogue/records.js";
import { generate } from "../generate/generate.js";
import {
  describePositions,
  type LlamaConfig,
  MAX_LAYERS,
  MODEL_TYPES,
  parseLlamaConfig,
  readLlamaConfig,
} from "../nn/config.js";
import { loadLlama } from "../nn/folder.js";
import { Llama } from "../nn/llama.js";
import { Trainer } from "../optim/trainer.js";
import { type Comm, sumNumbers } from "../parallel/comm.js";
import { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { runLoop } from "../run/loop.js";
import { isValidation, visited } from "../run/order.js";
import { batchSizeSchema, lengthOf, pathsSchema, rateFalls, tellHeldOut, trainingSettings } from "../run/settings.js";
import type { Arena } from "../tensor/arena.js";
import { Tape } from "../tensor/tensor.js";
import { PRETOKENIZERS } from "../tokenizer/pretokenize.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { trainBpeOn, trainBpeTogether } from "../tokenizer/train.js";
import { goOn, saveCheckpoint, saveResult } from "./checkpoint.js";
import { backwardMeanLoss, meanLoss } from "./clm.js";

const natural = z.int().min(1);

export const modelSchema = z
  .strictObject({
    modelType: z.enum(MODEL_TYPES).optional(),
    hiddenSize: natural,
    intermediateSize: natural,
    numLayers: natural.max(MAX_LAYERS),
    numHeads: natural,
    numKvHeads: natural.optional(),
    headDim: natural.optional(),
    maxPositionEmbeddings: natural.optional(),
    ropeTheta: z.number().positive().default(10000),
    rmsNormEps: z.number().positive().default(1e-5),
    tieWordEmbeddings: z.boolean().default(true),
    initializerRange: z.number().positive().default(0.02),
  })
  .superRefine(({ hiddenSize, numHeads, numKvHeads = 1, headDim }, { addIssue }) => {
    const wrong = (key: string, input: number, message: string): void =>
      addIssue({ code: "custom", path: [key], input, message });
    if (numHeads % numKvHeads !== 0)
      wrong(
        "numKvHeads",
        numKvHeads,
        `a divisor of numHeads (${numHeads}): each key and value head serves as many query heads`,
      );
    // Rotary embeddings turn a head's numbers in pairs.
    if (headDim !== undefined && headDim % 2 !== 0) wrong("headDim", headDim, "even");
    else if (headDim === undefined && hiddenSize % (2 * numHeads) !== 0)
      wrong(
        "numHeads",
        numHeads,
        `such that hiddenSize (${hiddenSize}) divided by it is whole and even, unless headDim is given`,
      );
  });

export const tokenizerSchema = z.union([
  z.string().min(1),
  z.strictObject({
    vocabSize: natural,
    pretokenizer: z.enum(PRETOKENIZERS).default("llama3"),
    specialTokens: z.array(z.string().min(1)).min(1).default(["<|endoftext|>"]),
    /** Pairs rarer than this are not merged: in text without spaces it keeps whole sentences from becoming tokens. */
    minFrequency: natural.default(2),
    /** Instruction files whose prompts count as text too: some characters only questions use. */
    prompts: z.array(z.string().min(1)).default([]),
  }),
]);

export const pretrainSchema = z
  .strictObject({
    stage: z.literal("pretrain").optional(),
    ...trainingSettings,
    /** The shape of a new model; not needed with `from`. */
    model: modelSchema.optional(),
    /** A Hugging Face folder to go on training from. */
    from: z.string().optional(),
    tokenizer: tokenizerSchema.optional(),
    data: z.strictObject({
      /** Documents, or token shards: the folder of a corpus build, or of its shards alone. */
      train: pathsSchema,
      validation: pathsSchema.optional(),
      /** Share of the documents kept for validation when no files are named for it. */
      validationShare: z.number().min(0).lt(1).default(0.02),
      contextLength: z.int().min(2).default(256),
    }),
    /** Rows of a micro-batch. */
    batchSize: batchSizeSchema.default(16),
    /** Validation batches at most; 0: all. */
    evalBatches: z.int().min(0).default(50),
    samples: z
      .strictObject({
        prompts: z.array(z.string()).default([]),
        maxTokens: natural.default(40),
        temperature: z.number().min(0).default(0),
      })
      .prefault({}),
  })
  .refine(
    ({ from, model, data }) =>
      from !== undefined || data.contextLength <= (model?.maxPositionEmbeddings ?? data.contextLength),
    {
      path: ["data", "contextLength"],
      message: "at most model.maxPositionEmbeddings",
    },
  )
  .refine(...rateFalls);
export type PretrainConfig = z.output<typeof pretrainSchema>;

/** Of a process's part of a micro-batch: no machine holds the activations of as many. */
const MOST_TOKENS = 2 ** 24;

/** Trains in `run`, and leaves the model in its folder model/. */
export async function pretrain(config: PretrainConfig, run: RunFolder): Promise<void> {
  const device = openCpu({ threads: config.threads });
  const resumed = run.startStep > 0 ? run.checkpointDir(run.startStep) : undefined;

  const grid = Grid.of(device, run.world, config.parallel, run.dir);
  const tokenizer = await tokenizerOf(config, resumed, run);
  const rejected: Rejected[] = [];
  const { train, validation } = await tokenize(device, config, tokenizer, run, rejected);
  for (const shards of [train, validation]) if (shards) run.own(shards);
  run.setAside(rejected);
  Grid.agree(grid.world, "data", JSON.stringify(train.manifest));

  const { contextLength } = config.data;
  const model = run.own(
    resumed
      ? loadLlama(device, resumed, config.precision, { grid })
      : config.from
        ? loadLlama(device, config.from, config.precision, { grid })
        : newModel(device, config, tokenizer, grid),
  );
  if (tokenizer.vocabSize > model.config.vocabSize)
    throw tooManyTokens(tokenizer, `${config.from}`, model.config.vocabSize);
  model.recompute = config.recompute;
  if (contextLength > model.config.maxPositionEmbeddings)
    throw new UserError(
      `data.contextLength is ${contextLength}, but the model was made for ${describePositions(model.config)}.`,
      2,
    );
  const { tokens, documents } = train.manifest;
  // Of a corpus that is shorter than a row, all.
  const rowLength = Math.min(contextLength, tokens);
  if (rowLength < contextLength)
    console.error(`data.contextLength is ${contextLength}, and there are ${tokens} tokens: each row is all of them`);
  const rows = train.rows(contextLength);
  const mine = grid.share(config.batchSize, "batchSize");
  if ((mine.to - mine.from) * rowLength >= MOST_TOKENS)
    throw new UserError(
      `batchSize is ${config.batchSize}, and a row has ${rowLength} tokens: at once fewer than ${MOST_TOKENS} are worked on. Make batchSize smaller; gradientAccumulation gives as large a step.`,
      2,
    );
  const rowsPerStep = config.batchSize * config.gradientAccumulation;
  const { steps, told } = lengthOf(config, rows, rowsPerStep, ` x ${rowLength} tokens`);
  const trainer = run.own(
    new Trainer(model.trainable, config.optimizer, config.schedule, steps, {
      memory: grid.stateMemory(),
      checkEvery: config.parallel.checkEvery,
    }),
  );
  const trained = { run, model, trainer, tokenizer };
  if (resumed) goOn(trained, resumed);
  console.error(
    `${(model.count / 1e6).toFixed(2)}M parameters, a vocabulary of ${model.config.vocabSize}, ${tokens} tokens in ${documents} documents, ` +
      `${told}, ${device.isa} on ${device.threads} threads`,
  );
  console.error(`${trainer.memory()}${grid.world.size > 1 ? ", of this process" : ""}`);

  const tape = run.own(new Tape(device));
  let batches: PretrainBatch[] = [];
  await runLoop(run, config, {
    steps,
    peakFlops: () => grid.peakFlops(config.precision),
    step(step) {
      batches = Array.from({ length: config.gradientAccumulation }, (_, micro) => {
        const first = ((step - 1) * config.gradientAccumulation + micro) * config.batchSize + mine.from;
        return train.batch(
          Array.from({ length: mine.to - mine.from }, (_, i) => visited(first + i, rows, config.seed)),
          contextLength,
        );
      });
      const metrics = trainer.step(step, () => backwardMeanLoss(model, tape, batches).loss);
      const all = (of: (batch: PretrainBatch) => number): number =>
        grid.data.size * batches.reduce((n, b) => n + of(b), 0);
      return { tokens: all((b) => b.ids.length), flops: all((b) => model.trainingFlops(b, b.targets)), metrics };
    },
    ...(validation && { evaluate: () => evaluate(model, validation, config, tape.arena) }),
    sample: () => sampleText(model, tokenizer, config),
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

async function tokenizerOf(config: PretrainConfig, resumed: string | undefined, run: RunFolder): Promise<Tokenizer> {
  if (resumed) return Tokenizer.load(resumed);
  const shards = givenShards(config.data);
  const wanted = config.tokenizer ?? config.from ?? shards?.tokenizer;
  if (config.from && config.tokenizer) checkTokenizer(config.from, config.tokenizer);
  if (wanted === undefined)
    throw new UserError(
      `tokenizer is missing; name a folder with a tokenizer.json${shards ? ", the one that the token shards were made with" : ', or give "vocabSize" to train one'}.`,
      2,
    );
  if (typeof wanted === "string") return Tokenizer.load(wanted);
  if (shards)
    throw new UserError(
      `${shards.train} holds token shards, which a tokenizer has made already: name its folder under \`tokenizer\`.`,
      2,
    );
  if (config.model?.modelType === "qwen2" && wanted.pretokenizer !== "qwen")
    throw new UserError(
      `model.modelType is qwen2, and tokenizer.pretokenizer ${wanted.pretokenizer}: Transformers cuts texts for every such model as Qwen's tokenizer does. Set it to qwen, or model.modelType to qwen3 or llama.`,
      2,
    );
  const trained = await trainTokenizer(config, wanted, run.world);
  if (!run.world) return trained!;
  const dir = `${run.dir}/data/tokenizer`;
  await run.once(async () => trained!.save(dir));
  return Tokenizer.load(dir);
}

const tooManyTokens = (tokenizer: Tokenizer, from: string, vocabSize: number): UserError =>
  new UserError(
    `The tokenizer has ${tokenizer.vocabSize} tokens, but the model ${from} only ${vocabSize}: it is another model's. Leave out \`tokenizer\` to take the model's own.`,
    2,
  );

/** A model that is trained on knows its tokens by their number: those must be the same, and more may follow. */
function checkTokenizer(from: string, wanted: NonNullable<PretrainConfig["tokenizer"]>): void {
  if (typeof wanted === "string") {
    const [known, given] = [Tokenizer.load(from), Tokenizer.load(wanted)];
    const ids = Array.from({ length: known.vocabSize }, (_, id) => id);
    const { vocabSize } = readLlamaConfig(from);
    if (ids.every((id) => known.idToToken(id) === given.idToToken(id))) {
      if (given.vocabSize <= vocabSize) return;
      throw tooManyTokens(given, from, vocabSize);
    }
  }
  throw new UserError(
    `tokenizer ${typeof wanted === "string" ? `is ${wanted}` : "asks for a new one"}, but \`from\` goes on with the model ${from}, whose tokens have other numbers. Set tokenizer to ${from}, or leave it out.`,
    2,
  );
}

/** Of several processes each counts the words of its share of the documents, and the first has the tokenizer. */
async function trainTokenizer(
  config: PretrainConfig,
  wanted: Exclude<z.output<typeof tokenizerSchema>, string>,
  world?: Comm,
): Promise<Tokenizer | undefined> {
  const rejected: Rejected[] = [];
  const texts = async function* () {
    let documents = 0;
    for await (const { text } of readDocuments(config.data.train, rejected, undefined, world)) {
      documents++;
      yield text;
    }
    if (world) {
      world.barrier(true);
      [documents] = sumNumbers(world, [documents]);
    }
    if (documents === 0) throw noDocuments(config.data.train, rejected);
    if (world && world.rank > 0) return;
    if (wanted.prompts.length > 0)
      for (const { messages } of await readConversations(wanted.prompts, []))
        yield* messages.filter((m) => m.role === "user").map((m) => m.content);
  };
  return world ? trainBpeTogether(texts(), wanted, world) : trainBpeOn(texts(), wanted);
}

/**
 * Token shards that `data.train` names: the folder of a corpus build, which brings its validation and its tokenizer, or a
 * folder of shards. Undefined where it names documents.
 */
function givenShards({
  train,
}: PretrainConfig["data"]):
  | { train: string; validation: string | undefined; tokenizer: string | undefined }
  | undefined {
  const folderOf = (path: string): string | undefined =>
    [`${path}/shards/train`, path].find((dir) => readManifest(dir));
  const found = train.map(folderOf).filter((dir) => dir !== undefined);
  if (found.length === 0) return undefined;
  if (train.length > 1)
    throw new UserError(
      `data.train: ${found[0]} holds token shards; they are one corpus, and nothing can be named beside them.`,
      2,
    );
  const build = /^(.*)\/shards\/train\/*$/.exec(found[0])?.[1];
  const own = (path: string, file: string): string | undefined =>
    build !== undefined && existsSync(`${build}/${path}/${file}`) ? `${build}/${path}` : undefined;
  return {
    train: found[0],
    validation: own("shards/validation", "manifest.json"),
    tokenizer: own("tokenizer", "tokenizer.json"),
  };
}

/**
 * The token shards to train on, mapped: those that are given, or documents tokenized into the run's folder data/, once.
 * Without a held-out document there is no validation.
 */
async function tokenize(
  device: Device,
  { data }: PretrainConfig,
  tokenizer: Tokenizer,
  run: RunFolder,
  rejected: Rejected[],
): Promise<{ train: Shards; validation: Shards | undefined }> {
  const given = givenShards(data);
  const held = data.validation ? givenShards({ ...data, train: data.validation })?.train : given?.validation;
  const trainDir = given?.train ?? `${run.dir}/data/train`;
  const heldDir = held ?? `${run.dir}/data/validation`;
  await run.once(async () => {
    if (readManifest(trainDir) && (readManifest(heldDir) || (given && !data.validation))) return;
    const share = data.validation ? 0 : data.validationShare;
    const side = async function* (held: boolean, aside: Rejected[]) {
      for await (const d of readDocuments(data.train, aside)) if (isValidation(d.id, share) === held) yield d;
    };
    if (!given) await writeShards(side(false, rejected), tokenizer, trainDir);
    // The second pass over the same files meets the same bad records: they are listed already.
    await writeShards(data.validation ? readDocuments(data.validation, rejected) : side(true, []), tokenizer, heldDir);
  });
  if (readManifest(trainDir)?.tokens === 0) {
    const held = data.validation ? 0 : (readManifest(heldDir)?.documents ?? 0);
    if (held === 0) throw noDocuments(data.train, rejected);
    throw new UserError(
      `${data.train.join(", ")}: ${held === 1 ? "the document is" : `all ${held} documents are`} held out (data.validationShare is ${data.validationShare}), and none is left to train on. Make that smaller, or 0.`,
    );
  }
  tellHeldOut(data, readManifest(heldDir)?.tokens ?? 0);
  const open = (dir: string): Shards => new Shards(device, dir, tokenizer);
  return { train: open(trainDir), validation: readManifest(heldDir)?.tokens ? open(heldDir) : undefined };
}

const noDocuments = (files: readonly string[], rejected: readonly Rejected[]): UserError =>
  new UserError(`${files.join(", ")}: there is no document to train on.${firstReason(rejected)}`);

/** Positions of a new model: as many as are asked for, else a row's, and 512 at the least. */
export const positionsOfNew = (asked: number | undefined, contextLength: number): number =>
  asked ?? Math.max(contextLength, 512);

function newModel(device: Device, config: PretrainConfig, tokenizer: Tokenizer, grid: Grid): Llama {
  const { model: shape, data } = config;
  if (!shape)
    throw new UserError("model is missing; give the shape of a new model, or a folder to start from with `from`.", 2);
  const headDim = shape.headDim ?? shape.hiddenSize / shape.numHeads;
  const llama: LlamaConfig = parseLlamaConfig(
    {
      model_type: shape.modelType,
      sliding_window: null,
      vocab_size: tokenizer.vocabSize,
      hidden_size: shape.hiddenSize,
      intermediate_size: shape.intermediateSize,
      num_hidden_layers: shape.numLayers,
      num_attention_heads: shape.numHeads,
      num_key_value_heads: shape.numKvHeads,
      head_dim: headDim,
      max_position_embeddings: positionsOfNew(shape.maxPositionEmbeddings, data.contextLength),
      rope_theta: shape.ropeTheta,
      rms_norm_eps: shape.rmsNormEps,
      tie_word_embeddings: shape.tieWordEmbeddings,
      initializer_range: shape.initializerRange,
      bos_token_id: tokenizer.bosId,
      eos_token_id: tokenizer.eosId,
      pad_token_id: tokenizer.padId,
    },
    "model",
  );
  const model = new Llama(device, llama, config.precision, { grid });
  model.parameters.initialize(config.seed, shape.initializerRange);
  return model;
}

/** Validation loss (nats a token), perplexity = exp(loss), and bits per byte, which does not depend on the tokenizer. */
function evaluate(model: Llama, validation: Shards, config: PretrainConfig, arena: Arena): Record<string, number> {
  const { contextLength } = config.data;
  const rows = validation.rows(contextLength);
  const batches = function* () {
    const limit = config.evalBatches === 0 ? rows : Math.min(rows, config.evalBatches * config.batchSize);
    for (let row = 0; row < limit; row += config.batchSize) {
      const count = Math.min(config.batchSize, limit - row);
      yield validation.batch(
        Array.from({ length: count }, (_, i) => row + i),
        contextLength,
      );
    }
  };
  const { loss } = meanLoss(model, batches(), arena);
  const { tokens, bytes } = validation.manifest;
  return { validationLoss: loss, perplexity: Math.exp(loss), bitsPerByte: (loss / Math.LN2) * (tokens / bytes) };
}

/** How the model continues the prompts. */
function sampleText(model: Llama, tokenizer: Tokenizer, config: PretrainConfig): string | undefined {
  const { prompts, maxTokens, temperature } = config.samples;
  if (prompts.length === 0) return undefined;
  const ids = prompts.map((p) => (p === "" ? [tokenizer.separatorId ?? 0] : tokenizer.encode(p)));
  const { maxPositionEmbeddings: context } = model.config;
  const long = ids.findIndex((p) => p.length >= context);
  if (long >= 0)
    throw new UserError(
      `samples.prompts.${long} has ${ids[long].length} tokens; the model's context of ${context} leaves no room for more.`,
      2,
    );
  const stop = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  return generate(model, ids, { maxTokens, temperature, seed: config.seed, stop })
    .map((reply, i) => `${prompts[i]}|${tokenizer.decode(reply.ids, { skipSpecialTokens: true, continues: true })}`)
    .join("\n");
}
