/** Self-instruct: what is asked, what is taken and why not, the balance of types, and runs that are stopped at any moment. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, expect, test } from "vitest";
import type { Rejected } from "../../src/corpus/read.js";
import {
  type InstructOptions,
  type InstructReport,
  instruct,
  languageOf,
  readSeeds,
  typeQuotas,
  validateTask,
} from "../../src/dialogue/instruct.js";
import { INSTRUCTGPT } from "../../src/dialogue/mixture.js";
import { readConversations } from "../../src/dialogue/records.js";
import type { Task } from "../../src/dialogue/task-list.js";
import type { Answer, Teacher } from "../../src/dialogue/teacher.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-instruct-`);
afterAll(() => rmSync(root, { recursive: true, force: true }));
const seedRecords = [
  { instruction: "Name three rivers of Europe.", input: "", output: "Rhine, Danube, Volga.", type: "open_qa" },
  {
    instruction: "Shorten the sentence.",
    input: "It was, all in all, a day.",
    output: "It was a day.",
    type: "rewrite",
  },
  { instruction: "Say hello to a neighbour.", output: "Good morning!" },
  { instruction: "请写一句关于月亮的诗。", input: "", output: "月照千山雪。", type: "文本生成" },
];
const seedFile = `${root}/seeds.jsonl`;
writeFileSync(seedFile, seedRecords.map((s) => `${JSON.stringify(s)}\n`).join(""));
const seeds = await readSeeds(seedFile, []);

const rows = <T = Record<string, unknown>>(file: string): T[] =>
  readFileSync(file, "utf8")
    .split("\n")
    .flatMap((row) => (row === "" ? [] : [JSON.parse(row) as T]));
const listed = (tasks: Partial<Task>[]): string =>
  tasks
    .map(({ type, instruction, input, output }, i) =>
      [
        ...(type === undefined ? [] : [`Type: ${type}`]),
        `Instruction: ${instruction}`,
        `Input: ${input || "<none>"}`,
        ...(output === undefined ? [] : [`Output: ${output}`]),
      ]
        .map((line) => `${i + 1}. ${line}`)
        .join("\n"),
    )
    .join("\n\n");
/** Tasks that are no copies of one another: numbers as words of their own. */
const fresh = (n: number | string): Partial<Task> => ({
  instruction: `Tell about w${n} x${n} y${n} z${n}.`,
  output: `About ${n}.`,
});

type Said = string | Answer;
/** A teacher without a network: `say` gets the number of a prompt, the prompt and how many have been asked for before. */
function scripted(say: (number: number, prompt: string, calls: number) => Said): Teacher & { prompts: string[] } {
  const prompts: string[] = [];
  return {
    name: "scripted",
    prompts,
    close: () => {},
    ask: async (asked, first) =>
      asked.map((prompt, i) => {
        const said = say(first + i, prompt, prompts.length);
        prompts.push(prompt);
        return typeof said === "string" ? { text: said, whole: true } : said;
      }),
  };
}
/** What an obedient teacher says: as many tasks as it was asked for, without naming their types. */
const obedient = (number: number): string => listed(Array.from({ length: 4 }, (_, i) => fresh(`${number}q${i}`)));

let runs = 0;
async function run(
  teacher: Teacher,
  options: Partial<InstructOptions> = {},
): Promise<{
  report: InstructReport;
  kept: (Task & { round: number })[];
  aside: Record<string, unknown>[];
  out: string;
}> {
  const out = options.out ?? `${root}/run${++runs}.jsonl`;
  const report = await instruct(teacher, { seeds, count: 12, tasksPerPrompt: 4, batchSize: 2, ...options, out });
  return { report, kept: rows(out), aside: rows(out.replace(".jsonl", ".rejected.jsonl")), out };
}

