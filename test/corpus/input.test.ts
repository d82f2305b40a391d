import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliCompressSync, deflateRawSync, deflateSync, gzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { WARCRecord, WARCSerializer } from "warcio";
import { crc32OfTable, readPieces } from "../../src/corpus/input/bytes.js";
import { parseHttp } from "../../src/corpus/input/http.js";
import type { Position, RawRecord } from "../../src/corpus/input/record.js";
import { formatOf, listFiles, readSource } from "../../src/corpus/input/source.js";
import { labelsOf } from "../../src/corpus/plan.js";
import { documentsIn } from "../../src/corpus/unit.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-input-"));
afterAll(() => rmSync(dir, { recursive: true }));
const put = (name: string, data: string | Uint8Array): string => {
  writeFileSync(join(dir, name), data);
  return join(dir, name);
};
const limits = { maxRecordBytes: 1 << 20 };
interface Got {
  record: RawRecord;
  next: Position;
}
async function read(file: string, from: Position = { file: 0, records: 0 }): Promise<Got[]> {
  const all: Got[] = [];
  for await (const got of readSource([file], from, limits)) all.push(got);
  return all;
}
/** Short, so that a difference can be read. */
const brief = ({ record: r }: Got): unknown[] => [r.line, r.offset, r.reason, r.bytes.length, text(r).slice(-20)];
const text = (r: RawRecord): string => Buffer.from(r.bytes).toString();
const told = (all: Got[]): string[] => all.map(({ record: r }) => r.reason ?? (r.skip ? "(skipped)" : text(r)));

async function warc(pages: string[], gzip: boolean, type = "response"): Promise<Buffer[]> {
  const members: Buffer[] = [];
  for (const [i, page] of pages.entries()) {
    async function* content() {
      yield new TextEncoder().encode(page);
    }
    const record = WARCRecord.create(
      {
        url: `https://example.org/${i}`,
        date: "2020-01-01T00:00:00Z",
        type: type as "response",
        httpHeaders: type === "response" ? { "Content-Type": "text/html" } : undefined,
        statusline: "HTTP/1.1 200 OK",
        warcVersion: "WARC/1.1",
      },
      content(),
    );
    members.push(Buffer.from(await WARCSerializer.serialize(record, { gzip })));
  }
  return members;
}

/** Reading on from every position gives what reading at once gave. */
async function checkResume(file: string): Promise<void> {
  const all = await read(file);
  for (let i = 0; i < all.length; i++) {
    const rest = await read(file, all[i].next);
    expect(rest.map(brief)).toEqual(all.slice(i + 1).map(brief));
  }
}

describe("WARC", () => {
  const pages = ["<p>one</p>", "<p>two</p>".repeat(1000), "<p>three</p>"];
  it.each([true, false])("reads what warcio wrote (gzip: %s), with offsets from which it can go on", async (gzip) => {
    const members = await warc(pages, gzip);
    const file = put(gzip ? "a.warc.gz" : "a.warc", Buffer.concat(members));
    const all = await read(file);
    expect(all.map(({ record }) => text(record).split("\r\n\r\n")[1])).toEqual(pages);
    expect(all[1].record).toMatchObject({
      line: 2,
      offset: members[0].length,
      url: "https://example.org/1",
      kind: "html",
    });
    expect(parseHttp(all[2].record.bytes, 1e6)).toMatchObject({ status: 200, contentType: "text/html" });
    expect(all[0].next.seek).toBe(members[0].length);
    await checkResume(file);
  });
  it("reads a .warc.gz that is one gzip stream, and WET", async () => {
    const file = put("b.warc.gz", gzipSync(Buffer.concat(await warc(pages, false))));
    expect((await read(file)).length).toBe(3);
    await checkResume(file);
    const wet = put("c.wet.gz", Buffer.concat(await warc(["plain text"], true, "conversion")));
    expect((await read(wet))[0].record).toMatchObject({ kind: "text", url: "https://example.org/0" });
  });
  it("lists a truncated gzip with its offset, and keeps what came before", async () => {
    const members = await warc(pages, true);
    const file = put("d.warc.gz", Buffer.concat(members));
    truncateSync(file, members[0].length + members[1].length + 40);
    const all = await read(file);
    expect(all.length).toBe(3);
    expect(all[2].record).toMatchObject({ offset: members[0].length + members[1].length });
    expect(all[2].record.reason).toMatch(/truncated/);
  });
  it("lists a wrong length and a record that is cut off, and goes on", async () => {
    const plain = (await warc(pages, false)).map((b) => b.toString());
    const longer = plain[1].replace(/Content-Length: (\d+)/, (_, n) => `Content-Length: ${Number(n) + 7}`);
    expect(longer).not.toBe(plain[1]);
    const file = put("e.warc", plain[0] + longer + plain[2]);
    const all = await read(file);
    expect(all.map((g) => g.record.reason?.slice(0, 34))).toEqual([
      undefined,
      "the length of the WARC record is w",
      undefined,
    ]);
    expect(told(all)[2]).toContain("<p>three</p>");
    await checkResume(file);
    const shorter = plain[1].replace(/Content-Length: (\d+)/, (_, n) => `Content-Length: ${Number(n) - 7}`);
    expect(told(await read(put("f.warc", plain[0] + shorter + plain[2])))[1]).toMatch(
      /length of the WARC record is wrong/,
    );
    // A number far beyond the file costs its own record, and none behind it.
    const huge = plain[1].replace(/Content-Length: \d+/, "Content-Length: 99999999");
    const far = await read(put("far.warc", plain[0] + huge + plain[2]));
    expect(told(far)[1]).toMatch(/a record begins after \d+ of its 99999999 bytes/);
    expect(told(far)[2]).toContain("<p>three</p>");
    const bare = plain[1].replace(/\r\n\r\n/, "\n\n").replace(/\r\n(?=[\w-]+: .*\n)/g, "\n");
    expect(told(await read(put("bare.warc", plain[0] + bare + plain[2])))[1]).toContain("<p>two</p>");
    const cut = put("g.warc", (plain[0] + plain[1]).slice(0, -200));
    expect(told(await read(cut))[1]).toMatch(/^truncated: \d+ of \d+ bytes/);
  });
  it("passes over an oversized record without holding it, and a bomb stays bounded", async () => {
    const bomb = Buffer.concat(await warc(["x".repeat(40e6), "<p>after</p>"], true));
    expect(bomb.length).toBeLessThan(200_000);
    const before = process.memoryUsage().rss;
    const all = await read(put("h.warc.gz", bomb));
    expect(told(all)[0]).toMatch(/^oversized: 40\.0 MB, and at most 1\.0 MB/);
    expect(told(all)[1]).toContain("<p>after</p>");
    expect(process.memoryUsage().rss - before).toBeLessThan(200e6);
  });
});

