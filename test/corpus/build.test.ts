import { spawn, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BuildSummary, build } from "../../src/corpus/build.js";
import { planBuild } from "../../src/corpus/plan.js";
import { recipeSchema } from "../../src/corpus/recipe.js";
import { whatIf } from "../../src/corpus/whatif.js";
import { why } from "../../src/corpus/why.js";
import { buildProgram } from "./cli-path.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-corpus-"));
let program = "";
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Words with a source of its own randomness, so that documents differ. */
function prose(seed: number, words: number): string {
  const list =
    "the harbour of that old city was quiet and with all its boats in it we have to be patient when the ice of winter comes from north over water".split(
      " ",
    );
  let x = seed * 7919 + 17;
  let text = "";
  for (let i = 0; i < words; i++) {
    x = (Math.imul(x, 1103515245) + 12345) >>> 0;
    const word =
      i % 3 === 2
        ? `${list[(x >>> 8) % list.length]}`
        : `${"bcdfghklmnprst"[(x >>> 5) % 14]}${"aeiou"[(x >>> 11) % 5]}${"lmnrst"[(x >>> 15) % 6]}${"aeiou"[(x >>> 19) % 5]}n`;
    text += i % 14 === 0 ? `${i > 0 ? ". " : ""}${word[0].toUpperCase()}${word.slice(1)}` : ` ${word}`;
    if (i % 70 === 69) text += ".\n\n";
  }
  return `${text}.`;
}

const RECIPE = `
seed: 3
sources:
  - { name: web, files: [in/pages, in/crawl.jsonl.gz], priority: 1 }
  - { name: books, files: [in/books.jsonl] }
heuristics: { presets: [gopher] }
garbled: {}
pii: {}
decontaminate: { files: [in/eval.jsonl] }
deduplicate: { substring: { tokens: 60 } }
tokenizer: { vocabSize: 400 }
unit: { records: 7 }
split: { validation: 0.1 }
`;

beforeAll(() => {
  mkdirSync(join(dir, "in/pages"), { recursive: true });
  for (let i = 0; i < 20; i++)
    writeFileSync(
      join(dir, `in/pages/${i}.html`),
      `<html><head><link rel=canonical href="https://example.org/${i}"></head><body><nav><a href=/>Home</a></nav><article><h1>Page ${i}</h1>${prose(
        i,
        200,
      )
        .split("\n\n")
        .map((p) => `<p>${p}</p>`)
        .join("")}</article></body></html>`,
    );
  const record = (id: string, text: string): string => JSON.stringify({ id, text, url: `https://example.com/${id}` });
  const shared = prose(900, 120);
  const crawl = [
    ...Array.from({ length: 40 }, (_, i) => record(`c${i}`, prose(100 + i, 150))),
    record("short", prose(999, 40)),
    record("copy", prose(500, 150)),
    record("near", `${prose(501, 150)} One more sentence was put in here.`),
    record("mail", `${prose(700, 100)} Write to jane.doe@mail-company.com today.`),
    record("leak", `${prose(701, 100)} ${prose(800, 30)}`),
    record("quotes1", `${prose(702, 100)} ${shared}`),
    record("quotes2", `${prose(703, 100)} ${shared}`),
    "{ broken",
    record("\ud800 \0", prose(704, 100)),
  ];
  writeFileSync(join(dir, "in/crawl.jsonl.gz"), gzipSync(crawl.join("\n")));
  writeFileSync(
    join(dir, "in/books.jsonl"),
    [record("b500", prose(500, 150)), record("b501", prose(501, 150)), record("b1", prose(600, 300))].join("\n"),
  );
  writeFileSync(join(dir, "in/eval.jsonl"), JSON.stringify({ question: prose(800, 30) }));
  writeFileSync(join(dir, "recipe.yaml"), RECIPE);
  program = buildProgram();
}, 120_000);

const run = (out: string, ...more: string[]): { code: number | null; err: string } => {
  const r = spawnSync(process.execPath, [program, "corpus", "build", "recipe.yaml", "--out", out, ...more], {
    cwd: dir,
    encoding: "utf8",
  });
  return { code: r.status, err: r.stderr };
};

