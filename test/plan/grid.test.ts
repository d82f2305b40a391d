/** A whole cluster's step, with devices that differ. */
import { expect, test } from "vitest";
import { makeCluster } from "../../src/plan/cluster.js";
import { simulateGrid } from "../../src/plan/grid.js";
import { layout, workload } from "../../src/plan/layout.js";
import { llamaShape, namedShape } from "../../src/plan/shape.js";
import { stepTime } from "../../src/plan/time.js";

test("10,000 devices: equal ones take what the plan says, different ones longer, the more they differ", () => {
  const shape = llamaShape("100B", [80, 10240, 80, 8, 28672, 128000]);
  const w = workload({ shape, globalBatch: 4000, contextLength: 4096 });
  const c = makeCluster({ device: "h100", devices: 10_000 });
  const l = layout({ name: "", data: 250, tensor: 8, pipeline: 5, zero: 1, sequenceParallel: true });
  const equal = simulateGrid(w, l, c, 0);
  const { parts } = stepTime(w, l, c);
  expect(equal.even).toBeCloseTo(parts.pipeline + parts.gradients, 6);
  expect(equal.uneven).toBeCloseTo(equal.even, 6);
  expect(equal.pieces).toBe(250 * 5 * 16 * 2);
  const [little, more] = [simulateGrid(w, l, c, 0.02), simulateGrid(w, l, c, 0.05)];
  expect(little.even).toBe(equal.even);
  // The slowest of 10,000 devices is nearly four deviations away, and everybody waits for it.
  expect(little.uneven / equal.even).toBeGreaterThan(1.05);
  expect(little.uneven / equal.even).toBeLessThan(1.15);
  expect(more.uneven).toBeGreaterThan(little.uneven);
  expect(more.waiting).toBeGreaterThan(equal.waiting);
  expect(simulateGrid(w, l, c, 0.02)).toEqual(little); // the same draws every time
  expect(simulateGrid(w, l, c, 0.02, 9).uneven).not.toBe(little.uneven);
});

test("10,000 replicas without a pipeline: the ring is simulated rank by rank", () => {
  const w = workload({ shape: namedShape("1.7B")!, globalBatch: 10_000, contextLength: 2048 });
  const c = makeCluster({ devices: 10_000 });
  const r = simulateGrid(w, layout({ name: "", data: 10_000, zero: 1 }), c, 0.01);
  expect(r.exchanges).toBe(2 * 9999 * 10_000);
  expect(r.uneven).toBeGreaterThan(r.even);
});