describe("damaged gzip", () => {
  const row = (i: number): string => JSON.stringify({ id: `d${i}`, text: `number ${i}, ${(i * 7919) % 10007}` });
  const rows = (from: number, to: number): string =>
    Array.from({ length: to - from }, (_, i) => `${row(from + i)}\n`).join("");
  /** A byte of the stored text is another one: only the checksum tells. */
  const flipped = (text: string): Buffer => {
    const stored = gzipSync(text, { level: 0 });
    stored[stored.indexOf("number")] ^= 1;
    return stored;
  };
  it("of a file that ends inside its only member all lines before count", async () => {
    const packed = gzipSync(rows(0, 1000));
    const file = put("cut.jsonl.gz", packed.subarray(0, packed.length - 20));
    const all = await read(file);
    const whole = all.filter(({ record }) => record.reason === undefined);
    expect(whole.length).toBeGreaterThan(990);
    expect(whole.map(({ record }) => text(record))).toEqual(whole.map((_, i) => row(i)));
    expect(told(all).slice(whole.length)).toEqual(["cut off: the gzip file is truncated: it ends inside a member"]);
    const short = put("checksum.jsonl.gz", packed.subarray(0, packed.length - 3));
    expect(told(await read(short)).slice(999)).toEqual([
      row(999),
      "the gzip file is truncated: it ends inside a member's checksum",
    ]);
  });
  it("goes on at the next whole member, and gives nothing out that the checksum speaks against", async () => {
    const second = gzipSync(rows(2, 4));
    for (const [name, bad, reason] of [
      ["flip", flipped(rows(2, 4)), /^a gzip member is damaged: its checksum is wrong; reading goes on at byte \d+$/],
      ["short", second.subarray(0, second.length - 30), /^a gzip member is damaged: .*; reading goes on at byte \d+$/],
      ["junk", Buffer.from("\x1f\x8b\x08 no member, and again \x1f\x8b"), /reading goes on at byte \d+$/],
    ] as const) {
      const [first, third] = [gzipSync(rows(0, 2)), gzipSync(rows(4, 6))];
      const file = put(`${name}.jsonl.gz`, Buffer.concat([first, bad, third]));
      const all = await read(file);
      expect(told(all)).toEqual([row(0), row(1), expect.stringMatching(reason), row(4), row(5)]);
      expect(all[2].record.reason).toContain(`byte ${first.length + bad.length}`);
      expect(all.map(({ record }) => record.line)).toEqual([1, 2, 3, 4, 5]);
      await checkResume(file);
    }
    // Nothing follows that is whole.
    expect(told(await read(put("last.jsonl.gz", Buffer.concat([gzipSync(rows(0, 1)), flipped(rows(1, 2))]))))).toEqual([
      row(0),
      "a gzip member is damaged: its checksum is wrong",
    ]);
  });
  it("of a WARC costs the records of that member", async () => {
    const members = await warc(["<p>1</p>", "<p>2</p>", "<p>3</p>", "<p>4</p>"], true);
    members[1] = members[1].subarray(0, members[1].length - 30);
    const file = put("member.warc.gz", Buffer.concat(members));
    const all = await read(file);
    expect(told(all)).toEqual([
      expect.stringContaining("<p>1</p>"),
      expect.stringMatching(/^a gzip member is damaged/),
      expect.stringContaining("<p>3</p>"),
      expect.stringContaining("<p>4</p>"),
    ]);
    expect(all[1].record.offset).toBe(members[0].length);
    expect(all[2].record).toMatchObject({ line: 3, offset: members[0].length + members[1].length });
    await checkResume(file);
  });
  it("behind a member that is unpacked as a stream is told as well, and so is its own", async () => {
    const big = `{"text":"${"long ".repeat(100_000)}"}\n`.repeat(36); // 18 MB
    for (const [name, bad] of [
      ["large", gzipSync(rows(0, 100)).subarray(0, 200)],
      ["largeflip", flipped(rows(0, 100))],
    ] as const) {
      const all = await read(put(`${name}.jsonl.gz`, Buffer.concat([gzipSync(big), bad, gzipSync(rows(7, 8))])));
      expect(all.length).toBe(38);
      expect(told(all).slice(36)).toEqual([expect.stringMatching(/^a gzip member is damaged/), row(7)]);
    }
    const packed = gzipSync(big);
    packed[packed.length - 8] ^= 1;
    const own = told(await read(put("largeown.jsonl.gz", Buffer.concat([packed, gzipSync(rows(7, 8))]))));
    expect(own.slice(36)).toEqual([expect.stringMatching(/checksum is wrong; reading goes on/), row(7)]);
  });
  it("behind any number of damaged members the whole ones count", async () => {
    const damaged = (i: number): Buffer => {
      const member = gzipSync(row(i));
      member[member.length - 6] ^= 1;
      return member;
    };
    const members = Array.from({ length: 700 }, (_, i) => damaged(i));
    const all = await read(put("many.jsonl.gz", Buffer.concat([...members, gzipSync(rows(7, 8))])));
    expect(told(all)).toEqual([expect.stringMatching(/checksum is wrong; reading goes on at byte \d+$/), row(7)]);
  });
  it("goes on behind the damaged member, not at one inside it", async () => {
    const packed = gzipSync(Buffer.concat([Buffer.from("a record, packed: "), gzipSync(rows(0, 1000))]), { level: 0 });
    packed[packed.length - 6] ^= 1;
    const all = await read(put("inside.jsonl.gz", Buffer.concat([packed, gzipSync(rows(7, 8))])));
    expect(told(all)).toEqual([expect.stringContaining(`reading goes on at byte ${packed.length}`), row(7)]);
  });
  it("gives nothing out twice, and ends the search where headers were put for it to meet", async () => {
    const head = Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    const bomb = deflateRawSync(Buffer.alloc(17 << 20));
    // Every header begins a member that holds the others, in stored blocks, and the bomb.
    const nested = Array(400).fill(Buffer.concat([Buffer.from([0, 10, 0, 0xf5, 0xff]), head]));
    const file = put(
      "nested.txt.gz",
      Buffer.concat([head, ...nested, bomb, Buffer.from("no checksum, and no member")]),
    );
    let size = 0;
    const damages: string[] = [];
    for await (const { data, damage } of readPieces(file)) {
      size += data.length;
      if (damage !== undefined) damages.push(damage);
    }
    expect(size).toBeLessThan(18 << 20);
    expect(damages).toEqual([expect.stringMatching(/length is wrong; reading ends at byte \d+: too much looks like/)]);
  });
  it("the checksum is the same without Node's help", () => {
    for (const s of ["", "a", "123456789", rows(0, 20)])
      expect(crc32OfTable(Buffer.from(s))).toBe(gzipSync(s).readUInt32LE(gzipSync(s).length - 8));
    expect(crc32OfTable(Buffer.from("6789"), crc32OfTable(Buffer.from("12345")))).toBe(0xcbf43926);
  });
});

