/**
 * Generation with a KV cache: many prompts at once, each row sampled by its own counter-based random numbers, so that
 * a reply depends on (seed, row) and not on what else is in the batch.
 */
import { setImmediate } from "node:timers/promises";
import { dtypeBytes, type Ptr } from "../device/device.js";
import type { KvCache } from "../nn/kv-cache.js";
import { type Llama, packSequences } from "../nn/llama.js";
import { UserError } from "../run/errors.js";
import { dtypeOf, Tape } from "../tensor/tensor.js";
import { Decoder, isWhole, SHORT } from "./decoder.js";
import { checkSampling, Sampler, type SamplingOptions } from "./sampling.js";
import { PackedWeights, type ReadyWeights } from "./weights.js";

export interface GenerateOptions extends SamplingOptions {
  maxTokens: number;
  /** Ids that end a reply; the id itself is kept as its last token. */
  stop?: readonly number[];
  /** The model's weights as the caller has made them ready; else they are packed here for a few long replies, where that is faster. */
  weights?: ReadyWeights;
  /** Called with every new token of every row; false ends that row. */
  onToken?: (row: number, id: number) => boolean | undefined;
}

/** Those that are no numbers. */
const OTHERS = ["stop", "weights", "onToken"] satisfies (keyof GenerateOptions)[];

export interface Generated {
  /** The new tokens, a stop token included when one came. */
  ids: number[];
  /** log p of each new token under softmax(logits / temperature). */
  logProbs: number[];
  finish: "stop" | "length";
}

/**
 * Continues every prompt (arrays of ids, none empty). Throws UserError for options that are no such, and when a prompt leaves no room in the
 * context. Several threads of a program may do so at once, each with a model that it has loaded itself (see openCpu).
 */
