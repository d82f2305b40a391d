/** The simulation of pipelines and rings against what is known of them. */
import { expect, test } from "vitest";
import { workOrder } from "../../src/plan/schedule.js";
import { type PipelineCase, simulatePipeline, simulateRing } from "../../src/plan/simulate.js";

const even = (stages: number, micro: number, more: Partial<PipelineCase> = {}): PipelineCase => ({
  stages,
  micro,
  schedule: "1f1b",
  forward: new Array<number>(stages).fill(1),
  backward: new Array<number>(stages).fill(2),
  send: 0,
  ...more,
});

test.each([
  [1, 4],
  [2, 1],
  [4, 4],
  [4, 32],
  [8, 3],
  [64, 128],
])("the bubble of %i stages and %i micro-batches is (p-1)/(m+p-1), for GPipe and 1F1B", (p, m) => {
  for (const schedule of ["gpipe", "1f1b"] as const) {
    const { bubble, seconds } = simulatePipeline(even(p, m, { schedule }));
    expect(bubble).toBeCloseTo((p - 1) / (m + p - 1), 10);
    expect(seconds).toBeCloseTo(3 * (m + p - 1), 8);
  }
});

test.each([
  [2, 4, 2],
  [4, 8, 2],
  [4, 8, 3],
  [8, 64, 4],
])("interleaved with %i stages, %i micro-batches, %i chunks: the bubble is smaller by the chunks", (p, m, v) => {
  const third = new Array<number>(p).fill(1 / v);
  const { bubble, pieces } = simulatePipeline(
    even(p, m, { chunks: v, forward: third, backward: third.map((x) => 2 * x) }),
  );
  expect(bubble).toBeCloseTo((p - 1) / (v * m + p - 1), 10);
  expect(pieces.length).toBe(2 * p * m * v);
});

test("1F1B holds at most as many micro-batches as there are stages after it; GPipe holds all", () => {
  expect([...simulatePipeline(even(4, 16)).held]).toEqual([4, 3, 2, 1]);
  expect([...simulatePipeline(even(4, 2)).held]).toEqual([2, 2, 2, 1]);
  expect([...simulatePipeline(even(4, 16, { schedule: "gpipe" })).held]).toEqual([16, 16, 16, 16]);
});

test("every piece of work is done once, and nothing before its input", () => {
  const c = even(4, 8, { chunks: 2, send: 0.3, forward: [1, 1.5, 0.7, 1], backward: [2, 1.1, 2.3, 2] });
  const { pieces } = simulatePipeline(c);
  const ended = new Map(
    pieces.map((p) => [`${p.work.backward} ${p.work.chunk * 4 + p.stage} ${p.work.micro}`, p.to] as const),
  );
  expect(ended.size).toBe(2 * 4 * 8 * 2);
  for (const { stage, work, from } of pieces) {
    const at = work.chunk * 4 + stage;
    const needs = work.backward ? at + 1 : at - 1;
    const turn = needs === 8;
    const before = turn ? ended.get(`false ${at} ${work.micro}`) : ended.get(`${work.backward} ${needs} ${work.micro}`);
    if (needs >= 0) expect(from).toBeGreaterThanOrEqual(before! + (turn ? 0 : c.send) - 1e-9);
  }
});

test("one slow stage sets the pace; a slow moment of one stage delays by that much at most", () => {
  const slow = simulatePipeline(even(4, 100, { forward: [1, 1, 2, 1], backward: [2, 2, 4, 2] }));
  expect(slow.seconds).toBeGreaterThanOrEqual(600);
  expect(slow.seconds).toBeLessThan(600 + 4 * 6);
  const once = simulatePipeline(
    even(4, 100, { slowness: (stage, w) => (stage === 1 && w.micro === 50 && !w.backward ? 6 : 1) }),
  );
  expect(once.seconds).toBeLessThanOrEqual(3 * 103 + 5 + 1e-9);
  expect(once.seconds).toBeGreaterThan(3 * 103);
});

test("a ring of n ranks moves 2 (n-1)/n of the bytes; who comes last holds up all", () => {
  const [bytes, bandwidth, latency] = [8e9, 1e9, 1e-6];
  for (const n of [2, 3, 8, 100]) {
    const all = simulateRing(new Float64Array(n), bytes, bandwidth, latency);
    expect(all[0]).toBeCloseTo(2 * (n - 1) * (bytes / n / bandwidth + latency), 8);
  }
  const late = simulateRing([0, 0, 5, 0], bytes, bandwidth, 0);
  expect(Math.max(...late)).toBeCloseTo(5 + (2 * 3 * 8) / 4, 8);
  expect(simulateRing([3], bytes, bandwidth, latency)[0]).toBe(3);
});

test("orders name each micro-batch once forward and once backward, backward after forward", () => {
  for (const [stages, micro, chunks] of [
    [4, 8, 1],
    [4, 3, 1],
    [4, 8, 3],
  ])
    for (let s = 0; s < stages; s++) {
      const order = workOrder("1f1b", s, stages, micro, chunks);
      const seen = new Set<string>();
      for (const w of order) {
        const name = `${w.micro}/${w.chunk}`;
        if (w.backward) expect(seen.has(name)).toBe(true);
        else seen.add(name);
      }
      expect(seen.size).toBe(micro * chunks);
      expect(order.length).toBe(2 * micro * chunks);
    }
});
