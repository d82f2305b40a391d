/** `lyceum eval` as a user meets it, on the model of test/golden/eval. Runs the built program (dist/). */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import type { Evaluation } from "../../src/stages/eval/evaluation.js";

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));
const model = path("../golden/eval/model");
const golden = JSON.parse(readFileSync(path("../golden/eval/golden.json"), "utf8")) as {
  perplexity: { text: string }[];
  summary: { perplexity: number; bitsPerByte: number };
};
const dir = mkdtempSync(join(tmpdir(), "lyceum-eval-cli-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const file = (name: string, records: object[]): void =>
  writeFileSync(join(dir, name), records.map((r) => JSON.stringify(r)).join("\n"));
file(
  "texts.jsonl",
  golden.perplexity.map(({ text }) => ({ text })),
);
file("more.jsonl", [
  { question: "The owl sees", choices: ["a fox", "snow"], answer: 0 },
  { question: "Who?", answers: ["nobody"] },
  { prompt: "The owl" },
]);
file("bad.jsonl", [{ text: "fine" }, { question: "Who?" }]);
writeFileSync(join(dir, "length.mjs"), "export default (prompt, reply) => reply.length;\n");

const lyceum = (...args: string[]) => {
  const r = spawnSync(process.execPath, [path("../../dist/cli/main.js"), "eval", ...args], {
    cwd: dir,
    encoding: "utf8",
  });
  return { code: r.status, out: r.stdout, err: r.stderr };
};

test("--json: every task of several files, for each model", () => {
  const { code, out, err } = lyceum(
    model,
    "--tasks",
    "texts.jsonl",
    "--tasks",
    "more.jsonl",
    "--reward",
    "length.mjs",
    "--max-tokens",
    "4",
    "--json",
  );
  expect(err).toContain("6 texts, 1 question, 1 choice, 1 prompt");
  expect(code).toBe(0);
  const { models } = JSON.parse(out) as Evaluation;
  expect(models.map((m) => m.model)).toEqual([model]);
  const { perplexity, exact, choice, reward, winRate } = models[0].tasks;
  expect(perplexity!.perplexity / golden.summary.perplexity).toBeCloseTo(1, 3);
  expect(perplexity!.bitsPerByte).toBeCloseTo(golden.summary.bitsPerByte, 3);
  expect([exact?.questions, choice?.questions, reward?.prompts, reward?.length]).toEqual([1, 1, 1, 4]);
  expect(winRate).toBeUndefined();
});

test("a table for people", () => {
  const { out } = lyceum(model, "--tasks", "texts.jsonl", "--context", "16");
  expect(out).toMatch(/bits per byte +\d\.\d{3}\n/);
  expect(out).not.toContain("95% intervals"); // there are none in it
});

test("a user's mistakes: what, where, what to do", () => {
  const fails = (code: number, ...args: string[]): string => {
    const r = lyceum(...args);
    expect(r.code).toBe(code);
    expect(r.err).not.toMatch(/\n\s+at .*:\d+:\d+/); // no stack trace
    return r.err;
  };
  expect(fails(1, model, "--tasks", "bad.jsonl")).toMatch(/bad\.jsonl:2: .*"answers".*\n.*remove this record/);
  expect(fails(2, model, "--tasks", "none.jsonl")).toContain("none.jsonl does not exist");
  expect(fails(2, model, "--tasks", "texts.jsonl", "--batch-size", "1.5")).toContain('--batch-size is "1.5"');
  expect(fails(2, model, "--tasks", "texts.jsonl", "--temperature", "-1")).toContain("must be a number from 0 up");
  expect(fails(2, model, "--tasks", "texts.jsonl", "--precision", "fp8")).toContain("fp32 or bf16");
  expect(fails(2, "nowhere", "--tasks", "texts.jsonl")).toContain("nowhere is not a model folder");
  expect(fails(2, model)).toContain("--tasks");
});