describe("JSONL", () => {
  const lines = ['{"text":"a"}', "", "not json", `{"text":"${"long ".repeat(300_000)}"}`, '{"text":"ü"}'];
  it.each(["plain", "gz", "zst"])(
    "gives lines with offsets and passes over one that is too long (%s)",
    async (kind) => {
      const data = Buffer.from(lines.join("\n"));
      let file = put("a.jsonl", data);
      if (kind === "gz") file = put("a.jsonl.gz", gzipSync(data));
      if (kind === "zst") {
        execFileSync("zstd", ["-qf", file, "-o", `${file}.zst`]);
        file += ".zst";
      }
      const all = await read(file);
      expect(all.map((g) => g.record.line)).toEqual([1, 2, 3, 4, 5]);
      expect(told(all)[3]).toMatch(/^oversized: 1\.5 MB/);
      expect(told(all)[4]).toBe('{"text":"ü"}');
      expect(all[4].record.offset).toBe(data.lastIndexOf("\n") + 1);
      await checkResume(file);
    },
  );
  it("lists the place where a damaged file ends", async () => {
    const packed = gzipSync(Buffer.from(lines[0].concat("\n").repeat(50_000)));
    const file = put("t.jsonl.gz", packed.subarray(0, packed.length - 100));
    const all = await read(file);
    expect(all[all.length - 1].record.reason).toMatch(/truncated/);
    expect(told(await read(put("u.jsonl.gz", "no gzip at all")))).toEqual(["not gzip data"]);
    expect(told(await read(put("u.jsonl.zst", "no zstd at all")))[0]).toBe(
      "zstd data at byte 0: no frame begins there; reading ends there",
    );
    expect(told(await read(put("v.jsonl", "")))).toEqual(["the file is empty"]);
  });
  it("lists what is wrong with a zstd file, as the zstd command does", async () => {
    const zstd = (data: string): Buffer =>
      execFileSync("zstd", ["-qc", "--check", put("z.jsonl", data)], { maxBuffer: 1 << 28 });
    const packed = zstd(lines[0]);
    const changed = (at: number): Buffer => packed.map((b, i) => (i === at ? b ^ 1 : b)) as Buffer;
    const reasons = async (data: Uint8Array): Promise<string[]> => told(await read(put("z.jsonl.zst", data)));
    const damaged = (byte: number, why: string): string => `zstd data at byte ${byte}: ${why}; reading ends there`;
    const nonsense = "the frame is damaged (error 20 of the zstd library)";
    const checksum = "the frame is damaged: its checksum is wrong";
    expect(await reasons(packed)).toEqual([lines[0]]);
    expect(await reasons(changed(packed.length - 1))).toEqual([damaged(0, checksum)]);
    expect(await reasons(changed(5))).toEqual([damaged(0, nonsense)]); // the size of its content
    // Frames one after another, of which one that can be skipped and one with nothing in it; and bytes that are no frame.
    const frames = [packed, Buffer.from("502a4d18020000006162", "hex"), zstd(""), zstd("\n{}\n"), Buffer.from("more")];
    const all = Buffer.concat(frames);
    expect(await reasons(all.subarray(0, -4))).toEqual([lines[0], "{}"]);
    expect(await reasons(all)).toEqual([lines[0], "{}", damaged(all.length - 4, "no frame begins there")]);
    // fzstd read the first for ever, and the second as an empty file.
    const hang =
      "28b52ffd04589d270016bcce46f0ffffffff9f6ca9111687c561d128c00786c9915936bce587989e101161e6a1bd45e37333e0960b20254d80862a908b686269304c34ccccc8c20ac82f47e21f914d44cd9406".padEnd(
        2560,
        "0",
      );
    const silent = "28b52ffd04589d000000800000000001301c00040000000000018744a3001e1b24";
    expect(await reasons(Buffer.from(hang, "hex"))).toEqual([damaged(0, nonsense)]);
    expect(await reasons(Buffer.from(silent, "hex"))).toEqual([damaged(0, nonsense)]);
    const wide = "the frame was packed with a window of more than 128 MiB: unpack the file first (zstd -d --long=31)";
    expect(await reasons(Buffer.from("28b52ffd0090", "hex"))).toEqual([damaged(0, wide)]);
    // Of a frame that is cut off the lines before count, and of a large one that is damaged.
    const large = zstd(`${lines[0]}\n${"x".repeat(20 << 20)}`);
    expect((await reasons(large.subarray(0, -3)))[0]).toBe(lines[0]);
    large[large.length - 1] ^= 1;
    expect((await reasons(large))[0]).toBe(lines[0]);
    expect((await reasons(large)).at(-1)).toContain(damaged(0, checksum));
  });
});

