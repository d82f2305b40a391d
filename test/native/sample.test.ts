/** Choosing tokens: the distribution that each option leaves against a plain reference, and how draws follow it. */
import { expect, test } from "vitest";
import { F32 } from "../../src/device/device.js";
import { type Bench, expectSameOnAnyThreads, numbers, onEach } from "./reference.js";

interface Options {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  penalty?: number;
  history?: number[];
}
/** Draws once for every u from the same logits. */
function draw(b: Bench, logits: Float64Array, us: ArrayLike<number>, o: Options = {}) {
  const V = logits.length;
  const B = us.length;
  const rows = b.put(
    Float64Array.from({ length: B * V }, (_, i) => logits[i % V]),
    F32,
  );
  const history = o.history ?? [];
  const width = Math.max(1, history.length);
  const past = b.ints(Array.from({ length: B * width }, (_, i) => history[i % width] ?? 0));
  const [ids, logp, u] = [b.alloc(B), b.alloc(B), b.alloc(B)];
  b.device.f32(u, B).set(us);
  const counts = b.ints(new Array(B).fill(history.length));
  // biome-ignore format: one call
  b.device.sample(rows, B, V, past, counts, width, o.penalty ?? 1, o.temperature ?? 1, o.topK ?? 0, o.topP ?? 1, o.minP ?? 0, u, ids, logp);
  return { ids: Array.from(b.device.i32(ids, B)), logp: Array.from(b.get(logp, B)) };
}
const normalised = (x: Float64Array): Float64Array => {
  const sum = x.reduce((a, c) => a + c, 0);
  return x.map((v) => v / sum);
};
const softmax = (x: Float64Array, t = 1): Float64Array => {
  const max = Math.max(...x);
  return normalised(x.map((v) => Math.exp((v - max) / t)));
};
/** Probabilities for which `test` of (rank, mass before, share of the best) holds, scaled to 1 again. */
function keep(p: Float64Array, test: (rank: number, before: number, share: number) => boolean): Float64Array {
  const order = [...p.keys()].sort((i, j) => p[j] - p[i] || i - j);
  const y = new Float64Array(p.length);
  let before = 0;
  order.forEach((id, rank) => {
    if (test(rank, before, p[id] / p[order[0]])) y[id] = p[id];
    before += p[id];
  });
  return normalised(y);
}
/** Penalty (CTRL, Keskar et al. 2019), temperature, top-k, top-p (Holtzman et al. 2020), min-p, in this order. */
function reference(logits: Float64Array, o: Options): { kept: Float64Array; all: Float64Array } {
  const x = Float64Array.from(logits);
  const { penalty = 1, topK = 0, topP = 1, minP = 0 } = o;
  for (const id of new Set(o.history)) x[id] = x[id] > 0 ? x[id] / penalty : x[id] * penalty;
  const all = softmax(x, o.temperature);
  let kept = all;
  if (topK > 0) kept = keep(kept, (rank) => rank < topK);
  if (topP < 1) kept = keep(kept, (rank, before) => rank === 0 || before < topP);
  if (minP > 0) kept = keep(kept, (_, __, share) => share >= minP);
  return { kept, all };
}
const grid = (n: number): number[] => Array.from({ length: n }, (_, i) => (i + 0.5) / n);

const CASES: Options[] = [
  {},
  { temperature: 0.5 },
  { temperature: 2 },
  { topK: 1 },
  { topK: 5 },
  { topK: 500 },
  { topP: 0.6 },
  { topP: 0.05 },
  { topP: 0 },
  { minP: 0.3 },
  { minP: 1 },
  { penalty: 1.7, history: [3, 3, 9, 20, 49] },
  { penalty: 0.6, history: [0, 1, 2] },
  { topK: 10, topP: 0.9, minP: 0.05, temperature: 1.5, penalty: 1.2, history: [5, 7, 5] },
];

