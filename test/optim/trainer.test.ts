/** What a Trainer is told: steps and settings of a loop of one's own. */
import { expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { Llama } from "../../src/nn/llama.js";
import { Trainer } from "../../src/optim/trainer.js";
import { UserError } from "../../src/run/errors.js";
import { optimizerSchema } from "../../src/run/settings.js";
import { allTargets, backwardMeanLoss } from "../../src/stages/clm.js";
import { Tape } from "../../src/tensor/tensor.js";

const shape = { vocab_size: 20, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 };
const config = parseLlamaConfig({ ...shape, max_position_embeddings: 8, tie_word_embeddings: true }, "test");
const model = new Llama(openCpu({ threads: 1 }), config, "fp32");

test("a schedule without a length is refused", () => {
  for (const steps of [Number.NaN, undefined, 0, -3, 2.5, "10"] as number[]) {
    const make = () => new Trainer(model.trainable, {}, {}, steps);
    expect(make).toThrow(UserError);
    expect(make).toThrow(`steps is ${steps}; it must be a whole number from 1`);
  }
});

test("settings that are left out have their defaults; wrong ones are named", () => {
  model.parameters.initialize(1, 0.1);
  const trainer = new Trainer(model.trainable, { learningRate: 1e-2 }, {}, 1);
  expect(trainer.optimizer.config).toEqual(optimizerSchema.parse({ learningRate: 1e-2 }));
  const tape = new Tape(model.device);
  const step = trainer.step(1, () => backwardMeanLoss(model, tape, [allTargets([[1, 2, 3]])]).loss);
  expect(step.learningRate).toBeCloseTo(1e-3); // a tenth, at the schedule's end
  tape.close();
  trainer.close();
  const wrong = (optimizer: object, schedule: object) => () => new Trainer(model.trainable, optimizer, schedule, 1);
  expect(wrong({ rate: 1 }, {})).toThrow(/the optimizer's settings: there is no key "rate"/);
  expect(wrong({ learningRate: Number.NaN }, {})).toThrow(/the optimizer's settings: learningRate is NaN/);
  expect(wrong({}, { kind: "cosin" })).toThrow(/the schedule's settings: kind is "cosin"/);
  expect(wrong(undefined as unknown as object, {})).toThrow(/the optimizer's settings/);
});
