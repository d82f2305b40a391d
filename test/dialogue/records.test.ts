import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import type { Rejected } from "../../src/corpus/read.js";
import { drawMixture, INSTRUCTGPT, mixtureWeights } from "../../src/dialogue/mixture.js";
import { packRows, sampleBatch } from "../../src/dialogue/pack.js";
import { readConversations, toConversation } from "../../src/dialogue/records.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-records-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const write = (name: string, content: string | Buffer): string => {
  writeFileSync(join(dir, name), content);
  return join(dir, name);
};

test("the three formats, in one file or as one array", () => {
  const records = [
    { instruction: "Translate", input: "hola", output: "hello", type: "rewrite" },
    { instruction: "Now?", output: "Now.", history: [["Then?", "Then."]], system: "S" },
    {
      conversations: [
        { from: "human", value: "a" },
        { from: "gpt", value: "b" },
      ],
    },
    {
      messages: [
        { role: "system", content: "s" },
        { role: "user", content: "a" },
        { role: "assistant", content: "b" },
      ],
    },
  ];
  const lines = write("a.jsonl", `\uFEFF${records.map((r) => JSON.stringify(r)).join("\r\n\r\n")}\n`);
  const array = write("a.json", JSON.stringify(records, null, 2));
  const rejected: Rejected[] = [];
  const fromLines = readConversations([lines], rejected);
  expect(fromLines.map((c) => c.messages)).toEqual(readConversations([array], rejected).map((c) => c.messages));
  expect(fromLines.map((c) => c.source.line)).toEqual([1, 3, 5, 7]);
  expect(fromLines[0]).toMatchObject({
    type: "rewrite",
    messages: [
      { role: "user", content: "Translate", input: "hola" },
      { role: "assistant", content: "hello" },
    ],
  });
  expect(fromLines[1].messages.map((m) => m.role)).toEqual(["system", "user", "assistant", "user", "assistant"]);
  expect(rejected).toEqual([]);
});

test.each([
  [5, "not a JSON object"],
  [{ text: "x" }, "of no known format"],
  [{ instruction: "a" }, 'no "output"'],
  [{ instruction: "a", output: 3 }, '"output" is not text'],
  [{ instruction: "a", output: "  " }, "reply 1 is empty"],
  [{ messages: [] }, "no messages"],
  [{ messages: [{ role: "user", content: "a" }] }, "no reply to learn"],
  [{ messages: [{ role: "assistant", content: "a" }] }, "the user's turn"],
  [
    {
      messages: [
        { role: "user", content: "a" },
        { role: "user", content: "b" },
      ],
    },
    "the assistant's turn",
  ],
  [{ messages: [{ role: "wizard", content: "a" }] }, '"wizard"; known are'],
  [{ conversations: [{ from: "human" }] }, "conversations[0].value is not text"],
  [{ instruction: "a\ud800", output: "b" }, "surrogate"],
  [{ instruction: "a", output: "b", history: "x" }, '"history" is not a list'],
])("%j is set aside: %s", (record, reason) => {
  expect(toConversation(record)).toContain(reason);
});

test("broken lines are listed with their numbers; with nothing left it is an error", () => {
  const good = JSON.stringify({ instruction: "a", output: "b" });
  const file = write(
    "b.jsonl",
    Buffer.concat([Buffer.from(`${good}\n{"a":\n`), Buffer.from([0x22, 0xff, 0x22, 10]), Buffer.from(good)]),
  );
  const rejected: Rejected[] = [];
  expect(readConversations([file], rejected)).toHaveLength(2);
  expect(rejected.map((r) => [r.line, r.reason.slice(0, 9)])).toEqual([
    [2, "not JSON:"],
    [3, "there are"],
  ]);
  expect(() => readConversations([write("c.jsonl", "{}\n")], [])).toThrow(/c.jsonl:1: its keys \(none\)/);
  expect(() => readConversations([write("d.jsonl", "")], [])).toThrow(/no record can be used/);
  expect(() => readConversations([join(dir, "none.jsonl")], [])).toThrow(/none.jsonl does not exist/);
});

test("packing loses and repeats nothing, and fills rows to at most the context", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 90 }), { maxLength: 300 }), (lengths) => {
      const rows = packRows(lengths, 64);
      expect(rows.flat().sort((a, b) => a - b)).toEqual(lengths.map((_, i) => i));
      for (const row of rows) expect(row.length === 1 || row.reduce((n, i) => n + lengths[i], 0) <= 64).toBe(true);
      // First fit: no two rows could have been one.
      const sums = rows.map((row) => row.reduce((n, i) => n + lengths[i], 0)).filter((n) => n <= 32);
      expect(sums.length).toBeLessThanOrEqual(1);
    }),
  );
});

test("a batch predicts the next token where that is trainable, never across samples", () => {
  const batch = sampleBatch([
    { ids: Int32Array.of(1, 2, 3), trainable: Uint8Array.of(0, 1, 1) },
    { ids: Int32Array.of(4, 5), trainable: Uint8Array.of(1, 0) },
  ]);
  expect(Array.from(batch.targets)).toEqual([2, 3, -1, -1, -1]);
  expect(Array.from(batch.cuSeqlens)).toEqual([0, 3, 5]);
  expect(Array.from(batch.positions)).toEqual([0, 1, 2, 0, 1]);
});

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
