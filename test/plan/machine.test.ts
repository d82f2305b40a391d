/** A step gone through without computing calls and allocates what a real one does. */
import { expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { type LlamaConfig, parseLlamaConfig } from "../../src/nn/config.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
import { memoryBandwidth, predict } from "../../src/plan/machine.js";
import { type RehearsedRun, rehearse, WatchedArena } from "../../src/plan/rehearsal.js";
import { Tape } from "../../src/tensor/tensor.js";

const device = openCpu({ threads: 2 });
const shape = (more: Record<string, unknown> = {}): LlamaConfig =>
  parseLlamaConfig(
    {
      vocab_size: 500,
      hidden_size: 64,
      intermediate_size: 160,
      num_hidden_layers: 3,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      tie_word_embeddings: true,
      max_position_embeddings: 128,
      ...more,
    },
    "test",
  );
const run = (more: Partial<RehearsedRun> = {}): RehearsedRun => ({
  model: shape(),
  precision: "bf16",
  batchSize: 4,
  contextLength: 64,
  gradientAccumulation: 1,
  recompute: false,
  ...more,
});

test.each([
  [false, "bf16"],
  [true, "bf16"],
  [false, "fp32"],
] as const)(
  "the arena is filled as far as by a real step and evaluation, byte for byte (recompute %s, %s)",
  (recompute, precision) => {
    const r = rehearse(device, run({ recompute, precision }));
    r.close();
    const model = new Llama(device, shape(), precision);
    model.parameters.initialize(1, 0.02);
    model.recompute = recompute;
    const arena = new WatchedArena(device);
    const tape = new Tape(device, true, arena);
    const batch = packSequences(Array.from({ length: 4 }, () => new Int32Array(64).fill(7)));
    const targets = new Int32Array(256).fill(3);
    const { logp } = model.loss(tape, batch, targets, new Float32Array(256).fill(1 / 256));
    tape.backward(logp);
    tape.reset();
    model.logProbs(new Tape(device, false, arena), batch, targets);
    expect(r.arena).toBe(arena.touched());
    expect(r.parameters).toBe(model.parameters.count);
    tape.arena.close();
    model.close();
  },
);

test("states: 14 bytes a parameter are held, with what alignment adds", () => {
  const r = rehearse(device, run());
  r.close();
  const { parameters, optimizer } = r.states;
  expect(parameters / (2 * r.parameters)).toBeCloseTo(1, 2);
  expect(r.gradients).toBe(parameters);
  expect(optimizer).toBe(5 * parameters);
});

test("the products of a step come to 6 operations for each weight and token; layers are called by number", () => {
  const r = rehearse(device, run());
  r.close();
  let flops = 0;
  let products = 0;
  for (const { kernel, count, examples } of r.calls) {
    if (kernel !== "matmul") continue;
    const [, , M, N, K] = examples[0];
    flops += 2 * M * N * K * count;
    products += count;
    expect(examples.length).toBe(3); // one of each layer
  }
  expect(products).toBe(3 * 4 * 3); // layers x matrices x (forward, and two backward)
  const layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 160;
  expect(flops).toBe(6 * 3 * layer * 256);
  const calls = (kernel: string): number => r.calls.filter((c) => c.kernel === kernel).reduce((n, c) => n + c.count, 0);
  expect([calls("attentionForward"), calls("attentionBackward"), calls("logprobForwardBackward")]).toEqual([3, 3, 1]);
});

test("micro-batches repeat the passes and not the update; recomputation repeats the layers forward", () => {
  const count = (more: Partial<RehearsedRun>, kernel: string): number => {
    const r = rehearse(device, run(more));
    r.close();
    return r.calls.filter((c) => c.kernel === kernel).reduce((n, c) => n + c.count, 0);
  };
  expect(count({ gradientAccumulation: 3 }, "attentionForward")).toBe(9);
  expect(count({ gradientAccumulation: 3 }, "adamw")).toBe(count({}, "adamw"));
  expect(count({ recompute: true }, "attentionForward")).toBe(6);
});

test("with recomputation memory is used many times over, and every noted call can still be made", () => {
  const r = rehearse(device, run({ recompute: true, batchSize: 1 }));
  const kernels = device as unknown as Record<string, (...args: number[]) => unknown>;
  for (const order of [r.calls, [...r.calls].reverse()])
    for (const { kernel, examples } of order) for (const args of examples) kernels[kernel](...args);
  expect(r.calls.length).toBeGreaterThan(15);
  r.close();
});

test("a prediction adds up, and its parts are those of the machine", () => {
  const p = predict(device, run());
  const { total, ...parts } = p.memory;
  expect(Object.values(parts).reduce((a, b) => a + b, 0)).toBe(total);
  expect(p.kernels.reduce((n, k) => n + k.seconds, 0)).toBeCloseTo(p.stepSeconds, 9);
  expect(p.tokensPerSecond).toBeCloseTo(256 / p.stepSeconds, 3);
  expect(p.kernels.map((k) => k.kernel)).toContain("matmul");
  expect(p.peakFlops).toBeGreaterThan(1e8);
  expect(memoryBandwidth(device)).toBeGreaterThan(1e8);
}, 60_000);