test("seeds: Alpaca or messages, in any of a type's names; what is none is set aside with its reason", async () => {
  expect(seeds.map(({ type }) => type)).toEqual(["open_qa", "rewrite", undefined, "generation"]);
  expect(seeds[1]).toEqual({ ...seedRecords[1], source: { file: seedFile, line: 2 } });
  const file = `${root}/mixed.jsonl`;
  const messages = [
    { role: "user", content: "Hi." },
    { role: "assistant", content: "Hello." },
  ];
  const records = [
    { messages, type: "Chat" },
    { instruction: 3, output: "x" },
    { messages: [...messages, ...messages] },
    { instruction: "a b c", output: "d", type: "poem" },
  ];
  writeFileSync(file, `${records.map((r) => JSON.stringify(r)).join("\n")}\n{"cut`);
  const rejected: Rejected[] = [];
  expect(await readSeeds(file, rejected)).toEqual([
    { type: "chat", instruction: "Hi.", input: "", output: "Hello.", source: { file, line: 1 } },
  ]);
  expect(rejected.map((r) => `${r.line} ${r.reason}`)).toEqual([
    '2 "instruction" is not text',
    expect.stringMatching(/^3 a seed is one instruction/),
    expect.stringMatching(/^4 its type "poem" is none of generation, /),
    expect.stringMatching(/^5 not JSON/),
  ]);
  writeFileSync(`${root}/none.jsonl`, '{"a": 1}\n');
  await expect(readSeeds(`${root}/none.jsonl`, [])).rejects.toThrow(
    /none\.jsonl: no seed can be used\. .*none\.jsonl:1: /,
  );
});

test("the seeds that come with Lyceum are usable: every type, both languages, no copies, nothing that its own rules refuse", async () => {
  const file = new URL("../../recipes/instruct-seeds.jsonl", import.meta.url).pathname;
  const rejected: Rejected[] = [];
  const own = await readSeeds(file, rejected);
  expect(rejected).toEqual([]);
  expect(own.length).toBeGreaterThanOrEqual(20);
  expect(new Set(own.map((s) => s.type))).toEqual(new Set(Object.keys(INSTRUCTGPT)));
  for (const language of ["en", "zh"] as const)
    expect(own.filter((s) => languageOf(s.instruction) === language).length).toBeGreaterThanOrEqual(8);
  for (const seed of own) expect(validateTask(seed as Task), seed.instruction).toBeUndefined();
});

test.each([
  [{ instruction: "Go on." }, "instruction of fewer than 3 words"],
  [{ instruction: "写诗" }, "instruction of fewer than 3 words"],
  [{ instruction: "word ".repeat(151) }, "instruction of more than 150 words"],
  [{ instruction: "Draw me a cat, please." }, "about what is not text"],
  [{ instruction: "Describe the attached photo." }, "about what is not text"],
  [{ instruction: "请画一只在草地上的猫。" }, "about what is not text"],
  [{ instruction: "- make a list of it" }, "instruction begins with a sign"],
  [{ input: "[insert your text here]" }, "input is a placeholder"],
  [{ output: "name three rivers of Asia" }, "output repeats the instruction"],
  [{ output: "Ob, Am\uFFFDr" }, "broken characters"],
  [{ input: "a\u0000b" }, "broken characters"],
])("not taken: %o", (over, reason) => {
  const good = { instruction: "Name three rivers of Asia.", input: "", output: "Ob, Amur, Indus.", type: "open_qa" };
  expect(validateTask(good)).toBeUndefined();
  expect(validateTask({ ...good, ...over })?.reason).toBe(reason);
});
test.each([
  "《静夜思》是谁写的？",
  "Draw a conclusion from these two sentences.",
  "Rewrite the paragraph about cartography in plain words.",
  "¿Quién escribió el Quijote?",
  "2 + 3 is what?",
])("taken: %s", (instruction) => {
  expect(validateTask({ type: "other", instruction, input: "[1, 2]", output: "An answer." })).toBeUndefined();
});

test("quotas: InstructGPT's shares of any count, in whole numbers", () => {
  for (const count of [1, 7, 100, 52_000]) {
    const quotas = typeQuotas(count);
    expect([...quotas.values()].reduce((a, b) => a + b)).toBe(count);
    // Table 1 sums to 99.9.
    for (const [type, n] of quotas) expect(Math.abs(n - (count * INSTRUCTGPT[type].share) / 99.9)).toBeLessThan(1);
  }
});

