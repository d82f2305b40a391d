/** A run goes on with the data and the frozen weights that it began with, or says why not. */
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, test } from "vitest";
import { UserError } from "../../src/run/errors.js";
import { checkInputs, sharedInputs } from "../../src/run/inputs.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-inputs-"));
afterAll(() => rmSync(root, { recursive: true }));
const [dir, data, base, reward] = ["run", "data.jsonl", "base", "reward.mjs"].map((name) => join(root, name));
const sft = {
  stage: "sft",
  from: base,
  data: { train: [data], validation: [join(root, "none")] },
  samples: { prompts: [data] },
};
const grpo = { stage: "grpo", from: base, prompts: [data], reward };

beforeEach(() => {
  for (const path of [dir, data, base, reward]) rmSync(path, { recursive: true, force: true });
  for (const path of [dir, base]) mkdirSync(path);
  writeFileSync(data, "one\ntwo\n");
  writeFileSync(`${base}/model.safetensors`, "weights");
  writeFileSync(reward, "export default () => 1;\n");
});
const begin = (config: object): void => writeFileSync(`${dir}/inputs.json`, checkInputs(dir, config, 0).text!);
const goOn = (config: object): string[] | string => {
  try {
    return checkInputs(dir, config, 5).changes;
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    return (error as Error).message;
  }
};

test("the same, moved or not, goes on", () => {
  begin(sft);
  expect(Object.keys(JSON.parse(readFileSync(`${dir}/inputs.json`, "utf8")))).toEqual(["data.train.0"]);
  expect(goOn(sft)).toEqual([]);
  cpSync(data, join(root, "moved.jsonl"));
  expect(goOn({ ...sft, data: { train: [join(root, "moved.jsonl")] } })).toEqual([]);
  rmSync(data);
  expect(goOn(sft)).toEqual([]); // what is missing is told by who reads it
});

test("other data is refused, with its key and its size", () => {
  begin(sft);
  appendFileSync(data, "three\n");
  expect(goOn(sft)).toMatch(
    /data\.jsonl \(data\.train\.0\) is not what the run in .* began with \(it had 8 bytes, now it has 14\)/,
  );
  writeFileSync(data, "one\ntwe\n");
  expect(goOn(sft)).toMatch(
    /began with: its steps would be another run's\. Put it back, or name another folder with --out/,
  );
});

test("a change anywhere in a large file is seen where a piece of it is read", () => {
  const large = Buffer.alloc(65 * 2 ** 20, "text ");
  writeFileSync(data, large);
  begin(sft);
  for (const at of [0, 40 * 2 ** 20 + 5, large.length - 1]) {
    const other = Buffer.from(large);
    other[at] ^= 1;
    writeFileSync(data, other);
    expect(typeof goOn(sft), String(at)).toBe("string");
  }
});

test("weights count where they are asked while training goes on", () => {
  for (const config of [grpo, { ...sft, lora: { rank: 4 } }, { stage: "ppo", from: base, prompts: [data], reward }]) {
    writeFileSync(`${base}/model.safetensors`, "weights");
    begin(config);
    writeFileSync(`${base}/model.safetensors`, "other weights");
    expect(goOn(config)).toMatch(/base \(from\) is not what the run/);
  }
  // Nor where the reference has said what it had to say, or there is none.
  for (const config of [sft, { ...grpo, klCoef: 0 }, { stage: "dpo", from: base, data: { train: [data] } }]) {
    begin(config);
    writeFileSync(`${base}/model.safetensors`, String(Math.random()));
    expect(goOn(config)).toEqual([]);
  }
});

const tokens = (folder: string): void => {
  mkdirSync(folder, { recursive: true });
  for (const name of ["manifest.json", "tokens.bin", "documents.bin"]) writeFileSync(`${folder}/${name}`, name);
};

test("pretraining on documents does not read them again while the run has its tokens", () => {
  const pretrain = { ...sft, stage: "pretrain" };
  begin(pretrain);
  tokens(`${dir}/data/train`);
  writeFileSync(data, "other");
  expect(goOn(pretrain)).toEqual([]);
  rmSync(`${dir}/data`, { recursive: true });
  expect(goOn(pretrain)).toMatch(/data\.jsonl \(data\.train\.0\) is not what the run/);
});

test("before its first checkpoint a run throws tokens away that were made of other documents", () => {
  const pretrain = { ...sft, stage: "pretrain" };
  begin(pretrain);
  tokens(`${dir}/data/train`);
  begin(pretrain);
  expect(existsSync(`${dir}/data/train/tokens.bin`)).toBe(true);
  appendFileSync(data, "three\n");
  begin(pretrain);
  expect(existsSync(`${dir}/data`)).toBe(false);
});

