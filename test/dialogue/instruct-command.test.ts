/** `lyceum instruct` with real teachers: a small checkpoint that has learned to write tasks, and a service; killed and resumed. */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { command, type InstructFlags } from "../../src/cli/instruct.js";
import type { InstructReport } from "../../src/dialogue/instruct.js";
import { INSTRUCTGPT } from "../../src/dialogue/mixture.js";
import { type Task, taskPrompt } from "../../src/dialogue/task-list.js";
import { openTeacher } from "../../src/dialogue/teacher.js";
import { RunFolder } from "../../src/run/folder.js";
import { pretrain, pretrainSchema } from "../../src/stages/pretrain.js";
import { fail, Service, say } from "./service.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-instruct-`);
const seedFile = `${root}/seeds.jsonl`;
const checkpoint = `${root}/run/model`;
const types = Object.keys(INSTRUCTGPT);
const animals = ["cat", "dog", "owl", "fox", "hen", "bee", "cow", "pig"];
const things = ["a song", "the rain", "my hat", "two eggs", "the moon", "a river"];
const task = (i: number): Task => {
  const [animal, thing] = [animals[i % 8], things[(i * 5 + (i >> 3)) % 6]];
  const instruction = `What would the ${animal} say of ${thing}?`;
  return { type: types[i % types.length], instruction, input: "", output: `The ${animal} likes ${thing}.` };
};
const written = (n: number, { type, instruction, output }: Task): string =>
  `${n}. Type: ${type}\n${n}. Instruction: ${instruction}\n${n}. Input: <none>\n${n}. Output: ${output}`;

const base = {
  seed: "1",
  tasks: "1",
  examples: "1",
  batchSize: "4",
  similarity: "0.9",
  temperature: "0.7",
  maxTokens: "100",
  perMinute: "100000",
  timeout: "5",
  json: true,
};
async function run(flags: Partial<InstructFlags> & { out: string; teacher: string; count: string }) {
  const log = vi.spyOn(console, "log").mockImplementation(() => {});
  try {
    await command(seedFile, { ...base, ...flags });
    return JSON.parse(log.mock.calls.at(-1)![0] as string) as InstructReport;
  } finally {
    log.mockRestore();
  }
}
const rows = (file: string): (Task & { round: number; teacher: string })[] =>
  readFileSync(file, "utf8")
    .split("\n")
    .flatMap((row) => (row === "" ? [] : [JSON.parse(row)]));

let service: Service;
beforeEach(async () => {
  service = new Service();
  await service.open();
});
afterEach(() => service.close());
beforeAll(async () => {
  writeFileSync(seedFile, [3, 14, 25].map((i) => `${JSON.stringify(task(i))}\n`).join(""));
  // What a teacher must know: after a prompt of this kind comes a task of the wanted type.
  const texts = Array.from({ length: 300 }, (_, i) => {
    const next = task(i * 11 + 3);
    return { id: `d${i}`, text: `${taskPrompt("en", [task(i * 7)], [next.type])}\n${written(1, next)}` };
  });
  writeFileSync(`${root}/texts.jsonl`, texts.map((t) => JSON.stringify(t)).join("\n"));
  const settings = {
    threads: 2,
    logEvery: 1000,
    data: { train: [`${root}/texts.jsonl`], validationShare: 0.05, contextLength: 512 },
    model: { hiddenSize: 64, intermediateSize: 128, numLayers: 2, numHeads: 4, numKvHeads: 2 },
    tokenizer: { vocabSize: 700 },
    batchSize: 2,
    steps: 260,
    evalEvery: 0,
    saveEvery: 0,
    optimizer: { learningRate: 6e-3 },
  };
  const folder = RunFolder.open(`${root}/run`, settings, { keepCheckpoints: 1 });
  await pretrain(pretrainSchema.parse(settings), folder);
  folder.close();
}, 120_000);
afterAll(() => rmSync(root, { recursive: true, force: true }));

test("a checkpoint teaches; killed in the middle of a record and resumed, the file has the same bytes", async () => {
  const out = `${root}/grown.jsonl`;
  const report = await run({ teacher: checkpoint, out, count: "12" });
  expect(report.kept).toBe(12);
  expect(rows(out)).toHaveLength(12);
  expect(rows(out).every((t) => t.teacher === checkpoint && t.output !== "")).toBe(true);
  // Another instruction set rounds otherwise, and so small a teacher may then stumble; mostly it says what it has learned.
  const learned = rows(out).filter(
    ({ instruction, output }) =>
      /^What would the \w+ say of [\w ]+\?$/.test(instruction) && /^The \w+ likes [\w ]+\.$/.test(output),
  );
  expect(learned.length).toBeGreaterThanOrEqual(6);
  expect(report.types.every((t) => t.kept === t.wanted)).toBe(true);

  const cut = `${root}/cut.jsonl`;
  const lines = readFileSync(out, "utf8").split(/(?<=\n)/);
  writeFileSync(cut, `${lines.slice(0, 5).join("")}${lines[5].slice(0, 30)}`);
  expect(await run({ teacher: checkpoint, out: cut, count: "12", resume: true })).toMatchObject({ kept: 12 });
  expect(readFileSync(cut, "utf8")).toBe(readFileSync(out, "utf8"));
});

