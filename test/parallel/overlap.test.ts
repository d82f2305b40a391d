/** Sums of gradients run beside the backward pass: begun when a layer is done, and finished before the last layer is. */
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { parseLlamaConfig } from "../../src/nn/config.js";
import { Llama, packSequences } from "../../src/nn/llama.js";
import { type Comm, type Pending, single } from "../../src/parallel/comm.js";
import { Grid } from "../../src/parallel/grid.js";
import { parallelSchema } from "../../src/run/settings.js";
import { backwardMeanLoss } from "../../src/stages/clm.js";
import { Tape } from "../../src/tensor/tensor.js";

const device = currentCpu();
const layers = 5;

/** Two replicas of which only this one is there: transfers take two polls, and nothing arrives. */
function slow(events: string[]): Comm {
  const transfer = (what: string): Pending => {
    let polls = 0;
    let done = false;
    events.push(`${what} begins`);
    const finish = (): true => {
      if (!done) events.push(`${what} ends`);
      done = true;
      return true;
    };
    return { test: () => done || (++polls > 2 && finish()), wait: finish };
  };
  const comm: Comm = {
    ...single(device),
    size: 2,
    split: () => comm,
    startAllReduce: () => transfer("reduce"),
    startReduceScatter: () => transfer("reduce"),
    startAllGather: () => transfer("gather"),
    gatherNumbers: (values) => [[...values], [...values]],
    gatherText: (text) => [text, text],
  };
  return comm;
}

test.each([0, 1, 2, 3])(
  "stage %i: the sum of the last layer's gradients is done while the first layers go back",
  (zero) => {
    const events: string[] = [];
    const grid = Grid.of(device, slow(events), parallelSchema.parse({ zero, data: 2 }), "");
    const config = parseLlamaConfig(
      {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: layers,
        num_attention_heads: 2,
        max_position_embeddings: 16,
        tie_word_embeddings: true,
      },
      "test",
    );
    const model = new Llama(device, config, "fp32", { grid });
    const { keeper } = model.parameters;
    const before = keeper.before.bind(keeper);
    keeper.before = (unit, pass) => {
      events.push(`${pass} ${unit.name}`);
      before(unit, pass);
    };
    const tape = new Tape(device);
    const sequence = Int32Array.from({ length: 12 }, (_, i) => i);
    const batch = { ...packSequences([sequence]), targets: Int32Array.from(sequence, (i) => (i + 1) % 64) };
    events.length = 0;
    backwardMeanLoss(model, tape, [batch]);
    const during = events.slice(events.indexOf(`backward layer ${layers - 1}`), events.indexOf("backward layer 0"));
    // All layers above have begun, and all but those just left have ended.
    expect(during.filter((e) => e === "reduce begins")).toHaveLength(layers - 1);
    expect(during.filter((e) => e === "reduce ends").length).toBeGreaterThanOrEqual(layers - 3);
    // A layer's parameters are fetched while the one before it works (stage 3).
    if (zero === 3) {
      const at = events.indexOf("forward layer 2");
      expect(events.slice(0, at)).toContain("forward layer 1");
      expect(events.slice(events.indexOf("forward layer 1"), at)).toContain("gather begins");
    }
    tape.close();
    model.close();
  },
);
