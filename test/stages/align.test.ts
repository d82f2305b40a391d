/**
 * The alignment losses and their gradients, from given numbers and from given weights: against TRL's own trainers
 * (test/golden/align/make_trl.py), and against plain PyTorch where TRL has nothing (make.py).
 */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { F32 } from "../../src/device/device.js";
import type { EncodedReply } from "../../src/dialogue/preference.js";
import { loadLlama } from "../../src/nn/folder.js";
import { type Llama, packSequences } from "../../src/nn/llama.js";
import { addOthers, backwardPairs, type Pair } from "../../src/stages/dpo.js";
import { type PairLogProbs, type PreferenceLossOptions, preferenceLoss } from "../../src/stages/dpo-loss.js";
import { backwardGroups, groupAdvantages, grpoLoss, tokenWeights } from "../../src/stages/grpo.js";
import {
  adaptKlCoef,
  backwardPolicy,
  backwardValues,
  estimate,
  gae,
  klOf,
  policyLoss,
  tokenRewards,
  valueLoss,
  whiten,
} from "../../src/stages/ppo.js";
import { ppoSchema } from "../../src/stages/ppo-config.js";
import { stepMetrics, Totals } from "../../src/stages/ppo-metrics.js";
import { rankingLoss } from "../../src/stages/reward.js";
import type { Episode, Experience } from "../../src/stages/rollout.js";
import { Tape } from "../../src/tensor/tensor.js";
import { folder } from "../nn/golden.js";