test.each(["", "shards/train/"])("token shards that are given are read again: %j", (below) => {
  const folder = join(root, "shards");
  tokens(`${folder}/${below}`);
  const pretrain = { stage: "pretrain", data: { train: [folder] } };
  begin(pretrain);
  tokens(`${dir}/data/train`);
  writeFileSync(`${folder}/notes.txt`, "new"); // what else lies there is not
  expect(goOn(pretrain)).toEqual([]);
  writeFileSync(`${folder}/${below}tokens.bin`, "other tokens");
  expect(goOn(pretrain)).toMatch(/shards \(data\.train\.0\) is not what the run/);
  rmSync(folder, { recursive: true });
});

test("a folder of records with some manifest.json is compared as one of records", () => {
  const folder = join(root, "with-manifest");
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}/manifest.json`, "{}");
  writeFileSync(`${folder}/a.jsonl`, "one");
  const config = { ...sft, data: { train: [folder] } };
  begin(config);
  writeFileSync(`${folder}/a.jsonl`, "two");
  expect(goOn(config)).toMatch(/with-manifest \(data\.train\.0\) is not what the run/);
});

test("what every process of a job reads is compared; pretraining's documents are read by the first one alone", () => {
  const all = { ...sft, critic: base, reward };
  const here = sharedInputs(dir, all);
  expect(Object.keys(here).sort()).toEqual(["critic", "data.train.0", "from", "reward"]);
  expect(sharedInputs(dir, all)).toEqual(here);
  writeFileSync(`${base}/model.safetensors`, "weighty");
  writeFileSync(reward, "export default () => 2;\n");
  const there = sharedInputs(dir, all);
  expect(Object.keys(here).filter((key) => here[key] !== there[key])).toEqual(["from", "critic", "reward"]);
  expect(Object.keys(sharedInputs(dir, { ...sft, stage: "pretrain" }))).toEqual(["from"]);
  const tokenizer = { vocabSize: 300 };
  expect(Object.keys(sharedInputs(dir, { ...sft, stage: "pretrain", tokenizer }))).toContain("data.train.0");
});

test("a reward module may be mended, which is told", () => {
  for (const module of [reward, join(root, "reward.cjs")]) {
    writeFileSync(module, "export default () => 1;\n");
    begin({ ...grpo, reward: module });
    writeFileSync(module, "export default () => 2;\n");
    expect(goOn({ ...grpo, reward: module })).toEqual([`${module} has changed`]);
  }
});

test("what lies beside a model's files, the run's own, and what no reader looks at are not counted", () => {
  writeFileSync(`${base}/config.json`, "{}");
  const inside = join(base, "lora-run");
  mkdirSync(inside);
  const config = { ...grpo, pretrainMix: { train: [root] } };
  writeFileSync(`${inside}/inputs.json`, checkInputs(inside, config, 0).text!);
  for (const name of ["README.md", "model.gguf", "lora-run/checkpoint.safetensors"])
    writeFileSync(`${base}/${name}`, "new");
  expect(checkInputs(inside, { ...grpo }, 5).changes).toEqual([]);
  const texts = join(root, "texts");
  mkdirSync(`${texts}/.cache`, { recursive: true });
  symlinkSync(".", `${texts}/self`);
  symlinkSync("nowhere", `${texts}/gone`);
  const mixed = { ...grpo, pretrainMix: { train: [texts] } };
  begin(mixed);
  writeFileSync(`${texts}/.cache/x`, "new");
  expect(goOn(mixed)).toEqual([]);
  // What readers take counts, hidden and behind links too.
  const elsewhere = join(root, "elsewhere");
  mkdirSync(elsewhere);
  writeFileSync(`${elsewhere}/b.jsonl.zst`, "old");
  symlinkSync("../elsewhere", `${texts}/linked`);
  for (const name of ["linked/b.jsonl.zst", ".cache/c.md"]) {
    begin(mixed);
    writeFileSync(`${texts}/${name}`, "new");
    expect(goOn(mixed)).toMatch(/texts \(pretrainMix\.train\.0\) is not what/);
  }
  begin(mixed);
  writeFileSync(`${texts}/a.txt`, "new");
  expect(goOn(mixed)).toMatch(/texts \(pretrainMix\.train\.0\) is not what/);
  rmSync(texts, { recursive: true });
});

test("runs of before, and notes that were damaged, go on", () => {
  expect(goOn(sft)).toEqual([]);
  for (const text of ["{", "null", "[]", '{"data.train.0":5}']) {
    writeFileSync(`${dir}/inputs.json`, text);
    expect(goOn(sft)).toEqual([]);
  }
});
