/** Documents and token shards as training takes them. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, expect, test } from "vitest";
import { documentsOf } from "../../src/corpus/input/documents.js";
import { type Rejected, readDocuments } from "../../src/corpus/read.js";
import { Shards, writeShards } from "../../src/corpus/shards.js";
import { openCpu } from "../../src/device/cpu.js";
import { trainBpe } from "../../src/tokenizer/train.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-read-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const put = (name: string, data: string | Buffer): string => {
  writeFileSync(join(dir, name), data);
  return join(dir, name);
};
async function read(...paths: string[]): Promise<{ texts: string[]; rejected: Rejected[] }> {
  const rejected: Rejected[] = [];
  const texts: string[] = [];
  for await (const { text } of readDocuments(paths, rejected)) texts.push(text);
  return { texts, rejected };
}

test("JSONL, text and packed files; a folder stands for the files in it, in the order of their names", async () => {
  mkdirSync(join(dir, "in/deep"), { recursive: true });
  put("in/b.txt", "\uFEFFzwei\n");
  put("in/a.jsonl", '{"text":"one"}\r\n{"text":"two","id":7}\n');
  put("in/deep/c.jsonl.gz", gzipSync('{"text":"three"}'));
  put("in/z.bin", "not read");
  put("in/.hidden", "not read, and not told");
  expect(await read(join(dir, "in"))).toEqual({
    texts: ["one", "two", "zwei\n", "three"],
    rejected: [
      { file: join(dir, "in/z.bin"), line: 0, reason: expect.stringMatching(/format cannot be told by its name/) },
    ],
  });
  await expect(read(join(dir, "none"))).rejects.toThrow(/does not exist.*data.train/);
  await expect(read(join(dir, "in/z.bin"))).rejects.toThrow(/cannot tell its format/);
});

test("lines of <|endoftext|> stand between the documents of a text file, wherever its pieces end", async () => {
  const stories = Array.from({ length: 400 }, (_, i) => `Story ${i}.\nIt has ${"many words ".repeat(i)}and an end.\n`);
  const marked = (newline: string): string => stories.join("<|endoftext|>\n").replaceAll("\n", newline);
  for (const [name, text] of [
    ["plain.txt", marked("\n")],
    ["windows.txt", marked("\r\n")],
    ["first-and-last.txt", `<|endoftext|>\n${marked("\n")}<|endoftext|>`],
    ["packed.txt.gz", gzipSync(marked("\n"))],
  ] as const) {
    const { texts, rejected } = await read(put(name, text));
    expect(rejected).toEqual([]);
    expect(texts.map((t) => t.replaceAll("\r", ""))).toEqual(stories);
  }
  const found: number[] = [];
  for await (const { source } of readDocuments([join(dir, "plain.txt")], [])) found.push(source.line);
  expect(found.slice(0, 3)).toEqual([1, 4, 7]);
  // Within a line it is text; what cannot be read between two is set aside alone.
  expect((await read(put("inline.txt", "a <|endoftext|> b\n <|endoftext|>\n"))).texts).toHaveLength(1);
  const mixed = Buffer.concat([
    Buffer.from("one\n<|endoftext|>\n"),
    Buffer.of(0, 0, 1),
    Buffer.from("\n<|endoftext|>\ntwo\n"),
  ]);
  const { texts, rejected } = await read(put("mixed.txt", mixed));
  expect(texts).toEqual(["one\n", "two\n"]);
  expect(rejected).toEqual([
    { file: join(dir, "mixed.txt"), line: 3, offset: 18, reason: expect.stringMatching(/NULs/) },
  ]);
});

test("separators in any encoding, late in a file, behind a byte order mark; a long document behind one takes no longer", async () => {
  const stories = ["今天天气很好。", "他说：“你好！”我们都笑了。", "第三篇。"];
  const marked = stories.map((t) => `${t}\n`).join("<|endoftext|>\n");
  const gbk = new Map<string, number[]>();
  const decoder = new TextDecoder("gbk");
  for (let a = 0xb0; a < 0xf8; a++)
    for (let b = 0xa1; b < 0xff; b++) gbk.set(decoder.decode(Uint8Array.of(a, b)), [a, b]);
  for (let b = 0xa1; b < 0xff; b++) for (const a of [0xa1, 0xa3]) gbk.set(decoder.decode(Uint8Array.of(a, b)), [a, b]);
  const many = Array.from({ length: 40 }, (_, i) => stories[i % 3]);
  const inGbk = Buffer.from([...many.join("\n<|endoftext|>\n")].flatMap((c) => gbk.get(c) ?? [c.charCodeAt(0)]));
  const texts = async (name: string, data: string | Buffer): Promise<string[]> =>
    (await read(put(name, data))).texts.map((t) => t.trim());
  expect(await texts("gbk.txt", inGbk)).toEqual(many);
  expect(await texts("utf16.txt", Buffer.from(`\ufeff${marked}`, "utf16le"))).toEqual(stories);
  expect(await texts("bom.txt", `\ufeff<|endoftext|>\n${marked}`)).toEqual(stories);
  expect(await texts("single.txt", "one\n<|endoftext|>")).toEqual(["one"]);
  const book = "It was a long book. ".repeat(80_000);
  expect(await texts("books.txt", [book, "a", book].join("\n<|endoftext|>\n"))).toEqual([
    book.trim(),
    "a",
    book.trim(),
  ]);
  expect(await texts("bom-long.txt", `\ufeffa\n<|endoftext|>\n${book}`)).toEqual(["a", book.trim()]);
  // However the bytes come in: a separator may be cut anywhere.
  const short = Array.from({ length: 40_000 }, (_, i) => `${"x".repeat(i % 97)} story ${i}`.trim());
  expect(await texts("short.txt", `\ufeff${short.join("\n<|endoftext|>\r\n")}\n<|endoftext|>\n`)).toEqual(short);
  const start = performance.now();
  const [, long] = await texts("long.txt", `first\n<|endoftext|>\n${book.repeat(30)}\n`);
  expect(long.length).toBe(30 * book.length - 1);
  expect(performance.now() - start).toBeLessThan(5000);
});

test("a document without an id has one of its text: training holds the same ones out wherever the files lie", async () => {
  const ids = async (folder: string): Promise<string[]> => {
    mkdirSync(join(dir, folder), { recursive: true });
    put(`${folder}/a.jsonl`, '{"text":"one"}\n{"text":"two","id":7}\n{"text":"one "}');
    put(`${folder}/b.txt`, "zwei");
    const found: string[] = [];
    for await (const { id } of readDocuments([join(dir, folder)], [])) found.push(id);
    return found;
  };
  const here = await ids("here");
  expect(await ids("there/below")).toEqual(here);
  expect(here[1]).toBe("7");
  expect(here[2]).toBe(here[0]);
  expect(new Set(here).size).toBe(3);
});

test("what is no document is set aside with its line; text in another encoding is read", async () => {
  const bad = put(
    "bad.jsonl",
    Buffer.from('{"text":"ok"}\nnot json\n{"a":1}\n{"text":" "}\n{"text":"\xff"}\n', "latin1"),
  );
  const { texts, rejected } = await read(
    bad,
    put("empty.txt", ""),
    put("latin.txt", Buffer.from("d\xe9j\xe0 vu ".repeat(40), "latin1")),
  );
  expect(texts).toEqual(["ok", "déjà vu ".repeat(40)]);
  expect(rejected.map((r) => [r.line, r.reason.slice(0, 30)])).toEqual([
    [2, expect.stringContaining("not JSON")],
    [3, expect.stringContaining('no field "text"')],
    [4, "the text is empty"],
    [5, expect.stringContaining("UTF-8")],
    [1, "the file is empty"],
  ]);
});

test("a stray byte costs a text one character, and ISO-2022-JP is read, also between separators", async () => {
  const lines = "Все люди рождаются свободными и равными.\n".repeat(600);
  const stray = Buffer.concat([Buffer.from(lines), Buffer.of(0xff), Buffer.from(lines)]);
  const japanese = "\x1b$B$3$s$K$A$O\x1b(B.\n";
  const marked = `${japanese}<|endoftext|>\n`.repeat(60_000);
  for (const [name, data, expected] of [
    ["stray.txt", stray, [`${lines}\ufffd${lines}`]],
    ["jp.txt", japanese, ["こんにちは.\n"]],
    ["jp-long.txt", marked, Array(60_000).fill("こんにちは.\n")],
  ] as const)
    expect((await read(put(name, data))).texts, name).toEqual(expected);
  const texts: string[] = [];
  for await (const { text } of documentsOf([join(dir, "stray.txt"), join(dir, "jp.txt")], "", () => {}))
    texts.push(text);
  expect(texts).toEqual([`${lines}\ufffd${lines}`, "こんにちは.\n"]);
});

test("a program or an archive with the name of a text is set aside", async () => {
  const program = Buffer.from("\x7fELF\x02\x01\x01\0\0\0\0\xe9\xff", "latin1");
  const aside: Rejected[] = [];
  const { rejected } = await read(put("program.txt", program), put("zeros.md", "a\0b"));
  for await (const _ of documentsOf([put("other.txt", program)], "", (r) => aside.push(r))) throw new Error("read");
  expect([...rejected, ...aside].map((r) => r.reason)).toEqual(
    Array(3).fill("not text: it holds NULs, as programs and archives do"),
  );
  const utf16 = put("utf16.txt", Buffer.from("\ufeffzwei Sätze.", "utf16le"));
  expect((await read(utf16)).texts).toEqual(["zwei Sätze."]);
  const stray = `${"A text of words. ".repeat(40)}\0`;
  expect((await read(put("stray.txt", stray))).texts).toEqual([stray.replace("\0", "\ufffd")]);
});

test("a text with half of a surrogate pair is set aside; .json is read", async () => {
  const lone = '{"text":"hello \\ud800 world"}\n{"text":"\\ud83d\\ude00"}\n';
  const array = JSON.stringify([{ text: "one" }, { text: 2 }, { text: "three" }], null, 2);
  const { texts, rejected } = await read(put("lone.jsonl", lone), put("array.json", array));
  expect(texts).toEqual(["\u{1f600}", "one", "three"]);
  expect(rejected.map((r) => [r.line, r.reason])).toEqual([
    [1, "the text holds half of a surrogate pair"],
    [2, 'there is no field "text" with a string in it (its fields: text)'],
  ]);
});

test("a document of a row sees its own tokens only, begins with the token that closed the one before, and every token is a target", async () => {
  const tokenizer = trainBpe(["a b c"], { vocabSize: 257 });
  const eos = tokenizer.eosId as number;
  const folder = join(dir, "rows");
  const source = { file: "x", line: 1 };
  const documents = ["ab", "c", "", "defg"].map((text) => ({ id: text, text, source, dataset: "", metadata: {} }));
  await writeShards(documents, tokenizer, folder);
  const shards = new Shards(openCpu(), folder, tokenizer);
  const [a, b, c, d, e, f, g] = [..."abcdefg"].map((x) => tokenizer.encode(x)[0]);
  const row = (...rows: number[]) => {
    const { ids, targets, positions, cuSeqlens } = shards.batch(rows, 4);
    return [ids, targets, positions, cuSeqlens].map((x) => [...x]);
  };
  // a b # c | # # d e | f g #
  expect(row(0, 1)).toEqual([
    [a, b, eos, c, eos, eos, d, e],
    [b, eos, c, eos, eos, d, e, f],
    [0, 1, 0, 1, 0, 0, 1, 2],
    [0, 2, 4, 5, 8],
  ]);
  const all = shards.batch([0], 100);
  expect([...all.targets]).toEqual([b, eos, c, eos, eos, d, e, f, g, eos, -1]);
  expect([...all.cuSeqlens]).toEqual([0, 2, 4, 5, 11]);
  shards.close();
});

test("a text file that is longer than a document may be, and one whose end is damaged, are set aside", async () => {
  const aside: Rejected[] = [];
  const large = put("large.txt", "many words ".repeat(1000));
  for await (const _ of documentsOf([large], "", (r) => aside.push(r), 10_000)) throw new Error("read");
  const { texts, rejected } = await read(
    put("tail.txt.gz", Buffer.concat([gzipSync("begin"), gzipSync("end").fill(0, 5)])),
  );
  expect(texts).toEqual([]);
  expect([...aside, ...rejected].map((r) => r.reason)).toEqual([
    "oversized: 0.0 MB, and at most 0.0 MB are read; a text file is one document, or several with a line of <|endoftext|> between them",
    expect.stringMatching(/^it cannot be read: .*damaged/),
  ]);
});

test("ids, languages and depth of JSON records", async () => {
  const records = [
    '{"text":"a","id":9007199254740993,"language":"zh-CN"}',
    '{"text":"b","id":9007199254740992,"language":"eng"}',
    '{"text":"c","id":"","language":"English"}',
    '{"text":"d","id":{"$oid":"5f"},"language":"und"}',
    '{"text":"l","id":"l","language":"tl"}',
    '{"text":"s","id":"s","language":"SH_Latn"}',
    `{"text":"e","id":5,"more":${"[".repeat(400)}${"]".repeat(400)}}`,
    `{"text":"f","more":${"[".repeat(20_000)}${"]".repeat(20_000)}}`,
  ];
  const rejected: Rejected[] = [];
  const found: unknown[] = [];
  for await (const { id, unnamed, language, metadata } of documentsOf([put("ids.jsonl", records.join("\n"))], "", (r) =>
    rejected.push(r),
  ))
    found.push([unnamed ? "unnamed" : id, language, metadata.language]);
  expect(found).toEqual([
    ["9007199254740993", "zh", "zh-CN"],
    ["9007199254740992", "en", "eng"],
    ["unnamed", undefined, "English"],
    ['{"$oid":"5f"}', undefined, "und"],
    ["l", "tl", "tl"],
    ["s", "sh", "SH_Latn"],
    ["5", undefined, undefined],
  ]);
  expect(rejected.map((r) => [r.line, r.reason])).toEqual([[8, "the JSON is nested more than 500 levels deep"]]);
});

test("an id in tokens.bin that the vocabulary does not have is found before a kernel meets it", async () => {
  const tokenizer = trainBpe(["a b c a b c"], { vocabSize: 260 });
  const folder = join(dir, "shards");
  const documents = [{ id: "1", text: "a b c a b c", source: { file: "x", line: 1 }, dataset: "", metadata: {} }];
  const { tokens } = await writeShards(documents, tokenizer, folder);
  const ids = new Uint16Array(tokens).fill(5);
  ids[tokens - 2] = 9999;
  writeFileSync(`${folder}/tokens.bin`, ids);
  const shards = new Shards(openCpu(), folder, tokenizer);
  expect(() => shards.batch([0], tokens)).toThrow(
    /token \d+ is 9999, but the vocabulary has 25\d: the shards are damaged/,
  );
  shards.close();
});