/** Every file of a build and its content; report.html has the folder's name in it. */
function contents(out: string): Map<string, string> {
  const root = join(dir, out);
  return new Map(
    (readdirSync(root, { recursive: true }) as string[])
      .filter((f) => statSync(join(root, f)).isFile() && f !== "report.html")
      .sort()
      .map((f) => [f, readFileSync(join(root, f), "latin1")]),
  );
}
function expectSame(a: string, b: string): void {
  const [x, y] = [contents(a), contents(b)];
  expect([...y.keys()]).toEqual([...x.keys()]);
  for (const [file, data] of x) expect(y.get(file) === data, `${file} differs`).toBe(true);
}

describe("build", () => {
  let summary: BuildSummary;
  /** How long a build takes here that nobody kills. */
  let wholeMs: number;
  beforeAll(() => {
    const began = performance.now();
    // By the built program, as the others are: the version of the code stands in every build's keys.
    const r = spawnSync(
      process.execPath,
      [program, "corpus", "build", "recipe.yaml", "--out", "one", "--workers", "1", "--json"],
      {
        cwd: dir,
        encoding: "utf8",
      },
    );
    wholeMs = performance.now() - began;
    expect(r.stderr).not.toMatch(/error/i);
    summary = JSON.parse(r.stdout);
  }, 60_000);

  it("accounts for every record, stage by stage", () => {
    const stages = Object.fromEntries(summary.stages.map((s) => [s.stage, s]));
    expect(stages.read).toMatchObject({ in: 72, kept: 71, failed: 1 });
    expect(stages.decontaminate).toMatchObject({ dropped: 1 });
    expect(stages["exact-duplicates"].dropped).toBe(1);
    expect(stages["near-duplicates"].dropped).toBe(1);
    expect(stages.kept.kept).toBe(summary.finished.kept);
    const { train, validation } = summary.finished;
    expect(train!.documents + validation!.documents).toBe(summary.finished.kept);
    expect(readFileSync(join(dir, "one/rejected.jsonl"), "utf8")).toMatch(
      /crawl.jsonl.gz","line":48,"reason":"not JSON/,
    );
  });

  it("says why: every rule, the twin and the difference, the cut, the replacement", () => {
    const at = join(dir, "one");
    expect(why(at, "short")).toMatchObject({ action: "drop", stage: "heuristics", rule: "gopher.minWords" });
    expect(why(at, "short").findings.length).toBeGreaterThan(20);
    expect(why(at, "copy").duplicate).toMatchObject({ kind: "exact", kept: "b500", dataset: "books", similarity: 1 });
    const near = why(at, "near");
    expect(near.duplicate).toMatchObject({ kind: "near", kept: "b501" });
    expect(near.duplicate!.similarity).toBeGreaterThan(0.8);
    expect(near.duplicate!.diff.some((c) => c.kind === "+" && c.text.includes("One more sentence"))).toBe(true);
    expect(why(at, "leak")).toMatchObject({ action: "drop", rule: "decontaminate.runs" });
    expect(why(at, "mail").spans.map((s) => s.text)).toEqual(["jane.doe@mail-company.com"]);
    const [first, second] = [why(at, "quotes1"), why(at, "quotes2")];
    expect(first.spans).toEqual([]);
    expect(second.spans).toHaveLength(1);
    expect(prose(900, 120)).toContain(second.spans[0].text.replace(/^[. ]+/, "").trim());
    expect(why(at, "https://example.org/7").id).toBe("web/pages/7.html");
    expect(why(at, "\ufffd \ufffd").action).toBe("keep");
    expect(() => why(at, "nobody")).toThrow(/has the id or the URL "nobody". Ids look like "books\/|Ids look like/);
  });

  it("cuts and replaces only in what is kept, and leaves the documents whole", () => {
    const kept = readdirSync(join(dir, "one/kept"))
      .map((f) => readFileSync(join(dir, "one/kept", f), "utf8"))
      .join("");
    expect(kept).toContain("email@example.com");
    expect(kept).not.toContain("jane.doe");
    expect(kept.split(prose(900, 120).slice(100, 400).replaceAll("\n", "\\n")).length).toBe(2);
    const rows = (kind: string): number =>
      readdirSync(join(dir, "one", kind)).reduce(
        (n, f) => n + readFileSync(join(dir, "one", kind, f), "utf8").split("\n").length - 1,
        0,
      );
    for (const kind of ["signals", "decisions", "spans", "duplicates", "repeats", "outcome"])
      expect(rows(kind)).toBe(71);
  });

  it("answers what-if without the input, as a build with that threshold would", async () => {
    const unchanged = whatIf(join(dir, "one"), ["gopher.minWords=50"]);
    expect(unchanged.kept.after).toBe(unchanged.kept.before);
    expect(unchanged.kept.before).toBe(summary.finished.kept);
    const stricter = whatIf(join(dir, "one"), ["gopher.minWords=155"]);
    expect(stricter.lost.documents).toBeGreaterThan(40);
    const looser = whatIf(join(dir, "one"), ["gopher.minWords=30", "gopher.maxMeanWordLength=off"]);
    expect(looser.gained.ids).toEqual(["short"]);
    expect(() => whatIf(join(dir, "one"), ["gopher.minWord=1"])).toThrow(/Did you mean "gopher.minWords"/);
    expect(() => whatIf(join(dir, "one"), ["gopher.minWords"])).toThrow(/write it as NAME=VALUE/);
    expect(() => whatIf(join(dir, "one"), ["c4.minSentences=2"])).toThrow(/There is no rule "c4.minSentences"/);
    // "near" is a copy of 0.95 to 1 of another: it stays when only closer ones go.
    const exactOnly = whatIf(join(dir, "one"), ["deduplicate.near.threshold=1"]);
    expect(exactOnly.gained.ids).toEqual(["near"]);
    expect(() => whatIf(join(dir, "one"), ["deduplicate.near.threshold=0.5"])).toThrow(/were not recorded/);
    cpSync(join(dir, "recipe.yaml"), join(dir, "stricter.yaml"));
    const r = run("strict", "--set", "heuristics.thresholds={gopher.minWords: 155}", "--json");
    expect(r.code).toBe(0);
    const funnel = JSON.parse(readFileSync(join(dir, "strict/funnel.json"), "utf8"));
    expect(funnel.finished.kept).toBe(stricter.kept.after);
  });

  it("writes the same bytes with two workers as with one", () => {
    expect(run("two", "--workers", "2").code).toBe(0);
    expectSame("one", "two");
  });

  it("takes finished units over, and reruns only what a change touches", async () => {
    const again = JSON.parse(
      spawnSync(process.execPath, [program, "corpus", "build", "recipe.yaml", "--out", "two", "--json"], {
        cwd: dir,
        encoding: "utf8",
      }).stdout,
    );
    expect(again.units).toEqual({ read: 0, judged: 0, reused: 11 });
    const set = (...args: string[]): BuildSummary =>
      JSON.parse(
        spawnSync(
          process.execPath,
          [program, "corpus", "build", "recipe.yaml", "--out", "two", "--json", "--set", ...args],
          { cwd: dir, encoding: "utf8" },
        ).stdout,
      );
    expect(set("deduplicate.near.threshold=0.9").units).toEqual({ read: 0, judged: 0, reused: 11 });
    expect(set("garbled={garbled.maxControl: 0.5}").units).toEqual({ read: 0, judged: 11, reused: 0 });
    expect(set("extract.mode=readability").units).toEqual({ read: 11, judged: 0, reused: 0 });
  });

  it("takes out what other data sets have, and tells which", () => {
    writeFileSync(join(dir, "other.jsonl"), `${JSON.stringify({ id: "o1", text: `${prose(101, 150)} And more.` })}\n`);
    expect(run("against", "--against", "other.jsonl").code).toBe(0);
    const found = why(join(dir, "against"), "c1");
    expect(found).toMatchObject({ action: "drop", duplicate: { kind: "near", kept: "o1", dataset: "against" } });
    expect(found.duplicate!.diff.some((c) => c.kind === "-" && c.text.includes("And more."))).toBe(true);
    expect(readdirSync(join(dir, "against/kept")).every((f) => !f.startsWith("against"))).toBe(true);
    const { duplicates } = JSON.parse(readFileSync(join(dir, "against/funnel.json"), "utf8"));
    expect(duplicates.overlaps).toContainEqual(
      expect.objectContaining({ from: "web", against: "against", documents: 1 }),
    );
  });

  it("ends with the same bytes when it is killed at 20 random moments", async () => {
    let kills = 0;
    for (let i = 0; kills < 20 && i < 200; i++) {
      // From before the first unit to the tokenizer.
      const child = spawn(
        process.execPath,
        [program, "corpus", "build", "recipe.yaml", "--out", "killed", "--workers", String(1 + (i % 2))],
        { cwd: dir, stdio: "ignore" },
      );
      const done = new Promise<boolean>((resolve) => child.on("exit", (code) => resolve(code === 0)));
      setTimeout(() => child.kill("SIGKILL"), (0.15 + ((i * 97) % 80) / 100) * wholeMs);
      if (!(await done)) kills++;
      else if (i % 3 === 0) rmSync(join(dir, "killed"), { recursive: true, force: true });
    }
    expect(kills).toBe(20);
    expect(run("killed").code).toBe(0);
    expectSame("one", "killed");
  }, 120_000);
});

/** Builds of a few documents, in this process. */
describe("small builds", () => {
  const notes: string[] = [];
  const quiet = { note: (text: string) => void notes.push(text), status: () => {}, end: () => {} };
  const jsonl = (name: string, rows: readonly object[]): string => {
    writeFileSync(join(dir, name), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
    return join(dir, name);
  };
  const small = (out: string, recipe: object): Promise<BuildSummary> =>
    build(recipeSchema.parse(recipe), join(dir, out), 1, quiet);
  const kept = (out: string): string[] =>
    readdirSync(join(dir, out, "kept")).flatMap((f) =>
      readFileSync(join(dir, out, "kept", f), "utf8")
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => JSON.parse(line).id),
    );
  const RIVER =
    "The river flows through the old town and it brings fresh water to the fields. The people of the town have lived with the river for " +
    "more than a thousand years. In spring the snow melts and the water rises to the edge of the lower streets. Many houses stand on pillars of oak. " +
    "The bridge of stone was built by monks who wanted to bring their wool to market.";

  it("a build that failed leaves nothing that a later one takes for its own", async () => {
    const files = [
      jsonl("lengths.jsonl", [
        { id: "long", text: prose(1, 50) },
        { id: "short", text: "A few words." },
      ]),
    ];
    const recipe = { sources: [{ name: "S", files }] };
    await small("failed", recipe);
    expect(kept("failed")).toEqual(["long", "short"]);
    const other = { ...recipe, minCharacters: 100, tokenizer: { vocabSize: 3 } };
    await expect(small("failed", other)).rejects.toThrow(/vocabulary of 3 is too small/);
    expect(kept("failed")).toEqual(["long"]);
    expect(readdirSync(join(dir, "failed/units")).filter((name) => name.startsWith("all."))).toEqual([]);
    expect(() => why(join(dir, "failed"), "long")).toThrow(/holds a build that is not finished/);
    expect((await small("failed", recipe)).finished.kept).toBe(2);
    expect(kept("failed")).toEqual(["long", "short"]);
    rmSync(join(dir, "failed/kept"), { recursive: true });
    await small("failed", recipe);
    expect(kept("failed")).toEqual(["long", "short"]);
  });

  it("says of which source nothing is left, and what took most of it", async () => {
    const files = [jsonl("rich.jsonl", [{ id: "long", text: prose(1, 50) }])];
    const poor = [
      jsonl(
        "poor.jsonl",
        [1, 2, 3].map((n) => ({ id: `p${n}`, text: n === 3 ? "A few words." : `Word ${n}.` })),
      ),
    ];
    const sources = [
      { name: "rich", files },
      { name: "poor", files: poor },
    ];
    const thresholds = Object.fromEntries(
      ["minWords", "minStopWords", "minAlphabeticWords"].map((r) => [`gopher.${r}`, null]),
    );
    const heuristics = { presets: ["gopher"], thresholds: { ...thresholds, "gopher.minMeanWordLength": 3.5 } };
    const { finished } = await small("emptied", { sources, heuristics, minCharacters: 20 });
    expect(finished.mix.map((s) => s.source)).toEqual(["rich"]);
    expect(finished.emptied).toEqual([{ source: "poor", documents: 3, rule: "gopher.minMeanWordLength", took: 3 }]);
  });

  it("a job's own error is told", async () => {
    writeFileSync(join(dir, "bad.bin"), "no model");
    const recipe = { sources: [{ name: "S", files: [jsonl("one.jsonl", [{ id: "1", text: RIVER }])] }] };
    await expect(small("job", { ...recipe, classifier: { model: join(dir, "bad.bin") } })).rejects.toThrow(/bad\.bin/);
  });

  it("compares near twins as they are after replacements of the same length", async () => {
    const words = "Please contact our service department about the delivery of your order and we will call back".split(
      " ",
    );
    const page = (number: number, last: string): string =>
      `${words.map((w, i) => (i % 5 === 2 ? `${w} ${number + i}` : w)).join(" ")} on any day that you name ${last}`;
    const files = [
      jsonl("phones.jsonl", [
        { id: "one", text: page(13812345610, "today") },
        { id: "two", text: page(15987654330, "now") },
      ]),
    ];
    const near = { threshold: 0.8, bands: 64, rows: 2 };
    const { duplicates } = await small("phones", { sources: [{ name: "S", files }], pii: {}, deduplicate: { near } });
    expect(duplicates.near).toBe(1);
  });

  it("filters take nothing out of the data sets that it is compared with", async () => {
    const files = [jsonl("own.jsonl", [{ id: "own", text: RIVER }])];
    const against = [jsonl("theirs.jsonl", [{ id: "theirs", text: RIVER.replace(/\.$/, " { }.") }])];
    const recipe = { sources: [{ name: "S", files }], heuristics: { presets: ["c4"] }, deduplicate: { against } };
    expect((await small("theirs", recipe)).duplicates.overlaps).toMatchObject([{ from: "S", against: "against" }]);
    // What line rules cut is cut on both sides.
    const lines = Array.from({ length: 12 }, (_, i) => `a menu of section ${i}\n`).join("");
    jsonl("own.jsonl", [{ id: "own", text: `${lines}${RIVER}` }]);
    jsonl("theirs.jsonl", [{ id: "theirs", text: `${lines.toUpperCase()}${RIVER}` }]);
    expect((await small("theirs", recipe)).duplicates.exact).toBe(1);
  });

  it("trains the tokenizer on all sources, and on what training sees", async () => {
    const rows = (text: (i: number) => string) => Array.from({ length: 400 }, (_, i) => ({ text: text(i) }));
    const sources = [
      {
        name: "EN",
        files: [
          jsonl(
            "en.jsonl",
            rows((i) => `the cat sat on the mat and looked at the dog number ${i}`),
          ),
        ],
      },
      {
        name: "ZH",
        files: [
          jsonl(
            "zh.jsonl",
            rows((i) => `中国的首都是北京，这是第${i}个文本。`),
          ),
        ],
      },
    ];
    const tokens = async (recipe: object): Promise<string[]> => {
      const tokenizer = { vocabSize: 400, pretokenizer: "llama3", sample: 5000 };
      await small("sample", { sources, tokenizer, ...recipe });
      const file = JSON.parse(readFileSync(join(dir, "sample/tokenizer/tokenizer.json"), "utf8"));
      return file.model.merges.map((m: [string, string]) => m.join(""));
    };
    const chinese = (list: string[]): number => list.filter((token) => /[ä-é]/.test(token)).length;
    const even = await tokens({});
    expect(chinese(even)).toBeGreaterThan(10);
    expect(even).toContain("Ġcat");
    const [en, zh] = sources;
    const first = async (...weights: number[]): Promise<string> =>
      (await tokens({ sources: [en, zh].map((source, i) => ({ ...source, weight: weights[i] })) }))[0];
    expect(chinese([await first(1, 50), await first(50, 1)])).toBe(1);
    await expect(tokens({ split: { validation: 1 } })).rejects.toThrow(/no text to train a tokenizer on/);
  });

  it("makes new shards when a file of the tokenizer changes", async () => {
    const folder = join(dir, "given");
    const files = [
      jsonl("one.jsonl", [
        { id: "1", text: RIVER },
        { id: "2", text: prose(2, 50) },
      ]),
    ];
    await small("giver", { sources: [{ name: "S", files }], tokenizer: { vocabSize: 400 } });
    cpSync(join(dir, "giver/tokenizer"), folder, { recursive: true });
    const tokensOf = async (): Promise<string> => {
      await small("shards", {
        sources: [{ name: "S", files }],
        tokenizer: join(folder, "tokenizer.json"),
        split: { validation: 0 },
      });
      return readFileSync(join(dir, "shards/shards/train/tokens.bin"), "hex");
    };
    const before = await tokensOf();
    const config = JSON.parse(readFileSync(join(folder, "tokenizer_config.json"), "utf8"));
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ ...config, eos_token: "!" }));
    const ended = await tokensOf();
    expect(ended).not.toBe(before);
    const json = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
    json.model.merges = [];
    writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(json));
    expect((await tokensOf()).length).toBeGreaterThan(ended.length);
  });

  it("what-if leaves out what PII and decontamination cut", async () => {
    const mail = "Write to the mayor at the.mayor.of.the.town@very-long-domain-name-of-a-town.org about the bridge.";
    const files = [jsonl("mail.jsonl", [{ id: "page", text: `${RIVER}\na menu\n${mail}` }])];
    await small("mail", { sources: [{ name: "S", files }], heuristics: { presets: ["c4"] }, pii: {} });
    const { characters } = whatIf(join(dir, "mail"), ["c4.minWordsPerLine=3"]);
    expect(characters.after).toBe(characters.before);
  });

  it("tells how much of an evaluation set is not looked for", async () => {
    const files = [jsonl("one.jsonl", [{ id: "1", text: RIVER }])];
    jsonl("questions.jsonl", [{ question: `${RIVER} Why?`, answer: "yes" }]);
    notes.length = 0;
    const decontaminate = { files: [join(dir, "questions.jsonl")] };
    expect((await small("noted", { sources: [{ name: "S", files }], decontaminate })).finished.kept).toBe(0);
    expect(notes).toEqual([
      "questions.jsonl: texts of fewer than 8 words are not looked for (decontaminate.minWords): 1",
    ]);
  });
});

