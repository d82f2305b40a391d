/** The decoder made for few rows against the model's own forward pass: whole, with adapters, in int8, and in any company. */
import { afterAll, describe, expect, test } from "vitest";
import { offeredIsas, openCpu } from "../../src/device/cpu.js";
import { Decoder } from "../../src/generate/decoder.js";
import { generate, generateAsync } from "../../src/generate/generate.js";
import { Int8Weights, PackedWeights } from "../../src/generate/weights.js";
import { type ModelType, parseLlamaConfig } from "../../src/nn/config.js";
import { Llama, type Precision, packSequences } from "../../src/nn/llama.js";
import { attachLora } from "../../src/nn/lora.js";
import { LORA_TARGETS } from "../../src/run/settings.js";
import { Tape } from "../../src/tensor/tensor.js";

/** Grouped queries, sizes that fit no block, a matrix of its own for the output; prompts of over 64 tokens go another way. */
const CONFIG = parseLlamaConfig(
  {
    vocab_size: 301,
    hidden_size: 72,
    intermediate_size: 100,
    num_hidden_layers: 3,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    head_dim: 12,
    max_position_embeddings: 128,
    tie_word_embeddings: false,
  },
  "test",
);
const device = openCpu();
const models: Llama[] = [];
afterAll(() => {
  for (const model of models) model.close();
});
function make(precision: Precision, on = device, modelType: ModelType = "llama"): Llama {
  const model = new Llama(on, { ...CONFIG, modelType }, precision, { trainable: false });
  model.parameters.initialize(7, 0.15);
  for (const { qkvBias, headNorms } of model.layers)
    for (const [mean, p] of [[0, qkvBias] as const, [1, headNorms?.query] as const, [1, headNorms?.key] as const])
      if (p) on.randomNormal(p.ptr, p.size, 5, p.size, mean, 0.5, p.dtype);
  models.push(model);
  return model;
}
const ids = (n: number, seed: number): number[] => Array.from({ length: n }, (_, i) => (seed * 31 + i * i * 7) % 301);

/** Logits of the last token of `sequence`, by the forward pass of training. */
function whole(model: Llama, sequence: number[]): Float32Array {
  const tape = new Tape(model.device, false);
  const hidden = model.forward(tape, packSequences([sequence]));
  const logits = model.logits(tape, hidden, Int32Array.of(sequence.length - 1)).toArray();
  tape.close();
  return logits;
}

/** Logits of each sequence's last token: all but it prefilled, it decoded, all sequences in one batch. */
function decoded(model: Llama, sequences: number[][], int8?: Int8Weights): Float32Array[] {
  const V = model.config.vocabSize;
  const tape = new Tape(model.device, false);
  const cache = model.newCache(sequences.length, 64);
  const decoder = new Decoder(model, cache, int8);
  const starts = sequences.map((s) => s.slice(0, -1));
  model.prefill(
    tape,
    packSequences(starts),
    cache,
    starts.map((_, i) => i),
  );
  const last = Int32Array.from(sequences, (s) => s[s.length - 1]);
  const past = Int32Array.from(starts, (s) => s.length);
  decoder.step(last, past, sequences.length);
  const all = model.device.f32(decoder.logits, sequences.length * V).slice();
  decoder.close();
  cache.close();
  tape.close();
  return sequences.map((_, i) => all.slice(i * V, (i + 1) * V));
}

/** Root mean square of the difference as a share of the logits' spread (their standard deviation). */
function difference(a: Float32Array, b: Float32Array): number {
  const mean = b.reduce((s, x) => s + x, 0) / b.length;
  const spread = Math.sqrt(b.reduce((s, x) => s + (x - mean) ** 2, 0) / b.length);
  return Math.sqrt(a.reduce((m, x, i) => m + (x - b[i]) ** 2, 0) / a.length) / spread;
}

const LENGTHS = [2, 17, 33, 5, 40];
/** Measured: 1e-6 and 0.012, with adapters 0.022. */
const TOLERANCE = { fp32: 1e-5, bf16: 0.03 };

