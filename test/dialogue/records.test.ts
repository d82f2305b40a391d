import { constants } from "node:buffer";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, expect, test } from "vitest";
import type { Rejected } from "../../src/corpus/read.js";
import { readConversations, toConversation } from "../../src/dialogue/records.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-records-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const write = (name: string, content: string | Buffer): string => {
  writeFileSync(join(dir, name), content);
  return join(dir, name);
};

test("the three formats, in one file or as one array", async () => {
  const records = [
    { instruction: "Translate", input: "hola", output: "hello", type: "rewrite" },
    { instruction: "Now?", output: "Now.", history: [["Then?", "Then."]], system: "S" },
    {
      conversations: [
        { from: "human", value: "a" },
        { from: "gpt", value: "b" },
      ],
    },
    {
      messages: [
        { role: "system", content: "s" },
        { role: "user", content: "a" },
        { role: "assistant", content: "b" },
      ],
    },
  ];
  const lines = write("a.jsonl", `\uFEFF${records.map((r) => JSON.stringify(r)).join("\r\n\r\n")}\n`);
  const array = write("a.json", JSON.stringify(records, null, 2));
  const rejected: Rejected[] = [];
  const fromLines = await readConversations([lines], rejected);
  expect(fromLines.map((c) => c.messages)).toEqual((await readConversations([array], rejected)).map((c) => c.messages));
  expect(fromLines.map((c) => c.source.line)).toEqual([1, 3, 5, 7]);
  expect(fromLines[0]).toMatchObject({
    type: "rewrite",
    messages: [
      { role: "user", content: "Translate", input: "hola" },
      { role: "assistant", content: "hello" },
    ],
  });
  expect(fromLines[1].messages.map((m) => m.role)).toEqual(["system", "user", "assistant", "user", "assistant"]);
  expect(rejected).toEqual([]);
});

test("TRL's prompt and completion, Dolly's names, a developer's message, a last question without an answer", () => {
  const [user, assistant] = (["user", "assistant"] as const).map((role) => (content: string) => ({ role, content }));
  const said = [user("Q"), assistant("A")];
  expect(toConversation({ prompt: "Q", completion: "A" })).toEqual({ messages: said });
  expect(toConversation({ prompt: [user("Q")], completion: [assistant("A")] })).toEqual({ messages: said });
  expect(toConversation({ prompt: [user("Q"), assistant("A"), user("Q")], completion: "A" })).toEqual({
    messages: [...said, ...said],
  });
  expect(toConversation({ instruction: "Q", context: "C", response: "A", category: "open_qa" })).toEqual({
    messages: [{ ...user("Q"), input: "C" }, assistant("A")],
  });
  expect(toConversation({ messages: [{ role: "developer", content: "S" }, ...said] })).toMatchObject({
    messages: [{ role: "system" }, ...said],
  });
  expect(toConversation({ messages: [...said, user("and?")] })).toEqual({ messages: said });
  expect(toConversation({ prompt: "Q", completion: "A", label: true })).toEqual({ messages: said });
  expect(toConversation({ prompt: "Q", completion: "A", label: false })).toBe(
    "its label says that the reply is a bad one",
  );
  expect(toConversation({ instruction: "Q", context: "unseen", output: "A" })).toEqual({ messages: said });
  expect(toConversation({ prompt: 5, completion: "A" })).toBe('"prompt" is neither a text nor a list of messages');
  expect(toConversation({ messages: [user("Q"), { ...assistant("A"), weight: 0 }] })).toMatch(/the weight 0/);
  expect(toConversation({ messages: [user("Q"), { ...assistant("A"), weight: 0 }, ...said] })).toEqual({
    messages: [user("Q"), { ...assistant("A"), weight: 0 }, ...said],
  });
  expect(toConversation({ messages: [user("Q"), { ...assistant("A"), weight: 1 }] })).toEqual({ messages: said });
});

test("a message may have an input, as an instruction has", () => {
  const asked = { role: "user", content: "Translate", input: "hola" };
  const reply = { role: "assistant", content: "hello", input: null };
  expect(toConversation({ messages: [asked, reply] })).toEqual({
    messages: [asked, { role: "assistant", content: "hello" }],
  });
});

