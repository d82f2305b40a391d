/** Self-instruct against a service of the test's own, with its whims, and against a checkpoint. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { command } from "../../src/cli/instruct.js";
import {
  fault,
  type Grown,
  grow,
  parseAnswer,
  readTasks,
  requestText,
  type Task,
  wanted,
} from "../../src/dialogue/instruct.js";
import { openTeacher, type Teacher } from "../../src/dialogue/teacher.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-instruct-`);
afterAll(() => rmSync(root, { recursive: true, force: true }));
const seeds: Task[] = [
  { instruction: "Name three rivers of Europe.", input: "", output: "Rhine, Danube, Volga.", type: "open_qa" },
  {
    instruction: "Shorten the sentence.",
    input: "It was, all in all, a day.",
    output: "It was a day.",
    type: "rewrite",
  },
];
const seedFile = `${root}/seeds.jsonl`;
writeFileSync(seedFile, seeds.map((s) => `${JSON.stringify(s)}\n`).join(""));

/** Tasks that are all different: numbers as words of their own. */
const task = (n: number, over: Partial<Task> = {}): string => {
  const t = {
    type: "generation",
    instruction: `Tell about w${n} x${n} y${n} z${n}.`,
    input: "",
    output: `About ${n}.`,
    ...over,
  };
  return `###\n${n}. Type: ${t.type}\n${n}. Instruction: ${t.instruction}\n${n}. Input: ${t.input || "<none>"}\n${n}. Output: ${t.output}`;
};