export function generate(model: Llama, prompts: readonly ArrayLike<number>[], options: GenerateOptions): Generated[] {
  const steps = generation(model, prompts, options);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/**
 * The same, and between two tokens the program may do something else: several may run at once, on one model too. Rejects with the reason
 * of `signal` when it is aborted; what `onToken` was told until then is true.
 */
export async function generateAsync(
  model: Llama,
  prompts: readonly ArrayLike<number>[],
  { signal, ...options }: GenerateOptions & { signal?: AbortSignal },
): Promise<Generated[]> {
  const steps = generation(model, prompts, options);
  try {
    for (;;) {
      signal?.throwIfAborted();
      const { done, value } = steps.next();
      if (done) return value;
      await setImmediate();
    }
  } finally {
    steps.return([]); // gives the memory back, where it was not worked to its end
  }
}

/** Stops after each token. */
function* generation(
  model: Llama,
  prompts: readonly ArrayLike<number>[],
  options: GenerateOptions,
): Generator<void, Generated[], void> {
  const { device, config } = model;
  checkSampling(options, OTHERS);
  const { maxTokens } = options;
  const stop = new Set(options.stop ?? []);
  const context = config.maxPositionEmbeddings;
  checkPrompts(prompts, context, config.vocabSize);
  const mustBeOpen = (): void => {
    model.mustBeOpen();
    options.weights?.mustBeOpen();
  };
  mustBeOpen();
  const longest = prompts.reduce((n, p) => Math.max(n, p.length), 0);
  const length = Math.min(context, longest + maxTokens);
  const results = prompts.map((): Generated => ({ ids: [], logProbs: [], finish: "length" }));
  if (prompts.length === 0 || maxTokens <= 0) return results;

  const tape = new Tape(device, false);
  const cache = model.newCache(prompts.length, length);
  const short = prompts.reduce((n, p) => n + (p.length <= SHORT ? p.length : 0), 0);
  const whole = isWhole(model);
  const packed = whole && !options.weights ? PackedWeights.worthwhile(model, prompts.length, maxTokens) : undefined;
  const decoder = whole ? new Decoder(model, cache, options.weights ?? packed, short) : undefined;
  const sampler = new Sampler(device, prompts.length, length + 1, options);
  const V = config.vocabSize;
  /** Cache row -> prompt. Rows of finished replies are dropped from the end by moving the last row's work up. */
  const active = prompts.map((_, i) => i);
  const past = Int32Array.from(prompts, (p) => p.length);
  const current = new Int32Array(prompts.length);

  const sample = (logits: Ptr): void => {
    sampler.draw(
      logits,
      V,
      active.map((row) => ({ row, position: results[row].ids.length })),
    );
    active.forEach((row, b) => {
      current[b] = sampler.ids[b];
      results[row].ids.push(current[b]);
      results[row].logProbs.push(sampler.logProbs[b]);
    });
  };

  try {
    prompts.forEach((p, b) => {
      sampler.remember(b, p);
    });
    sample(prefill(model, tape, prompts, cache, decoder));
    // What the prompts needed is not needed again.
    tape.close();
    for (;;) {
      // A reply ends at a stop token, at its length, or at the end of the context; its row is taken over by the last one.
      for (let b = active.length - 1; b >= 0; b--) {
        const row = active[b];
        const reply = results[row];
        const stopped = stop.has(current[b]);
        const halted = options.onToken?.(row, current[b]) === false;
        if (stopped || halted) reply.finish = "stop";
        else if (reply.ids.length < maxTokens && past[b] < length) continue;
        const end = active.length - 1;
        if (b !== end) {
          moveCacheRow(model, cache, end, b);
          sampler.move(end, b);
          active[b] = active[end];
          past[b] = past[end];
          current[b] = current[end];
        }
        active.pop();
      }
      if (active.length === 0) return results;
      yield;
      mustBeOpen(); // they may have been closed meanwhile
      const B = active.length;
      if (decoder) decoder.step(current, past, B);
      const logits = decoder ? decoder.logits : tapeStep(model, tape, current.slice(0, B), past.slice(0, B), cache);
      for (let b = 0; b < B; b++) past[b]++;
      sample(logits);
      tape.reset();
    }
  } finally {
    decoder?.close();
    packed?.close();
    sampler.close();
    cache.close();
    tape.close();
  }
}

function checkPrompts(prompts: readonly ArrayLike<number>[], context: number, vocabSize: number): void {
  if (!Array.isArray(prompts) || prompts.some((p) => typeof p !== "object" || p === null))
    throw new UserError(
      "prompts must be a list of prompts, each an array of token ids: [ids], and not ids, for one.",
      2,
    );
  prompts.forEach((p, i) => {
    if (p.length === 0) throw new UserError(`Prompt ${i + 1} is empty: give at least one token to continue from.`);
    if (p.length >= context)
      throw new UserError(
        `Prompt ${i + 1} has ${p.length} tokens; the model's context of ${context} leaves no room for a reply.`,
      );
    for (let t = 0; t < p.length; t++)
      if (!(p[t] < vocabSize && p[t] >= 0 && Number.isInteger(p[t])))
        throw new UserError(
          `Prompt ${i + 1} holds token ${p[t]}, but the model's vocabulary has ${vocabSize}: is this the model's own tokenizer?`,
        );
  });
}

/**
 * Fills the cache; logits [prompts, V] of their last tokens. Short prompts go through the decoder, each as it would alone: how a
 * prompt is worked on depends on its own length only.
 */
function prefill(
  model: Llama,
  tape: Tape,
  prompts: readonly ArrayLike<number>[],
  cache: KvCache,
  decoder: Decoder | undefined,
): Ptr {
  const { device, precision, config } = model;
  const bytes = config.hiddenSize * dtypeBytes(dtypeOf(precision));
  const [short, long]: number[][] = [[], []];
  prompts.forEach((p, i) => {
    (decoder && p.length <= SHORT ? short : long).push(i);
  });
  const pick = (rows: readonly number[]): ArrayLike<number>[] => rows.map((i) => prompts[i]);
  if (!decoder) {
    const batch = packSequences(prompts);
    const hidden = model.prefill(tape, batch, cache, long);
    return model.logits(
      tape,
      hidden,
      batch.cuSeqlens.slice(1).map((end) => end - 1),
    ).ptr;
  }
  const states = tape.tensor(dtypeOf(precision), [prompts.length, config.hiddenSize]);
  const copy = (i: number, from: Ptr): void =>
    device.bytes(states.ptr + i * bytes, bytes).set(device.bytes(from, bytes));
  decoder.prefill(pick(short), short, (i, hidden) => copy(short[i], hidden));
  if (long.length > 0) {
    const batch = packSequences(pick(long));
    const hidden = model.prefill(tape, batch, cache, long);
    long.forEach((i, s) => {
      copy(i, hidden.ptr + (batch.cuSeqlens[s + 1] - 1) * bytes);
    });
  }
  return decoder.project(states.ptr, prompts.length, false);
}

/** The step of a model that several processes share: [B, V] logits. */
function tapeStep(model: Llama, tape: Tape, ids: Int32Array, past: Int32Array, cache: KvCache): Ptr {
  const state = model.decode(tape, ids, past, cache);
  return model.logits(tape, state, Int32Array.from(ids.keys())).ptr;
}

function moveCacheRow({ device, precision }: Llama, cache: KvCache, from: number, to: number): void {
  const bytes = cache.rowSize * dtypeBytes(dtypeOf(precision));
  for (const p of [...cache.keys, ...cache.values])
    device.bytes(p + to * bytes, bytes).set(device.bytes(p + from * bytes, bytes));
}
