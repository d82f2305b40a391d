import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { check, overridden, readYaml } from "../../src/run/config.js";
import { systemMessage, UserError } from "../../src/run/errors.js";
import { pretrainSchema } from "../../src/stages/pretrain.js";
import { STAGES } from "../../src/stages/registry.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-config-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const file = join(dir, "c.yaml");
const read = (yaml: string, set: string[] = []) => {
  writeFileSync(file, yaml);
  return check(pretrainSchema, overridden(readYaml(file), set));
};
const complaint = (yaml: string, set: string[] = []): string => {
  try {
    read(yaml, set);
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    expect((error as UserError).exitCode).toBe(2);
    return (error as Error).message;
  }
  throw new Error("nothing was wrong with it");
};
const GOOD = "data: {train: [a.txt]}\n";

test("defaults are filled in; snake_case and Hugging Face's names are read", () => {
  const c = read(
    `${GOOD}gradient_accumulation_steps: 4\nmodel: {hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}`,
  );
  expect(c.optimizer.betas).toEqual([0.9, 0.95]);
  expect(c.gradientAccumulation).toBe(4);
  expect(c.model).toMatchObject({ hiddenSize: 8, numLayers: 1, numHeads: 2, numKvHeads: 1 });
});

test("an unknown key names the nearest one and its place in the file", () => {
  const text = complaint(`${GOOD}optimizer:\n  weightDecai: 0.1\n`);
  expect(text).toContain(`${file}:3:3`);
  expect(text).toContain('"optimizer.weightDecai"');
  expect(text).toContain('"weightDecay"');
});

test("a wrong value tells the key, the value and what is allowed", () => {
  expect(complaint(`${GOOD}precision: fp8`)).toMatch(/2:1: precision is "fp8"; it must be bf16 or fp32/);
  expect(complaint(`${GOOD}steps: 0`)).toMatch(/steps is 0; it must be at least 1/);
  expect(complaint(`${GOOD}steps: many`)).toMatch(/steps is "many"; it must be a number/);
  expect(complaint("data: {contextLength: 16}")).toMatch(/data.train is missing/);
  expect(complaint("data: {train: []}")).toMatch(/data.train is \[\]; it must be given \(it is empty\)/);
});

test("all mistakes are told at once", () => {
  const text = complaint(`${GOOD}steps: 0\nprecision: x\nlogEvry: 1`);
  expect(text.split("\n")).toHaveLength(3);
});

test("--set goes over the file; its mistakes are told the same way", () => {
  expect(read(GOOD, ["optimizer.learningRate=3e-4", "data.context_length=32"])).toMatchObject({
    optimizer: { learningRate: 3e-4 },
    data: { contextLength: 32 },
  });
  expect(read(GOOD, ["optimizer.lr=0.5"]).optimizer.learningRate).toBe(0.5);
  expect(complaint(GOOD, ["optimizer.speed=1"])).toContain('"optimizer.speed"');
  expect(complaint(GOOD, ["steps"])).toContain("key=value");
});

test("a file that is missing, or is not YAML", () => {
  expect(() => readYaml(join(dir, "none.yaml"))).toThrow(/none.yaml does not exist/);
  expect(complaint("a: [1,\nb: }")).toMatch(/c\.yaml:2:\d+: not YAML: [^:]*$/);
  expect(complaint("a: 1\n\tb: 2\n")).toMatch(/c\.yaml:2:1: not YAML: Tabs/);
});

test("numbers that are none, lists of another length, a rate that would rise", () => {
  const of = (set: string): string => complaint(GOOD, [set]);
  expect(of("optimizer.learningRate=.nan")).toMatch(/learningRate is NaN; it must be a number/);
  expect(of("optimizer.learningRate=.inf")).toMatch(/learningRate is Infinity; it must be a number/);
  expect(of("optimizer.betas=[0.9]")).toMatch(/betas is \[0\.9\]; it must be a list of 2/);
  expect(of("optimizer.betas=[0.9,0.95,0.9]")).toMatch(/it must be a list of 2/);
  expect(of("optimizer.learningRate=-1")).toMatch(/^--set [^\n]*learningRate is -1; it must be more than 0\.$/); // and of nothing else
  expect(of("schedule.minLearningRate=0.5")).toMatch(
    /schedule\.minLearningRate is 0\.5; it must be at most optimizer\.learningRate, from which the rate falls/,
  );
});

