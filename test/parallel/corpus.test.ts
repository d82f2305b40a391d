/** A corpus that is built by several processes has the bytes of one that is built by one. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { pathToFileURL } from "node:url";
import { expect, test } from "vitest";
import { shareBands } from "../../src/corpus/bands.js";
import { BuildFolder } from "../../src/corpus/folder.js";
import { checkMinHash, nearDuplicates } from "../../src/corpus/minhash.js";
import { hasMpi, program, runRanks } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-corpus-ranks-`);
const lyceum = program("../../dist/cli/main.js");
const words =
  "the harbour of that old city was quiet and with its boats in it we have to be patient when ice comes".split(" ");
const text = (n: number): string =>
  Array.from(
    { length: 90 },
    (_, i) => `${words[(n * 31 + i * i + (i % 7) * n) % words.length]}${i % 12 === 11 ? "." : ""}`,
  ).join(" ");
for (const [file, from] of [
  ["a", 0],
  ["b", 40],
] as const)
  writeFileSync(
    `${root}/${file}.jsonl`,
    Array.from({ length: 60 }, (_, i) => {
      const more = i % 6 === 0 ? ` And ${file} has one more sentence here.` : "";
      return `${JSON.stringify({ id: `${file}${i}`, text: `${text(from + i)}${more}` })}\n`;
    }).join(""),
  );
writeFileSync(
  `${root}/recipe.yaml`,
  `seed: 3
sources:
  - { name: one, files: [a.jsonl], priority: 1 }
  - { name: two, files: [b.jsonl] }
heuristics: { presets: [gopher] }
deduplicate: {}
tokenizer: { vocabSize: 300 }
unit: { records: 7 }
`,
);

/** Every file below a folder, by its name; report.html tells how long it took. */
function files(dir: string, below = ""): Map<string, string> {
  const all = new Map<string, string>();
  for (const name of readdirSync(`${dir}/${below}`)) {
    const path = `${below}${name}`;
    if (statSync(`${dir}/${path}`).isDirectory()) for (const [k, v] of files(dir, `${path}/`)) all.set(k, v);
    else if (name !== "report.html") all.set(path, readFileSync(`${dir}/${path}`, "latin1"));
  }
  return all;
}

const build = (ranks: number, out: string, env: Record<string, string> = {}) =>
  runRanks(ranks, lyceum, ["corpus", "build", `${root}/recipe.yaml`, "--out", out, "--workers", "1"], env);

function expectSame(several: Map<string, string>, one: Map<string, string>): void {
  expect([...several.keys()]).toEqual([...one.keys()]);
  for (const [name, bytes] of one) expect(several.get(name) === bytes, name).toBe(true);
}

test.runIf(hasMpi)("1, 2 and 3 processes write the same bytes; killed anywhere, another number of them goes on", () => {
  const of = (ranks: number): Map<string, string> => {
    const out = `${root}/out${ranks}`;
    const { status, stderr } = build(ranks, out);
    expect(status, stderr).toBe(0);
    expect(stderr).not.toMatch(/taken from earlier/);
    return files(out);
  };
  const one = of(1);
  expect([...one.keys()]).toContain("funnel.json");
  expect(JSON.parse(one.get("funnel.json")!).duplicates.near).toBeGreaterThan(0);
  for (const ranks of [2, 3]) expectSame(of(ranks), one);
  // Again, with nothing left to do.
  expect(build(2, `${root}/out2`).stderr).toMatch(/18 of 18 units taken from earlier/);
  expectSame(files(`${root}/out2`), one);
  const hook = pathToFileURL(program("kill-corpus.hook.mjs")).href;
  for (const [at, ranks, rank] of [
    ["unit", 2, 0],
    ["all-to-all", 2, 1],
    ["all-to-all", 3, 0],
  ] as const) {
    const out = `${root}/killed ${at} ${ranks}`;
    const killed = build(ranks, out, {
      NODE_OPTIONS: `--import ${hook}`,
      KILL_AT: at,
      KILL_RANK: String(rank),
      KILL_AFTER: "4",
    });
    expect(killed.status).not.toBe(0);
    expect(killed.stderr).toContain(`killed in ${at}`);
    const again = build(5 - ranks, out);
    expect(again.status, again.stderr).toBe(0);
    expectSame(files(out), one);
  }
});

