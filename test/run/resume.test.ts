/** What a run may change when it goes on, and what may be begun again. */
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
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
  for (const name of ["reference.json", "reference.json.partial", "not-finite.json"]) run.write(name, "{}");
  run.close();
  const again = open("failed", { ...SETTINGS, seed: 2 });
  expect(readdirSync(again.dir).sort()).toEqual(["checkpoints", "config.yaml", "inputs.json", "run.lock"]);
  step(again, 1);
  expect(() => open("failed", SETTINGS)).toThrow(/already holds a run/);
});

test("the rows of a step stay as many: with others some data would be left out, or read twice", () => {
  const settings = { ...SETTINGS, batchSize: 4, gradientAccumulation: 2 };
  step(open("rows", settings), 2);
  const more = { ...settings, batchSize: 8 };
  expect(() => open("rows", more, true)).toThrow(
    /holds a run of 8 rows a step .batchSize x gradientAccumulation.; now it is 16 rows/,
  );
  open("rows", { ...more, gradientAccumulation: 1 }, true).close();
  const mixed = { ...settings, pretrainMix: { batchSize: 2 } };
  step(open("mixed-rows", mixed), 2);
  expect(() => open("mixed-rows", { ...mixed, batchSize: 8, gradientAccumulation: 1 }, true)).toThrow(
    /holds a run of 8 rows and 4 of pretrainMix a step/,
  );
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
    [{ optimizer: { learningRate: 1e-3, ema: 0.99 } }, /without an average .*optimizer.ema is now 0.99/],
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
  // Written when the checkpoint is loaded: a run that cannot go on leaves the file as it is.
  const run = open("told", next, true);
  expect(readFileSync(`${run.dir}/config.yaml`, "utf8")).toContain("steps: 4");
  run.goesOn();
  run.close();
  expect(readFileSync(`${run.dir}/config.yaml`, "utf8")).toContain("steps: 8");
});

test("what a newer version adds with a default is not a change; an average of 0 is none", () => {
  step(open("ema", SETTINGS), 2);
  open("ema", { ...SETTINGS, optimizer: { learningRate: 1e-3, ema: 0 } }, true).close();
});

test("of a stage that is done only what would have come out otherwise is a change", () => {
  const watched = { saveEvery: 500, evalEvery: 100, evalBatches: 50, recompute: false, samples: { prompts: [] } };
  step(open("done", { ...SETTINGS, ...watched }), 4);
  const changes = (now: object, given: object) => changedSettings(join(root, "done"), now, 4, given);
  const others = { saveEvery: 7, evalEvery: 8, evalBatches: 9, recompute: true, samples: { prompts: ["a"] } };
  expect(changes({ ...SETTINGS, ...others }, others)).toEqual([]);
  // Keys that this version has and the one before did not, with their defaults; and one that was asked for.
  const newer = { ...SETTINGS, model: { hiddenSize: 8, bias: false }, optimizer: { ...SETTINGS.optimizer, eps: 1 } };
  expect(changes({ ...newer, ...watched }, {})).toEqual([]);
  expect(changes({ ...newer, ...watched }, { optimizer: { eps: 1 } })).toEqual([
    "optimizer.eps was not set, now it is 1",
  ]);
  expect(changes({ ...SETTINGS, ...watched, steps: 5 }, {})).toEqual(["steps was 4, now it is 5"]);
  expect(changedSettings(join(root, "done"), { ...SETTINGS, ...watched, saveEvery: 7 }, 4)).toHaveLength(1);
});

