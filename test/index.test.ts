/** What a program that imports the package meets: names for the types of what it calls, several threads, and a mistake that stays one. */
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, expectTypeOf, test } from "vitest";
import type {
  Construction,
  DecodeOptions,
  EncodeOptions,
  LoadingOptions,
  LoadOptions,
  MetricValues,
  ModelType,
  OptimizerSettings,
  Parameter,
  ParameterSet,
  Precision,
  Pretokenizer,
  ReadyWeights,
  RopeScaling,
  Sample,
  SamplingOptions,
  ScheduleSettings,
  StreamDecoder,
} from "../src/index.js";
import * as lyceum from "../src/index.js";

test("the types of what is called have names", () => {
  // Imported above, so that the compiler finds them.
  type Named =
    | [Construction, DecodeOptions, EncodeOptions, LoadingOptions, LoadOptions, MetricValues, ModelType]
    | [OptimizerSettings, Parameter, ParameterSet, Precision, Pretokenizer, ReadyWeights, RopeScaling]
    | [Sample, SamplingOptions, ScheduleSettings, StreamDecoder];
  expectTypeOf<Named>().not.toBeAny();
});

test("an engine that cannot be opened is a user's mistake", () => {
  expect(() => lyceum.openCpu({ isa: "vax" })).toThrow(lyceum.EngineError);
  expect(() => lyceum.openCpu({ isa: "vax" })).toThrow(lyceum.UserError);
});

/** Trains and generates on the built package: a loss, ids and log-probabilities of each round. */
const PROGRAM = `
const { parentPort, workerData } = require("node:worker_threads");
import(workerData.url).then(({ allTargets, backwardMeanLoss, generate, Llama, openCpu, parseLlamaConfig, Tape }) => {
  const shape = { vocab_size: 200, hidden_size: 64, intermediate_size: 172, num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 64, tie_word_embeddings: true };
  const rounds = [];
  for (let round = 0; round < workerData.rounds; round++) {
    const model = new Llama(openCpu({ threads: 2 + (round % 2) }), parseLlamaConfig(shape, "test"), "fp32");
    model.parameters.initialize(1, 0.1);
    const tape = new Tape(model.device);
    const rows = [0, 1, 2, 3].map((row) => Array.from({ length: 48 }, (_, i) => (37 * row + 11 * i) % 200));
    const { loss } = backwardMeanLoss(model, tape, [allTargets(rows)]);
    const [{ ids, logProbs }] = generate(model, [[1, 2, 3]], { maxTokens: 20, repetitionPenalty: 1.5 });
    rounds.push(JSON.stringify({ loss, ids, logProbs }));
    tape.close();
    model.close();
  }
  parentPort.postMessage(rounds);
});
`;
function inWorker(rounds: number): Promise<string[]> {
  const url = new URL("../dist/index.js", import.meta.url).href;
  const worker = new Worker(PROGRAM, { eval: true, workerData: { url, rounds } });
  return new Promise((resolve, reject) => {
    let found: string[];
    worker.on("message", (rounds) => {
      found = rounds;
    });
    worker.on("error", reject);
    worker.on("exit", () => resolve(found));
  });
}
/** Threads of this process, where the system tells. */
const threads = (): number => (existsSync("/proc/self/task") ? readdirSync("/proc/self/task").length : 0);

test("several threads compute at once, each as it does alone; with a thread ends its pool", async () => {
  expect(existsSync(fileURLToPath(new URL("../dist/index.js", import.meta.url))), "npm run build").toBe(true);
  const [alone] = await inWorker(1);
  const before = threads();
  const found = await Promise.all([60, 60, 60].map(inWorker));
  expect(found.map((rounds) => rounds.length)).toEqual([60, 60, 60]);
  expect([...new Set(found.flat())]).toEqual([alone]);
  expect(threads()).toBeLessThanOrEqual(before);
});

test("what is refused leaves the engine as it was", () => {
  const shape = {
    vocab_size: 20,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 1,
    num_attention_heads: 2,
  };
  const config = lyceum.parseLlamaConfig({ ...shape, max_position_embeddings: 8, tie_word_embeddings: true }, "test");
  const model = new lyceum.Llama(lyceum.openCpu({ threads: 1 }), config, "fp32");
  model.parameters.initialize(1, 0.1);
  const tape = new lyceum.Tape(model.device);
  const batch = lyceum.packSequences([[1, 2, 3]]);
  const targets = Int32Array.of(2, 3, 4);
  const before = model.logProbs(tape, batch, targets).toArray();
  const list = [2, 3, 4] as unknown as Int32Array;
  for (const refused of [
    () => model.logProbs(tape, batch, list),
    () => model.entropies(tape, batch, list),
    () => model.loss(tape, batch, list, Float32Array.of(1, 1, 1)),
    () => model.loss(tape, batch, targets, [1, 1, 1] as unknown as Float32Array),
    () => model.forward(tape, { ...batch, positions: [0, 1, 2] as unknown as Int32Array }),
  ]) {
    expect(refused).toThrow(lyceum.UserError);
    expect(refused).toThrow(/must be of the class (Int|Float)32Array: write/);
  }
  tape.reset();
  expect(model.logProbs(tape, batch, targets).toArray()).toEqual(before);
  tape.close();
  expect(() => new lyceum.Llama(model.device, config, "fp16" as Precision)).toThrow(
    /precision is "fp16"; it must be bf16 or fp32/,
  );
  model.close();
});
