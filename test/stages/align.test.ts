/** The alignment losses against PyTorch (test/golden/align/make.py). */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { F32 } from "../../src/device/device.js";
import { type EncodedReply, replyBatch } from "../../src/dialogue/preference.js";
import { loadLlama } from "../../src/nn/folder.js";
import { type Llama, packSequences } from "../../src/nn/llama.js";
import { type PairLogProbs, type PreferenceLossOptions, preferenceLoss } from "../../src/stages/dpo.js";
import { groupAdvantages, grpoLoss } from "../../src/stages/grpo.js";
import { adaptKlCoef, gae, klOf, policyLoss, tokenRewards, valueLoss, whiten } from "../../src/stages/ppo.js";
import { rankingLoss, scoreSequences } from "../../src/stages/reward.js";
import { Tape } from "../../src/tensor/tensor.js";
import { folder } from "../nn/golden.js";

type Numbers = Record<string, number>;
interface Golden {
  ranking: { groups: number[][]; margin: number; centering: number; loss: number; gradients: number[][] }[];
  pairs: PairLogProbs[];
  family: { options: PreferenceLossOptions; loss: number; dChosen: number[]; dRejected: number[] }[];
  gae: {
    rewards: number[];
    values: number[];
    gamma: number;
    lambda: number;
    advantages: number[];
    returns: number[];
  }[];
  whiten: { rows: number[][]; white: number[]; kept: number[] };
  policy: Numbers[];
  value: Numbers[];
  kl: Numbers[];
  groups: { scores: number[]; size: number; scaled: number[]; centered: number[] };
  grpo: Numbers[];
  endToEnd: {
    replies: { ids: number[]; start: number }[];
    refs: number[];
    dpo: { sums: number[]; loss: number; grads: Record<string, { norm: number; dot: number }> };
    reward: { rewards: number[]; loss: number; grads: Record<string, { norm: number; dot: number }> };
  };
}
const golden = JSON.parse(readFileSync(new URL("../golden/align/golden.json", import.meta.url), "utf8")) as Golden;
const near = (actual: ArrayLike<number>, expected: ArrayLike<number>, digits = 9): void => {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < actual.length; i++) expect(actual[i]).toBeCloseTo(expected[i], digits);
};

test.each(golden.ranking.map((g) => [g.groups.map((r) => r.length).join(","), g] as const))(
  "ranking loss, groups of %s",
  (_, g) => {
    const { loss, gradients } = rankingLoss(g.groups, g);
    expect(loss).toBeCloseTo(g.loss, 10);
    gradients.forEach((row, i) => {
      near(row, g.gradients[i]);
    });
  },
);

test.each(golden.family.map((f) => [f.options.loss, JSON.stringify(f.options), f] as const))("%s %s", (_, __, f) => {
  const { loss, dChosen, dRejected } = preferenceLoss(golden.pairs, f.options);
  expect(loss).toBeCloseTo(f.loss, 10);
  near(dChosen, f.dChosen);
  near(dRejected, f.dRejected);
});

test("DPO begins at ln 2", () => {
  const same = golden.pairs.map((p) => ({ ...p, refChosen: p.chosen, refRejected: p.rejected }));
  expect(preferenceLoss(same, golden.family[0].options).loss).toBeCloseTo(Math.LN2, 12);
});

test("advantage estimation, whitening, estimators of the KL", () => {
  for (const g of golden.gae) {
    const { advantages, returns } = gae(Float64Array.from(g.rewards), g.values, g.gamma, g.lambda);
    near(advantages, g.advantages);
    near(returns, g.returns);
  }
  const rows = golden.whiten.rows.map((r) => Float64Array.from(r));
  near(
    whiten(rows).flatMap((r) => [...r]),
    golden.whiten.white,
  );
  near(
    whiten(rows, true).flatMap((r) => [...r]),
    golden.whiten.kept,
  );
  for (const { logRatio, k1, k3 } of golden.kl) near([klOf(logRatio, "k1"), klOf(logRatio, "k3")], [k1, k3], 12);
});

test("policy and value losses of a token, clipped and free", () => {
  for (const g of golden.policy) {
    const { loss, slope } = policyLoss(g.logp, g.old, g.advantage, 0.2, g.dualClip);
    near([loss, slope], [g.loss, g.slope], 10);
  }
  for (const g of golden.value) {
    const { loss, slope } = valueLoss(g.value, g.old, g.target, 0.2);
    near([loss, slope], [g.loss, g.slope], 10);
  }
});