type Numbers = Record<string, number>;
type Gradients = Record<string, { norm: number; dot: number }>;
interface Ranking {
  groups: number[][];
  margin: number;
  centering: number;
  loss: number;
  gradients: number[][];
}
interface Reply {
  ids: number[];
  start: number;
}
interface Golden {
  ranking: Ranking[];
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
  ppo: {
    replies: Reply[];
    scores: number[];
    old: number[][];
    ref: number[][];
    values: number[][];
    options: {
      temperature: number;
      gamma: number;
      lambda: number;
      klCoef: number;
      vfCoef: number;
      entropyCoef: number;
      maxTokens: number;
    };
    runs: {
      options: { scorePosition: "last" | "trl"; whitenRewards: boolean; klEstimator: "k1" | "k3" };
      advantages: number[][];
      returns: number[][];
      policy: number;
      entropy: number;
      value: number;
      approxkl: number;
      actor: Gradients;
      critic: Gradients;
    }[];
  };
}
interface Trl {
  pairs: PairLogProbs[];
  family: { options: PreferenceLossOptions; loss: number; dChosen: number[]; dRejected: number[] }[];
  ranking: Ranking[];
  groups: { scores: number[]; size: number; scaled: number[]; centered: number[] };
  grpo: {
    kind: "bnpo" | "grpo" | "dr_grpo";
    maxTokens: number;
    logp: number[][];
    old: number[][];
    ref: number[][];
    advantages: number[];
    loss: number;
    slopes: number[][];
    kl: number;
    clipRatio: number;
  }[];
  endToEnd: {
    chosen: Reply[];
    rejected: Reply[];
    others: Reply[];
    refs: { ref_chosen_logps: number[]; ref_rejected_logps: number[] };
    refOther: number[];
    runs: { options: PreferenceLossOptions; loss: number; grads: Gradients }[];
    reward: { centering: number; loss: number; grads: Gradients };
  };
}
const read = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../golden/align/${name}.json`, import.meta.url), "utf8"));
const golden = read("golden") as Golden;
const trl = read("trl") as Trl;
const near = (actual: ArrayLike<number>, expected: ArrayLike<number>, digits = 9): void => {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < actual.length; i++) expect(actual[i]).toBeCloseTo(expected[i], digits);
};

test.each([...golden.ranking, ...trl.ranking].map((g) => [g.groups.map((r) => r.length).join(","), g] as const))(
  "ranking loss, groups of %s",
  (_, g) => {
    const { loss, gradients } = rankingLoss(g.groups, g);
    expect(loss).toBeCloseTo(g.loss, 10);
    gradients.forEach((row, i) => {
      near(row, g.gradients[i]);
    });
  },
);

test.each(trl.family.map((f) => [f.options.loss, JSON.stringify(f.options), f] as const))("%s %s", (_, __, f) => {
  const { loss, dChosen, dRejected } = preferenceLoss(trl.pairs, f.options);
  const digits = f.options.loss === "orpo" ? 6 : 9; // TRL computes ORPO in fp32
  expect(loss).toBeCloseTo(f.loss, digits);
  near(dChosen, f.dChosen, digits);
  near(dRejected, f.dRejected, digits);
});

test("ORPO is finite where every token of a reply is certain", () => {
  const options = trl.family.find((f) => f.options.loss === "orpo")!.options;
  const sure = [
    { ...trl.pairs[0], chosen: 0 },
    { ...trl.pairs[0], rejected: 0 },
    { ...trl.pairs[0], chosen: -1e-9, rejected: -1e-9 },
  ];
  const { loss, dChosen, dRejected } = preferenceLoss(sure, options);
  for (const x of [loss, ...dChosen, ...dRejected]) expect(x).toSatisfy(Number.isFinite);
  expect(preferenceLoss(sure.slice(0, 1), options).loss).toBeCloseTo(0, 4); // it could not be better
});

test("KTO's reply to another prompt is cut where the two are longer than the context", () => {
  const reply = (prompt: number, tokens: number, length: number) => ({
    ids: Int32Array.from({ length: prompt + length }, (_, i) => (i < prompt ? prompt : tokens)),
    start: prompt,
  });
  const pair = (prompt: number, length: number): Pair => ({
    chosen: reply(prompt, 50, length),
    rejected: reply(prompt, 60, length),
    refChosen: 0,
    refRejected: 0,
  });
  const pairs = [pair(9, 1), pair(2, 8)];
  addOthers(pairs, 10);
  expect(pairs.map((p) => [...p.other!.ids])).toEqual([
    [9, 9, 9, 9, 9, 9, 9, 9, 9, 50],
    [2, 2, 60],
  ]);
});

test("KTO's other reply is never one to the same prompt, in pairs of single replies either", () => {
  const reply = (prompt: number, token: number) => ({ ids: Int32Array.of(prompt, token), start: 1 });
  const pair = (chosen: number, rejected: number): Pair => ({
    chosen: reply(chosen, 50),
    rejected: reply(rejected, 60),
    refChosen: 0,
    refRejected: 0,
  });
  // Two good replies to prompt 1, bad ones to 2 and 3; and a pair whose neighbour's bad reply is to its own prompt.
  const pairs = [pair(1, 2), pair(1, 3), pair(4, 1), pair(5, 4)];
  addOthers(pairs, 10);
  expect(pairs.map((p) => [...p.other!.ids])).toEqual([
    [1, 60],
    [1, 50],
    [4, 50],
    [5, 60],
  ]);
  expect(() => addOthers([pair(1, 1), pair(1, 1)], 10)).toThrow(/same prompt/);
});

test("DPO begins at ln 2", () => {
  const same = trl.pairs.map((p) => ({ ...p, refChosen: p.chosen, refRejected: p.rejected }));
  expect(preferenceLoss(same, trl.family[0].options).loss).toBeCloseTo(Math.LN2, 12);
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

test("a bound on bad actions that is no bound is refused", () => {
  const of = (dualClip: number) => ppoSchema.shape.dualClip.safeParse(dualClip);
  expect([0, 1.5, 3].every((c) => of(c).success)).toBe(true);
  expect(of(-1).success).toBe(false);
  for (const c of [0.5, 1]) expect(of(c).error?.issues[0].message).toMatch(/0, or more than 1/);
});

test("group advantages", () => {
  const { scores, size, scaled, centered } = trl.groups;
  near(groupAdvantages(scores, size), scaled);
  near(groupAdvantages(scores, size, false), centered);
});

test.each(trl.grpo.map((g) => [g.kind, g] as const))("GRPO's loss, %s, and its gradient", (kind, g) => {
  const weights = tokenWeights(
    g.logp.map((row) => row.length),
    { lossType: kind, maxTokens: g.maxTokens },
  );
  const tokens = g.logp.flat().length;
  let [loss, kl, clipped] = [0, 0, 0];
  g.logp.forEach((row, i) => {
    const found = row.map((p, t) =>
      grpoLoss(p, g.old[i][t], g.ref[i][t], g.advantages[i], { clipRange: 0.2, klCoef: 0.04 }),
    );
    near(
      found.map((f) => f.slope * weights[i]),
      g.slopes[i],
    );
    for (const f of found) {
      loss += f.loss * weights[i];
      kl += f.kl / tokens;
      clipped += (f.clipped ? 1 : 0) / tokens;
    }
  });
  near([loss, kl], [g.loss, g.kl]);
  expect(clipped).toBeCloseTo(g.clipRatio, 7); // a mean of fp32 in TRL
});

test("what PPO tells of the KL is what it paid for, by the estimator that it was set to, as in TRL", () => {
  const logp = [Float32Array.of(-1, -2), Float32Array.of(-0.5)];
  const ref = [Float32Array.of(-2, -1.5), Float32Array.of(-1)];
  const none = logp.map(() => new Float64Array(0));
  const x = { episodes: [], scores: [3, 1], logp, ref, values: [], advantages: none, returns: none };
  for (const klEstimator of ["k1", "k3"] as const) {
    const paid = logp.map((row, i) => tokenRewards(row, ref[i], 0, 0.5, klEstimator).reduce((a, b) => a + b, 0));
    const told = stepMetrics(
      x,
      new Totals(),
      { klCoef: 0.5, kl: (r) => klOf(r, klEstimator) },
      { rollout: 1, update: 1 },
      1,
    );
    expect(told["objective/non_score_reward"]).toBeCloseTo((paid[0] + paid[1]) / 2, 6);
    expect(told["objective/rlhf_reward"]).toBeCloseTo(2 + (paid[0] + paid[1]) / 2, 6);
    expect(told["objective/kl"]).toBeCloseTo(-(paid[0] + paid[1]), 6);
  }
});

test("rewards of tokens: KL for each, the score at the last; the adaptive controller", () => {
  const rewards = tokenRewards(Float32Array.of(-1, -2), Float32Array.of(-1.5, -1), 3, 0.1);
  near(rewards, [-0.05, 3.1], 6);
  expect(adaptKlCoef(0.1, 12, 6, 32, 1000)).toBeCloseTo(0.1 * (1 + (0.2 * 32) / 1000), 12);
  expect(adaptKlCoef(0.1, 5.4, 6, 32, 1000)).toBeCloseTo(0.1 * (1 - (0.1 * 32) / 1000), 12);
});

test("rewards with a place after the reply: the score stands there, and the last token pays its own KL", () => {
  near(tokenRewards(Float32Array.of(-1, -2), Float32Array.of(-1.5, -1), 3, 0.1, "k1", true), [-0.05, 0.1, 3], 6);
});

// ---- from given weights, in fp32

const encoded = (replies: readonly Reply[]): EncodedReply[] =>
  replies.map((r) => ({ ids: Int32Array.from(r.ids), start: r.start }));
const load = (head: "lm" | "scalar" = "lm"): Llama => {
  const model = loadLlama(openCpu({ threads: 2 }), folder("gqa-tied"), "fp32", { head });
  if (head === "scalar") {
    const score = model.device.f32(model.outputMatrix!.ptr, model.outputMatrix!.size);
    score.set(score.map((_, i) => Math.fround(Math.fround(Math.sin(i)) * 0.3)));
  }
  return model;
};
const gradientsOf = (model: Llama): Gradients =>
  Object.fromEntries(
    [...model.parameters.named()].map((t) => {
      let [square, dot] = [0, 0];
      model.device.f32(t.gradPtr, t.size).forEach((x, i) => {
        square += x * x;
        dot += x * Math.cos(i);
      });
      return [t.name, { norm: Math.sqrt(square), dot }];
    }),
  );
function compareGradients(model: Llama, expected: Gradients): void {
  const found = gradientsOf(model);
  for (const [name, want] of Object.entries(expected)) {
    expect(Math.abs(found[name].norm - want.norm), name).toBeLessThan(1e-4 * want.norm);
    expect(Math.abs(found[name].dot - want.dot), name).toBeLessThan(1e-3 * want.norm);
  }
  expect(Object.keys(expected).length).toBeGreaterThan(8);
}

const { chosen, rejected, others, refs, refOther } = trl.endToEnd;
const pairs = (kto: boolean): Pair[] =>
  encoded(chosen).map((c, i) => ({
    chosen: c,
    rejected: encoded(rejected)[i],
    refChosen: refs.ref_chosen_logps[i],
    refRejected: refs.ref_rejected_logps[i],
    ...(kto && { other: encoded(others)[i], refOther: refOther[i] }),
  }));
test.each(trl.endToEnd.runs.map((r) => [r.options.loss, r] as const))(
  "%s from weights: loss and gradients as in TRL, whose batch is padded",
  (loss, { options, loss: expected, grads }) => {
    const model = load();
    const tape = new Tape(model.device);
    const found = backwardPairs(model, tape, pairs(loss === "kto"), { ...options, nll: 0 });
    expect(Math.abs(found.loss - expected)).toBeLessThan(1e-4 * Math.max(1, Math.abs(expected)));
    compareGradients(model, grads);
    tape.close();
    model.close();
  },
);

test("the reward model from weights: loss and gradients as in TRL, whose batch is padded", () => {
  const { reward } = trl.endToEnd;
  const model = load("scalar");
  const tape = new Tape(model.device);
  const batch = packSequences([...chosen, ...rejected].map((r) => r.ids));
  const values = model.values(tape, batch);
  const all = model.device.f32(values.ptr, values.size);
  const last = [...chosen, ...rejected].map((_, s) => batch.cuSeqlens[s + 1] - 1);
  const n = chosen.length;
  const groups = chosen.map((_, i) => [all[last[i]], all[last[n + i]]]);
  const result = rankingLoss(groups, { centering: reward.centering });
  expect(result.loss).toBeCloseTo(reward.loss, 4);
  const seed = tape.tensor(F32, values.shape);
  const slopes = model.device.f32(seed.ptr, values.size).fill(0);
  result.gradients.forEach(([c, r], i) => {
    slopes[last[i]] = c;
    slopes[last[n + i]] = r;
  });
  tape.backward(values, seed);
  compareGradients(model, reward.grads);
  tape.close();
  model.close();
});

const { replies, scores, options: settings } = golden.ppo;
const rows = (x: number[][]): Float32Array[] => x.map((row) => Float32Array.from(row));
test.each(golden.ppo.runs.map((r) => [JSON.stringify(r.options), r] as const))(
  "PPO from weights %s: advantages, losses and gradients of both updates as in a padded PyTorch batch",
  (_, run) => {
    const config = { ...settings, ...run.options, whitenAdvantages: true, clipRange: 0.2, clipRangeValue: 0.2 };
    const looks = { scores, logp: rows(golden.ppo.old), ref: rows(golden.ppo.ref), values: rows(golden.ppo.values) };
    const estimated = estimate(looks, settings.klCoef, config);
    run.advantages.forEach((row, i) => {
      near(estimated.advantages[i], row, 4);
      near(estimated.returns[i], run.returns[i], 4);
    });
    const x: Experience = { episodes: encoded(replies) as Episode[], ...looks, ...estimated };
    const which = replies.map((__, i) => i);
    const [actor, critic] = [load(), load("scalar")];
    const tape = new Tape(actor.device);
    const totals = new Totals();
    const policy = backwardPolicy(actor, tape, x, which, { ...config, dualClip: 0 }, totals);
    expect(totals.mean("loss/policy_avg")).toBeCloseTo(run.policy, 4);
    expect(totals.mean("policy/entropy_avg")).toBeCloseTo(run.entropy, 4);
    expect(policy.approxKl).toBeCloseTo(run.approxkl, 4);
    expect(policy.loss).toBeCloseTo(run.policy - settings.entropyCoef * run.entropy, 4);
    compareGradients(actor, run.actor);
    expect(backwardValues(critic, tape, x, which, config, totals)).toBeCloseTo(settings.vfCoef * run.value, 4);
    compareGradients(critic, run.critic);

    // What stands behind a reply is not there for its loss: minibatches of single replies add up to the whole.
    const shares = replies.map((r) => r.ids.length - r.start);
    const tokens = shares.reduce((a, b) => a + b, 0);
    const alone = which.map((i) => backwardPolicy(actor, tape, x, [i], { ...config, dualClip: 0 }, new Totals()).loss);
    expect(alone.reduce((sum, l, i) => sum + (l * shares[i]) / tokens, 0)).toBeCloseTo(policy.loss, 5);
    tape.close();
    actor.close();
    critic.close();
  },
);

test("GRPO from weights: its gradient is what differences of its loss say", () => {
  const model = load();
  const tape = new Tape(model.device);
  const x = {
    episodes: encoded(replies),
    old: rows(golden.ppo.old),
    reference: rows(golden.ppo.ref),
    advantages: [1.2, -0.7, 0.3, -1.5],
  };
  const config = { clipRange: 0.2, klCoef: 0.04, temperature: 0.7, lossType: "grpo", maxTokens: 8 } as const;
  const loss = (): number => backwardGroups(model, tape, [0, 1, 2, 3], x, config).loss;
  loss();
  const table = [...model.parameters.named()].find((t) => t.name === "model.norm.weight")!;
  const values = model.device.f32(table.ptr, table.size);
  const gradient = Float32Array.from(model.device.f32(table.gradPtr, table.size));
  for (const i of [0, 3, 7]) {
    const kept = values[i];
    const at = (shift: number): number => {
      values[i] = kept + shift;
      return loss();
    };
    const slope = (at(1e-2) - at(-1e-2)) / 2e-2;
    values[i] = kept;
    expect(Math.abs(slope - gradient[i])).toBeLessThan(0.02 * Math.abs(gradient[i]) + 1e-4);
  }
  tape.close();
  model.close();
});

test("a last layer that computes the wanted rows only gives the same values and the same gradient", () => {
  const model = load("scalar");
  const tape = new Tape(model.device);
  const batch = packSequences(replies.map((r) => r.ids));
  const wanted = Int32Array.from([2, 7, 8, batch.ids.length - 1]);
  const [all, some] = [undefined, wanted].map((rows) => {
    const values = model.values(tape, batch, rows);
    const found = values.toArray();
    const seed = tape.tensor(F32, values.shape);
    const slopes = model.device.f32(seed.ptr, values.size).fill(0);
    for (const [i, row] of wanted.entries()) slopes[row] = i + 1;
    tape.backward(values, seed);
    const gradients = gradientsOf(model);
    model.parameters.clearGrads();
    tape.reset();
    return { found, gradients };
  });
  for (const row of wanted) expect(some.found[row]).toBeCloseTo(all.found[row], 5);
  expect(some.found.filter((v) => v !== 0)).toHaveLength(wanted.length);
  expect(Object.keys(some.gradients)).toEqual(Object.keys(all.gradients));
  for (const [name, { norm, dot }] of Object.entries(all.gradients)) {
    expect(Math.abs(some.gradients[name].norm - norm), name).toBeLessThan(1e-5 * norm + 1e-7);
    expect(Math.abs(some.gradients[name].dot - dot), name).toBeLessThan(1e-4 * norm + 1e-7);
  }
  tape.close();
  model.close();
});
