/** A corpus that is built by several processes has the bytes of one that is built by one. */
import { mkdtempSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { expect, test } from "vitest";
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
    Array.from({ length: 60 }, (_, i) => `${JSON.stringify({ id: `${file}${i}`, text: text(from + i) })}\n`).join(""),
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

test.runIf(hasMpi)("1, 2 and 3 processes write the same bytes", () => {
  const build = (ranks: number): Map<string, string> => {
    const out = `${root}/out${ranks}`;
    const { status, stderr } = runRanks(ranks, lyceum, [
      "corpus",
      "build",
      `${root}/recipe.yaml`,
      "--out",
      out,
      "--workers",
      "1",
    ]);
    expect(status, stderr).toBe(0);
    if (ranks > 1) expect(stderr).toMatch(/18 of 18 units taken from earlier/);
    return files(out);
  };
  const one = build(1);
  expect([...one.keys()]).toContain("funnel.json");
  for (const ranks of [2, 3]) {
    const several = build(ranks);
    expect([...several.keys()]).toEqual([...one.keys()]);
    for (const [name, bytes] of one) expect(several.get(name) === bytes, name).toBe(true);
  }
});