type Handler = (
  request: { body: Record<string, unknown>; headers: IncomingMessage["headers"] },
  response: ServerResponse,
) => void;
let server: Server;
let url: string;
let handler: Handler;
let calls: { body: Record<string, unknown>; at: number }[];
const say = (response: ServerResponse, content: unknown, finish = "stop"): void => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ choices: [{ message: { content }, finish_reason: finish }] }));
};
beforeEach(async () => {
  calls = [];
  server = createServer((request, response) => {
    let text = "";
    request.on("data", (data) => {
      text += data;
    });
    request.on("end", () => {
      const body = JSON.parse(text) as Record<string, unknown>;
      calls.push({ body, at: performance.now() });
      handler({ body, headers: request.headers }, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
});
const options = {
  model: "m",
  temperature: 0.5,
  maxTokens: 100,
  perMinute: 100_000,
  timeout: 5,
  retries: 3,
  pause: 0.01,
};
const flags = {
  out: "",
  teacher: "",
  model: "m",
  count: "10",
  seed: "1",
  temperature: "0.8",
  maxTokens: "100",
  perMinute: "100000",
  timeout: "5",
  json: true,
};
const rows = (file: string): Record<string, unknown>[] =>
  readFileSync(file, "utf8")
    .trim()
    .split("\n")
    .map((row) => JSON.parse(row));

test("a request shows the examples in the form that answers are read in", () => {
  const text = requestText(seeds, ["brainstorming"]);
  expect(text).toContain("Write mostly: brainstorming.");
  expect(
    parseAnswer({ text: text.slice(text.indexOf("###\n1.")).replace(/###\nGo on[\s\S]*/, ""), whole: true }).tasks,
  ).toEqual(seeds);
});

test("answers: tasks, manners before them, what is not in the form, and the last one of an answer that was cut off", () => {
  const text = `Here are some tasks:\n${task(1)}\n###\n2. Instruction: no output\n${task(3, { type: "Poetry", input: "A text.\nOf two lines.", output: "One.\n\nTwo." })}\n${task(4)}`;
  const { tasks, refused } = parseAnswer({ text, whole: false });
  expect(tasks).toEqual([
    { type: "generation", instruction: "Tell about w1 x1 y1 z1.", input: "", output: "About 1." },
    { type: "other", instruction: "Tell about w3 x3 y3 z3.", input: "A text.\nOf two lines.", output: "One.\n\nTwo." },
  ]);
  expect(refused.map((r) => r.reason)).toEqual(["not in the form asked for", "cut off at the answer's end"]);
  const bold = parseAnswer({
    text: "**Type:** 开放域问答\n**Instruction:** 长江有多长？\n**Input:** 无\n**Output:** 约6300公里。",
    whole: true,
  });
  expect(bold.tasks).toEqual([{ type: "open_qa", instruction: "长江有多长？", input: "", output: "约6300公里。" }]);
});

test.each([
  [{ instruction: "Go on." }, /fewer than 3 words/],
  [{ instruction: "word ".repeat(151) }, /more than 150 words/],
  [{ instruction: "Draw a picture of a cat." }, /text cannot do/],
  [{ instruction: "请画一只猫的图片。" }, /text cannot do/],
  [{ instruction: "- make a list of it" }, /begins with a sign/],
  [{ output: "" }, /output is empty/],
  [{ input: "same", output: "same" }, /output is the input/],
  [{ output: "Name three rivers of Asia." }, /output is the instruction/],
])("not taken: %o", (over, reason) => {
  const good = { instruction: "Name three rivers of Asia.", input: "", output: "Ob, Amur, Indus.", type: "open_qa" };
  expect(fault(good)).toBeUndefined();
  expect(fault({ ...good, ...over })).toMatch(reason);
});

test("types that lie behind InstructGPT's shares are asked for", () => {
  expect(wanted([])[0]).toBe("generation");
  expect(wanted(Array(10).fill({ ...seeds[0], type: "generation" }))).toEqual([
    "open_qa",
    "brainstorming",
    "chat",
    "rewrite",
  ]);
});

/** A teacher without a network: whatever it is asked, it gives the tasks of that request. */
const scripted = (answers: (request: number) => string): Teacher & { prompts: string[] } => {
  const prompts: string[] = [];
  return {
    name: "scripted",
    prompts,
    close: () => {},
    answer: async (prompt) => ({ text: answers(prompts.push(prompt)), whole: true }),
  };
};
async function grown(
  teacher: Teacher,
  count: number,
  before: Grown[] = [],
): Promise<{ kept: Grown[]; reasons: string[] }> {
  const kept: Grown[] = [];
  const reasons: string[] = [];
  await grow(
    teacher,
    seeds,
    before,
    { count, seed: 1 },
    { keep: (t) => kept.push(t), refuse: (r) => reasons.push(r.reason) },
  );
  return { kept, reasons };
}

test("near copies of seeds and of what has grown are left out, in Chinese by characters; the same seed asks the same", async () => {
  const answers = (r: number): string =>
    [
      task(10 * r, { instruction: "Name three rivers of Asia." }),
      task(10 * r + 1, { instruction: "请说出世界上最长的三条河。" }),
      task(10 * r + 2, { instruction: "请说出世界上最长的两条河。" }),
      task(10 * r + 3),
    ].join("\n");
  const [a, b] = [scripted(answers), scripted(answers)];
  const { kept, reasons } = await grown(a, 4);
  expect(kept.map((t) => t.instruction)).toEqual([
    "请说出世界上最长的三条河。",
    "Tell about w13 x13 y13 z13.",
    "Tell about w23 x23 y23 z23.",
    "Tell about w33 x33 y33 z33.",
  ]);
  expect(reasons[0]).toBe("too near to seed 1 (ROUGE-L 0.80)");
  expect(reasons[1]).toMatch(/^too near to task 1 \(ROUGE-L 0\.9/);
  expect((await grown(b, 4)).kept).toEqual(kept);
  expect(b.prompts).toEqual(a.prompts);
});

test("a teacher that repeats itself is given up", async () => {
  await expect(
    grown(
      scripted(() => task(1)),
      5,
    ),
  ).rejects.toThrow(/no new task in 20 requests; 1 of 5 are there/);
});

test("a service: too many requests, a fault and a broken answer are tried again; key, model and seed are sent", async () => {
  process.env.OPENAI_API_KEY = "secret";
  const answers: ((response: ServerResponse) => void)[] = [
    (r) => {
      r.statusCode = 429;
      r.end("slow down");
    },
    (r) => {
      r.statusCode = 500;
      r.end();
    },
    (r) => r.end("not json"),
    (r) => say(r, "good"),
  ];
  let authorization: unknown;
  handler = ({ headers }, response) => {
    authorization = headers.authorization;
    answers.shift()!(response);
  };
  try {
    expect(await openTeacher(url, options).answer("hello", 7)).toEqual({ text: "good", whole: true });
  } finally {
    delete process.env.OPENAI_API_KEY;
  }
  expect(authorization).toBe("Bearer secret");
  expect(calls).toHaveLength(4);
  expect(calls[3].body).toMatchObject({
    model: "m",
    temperature: 0.5,
    max_tokens: 100,
    seed: 7,
    messages: [{ role: "user", content: "hello" }],
  });
});

test("a service that hangs, refuses, is not there, or says nothing", async () => {
  handler = () => {};
  await expect(openTeacher(url, { ...options, timeout: 0.1, retries: 1 }).answer("x", 1)).rejects.toThrow(
    /gave no answer in 2 tries; at last it did not answer within 0.1 seconds/,
  );
  handler = (_, response) => {
    response.statusCode = 401;
    response.end("who are you?");
  };
  await expect(openTeacher(url, options).answer("x", 1)).rejects.toThrow(
    /401 Unauthorized: who are you\?.*OPENAI_API_KEY/,
  );
  expect(calls.filter((c) => c)).toHaveLength(3); // not tried again
  handler = (_, response) => say(response, null);
  await expect(openTeacher(url, { ...options, retries: 0 }).answer("x", 1)).rejects.toThrow(/holds no message/);
  await expect(openTeacher("http://127.0.0.1:9/v1", { ...options, retries: 0 }).answer("x", 1)).rejects.toThrow(
    /gave no answer/,
  );
  expect(() => openTeacher(url, { ...options, model: "" })).toThrow(/--model is missing/);
});

test("requests keep the distance that is asked for", async () => {
  handler = (_, response) => say(response, "x");
  const teacher = openTeacher(url, { ...options, perMinute: 600 });
  for (let i = 0; i < 4; i++) await teacher.answer("x", i);
  for (let i = 1; i < 4; i++) expect(calls[i].at - calls[i - 1].at).toBeGreaterThan(90);
});

test("the command: records are added as they come; a run that was stopped goes on without a copy", async () => {
  let request = 0;
  handler = (_, response) => {
    if (++request === 3) return void response.writeHead(400).end("broken");
    say(response, [task(100 * request), task(100 * request + 1), task(100 * request + 2, { output: "" })].join("\n"));
  };
  const out = `${root}/grown.jsonl`;
  const run = { ...flags, teacher: url, out, count: "7" };
  await expect(command(seedFile, run)).rejects.toThrow(/400 Bad Request: broken/);
  expect(rows(out)).toHaveLength(4);
  await expect(command(seedFile, run)).rejects.toThrow(/is there already.*--resume/);
  writeFileSync(out, `${readFileSync(out, "utf8")}{"instruction": "cut sh`);
  await command(seedFile, { ...run, resume: true });
  const all = rows(out);
  expect(all).toHaveLength(7);
  expect(all.map((r) => r.request)).toEqual([1, 1, 2, 2, 3, 3, 4]);
  expect(new Set(all.map((r) => r.instruction)).size).toBe(7);
  expect(rows(`${out}.rejected.jsonl`).every((r) => r.reason === "the output is empty")).toBe(true);
});

test("seeds that are none are told with their line", () => {
  writeFileSync(`${root}/bad.jsonl`, '{"instruction": "a", "output": "b"}\n{"instruction": 3}\n');
  expect(() => readTasks(`${root}/bad.jsonl`)).toThrow(/bad\.jsonl:2: a seed is a record with/);
  writeFileSync(`${root}/empty.jsonl`, "");
  expect(() => readTasks(`${root}/empty.jsonl`)).toThrow(/there is no seed/);
  expect(existsSync(seedFile) && readTasks(seedFile)).toEqual(seeds);
});
