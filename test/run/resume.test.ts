/** What a run may change when it goes on, and what may be begun again. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { RunFolder } from "../../src/run/folder.js";
import { changedSettings } from "../../src/run/resume.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-resume-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const SETTINGS = {
  stage: "pretrain",
  seed: 1,
  steps: 4,
  threads: 0,
  model: { hiddenSize: 8 },
  data: { train: ["a/docs.jsonl"], contextLength: 16 },
  optimizer: { learningRate: 1e-3 },
};
const open = (name: string, config: unknown, resume = false) =>
  RunFolder.open(join(root, name), config, { resume, keepCheckpoints: 2 });
const step = (run: RunFolder, n: number) => {
  run.metrics.write(n, { loss: 1 });
  run.checkpoint(n, (d) => writeFileSync(`${d}/weights`, ""));
  run.close();
};

test("a run that ended before its first step is begun again without being asked, its preparation thrown away", () => {
  const run = open("failed", SETTINGS);
  mkdirSync(`${run.dir}/data/train`, { recursive: true });
  writeFileSync(`${run.dir}/data/train/manifest.json`, "{}");
  run.write("samples/000000.txt", "x");
  run.setAside([{ file: "a", line: 1, reason: "r" }]);
  run.close();
  const again = open("failed", { ...SETTINGS, seed: 2 });
  expect(readdirSync(again.dir).sort()).toEqual(["checkpoints", "config.yaml", "run.lock"]);
  step(again, 1);
  expect(() => open("failed", SETTINGS)).toThrow(/already holds a run/);
});

test("a folder with anything else in it is left as it is", () => {
  const run = open("mixed", SETTINGS);
  run.close();
  writeFileSync(`${run.dir}/notes.txt`, "mine");
  expect(() => open("mixed", SETTINGS)).toThrow(/already holds a run/);
  expect(existsSync(`${run.dir}/notes.txt`)).toBe(true);
  writeFileSync(join(root, "file"), "");
  expect(() => open("file", SETTINGS)).toThrow(/is a file; a run needs a folder/);
});

test("a setting that a run is cannot be changed on the way; the file keeps the old ones", () => {
  step(open("fixed", SETTINGS), 2);
  const before = readFileSync(join(root, "fixed/config.yaml"), "utf8");
  for (const [change, message] of [
    [{ model: { hiddenSize: 16 } }, /model.hiddenSize was 8; now it is 16.*--out/],
    [{ stage: "sft" }, /stage was "pretrain"; now it is "sft"/],
    [{ data: { ...SETTINGS.data, contextLength: 32 } }, /data.contextLength was 16; now it is 32/],
    [{ data: { ...SETTINGS.data, train: ["b.jsonl"] } }, /data.train was \["a\/docs.jsonl"\]; now it is \["b.jsonl"\]/],
    [{ lora: { rank: 2 } }, /lora was not set; now it is/],
  ] as const)
    expect(() => open("fixed", { ...SETTINGS, ...change }, true)).toThrow(message);
  expect(readFileSync(join(root, "fixed/config.yaml"), "utf8")).toBe(before);
  open("fixed", SETTINGS, true).close(); // and the lock is free
});

test("other settings may change, and are told; the same file may be named from elsewhere", () => {
  step(open("told", SETTINGS), 2);
  const data = { ...SETTINGS.data, train: ["/data/docs.jsonl"] };
  const next = { ...SETTINGS, data, steps: 8, threads: 3, optimizer: { learningRate: 1e-4 } };
  expect(changedSettings(join(root, "told"), next, 2)).toEqual([
    "steps was 4, now it is 8",
    "optimizer.learningRate was 0.001, now it is 0.0001",
  ]);
  const run = open("told", next, true);
  run.close();
  expect(readFileSync(`${run.dir}/config.yaml`, "utf8")).toContain("steps: 8");
});

test("before the first step anything may change; token shards of other settings are thrown away", () => {
  const run = open("early", SETTINGS);
  run.close();
  mkdirSync(`${run.dir}/data`);
  open("early", { ...SETTINGS, steps: 9 }, true).close();
  expect(existsSync(`${run.dir}/data`)).toBe(true);
  open("early", { ...SETTINGS, data: { ...SETTINGS.data, train: ["b.jsonl"] } }, true).close();
  expect(existsSync(`${run.dir}/data`)).toBe(false);
});
