/** Preferences as people write them: two forms, texts or messages, and what is set aside with its reason. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import type { Rejected } from "../../src/corpus/read.js";
import { promptOf, readPreferences, replyBatch, toPreference } from "../../src/dialogue/preference.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-preference-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });

test("pairs and rankings, as texts and as messages, come to the same", () => {
  const pair = { prompt: [user("q")], replies: ["good", "bad"] };
  expect(toPreference({ prompt: "q", chosen: "good", rejected: "bad" })).toEqual(pair);
  expect(toPreference({ prompt: [user("q")], chosen: [assistant("good")], rejected: [assistant("bad")] })).toEqual(
    pair,
  );
  const whole = (reply: string) => [user("q"), assistant(reply)];
  expect(toPreference({ chosen: whole("good"), rejected: whole("bad") })).toEqual(pair);
  expect(toPreference({ prompt: "q", completions: ["c", "a", "b"], ranking: [1, 2, 0] })).toEqual({
    prompt: [user("q")],
    replies: ["a", "b", "c"],
  });
});

test("lists of chosen and rejected begin with the prompt, as UltraFeedback's, or go on from it; none of their turns is lost", () => {
  const prompt = [user("hi"), assistant("a1"), user("u2")];
  const turns = { prompt, replies: ["good", "bad"] };
  const lists = (...before: object[]) => ({
    chosen: [...before, assistant("good")],
    rejected: [...before, assistant("bad")],
  });
  expect(toPreference({ prompt: "q", ...lists(user("q")) })).toEqual({ ...turns, prompt: [user("q")] });
  expect(toPreference({ prompt: "hi", ...lists(...prompt) })).toEqual(turns);
  expect(toPreference({ prompt: [user("hi")], ...lists(...prompt) })).toEqual(turns);
  expect(toPreference({ prompt: [user("hi")], ...lists(...prompt.slice(1)) })).toEqual(turns);
  expect(toPreference({ prompt: "hi", ...lists(...prompt.slice(1)) })).toEqual(turns);
  const system = { role: "system", content: "s" };
  expect(toPreference({ prompt: "hi", ...lists(system, ...prompt) })).toEqual({
    ...turns,
    prompt: [system, ...prompt],
  });
  expect(toPreference({ prompt: "other", ...lists(user("q")) })).toMatch(/message 2 is the user's/);
});

test("Anthropic's HH: the whole conversation in each text", () => {
  const of = (...turns: string[]): string => turns.map((t) => `\n\n${t}`).join("");
  const begun = ["Human: hi", "Assistant: a1", "Human: u2\n\nin two parts"];
  const pair = { chosen: of(...begun, "Assistant: good"), rejected: of(...begun, "Assistant: bad") };
  const prompt = [user("hi"), assistant("a1"), user("u2\n\nin two parts")];
  expect(toPreference(pair)).toEqual({ prompt, replies: ["good", "bad"] });
  expect(toPreference({ ...pair, rejected: of("Human: other", "Assistant: bad") })).toMatch(/different conversations/);
  expect(toPreference({ ...pair, rejected: of(...begun, "Assistant:") })).toMatch(/empty/);
  // The prompt apart, as in full-hh-rlhf and rm-static, with bare replies or with whole conversations.
  const apart = of(...begun, "Assistant:");
  expect(toPreference({ prompt: apart, chosen: " good", rejected: " bad" })).toEqual({
    prompt,
    replies: ["good", "bad"],
  });
  expect(toPreference({ prompt: apart, ...pair })).toEqual({ prompt, replies: ["good", "bad"] });
  expect(toPreference({ prompt: "u2\n\nin two parts", ...pair })).toEqual({ prompt, replies: ["good", "bad"] });
  expect(toPreference({ prompt: "q", ...pair })).toMatch(/prompt: message 2 is the user's/); // it asks another question
  expect(promptOf({ prompt: apart })).toEqual(prompt);
});

test("a system message beside the prompt, and a prompt of another name", () => {
  const pair = { chosen: "a", rejected: "b" };
  const told = [{ role: "system", content: "Be brief." }, user("q")];
  const system = "Be brief.";
  for (const asked of [{ prompt: "q" }, { prompt: [user("q")] }, { question: "q" }, { instruction: "q" }])
    expect(toPreference({ system, ...asked, ...pair })).toEqual({ prompt: told, replies: ["a", "b"] });
  expect(toPreference({ system, chosen: [...told, assistant("a")], rejected: [...told, assistant("b")] })).toEqual({
    prompt: told,
    replies: ["a", "b"],
  });
  expect(toPreference({ system: " Be kind.", prompt: told, ...pair })).toMatch(/also a system message/);
  expect(toPreference({ system: 5, prompt: "q", ...pair })).toMatch(/"system" is not text/);
  expect(promptOf({ instruction: "Add.", input: "1 2" })).toEqual([{ ...user("Add."), input: "1 2" }]);
  expect(toPreference({ question: 5, ...pair })).toMatch(/"question" is neither/);
});

test("single replies with a label, for KTO", () => {
  const of = (record: object) => toPreference(record, true);
  expect(of({ prompt: "q", completion: "a", label: true })).toEqual({
    prompt: [user("q")],
    replies: ["a"],
    good: true,
  });
  expect(of({ prompt: [user("q")], completion: [assistant("a")], label: 0 })).toEqual({
    prompt: [user("q")],
    replies: ["a"],
    good: false,
  });
  expect(of({ prompt: "q", completion: "a", label: "good" })).toBe('its label is "good"; it must be true or false');
  expect(of({ prompt: "q", completion: 5, label: true })).toMatch(/^completion: it is neither a text nor a list/);
  expect(of({ completion: "a", label: true })).toBe('there is no "prompt"');
  expect(of({ prompt: "q", chosen: "a", rejected: "b" })).toMatchObject({ replies: ["a", "b"] });
  expect(toPreference({ prompt: "q", completion: "a", label: true })).toMatch(/only DPO's loss: kto/);
});

test("a message's input stays beside its content", () => {
  const asked = { role: "user", content: "What does it do?", input: " the cat" };
  expect(toPreference({ prompt: [asked], chosen: "a", rejected: "b" })).toMatchObject({ prompt: [asked] });
  // What other programs keep under that name is theirs.
  const other = { prompt: [{ ...asked, input: { x: 1 } }], chosen: "a", rejected: "b" };
  expect(toPreference(other)).toMatchObject({ prompt: [{ role: "user", content: "What does it do?" }] });
});

test("a prompt and lists that tell it in other words", () => {
  const [S, U, A, B] = ["system", "user", "assistant", "assistant"].map((role, i) => ({ role, content: "SUAB"[i] }));
  const lists = (...before: object[]) => ({ chosen: [...before, A], rejected: [...before, B] });
  expect(toPreference({ prompt: [S, U], ...lists(U) })).toMatchObject({ prompt: [S, U] });
  expect(toPreference({ prompt: "U ", ...lists(U) })).toMatchObject({ prompt: [U] });
  expect(toPreference({ prompt: [U], ...lists(U, A, U) })).toMatchObject({ prompt: [U, A, U] });
  expect(toPreference({ prompt: [U, A, U], ...lists(U) })).toMatchObject({ prompt: [U, A, U] });
  expect(toPreference({ prompt: [{ ...S, content: "other" }, U], ...lists(S, U) })).toMatchObject({ prompt: [S, U] });
  expect(toPreference({ prompt: [{ ...U, content: "another question" }], ...lists(U) })).toMatch(
    /message 2 is the user's/,
  );
});

test.each([
  [[], /not a JSON object/],
  [null, /not a JSON object/],
  [{}, /its keys \(none\) are of no known format/],
  [{ text: "x" }, /its keys \(text\) are of no known format/],
  [{ prompt: "q", chosen: "a" }, /rejected: there is none; a pair has both/],
  [{ prompt: "q", rejected: "a" }, /chosen: there is none/],
  [{ prompt: "q", chosen: 1, rejected: "b" }, /chosen: it is neither a text nor a list of messages/],
  [{ prompt: "q", chosen: "a", rejected: null }, /rejected: it is neither/],
  [{ prompt: "q", chosen: "a", rejected: "a" }, /replies 1 and 2 are equal: nothing is preferred/],
  [{ prompt: "q", chosen: " ", rejected: "a" }, /reply 1 is empty/],
  [{ prompt: "q", chosen: "a\ud800", rejected: "b" }, /half of a surrogate pair/],
  [{ chosen: "a", rejected: "b" }, /there is no "prompt"/],
  [{ prompt: 5, chosen: "a", rejected: "b" }, /"prompt" is neither a text nor a list/],
  [{ prompt: [assistant("x")], chosen: "a", rejected: "b" }, /prompt/],
  [{ prompt: "q", chosen: [user("x")], rejected: "b" }, /chosen: its last message is not the assistant's/],
  [
    { chosen: [user("p"), assistant("a")], rejected: [user("q"), assistant("b")] },
    /chosen and rejected answer different conversations/,
  ],
  [{ prompt: "q", completions: ["a"], ranking: [0] }, /"completions" must be two or more texts/],
  [{ prompt: "q", completions: ["a", 2], ranking: [0, 1] }, /"completions" must be two or more texts/],
  [{ prompt: "q", completions: ["a", "b"] }, /"ranking" must hold each number from 0 to 1 once/],
  [{ prompt: "q", completions: ["a", "b"], ranking: [0, 2] }, /"ranking" must hold each number/],
  [{ prompt: "q", completions: ["a", "b", "a"], ranking: [0, 1, 2] }, /replies 1 and 3 are equal/],
])("%j is set aside", (record, reason) => {
  expect(toPreference(record)).toMatch(reason);
});

test("a file: what is usable is read, the rest is listed by line; nothing usable is an error with the first reason", async () => {
  const file = join(root, "prefs.jsonl");
  writeFileSync(
    file,
    '{"prompt":"q","chosen":"a","rejected":"a"}\nno json\n{"prompt":"q","chosen":"a","rejected":"b"}\n',
  );
  const rejected: Rejected[] = [];
  expect((await readPreferences([file], rejected)).map((p) => p.source.line)).toEqual([3]);
  expect(rejected.map((r) => r.line)).toEqual([1, 2]);
  // As tables are written: a null in each column that a record has not.
  const said = (content: string): string =>
    `[{"role":"user","content":"q"},{"role":"assistant","content":"${content}","from":null}]`;
  writeFileSync(
    file,
    `{"prompt":null,"chosen":${said("a")},"rejected":${said("b")},"completions":null,"label":null}\n`,
  );
  expect(await readPreferences([file], [])).toMatchObject([{ prompt: [{ content: "q" }], replies: ["a", "b"] }]);
  writeFileSync(file, '{"prompt":"q"}\n');
  await expect(readPreferences([file], [])).rejects.toThrow(
    /prefs.jsonl: no preference can be used. .*prefs.jsonl:1: its keys/,
  );
  // What was set aside in another file before is not the reason.
  await expect(readPreferences([file], [{ file: "other.jsonl", line: 9, reason: "x" }])).rejects.toThrow(
    /no preference can be used\. .*prefs.jsonl:1: its keys/,
  );
  await expect(readPreferences([join(root, "none.jsonl")], [])).rejects.toThrow(/none.jsonl does not exist/);
});

test("replies end to end: only their own tokens are targets, and a row's target is the token after it", () => {
  const replies = [
    { ids: Int32Array.of(1, 2, 3, 4), start: 2 },
    { ids: Int32Array.of(5, 6, 7), start: 1 },
  ];
  const { targets, spans, cuSeqlens, positions } = replyBatch(replies);
  expect([...targets]).toEqual([-1, 3, 4, -1, 6, 7, -1]);
  expect(spans).toEqual([
    { from: 1, to: 3 },
    { from: 4, to: 6 },
  ]);
  expect([...cuSeqlens]).toEqual([0, 4, 7]);
  expect([...positions]).toEqual([0, 1, 2, 3, 0, 1, 2]);
});
