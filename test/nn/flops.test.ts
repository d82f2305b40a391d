/** Operations of a training step as the utilisation (MFU) counts them, against what the kernels were asked for. */
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { type KernelEvent, profiled } from "../../src/device/profile.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
import { attachLora } from "../../src/nn/lora.js";
import { LORA_TARGETS } from "../../src/run/settings.js";
import { Tape } from "../../src/tensor/tensor.js";

const PRODUCTS = /^(matmul|logprob|attention)/;
const config = parseLlamaConfig(
  {
    vocab_size: 4000,
    hidden_size: 128,
    intermediate_size: 352,
    num_hidden_layers: 3,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 256,
    tie_word_embeddings: true,
  },
  "test",
);

test.each([
  { what: "pretraining: every token is a target", every: 1, lora: false },
  { what: "fine-tuning: one token in four is", every: 4, lora: false },
  { what: "adapters on frozen matrices", every: 4, lora: true },
  { what: "adapters, every token a target", every: 1, lora: true },
])("$what", ({ every, lora }) => {
  const events: KernelEvent[] = [];
  const device = profiled(currentCpu(), (event) => events.push(event));
  const model = new Llama(device, config, "bf16");
  model.parameters.initialize(1, 0.02);
  if (lora) attachLora(model, { rank: 8, alpha: 8, targets: [...LORA_TARGETS] }, 1);
  const batch = packSequences([200, 56, 131].map((n) => Int32Array.from({ length: n }, (_, i) => (i * 37) % 4000)));
  const targets = Int32Array.from(batch.ids, (id, i) => (i % every === 0 ? id : -1));
  const tape = new Tape(device);
  events.length = 0;
  tape.backward(model.loss(tape, batch, targets, new Float32Array(targets.length).fill(1 / targets.length)).logp);
  const done = events.reduce((n, { kernel, flops }) => n + (PRODUCTS.test(kernel) ? flops : 0), 0);
  // Not counted: attention makes its scores twice. Counted, and not done: the gradient of what the first frozen matrices read.
  expect(Math.abs(model.trainingFlops(batch, targets) / done - 1)).toBeLessThan(lora ? 0.08 : 0.02);
  tape.close();
  model.close();
});