describe.each([
  ["fp32", "llama"],
  ["bf16", "llama"],
  ["fp32", "qwen2"],
  ["bf16", "qwen2"],
  ["fp32", "qwen3"],
  ["bf16", "qwen3"],
] as const)("%s, %s", (precision, modelType) => {
  test("a decoded token has the logits of the whole forward pass, on every instruction set", () => {
    for (const isa of offeredIsas()) {
      const model = make(precision, openCpu({ isa, threads: 2 }), modelType);
      const sequences = LENGTHS.map((n, i) => ids(n, i + 1));
      decoded(model, sequences).forEach((logits, i) => {
        expect(difference(logits, whole(model, sequences[i]))).toBeLessThan(TOLERANCE[precision]);
      });
    }
  });

  test("adapters on every matrix", () => {
    const model = make(precision, device, modelType);
    attachLora(model, { rank: 5, alpha: 10, targets: [...LORA_TARGETS] }, 3);
    const plain = whole(model, ids(9, 4));
    for (const p of model.lora!.parameters.parameters) device.randomNormal(p.ptr, p.size, 11, p.size, 0, 0.1, p.dtype); // B is zero at first
    const sequences = LENGTHS.map((n, i) => ids(n, i + 1));
    expect(difference(whole(model, ids(9, 4)), plain)).toBeGreaterThan(0.3);
    decoded(model, sequences).forEach((logits, i) => {
      expect(difference(logits, whole(model, sequences[i]))).toBeLessThan(TOLERANCE[precision]);
    });
  });

  test("short prompts in one piece or several, into any rows of the cache, leave what the forward pass leaves", () => {
    const model = make(precision, device, modelType);
    const sequences = [30, 2, 41, 64, 1, 17].map((n, i) => ids(n, i + 1));
    const order = [3, 0, 5, 1, 4, 2];
    for (const promptTokens of [0, 100, 1000]) {
      const cache = model.newCache(6, 64);
      const decoder = new Decoder(model, cache, undefined, promptTokens || 64);
      const size = precision === "fp32" ? 4 : 2;
      const states = device.alloc(6 * 72 * size);
      decoder.prefill(sequences, order, (i, hidden) => {
        device.bytes(states + i * 72 * size, 72 * size).set(device.bytes(hidden, 72 * size));
      });
      const logits = device.f32(decoder.project(states, 6), 6 * 301).slice();
      sequences.forEach((s, i) => {
        const row = logits.slice(i * 301, (i + 1) * 301);
        expect(difference(row, whole(model, s))).toBeLessThan(TOLERANCE[precision]);
      });
      // And the cache holds what the next token needs: row order[i] is sequence i.
      const room = sequences.flatMap((s, i) => (s.length < 64 ? [i] : []));
      const next = Int32Array.from({ length: 6 }, (_, row) => (order.indexOf(row) * 7) % 301);
      const past = Int32Array.from({ length: 6 }, (_, row) => Math.min(63, sequences[order.indexOf(row)].length));
      decoder.step(next, past, 6);
      for (const i of room) {
        const row = order[i];
        const found = device.f32(decoder.logits, 6 * 301).slice(row * 301, (row + 1) * 301);
        expect(difference(found, whole(model, [...sequences[i], next[row]]))).toBeLessThan(TOLERANCE[precision]);
      }
      decoder.close();
      cache.close();
      device.free(states, 6 * 72 * size);
    }
  });

  test("a reply is the same bytes alone and among others, rows that end early and all", () => {
    const model = make(precision, device, modelType);
    const prompts = [3, 20, 70, 11, 2, 90, 5].map((n, i) => ids(n, i + 1));
    const options = {
      maxTokens: 20,
      temperature: 1,
      topP: 0.9,
      repetitionPenalty: 1.2,
      seed: 5,
      stop: [...Array(12).keys()],
    };
    const together = generate(model, prompts, options);
    expect(new Set(together.map((r) => r.ids.length)).size).toBeGreaterThan(1);
    prompts.forEach((prompt, i) => {
      expect(generate(model, [prompt], { ...options, firstRow: i })[0]).toEqual(together[i]);
    });
  });
});

test("log-probabilities that generate tells are those of the model", () => {
  const model = make("fp32");
  const [reply] = generate(model, [ids(6, 2)], { maxTokens: 10, temperature: 0.7, seed: 1 });
  const sequence = [...ids(6, 2), ...reply.ids];
  const tape = new Tape(device, false);
  const batch = packSequences([sequence]);
  const targets = Int32Array.from(sequence, (_, i) => (i >= 5 && i + 1 < sequence.length ? sequence[i + 1] : -1));
  const logp = model.logProbs(tape, batch, targets, 0.7).toArray();
  tape.close();
  reply.logProbs.forEach((p, i) => {
    expect(p).toBeCloseTo(logp[5 + i], 4);
  });
});