test.each([
  [5, "not a JSON object"],
  [{ text: "x" }, "of no known format"],
  [{ instruction: "a" }, 'no "output"'],
  [{ instruction: "a", output: 3 }, '"output" is not text'],
  [{ instruction: "a", output: "  " }, "reply 1 is empty"],
  [{ messages: [] }, "no messages"],
  [{ messages: [{ role: "user", content: "a" }] }, "no reply to learn"],
  [{ messages: [{ role: "assistant", content: "a" }] }, "the user's turn"],
  [
    {
      messages: [
        { role: "user", content: "a" },
        { role: "user", content: "b" },
      ],
    },
    "the assistant's turn",
  ],
  [{ messages: [{ role: "wizard", content: "a" }] }, '"wizard"; known are'],
  [{ conversations: [{ from: "human" }] }, "conversations[0].value is not text"],
  [{ instruction: "a\ud800", output: "b" }, "message 1 holds half of a surrogate pair"],
  [{ instruction: "a", input: "\udc00", output: "b" }, "message 1 holds half of a surrogate pair"],
  [{ system: "\ud800", instruction: "a", output: "b" }, "message 1 holds half of a surrogate pair"],
  [{ messages: [{ role: "constructor", content: "a" }] }, '"constructor"; known are system, developer, user'],
  [{ messages: [null] }, "messages[0] is not a message"],
  [{ messages: "hello" }, '"messages" is not a list'],
  [
    { messages: [{ role: "user", content: [{ type: "image_url", image_url: "x" }] }] },
    "messages[0].content is not text",
  ],
  [{ messages: [{ role: "assistant", content: null, tool_calls: [] }] }, "calls a tool"],
  [{ instruction: "a", output: "b", type: ["chat"] }, '"type" is neither'],
  [{ instruction: "a", output: "b", system: 3 }, '"system" is not text'],
  [{ system: "a", messages: [{ role: "system", content: "b" }] }, 'a "system" and also a system message'],
  [{ instruction: null, output: "b" }, 'no "instruction"'],
  [{ instruction: " ", input: "", output: "b" }, "message 1 is empty"],
  [
    {
      messages: [
        { role: "user", content: "a" },
        { role: "system", content: "b" },
      ],
    },
    "message 2 is the system's where the assistant's turn is",
  ],
  [{ instruction: "a", output: "b", history: "x" }, '"history" is not a list'],
])("%j is set aside: %s", (record, reason) => {
  expect(toConversation(record)).toContain(reason);
});

test("broken lines are listed with their numbers; with nothing left it is an error", async () => {
  const good = JSON.stringify({ instruction: "a", output: "b" });
  const file = write(
    "b.jsonl",
    Buffer.concat([Buffer.from(`${good}\n{"a":\n`), Buffer.from([0x22, 0xff, 0x22, 10]), Buffer.from(good)]),
  );
  const rejected: Rejected[] = [];
  expect(await readConversations([file], rejected)).toHaveLength(2);
  expect(rejected.map((r) => [r.line, r.reason.slice(0, 9)])).toEqual([
    [2, "not JSON:"],
    [3, "there are"],
  ]);
  await expect(readConversations([write("c.jsonl", "{}\n")], [])).rejects.toThrow(/c.jsonl:1: its keys \(none\)/);
  await expect(readConversations([write("d.jsonl", "")], [])).rejects.toThrow(/no record can be used/);
  await expect(readConversations([write("e.csv", "instruction,output\na,b\n")], [])).rejects.toThrow(
    /e.csv: tables are not read. Write its rows as JSON/,
  );
  await expect(readConversations([join(dir, "none.jsonl")], [])).rejects.toThrow(/none.jsonl does not exist/);
});