test("a set that has grown: its size, its types, and records that fine-tuning reads", async () => {
  const teacher = scripted((n) => obedient(n));
  const { report, kept, out } = await run(teacher, { count: 40 });
  expect(kept).toHaveLength(40);
  expect(Object.fromEntries(report.types.map((t) => [t.type, t.kept]))).toEqual(Object.fromEntries(typeQuotas(40)));
  expect(report).toMatchObject({ kept: 40, rounds: new Set(kept.map((t) => t.round)).size });
  const rejected: Rejected[] = [];
  const conversations = await readConversations([out], rejected);
  expect(rejected).toEqual([]);
  expect(conversations.map((c) => c.type)).toEqual(kept.map((t) => t.type));
  // Chinese seeds lead to prompts in Chinese, as often as they are among the seeds.
  const chinese = teacher.prompts.filter((p) => p.startsWith("请"));
  expect(chinese.length).toBeGreaterThan(0);
  expect(chinese.every((p) => p.includes("请写一句关于月亮的诗。") && !p.includes("Name three rivers"))).toBe(true);
  expect(teacher.prompts.some((p) => /Instruction: Tell about w\dq\d/.test(p))).toBe(true);
});

test("a teacher that writes one type only does not tip the balance", async () => {
  const chatter = scripted((n) => listed([0, 1, 2, 3].map((i) => ({ ...fresh(`${n}q${i}`), type: "chat" }))));
  const out = `${root}/chat.jsonl`;
  await expect(run(chatter, { count: 30, out, patience: 2 })).rejects.toThrow(
    /scripted brought no new task in 2 rounds; .*chat\.jsonl holds 2 of 30\. The most frequent reason is "enough of its type" \(\d+ times\)/,
  );
  expect(rows(out).map((t) => t.type)).toEqual(["chat", "chat"]);
  expect(typeQuotas(30).get("chat")).toBe(2);
});

test("every candidate is kept or set aside with its reason and its place; near copies name what they copy", async () => {
  const reply = listed([
    { ...fresh("a"), type: "generation" },
    { instruction: "Name three rivers of Asia.", output: "Ob." },
    { instruction: "请写一句关于月亮的诗吧。", output: "月。" },
    { ...fresh("b"), output: undefined },
    { instruction: "tell about WA, xa, ya za", output: "No." },
    { instruction: "Show a picture of it.", output: "No." },
    { ...fresh("c"), type: "generation" },
    { ...fresh("d"), type: "generation" },
  ]);
  const answers: Said[] = [{ text: reply, whole: false }, "I would rather not.", ""];
  const teacher = scripted((n) => answers[n] ?? obedient(n));
  const { report, kept, aside, out } = await run(teacher, { count: 9, tasksPerPrompt: 3, batchSize: 3 });
  expect(kept.slice(0, 2).map((t) => t.instruction)).toEqual([fresh("a").instruction, fresh("c").instruction]);
  expect(aside.slice(0, 8).map((a) => [a.round, a.reply, a.item, a.reason, a.detail])).toEqual([
    [0, 1, 2, "near copy", `ROUGE-L 0.80 with ${seedFile}:1`],
    [0, 1, 3, "near copy", `ROUGE-L 0.95 with ${seedFile}:4`],
    [0, 1, 4, "no output", undefined],
    [0, 1, 5, "near copy", `ROUGE-L 1.00 with ${out}:1`],
    [0, 1, 6, "about what is not text", "picture"],
    [0, 1, 8, "cut off at the token limit", undefined],
    [0, 2, 1, "no task in the reply", undefined],
    [0, 3, 1, "the reply is empty", undefined],
  ]);
  expect(aside[0]).toMatchObject({ instruction: "Name three rivers of Asia.", output: "Ob." });
  expect(aside[6]).toMatchObject({ text: "I would rather not." });
  const counted = new Map<unknown, number>();
  for (const { reason } of aside) counted.set(reason, (counted.get(reason) ?? 0) + 1);
  expect(report.rejected).toEqual(Object.fromEntries(counted));
  // Nothing is lost: 8 + 2 of the first three replies, 4 of each other.
  expect(kept.length + aside.length).toBe(10 + 4 * (teacher.prompts.length - 3));
});

test("the same seed asks the same and grows the same; another one does not", async () => {
  const grow = async (seed: number) => {
    const teacher = scripted((n) => obedient(n));
    const { kept } = await run(teacher, { seed });
    return { prompts: teacher.prompts, kept };
  };
  const first = await grow(5);
  expect(await grow(5)).toEqual(first);
  expect((await grow(6)).prompts).not.toEqual(first.prompts);
});

