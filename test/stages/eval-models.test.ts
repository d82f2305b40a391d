/** Replies, who judges them, and models side by side. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { openCpu } from "../../src/device/cpu.js";
import { DialogueEncoder, replyStart, type Sample } from "../../src/dialogue/mask.js";
import { loadForGeneration } from "../../src/generate/loaded.js";
import { loadLlama, saveLlama } from "../../src/nn/folder.js";
import { multipleChoice } from "../../src/stages/eval/choice.js";
import { evaluateOnTasks, modelNames } from "../../src/stages/eval/evaluation.js";
import { isExact, isRight, judgeAnswer } from "../../src/stages/eval/exact.js";
import { openScorer } from "../../src/stages/eval/judge.js";
import { replyTo } from "../../src/stages/eval/replies.js";
import { readTasks } from "../../src/stages/eval/tasks.js";
import { evaluateModels, evaluateSchema } from "../../src/stages/evaluate.js";
import { scoreSequences } from "../../src/stages/reward.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";

const at = fileURLToPath(new URL("../golden/eval", import.meta.url));
const golden = JSON.parse(readFileSync(`${at}/golden.json`, "utf8")) as {
  template: string;
  replies: { question: string; ids: number[]; reply: string }[];
};
const dir = mkdtempSync(join(tmpdir(), "lyceum-eval-models-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const base = `${at}/model`;
const chat = join(dir, "chat");
cpSync(base, chat, { recursive: true });
const config = JSON.parse(readFileSync(`${chat}/tokenizer_config.json`, "utf8")) as object;
const chatConfig = JSON.stringify({ ...config, chat_template: golden.template, eos_token: "<|end|>" });
writeFileSync(`${chat}/tokenizer_config.json`, chatConfig);
/** A reward model: the same body, with a head of its own, and a mean reward that is subtracted. */
const judge = join(dir, "judge");
const scalar = loadLlama(openCpu(), base, "fp32", { head: "scalar", seed: 3 });
saveLlama(scalar, judge, { reward_mean: 0.25 });
cpSync(`${base}/tokenizer.json`, `${judge}/tokenizer.json`);
writeFileSync(`${judge}/tokenizer_config.json`, chatConfig);

const file = (name: string, lines: object[] | string): string => {
  writeFileSync(join(dir, name), typeof lines === "string" ? lines : lines.map((l) => JSON.stringify(l)).join("\n"));
  return join(dir, name);
};
const prompts = ["Where is the fox?", "What does the owl see?", "Say it."];
const mixed = file("mixed.jsonl", [
  { text: "The owl sees a fox." },
  { question: "Where is the fox?", answers: ["house"] },
  { question: "The owl", choices: ["sees", "is on"], answer: 0 },
  ...prompts.map((prompt) => ({ prompt })),
]);
/** More bytes, better reply: a judge that needs no model. */
const bytes = file("bytes.mjs", "export default (prompt, reply) => Buffer.byteLength(reply) + prompt.length / 1000;\n");
const options = { maxTokens: 6, batchSize: 2 };
const near = (actual: number[], expected: number[]): void => {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < actual.length; i++) expect(actual[i]).toBeCloseTo(expected[i], 5);
};
const asked = (texts: string[]) =>
  texts.map((content, i) => ({
    messages: [{ role: "user" as const, content }],
    source: { file: "prompts.jsonl", line: i + 1 },
  }));

test("greedy replies are those of Transformers; a prompt without room is told with its record", () => {
  const loaded = loadForGeneration(chat);
  const replies = replyTo(loaded, asked(golden.replies.map((r) => r.question)), options);
  expect(replies.map((r) => r.text)).toEqual(golden.replies.map((r) => r.reply.trim()));
  expect(replies).toMatchObject(golden.replies.map((r) => ({ tokens: r.ids.length, finished: false })));
  // Stopped by its third token: that token is none of the reply's.
  const stopped = replyTo(
    { ...loaded, stop: [golden.replies[0].ids[2]] },
    asked([golden.replies[0].question]),
    options,
  );
  expect(stopped).toMatchObject([{ tokens: 2, finished: true }]);
  expect(() => replyTo(loaded, asked(["hi", "the owl ".repeat(60)]), options)).toThrow(
    /prompts\.jsonl:2: the prompt of \d+ tokens leaves no room .*context of 64/,
  );
});