describe("Parquet, pages, texts, folders", () => {
  it("reads Parquet rows and says which columns there are", async () => {
    const { DuckDBInstance } = await import("@duckdb/node-api");
    const db = await (await DuckDBInstance.create(":memory:")).connect();
    const [good, bad] = [join(dir, "a.parquet"), join(dir, "b.parquet")];
    await db.run(`COPY (SELECT i AS id, 'text ' || i AS text FROM range(5000) t(i)) TO '${good}' (FORMAT parquet)`);
    await db.run(`COPY (SELECT 1 AS id, 'x' AS content) TO '${bad}' (FORMAT parquet)`);
    const all = await read(good);
    expect(all.length).toBe(5000);
    expect(JSON.parse(text(all[4321].record))).toEqual({ id: 4321, text: "text 4321" });
    expect((await read(good, all[4321].next)).length).toBe(678);
    await expect(read(bad)).rejects.toThrow(/no column "text". Its columns are: id \(INTEGER\), content \(VARCHAR\)/);
    expect(told(await read(put("c.parquet", "junk, and not Parquet")))[0]).toMatch(/not a readable Parquet file/);
  });
  it("takes a Parquet file's name as it is, NaN for null, and lists where it cannot be read on", async () => {
    const { DuckDBInstance } = await import("@duckdb/node-api");
    const db = await (await DuckDBInstance.create(":memory:")).connect();
    const copy = (what: string, name: string, more = ""): Promise<unknown> =>
      db.run(`COPY (SELECT ${what}) TO '${join(dir, name)}' (FORMAT parquet${more})`);
    await copy("'right' AS text", "tmp.parquet");
    await copy("'wrong' AS text", "p-0.parquet");
    const named = put("p-[0]*?.parquet", readFileSync(join(dir, "tmp.parquet")));
    expect(told(await read(named))).toEqual(['{"text":"right"}']);
    await copy(
      `'a "nan" b\\' AS text, 'nan'::DOUBLE AS a, [1.5, '-inf'::FLOAT] AS b, {'c': 'inf'::DOUBLE, 'NaN': 1} AS d`,
      "nan.parquet",
    );
    expect(JSON.parse(told(await read(join(dir, "nan.parquet")))[0])).toEqual({
      text: 'a "nan" b\\',
      a: null,
      b: [1.5, null],
      d: { c: null, NaN: 1 },
    });
    await copy("md5(i::VARCHAR) AS text FROM range(20000) t(i)", "damaged.parquet", ", COMPRESSION zstd");
    const bytes = readFileSync(join(dir, "damaged.parquet"));
    bytes.fill(0x5a, bytes.length >> 1, (bytes.length >> 1) + 400);
    const all = told(await read(put("damaged.parquet", bytes)));
    expect(all[all.length - 1]).toMatch(/^the Parquet file cannot be read on: .*ZSTD/);
  });
  it("reads strings of Parquet that do not say that they are, and sets aside what is none", async () => {
    const { DuckDBInstance } = await import("@duckdb/node-api");
    const db = await (await DuckDBInstance.create(":memory:")).connect();
    const rows = [
      `encode('北京 "a" \\ b\nc') AS text, 9007199254740993 AS id, [{'role': encode('ü'), 'n': 1.5::DOUBLE}, NULL] AS m, MAP {encode('k'): encode('w')} AS k, '\\xFF'::BLOB AS "b""c"`,
      "'\\xFF\\xFE'::BLOB, 2, NULL, NULL, NULL",
      "NULL, 3, [{'role': NULL, 'n': 'nan'::DOUBLE}], NULL, encode('nan')",
      "encode('end'), 4, NULL, NULL, NULL",
    ];
    const file = join(dir, "bytes.parquet");
    await db.run(`COPY (SELECT ${rows.join(" UNION ALL SELECT ")}) TO '${file}' (FORMAT parquet)`);
    const all = told(await read(file));
    expect(JSON.parse(all[0])).toEqual({
      text: '北京 "a" \\ b\nc',
      id: 9007199254740992,
      m: [{ role: "ü", n: 1.5 }, null],
      k: { k: "w" },
      'b"c': { bytes: 1 },
    });
    expect(all[0]).toContain('"id":9007199254740993');
    expect(all[1]).toBe('what stands in the column "text" is not UTF-8');
    expect(JSON.parse(all[2])).toEqual({ text: null, id: 3, m: [{ role: null, n: null }], k: null, 'b"c': "nan" });
    expect(JSON.parse(all[3]).text).toBe("end");
    await checkResume(file);
    const only = join(dir, "only.parquet");
    await db.run(`COPY (SELECT encode('alone') AS text) TO '${only}' (FORMAT parquet)`);
    expect(told(await read(only))).toEqual(['{"text":"alone"}']);
  });
  it("reads .json.gz as JSONL", async () => {
    const file = put("c4-train.00000-of-01024.json.gz", gzipSync('{"text":"a"}\n{"text":"b"}\n'));
    expect(told(await read(file))).toEqual(['{"text":"a"}', '{"text":"b"}']);
  });
  it("reads what several links lead to once, under its own name, and a link that leads back has an end", () => {
    const of = (...names: string[]): string[] => names.map((name) => join(dir, "linked", name));
    mkdirSync(join(dir, "linked/b/c"), { recursive: true });
    put("linked/b/x.jsonl", "{}");
    put("linked/b/c/y.jsonl", "{}");
    put("elsewhere.jsonl", "{}");
    symlinkSync("..", join(dir, "linked/b/up"));
    symlinkSync("b", join(dir, "linked/a"));
    symlinkSync("b/x.jsonl", join(dir, "linked/again.jsonl"));
    symlinkSync("../elsewhere.jsonl", join(dir, "linked/there.jsonl"));
    expect(listFiles([join(dir, "linked")], "x")).toEqual(of("b/c/y.jsonl", "b/x.jsonl", "there.jsonl"));
    expect(listFiles([join(dir, "linked/a")], "x")).toEqual(of("a/c/y.jsonl", "a/up/there.jsonl", "a/x.jsonl"));
  });
  it("sets aside a file whose name is not UTF-8, and says so", async () => {
    mkdirSync(join(dir, "names"));
    const good = put("names/a.jsonl", "{}");
    const bytes = Buffer.concat([Buffer.from(join(dir, "names/")), Buffer.of(0xb1, 0xb1), Buffer.from(".jsonl")]);
    writeFileSync(bytes, "{}");
    const [first, second] = listFiles([join(dir, "names")], "x", true);
    expect(first).toBe(good);
    expect(told(await read(second))).toEqual(["its name is not UTF-8, and it cannot be read by another: rename it"]);
    await checkResume(second);
    expect(() => listFiles([join(dir, "names")], "sources.web.files")).toThrow(
      /\.jsonl cannot be read: its name is not UTF-8/,
    );
    rmSync(bytes);
    // One that has such a character by right is read.
    const right = put("names/\ufffd.jsonl", "{}");
    expect(told(await read(right))).toEqual(["{}"]);
  });
  it("names what is missing or unknown", () => {
    expect(() => listFiles([join(dir, "none.jsonl")], "sources.web")).toThrow(
      /does not exist. It is named under sources.web/,
    );
    expect(() => listFiles([put("a.xyz", "x")], "sources.web")).toThrow(/cannot tell its format/);
    expect(listFiles([dir], "x")).toEqual([...listFiles([dir], "x")].sort());
  });
  it("lists what it cannot tell the format of, and says where a dangling link lies", async () => {
    mkdirSync(join(dir, "mixed/.git"), { recursive: true });
    const [page, notes] = [put("mixed/a.txt", "x"), put("mixed/notes.doc", "y")];
    put("mixed/.git/HEAD", "z");
    symlinkSync("nowhere", join(dir, "mixed/gone.doc"));
    expect(listFiles([join(dir, "mixed")], "x")).toEqual([page]);
    expect(listFiles([join(dir, "mixed")], "x", true)).toEqual([page, notes]);
    expect(told(await read(notes))[0]).toMatch(/^its format cannot be told by its name. Known are .warc/);
    await checkResume(notes);
    symlinkSync("nowhere", join(dir, "mixed/gone.txt"));
    expect(() => listFiles([join(dir, "mixed")], "sources.web.files")).toThrow(
      /gone.txt cannot be read: it is a link to a file that is not there.*under sources.web.files/,
    );
  });
  it("takes of a unit's packed pages what can be held, and lists the others", async () => {
    const page = Buffer.concat([
      Buffer.from("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\n"),
      gzipSync("A long text. ".repeat(1000)),
    ]);
    const record = { kind: "html", file: "a.warc", contentType: "application/http" } as const;
    const records = [1, 2, 3, 4].map((line) => ({ ...record, line }));
    const lengths = records.map(() => page.length);
    const { rows, rejected } = await documentsIn(
      { records, lengths, bytes: Buffer.concat(records.map(() => page)) },
      { dataset: "a", label: (f) => f, mode: "fast", timeout: 20, maxRecordBytes: 1e6, judgeUrl: () => [] },
      20_000,
    );
    expect(rows.map((r) => r.id)).toEqual(["a/a.warc:1", "a/a.warc:2"]);
    expect(rejected.map((r) => r.line)).toEqual([3, 4]);
    expect(rejected[0].reason).toMatch(/^oversized: the records before it have unpacked to more than 0 MB of text/);
  });
  it("gives every file of a source a name of its own, below the folder that the recipe names", () => {
    const names = (roots: string[], ...files: string[]): string[] => [...labelsOf(files, roots).values()];
    expect(names(["/c/data"], "/c/data/a/p.jsonl", "/c/data/b/p.jsonl")).toEqual(["data/a/p.jsonl", "data/b/p.jsonl"]);
    expect(names(["/c/data/", "/d/x.txt"], "/c/data/a/p.jsonl", "/d/x.txt")).toEqual(["data/a/p.jsonl", "x.txt"]);
    expect(names(["./in"], "in/a/p.jsonl")).toEqual(["in/a/p.jsonl"]);
    // The same names in several folders.
    const [x, y] = ["/c/x/part.jsonl", "/c/y/part.jsonl"];
    expect(names([x, y, "/c/z.txt"], x, y, "/c/z.txt")).toEqual(["x/part.jsonl", "y/part.jsonl", "z.txt"]);
    expect(names(["/c/data/"], "/c/data/p/part.jsonl", "/c/data/q/part.jsonl")).toEqual([
      "data/p/part.jsonl",
      "data/q/part.jsonl",
    ]);
    expect(new Set(names(["/e/x", x, y], "/e/x/part.jsonl", x, y)).size).toBe(3);
    expect(names([x, x], x, x)).toEqual(["part.jsonl"]);
    // Two groups of the same names, which what tells their files apart would make one.
    const [p, q, r, s] = ["/1/p", "/1/q", "/2/p", "/2/q"].map((folder) => `${folder}/data/part.jsonl`);
    expect(new Set(names([p, q, "/2/p/data", "/2/q/data"], p, q, r, s)).size).toBe(4);
  });
});