test("an even grid of u draws every token as often as its probability, with every cut", () => {
  const x = numbers(50, 3, 3);
  const n = 3000;
  onEach((b) => {
    for (const options of CASES) {
      const { kept, all } = reference(x, options);
      const counts = new Float64Array(50);
      const { ids, logp } = draw(b, x, grid(n), options);
      ids.forEach((id, i) => {
        counts[id]++;
        if (!(Math.abs(logp[i] - Math.log(all[id])) < 1e-5))
          // of the distribution before any cut
          throw new Error(`${JSON.stringify(options)}: log p of ${id} is ${logp[i]}, expected ${Math.log(all[id])}`);
      });
      counts.forEach((c, id) => {
        if (!(Math.abs(c - n * kept[id]) <= 1.01))
          throw new Error(`${JSON.stringify(options)}: token ${id} drawn ${c} times, expected ${n * kept[id]}`);
      });
    }
  });
});

test("min-p cuts what top-p left: the mass of top-p is that of all tokens", () => {
  // 0.5, nine of 0.05, fifty of 0.001. Top-p 0.72 keeps 0.5 and five of 0.05. Had min-p gone first, the fifty would be
  // missing in the total, and four of 0.05 would already be 0.72 of it.
  const p = Float64Array.from([0.5, ...new Array(9).fill(0.05), ...new Array(50).fill(0.001)]);
  const options = { topP: 0.72, minP: 0.09 };
  const { kept } = reference(p.map(Math.log), options);
  const first = keep(p, (_, __, share) => share >= 0.09); // the other order
  const other = keep(first, (_, before) => before < 0.72);
  expect(kept.filter((x) => x > 0).length).not.toBe(other.filter((x) => x > 0).length);
  onEach((b) => {
    const { ids } = draw(b, p.map(Math.log), grid(2000), options);
    expect(new Set(ids).size).toBe(kept.filter((x) => x > 0).length);
  });
});

/** The quantile 0.999 of chi-square with 11 degrees of freedom. */
const LIMIT_11 = 31.26;
test("draws with the engine's own random numbers follow the distribution", () => {
  const x = numbers(12, 8, 1.5);
  const n = 20_000;
  onEach((b) => {
    for (const [seed, options] of [
      {},
      { temperature: 0.7 },
      { temperature: 1.6, penalty: 1.3, history: [2, 4] },
    ].entries()) {
      const u = b.alloc(n);
      b.device.randomUniform(u, n, seed + 1, 11);
      const { kept } = reference(x, options);
      const counts = new Float64Array(12);
      for (const id of draw(b, x, b.get(u, n), options).ids) counts[id]++;
      const chi2 = counts.reduce((s, c, i) => s + (c - n * kept[i]) ** 2 / (n * kept[i]), 0);
      expect(chi2).toBeLessThan(LIMIT_11);
      expect(chi2).toBeGreaterThan(0.5); // less would be no random draw
    }
  });
});

test("a larger vocabulary with many equal weights: cuts fall where the sorted list has them, ties by id", () => {
  const x = numbers(700, 4, 2).map((v) => Math.round(v * 8) / 8);
  const n = 4000;
  onEach((b) => {
    for (const options of [{}, { topK: 100 }, { topK: 3 }, { topP: 0.5 }, { topP: 0.97 }, { topK: 300, topP: 0.4 }]) {
      const { kept } = reference(x, options);
      const counts = new Float64Array(700);
      for (const id of draw(b, x, grid(n), options).ids) counts[id]++;
      counts.forEach((c, id) => {
        if (!(Math.abs(c - n * kept[id]) <= 1.01))
          throw new Error(`${JSON.stringify(options)}: token ${id} drawn ${c} times, expected ${n * kept[id]}`);
      });
    }
  });
});

test("greedy takes the largest, the lowest id of equals, and tells its log probability", () => {
  onEach((b) => {
    const x = Float64Array.from([1, 3, -2, 3, 0]);
    const { ids, logp } = draw(b, x, [0.1, 0.9], { temperature: 0 });
    expect(ids).toEqual([1, 1]);
    expect(logp[0]).toBeCloseTo(Math.log(softmax(x)[1]), 5);
    expect(draw(b, x, [0, 0.5, 0.999], { temperature: 1e-6, topK: 1 }).ids).toEqual([1, 1, 1]);
  });
});

