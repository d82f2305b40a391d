/** Decontamination: runs of 13 words against evaluation items, whole short items, cutting as GPT-3 did. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { Decontaminator } from "../../src/corpus/decontaminate.js";
import { applySpans } from "../../src/corpus/document.js";
import { loadEvaluations } from "../../src/corpus/judge.js";
import { recipeSchema } from "../../src/corpus/recipe.js";

const QUESTION =
  "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did Natalia sell altogether?";
const filler = (n: number, tag = "w"): string => Array.from({ length: n }, (_, i) => `${tag}${i}`).join(" ");

function against(options = {}): Decontaminator {
  const d = new Decontaminator(options);
  d.addEvaluation("gsm8k", "train/7", QUESTION);
  d.addEvaluation("short", "1", "the capital of the republic of mali is bamako");
  d.addEvaluation("short", "2", "too short");
  d.addEvaluation("zh", "3", "天地玄黄宇宙洪荒日月盈昃辰宿列张");
  return d;
}

describe("a document", () => {
  it("goes when 13 words of an item stand in it, whatever the case and marks", () => {
    const text = `${filler(50)} — NATALIA sold clips to 48 of her friends in April and then she… ${filler(50)}`;
    const { findings, hits } = against().evaluate(text);
    expect(findings[0]).toMatchObject({ verdict: "drop", value: 1 });
    expect(findings[0].detail).toMatch(/^gsm8k train\/7: "NATALIA sold/);
    expect(text.slice(hits[0].start, hits[0].end)).toBe(
      "NATALIA sold clips to 48 of her friends in April and then she",
    );
  });
  it("stays with 12 words of it", () => {
    const text = "Natalia sold clips to 48 of her friends in April and then he did not";
    expect(against().evaluate(text).findings[0]).toMatchObject({ verdict: "pass", value: 0 });
  });
  it("goes for a short item that stands in it whole", () => {
    expect(against().find("We know: the capital of the Republic of Mali is Bamako.")).toMatchObject([
      { set: "short", item: "1" },
    ]);
    expect(against().find("too short")).toEqual([]);
    expect(against().skipped).toEqual(new Map([["short", 1]]));
  });
  it("is read by characters in Chinese", () => {
    expect(against().find("他说：天地玄黄，宇宙洪荒，日月盈昃，辰。")).toMatchObject([{ set: "zh" }]);
    expect(against().find("天地玄黄，宇宙洪荒，日月盈。")).toEqual([]);
  });
  it("is met in decomposed letters", () => {
    const d = new Decontaminator();
    d.addEvaluation("fr", "1", "L'été dernier, où étiez-vous allés après la fête célébrée à l'école près de l'église");
    const text = "— L'été dernier, où étiez-vous allés après la fête célébrée à l'école près".normalize("NFD");
    const [hit] = d.find(text);
    expect(text.slice(hit.start, hit.end).normalize("NFC")).toMatch(/^L'été .* près$/);
  });
});

describe("cutting", () => {
  it("takes 200 characters around, and short pieces with them", () => {
    const text = `${filler(300, "before")} ${QUESTION} ${filler(300, "after")}`;
    const { findings, spans } = against({ mode: "cut" }).evaluate(text);
    expect(findings[0].verdict).toBe("edit");
    expect(spans).toHaveLength(1);
    const from = text.indexOf("Natalia");
    expect(spans[0]).toMatchObject({ start: from - 200, end: text.indexOf("altogether") + "altogether".length + 200 });
    expect(applySpans(text, spans).length).toBe(text.length - (spans[0].end - spans[0].start));
    expect(against({ mode: "cut" }).evaluate(`Short. ${QUESTION}`).findings[0].verdict).toBe("drop");
  });
  it("drops a document in more than ten pieces", () => {
    const text = Array.from({ length: 12 }, (_, i) => `${filler(200, `p${i}x`)} ${QUESTION}`).join(" ");
    const { findings, spans } = against({ mode: "cut" }).evaluate(text);
    expect(findings[0]).toMatchObject({ verdict: "drop", value: 12 });
    expect(spans).toEqual([]);
  });
});

it("takes hostile text and refuses wrong options", () => {
  for (const text of ["", "\0", "\ud800\udc00", " \n", "x ".repeat(1_000_000)])
    expect(against().evaluate(text).findings[0].verdict).toBe("pass");
  expect(() => new Decontaminator({ n: 1 })).toThrow(/decontaminate\.words/);
  expect(() => new Decontaminator({ minWords: 14 })).toThrow(/minWords/);
  expect(() => new Decontaminator({ mode: "x" as never })).toThrow(/drop or cut/);
});

it("keeps many runs apart", () => {
  const d = new Decontaminator();
  for (let i = 0; i < 2000; i++) d.addEvaluation("set", String(i), filler(30, `q${i}x`));
  expect(d.runs).toBe(2000 * 18);
  expect(d.find(`${filler(20, "q1234x")} ${filler(12, "q7x")}`)).toMatchObject([{ item: "1234" }]);
});

describe("files of evaluation sets", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-evaluations-"));
  afterAll(() => rmSync(dir, { recursive: true }));
  const file = (name: string, data: string | Uint8Array): string => {
    writeFileSync(join(dir, name), data);
    return join(dir, name);
  };
  const load = (...files: string[]) =>
    loadEvaluations(recipeSchema.parse({ sources: [{ name: "S", files: ["x"] }], decontaminate: { files } }));
  const record = `${JSON.stringify({ id: 7, turns: [{ question: QUESTION, answer: "72" }] })}\n`;

  it("are read packed or not, as lines of JSON or of text, and all of a folder", async () => {
    mkdirSync(join(dir, "sets"));
    file("sets/inner.txt", `first line\n${QUESTION}\n`);
    for (const path of [
      file("a.jsonl", record),
      file("a.jsonl.gz", gzipSync(record)),
      file("b.csv", QUESTION),
      join(dir, "sets"),
    ])
      expect((await load(path))!.evaluate(`So: ${QUESTION}`).findings[0]).toMatchObject({ verdict: "drop" });
    expect((await load(join(dir, "sets")))!.find(QUESTION)).toMatchObject([{ set: "inner.txt", item: "2" }]);
    expect((await load(join(dir, "a.jsonl")))!.skipped).toEqual(new Map([["a.jsonl", 1]]));
  });
  it("are refused where they cannot be read, or hold nothing to look for", async () => {
    await expect(load(file("short.jsonl", '{"q":"too short"}\n'))).rejects.toThrow(/short.jsonl: nothing in it can be/);
    await expect(load(file("torn.jsonl.gz", gzipSync(record.repeat(9)).subarray(0, 60)))).rejects.toThrow(
      /torn.jsonl.gz, record 1/,
    );
    await expect(load(file("empty.jsonl", ""))).rejects.toThrow(/the file is empty.*decontaminate\.files/);
    await expect(load(join(dir, "none"))).rejects.toThrow(/none does not exist. It is named under decontaminate.files/);
    mkdirSync(join(dir, "nothing"));
    await expect(load(join(dir, "nothing"))).rejects.toThrow(/nothing: there is no file in this folder/);
  });
  it("may have a record of more strings than a call takes", async () => {
    const many = JSON.stringify([...Array.from({ length: 200_000 }, () => ""), QUESTION]);
    expect((await load(file("many.jsonl", many)))!.runs).toBeGreaterThan(10);
  });
});