describe("text", () => {
  const stories = Array.from({ length: 400 }, (_, i) => `Story ${i}.\nIt has ${"many words ".repeat(i)}and an end.\n`);
  const places = (all: Got[]): unknown[] => all.map(({ record: r }) => [r.line, r.offset]);

  it("lines of <|endoftext|> stand between documents, each with its line and place, and reading goes on at any of them", async () => {
    const file = put("stories.txt", stories.join("<|endoftext|>\n"));
    const all = await read(file);
    expect(told(all)).toEqual(stories);
    const second = stories[0].length + 14;
    expect(places(all).slice(0, 3)).toEqual([
      [1, 0],
      [4, second],
      [7, second + stories[1].length + 14],
    ]);
    await checkResume(file);
    const packed = put("stories.txt.gz", gzipSync(`<|endoftext|>\n${stories.slice(0, 5).join("<|endoftext|>\r\n")}`));
    expect(told(await read(packed))).toEqual(stories.slice(0, 5));
    await checkResume(packed);
    const wide = put("wide.txt", Buffer.from("\ufeffeins\n<|endoftext|>\nzwei\n", "utf16le"));
    expect(told(await read(wide))).toEqual(["eins\n", "zwei\n"]);
    await checkResume(wide);
  });
  it("a document may have as many bytes as a record; one that has more is not held, and the message tells of the separator", async () => {
    const file = put("long.txt", `${"many words ".repeat(100_000)}\n<|endoftext|>\nshort\n<|endoftext|>\n`);
    const tail = put("tail.txt", "first\n<|endoftext|>\n");
    truncateSync(tail, 400e6);
    const before = process.memoryUsage().rss;
    const oversized = (size: string): unknown =>
      expect.stringMatching(
        new RegExp(
          `^oversized: ${size} MB, and at most 1\\.0 MB are read \\(limits.maxRecordBytes\\); a text file is one document, or several with a line of <\\|endoftext\\|> between them$`,
        ),
      );
    expect(told(await read(file))).toEqual([oversized("1.1"), "short\n"]);
    expect(told(await read(tail))).toEqual(["first\n", oversized("400.0")]);
    expect(process.memoryUsage().rss - before).toBeLessThan(200e6);
    await checkResume(file);
  });
  it("damage costs the document that it is in", async () => {
    const bad = gzipSync("two\n<|endoftext|>\nthree");
    bad[bad.length - 6] ^= 1;
    const parts = [gzipSync("one\n<|endoftext|>\n"), bad, gzipSync(" goes on\n<|endoftext|>\nfour\n")];
    const file = put("damaged.txt.gz", Buffer.concat(parts));
    expect(told(await read(file))).toEqual([
      "one\n",
      expect.stringMatching(/^it cannot be read: a gzip member is damaged/),
      "four\n",
    ]);
    await checkResume(file);
  });
  it("a file of one document gives it its name, another one a name and a line", async () => {
    const ids = async (file: string): Promise<string[]> => {
      const records = (await read(file)).map(({ record }) => record);
      const context = { dataset: "a", label: () => "x.txt", mode: "fast", timeout: 20, maxRecordBytes: 1e6 } as const;
      const { rows } = await documentsIn(
        { records, lengths: records.map((r) => r.bytes.length), bytes: Buffer.concat(records.map((r) => r.bytes)) },
        { ...context, judgeUrl: () => [] },
      );
      return rows.map((row) => row.id);
    };
    expect(await ids(put("one.rst", "one"))).toEqual(["a/x.txt"]);
    expect(await ids(put("two.markdown", "one\n<|endoftext|>\ntwo"))).toEqual(["a/x.txt:1", "a/x.txt:3"]);
  });
});

