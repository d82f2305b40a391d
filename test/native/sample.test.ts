import { expect, test } from "vitest";
import { F32 } from "../../src/device/device.js";
import { type Bench, numbers, onEach } from "./reference.js";

interface Options {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  penalty?: number;
  history?: number[];
}
/** Draws once for every u from the same logits. */
function draw(b: Bench, logits: Float64Array, us: number[], o: Options = {}): { ids: number[]; logp: number[] } {
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
const softmax = (x: Float64Array, t = 1): Float64Array => {
  const max = Math.max(...x);
  const e = x.map((v) => Math.exp((v - max) / t));
  const sum = e.reduce((a, c) => a + c, 0);
  return e.map((v) => v / sum);
};
const grid = (n: number): number[] => Array.from({ length: n }, (_, i) => (i + 0.5) / n);

test("greedy takes the largest, the lowest id of equals, and tells its log probability", () => {
  onEach((b) => {
    const x = Float64Array.from([1, 3, -2, 3, 0]);
    const { ids, logp } = draw(b, x, [0.1, 0.9], { temperature: 0 });
    expect(ids).toEqual([1, 1]);
    expect(logp[0]).toBeCloseTo(Math.log(softmax(x)[1]), 5);
  });
});

test("an even grid of u draws every token as often as its probability, with any cut", () => {
  onEach((b) => {
    const x = numbers(50, 3, 3);
    const n = 4000;
    const cases: [Options, (p: Float64Array) => Float64Array][] = [
      [{}, (p) => p],
      [{ temperature: 0.5 }, () => softmax(x, 0.5)],
      [{ topK: 5 }, (p) => keep(p, (rank) => rank < 5)],
      [{ topP: 0.6 }, (p) => keep(p, (_, before) => before < 0.6)],
      [{ minP: 0.3 }, (p) => keep(p, (_, __, share) => share >= 0.3)],
      [{ topK: 10, topP: 0.9, minP: 0.05, temperature: 1.5 }, () => combined(x)],
    ];
    for (const [options, cut] of cases) {
      const expected = cut(softmax(x));
      const counts = new Float64Array(50);
      for (const id of draw(b, x, grid(n), options).ids) counts[id]++;
      counts.forEach((c, id) => {
        if (Math.abs(c / n - expected[id]) > 2e-3)
          throw new Error(`${JSON.stringify(options)}: token ${id} drawn ${c / n}, expected ${expected[id]}`);
      });
    }
  });
});
/** Probabilities kept by (rank, mass before, share of the best), and scaled to 1 again. */
function keep(p: Float64Array, test: (rank: number, before: number, share: number) => boolean): Float64Array {
  const order = [...p.keys()].sort((i, j) => p[j] - p[i]);
  const y = new Float64Array(p.length);
  let before = 0;
  order.forEach((id, rank) => {
    if (test(rank, before, p[id] / p[order[0]])) y[id] = p[id];
    before += p[id];
  });
  const sum = y.reduce((a, c) => a + c, 0);
  return y.map((v) => v / sum);
}
/** top-k, then top-p of what is left, then min-p. */
function combined(x: Float64Array): Float64Array {
  const k = keep(softmax(x, 1.5), (rank) => rank < 10);
  return keep(
    keep(k, (_, before) => before < 0.9),
    (_, __, share) => share >= 0.05,
  );
}

test("repetition penalty divides positive logits of past tokens and multiplies negative ones, once each", () => {
  onEach((b) => {
    const x = Float64Array.from([2, 1.5, -1, -1.2]);
    // 2 / 2 = 1 < 1.5: token 1 wins. Seen twice, token 0 is penalised once.
    expect(draw(b, x, [0.5], { temperature: 0, penalty: 2, history: [0, 0] }).ids).toEqual([1]);
    expect(draw(b, Float64Array.from([-1, -1.5]), [0.5], { temperature: 0, penalty: 2, history: [0] }).ids).toEqual([
      1,
    ]);
  });
});

test("the ends of u, huge logits and a vocabulary of one", () => {
  onEach((b) => {
    const x = Float64Array.from([1e4, -1e4, 0]);
    expect(draw(b, x, [0, 0.999999]).ids).toEqual([0, 0]);
    expect(draw(b, Float64Array.from([3]), [0, 0.999999], { topP: 0.01, topK: 3 }).ids).toEqual([0, 0]);
    const minusInfinity = Float64Array.from([Number.NEGATIVE_INFINITY, 0, 0]);
    expect(new Set(draw(b, minusInfinity, grid(10)).ids)).toEqual(new Set([1, 2]));
  });
});
