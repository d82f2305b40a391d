/** Adapters, and the rows of new tokens that are trained along with them. */
import { afterAll, describe, expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
import { attachLora, mergeLora } from "../../src/nn/lora.js";
import { AdamW } from "../../src/optim/adamw.js";
import { Tape } from "../../src/tensor/tensor.js";

const device = openCpu({ threads: 2 });
const made: Llama[] = [];
afterAll(() => {
  for (const model of made) model.close();
});
const VOCABULARY = 40;
const NEW = { from: 37, to: 40 };
function make(tied: boolean): Llama {
  const config = parseLlamaConfig(
    {
      vocab_size: VOCABULARY,
      hidden_size: 32,
      intermediate_size: 48,
      num_hidden_layers: 2,
      num_attention_heads: 2,
      max_position_embeddings: 32,
      tie_word_embeddings: tied,
    },
    "test",
  );
  const model = new Llama(device, config, "fp32");
  model.parameters.initialize(5, 0.2);
  made.push(model);
  return model;
}
/** New tokens are read and foretold, old ones too, and some rows have no target. */
const batch = packSequences([
  [1, 38, 2, 3, 39],
  [37, 4, 38, 38],
]);
const targets = Int32Array.of(38, 2, -1, 39, 37, 4, 38, -1, 5);
const weights = Float32Array.from(targets, (t, i) => (t < 0 ? 0 : 0.1 + 0.05 * i));
function backward(model: Llama, what: "loss" | "entropy" = "loss"): number {
  const tape = new Tape(device);
  if (what === "entropy") {
    const entropy = model.entropies(tape, batch, targets, 0.7);
    const sum = entropy.toArray().reduce((a, b) => a + b, 0);
    tape.backward(entropy);
    model.trainable.settleGrads();
    tape.reset();
    return sum;
  }
  const { logp, loss } = model.loss(tape, batch, targets, weights);
  tape.backward(logp);
  model.trainable.settleGrads();
  tape.reset();
  return loss;
}
const rowsOf = (matrix: { gradArray(): Float32Array }): Float32Array =>
  matrix.gradArray().slice(NEW.from * 32, NEW.to * 32);

describe.each([true, false])("rows of new tokens, tied %s", (tied) => {
  test.each(["loss", "entropy"] as const)(
    "their gradient is that of the whole matrices, when those are trained: %s",
    (what) => {
      const whole = make(tied);
      const adapted = make(tied);
      attachLora(adapted, { rank: 2, alpha: 4, targets: ["qkv"] }, 1, NEW);
      expect(backward(adapted, what)).toBeCloseTo(backward(whole, what), what === "loss" ? 6 : 4); // a sum of seven
      const { rows } = adapted.lora!;
      expect(rows.size).toBe(tied ? 1 : 2);
      for (const [matrix, trained] of [
        [whole.embeddings!, rows.get(adapted.embeddings!)!],
        [whole.outputMatrix!, rows.get(adapted.outputMatrix!)!],
      ] as const) {
        const expected = rowsOf(matrix);
        expect(Math.max(...expected.map(Math.abs))).toBeGreaterThan(1e-3);
        trained.trained.gradArray().forEach((g, i) => {
          expect(g).toBeCloseTo(expected[i], 6);
        });
      }
    },
  );

  test("are learned, end in the merged model, and leave all other rows as they were", () => {
    const model = make(tied);
    const before = model.outputMatrix!.toArray();
    attachLora(model, { rank: 2, alpha: 4, targets: ["qkv"] }, 1, NEW);
    const optimizer = new AdamW(model.trainable, { betas: [0.9, 0.95], eps: 1e-8, weightDecay: 0, gradClip: 1 });
    const first = backward(model);
    for (let step = 0; step < 60; step++) {
      optimizer.update(0.02, optimizer.gradNorm());
      backward(model);
    }
    mergeLora(model);
    optimizer.close();
    const after = model.outputMatrix!.toArray();
    expect(after.slice(0, NEW.from * 32)).toEqual(before.slice(0, NEW.from * 32));
    expect(after.slice(NEW.from * 32)).not.toEqual(before.slice(NEW.from * 32));
    const tape = new Tape(device, false);
    expect(model.loss(tape, batch, targets, weights).loss).toBeLessThan(0.5 * first);
    tape.close();
  });
});
