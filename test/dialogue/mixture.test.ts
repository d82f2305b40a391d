import { expect, test } from "vitest";
import { drawMixture, INSTRUCTGPT, mixtureWeights } from "../../src/dialogue/mixture.js";

test("InstructGPT's table sums to one hundred as in the notes, and its Chinese names are read", () => {
  const total = Object.values(INSTRUCTGPT).reduce((n, { share }) => n + share, 0);
  expect(total).toBeCloseTo(99.9, 6);
  expect(mixtureWeights({ 头脑风暴: 2, chat: 1 })).toEqual({ brainstorming: 2, chat: 1 });
});

test("a mixture draws exact shares, the same ones for the same seed, every record before any repeats", () => {
  const types = Array.from({ length: 100 }, (_, i) => (i < 80 ? "open_qa" : "chat"));
  const { order, report } = drawMixture(types, { open_qa: 1, chat: 1, extract: 5 }, 7, 0);
  expect(order).toHaveLength(100);
  expect(report.map((r) => [r.type, r.drawn, r.records, r.repeats])).toEqual([
    ["open_qa", 0.5, 80, 50 / 80],
    ["chat", 0.5, 20, 2.5],
  ]);
  expect(new Set(order.filter((i) => i < 80)).size).toBe(50);
  expect(new Set(order.filter((i) => i >= 80)).size).toBe(20);
  expect(drawMixture(types, { open_qa: 1, chat: 1 }, 7, 0).order).toEqual(order);
  expect(drawMixture(types, { open_qa: 1, chat: 1 }, 7, 1).order).not.toEqual(order);
  expect(() => drawMixture(types, { extract: 1 }, 7, 0)).toThrow(/the records' types are open_qa, chat/);
});