describe("mistakes", () => {
  const complaint = (yaml: string): string => {
    writeFileSync(join(dir, "bad.yaml"), yaml);
    const r = spawnSync(process.execPath, [program, "corpus", "build", "bad.yaml", "--out", "bad"], {
      cwd: dir,
      encoding: "utf8",
    });
    expect(r.stderr).not.toMatch(/\n\s+at .*:\d+:\d+/);
    expect(r.status).toBe(2);
    return r.stderr;
  };
  it("are told with the key, and what there is instead", () => {
    expect(complaint("sources: []")).toMatch(/sources/);
    expect(complaint("sources: [{ name: a, files: [none.jsonl] }]")).toMatch(
      /none.jsonl does not exist. It is named under sources.a.files/,
    );
    expect(
      complaint("sources: [{ name: a, files: [in/books.jsonl] }]\nheuristics: { thresholds: { gopher.minWord: 3 } }"),
    ).toContain(
      'bad.yaml:2:29: there is no key "heuristics.thresholds.gopher.minWord". Did you mean "gopher.minWords"?',
    );
    expect(
      complaint('sources: [{ name: a, files: [in/books.jsonl] }]\ngarbled:\n  garbled.maxControl: "0.5"'),
    ).toContain('bad.yaml:3:3: garbled.garbled.maxControl is "0.5"; it must be a number.');
    expect(complaint("sources: [{ name: a, files: [in/books.jsonl] }, { name: a, files: [in/books.jsonl] }]")).toMatch(
      /two sources have the name "a"/,
    );
    expect(complaint("sources: [{ name: a, files: [in/books.jsonl] }]\ndedup: {}")).toMatch(/Did you mean|Known here/);
    expect(complaint("sources: [{ name: a, files: [in/books.jsonl] }]\nurl: { blocklists: [in/pages] }")).toMatch(
      /layout of UT1/,
    );
  });
  it("tells which rule kept nothing; the build can be asked what other thresholds would keep", async () => {
    writeFileSync(
      join(dir, "none.yaml"),
      "sources: [{ name: a, files: in/books.jsonl }]\ntokenizer: { vocabSize: 300 }\nheuristics: { presets: [gopher] }\n",
    );
    const r = spawnSync(
      process.execPath,
      [program, "corpus", "build", "none.yaml", "--out", "none", "--set", "heuristics.thresholds.gopher.minWords=9999"],
      { cwd: dir, encoding: "utf8" },
    );
    expect(r.stderr).toMatch(/gopher.minWords +-3/);
    expect(r.stderr).toMatch(/error: none: nothing is kept: gopher.minWords \(heuristics\) took 3 of its 3 documents/);
    expect(r.status).toBe(1);
    expect((await whatIf(join(dir, "none"), ["gopher.minWords=5"])).kept).toMatchObject({ before: 0, after: 3 });
  });
  it("a language that cannot be told, and a recipe of stages, are refused", () => {
    const books = "sources: [{ name: a, files: [in/books.jsonl] }]";
    expect(complaint(`${books}\nlanguage: { keep: [en, xx] }`)).toMatch(
      /bad.yaml:2:13: language.keep.1 is "xx"; it must be a code that lid.176 knows/,
    );
    expect(complaint("stages: []")).toMatch(/is a recipe of stages, and not of a corpus: lyceum run/);
    expect(complaint("data: { train: a.txt }")).toMatch(/holds the settings of a stage/);
  });
  it("puts documents without an id on the same side wherever they lie, and calls them by their place", () => {
    const build = (folder: string): string => {
      cpSync(join(dir, "in/pages"), join(dir, folder), { recursive: true });
      writeFileSync(
        join(dir, `${folder}.yaml`),
        `sources: [{ name: web, files: [${folder}] }]\nsplit: { validation: 0.4 }\ntokenizer: { vocabSize: 300 }\n`,
      );
      const r = spawnSync(process.execPath, [program, "corpus", "build", `${folder}.yaml`, "--out", `of-${folder}`], {
        cwd: dir,
        encoding: "utf8",
      });
      expect(r.status, r.stderr).toBe(0);
      return join(dir, `of-${folder}`);
    };
    const [one, two] = [build("first"), build("second")];
    for (const side of ["train", "validation"]) {
      const tokens = (out: string): Buffer => readFileSync(join(out, `shards/${side}/tokens.bin`));
      expect(tokens(two).length).toBeGreaterThan(0);
      expect(tokens(two).equals(tokens(one))).toBe(true);
    }
    expect(why(two, "web/second/7.html").id).toBe("web/second/7.html");
  });
  it("an unfinished build is no answer", () => {
    expect(() => why(join(dir, "in"), "x")).toThrow(/is no corpus build/);
  });
});