test("sampled replies depend on the seed and the prompt's number, not on how many are asked at once", () => {
  const loaded = loadForGeneration(chat);
  const same = Array.from({ length: 6 }, () => prompts[0]);
  const sample = (seed: number, batchSize = 2) =>
    replyTo(loaded, asked(same), { ...options, batchSize, temperature: 1, seed }).map((r) => r.text);
  expect(sample(1)).toEqual(sample(1));
  expect(sample(1)).not.toEqual(sample(2));
  for (const batchSize of [1, 3, 6]) expect(sample(1, batchSize)).toEqual(sample(1));
  // Nor are another seed's draws the same ones, moved by a place or a batch.
  for (const by of [1, 2]) expect(sample(1 + by).slice(0, 6 - by)).not.toEqual(sample(1).slice(by));
});

test("exact match: the whole reply, or an answer within it", () => {
  expect(isExact("The Great Wall!", ["great wall"])).toBe(true);
  expect(isExact("Ｌｉｍａ.", ["Lima"])).toBe(true);
  expect(isExact("N'Djamena", ["n’djamena"])).toBe(true);
  expect(isExact("Lima, Peru", ["Lima"])).toBe(false);
  expect(isExact("巴马科。", ["巴马科"])).toBe(true);
  expect(isExact("", ["!"])).toBe(false);
  // As SQuAD's string.punctuation, and articles are whole words in every alphabet.
  expect(isExact("$5", ["5"])).toBe(true);
  expect(isExact("x = 4", ["x 4"])).toBe(true);
  expect(isExact("año", ["ño"])).toBe(false);
  expect(isExact("!", ["!"])).toBe(true);
  expect(isRight("It is Lima, in Peru.", ["Quito", "lima"])).toBe(true);
  expect(isRight("Limassol", ["Lima"])).toBe(false);
  expect(isRight("首都是巴马科。", ["巴马科"])).toBe(true);
  // A base model's answer is its line; a chat model's is the whole reply.
  expect(judgeAnswer("Lima\nQ: And Chad?", ["Lima"], false)).toEqual({ exact: true, contains: true });
  expect(judgeAnswer("Lima\nQ: And Chad?", ["Lima"], true)).toEqual({ exact: false, contains: true });
});

test("a context and a system message reach the model, in questions, choices and the stage of a recipe", async () => {
  const [question, context, system] = ["Where is the fox?", "The fox is on the house.", "Say it."];
  const choice = { question, choices: ["house", "owl"], answer: 0 };
  const records = file("context.jsonl", [
    { question, answers: ["house"], context, system },
    { ...choice, context },
  ]);
  const { samples } = await evaluateOnTasks({ ...options, models: [chat], tasks: [records], samples: 1 });
  const whole = [
    { role: "system" as const, content: system },
    { role: "user" as const, content: question, input: context },
  ];
  const loaded = loadForGeneration(chat);
  const [reply] = replyTo(loaded, [{ messages: whole, source: { file: records, line: 1 } }], options);
  expect(samples[0].prompt).toBe(`${system}\n${question}\n${context}`);
  expect(samples[0].replies[0].text).toBe(reply.text);
  const stage = evaluateSchema.parse({
    models: [chat],
    file: file("asked-in.jsonl", [{ question, answers: ["house"], context, system }]),
    maxTokens: 6,
  });
  expect((await evaluateModels(stage))[0].replies).toEqual([reply.text]);
  await expect(evaluateModels({ ...stage, file: records })).rejects.toThrow(
    /context\.jsonl:2: this stage asks questions/,
  );
  for (const model of [loaded, loadForGeneration(base)]) {
    const { choices } = await readTasks([records]);
    const [[read], [bare]] = [choices, [{ ...choices[0], messages: undefined }]].map((tasks) =>
      multipleChoice(model, tasks),
    );
    expect(read.logProbs).not.toEqual(bare.logProbs);
  }
});

test("a reward model reads every model's replies with its own tokenizer and template", async () => {
  const loaded = loadForGeneration(base); // knows no template; the judge does
  const scorer = await openScorer(judge, loaded);
  const replies = [
    { text: "the fox", finished: true },
    { text: "the fox", finished: false },
    { text: "", finished: true },
  ];
  const { scores, cut } = await scorer.score(asked(["Where?", "Where?", "Where?"]), replies);
  const tokenizer = Tokenizer.load(judge);
  const [sample] = new DialogueEncoder(tokenizer).samples(
    [
      { role: "user", content: "Where?" },
      { role: "assistant", content: "the fox" },
    ],
    "last",
    64,
  ) as Sample[];
  const prompt = sample.ids.slice(0, replyStart(sample));
  const wanted = scoreSequences(scalar, [sample.ids, sample.ids.slice(0, -1), [...prompt, tokenizer.eosId!]]);
  expect(cut).toBe(0);
  near(
    scores,
    wanted.map((w) => w - 0.25),
  );
  // What is beyond the judge's context is not read, and counted; a prompt that fills it is an error.
  const long = await scorer.score(asked(["Where?"]), [{ text: "the fox ".repeat(60), finished: true }]);
  const whole = [...prompt, ...tokenizer.encode("the fox ".repeat(60))].slice(0, 64);
  expect(long.cut).toBe(1);
  near(long.scores, [scoreSequences(scalar, [whole])[0] - 0.25]);
  await expect(scorer.score(asked(["the owl ".repeat(60)]), replies.slice(0, 1))).rejects.toThrow(
    /prompts\.jsonl:1: the prompt of \d+ tokens leaves no room .* the reward model's context of 64/,
  );
  scorer.close();
});