test("what other collections write: nulls, text parts, a system beside the turns, input without an instruction", () => {
  const turns = (record: unknown) => toConversation(record) as { messages: object[]; type?: string };
  expect(turns({ instruction: "a", input: null, history: null, system: null, type: null, output: "b" })).toEqual({
    messages: [
      { role: "user", content: "a" },
      { role: "assistant", content: "b" },
    ],
  });
  expect(turns({ instruction: "", input: "x", output: "b" }).messages[0]).toEqual({
    role: "user",
    content: "",
    input: "x",
  });
  const asked = { from: "human", value: "a" };
  const said = { from: "gpt", value: "b" };
  expect(turns({ system: "S", conversations: [asked, said] }).messages[0]).toEqual({ role: "system", content: "S" });
  expect(turns({ conversations: [{ from: "system", value: " " }, asked, said] }).messages).toHaveLength(2);
  expect(turns({ conversation: [{ role: "user", content: [{ type: "text", text: "a" }] }, said] }).messages).toEqual([
    { role: "user", content: "a" },
    { role: "assistant", content: "b" },
  ]);
  expect(turns({ instruction: "a", output: "b", type: 3 }).type).toBe("3");
});

test("U+FFFD that somebody wrote is text; a surrogate pair in escapes is whole", async () => {
  const file = write("e.jsonl", '{"instruction":"what is \uFFFD?","output":"\\ud83d\\ude00"}\n');
  const rejected: Rejected[] = [];
  expect((await readConversations([file], rejected))[0].messages.map((m) => m.content)).toEqual([
    "what is \uFFFD?",
    "😀",
  ]);
  expect(rejected).toEqual([]);
});

test("lines across the chunks of a large file are whole", async () => {
  // Chinese text, so that chunk borders fall inside characters as well.
  const records = Array.from({ length: 300 }, (_, i) => ({ instruction: `${i}`, output: "天".repeat(6000 + i) }));
  const file = write("large.jsonl", records.map((r) => JSON.stringify(r)).join("\n"));
  const read = await readConversations([file], []);
  expect(read.map((c) => c.messages[1].content)).toEqual(records.map((r) => r.output));
  expect(read.at(-1)?.source.line).toBe(300);
});

test("arrays: broken ones name the line; a JSONL file whose first record is a list is still JSONL", async () => {
  const rejected: Rejected[] = [];
  const good = JSON.stringify({ instruction: "a", output: "b" });
  await expect(readConversations([write("f.json", `[\n${good},\n${good}\n${good}]`)], rejected)).rejects.toThrow(
    /f.json:4: not JSON/,
  );
  const jsonl = write("g.jsonl", `[1, 2]\n${good}\n`);
  expect((await readConversations([jsonl], rejected)).map((c) => c.source.line)).toEqual([2]);
  expect(rejected.at(-1)).toEqual({ file: jsonl, line: 1, reason: "the record is not a JSON object" });
  expect(await readConversations([write("h.json", `\uFEFF{\n"instruction": "a",\n"output": "b"}`)], [])).toHaveLength(
    1,
  );
  expect(await readConversations([write("i.json", `${good}\n${good}`)], [])).toHaveLength(2);
});

test("an array that is longer than a text can be is told as such", async () => {
  const file = write("long.json", '[\n{"instruction": "a",');
  truncateSync(file, constants.MAX_STRING_LENGTH + 1); // a hole: it takes no room
  await expect(readConversations([file], [])).rejects.toThrow(
    /long.json is one JSON array of more than 511 MiB.*jq -c/,
  );
});

test("what is no file of records is an error that says so", async () => {
  const empty = join(dir, "empty");
  mkdirSync(empty);
  await expect(readConversations([empty], [])).rejects.toThrow(/no file of conversations in this folder/);
  await expect(readConversations([write("z.json", gzipSync("{}"))], [])).rejects.toThrow(/z.json is compressed/);
  // The reason that is told is of this call, not of a file read before.
  const rejected: Rejected[] = [{ file: "other", line: 9, reason: "old" }];
  await expect(readConversations([write("y.jsonl", "5\n")], rejected)).rejects.toThrow(
    /y.jsonl:1: the record is not a JSON object/,
  );
});

test("the atlas's own records are all usable", async () => {
  const rejected: Rejected[] = [];
  const files = ["sft.jsonl", "sft-dialogue.jsonl"].map((f) => `recipes/atlas/${f}`);
  expect((await readConversations(files, rejected)).length).toBeGreaterThan(4000);
  expect(rejected).toEqual([]);
});

