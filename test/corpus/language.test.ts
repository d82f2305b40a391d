import { describe, expect, it } from "vitest";
import { loadIdentifier } from "../../src/corpus/language.js";
import { scriptOf } from "../../src/corpus/script.js";

describe("identify", () => {
  it.each([
    ["en", "The cat sat on the mat, and nobody was surprised about it at all."],
    ["en", "HELLO, THIS IS A TEXT IN CAPITAL LETTERS ABOUT THE WEATHER TODAY"],
    ["de", "DIES IST EIN TEXT IN GROSSBUCHSTABEN UEBER DAS WETTER"],
    ["zh", "今天天气很好，我们去公园散步。"],
    ["zh", "今天天氣很好，我們去公園散步。"],
    ["zh", "人人生而自由，在尊嚴和權利上一律平等。"],
    ["ja", "東京都の人口は約千四百万人です。"],
    ["ko", "모든 인간은 태어날 때부터 자유로우며"],
    ["lo", "ມະນຸດທຸກຄົນເກີດມາ"],
    ["am", "የሰው ልጅ ሁሉ ሲወለድ ነጻ"],
    ["th", "มนุษย์ทั้งหลายเกิดมามีอิสระ"],
    ["el", "Όλοι οι άνθρωποι γεννιούνται"],
  ])("%s: %s", async (language, text) => {
    const found = (await loadIdentifier()).identify(text);
    expect(found.language).toBe(language);
    expect(found.score).toBeGreaterThan(0.5);
  });

  it("says und where there is no letter", async () => {
    for (const text of ["", "12:30 !!! 3.14", "\0\0"])
      expect((await loadIdentifier()).identify(text)).toEqual({ language: "und", score: 0 });
  });
});

describe("scriptOf", () => {
  it("tells Japanese from Chinese by kana, and leaves a word of two characters to the model", () => {
    expect(scriptOf("これは本です")?.usual).toBe("ja");
    expect(scriptOf("人人生而自由")?.fits("ja")).toBe(false);
    expect(scriptOf("漢字")?.fits("ja")).toBe(true);
    expect(scriptOf("Hello")?.fits("lo")).toBe(false);
    expect(scriptOf("Hello")?.fits("sr")).toBe(true);
    expect(scriptOf("123")).toBeUndefined();
  });
});