/** Some tasks of each prompt are none: copies of seeds, of one another, and of other prompts'. */
const mixed = (number: number): string =>
  listed([
    fresh(`${number}q0`),
    { instruction: "Name three rivers of Asia.", output: "Ob." },
    { instruction: `Tell about w${number}q0 x${number}q0 y${number}q0 z${number}qq.`, output: "Near the first." },
    fresh(`${number % 5}q3`),
  ]);

test("a run that was killed at any record, or in the middle of one, ends with the same files", async () => {
  const whole = await run(scripted((n) => mixed(n)));
  expect(whole.aside.length).toBeGreaterThan(5);
  const text = (records: object[]): string => records.map((r) => `${JSON.stringify(r)}\n`).join("");
  for (let k = 0; k < whole.kept.length; k++) {
    const out = `${root}/killed${k}.jsonl`;
    const round = whole.kept[k - 1]?.round ?? 0;
    // Of the round in which it was killed, one of those set aside had been written.
    const before = whole.aside.filter((a) => (a.round as number) < round);
    const during = whole.aside.filter((a) => a.round === round).slice(0, 1);
    const next = text([whole.kept[k]]);
    writeFileSync(out, text(whole.kept.slice(0, k)) + next.slice(0, (next.length * (k % 3)) >> 2));
    writeFileSync(out.replace(".jsonl", ".rejected.jsonl"), text([...before, ...during]) + (k % 2 ? '{"rou' : ""));
    const resumed = await run(
      scripted((n) => mixed(n)),
      { out, resume: true },
    );
    expect(resumed.kept, `killed after ${k} records`).toEqual(whole.kept);
    const local = (a: object): string => JSON.stringify(a).replaceAll(out, whole.out);
    expect(resumed.aside.map(local)).toEqual(whole.aside.map((a) => JSON.stringify(a)));
    expect(resumed.report).toEqual(whole.report);
  }
});

test("resumed with a teacher that says something else, what was written stays and nothing comes twice", async () => {
  const out = `${root}/other.jsonl`;
  let asked = 0;
  const dies = scripted((n) => {
    if (++asked > 4) throw new Error("the line is dead");
    return mixed(n);
  });
  await expect(run(dies, { out })).rejects.toThrow("the line is dead");
  const first = rows<Task & { round: number }>(out);
  expect(first.at(-1)?.round).toBe(1);
  // Its first prompt of round 1 again, but with a copy of what the second one had said.
  const copy = { ...fresh("copy"), instruction: `${first.at(-1)?.instruction.slice(0, -1)} again.` };
  const { kept } = await run(
    scripted((n, _, calls) => (calls === 0 ? listed([copy]) : obedient(n + 100))),
    { out, resume: true },
  );
  expect(kept.slice(0, first.length)).toEqual(first);
  expect(kept).toHaveLength(12);
  expect(new Set(kept.map((t) => t.instruction)).size).toBe(12);
  expect(kept.map((t) => t.instruction)).not.toContain(copy.instruction);
});

test("a finished file is not asked for again; a larger count goes on with it", async () => {
  const { out, kept } = await run(scripted((n) => obedient(n)));
  const silent = scripted(() => "");
  expect((await run(silent, { out, resume: true })).kept).toEqual(kept);
  expect(silent.prompts).toEqual([]);
  const more = await run(
    scripted((n) => obedient(n + 50)),
    { out, resume: true, count: 20 },
  );
  expect(more.kept).toHaveLength(20);
  expect(more.kept.slice(0, 12)).toEqual(kept);
});

test("files that are there, or not this program's, are left as they are", async () => {
  const out = `${root}/mine.jsonl`;
  for (const text of ['{"instruction": "a", "output": "b"}\n', "some words", '{"type": 1}\n{"cut']) {
    writeFileSync(out, text);
    await expect(run(scripted(obedient), { out })).rejects.toThrow(/mine\.jsonl exists\. .*--resume/);
    await expect(run(scripted(obedient), { out, resume: true })).rejects.toThrow(
      /mine\.jsonl:1 is no record that lyceum instruct wrote/,
    );
    expect(readFileSync(out, "utf8")).toBe(text);
  }
});
