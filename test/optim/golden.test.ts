/** Twenty AdamW steps against PyTorch's: learning rates, loss curve, gradient norms before clipping, final weights. */
import { describe, expect, it } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { loadLlama } from "../../src/nn/folder.js";
import { AdamW } from "../../src/optim/adamw.js";
import { learningRate } from "../../src/optim/schedule.js";
import { Tape } from "../../src/tensor/tensor.js";
import * as gold from "../nn/golden.js";

const device = openCpu();

it("WSD decays from the peak, however early: not before the end of the warm-up, and with a share of 0 not at all", () => {
  const rates = (decayShare: number) =>
    Array.from({ length: 10 }, (_, i) =>
      learningRate(1, i + 1, 10, { kind: "wsd", warmupSteps: 5, minLearningRate: 0.1, decayShare }),
    );
  const warm = [0.2, 0.4, 0.6, 0.8, 1];
  const down = [1, 2, 3, 4, 5].map((i) => 0.1 + 0.9 * (1 - Math.sqrt(i / 5)));
  expect(rates(1)).toEqual([...warm, ...down]);
  expect(rates(0)).toEqual([...warm, 1, 1, 1, 1, 1]);
  expect(rates(0.2)).toEqual([...warm, 1, 1, 1, 0.1 + 0.9 * (1 - Math.sqrt(1 / 2)), 0.1]);
});

for (const variant of ["mha-untied", "gqa-tied"]) {
  const wanted = gold.golden(variant).training!;
  const { peak, warmupSteps, minLearningRate } = wanted.schedule;

  describe(variant, () => {
    it("the schedule is warm-up and cosine as PyTorch's run had them", () => {
      const schedule = { kind: "cosine", warmupSteps, minLearningRate, decayShare: 0 } as const;
      const steps = wanted.learningRates.length;
      wanted.learningRates.forEach((rate, i) => {
        expect(learningRate(peak, i + 1, steps, schedule)).toBeCloseTo(rate, 12);
      });
    });

    for (const [precision, tolerance] of [
      ["fp32", 1e-3],
      ["bf16", 2e-2],
    ] as const)
      it(`20 steps in ${precision} follow the loss curve to ${tolerance}`, () => {
        const model = loadLlama(device, gold.folder(variant), precision);
        const optimizer = new AdamW(model.trainable, wanted);
        const tape = new Tape(device);
        wanted.learningRates.forEach((rate, step) => {
          const rows = wanted.batches[step % wanted.batches.length];
          const inputs = rows.map((r) => r.slice(0, -1));
          const { batch, targets, weights } = gold.weighted(
            inputs,
            rows.map((r) => r.slice(1)),
          );
          const { logp, loss } = model.loss(tape, batch, targets, weights);
          tape.backward(logp);
          tape.reset();
          const gradNorm = optimizer.gradNorm();
          optimizer.update(rate, gradNorm);
          const off = (actual: number, golden: number): number => Math.abs(actual - golden) / golden;
          expect(off(loss, wanted.losses[step]), `loss of step ${step + 1}: ${loss}`).toBeLessThanOrEqual(tolerance);
          expect(off(gradNorm, wanted.gradNorms[step]), `gradient norm of step ${step + 1}`).toBeLessThanOrEqual(
            tolerance,
          );
        });
        for (const [name, weight] of gold.weights(model))
          gold.expectSummary(weight, wanted.weights[name], tolerance, `final ${name}`, 1);
        optimizer.close();
        model.close();
        tape.arena.close();
      });
  });
}