describe("int8", () => {
  /** Logits may be off by this share of their spread at most, and on average by half of it (measured: 0.073 and 0.026). */
  const LARGEST = 0.1;

  test("logits stay beside those of bf16, and the likeliest token is nearly always the same", () => {
    for (const isa of offeredIsas()) {
      const model = make("bf16", openCpu({ isa, threads: 2 }));
      const int8 = new Int8Weights(model);
      const sequences = Array.from({ length: 40 }, (_, i) => ids(2 + (i % 9), i + 1));
      const exact = decoded(model, sequences);
      const rounded = decoded(model, sequences, int8);
      let [same, error] = [0, 0];
      const best = (x: Float32Array): number => x.indexOf(Math.max(...x));
      rounded.forEach((logits, i) => {
        const off = difference(logits, exact[i]);
        expect(off).toBeGreaterThan(0); // it is int8 that ran
        expect(off).toBeLessThan(LARGEST);
        error += off / sequences.length;
        if (best(logits) === best(exact[i])) same++;
      });
      expect(error).toBeLessThan(LARGEST / 2);
      expect(same).toBeGreaterThanOrEqual(36);
      int8.close();
    }
  });

  test("greedy text is usually that of bf16, and always the same again", () => {
    const model = make("bf16");
    const int8 = new Int8Weights(model);
    const prompts = Array.from({ length: 20 }, (_, i) => ids(4, i + 1));
    const exact = generate(model, prompts, { maxTokens: 3 });
    const rounded = generate(model, prompts, { maxTokens: 3, weights: int8 });
    const same = rounded.filter((r, i) => `${r.ids}` === `${exact[i].ids}`).length;
    expect(same).toBeGreaterThan(12);
    expect(generate(model, prompts, { maxTokens: 3, weights: int8 })).toEqual(rounded);
    int8.close();
  });
});

describe("packed weights", () => {
  /** Sizes that can be packed: heads and gates begin with whole strips. */
  const packable = (): Llama => {
    const config = { ...CONFIG, hiddenSize: 128, intermediateSize: 192, headDim: 32, numHeads: 4, numKvHeads: 2 };
    const model = new Llama(device, config, "bf16", { trainable: false });
    model.parameters.initialize(7, 0.15);
    models.push(model);
    return model;
  };
  const offered = device.bf12Rows() > 0;

  test("a reply is the same bytes, whether weights are packed by the caller, for this reply, or not at all", () => {
    const model = packable();
    // One matrix with so many zeros that it is left as it is.
    const { down } = model.layers[1];
    const values = device.u16(down.ptr, down.size);
    for (let i = 0; i < values.length; i += 2) values[i] = 0;
    const prompts = [3, 20, 70].map((n, i) => ids(n, i + 1));
    const options = { temperature: 1, seed: 5 };
    const few = generate(model, prompts, { ...options, maxTokens: 20 });
    const many = generate(model, prompts, { ...options, maxTokens: 200 });
    many.forEach((reply, i) => {
      expect(reply.ids.slice(0, 20)).toEqual(few[i].ids);
      expect(reply.logProbs.slice(0, 20)).toEqual(few[i].logProbs);
    });
    const packed = PackedWeights.worthwhile(model, 3, 200);
    expect(packed !== undefined).toBe(offered);
    if (!packed) return;
    expect(packed.of(down)).toBeUndefined();
    expect(packed.of(model.layers[0].down)).toBeDefined();
    expect(packed.bytes).toBeLessThan(0.85 * 2 * model.parameters.count);
    expect(generate(model, prompts, { ...options, maxTokens: 20, weights: packed })).toEqual(few);
    packed.close();
  });

  test("only where it is worth it", () => {
    expect(PackedWeights.worthwhile(packable(), 1, 100)).toBeUndefined();
    expect(PackedWeights.worthwhile(packable(), 17, 200)).toBeUndefined();
    expect(PackedWeights.worthwhile(make("bf16"), 1, 200)).toBeUndefined(); // heads of 12
    expect(PackedWeights.worthwhile(make("fp32"), 1, 200)).toBeUndefined();
  });
});

describe("asynchronous generation", () => {
  const model = make("bf16");
  const prompts = [ids(5, 1), ids(9, 2), ids(70, 3)];
  const options = { maxTokens: 20, temperature: 0.8, seed: 3 };

  test("gives the same replies, several at once on one model, while timers run", async () => {
    const alone = prompts.map((p, i) => generate(model, [p], { ...options, firstRow: i }));
    let ticks = 0;
    const timer = setInterval(() => ticks++, 0);
    const together = await Promise.all(prompts.map((p, i) => generateAsync(model, [p], { ...options, firstRow: i })));
    clearInterval(timer);
    expect(together).toEqual(alone);
    expect(ticks).toBeGreaterThan(0);
  });

  test("ends where it is aborted, and says why", async () => {
    const controller = new AbortController();
    let tokens = 0;
    const onToken = (): undefined => {
      if (++tokens === 4) controller.abort(new Error("enough"));
    };
    const all = generateAsync(model, [prompts[0]], { ...options, temperature: 0, signal: controller.signal, onToken });
    await expect(all).rejects.toThrow("enough");
    expect(tokens).toBe(4);
    await expect(generateAsync(model, [prompts[0]], { ...options, signal: AbortSignal.abort() })).rejects.toThrow();
  });

  test("notices that the model was closed meanwhile", async () => {
    const closing = make("fp32");
    models.pop();
    const onToken = (): undefined => void setImmediate(() => closing.close());
    await expect(generateAsync(closing, [prompts[0]], { ...options, onToken })).rejects.toThrow(/was closed/);
  });
});