test("two models on all tasks: each is measured alike, one table's worth of numbers", async () => {
  const { models, samples } = await evaluateOnTasks({
    ...options,
    models: [base, chat],
    tasks: [mixed],
    reward: bytes,
    against: chat,
    samples: 2,
  });
  expect(models.map((m) => m.model)).toEqual([base, chat]);
  const [a, b] = models.map((m) => m.tasks);
  expect(a.perplexity).toEqual(b.perplexity); // the same weights, and texts know no template
  expect(a.perplexity?.texts).toBe(1);
  expect(a.choice?.questions).toBe(1);
  expect(a.exact).toMatchObject({ questions: 1, exact: 0, contains: 0 });
  // The judge's numbers from the replies themselves.
  const [fromBase, fromChat] = [base, chat].map((m) =>
    replyTo(loadForGeneration(m), asked(prompts), options).map((r) => Buffer.byteLength(r.text)),
  );
  const mean = (x: number[]): number => x.reduce((s, v, i) => s + v + prompts[i].length / 1000, 0) / 3;
  expect(a.reward?.mean).toBeCloseTo(mean(fromBase), 9);
  expect(b.reward?.mean).toBeCloseTo(mean(fromChat), 9);
  expect(b.reward?.prompts).toBe(3);
  expect(b.winRate).toBeUndefined();
  const wins = fromBase.filter((s, i) => s > fromChat[i]).length;
  const ties = fromBase.filter((s, i) => s === fromChat[i]).length;
  expect(a.winRate).toMatchObject({ against: chat, prompts: 3, wins, ties, losses: 3 - wins - ties });
  expect(a.winRate?.winRate).toBeCloseTo((wins + ties / 2) / 3, 12);
  expect(samples.map((s) => [s.line, s.prompt])).toEqual([
    [2, "Where is the fox?"],
    [5, "What does the owl see?"],
  ]);
  expect(samples[0].replies.map((r) => [r.model, r.right])).toEqual([
    [base, false],
    [chat, false],
  ]);
  expect(samples[1].replies[1].text).toBe(golden.replies[1].reply.trim());
  expect(samples[1].replies[1].score).toBeCloseTo(fromChat[1] + prompts[1].length / 1000, 9);
});

test("held against a model that is no column; a reward model as judge; tasks that are not asked are absent", async () => {
  const only = file(
    "prompts.jsonl",
    prompts.map((prompt) => ({ prompt })),
  );
  const lines: string[] = [];
  const { models } = await evaluateOnTasks(
    { ...options, models: [base], tasks: [only], reward: judge, against: chat },
    (line) => lines.push(line),
  );
  expect(models).toHaveLength(1);
  expect(Object.keys(models[0].tasks)).toEqual(["reward", "winRate"]);
  expect(models[0].tasks.winRate?.prompts).toBe(3);
  expect(lines).toEqual([`${base}: 3 prompts`, `${chat}: 3 prompts`]);
  // The other way round the wins are the losses.
  const { models: turned } = await evaluateOnTasks({
    ...options,
    models: [chat],
    tasks: [only],
    reward: judge,
    against: base,
  });
  expect(turned[0].tasks.winRate?.winRate).toBeCloseTo(1 - (models[0].tasks.winRate?.winRate ?? 0), 12);
  // Without a judge: lengths only.
  const { models: bare } = await evaluateOnTasks({ ...options, models: [chat], tasks: [only] });
  expect(bare[0].tasks).toEqual({ reward: { prompts: 3, length: 6, finished: 0 } });
});

