/** Input that is broken or means harm: a clear error or a listed rejection, in bounded time and memory. */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { build } from "../../src/corpus/build.js";
import type { Rejected } from "../../src/corpus/document.js";
import { BuildFolder, readRows, toRows } from "../../src/corpus/folder.js";
import { recipeSchema } from "../../src/corpus/recipe.js";
import { buildProgram } from "./cli-path.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-hostile-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const quiet = { note() {}, status() {}, end() {} };
const put = (name: string, data: string | Uint8Array): string => {
  writeFileSync(join(dir, name), data);
  return join(dir, name);
};
const text = "A text that is long enough to be taken for one, with commas, and with a full stop at its end.";

async function reasons(files: string[], out: string): Promise<{ kept: number; rejected: Record<string, string> }> {
  const recipe = recipeSchema.parse({
    sources: [{ name: "a", files }],
    garbled: {},
    heuristics: { presets: ["gopher", "c4", "zh"] },
    deduplicate: {},
  });
  const { finished } = await build(recipe, join(dir, out), 1, quiet);
  const rows = readRows<Rejected>(join(dir, out, "rejected.jsonl"));
  return {
    kept: finished.kept,
    rejected: Object.fromEntries(rows.map((r) => [`${r.file.slice(dir.length + 1)}:${r.line}`, r.reason])),
  };
}