test("the prompts of samples are texts, not files", () => {
  step(open("prompts", { ...SETTINGS, samples: { prompts: ["say 1/2"] } }), 2);
  expect(changedSettings(join(root, "prompts"), { ...SETTINGS, samples: { prompts: ["tell 3/2"] } }, 2)).toEqual([
    'samples.prompts was ["say 1/2"], now it is ["tell 3/2"]',
  ]);
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

test("another file or model is another one, whatever its name; one that has moved is the same", () => {
  const dir = join(root, "files");
  for (const name of ["a", "b", "c"]) {
    mkdirSync(`${dir}/${name}/model`, { recursive: true });
    writeFileSync(`${dir}/${name}/model/weights`, name);
  }
  const from = (name: string) => ({ ...SETTINGS, from: `${dir}/${name}/model` });
  step(open("files/run", from("a")), 2);
  expect(() => open("files/run", from("b"), true)).toThrow(/from was ".*a\/model"; now it is ".*b\/model"/);
  symlinkSync(`${dir}/a`, `${dir}/link`);
  open("files/run", from("link"), true).close();
  open("files/run", { ...SETTINGS, from: relative(process.cwd(), `${dir}/a/model`) }, true).close();
  // All of it is moved: what was a's model is there no longer, and another one is still another one.
  renameSync(`${dir}/a`, `${dir}/c/a`);
  open("files/run", from("c/a"), true).close();
  expect(() => open("files/run", from("b"), true)).toThrow(/from was/);
});

test("in a copy of a project its files are the same ones, while the first is still there", () => {
  const [first, copy] = [join(root, "first"), join(root, "copy")];
  mkdirSync(`${first}/base/model`, { recursive: true });
  writeFileSync(`${first}/docs.jsonl`, "one");
  writeFileSync(`${first}/base/model/weights`, "w");
  const settings = (at: string) => ({ ...SETTINGS, from: `${at}/base/model`, data: { train: [`${at}/docs.jsonl`] } });
  step(open("first/run", settings(first)), 2);
  cpSync(first, copy, { recursive: true });
  open("copy/run", settings(copy), true).close();
  writeFileSync(`${copy}/docs.jsonl`, "two");
  expect(() => open("copy/run", settings(copy), true)).toThrow(/data\.train/);
  writeFileSync(`${copy}/docs.jsonl`, "one");
  writeFileSync(`${copy}/base/model/more`, "");
  expect(() => open("copy/run", settings(copy), true)).toThrow(/from was/);
});

test("token shards of other documents of the same name are thrown away", () => {
  for (const name of ["x", "y"]) {
    mkdirSync(join(root, name));
    writeFileSync(join(root, name, "docs.jsonl"), name);
  }
  const train = (name: string) => ({ ...SETTINGS, data: { train: [join(root, name, "docs.jsonl")] } });
  const run = open("shards", train("x"));
  run.close();
  mkdirSync(`${run.dir}/data/train`, { recursive: true });
  open("shards", train("y"), true).close();
  expect(existsSync(`${run.dir}/data`)).toBe(false);
});

test("a folder that is no run is left as it is, with --resume too; so is what a run did not write", () => {
  const dir = join(root, "project");
  mkdirSync(`${dir}/data`, { recursive: true });
  writeFileSync(`${dir}/data/mine.jsonl`, "{}");
  writeFileSync(`${dir}/config.yaml`, "steps: 3\n");
  for (const resume of [false, true])
    expect(() => open("project", SETTINGS, resume)).toThrow(/project is not empty and is not a run/);
  expect(readdirSync(dir).sort()).toEqual(["config.yaml", "data"]);
  expect(readFileSync(`${dir}/config.yaml`, "utf8")).toBe("steps: 3\n");
  // A run that failed here, before the files came.
  const run = open("later", SETTINGS);
  run.close();
  mkdirSync(`${run.dir}/data/train`, { recursive: true });
  writeFileSync(`${run.dir}/data/mine.jsonl`, "{}");
  mkdirSync(`${run.dir}/samples`);
  writeFileSync(`${run.dir}/samples/best.wav`, "");
  const other = { ...SETTINGS, data: { train: ["other.jsonl"] } };
  open("later", other, true).close();
  expect(readdirSync(`${run.dir}/data`)).toEqual(["mine.jsonl"]);
  open("later", SETTINGS).close();
  expect(readdirSync(`${run.dir}/data`)).toEqual(["mine.jsonl"]);
  expect(readdirSync(`${run.dir}/samples`)).toEqual(["best.wav"]);
});

test("somebody's files in the folders of a run are left as they are", () => {
  const run = open("theirs", SETTINGS);
  run.close();
  for (const made of ["data/train", "data/validation.partial"]) mkdirSync(`${run.dir}/${made}`, { recursive: true });
  for (const file of ["data/train/tokens.bin", "data/train/manifest.json", "data/train/mine.jsonl"])
    writeFileSync(`${run.dir}/${file}`, "");
  open("theirs", SETTINGS).close();
  expect(readdirSync(`${run.dir}/data`)).toEqual(["train"]);
  expect(readdirSync(`${run.dir}/data/train`)).toEqual(["mine.jsonl"]);
  mkdirSync(`${run.dir}/checkpoints/best`);
  mkdirSync(`${run.dir}/checkpoints/.000001`);
  expect(() => open("theirs", SETTINGS)).toThrow(/already holds a run/);
  open("theirs", SETTINGS, true).close();
  expect(readdirSync(`${run.dir}/checkpoints`)).toEqual(["best"]);

  mkdirSync(join(root, "foreign/checkpoints/.git"), { recursive: true });
  expect(() => open("foreign", SETTINGS)).toThrow(/is not a run/);
  mkdirSync(join(root, "odd/config.yaml"), { recursive: true });
  expect(() => open("odd", SETTINGS)).toThrow(/is not a run/);
  mkdirSync(join(root, "odder"));
  writeFileSync(join(root, "odder/checkpoints"), "");
  expect(() => open("odder", SETTINGS)).toThrow(/is not a run/);
  expect(readdirSync(join(root, "foreign/checkpoints"))).toEqual([".git"]);
});

test("a run whose settings lost their first line is still one, by its checkpoints", () => {
  step(open("headless", SETTINGS), 2);
  const file = join(root, "headless/config.yaml");
  writeFileSync(file, readFileSync(file, "utf8").replace(/^.*\n/, ""));
  expect(() => open("headless", SETTINGS)).toThrow(/already holds a run .checkpoint at step 2/);
  open("headless", SETTINGS, true).close();
});

test("a run that was killed before it had its settings is begun again", () => {
  mkdirSync(join(root, "bare/checkpoints"), { recursive: true });
  writeFileSync(join(root, "bare/config.yaml.partial"), "");
  open("bare", SETTINGS).close();
});