test.each([
  [{ models: [base, `${base}/`] }, /is named twice/],
  [{ models: [join(dir, "nowhere")] }, /is not a model folder/],
  [{ models: [judge] }, /judge is a reward model and writes no texts.*--reward/],
  [{ against: chat }, /needs --reward/],
  [{ against: base, reward: bytes }, /is the only model/],
  [{ reward: bytes, tasks: [file("texts.jsonl", [{ text: "x" }])] }, /texts\.jsonl has none of them/],
  [{ reward: join(dir, "none.mjs") }, /none\.mjs does not exist/],
  [{ reward: chat }, /is a language model, not a reward model/],
  [
    { reward: file("throws.mjs", "export default () => { throw new Error('no table'); }") },
    /throws\.mjs failed on the prompt of .*mixed\.jsonl:4: no table/,
  ],
  [{ reward: file("nan.mjs", "export default () => NaN") }, /gave NaN for a reply to the prompt of .*mixed\.jsonl:4/],
])("what is wrong is told: %j", async (changes, message) => {
  await expect(evaluateOnTasks({ ...options, models: [base], tasks: [mixed], ...changes })).rejects.toThrow(message);
});

test("names of models: the run's where the folder is called model, the path where two are the same", () => {
  expect(modelNames(["runs/a/sft/model", "runs/a/dpo/model/", "other"])).toEqual(["sft", "dpo", "other"]);
  expect(modelNames(["x/sft/model", "y/sft/model"])).toEqual(["x/sft/model", "y/sft/model"]);
});

test("the stage of a recipe: accepted answers, a reward model as judge, win rate and KL against a reference", async () => {
  const questions = file("questions.jsonl", [
    { question: "Where is the fox?", answers: [golden.replies[0].reply.trim()], field: "place" },
    { question: "What does the owl see?", answers: ["nothing"] },
  ]);
  const settings = { models: [base, chat], file: questions, maxTokens: 6, reward: judge, reference: chat };
  const [a, b] = await evaluateModels(evaluateSchema.parse(settings));
  expect(b.replies).toEqual(golden.replies.map((r) => r.reply.trim()));
  expect(b.right).toEqual([true, false]);
  expect(b.groups).toEqual({ place: { right: 1, total: 1 }, all: { right: 0, total: 1 } });
  expect(b.winRate).toBe(0.5);
  expect(b.kl).toBeCloseTo(0, 6);
  expect(b.length).toBe(6);
  expect(a.scores).toHaveLength(2);
  expect(a.kl).toBeUndefined();
});

test("the stage's reference may be no column, and be named in another way; what cannot be one is refused", async () => {
  const questions = file("asked.jsonl", [{ question: "Where is the fox?", answers: ["here"] }]);
  const stage = (settings: object) =>
    evaluateModels(evaluateSchema.parse({ models: [chat], file: questions, maxTokens: 6, reward: bytes, ...settings }));
  const [listed] = await stage({ reference: `${chat}/` });
  expect(listed.winRate).toBe(0.5);
  const alone = await stage({ models: [base], reference: chat });
  expect(alone.map((r) => r.model)).toEqual([base]);
  expect(alone[0].winRate).toBeTypeOf("number");
  const changed = (name: string, key: string, value: unknown): string => {
    const copy = join(dir, name);
    cpSync(chat, copy, { recursive: true });
    const path = `${copy}/${key === "added_tokens" ? "tokenizer" : "config"}.json`;
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), [key]: value }));
    return copy;
  };
  await expect(stage({ reference: judge })).rejects.toThrow(/judge is a reward model and writes no texts/);
  // Which replies are better, a judge says of any two models; the KL needs the same tokens.
  const other = changed("tokens", "added_tokens", []);
  const [across] = await stage({ reference: other });
  expect([across.winRate, across.kl]).toEqual([expect.any(Number), undefined]);
  const unjudged = { reward: undefined };
  await expect(stage({ ...unjudged, reference: other })).rejects.toThrow(
    /The reference .*tokens and the policy .*chat have different tokenizers/,
  );
  await expect(stage({ ...unjudged, reference: changed("short", "max_position_embeddings", 8) })).rejects.toThrow(
    /The reference .*short was made for 8 positions/,
  );
});

test("a prompt that the chat template refuses is told with its record", async () => {
  const loaded = loadForGeneration(chat);
  loaded.tokenizer.config.chat_template = `{{ raise_exception('not this') }}${golden.template}`;
  expect(() => replyTo(loaded, asked(["Hi"]), options)).toThrow(/prompts.jsonl:1: .*not this/);
  const strict = join(dir, "strict");
  cpSync(judge, strict, { recursive: true });
  writeFileSync(
    `${strict}/tokenizer_config.json`,
    JSON.stringify({ ...JSON.parse(chatConfig), chat_template: loaded.tokenizer.config.chat_template }),
  );
  const scorer = await openScorer(strict, loaded);
  await expect(scorer.score(asked(["Hi"]), [{ text: "a", finished: true }])).rejects.toThrow(
    /prompts.jsonl:1: .*not this/,
  );
  scorer.close();
  loaded.model.close();
});
