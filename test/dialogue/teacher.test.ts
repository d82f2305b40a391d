/** Teachers: a service with its whims (busy, broken, silent, particular about its parameters), and a checkpoint. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { openTeacher, type Teacher, type TeacherOptions } from "../../src/dialogue/teacher.js";
import { fail, promptOf, Service, say } from "./service.js";

let service: Service;
beforeEach(async () => {
  service = new Service();
  await service.open();
});
afterEach(() => {
  service.close();
  vi.unstubAllEnvs();
});
const options: TeacherOptions = {
  model: "m",
  temperature: 0.5,
  maxTokens: 100,
  seed: 1,
  perMinute: 100_000,
  timeout: 5,
  retries: 3,
  pause: 0.01,
};
const open = (over: Partial<TeacherOptions> = {}): Teacher => openTeacher(service.url, { ...options, ...over });

test("answers stand in the order of their prompts; key, model, settings and a seed of each prompt are sent", async () => {
  vi.stubEnv("OPENAI_API_KEY", "secret");
  service.handler = (call, response) => {
    const prompt = promptOf(call);
    // The first answer comes last.
    setTimeout(() => say(response, `to ${prompt}`, prompt === "b" ? "length" : "stop"), prompt === "a" ? 60 : 0);
  };
  const teacher = open();
  expect(teacher.name).toBe(`m at ${service.url}`);
  expect(await teacher.ask(["a", "b", "c"], 7)).toEqual([
    { text: "to a", whole: true },
    { text: "to b", whole: false },
    { text: "to c", whole: true },
  ]);
  const [call] = service.calls;
  expect(call.path).toBe("/v1/chat/completions");
  expect(call.headers.authorization).toBe("Bearer secret");
  expect(call.body).toEqual({
    model: "m",
    temperature: 0.5,
    max_tokens: 100,
    seed: 1_000_010,
    messages: [{ role: "user", content: "a" }],
  });
  expect(new Set(service.calls.map((c) => c.body.seed)).size).toBe(3);
});

test("without a key none is sent; an address may end in a slash or name the endpoint itself", async () => {
  vi.stubEnv("OPENAI_API_KEY", undefined);
  service.handler = (_, response) => say(response, "x");
  for (const end of ["/", "/chat/completions", "/chat/completions/"])
    await openTeacher(service.url + end, options).ask(["x"], 0);
  expect(service.calls.map((c) => c.path)).toEqual(Array(3).fill("/v1/chat/completions"));
  expect(service.calls[0].headers.authorization).toBeUndefined();
});

test("too many requests, a fault, an answer that is no JSON, one without a message and a lost connection are tried again", async () => {
  const answers: Service["handler"][] = [
    (_, r) => fail(r, 429, "slow down"),
    (_, r) => fail(r, 503),
    (_, r) => void r.end("<html>"),
    (_, r) => say(r, null),
    (_, r) => void r.socket?.destroy(),
    (_, r) => say(r, "good"),
  ];
  service.handler = (call, response) => answers.shift()!(call, response);
  const notes: string[] = [];
  const teacher = open({ retries: 5, note: (text) => notes.push(text) });
  expect(await teacher.ask(["x"], 0)).toEqual([{ text: "good", whole: true }]);
  expect(service.calls).toHaveLength(6);
  expect(notes).toHaveLength(5);
  expect(notes[0]).toMatch(/: it answered 429 Too Many Requests: slow down\. Asked again in 1 s\./);
  expect(notes[4]).toMatch(/fetch failed: .+ Asked again/);
});

test.each([
  ["seconds", () => "0.2"],
  ["a date", () => new Date(Date.now() + 1200).toUTCString()],
])("Retry-After is waited for: %s", async (_, after) => {
  let busy = true;
  service.handler = (_, response) => {
    if (busy) fail(response, 429, "", { "retry-after": after() });
    else say(response, "x");
    busy = false;
  };
  await open({ pause: 0 }).ask(["x"], 0);
  const [first, second] = service.calls;
  // A date has whole seconds: at least 0.2 of the 1.2 are left.
  expect(second.at - first.at).toBeGreaterThan(150);
});

test.each([
  ["hangs", {}, () => {}, /gave no answer in 2 tries; at last it did not answer within 0.1 seconds\. .*--resume/],
  ["stops in the middle", {}, (r) => void r.write('{"choices"'), /it did not answer within 0.1 seconds/],
  ["is broken", {}, (r) => fail(r, 500, "oh"), /in 2 tries; at last it answered 500 Internal Server Error: oh/],
  ["is no such service", {}, (r) => void r.end("<html>"), /at last its answer is not JSON: <html>/],
  ["says nothing", {}, (r) => say(r, null), /at last its answer holds no message/],
] as [string, object, (r: import("node:http").ServerResponse) => void, RegExp][])(
  "a service that %s",
  async (_, over, answer, message) => {
    service.handler = (_, response) => answer(response);
    await expect(open({ timeout: 0.1, retries: 1, ...over }).ask(["x"], 0)).rejects.toThrow(message);
    expect(service.calls).toHaveLength(2);
  },
);

test.each([
  [
    "unknown",
    401,
    "who are you?",
    /401 Unauthorized: who are you\?\. The key is read from OPENAI_API_KEY, which is set\./,
  ],
  ["not found", 404, "no model m", /404 Not Found: no model m/],
  ["out of money", 429, '{"error":{"code":"insufficient_quota"}}', /429 .*insufficient_quota/],
  ["too long", 400, "This model supports at most 50 completion tokens, max_tokens is too large", /too large/],
])("what no other try can better is not tried again: %s", async (_, status, text, message) => {
  vi.stubEnv("OPENAI_API_KEY", "secret");
  service.handler = (_, response) => fail(response, status, text);
  const error = await open()
    .ask(["x"], 0)
    .catch((e: Error) => e);
  expect(error).toMatchObject({ name: "UserError", message: expect.stringMatching(message) });
  expect((error as Error).message).not.toContain("secret");
  expect(service.calls).toHaveLength(1);
});

test("a service that does not take a setting is asked without it, and the user is told", async () => {
  service.handler = ({ body }, response) => {
    if ("max_tokens" in body)
      fail(response, 400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.");
    else if ("temperature" in body) fail(response, 400, "Unsupported value: 'temperature' does not support 0.5.");
    else if ("seed" in body)
      fail(response, 422, '{"type":"extra_forbidden","loc":["body","seed"]} Extra inputs are not permitted');
    else say(response, JSON.stringify(Object.keys(body).sort()));
  };
  const notes: string[] = [];
  const teacher = open({ retries: 0, note: (text) => notes.push(text) });
  const bare = { text: '["max_completion_tokens","messages","model"]', whole: true };
  expect(await teacher.ask(["x", "y"], 0)).toEqual([bare, bare]);
  expect(service.calls.at(-1)?.body.max_completion_tokens).toBe(100);
  expect(notes).toEqual([
    expect.stringMatching(/does not take a temperature of 0.5/),
    expect.stringMatching(/does not take a seed of 1/),
  ]);
  const before = service.calls.length;
  await teacher.ask(["z"], 2);
  expect(service.calls.length).toBe(before + 1);
});

test("requests keep the distance that is asked for, those asked at once too", async () => {
  service.handler = (_, response) => say(response, "x");
  const teacher = open({ perMinute: 600 });
  await teacher.ask(["x", "x"], 0);
  await teacher.ask(["x", "x"], 2);
  // 100 ms apart, less what a timer and a connection may be early or late.
  for (let i = 1; i < 4; i++) expect(service.calls[i].at - service.calls[i - 1].at).toBeGreaterThan(60);
});

test("when one answer cannot be had, the others are not waited for", async () => {
  service.handler = (call, response) => {
    if (promptOf(call) === "bad") fail(response, 403, "no");
  };
  const start = performance.now();
  await expect(open({ timeout: 60 }).ask(["hangs", "bad"], 0)).rejects.toThrow(/403 Forbidden: no/);
  expect(performance.now() - start).toBeLessThan(5000);
});

test("what cannot be asked is told before anything is", () => {
  expect(() => open({ model: "" })).toThrow(/--model is missing/);
  expect(() => open({ timeout: 301 })).toThrow(/--timeout is 301; it must be at most 300/);
  expect(() => openTeacher("http://", options)).toThrow(/no address of a service/);
  for (const secret of ["http://me:secret@host/v1", "http://host/v1?key=secret"])
    expect(() => openTeacher(secret, options)).toThrow(/^--teacher is an address without a user or a \?query; [^=]+$/);
});