test.runIf(hasMpi)("documents that share a band find each other on any number of processes, in small messages", () => {
  const options = checkMinHash({ bands: 5, rows: 2 });
  const hashes = 10;
  const folder = `${root}/signed`;
  mkdirSync(`${folder}/index`, { recursive: true });
  // 1000 documents in units of uneven sizes; 300 different numbers make bands of two that often agree. Each 50th has no word.
  const all = Uint32Array.from({ length: 1000 * hashes }, (_, i) =>
    Math.floor(i / hashes) % 50 === 7 ? 0xffffffff : (i * 7919 + ((i * i) % 1009)) % 18,
  );
  const units: { unit: string; kept: number }[] = [];
  for (let from = 0; from < 1000; ) {
    const kept = Math.min(1000 - from, (units.length * 13) % 50);
    writeFileSync(`${folder}/index/u${units.length}.bin`, all.subarray(from * hashes, (from + kept) * hashes));
    units.push({ unit: `u${units.length}`, kept });
    from += kept;
  }
  const left = Array.from({ length: 1000 }, (_, i) => i).filter((i) => i % 5 > 0);
  /** For each band who is with whom, whatever the buckets are called. */
  const groups = (documents: readonly number[], of: readonly number[]): string[] => {
    const found: string[] = [];
    for (let band = 0; band < 5; band++) {
      const members = new Map<number, number[]>();
      documents.forEach((document, i) => {
        const bucket = of[band * documents.length + i];
        if (bucket >= 0) members.set(bucket, [...(members.get(bucket) ?? []), document]);
      });
      found.push(...[...members.values()].map((list) => `${band}: ${list}`));
    }
    return found.sort();
  };
  const alone = shareBands(new BuildFolder(folder), units, options).among(left);
  const expected = groups(alone.documents, [...alone.buckets.of]);
  expect(expected.length).toBeGreaterThan(100);
  // As the whole does that is not told who shares a band.
  const signatures = (documents: readonly number[]): Uint32Array =>
    Uint32Array.from(documents.flatMap((d) => [...all.subarray(d * hashes, (d + 1) * hashes)]));
  const corpus = (documents: readonly number[]) => ({
    documents: documents.map((d) => ({ id: `d${d}`, priority: 0, length: d % 17 })),
    signatures: signatures(documents),
    textOf: (i: number) => `a text of nine words that tells number ${documents[i] % 9}`,
  });
  const named = (documents: readonly number[], found: ReturnType<typeof nearDuplicates>) => ({
    ...found,
    twins: found.twins.map((t) => [documents[t.index], documents[t.kept], t.similarity]),
  });
  const straight = named(left, nearDuplicates(corpus(left), options));
  expect(straight.twins.length).toBeGreaterThan(20);
  expect(
    named(alone.documents, nearDuplicates({ ...corpus(alone.documents), buckets: alone.buckets }, options)),
  ).toEqual(straight);
  for (const size of [2, 4]) {
    const asked = JSON.stringify({ folder, units, options, round: 2000 });
    const { results, stderr } = runRanks(size, program("comm.program.mjs"), ["bands", asked]);
    expect(stderr).toBe("");
    expect(groups(results[0].documents, results[0].of)).toEqual(expected);
    for (const r of results.slice(1)) expect(r.documents).toEqual([]);
    // A key with its document is 12 bytes, and goes to another process (N-1)/N of the time.
    const sent = results.reduce((sum, r) => sum + r.sent, 0);
    expect(sent).toBeGreaterThan(0.7 * 1000 * 5 * 12 * ((size - 1) / size));
  }
});