test("files that the Hub's cache or git-annex keeps under names of no format, or hidden, are read by the links to them", async () => {
  const line = JSON.stringify({ instruction: "Say hello.", output: "Hello!" });
  for (const [kept, link] of [
    ["blobs/0a1b", "snapshots/rev/train.jsonl"],
    [".git/annex/MD5-s1--abc.jsonl", "train.jsonl"],
  ]) {
    const folder = mkdtempSync(join(dir, "cache-"));
    for (const path of [kept, link]) mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, kept), line);
    symlinkSync(join(folder, kept), join(folder, link));
    const rejected: Rejected[] = [];
    const found = await readConversations([folder], rejected);
    expect(found.map(({ source }) => source.file)).toEqual([join(folder, link)]);
    expect(rejected).toEqual([]);
  }
});

test("JSONL that is packed as .json.gz is read; a link that leads back gives no record twice", async () => {
  const folder = join(dir, "linked");
  mkdirSync(folder);
  const line = JSON.stringify({ instruction: "Say hello.", output: "Hello!" });
  writeFileSync(join(folder, "part-0.json.gz"), gzipSync(`${line}\n${line}\n`));
  symlinkSync(".", join(folder, "again"));
  const rejected: Rejected[] = [];
  expect(await readConversations([folder], rejected)).toHaveLength(2);
  expect(rejected).toEqual([]);
});

test("packed JSONL, Parquet and folders of files, as the Hub has them; what cannot be read is set aside with its line", async () => {
  const folder = join(dir, "hub");
  mkdirSync(`${folder}/data`, { recursive: true });
  const said = (i: number) => ({
    messages: [
      { role: "user", content: `Q${i}` },
      { role: "assistant", content: `A${i}` },
    ],
  });
  const lines = (from: number, to: number): string =>
    Array.from({ length: to - from }, (_, i) => `${JSON.stringify(said(from + i))}\n`).join("");
  const put = (name: string, content: string | Uint8Array): void => writeFileSync(join(folder, name), content);
  put("data/a.jsonl.gz", gzipSync(`\uFEFF${lines(0, 2)}{\n\n${lines(2, 3)}`));
  put(
    "data/b.jsonl.zst",
    Buffer.from(
      "KLUv/QRo7QEAwoMMEaDtBayY2vlSIwtHjHf6WwEDYJ5pQdah/fpRmBbFw+t03UsOhvroYWUPWprhq0K/NssCAEedQ1GoMh3l28I=",
      "base64",
    ),
  );
  put("data/c.json", JSON.stringify([said(4)]));
  put("README.md", "notes");
  put(".hidden.jsonl", "no");
  const { DuckDBInstance } = await import("@duckdb/node-api");
  const instance = await DuckDBInstance.create(":memory:");
  const connection = await instance.connect();
  put("rows.jsonl", lines(5, 8) + JSON.stringify({ instruction: "Q8", output: "A8", type: "é", note: null }));
  await connection.run(
    `COPY (SELECT * FROM read_json('${folder}/rows.jsonl', format = 'newline_delimited')) TO '${folder}/data/d.parquet' (FORMAT parquet)`,
  );
  connection.closeSync();
  instance.closeSync();
  rmSync(`${folder}/rows.jsonl`);
  put("data/e.parquet", "PAR1 no more");
  put("data/f.jsonl.gz", gzipSync(lines(9, 10)).subarray(0, 60));
  const rejected: Rejected[] = [];
  const found = await readConversations([folder], rejected);
  expect(found.map((c) => c.messages.at(-1)?.content)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8].map((i) => `A${i}`));
  expect(found.map((c) => c.source.line)).toEqual([1, 2, 5, 1, 1, 1, 2, 3, 4]);
  expect(found.at(-1)).toMatchObject({ type: "é", source: { file: join(folder, "data/d.parquet") } });
  expect(rejected.map((r) => [r.file.slice(-10), r.line])).toEqual([
    ["/README.md", 1],
    ["a.jsonl.gz", 3],
    ["/e.parquet", 1],
    ["f.jsonl.gz", 1],
  ]);
  expect(rejected.map((r) => r.reason).join()).toMatch(
    /format cannot be told.*,not JSON: .*,not a readable Parquet file.*,cut off: .*truncated/,
  );
});