describe("JSON", () => {
  const records = ["a", 'b "]} \\', "c\n[{", "ü".repeat(200_000)].map((text, id) => ({ text, id }));
  const values = (all: Got[]): unknown[] => all.map(({ record: r }) => r.reason ?? JSON.parse(text(r)));

  it("is an array, JSON lines, or records over several lines, packed or not", async () => {
    const pretty = JSON.stringify(records, null, 2);
    for (const [name, data] of [
      ["array.json", JSON.stringify(records)],
      ["pretty.json", `\ufeff \n${pretty}\n`],
      ["lines.json", records.map((r) => `${JSON.stringify(r)}\r\n`).join("")],
      ["spread.json", records.map((r) => JSON.stringify(r, null, 1)).join("\n")],
      ["array.json.gz", gzipSync(pretty)],
    ] as const) {
      const file = put(name, data);
      const all = await read(file);
      expect(values(all), name).toEqual(records);
      expect(all.map(({ record: r }) => [r.kind, r.line])).toEqual([1, 2, 3, 4].map((line) => ["json", line]));
      await checkResume(file);
    }
    expect(values(await read(put("single.json", '{\n"text": "x"\n}')))).toEqual([{ text: "x" }]);
    expect(values(await read(put("none.json", " [ ] ")))).toEqual([]);
  });
  it("what is wrong in an array costs one record, or is told", async () => {
    const long = `{"text":"${"long ".repeat(300_000)}"}`;
    const file = put("wrong.json", `[{"text":"a},\n3,]}{"text":"b"},\n${long},{"text":"c"}`);
    expect(told(await read(file))).toEqual([
      '{"text":"a},\n3,]',
      "}",
      '{"text":"b"}',
      expect.stringMatching(/^oversized: 1\.5 MB/),
      '{"text":"c"}',
      "cut off: the file ends inside its array",
    ]);
    await checkResume(file);
    expect(told(await read(put("inside.json", '[{"text":"a"}, {"text":"b')))).toEqual([
      '{"text":"a"}',
      "cut off: the file ends inside its array",
    ]);
    const more = put("more.json", '[{"text":"a"}]\n{"text":"b"}');
    expect(told(await read(more))).toEqual(['{"text":"a"}', expect.stringMatching(/^there is more behind the end/)]);
    await checkResume(more);
    // The first line being broken makes no array of lines.
    expect(told(await read(put("broken.json", '{"text":"a\n{"text":"b"}\n')))).toEqual(['{"text":"a', '{"text":"b"}']);
    const packed = gzipSync(JSON.stringify(records));
    const cut = told(await read(put("cut.json.gz", packed.subarray(0, packed.length - 9))));
    expect(cut.at(-1)).toMatch(/the gzip file is truncated.*what comes after it in the file is not read$/);
  });
  it("what a data set's library writes about it is none of its records", () => {
    for (const name of ["dataset_infos.json", "a/dataset_dict.json", "state.json"])
      expect(formatOf(name)).toBeUndefined();
    expect(formatOf("a/statements.json")).toBe("json");
  });

  it("names in a message are all those that are read", () => {
    const complaint = ((): string => {
      try {
        return `${listFiles([put("a.doc", "x")], "x")}`;
      } catch (error) {
        return (error as Error).message;
      }
    })();
    const known = [...complaint.matchAll(/\.[a-z.]*[a-z]/g)].map(([name]) => name).slice(1);
    expect(known).toEqual(
      expect.arrayContaining([".json", ".json.gz", ".htm", ".xhtml", ".text", ".markdown", ".rst"]),
    );
    for (const name of known) expect(listFiles([put(`a${name}`, "x")], "x")).toHaveLength(1);
    for (const name of ["a.html.gz", "a.html.pt-br", "A.TXT.ZST", "a.de.html"])
      expect(listFiles([put(name, "x")], "x")).toHaveLength(1);
    for (const name of ["a.html.", "a.parquet.gz", "atxt"])
      expect(() => listFiles([put(name, "x")], "x")).toThrow(/Known/);
  });
});

