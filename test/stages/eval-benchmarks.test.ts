/** Benchmarks' records as they are, against the Language Model Evaluation Harness (test/golden/eval/harness.py). */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { DuckDBInstance } from "@duckdb/node-api";
import { afterAll, expect, test } from "vitest";
import { loadForGeneration } from "../../src/generate/loaded.js";
import { multipleChoice, summarizeChoice } from "../../src/stages/eval/choice.js";
import { readTasks, taskOf } from "../../src/stages/eval/tasks.js";

interface Golden {
  name: string;
  records: Record<string, unknown>[];
  logProbs: number[][];
  acc: number;
  acc_norm: number;
  acc_bytes: number;
}
const at = fileURLToPath(new URL("../golden/eval", import.meta.url));
const golden = JSON.parse(readFileSync(`${at}/harness.json`, "utf8")) as Golden[];
const dir = mkdtempSync(join(tmpdir(), "lyceum-benchmarks-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
cpSync(`${at}/model`, `${dir}/model`, { recursive: true });
const config = JSON.parse(readFileSync(`${dir}/model/config.json`, "utf8")) as object;
writeFileSync(`${dir}/model/config.json`, JSON.stringify({ ...config, max_position_embeddings: 512 }));
const loaded = loadForGeneration(`${dir}/model`, { precision: "fp32" });
const db = await (await DuckDBInstance.create(":memory:")).connect();

test.each(golden.map((g) => [g.name, g] as const))(
  "%s: a base model's accuracies are the harness's",
  async (name, g) => {
    const jsonl = `${dir}/${name}.jsonl`;
    writeFileSync(jsonl, g.records.map((r) => `${JSON.stringify(r)}\n`).join(""));
    await db.run(`COPY (SELECT * FROM read_json('${jsonl}')) TO '${dir}/${name}.parquet' (FORMAT parquet)`);
    const { choices } = await readTasks([`${dir}/${name}.parquet`]);
    expect((await readTasks([jsonl])).choices.map(({ source: _, ...c }) => c)).toEqual(
      choices.map(({ source: _, ...c }) => c),
    );
    const outcomes = multipleChoice(loaded, choices);
    outcomes.forEach(({ logProbs }, i) => {
      expect(logProbs).toHaveLength(g.logProbs[i].length);
      for (const [c, p] of logProbs.entries()) expect(p).toBeCloseTo(g.logProbs[i][c], 3);
    });
    const { accuracy, accuracyPerByte } = summarizeChoice(choices, outcomes);
    expect([accuracy, accuracyPerByte]).toEqual([g.acc, g.acc_bytes]);
  },
);

test("MMLU's subjects are rows of the table; two choices may be the same", async () => {
  const { records } = golden.find(({ name }) => name === "MMLU")!;
  const groups = records.map((r) => (taskOf(r) as { group: string }).group);
  expect(new Set(groups)).toEqual(new Set(["astronomy", "law"]));
  const twin = { question: "Q", subject: "law", choices: ["a", "b", "a", "c"], answer: 1 };
  expect(taskOf(twin)).toMatchObject({ kind: "choice", answer: 1 });
  expect(taskOf({ ...twin, subject: undefined })).toContain("are the same");
});

test("C-Eval and CMMLU: the answer is a letter", () => {
  const options = { A: "一", B: "二", C: "三", D: "四" };
  const wanted = {
    kind: "choice",
    question: "1+1=____",
    choices: ["一", "二", "三", "四"],
    answer: 1,
    group: "all",
    query: "Question: 1+1=____\nAnswer:",
  };
  expect(taskOf({ id: 0, question: "1+1=____", ...options, answer: "B", explanation: "" })).toEqual(wanted);
  expect(taskOf({ Question: "1+1=____", ...options, Answer: "B" })).toEqual(wanted);
  expect(taskOf({ id: 0, question: "1+1=____", ...options, answer: "" })).toContain("is hidden");
  expect(taskOf({ id: 0, question: "1+1=____", ...options, answer: "BC" })).toContain('"answer" is "BC"');
});

test("somebody's own record is no benchmark's, whatever else it says", () => {
  const own = { question: "Q", choices: ["a", "b"], answer: 0, subject: "law" };
  expect(taskOf({ ...own, field: "mine" })).toEqual({ kind: "choice", ...own, subject: undefined, group: "mine" });
  const answers = ["Paris", "B"];
  expect(taskOf({ question: "Q", answers, A: "1", B: "2", C: "3", D: "4" })).toMatchObject({
    kind: "question",
    answers,
  });
  expect(taskOf({ question: "Q", answers, answer: "so\n#### 7" })).toMatchObject({ answers });
});

test("GSM8K's number and TriviaQA's aliases are accepted answers", () => {
  const way = "She sells 2 * 500 = <<2*500=1000>>1,000 eggs.\n#### 1,000";
  expect(taskOf({ question: "How many?", answer: way })).toMatchObject({
    kind: "question",
    answers: ["1,000", "1000"],
    reasoned: true,
  });
  expect(taskOf({ prompt: "How many?", answer: way })).toMatchObject({ question: "How many?", reasoned: true });
  const answer = { value: "Lima", aliases: ["Lima", "City of Kings"], normalized_value: "lima" };
  expect(taskOf({ question: "Capital of Peru?", answer })).toMatchObject({ answers: ["Lima", "City of Kings"] });
});

test("a record whose right answer is hidden, as in test splits, is told", () => {
  const endings = ["a", "b", "c", "d"];
  expect(taskOf({ activity_label: "Ski", ctx_a: "A man.", ctx_b: "he", endings, label: "" })).toContain("is hidden");
  expect(taskOf({ goal: "Open", sol1: "a", sol2: "b", label: -1 })).toContain("is hidden");
  expect(taskOf({ question: "Q", answer: { value: "<unk>", aliases: [] } })).toContain("is hidden");
  const choices = { text: ["a", "b"], label: ["A", "B"] };
  expect(taskOf({ question: "Q", choices, answerKey: "E" })).toContain('"answer" is "E"');
});