test("--set is blamed for what it brings; names that users give are left as they are", () => {
  expect(complaint(GOOD, ["steps=many"])).toBe('--set steps=many: steps is "many"; it must be a number.');
  expect(complaint(GOOD, ["steps=1", "data.contextLenght=3"])).toMatch(/^--set data.contextLenght=3: there is no key/);
  expect(complaint(GOOD, ["steps=[1"])).toMatch(/--set steps=\[1: the value is not YAML/);
  expect(complaint(GOOD, ["optimizer..eps=1"])).toMatch(/a name is missing between the dots/);
  const source = { file: "x.yaml", value: {}, place: () => "" };
  expect(overridden(source, ["data.mixture.weights.my_type=2", "data.mixture.weights.文本分类=1"]).value).toEqual({
    data: { mixture: { weights: { my_type: 2, 文本分类: 1 } } },
  });
  expect(
    overridden(source, ["heuristics.thresholds.gopher.min_words=2", "garbled.garbled.maxControl=1"]).value,
  ).toEqual({
    heuristics: { thresholds: { "gopher.minWords": 2 } },
    garbled: { "garbled.maxControl": 1 },
  });
});

test("one file may stand where a list of files is meant", () => {
  expect(read(GOOD, ["data.train=a.txt", "data.validation=[b.txt, c.txt]"]).data).toMatchObject({
    train: ["a.txt"],
    validation: ["b.txt", "c.txt"],
  });
  expect(complaint(GOOD, ["data.train=3"])).toContain("data.train is 3; it must be a text or a list");
});

test.each([
  ["reward", { data: { train: "a.jsonl" } }],
  ["dpo", { data: { train: "a.jsonl", validation: "b.jsonl" } }],
  ["ppo", { reward: "rm", prompts: "a.jsonl" }],
  ["grpo", { reward: "rm", prompts: "a.jsonl" }],
  ["prefer", { reward: "rm", prompts: "a.jsonl" }],
  ["evaluate", { models: "sft", file: "a.jsonl" }],
])("one file may stand where a list is meant: %s", (stage, settings) => {
  const value = stage === "evaluate" ? settings : { from: "sft", ...settings };
  const config = check(STAGES[stage].schema, { file: "x.yaml", value, place: () => "" }) as Record<string, unknown>;
  const { train } = (config.data ?? {}) as { train?: string[] };
  expect(train ?? config.prompts ?? config.models).toEqual([stage === "evaluate" ? "sft" : "a.jsonl"]);
});

test("what is wrong within a group is told, and not that another kind of value is possible too", () => {
  expect(complaint(GOOD, ["tokenizer.vocabSize=300", "tokenizer.pretokenizer=foo"])).toBe(
    '--set tokenizer.pretokenizer=foo: tokenizer.pretokenizer is "foo"; it must be gpt2 or llama3 or qwen or han.',
  );
  expect(complaint(`${GOOD}tokenizer: {vocabSize: 300, pretokeniser: han}`)).toMatch(
    /2:29: there is no key "tokenizer.pretokeniser". Did you mean "pretokenizer"\?/,
  );
  expect(complaint(GOOD, ["data.train=[3]"])).toMatch(/data.train.0 is 3; it must be a text/);
  expect(complaint(GOOD, ["tokenizer=3"])).toMatch(/tokenizer is 3; it must be a text or a group of keys/);
});

test("an argument is told as it was typed; of a long value the beginning; a file that is no text as that", () => {
  const source = { file: "x.yaml", value: { stages: [{}] }, place: () => "" };
  const set = overridden(source, ["stages.0.steps=1"], ["--set sft.steps=1"]).set;
  expect(set?.(["stages", 0, "steps"])).toBe("--set sft.steps=1");
  expect(() => overridden(source, ["stages.0.steps"], ["--set sft.steps"])).toThrow(/^--set sft.steps: write it as/);
  expect(complaint(GOOD, [`steps=${"9x".repeat(500)}`]).length).toBeLessThan(1200);
  expect(complaint(`${GOOD}steps: ${"9x".repeat(500)}`)).toMatch(/steps is "(9x){29}9…; it must be a number/);
  expect(complaint("\u007fELF\u0001\0\0")).toMatch(/c.yaml: not YAML: it holds NULs/);
  expect(complaint("only words", ["steps=1"])).toMatch(/the file is "only words"; it must be a group of keys/);
});

test("a batch that no array could hold is refused", () => {
  expect(complaint(GOOD, ["batchSize=100000000"])).toMatch(/batchSize is 100000000; it must be at most 65536/);
});

test("what the operating system refuses is told of the file, and nothing else is", () => {
  const told = (work: () => unknown): string | undefined => {
    try {
      work();
    } catch (error) {
      return systemMessage(error, "the file");
    }
    return undefined;
  };
  expect(told(() => readFileSync(join(dir, "none")))).toBe(`${join(dir, "none")} does not exist.`);
  expect(told(() => readFileSync(dir))).toBe("the file is a folder, where a file is meant.");
  expect(told(() => JSON.parse("{"))).toBeUndefined();
  expect(() => readYaml(dir)).toThrow(/is a folder, where a file is meant/);
  const full = Object.assign(new Error("ENOSPC"), { code: "ENOSPC", syscall: "write" });
  expect(systemMessage(full, "runs/a")).toMatch(/^runs\/a could not be written: the disk is full/);
});

test("a key that belongs elsewhere is told where", () => {
  expect(complaint(`${GOOD}\nlearning_rate: 1\n`)).toMatch(
    /there is no key "learningRate"\. Write optimizer\.learningRate\./,
  );
  expect(complaint(GOOD, ["optimizer.contextLength=3"])).toMatch(/Write data\.contextLength\./);
  expect(complaint(GOOD, ["learnRate=1"])).toMatch(/no key "learnRate"\. Did you mean optimizer\.learningRate\?/);
  expect(complaint(GOOD, ["zebra=1"])).toMatch(/Known here: /); // and not parallel.zero
});

test("an alias of nothing, of far too much, or of what it stands in is told as the file's mistake", () => {
  expect(complaint("a: *foo\n")).toMatch(/not YAML that can be read: .*foo/);
  expect(complaint("a: &a {b: *a}\n")).toMatch(/An alias stands in what it names/);
  const bomb = [
    "a0: &a0 [x, x, x]",
    ...Array.from({ length: 9 }, (_, i) => `a${i + 1}: &a${i + 1} [${`*a${i},`.repeat(9)}]`),
  ];
  expect(complaint(bomb.join("\n"))).toMatch(/not YAML that can be read: Excessive alias count/);
  expect(complaint(GOOD, ["steps=*foo"])).toMatch(/--set steps=\*foo: the value is not YAML/);
  expect(complaint(GOOD, ["steps=&a {b: *a}"])).toMatch(/An alias stands in what it names/);
});

test("--set reaches no object but the settings", () => {
  const text = complaint(GOOD, ["data.mixture.weights.__proto__.polluted=1"]);
  expect(text).toMatch(/there is no key "__proto__"/);
  expect(complaint(GOOD, ["constructor.prototype.polluted=1"])).toMatch(/there is no key "constructor"/);
  expect(complaint(`${GOOD}toString: 1\n`)).toMatch(/there is no key "toString"/);
  expect(({} as Record<string, unknown>).polluted).toBeUndefined();
});
