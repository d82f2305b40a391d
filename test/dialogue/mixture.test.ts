import fc from "fast-check";
import { expect, test } from "vitest";
import { canonicalType, drawMixture, INSTRUCTGPT, mixtureWeights } from "../../src/dialogue/mixture.js";

test("InstructGPT's table, as the notes print it", () => {
  // 99.9: the published percentages are rounded.
  const shares = Object.values(INSTRUCTGPT).map(({ share }) => share);
  expect(shares.reduce((n, s) => n + s, 0)).toBeCloseTo(99.9, 6);
  expect(shares).toEqual([45.6, 12.4, 11.2, 8.4, 6.6, 4.2, 3.5, 3.5, 2.6, 1.9]);
  expect(
    Object.values(INSTRUCTGPT)
      .map(({ chinese }) => chinese)
      .join(" "),
  ).toBe("文本生成 开放域问答 头脑风暴 聊天 文本转写 文本总结 文本分类 其他 特定域问答 文本抽取");
  expect(mixtureWeights("instructgpt")).toMatchObject({ generation: 45.6, extract: 1.9 });
});

test("types by any of their names", () => {
  expect(["开放域问答", "Open QA", "open-qa", " open_qa "].map(canonicalType)).toEqual(Array(4).fill("open_qa"));
  expect([undefined, "", "其他", "Poems", "constructor"].map(canonicalType)).toEqual([
    "other",
    "other",
    "other",
    "Poems",
    "constructor",
  ]);
  expect(mixtureWeights({ 头脑风暴: 2, Chat: 1, Poems: 3 })).toEqual({ brainstorming: 2, chat: 1, Poems: 3 });
  expect(() => mixtureWeights({ chat: 1, 聊天: 1 })).toThrow(/names chat twice, once as "聊天"/);
});

test("a mixture draws exact shares, and reports what it could not draw and what it left out", () => {
  const types = Array.from({ length: 100 }, (_, i) => (i < 70 ? "open_qa" : i < 90 ? "chat" : "rewrite"));
  const { order, report } = drawMixture(types, { open_qa: 1, chat: 1, extract: 2 }, 7, 0);
  expect(order).toHaveLength(100);
  expect(report).toEqual([
    { type: "open_qa", wanted: 0.25, drawn: 0.5, records: 70, repeats: 50 / 70 },
    { type: "chat", wanted: 0.25, drawn: 0.5, records: 20, repeats: 2.5 },
    { type: "extract", wanted: 0.5, drawn: 0, records: 0, repeats: 0 },
    { type: "rewrite", wanted: 0, drawn: 0, records: 10, repeats: 0 },
  ]);
  expect(drawMixture(types, { open_qa: 1, chat: 1 }, 7, 0).order).toEqual(order);
  expect(drawMixture(types, { open_qa: 1, chat: 1 }, 7, 1).order).not.toEqual(order);
  expect(drawMixture(types, { open_qa: 1, chat: 1 }, 8, 0).order).not.toEqual(order);
});

test("over any epochs: shares within one draw, and no record twice before all of its type once", () => {
  const setting = fc.record({
    records: fc.array(fc.constantFrom("chat", "rewrite", "other"), { minLength: 1, maxLength: 40 }),
    weights: fc.dictionary(fc.constantFrom("chat", "rewrite", "other"), fc.double({ min: 0.01, max: 9, noNaN: true })),
    seed: fc.nat(1000),
    epochs: fc.integer({ min: 1, max: 5 }),
  });
  fc.assert(
    fc.property(setting, ({ records, weights, seed, epochs }) => {
      fc.pre(records.some((t) => weights[t] !== undefined));
      const times = records.map(() => 0);
      for (let epoch = 0; epoch < epochs; epoch++) {
        const { order, report } = drawMixture(records, weights, seed, epoch);
        expect(order).toHaveLength(records.length);
        const held = report.filter((r) => r.wanted > 0 && r.records > 0).reduce((n, r) => n + r.wanted, 0);
        for (const r of report) {
          expect(order.filter((i) => records[i] === r.type).length).toBe(Math.round(r.drawn * records.length));
          if (r.wanted > 0 && r.records > 0)
            expect(Math.abs(r.drawn - r.wanted / held) * records.length).toBeLessThan(1 + 1e-9);
        }
        for (const i of order) times[i]++;
      }
      for (const type of Object.keys(weights)) {
        const own = times.filter((_, i) => records[i] === type);
        if (own.length > 0) expect(Math.max(...own) - Math.min(...own)).toBeLessThanOrEqual(1);
      }
    }),
  );
});

test("weights that cannot be meant are refused, with the known types", () => {
  expect(() => drawMixture(["chat", "poems"], { chatt: 1 }, 7, 0)).toThrow(
    /no record has the type "chatt". Known are generation, .*extract, and of these records poems/,
  );
  expect(() => drawMixture(["chat"], { extract: 1 }, 7, 0)).toThrow(/the records' types are chat/);
  expect(() => drawMixture(["chat"], { chat: 0 }, 7, 0)).toThrow(/the records' types are chat/);
  expect(() => drawMixture(["chat"], { chat: -1 }, 7, 0)).toThrow(/weight of chat is -1/);
  expect(() => drawMixture(["chat"], { chat: Number.NaN }, 7, 0)).toThrow(/weight of chat is NaN/);
  expect(() => drawMixture(["chat"], { constructor: 1 }, 7, 0)).toThrow(/no record has the type "constructor"/);
});
