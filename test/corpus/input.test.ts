import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { WARCRecord, WARCSerializer } from "warcio";
import { parseHttp } from "../../src/corpus/input/http.js";
import type { Position, RawRecord } from "../../src/corpus/input/record.js";
import { listFiles, readSource } from "../../src/corpus/input/source.js";

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
    expect(told(await read(put("u.jsonl.zst", "no zstd at all")))[0]).toMatch(/zstd data is damaged/);
    expect(told(await read(put("v.jsonl", "")))).toEqual(["the file is empty"]);
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
  it("names what is missing or unknown", () => {
    expect(() => listFiles([join(dir, "none.jsonl")], "sources.web")).toThrow(
      /does not exist. It is named under sources.web/,
    );
    expect(() => listFiles([put("a.xyz", "x")], "sources.web")).toThrow(/cannot tell its format/);
    expect(listFiles([dir], "x")).toEqual([...listFiles([dir], "x")].sort());
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
});
