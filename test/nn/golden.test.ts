/** The whole Llama, and its relatives, against Transformers: logits, log probabilities, loss, gradients, packing, config. */
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { describePositions, llamaConfigJson, parseLlamaConfig, readLlamaConfig } from "../../src/nn/config.js";
import { loadLlama, saveLlama } from "../../src/nn/folder.js";
import { type Llama, type Precision, packSequences } from "../../src/nn/llama.js";
import { Tape } from "../../src/tensor/tensor.js";
import * as gold from "./golden.js";

const device = openCpu();
const models = new Map<string, Llama>();
const tape = new Tape(device);
afterAll(() => {
  for (const model of models.values()) model.close();
  tape.arena.close();
});

const SMALL = { vocab_size: 9, hidden_size: 16, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2 };

function load(variant: string, precision: Precision): Llama {
  const key = `${variant} ${precision}`;
  const model = models.get(key) ?? loadLlama(device, gold.folder(variant), precision);
  models.set(key, model);
  return model;
}

/** Logits of every token, row after row. */
function allLogits(model: Llama, sequences: number[][]): Float32Array[] {
  const evaluation = new Tape(device, false, tape.arena);
  const batch = packSequences(sequences);
  const V = model.config.vocabSize;
  const rows = Int32Array.from(batch.ids.keys());
  const logits = model.logits(evaluation, model.forward(evaluation, batch), rows).toArray();
  evaluation.reset();
  return Array.from(rows, (i) => logits.slice(i * V, (i + 1) * V));
}

for (const variant of gold.VARIANTS) {
  const golden = gold.golden(variant);

  describe(variant, () => {
    it("reads the same config in the spellings of Transformers 4 and 5", () => {
      const path = `${gold.folder(variant)}/config.v4.json`;
      const version4 = parseLlamaConfig(gold.readJson(path) as Record<string, unknown>, path);
      expect(version4).toEqual(readLlamaConfig(gold.folder(variant)));
    });

    for (const precision of gold.PRECISIONS)
      for (const name of gold.CASES) {
        const wanted = golden.cases[name];
        const tolerance = gold.TOLERANCE[precision];

        it(`${name}, ${precision}: logits and log probabilities`, () => {
          const model = load(variant, precision);
          const logits = allLogits(model, wanted.inputs);
          const ends = packSequences(wanted.inputs).cuSeqlens;
          wanted.lastLogits.forEach((row, s) => {
            gold.expectNear(logits[ends[s + 1] - 1], row, tolerance, `logits at the end of sequence ${s}`);
          });
          const size = Math.hypot(...logits.map(gold.norm));
          gold.expectNear(logits.map(gold.dot), wanted.logitDots, tolerance, "logits of all tokens", size);

          const { batch, targets } = gold.weighted(wanted.inputs, wanted.targets);
          const evaluation = new Tape(device, false, tape.arena);
          const logProbs = model.logProbs(evaluation, batch, targets).toArray();
          evaluation.reset();
          gold.expectNear(logProbs, wanted.logProbs, tolerance, "log probabilities");
        });

        it(`${name}, ${precision}: loss and gradients`, () => {
          const model = load(variant, precision);
          const { batch, targets, weights } = gold.weighted(wanted.inputs, wanted.targets);
          model.parameters.clearGrads();
          const { logp, loss } = model.loss(tape, batch, targets, weights);
          expect(Math.abs(loss - wanted.loss) / wanted.loss).toBeLessThanOrEqual(tolerance);
          tape.backward(logp);
          tape.reset();
          const grads = gold.gradients(model);
          expect([...grads.keys()].sort()).toEqual(Object.keys(wanted.grads).sort());
          const largest = Math.max(...Object.values(wanted.grads).map((g) => g.norm));
          for (const [parameter, grad] of grads)
            gold.expectSummary(grad, wanted.grads[parameter], tolerance, `gradient of ${parameter}`, largest);
        });
      }

    it("packed documents do not see each other: each as alone", () => {
      const model = load(variant, "fp32");
      const { inputs } = golden.cases.packed;
      const packed = allLogits(model, inputs);
      const alone = inputs.flatMap((s) => allLogits(model, [s]));
      packed.forEach((row, i) => {
        gold.expectNear(row, alone[i], 1e-6, `logits of token ${i}`);
      });
    });

    it("saved and loaded again, gives the same bytes of logits", () => {
      const dir = mkdtempSync(join(tmpdir(), "lyceum-golden-"));
      try {
        const model = load(variant, "bf16");
        saveLlama(model, dir);
        const again = loadLlama(device, dir, "bf16");
        const { inputs } = golden.cases.pair;
        expect(again.config).toEqual(model.config);
        expect(allLogits(again, inputs)).toEqual(allLogits(model, inputs));
        again.close();
      } finally {
        rmSync(dir, { recursive: true });
      }
    });
  });
}