describe("parseHttp", () => {
  const answer = (head: string, body: Uint8Array | string): Buffer =>
    Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\n${head}\r\n\r\n`), Buffer.from(body)]);
  it("unpacks chunks and gzip, and takes bodies that are not packed though the header says so", () => {
    const page = "<p>hello</p>";
    const packed = gzipSync(page);
    const chunked = Buffer.concat([
      Buffer.from(`${packed.length.toString(16)}\r\n`),
      packed,
      Buffer.from("\r\n0\r\n\r\n"),
    ]);
    const body = (b: Buffer): string => Buffer.from(parseHttp(b, 1000).body).toString();
    expect(body(answer("Content-Encoding: gzip", packed))).toBe(page);
    expect(body(answer("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", chunked))).toBe(page);
    expect(body(answer("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", page))).toBe(page);
    expect(parseHttp(answer("Content-Encoding: gzip", gzipSync("x".repeat(5000))), 1000).reason).toMatch(/^oversized/);
    expect(parseHttp(Buffer.from("junk"), 1000).reason).toMatch(/no end of its header/);
  });
  it("finds the end of a header of bare line feeds, and passes over codings that pack nothing", () => {
    const bodyOf = (b: Buffer | string): string => Buffer.from(parseHttp(Buffer.from(b), 1000).body).toString();
    expect(bodyOf("HTTP/1.1 200 OK\nContent-Type: text/html\n\n<p>one</p>\r\n\r\n<p>two</p>")).toBe(
      "<p>one</p>\r\n\r\n<p>two</p>",
    );
    expect(bodyOf(answer("Content-Type: text/html", "<p>one</p>\n\n<p>two</p>"))).toBe("<p>one</p>\n\n<p>two</p>");
    for (const coding of ["utf-8", "none"]) {
      expect(parseHttp(answer(`Content-Encoding: ${coding}`, "<p>x</p>"), 1000).reason).toBeUndefined();
      expect(bodyOf(answer(`Content-Encoding: ${coding}`, "<p>x</p>"))).toBe("<p>x</p>");
    }
    for (const coding of ["zstd", "aes128gcm", "sdch", "lz4", "snappy", "identity, zstd"])
      expect(parseHttp(answer(`Content-Encoding: ${coding}`, "x"), 1000).reason).toMatch(/"\w+", which is not known/);
    const page = "<p>hello</p>";
    for (const [coding, packed] of [
      ["br, utf-8", brotliCompressSync(page)],
      ["deflate, br", brotliCompressSync(deflateSync(page))],
      ["gzip, deflate", gzipSync(page)],
      ["x-gzip, gzip", gzipSync(page)],
      ["iso-8859-1, gzip;q=1", gzipSync(page)],
      ["deflate, gzip", gzipSync(page)],
    ] as const)
      expect(bodyOf(answer(`Content-Encoding: ${coding}`, packed)), coding).toBe(page);
    // It was stored without its chunks, and begins with hexadecimal digits.
    const plain = "Added in 2024\nThe text goes on here.\n";
    expect(bodyOf(answer("Transfer-Encoding: chunked", plain))).toBe(plain);
    expect(bodyOf(answer("Transfer-Encoding: chunked", "3;name=x\r\nabc\r\n2 \r\nde\r\n0\r\n\r\n"))).toBe("abcde");
    // A size that is wrong ends the page before its chunk, if it is not the first; the last one may be cut off.
    const chunks = "3\r\nabc\r\n2\r\nde\r\n";
    for (const [body, text] of [
      [`${chunks}zz\r\nfg\r\n0\r\n\r\n`, "abcde"],
      [`${chunks}1\r\nfg\r\n0\r\n\r\n`, "abcde"],
      [`${chunks}ffff\r\nfg\r\n0\r\n\r\n`, "abcde"],
      [`${chunks}4\r\nfg`, "abcdefg"],
      [chunks.slice(0, -1), "abcde"],
    ])
      expect(bodyOf(answer("Transfer-Encoding: chunked", body)), body).toBe(text);
    expect(parseHttp(answer("Transfer-Encoding: chunked", `2\r\nabc\r\n0\r\n\r\n`), 1000).reason).toMatch(
      /first chunk is wrong/,
    );
    expect(bodyOf(answer("Transfer-Encoding: chunked", " 3\r\nabc\r\n0x2\r\nde\r\n0\r\n\r\n"))).toBe("abcde");
  });
});