test("repetition penalty divides positive logits of past tokens and multiplies negative ones, once each", () => {
  onEach((b) => {
    const x = Float64Array.from([2, 1.5, -1, -1.2]);
    // 2 / 2 = 1 < 1.5: token 1 wins. Seen twice, token 0 is penalised once.
    expect(draw(b, x, [0.5], { temperature: 0, penalty: 2, history: [0, 0] }).ids).toEqual([1]);
    expect(draw(b, x, [0.5], { temperature: 0, penalty: 1.3, history: [0, 0] }).ids).toEqual([0]);
    const negative = Float64Array.from([-1, -1.5]);
    expect(draw(b, negative, [0.5], { temperature: 0, penalty: 2, history: [0] }).ids).toEqual([1]);
  });
});

test("every row has its own logits, history and u", () => {
  onEach((b) => {
    const [B, V, width] = [5, 33, 4];
    const x = numbers(B * V, 6, 2);
    const history = Array.from({ length: B * width }, (_, i) => (i * 5) % V);
    const lengths = [0, 1, 2, 3, 4];
    const u = [0.1, 0.3, 0.5, 0.7, 0.9];
    const [rows, past, counts] = [b.put(x, F32), b.ints(history), b.ints(lengths)];
    const [pu, ids, logp] = [b.put(Float64Array.from(u), F32), b.alloc(B), b.alloc(B)];
    b.device.sample(rows, B, V, past, counts, width, 1.5, 0.8, 0, 1, 0, pu, ids, logp);
    for (let r = 0; r < B; r++) {
      const own = history.slice(r * width, r * width + lengths[r]);
      const options = { temperature: 0.8, penalty: 1.5, history: own };
      const alone = draw(b, x.slice(r * V, (r + 1) * V), [u[r]], options);
      expect(b.device.i32(ids, B)[r]).toBe(alone.ids[0]);
      const { all } = reference(x.slice(r * V, (r + 1) * V), options);
      expect(b.get(logp, B)[r]).toBeCloseTo(Math.log(all[alone.ids[0]]), 5);
    }
  });
});

test("the ends of u, huge logits, minus infinity, and a vocabulary of one", () => {
  onEach((b) => {
    const ends = [0, 1 - 2 ** -24];
    expect(draw(b, Float64Array.from([1e4, -1e4, 0]), ends).ids).toEqual([0, 0]);
    expect(draw(b, Float64Array.from([0, 0, 0]), ends).ids).toEqual([0, 2]);
    // A token owns its share of [0, 1) with the lower end and without the upper.
    expect(draw(b, Float64Array.from([0, 0]), [0.5 - 2 ** -25, 0.5]).ids).toEqual([0, 1]);
    expect(draw(b, Float64Array.from([3]), ends, { topP: 0.01, topK: 3 })).toEqual({ ids: [0, 0], logp: [0, 0] });
    const minus = Number.NEGATIVE_INFINITY;
    for (const options of [{}, { topP: 0.99 }, { topK: 3 }, { minP: 1e-9 }])
      expect(new Set(draw(b, Float64Array.from([minus, 0, 0, minus]), [...grid(10), ...ends], options).ids)).toEqual(
        new Set([1, 2]),
      );
  });
});

test("a NaN anywhere in the logits is told by the log probability, and the id stays in the vocabulary", () => {
  onEach((b) => {
    for (const at of [0, 1, 4])
      for (const options of [{}, { temperature: 0 }, { topP: 0.9, topK: 3, minP: 0.1 }]) {
        const x = Float64Array.from([1, 3, -2, 3, 0]);
        x[at] = Number.NaN;
        const { ids, logp } = draw(b, x, [0, 0.5], options);
        expect(logp).toEqual([Number.NaN, Number.NaN]);
        expect(ids.every((id) => id >= 0 && id < 5)).toBe(true);
      }
  });
});

test("the number of threads does not change a draw", () => {
  expectSameOnAnyThreads((b) => JSON.stringify(draw(b, numbers(500, 2, 4), grid(64), { topP: 0.9, temperature: 1.3 })));
});