test("group advantages and GRPO's loss of a token", () => {
  const { scores, size, scaled, centered } = golden.groups;
  near(groupAdvantages(scores, size), scaled);
  near(groupAdvantages(scores, size, false), centered);
  for (const g of golden.grpo) {
    const { loss, slope, kl } = grpoLoss(g.logp, g.old, g.ref, g.advantage, { clipRange: 0.2, klCoef: 0.04 });
    near([loss, slope, kl], [g.loss, g.slope, g.kl], 10);
  }
});

test("rewards of tokens: KL for each, the score at the last; the adaptive controller", () => {
  const rewards = tokenRewards(Float32Array.of(-1, -2), Float32Array.of(-1.5, -1), 3, 0.1);
  near(rewards, [-0.05, 3.1], 6);
  expect(adaptKlCoef(0.1, 12, 6, 32, 1000)).toBeCloseTo(0.1 * (1 + (0.2 * 32) / 1000), 12);
  expect(adaptKlCoef(0.1, 5.4, 6, 32, 1000)).toBeCloseTo(0.1 * (1 - (0.1 * 32) / 1000), 12);
});

const replies: EncodedReply[] = golden.endToEnd.replies.map((r) => ({ ids: Int32Array.from(r.ids), start: r.start }));
function compareGradients(model: Llama, expected: Record<string, { norm: number; dot: number }>): void {
  let compared = 0;
  for (const t of model.parameters.named()) {
    const want = expected[t.name];
    if (!want) continue;
    const g = model.device.f32(t.gradPtr, t.size);
    let [square, dot] = [0, 0];
    g.forEach((x, i) => {
      square += x * x;
      dot += x * Math.cos(i);
    });
    expect(Math.abs(Math.sqrt(square) - want.norm)).toBeLessThan(1e-4 * want.norm);
    expect(Math.abs(dot - want.dot), t.name).toBeLessThan(1e-4 * want.norm * 10);
    compared++;
  }
  expect(compared).toBe(Object.keys(expected).length);
}

test("DPO from weights: sums, loss and gradients as in Transformers", () => {
  const { dpo, refs } = golden.endToEnd;
  const model = loadLlama(openCpu({ threads: 2 }), folder("gqa-tied"), "fp32");
  const tape = new Tape(model.device);
  const batch = replyBatch(replies);
  const logp = model.logProbs(tape, batch, batch.targets);
  const values = model.device.f32(logp.ptr, logp.size);
  const sums = batch.spans.map(({ from, to }) => values.subarray(from, to).reduce((a, b) => a + b, 0));
  near(sums, dpo.sums, 3);
  const pairs = [0, 2].map((i) => ({
    chosen: sums[i],
    rejected: sums[i + 1],
    refChosen: refs[i],
    refRejected: refs[i + 1],
    chosenTokens: 1,
    rejectedTokens: 1,
  }));
  const result = preferenceLoss(pairs, golden.family[0].options);
  expect(result.loss).toBeCloseTo(dpo.loss, 5);
  const seed = tape.tensor(F32, logp.shape);
  const slopes = model.device.f32(seed.ptr, logp.size).fill(0);
  batch.spans.forEach(({ from, to }, s) => {
    slopes.fill(s % 2 === 0 ? result.dChosen[s >> 1] : result.dRejected[s >> 1], from, to);
  });
  tape.backward(logp, seed);
  compareGradients(model, dpo.grads);
  tape.arena.close();
  model.close();
});

test("the reward model from weights: scores, loss and gradients as LlamaForSequenceClassification", () => {
  const { reward } = golden.endToEnd;
  const model = loadLlama(openCpu({ threads: 2 }), folder("gqa-tied"), "fp32", { head: "scalar" });
  const head = model.device.f32(model.outputMatrix!.ptr, model.outputMatrix!.size);
  head.set(head.map((_, i) => Math.fround(Math.fround(Math.sin(i)) * 0.3)));
  near(
    scoreSequences(
      model,
      replies.map((r) => r.ids),
    ),
    reward.rewards,
    4,
  );
  const tape = new Tape(model.device);
  const batch = packSequences(replies.map((r) => r.ids));
  const values = model.values(tape, batch);
  const all = model.device.f32(values.ptr, values.size);
  const rewards = replies.map((_, s) => all[batch.cuSeqlens[s + 1] - 1]);
  const result = rankingLoss([rewards.slice(0, 2), rewards.slice(2)]);
  expect(result.loss).toBeCloseTo(reward.loss, 5);
  const seed = tape.tensor(F32, values.shape);
  const slopes = model.device.f32(seed.ptr, values.size).fill(0);
  result.gradients.flat().forEach((g, s) => {
    slopes[batch.cuSeqlens[s + 1] - 1] = g;
  });
  tape.backward(values, seed);
  compareGradients(model, reward.grads);
  tape.arena.close();
  model.close();
});
