/** What is evaluated, and how sure the numbers are: records of every kind, bad ones, intervals. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { bootstrapMean, wilson, winRate } from "../../src/stages/eval/interval.js";
import { readTasks, taskOf } from "../../src/stages/eval/tasks.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-eval-tasks-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const write = (name: string, lines: unknown[]): string => {
  const file = join(dir, name);
  writeFileSync(file, lines.map((l) => (typeof l === "string" ? l : JSON.stringify(l))).join("\n"));
  return file;
};

test("a record's keys tell its task; one file may hold all of them", async () => {
  const file = write("all.jsonl", [
    { text: "The owl sees the fox.", metadata: { url: "x" } },
    "",
    { question: "Capital of Chad?", answers: ["N'Djamena"], language: "en", field: "capital" },
    { question: "Capital of Peru?", answer: "Lima" },
    { question: "Capital of Mali?", choices: ["Bamako", "Lima"], answer: 0 },
    { prompt: "Say hello." },
    { prompt: [{ role: "user", content: "Hi" }], id: 7 },
    { prompt: "Capital of Cuba?", answer: "Havana" },
  ]);
  const tasks = await readTasks([file]);
  expect(tasks.texts).toEqual([{ text: "The owl sees the fox.", source: { file, line: 1 } }]);
  expect(tasks.questions.map(({ answers, group, source }) => [answers, group, source.line])).toEqual([
    [["N'Djamena"], "en capital", 3],
    [["Lima"], "all", 4],
    [["Havana"], "all", 8],
  ]);
  expect(tasks.choices[0]).toMatchObject({ choices: ["Bamako", "Lima"], answer: 0, source: { line: 5 } });
  expect(tasks.prompts.map((p) => p.messages)).toEqual([
    [{ role: "user", content: "Say hello." }],
    [{ role: "user", content: "Hi" }],
  ]);
});

test.each([
  [{ text: "" }, '"text" is empty'],
  [{ text: 3 }, '"text" is not text'],
  [{ text: "\ud800" }, "surrogate"],
  [{ question: "Q" }, '"answers"'],
  [{ question: "Q", answers: [] }, '"answers"'],
  [{ question: "Q", answers: ["a", ""] }, "answers[1] is empty"],
  [{ answers: ["a"] }, 'there is no "question"'],
  [{ question: "Q", choices: ["a"], answer: 0 }, "two or more"],
  [{ question: "Q", choices: ["a", 2], answer: 0 }, "choices[1] is not text"],
  [{ question: "Q", choices: ["a", "b", "a"], answer: 0 }, "choices[0] and choices[2] are the same"],
  [
    { question: "Q", choices: ["a", "b"], answer: 2 },
    '"answer" is 2; it must be the index of the right choice, 0 to 1',
  ],
  [{ question: "Q", choices: ["a", "b"], answer: "A" }, '"answer" is "A"'],
  [{ question: "Q", choices: ["a", "b"] }, '"answer" is missing'],
  [{ prompt: [] }, 'no "prompt"'],
  [{ prompt: 1 }, '"prompt" is neither'],
  [{ prompt: "Q", answer: "" }, "answers[0] is empty"],
  [{ prompt: "Q", question: "P", answers: ["a"] }, "leave one of them out"],
  [
    { prompt: "Q", chosen: "a", rejected: "b" },
    '"chosen" and "rejected", replies to learn from, which no task compares: leave them out',
  ],
  [{ prompt: "Q", completion: "a" }, '"completion", replies to learn from'],
  [{ question: "Q", answers: ["a"], rejected: "b" }, '"rejected", replies to learn from'],
  [{ question: "Q", answers: ["a"], context: { title: ["x"] } }, '"context" is not text'],
  [{ question: "Q", answers: ["a"], context: "x", input: "y" }, "join them in one"],
  [{ prompt: [{ role: "user", content: "Q" }], context: "x" }, '"context" stands beside a list of messages'],
  [{ prompt: "Q", system: 3 }, '"system" is not text'],
  [{ text: "Q", system: "S" }, '"system" beside it'],
  [{ question: "Q", context: "x", answers: { text: [], answer_start: [] } }, '"answers"'],
  [{ body: "x" }, "its keys (body) are of no known task"],
  [[1], "not a JSON object"],
])("a bad record: %j", (record, message) => {
  expect(taskOf(record)).toContain(message);
});

test("what a model has to read beside a question is put to it as in fine-tuning", () => {
  const [question, system, input] = ["What is 3 plus 4?", "Be brief.", "3 plus 4 is 7."];
  const [first, user] = [
    { role: "system", content: system },
    { role: "user", content: question, input },
  ];
  const asked = { kind: "question", question, answers: ["7"], group: "all" };
  expect(taskOf({ question, answers: ["7"], context: input })).toEqual({ ...asked, messages: [user] });
  expect(taskOf({ prompt: question, answer: "7", input, system })).toEqual({ ...asked, messages: [first, user] });
  const squad = {
    id: "5",
    title: "Sums",
    question,
    context: input,
    answers: { text: ["7", "7"], answer_start: [12, 12] },
  };
  expect(taskOf(squad)).toEqual({ ...asked, messages: [user] });
  const choice = { question, choices: ["7", "8"], answer: 0 };
  expect(taskOf({ ...choice, context: input, system })).toMatchObject({ ...choice, messages: [first, user] });
  expect(taskOf({ prompt: question, input, system })).toEqual({ kind: "prompt", messages: [first, user] });
  const list = [{ role: "user", content: question }];
  expect(taskOf({ prompt: list, system })).toEqual({ kind: "prompt", messages: [first, ...list] });
  expect(taskOf({ prompt: list, answer: "7", system })).toEqual({ ...asked, messages: [first, ...list] });
  const history = [["Hi", "Hello."]];
  expect(taskOf({ prompt: question, history })).toMatchObject({
    messages: [{ content: "Hi" }, { role: "assistant", content: "Hello." }, { content: question }],
  });
  // Tables have every column; what is empty is not there.
  expect(taskOf({ question, answers: ["7"], context: "", input: null, history: [], system: "", chosen: null })).toEqual(
    asked,
  );
});

test("bad records stop the evaluation with their lines; many are counted; nothing to evaluate is told", async () => {
  const good = { text: "fine" };
  const file = write("bad.jsonl", [good, "{broken", ...Array.from({ length: 6 }, () => ({ text: "" }))]);
  await expect(readTasks([file])).rejects.toThrow(/bad\.jsonl:2: not JSON.*\n.*bad\.jsonl:3: "text" is empty/);
  await expect(readTasks([file])).rejects.toThrow(/and 2 more\.\nCorrect or remove these records/);
  await expect(readTasks([write("one.jsonl", [good, { text: "" }])])).rejects.toThrow(/Correct or remove this record/);
  await expect(readTasks([write("none.jsonl", [""])])).rejects.toThrow(/none\.jsonl: there are no records in it/);
  await expect(readTasks([join(dir, "absent.jsonl")])).rejects.toThrow(/does not exist/);
});

test("Wilson's interval: published values, and its ends", () => {
  // Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
  for (const [r, n, low, high] of [
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ]) {
    const { interval } = wilson(r, n);
    expect(interval[0]).toBeCloseTo(low, 4);
    expect(interval[1]).toBeCloseTo(high, 4);
  }
  expect(wilson(7, 7).interval[1]).toBe(1);
  expect(wilson(0, 0)).toEqual({ share: 0, interval: [0, 1], n: 0 });
});

/** Numbers in [0, 1) by a linear congruential generator, unlike the one that is tested. */
const lcg = (seed: number) => {
  let x = BigInt(seed);
  return () => {
    x = (x * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number(x >> 33n) / 2 ** 31;
  };
};

test("a win rate counts ties half, and its interval covers the truth 19 times of 20", () => {
  expect(winRate([1, 2, 3, 0], [0, 2, 4, 0])).toMatchObject({ wins: 1, ties: 2, losses: 1, share: 0.5, n: 4 });
  const [mine, other] = [winRate([3, 1, 2], [1, 1, 1]), winRate([1, 1, 1], [3, 1, 2])];
  expect(mine.share + other.share).toBeCloseTo(1, 12);
  expect(mine.interval[0]).toBeCloseTo(1 - other.interval[1], 12);
  // True win rate: P(better) + P(equal) / 2 of scores 0..3 with different chances.
  const random = lcg(7);
  const draw = (p: readonly number[]): number => {
    let u = random();
    return p.findIndex((x) => {
      u -= x;
      return u < 0;
    });
  };
  const [a, b] = [
    [0.1, 0.2, 0.3, 0.4],
    [0.3, 0.3, 0.2, 0.2],
  ];
  const part = (i: number, j: number): number => (i > j ? 1 : i === j ? 0.5 : 0);
  const truth = a.reduce((sum, pa, i) => b.reduce((s, pb, j) => s + pa * pb * part(i, j), sum), 0);
  let covered = 0;
  const runs = 2000;
  for (let r = 0; r < runs; r++) {
    const { interval } = winRate(
      Array.from({ length: 60 }, () => Math.max(0, draw(a))),
      Array.from({ length: 60 }, () => Math.max(0, draw(b))),
    );
    if (interval[0] <= truth && truth <= interval[1]) covered++;
  }
  expect(covered / runs).toBeGreaterThan(0.95);
});

test("a mean's interval: against the normal one on many values, repeatable, and covering the truth", () => {
  const random = lcg(3);
  const values = Array.from({ length: 1000 }, random);
  const { mean, std, interval, n } = bootstrapMean(values);
  expect(n).toBe(1000);
  expect(std).toBeCloseTo(Math.sqrt(1 / 12), 1);
  const half = (1.96 * std) / Math.sqrt(n);
  expect(Math.abs(interval[0] - (mean - half))).toBeLessThan(0.1 * half);
  expect(Math.abs(interval[1] - (mean + half))).toBeLessThan(0.1 * half);
  expect(bootstrapMean(values)).toEqual({ mean, std, interval, n });
  let covered = 0;
  for (let r = 0; r < 200; r++) {
    const found = bootstrapMean(Array.from({ length: 40 }, random)).interval;
    if (found[0] <= 0.5 && 0.5 <= found[1]) covered++;
  }
  expect(covered).toBeGreaterThan(180);
  expect(bootstrapMean([2])).toEqual({ mean: 2, std: 0, interval: [2, 2], n: 1 });
});