it("a sliding window bounds the context: up to it, it changes nothing", () => {
  const context = (json: Record<string, unknown>): number =>
    parseLlamaConfig({ ...SMALL, max_position_embeddings: 128, ...json }, "test").maxPositionEmbeddings;
  const mistral = readLlamaConfig(gold.folder("mistral"));
  expect(mistral.maxPositionEmbeddings).toBe(100);
  expect(llamaConfigJson(mistral, "bfloat16")).toMatchObject({ max_position_embeddings: 128, sliding_window: 100 });
  expect(describePositions(mistral)).toMatch(/^100 positions at once: its layers see no further \(sliding_window\)/);
  // Transformers' defaults: a window of 4,096, from layer 28 on.
  expect(context({ model_type: "mistral", max_position_embeddings: 8192 })).toBe(4096);
  expect(context({ model_type: "qwen3", max_position_embeddings: 8192, use_sliding_window: true })).toBe(8192);
  const slides = { model_type: "qwen2", sliding_window: 64, use_sliding_window: true };
  expect(context({ ...slides, max_window_layers: 1 })).toBe(128); // of one layer, none slides
  expect(context({ ...slides, max_window_layers: 0 })).toBe(64);
  expect(context({ ...slides, layer_types: ["full_attention"] })).toBe(128);
  expect(context({ ...slides, layer_types: ["sliding_attention"] })).toBe(64);
  expect(context({ model_type: "mistral", sliding_window: null })).toBe(128);
  expect(context({ model_type: "mistral", sliding_window: 4096 })).toBe(128);
  expect(context({ model_type: "qwen2", sliding_window: 64, use_sliding_window: false })).toBe(128);
  // A Qwen3 whose file does not say it has heads of 128.
  expect(parseLlamaConfig({ ...SMALL, model_type: "qwen3" }, "test").headDim).toBe(128);
});

it("the tolerances notice a wrong rotary base", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-golden-"));
  try {
    cpSync(gold.folder("mha-untied"), dir, { recursive: true });
    const config = gold.readJson(`${dir}/config.v4.json`) as Record<string, unknown>;
    writeFileSync(`${dir}/config.json`, JSON.stringify({ ...config, rope_theta: 5000 }));
    const wrong = loadLlama(device, dir, "fp32");
    const wanted = gold.golden("mha-untied").cases.long;
    const dots = allLogits(wrong, wanted.inputs).map(gold.dot);
    wrong.close();
    expect(() => gold.expectNear(dots, wanted.logitDots, gold.TOLERANCE.fp32, "logits")).toThrow(/away from/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

it("a folder whose files do not belong together is refused, with what does not fit", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-golden-"));
  const config = gold.readJson(`${gold.folder("linear-3-layers")}/config.json`) as Record<string, unknown>;
  const said = (json: unknown): string => {
    writeFileSync(`${dir}/config.json`, JSON.stringify(json));
    try {
      loadLlama(device, dir, "fp32").close();
      return "loaded";
    } catch (error) {
      return (error as Error).message;
    }
  };
  try {
    cpSync(gold.folder("linear-3-layers"), dir, { recursive: true });
    expect(said(config)).toBe("loaded");
    expect(said({ ...config, num_hidden_layers: 2 })).toMatch(
      /a llama model with 2 layers has no tensor model\.layers\.2\./,
    );
    expect(said({ ...config, num_hidden_layers: 4 })).toMatch(/tensor model\.layers\.3\.\S+ is missing/);
    expect(said({ ...config, hidden_size: 4 * (config.hidden_size as number) })).toMatch(/has shape \[.*asks for \[/);
    expect(said({ ...config, model_type: "gemma" })).toMatch(
      /model_type is "gemma"; Lyceum runs llama, mistral, qwen2, qwen3/,
    );
    expect(said({ ...config, model_type: "qwen2" })).toMatch(
      /tensor model\.layers\.0\.self_attn\.q_proj\.bias is missing/,
    );
    expect(said(null)).toMatch(/config\.json holds no JSON object/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