test("what a checkpoint says depends on the seed and the prompt's number, not on what else is asked", async () => {
  const prompts = [3, 8, 13].map((i) => taskPrompt("en", [task(i)], ["chat"]));
  const settings = { temperature: 1, maxTokens: 40, seed: 4, perMinute: 1, timeout: 1, retries: 0 };
  const teacher = openTeacher(checkpoint, settings);
  const other = openTeacher(checkpoint, { ...settings, seed: 5 });
  const brief = openTeacher(checkpoint, { ...settings, maxTokens: 3 });
  try {
    const all = await teacher.ask(prompts, 10);
    expect([...(await teacher.ask(prompts.slice(0, 1), 10)), ...(await teacher.ask(prompts.slice(1), 11))]).toEqual(
      all,
    );
    expect(await other.ask(prompts, 10)).not.toEqual(all);
    expect((await brief.ask(prompts.slice(0, 1), 10))[0].whole).toBe(false);
    await expect(teacher.ask([prompts[0].repeat(3)], 0)).rejects.toThrow(
      /cannot teach: a prompt has \d+ tokens, and its context of 512 leaves no room .*--examples 1 --tasks 1/,
    );
  } finally {
    for (const t of [teacher, other, brief]) t.close();
  }
});

/** A service that says the same to the same seed: two tasks a prompt, of which every fifth seed's second one is a copy. */
const steady: Service["handler"] = ({ body }, response) => {
  const n = Number(body.seed) % 100_000;
  const text = (k: string): Task => ({ ...task(0), instruction: `Tell w${k} x${k} y${k} z${k} now.`, type: "" });
  const second = n % 5 === 0 ? text(`${n}a`) : text(`${n}b`);
  say(response, [written(1, text(`${n}a`)), written(2, second)].join("\n\n").replace(/^\d\. Type.*\n/gm, ""));
};

test("a process that is killed and resumed, again and again, ends with the file of one that was not", async () => {
  service.handler = (call, response) => void setTimeout(() => steady(call, response), 40);
  const bin = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
  const start = (out: string, ...more: string[]) =>
    spawn(
      process.execPath,
      // biome-ignore format: one command
      [bin, "instruct", seedFile, "--teacher", service.url, "--model", "m", "--count", "60", "--tasks", "2",
        "--batch-size", "2", "--per-minute", "100000", "--out", out, ...more],
      { stdio: "ignore" },
    );
  const ended = (child: ReturnType<typeof spawn>): Promise<number | null> =>
    new Promise((resolve) => child.once("exit", (code) => resolve(code)));
  const whole = `${root}/whole.jsonl`;
  expect(await ended(start(whole))).toBe(0);
  expect(rows(whole)).toHaveLength(60);

  const out = `${root}/killed.jsonl`;
  const size = (): number => (existsSync(out) ? readFileSync(out).length : 0);
  for (let kills = 0; kills < 3; kills++) {
    const child = start(out, ...(kills > 0 ? ["--resume"] : []));
    const exit = ended(child);
    const before = size();
    while (size() < before + 1500 && child.exitCode === null) await sleep(5);
    child.kill("SIGKILL");
    expect(await exit).toBeNull();
  }
  expect(rows(out).length).toBeLessThan(60);
  expect(await ended(start(out, "--resume"))).toBe(0);
  expect(readFileSync(out, "utf8")).toBe(readFileSync(whole, "utf8"));
  const aside = (file: string): string => readFileSync(file.replace(".jsonl", ".rejected.jsonl"), "utf8");
  expect(aside(out).replaceAll(out, whole)).toBe(aside(whole));
});

test("a service that gives up leaves what has grown; mistakes in the command are told before anything is asked", async () => {
  service.handler = (call, response) =>
    service.calls.length > 3 ? fail(response, 402, "pay") : steady(call, response);
  const flags = { teacher: service.url, model: "m", tasks: "2", batchSize: "1", count: "20" };
  const out = `${root}/unpaid.jsonl`;
  await expect(run({ ...flags, out })).rejects.toThrow(/402 Payment Required: pay\. .*--resume goes on/);
  expect(rows(out).length).toBeGreaterThan(3);
  await expect(run({ ...flags, out })).rejects.toThrow(/unpaid\.jsonl exists/);
  const asked = service.calls.length;
  for (const [wrong, message] of [
    [{ count: "0" }, /--count is "0"; it must be a whole number from 1 up/],
    [{ count: "2.5" }, /--count is "2.5"; it must be a whole number/],
    [{ similarity: "7" }, /--similarity is "7"; it must be a number from 0 to 1/],
    [{ model: "" }, /--model is missing/],
    [{ timeout: "" }, /--timeout is ""/],
  ] as [object, RegExp][])
    await expect(run({ ...flags, out: `${root}/none.jsonl`, ...wrong })).rejects.toThrow(message);
  expect(service.calls.length).toBe(asked);
  expect(existsSync(`${root}/none.jsonl`)).toBe(false);
});
