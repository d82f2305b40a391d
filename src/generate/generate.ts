/**
 * Generation with a KV cache: many prompts at once, each row sampled by its own counter-based random numbers, so that
 * a reply depends on (seed, row) and not on what else is in the batch.
 */
import type { Ptr } from "../device/device.js";
import { type Llama, packSequences } from "../nn/llama.js";
import { NonFiniteError, UserError } from "../run/errors.js";
import { Tape } from "../tensor/tensor.js";

export interface GenerateOptions {
  maxTokens: number;
  /** 0: greedy. */
  temperature?: number;
  /** 0: off. */
  topK?: number;
  /** Nucleus (Holtzman et al. 2020); 1: off. */
  topP?: number;
  /** Least share of the best token's probability; 0: off. */
  minP?: number;
  /** CTRL (Keskar et al. 2019); 1: off. */
  repetitionPenalty?: number;
  /** Ids that end a reply; the id itself is kept as its last token. */
  stop?: readonly number[];
  seed?: number;
  /** Number of the first row, where processes share the rows among them. */
  firstRow?: number;
  /** Called with every new token of every row; false ends that row. */
  onToken?: (row: number, id: number) => boolean | undefined;
}

export interface Generated {
  /** The new tokens, a stop token included when one came. */
  ids: number[];
  /** log p of each new token under softmax(logits / temperature). */
  logProbs: number[];
  finish: "stop" | "length";
}

/** Continues every prompt (arrays of ids, none empty). Throws UserError when a prompt leaves no room in the context. */
export function generate(model: Llama, prompts: readonly ArrayLike<number>[], options: GenerateOptions): Generated[] {
  const { device, config } = model;
  const {
    maxTokens,
    temperature = 0,
    topK = 0,
    topP = 1,
    minP = 0,
    repetitionPenalty = 1,
    seed = 0,
    firstRow = 0,
  } = options;
  const stop = new Set(options.stop ?? []);
  const context = config.maxPositionEmbeddings;
  prompts.forEach((p, i) => {
    if (p.length === 0) throw new UserError(`Prompt ${i + 1} is empty: give at least one token to continue from.`);
    if (p.length >= context)
      throw new UserError(
        `Prompt ${i + 1} has ${p.length} tokens; the model's context of ${context} leaves no room for a reply.`,
      );
    for (let t = 0; t < p.length; t++)
      if (p[t] >= config.vocabSize || p[t] < 0)
        throw new UserError(
          `Prompt ${i + 1} holds token ${p[t]}, but the model's vocabulary has ${config.vocabSize}: is this the model's own tokenizer?`,
        );
  });
  const longest = prompts.reduce((n, p) => Math.max(n, p.length), 0);
  const length = Math.min(context, longest + maxTokens);
  const results = prompts.map((): Generated => ({ ids: [], logProbs: [], finish: "length" }));
  if (prompts.length === 0 || maxTokens <= 0) return results;

  const tape = new Tape(device, false);
  const cache = model.newCache(prompts.length, length);
  const V = config.vocabSize;
  /** Cache row -> prompt. Rows of finished replies are dropped from the end by moving the last row's work up. */
  const active = prompts.map((_, i) => i);
  const past = Int32Array.from(prompts, (p) => p.length);
  const current = new Int32Array(prompts.length);

  const sample = (logits: Ptr, rows: readonly number[]): void => {
    const B = rows.length;
    const u = new Float32Array(B);
    rows.forEach((row, b) => {
      u[b] = uniform(seed, firstRow + row, results[row].ids.length, tape);
    });
    const histories =
      repetitionPenalty === 1 ? rows.map(() => []) : rows.map((r) => [...Array.from(prompts[r]), ...results[r].ids]);
    const width = Math.max(1, ...histories.map((h) => h.length));
    const history = new Int32Array(B * width);
    histories.forEach((h, b) => {
      history.set(h, b * width);
    });
    const ids = tape.arena.alloc(B * 4);
    const logp = tape.arena.alloc(B * 4);
    const counts = tape.upload(Int32Array.from(histories, (h) => h.length));
    // biome-ignore format: one call
    device.sample(logits, B, V, tape.upload(history), counts, width, repetitionPenalty, temperature, topK, topP, minP, tape.upload(u), ids, logp);
    current.set(device.i32(ids, B));
    const logps = device.f32(logp, B);
    if (logps.some((p) => Number.isNaN(p))) throw new NonFiniteError("A log-probability of the model");
    rows.forEach((row, b) => {
      results[row].ids.push(current[b]);
      results[row].logProbs.push(logps[b]);
    });
  };

  try {
    const batch = packSequences(prompts);
    const hidden = model.prefill(tape, batch, cache, active);
    const last = Int32Array.from(prompts, (_, i) => batch.cuSeqlens[i + 1] - 1);
    sample(model.logits(tape, hidden, last).ptr, active);
    tape.reset();
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
          moveCacheRow(model, cache, end, b, past[end]);
          active[b] = active[end];
          past[b] = past[end];
          current[b] = current[end];
        }
        active.pop();
      }
      if (active.length === 0) return results;
      const B = active.length;
      const state = model.decode(tape, current.slice(0, B), past.slice(0, B), cache);
      for (let b = 0; b < B; b++) past[b]++;
      sample(
        model.logits(
          tape,
          state,
          Int32Array.from({ length: B }, (_, b) => b),
        ).ptr,
        active,
      );
      tape.reset();
    }
  } finally {
    cache.close();
    tape.arena.close();
  }
}

/** One draw in [0, 1) that depends on (seed, row, position) only. */
function uniform(seed: number, row: number, position: number, tape: Tape): number {
  const at = tape.arena.alloc(4);
  tape.device.randomUniform(at, 1, seed, row * 2 ** 24 + position);
  return tape.device.f32(at, 1)[0];
}

function moveCacheRow(
  model: Llama,
  cache: { maxLength: number; keys: Ptr[]; values: Ptr[] },
  from: number,
  to: number,
  tokens: number,
): void {
  const { numKvHeads, headDim } = model.config;
  const bytes = numKvHeads * headDim * (model.precision === "bf16" ? 2 : 4);
  const row = cache.maxLength * bytes;
  for (const p of [...cache.keys, ...cache.values]) {
    const source = model.device.bytes(p + from * row, tokens * bytes);
    model.device.bytes(p + to * row, tokens * bytes).set(source);
  }
}