describe("run again", () => {
  const rows = (name: string, ...texts: string[]): string => {
    writeFileSync(join(dir, name), texts.map((text, i) => `${JSON.stringify({ id: `${name}${i}`, text })}\n`).join(""));
    return join(dir, name);
  };
  const told: string[] = [];
  const telling = { note: (t: string) => told.push(t), status: (t: string) => told.push(t), end() {} };
  const again = async (out: string, recipe: object): Promise<BuildSummary> => {
    told.length = 0;
    return build(recipeSchema.parse(recipe), join(dir, out), 1, telling);
  };

  it("reads nothing anew for a file that it only lists", () => {
    mkdirSync(join(dir, "logged"));
    rows("logged/a.jsonl", "one");
    const keyOf = (log: string): string => {
      writeFileSync(join(dir, "logged/crawl.log"), log);
      return planBuild(recipeSchema.parse({ sources: [{ name: "a", files: [join(dir, "logged")] }] })).sources[0]
        .readKey;
    };
    expect(keyOf("begun")).toBe(keyOf("begun, and gone on"));
  });
  it("takes the documents of a text file one by one, also where the file is larger than a record may be", async () => {
    const stories = Array.from({ length: 40 }, (_, i) => prose(3000 + i, 80));
    const file = join(dir, "stories.txt");
    writeFileSync(file, [...stories, stories[7]].map((story) => `${story}\n<|endoftext|>\n`).join(""));
    const { stages } = await again("stories", {
      sources: [{ name: "tales", files: [file] }],
      limits: { maxRecordBytes: 4000 },
      unit: { records: 6 },
      deduplicate: {},
    });
    expect(statSync(file).size).toBeGreaterThan(4000);
    const by = Object.fromEntries(stages.map((s) => [s.stage, s]));
    expect(by.read).toMatchObject({ in: 41, kept: 41, failed: 0 });
    expect(by["exact-duplicates"].dropped).toBe(1);
    expect(readdirSync(join(dir, "stories/documents"))).toHaveLength(7);
    const line = stories[0].split("\n").length + 2;
    expect(why(join(dir, "stories"), `tales/stories.txt:${line}`).id).toBe(`tales/stories.txt:${line}`);
  });
  it("loads evaluation sets only when there is something to do", async () => {
    const recipe = {
      sources: [{ name: "a", files: [rows("plain.jsonl", prose(1, 100))] }],
      decontaminate: { files: [rows("sets.jsonl", prose(2, 30), "too short")] },
    };
    await again("evaluated", recipe);
    expect(told.join()).toContain("are not looked for");
    await again("evaluated", recipe);
    expect(told.join()).not.toContain("are not looked for");
  });
  it("tokenizes nothing anew for another chat template, and copies that; with nothing kept no tokenizer stays", async () => {
    const sources = [{ name: "a", files: [rows("some.jsonl", prose(3, 100), prose(4, 100))] }];
    await again("trained", { sources, tokenizer: { vocabSize: 300 } });
    cpSync(join(dir, "trained/tokenizer"), join(dir, "named"), { recursive: true });
    await again("reused", { sources, tokenizer: join(dir, "named") });
    expect(told).toContain("tokenizing");
    writeFileSync(join(dir, "named/chat_template.jinja"), "{{ another }}");
    await again("reused", { sources, tokenizer: join(dir, "named") });
    expect(told).not.toContain("tokenizing");
    expect(readFileSync(join(dir, "reused/tokenizer/tokenizer_config.json"), "utf8")).toContain("{{ another }}");
    expect((await again("trained", { sources, tokenizer: { vocabSize: 300 }, minCharacters: 1e6 })).finished.kept).toBe(
      0,
    );
    expect(readdirSync(join(dir, "trained"))).not.toContain("tokenizer");
    // Its own tokenizer, named: it is not taken away before it is read.
    await again("reused", { sources, tokenizer: join(dir, "reused/tokenizer"), minCharacters: 2 });
    expect(readdirSync(join(dir, "reused"))).toContain("tokenizer");
  });
  it("finds the twin of another data set's document in which an evaluation set stands", async () => {
    const text = prose(5, 300);
    const set = prose(6, 15);
    const { duplicates } = await again("twins", {
      sources: [{ name: "a", files: [rows("own.jsonl", text)] }],
      deduplicate: { against: [rows("theirs.jsonl", `${text} ${set}`)] },
      decontaminate: { files: [rows("set.jsonl", set)] },
    });
    expect(duplicates.near).toBe(1);
  });
});