function response(body: Uint8Array, header = ""): Buffer {
  const http = Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n${header}\r\n`), body]);
  return Buffer.concat([
    Buffer.from(
      `WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: ${http.length}\r\n\r\n`,
    ),
    http,
    Buffer.from("\r\n\r\n"),
  ]);
}

describe("hostile input", () => {
  it("is listed with file, line and reason, and the rest goes on", async () => {
    const big = put("big.html", "<p>");
    truncateSync(big, 100e6);
    const files = [
      big,
      put("deep.html", `${"<div>".repeat(100_000)}${text}`),
      put("wide.html", "<i>a</i>".repeat(350_000)),
      put("empty.jsonl", ""),
      put(
        "bytes.jsonl",
        Buffer.concat([
          Buffer.from('{"text":"'),
          Buffer.from([0xff, 0xc0, 0x80]),
          Buffer.from('"}\n{"text": 3}\n[]\nnull\n"x"\n{"text":""}\n'),
        ]),
      ),
      put(
        "odd.jsonl",
        `${JSON.stringify({ id: "\0\ud800", text: `\0 ${text}` })}\n${JSON.stringify({ text: `\ud83d \udc00 ${text}` })}\n{"text":"${"\u0000".replace("\0", "\\u0000")}"}\n`,
      ),
      put(
        "bomb.warc",
        Buffer.concat([
          response(gzipSync(Buffer.alloc(200e6)), "Content-Encoding: gzip\r\n"),
          response(Buffer.from(`<p>${text}</p>`)),
        ]),
      ),
      put("long.jsonl", `{"text":"${"a".repeat(17e6)}"}\n${JSON.stringify({ text })}\n`),
      put("noise.warc.gz", Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * 7919) % 256))),
    ];
    const began = Date.now();
    const { rejected } = await reasons(files, "out");
    expect(Date.now() - began).toBeLessThan(60_000);
    expect(process.resourceUsage().maxRSS).toBeLessThan(900_000);
    const short = Object.fromEntries(Object.entries(rejected).map(([k, v]) => [k, v.slice(0, 40)]));
    expect(short).toMatchInlineSnapshot(`
      {
        "big.html:1": "oversized: 100.0 MB, and at most 16.0 MB",
        "bomb.warc:1": "oversized: the page unpacks to more than",
        "bytes.jsonl:1": "not valid UTF-8",
        "bytes.jsonl:2": "there is no field "text" with a string i",
        "bytes.jsonl:3": "there is no field "text" with a string i",
        "bytes.jsonl:4": "there is no field "text" with a string i",
        "bytes.jsonl:5": "there is no field "text" with a string i",
        "deep.html:1": "the page is nested more than 10000 level",
        "empty.jsonl:1": "the file is empty",
        "long.jsonl:1": "oversized: 17.0 MB, and at most 16.0 MB ",
        "noise.warc.gz:1": "not gzip data",
        "odd.jsonl:2": "the text holds half of a surrogate pair",
        "wide.html:1": "the page has more than 300000 elements",
      }
    `);
  }, 120_000);

  it("a Parquet file without a text column says which columns there are", async () => {
    const { DuckDBInstance } = await import("@duckdb/node-api");
    const db = await (await DuckDBInstance.create(":memory:")).connect();
    await db.run(`COPY (SELECT 1 AS id, 'x' AS body) TO '${dir}/a.parquet' (FORMAT parquet)`);
    await expect(reasons([join(dir, "a.parquet")], "parquet")).rejects.toThrow(
      /no column "text". Its columns are: id \(INTEGER\), body/,
    );
  });

  it.runIf(existsSync("/dev/full"))("a full disk is told, and the next run goes on", async () => {
    const file = put("fine.jsonl", `${JSON.stringify({ id: "x", text: `${text} ${text}` })}\n`);
    mkdirSync(join(dir, "full/decisions"), { recursive: true });
    mkdirSync(join(dir, "full/units"), { recursive: true });
    symlinkSync("/dev/full", join(dir, "full/decisions/a-000000.jsonl.partial"));
    await expect(reasons([file], "full")).rejects.toThrow(
      /The disk is full.*Free some space and start the same command again/,
    );
    rmSync(join(dir, "full/decisions/a-000000.jsonl.partial"));
    await expect(reasons([file], "full")).resolves.toMatchObject({ rejected: {} });
  });
});

describe("the command", () => {
  let program = "";
  beforeAll(() => {
    program = buildProgram();
  }, 120_000);
  const lyceum = (...args: string[]): { code: number | null; out: string; err: string } => {
    const r = spawnSync(process.execPath, [program, "corpus", ...args], { cwd: dir, encoding: "utf8" });
    expect(r.stderr).not.toMatch(/\n\s+at .*:\d+:\d+/);
    return { code: r.status, out: r.stdout, err: r.stderr };
  };

  it("what a killed run left of its windows on disk goes with the next one", async () => {
    mkdirSync(join(dir, "left/units"), { recursive: true });
    mkdirSync(join(dir, "left/windows/windows-x"), { recursive: true });
    writeFileSync(join(dir, "left/windows/windows-x/part-0"), "x");
    await reasons([put("left.jsonl", `${JSON.stringify({ text })}\n`)], "left");
    expect(existsSync(join(dir, "left/windows"))).toBe(false);
  });

  it("rows are written piece by piece, as a unit's may be longer than a string", () => {
    const rows = Array.from({ length: 5 }, (_, i) => ({ i, text: `${text} \u0001 é`.repeat(6000) }));
    const pieces = [...toRows(rows)];
    expect(pieces.length).toBeGreaterThan(2);
    const folder = new BuildFolder(join(dir, "rows"));
    folder.commit(
      "a",
      { key: "k", files: {} },
      { "documents/a.jsonl": toRows(rows), "index/a.bin": new Uint8Array(3) },
    );
    const file = folder.rows("documents", "a");
    expect(readRows(file)).toEqual(rows);
    expect(folder.finished("a", "k")?.files).toEqual({ "documents/a.jsonl": statSync(file).size, "index/a.bin": 3 });
    expect([...toRows([])].join("")).toBe("");
  });

  it("extract --json gives title, text and language", () => {
    put(
      "page.html",
      `<title>Ein Hafen</title><nav><a href=/>Start</a></nav><article><h1>Ein Hafen</h1><p>Der Hafen der alten Stadt war still, und alle Boote lagen im Wasser, als der Winter kam.</p></article>`,
    );
    expect(JSON.parse(lyceum("extract", "page.html", "--json").out)).toEqual({
      title: "Ein Hafen",
      text: "Der Hafen der alten Stadt war still, und alle Boote lagen im Wasser, als der Winter kam.",
      language: "de",
    });
    expect(lyceum("extract", "none.html")).toMatchObject({ code: 2, err: "error: none.html does not exist.\n" });
    expect(lyceum("extract", "big.html").err).toMatch(/95 MiB; pages of up to 16 MiB are read/);
    expect(lyceum("extract", "deep.html").err).toMatch(/nested more than 10000 levels deep/);
  });

  it.runIf(existsSync("/dev/full"))("a full disk met in a worker thread is told as a message, not as a bug", () => {
    const file = put("two.jsonl", `${JSON.stringify({ id: "x", text: `${text} ${text}` })}\n`);
    put("two.yaml", `sources: [{ name: a, files: [${file}] }]\n`);
    mkdirSync(join(dir, "two/decisions"), { recursive: true });
    mkdirSync(join(dir, "two/units"), { recursive: true });
    symlinkSync("/dev/full", join(dir, "two/decisions/a-000000.jsonl.partial"));
    const { code, err } = lyceum("build", "two.yaml", "--out", "two", "--workers", "2");
    expect(code).toBe(1);
    expect(err).toMatch(/^error: The disk is full/m);
    expect(err).not.toMatch(/bug/);
  });

  it("dedup --json gives pairs with their true similarity", () => {
    const words = Array.from({ length: 200 }, (_, i) => `word${(i * 7) % 97}x${i % 13}`);
    const changed = [...words];
    changed[100] = "other";
    // 196 shingles each; a changed word takes five of them: (196 - 5) / (196 + 5).
    const rows = [words, changed, words.slice(0, 90), [...words].reverse()].map((w, i) =>
      JSON.stringify({ id: `d${i}`, text: w.join(" ") }),
    );
    put("dedup.jsonl", rows.join("\n"));
    expect(JSON.parse(lyceum("dedup", "dedup.jsonl", "--threshold", "0.8", "--json").out)).toEqual([
      { a: "d0", b: "d1", similarity: expect.closeTo(191 / 201, 12) },
    ]);
    expect(lyceum("dedup", "dedup.jsonl", "--threshold", "2").code).toBe(2);
  });

  it("train-classifier reports precision and recall on held-out texts, and the model judges in a build", () => {
    const good = Array.from({ length: 80 }, (_, i) =>
      JSON.stringify({
        id: `g${i}`,
        text: `The committee of scholars published volume ${i} of its careful study of rivers and harbours.`,
      }),
    );
    const bad = Array.from({ length: 80 }, (_, i) =>
      JSON.stringify({
        id: `b${i}`,
        text: `Click here to win ${i} coupons, cheap cheap deals, subscribe now and buy.`,
      }),
    );
    put("good.jsonl", good.join("\n"));
    put("bad.jsonl", bad.join("\n"));
    const report = JSON.parse(
      lyceum("train-classifier", "--good", "good.jsonl", "--crawled", "bad.jsonl", "--out", "q.bin", "--json").out,
    );
    expect(report.atHalf.precision).toBeGreaterThan(0.9);
    expect(report.atHalf.recall).toBeGreaterThan(0.9);
    put(
      "judge.yaml",
      "sources: [{ name: all, files: [good.jsonl, bad.jsonl] }]\nclassifier: { model: q.bin, mode: threshold }\n",
    );
    const { stages } = JSON.parse(lyceum("build", "judge.yaml", "--out", "judged", "--json").out);
    const stage = stages.find((s: { stage: string }) => s.stage === "classifier");
    expect(stage.kept).toBeGreaterThanOrEqual(76);
    expect(stage.kept).toBeLessThanOrEqual(84);
    expect(readFileSync(join(dir, "judged/report.html"), "utf8")).not.toMatch(/(?:src|href)="https?:|@import|url\(/);
  });
});
