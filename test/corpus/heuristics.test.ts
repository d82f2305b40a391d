/** The presets: thresholds as published, rules on texts whose values can be counted by hand, n-grams against a plain reference. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { applySpans } from "../../src/corpus/document.js";
import {
  evaluateHeuristics,
  type HeuristicRules,
  judgeSignals,
  PRESETS,
  type PresetName,
} from "../../src/corpus/heuristics/index.js";
import { countSentences, splitLines, splitWords, wordAt } from "../../src/corpus/words.js";

const run = (text: string, preset: PresetName, thresholds: HeuristicRules["thresholds"] = {}, language = "en") =>
  evaluateHeuristics(text, language, { presets: [preset], thresholds });
const dropped = (text: string, preset: PresetName, thresholds = {}, language = "en"): string[] =>
  run(text, preset, thresholds, language)
    .findings.filter((f) => f.verdict === "drop")
    .map((f) => f.rule);

describe("published thresholds", () => {
  // Source: datatrove, src/datatrove/pipeline/filters/{gopher_quality,gopher_repetition,c4,fineweb_quality}_filter*.py, the defaults of the
  // constructors; SlimPajama: the dataset's card; zh: huggingface/fineweb-2 configs/cmn_Hani.yml and arXiv 2311.01149.
  const published: Record<PresetName, Record<string, number>> = {
    gopher: {
      minWords: 50,
      maxWords: 100000,
      minMeanWordLength: 3,
      maxMeanWordLength: 10,
      maxHashRatio: 0.1,
      maxEllipsisRatio: 0.1,
      maxBulletLines: 0.9,
      maxEllipsisLines: 0.3,
      minAlphabeticWords: 0.8,
      minStopWords: 2,
      maxDuplicateLines: 0.3,
      maxDuplicateParagraphs: 0.3,
      maxDuplicateLineChars: 0.2,
      maxDuplicateParagraphChars: 0.2,
      maxTop2GramChars: 0.2,
      maxTop3GramChars: 0.18,
      maxTop4GramChars: 0.16,
      maxDuplicate5GramChars: 0.15,
      maxDuplicate6GramChars: 0.14,
      maxDuplicate7GramChars: 0.13,
      maxDuplicate8GramChars: 0.12,
      maxDuplicate9GramChars: 0.11,
      maxDuplicate10GramChars: 0.1,
    },
    c4: {
      maxWordLength: 1000,
      lineCitations: 0,
      lineTerminalMarks: 0,
      minWordsPerLine: 3,
      lineJavascript: 0,
      linePolicy: 0,
      minSentences: 5,
      maxLoremIpsum: 0,
      maxCurlyBracket: 0,
    },
    fineweb: {
      minLines: 1,
      minPunctuatedLines: 0.12,
      maxShortLines: 0.67,
      maxDuplicateLineChars: 0.01,
      maxNewLinesPerWord: 0.3,
    },
    slimpajama: { minCharacters: 200 },
    zh: {
      minCharacters: 200,
      maxCharacters: 200000,
      minHanFraction: 0.3,
      minMeanLineLength: 10,
      minPunctuatedLines: 0.106,
      minStopWords: 2,
      maxHashRatio: 0.1,
      maxEllipsisRatio: 0.1,
      maxBulletLines: 0.9,
      maxEllipsisLines: 0.3,
      maxDuplicateLines: 0.287,
      maxDuplicateLineChars: 0.2,
      maxTop4GramChars: 0.256,
      maxTop6GramChars: 0.201,
      maxTop8GramChars: 0.171,
      maxDuplicate10GramChars: 0.198,
      maxDuplicate12GramChars: 0.182,
      maxDuplicate13GramChars: 0.5,
      maxDuplicate14GramChars: 0.167,
      maxDuplicate16GramChars: 0.154,
      maxDuplicate18GramChars: 0.14,
      maxDuplicate20GramChars: 0.127,
    },
  };
  for (const [preset, thresholds] of Object.entries(published))
    it(preset, () => {
      const own = Object.fromEntries(
        PRESETS[preset as PresetName].map((r) => [r.name.slice(preset.length + 1), r.threshold]),
      );
      expect(own).toEqual(thresholds);
    });
});

describe("gopher", () => {
  const prose =
    "Nobody knew that the old lighthouse would be of use to anybody, and yet people came with lamps and bread to sit in its shade. " +
    "Winter storms have taken four roofs from this village since spring; carpenters shook their heads while children counted broken tiles. " +
    "Then one morning a ship stood on the horizon, motionless, waiting for somebody who never came down from those hills.";

  it("passes prose, and records every rule all the same", () => {
    const { findings } = run(prose, "gopher");
    expect(findings.filter((f) => f.verdict !== "pass")).toEqual([]);
    expect(findings.map((f) => f.rule)).toEqual(PRESETS.gopher.map((r) => r.name));
  });

  it("names each rule that a text breaks", () => {
    expect(dropped("I am too small", "gopher")).toContain("gopher.minWords");
    expect(dropped("I am ".repeat(20), "gopher")).toContain("gopher.minMeanWordLength");
    expect(dropped("interconnection ".repeat(50), "gopher")).toContain("gopher.maxMeanWordLength");
    expect(dropped("# comment ".repeat(20), "gopher")).toContain("gopher.maxHashRatio");
    expect(dropped("... comment ".repeat(20), "gopher")).toContain("gopher.maxEllipsisRatio");
    expect(dropped("• comment\n".repeat(20), "gopher")).toContain("gopher.maxBulletLines");
    expect(dropped("- comment\n".repeat(20), "gopher")).toContain("gopher.maxBulletLines");
    expect(dropped("I am one that tells you...\n".repeat(20), "gopher")).toContain("gopher.maxEllipsisLines");
    expect(dropped("the 1 2 3 4 5 6 7 8 9 of 11", "gopher")).toContain("gopher.minAlphabeticWords");
    expect(dropped("winter storms took roofs", "gopher")).toContain("gopher.minStopWords");
    expect(dropped("Wise words.\n\nMore words.\n\nWise words.", "gopher")).toContain("gopher.maxDuplicateParagraphs");
  });

  it("counts as can be counted by hand", () => {
    const { signals } = run("a bb ccc.\n\na bb ccc.\n\n# x", "gopher");
    expect(signals["gopher.words"]).toBe(7);
    expect(signals["gopher.meanWordLength"]).toBeCloseTo((1 + 2 + 3 + 1 + 2 + 3 + 1) / 7, 12);
    expect(signals["gopher.hashRatio"]).toBeCloseTo(1 / 10, 12);
    expect(signals["gopher.alphabeticWords"]).toBeCloseTo(7 / 10, 12);
    expect(signals["gopher.duplicateLines"]).toBeCloseTo(1 / 3, 12);
    expect(signals["gopher.duplicateLineChars"]).toBeCloseTo(9 / 25, 12);
    // "a bb" comes twice: 4 characters twice of 25.
    expect(signals["gopher.top2GramChars"]).toBeCloseTo(8 / 25, 12);
  });

  it("does not judge stop words of a language without a list", () => {
    const finding = run(prose, "gopher", {}, "de").findings.find((f) => f.rule === "gopher.minStopWords");
    expect(finding).toMatchObject({ verdict: "pass", value: "none" });
  });

  it("measures n-grams as the plain reference does", () => {
    const reference = (words: string[], chars: number) => {
      const out: Record<string, number> = {};
      for (let n = 2; n <= 4; n++) {
        const counts = new Map<string, number>();
        for (let i = 0; i + n <= words.length; i++) {
          const gram = words.slice(i, i + n).join(" ");
          counts.set(gram, (counts.get(gram) ?? 0) + 1);
        }
        let top: [string, number] = ["", 0];
        for (const entry of counts) if (entry[1] > top[1]) top = entry;
        out[`gopher.top${n}GramChars`] = chars ? (top[0].length * top[1]) / chars : 0;
      }
      for (let n = 5; n <= 10; n++) {
        const seen = new Set<string>();
        let repeated = 0;
        for (let i = 0; i + n <= words.length; ) {
          const gram = words.slice(i, i + n).join("\0");
          if (seen.has(gram)) {
            repeated += words.slice(i, i + n).join("").length;
            i += n;
          } else {
            seen.add(gram);
            i++;
          }
        }
        out[`gopher.duplicate${n}GramChars`] = chars ? repeated / chars : 0;
      }
      return out;
    };
    fc.assert(
      fc.property(fc.array(fc.constantFrom("a", "bb", "ccc", "d,", "...", "e"), { maxLength: 80 }), (parts) => {
        const text = parts.join(" ");
        const split = splitWords(text);
        const words = Array.from({ length: split.count }, (_, i) => wordAt(split, i));
        expect(run(text, "gopher").signals).toMatchObject(reference(words, text.length));
      }),
      { numRuns: 200 },
    );
  });
});

describe("c4", () => {
  const page = [
    "  Home | About | Contact",
    "The first sentence stands here. The second sentence follows it.",
    "Please enable Javascript to read this page.",
    "Too short.",
    "A claim was made[12] by somebody in the year 1999. It was wrong.",
    "Read our privacy policy before you go on.",
    "This line trails off into nothing...",
    "  Here is the last line, with spaces around it.  ",
    "Share this",
  ].join("\n");

  it("cuts lines as spans and leaves what datatrove would write", () => {
    const { spans, findings, signals } = run(page, "c4");
    expect(applySpans(page, spans)).toBe(
      "The first sentence stands here. The second sentence follows it.\nA claim was made by somebody in the year 1999. It was wrong.\nHere is the last line, with spaces around it.",
    );
    expect(signals["c4.sentences"]).toBe(5);
    expect(findings.filter((f) => f.verdict === "drop")).toEqual([]);
    const edits = Object.fromEntries(findings.filter((f) => f.verdict === "edit").map((f) => [f.rule, f.value]));
    expect(edits).toEqual({
      "c4.lineCitations": 1,
      "c4.lineTerminalMarks": 3,
      "c4.minWordsPerLine": 1,
      "c4.lineJavascript": 1,
      "c4.linePolicy": 1,
    });
  });

  it("drops pages with few sentences, lorem ipsum or a curly bracket, which count only in lines that stay", () => {
    expect(dropped("One sentence is not enough here.", "c4")).toEqual(["c4.minSentences"]);
    const five = "This is a sentence. This is a sentence. This is a sentence. This is a sentence. This is a sentence.";
    expect(dropped(five, "c4")).toEqual([]);
    expect(dropped(`${five}\nLorem ipsum dolor sit amet.`, "c4")).toEqual(["c4.maxLoremIpsum"]);
    expect(dropped(`${five}\nfunction main() { return. }.`, "c4")).toEqual(["c4.maxCurlyBracket"]);
    expect(dropped(`${five}\nfunction main() {`, "c4")).toEqual([]);
    expect(dropped("One sentence is not enough here.", "c4", { "c4.minSentences": 1 })).toEqual([]);
    expect(dropped("One sentence is not enough here.", "c4", { "c4.minSentences": null })).toEqual([]);
  });

  it("cuts a line with a word of more than 1000 characters", () => {
    const text = `${"x".repeat(1001)} and more.\nA short line that stays.`;
    expect(applySpans(text, run(text, "c4").spans)).toBe("A short line that stays.");
  });
});

describe("fineweb and slimpajama", () => {
  it("fineweb", () => {
    expect(dropped("", "fineweb")).toContain("fineweb.minLines");
    const lines = Array.from({ length: 10 }, (_, i) => `number ${i} of many lines that end without any mark at all`);
    expect(dropped(lines.join("\n"), "fineweb")).toEqual(["fineweb.minPunctuatedLines"]);
    lines[3] += "。";
    expect(dropped(lines.join("\n"), "fineweb")).toEqual(["fineweb.minPunctuatedLines"]);
    lines[4] += "”";
    expect(dropped(lines.join("\n"), "fineweb")).toEqual([]);
    expect(dropped("It.\nWas!\nWhat?\nNo.", "fineweb")).toEqual([
      "fineweb.maxShortLines",
      "fineweb.maxNewLinesPerWord",
    ]);
    const twice = "This whole line is here two times, which is one time too many.";
    expect(dropped(`${twice}\n${twice}`, "fineweb")).toEqual(["fineweb.maxDuplicateLineChars"]);
  });

  it("slimpajama counts characters without punctuation and runs of spaces", () => {
    expect(run(" a,b \n\n\t c! ", "slimpajama").signals["slimpajama.characters"]).toBe(4);
    expect(dropped("x".repeat(199), "slimpajama")).toEqual(["slimpajama.minCharacters"]);
    expect(dropped("x".repeat(200), "slimpajama")).toEqual([]);
  });
});

describe("zh", () => {
  const story =
    "清晨，渔村里的人已经起来了。老陈坐在船头，慢慢地修补昨夜被礁石划破的渔网。他的孙子在沙滩上捡贝壳，不时抬头看看远处的海面。\n" +
    "“爷爷，今天还会起风吗？”孩子问。老人没有马上回答，他望着天边那一道浅灰色的云，想起许多年前同样的早晨。\n" +
    "那时候，村里只有七条船，每条船都有自己的名字。如今年轻人大多去了城里，码头上停着的多是游客的快艇。可是每到鱼汛，仍有人回来，" +
    "仍有人在灯下唱那些没有写进书里的歌。孙子把一只完整的海螺放进爷爷手里，海螺里仿佛还藏着昨夜的潮声，轻轻地响着，一直响到太阳升起。";
  it("passes a story, whose characters it counts", () => {
    const { findings, signals } = run(story, "zh", {}, "zh");
    expect(findings.filter((f) => f.verdict === "drop")).toEqual([]);
    expect(signals["zh.characters"]).toBe([...story.replace(/\s/g, "")].length);
  });
  it("drops menus, English and repetition", () => {
    expect(dropped("首页\n新闻\n体育\n财经".repeat(40), "zh", {}, "zh")).toEqual(
      expect.arrayContaining(["zh.minMeanLineLength", "zh.minPunctuatedLines", "zh.minStopWords"]),
    );
    expect(dropped("This is English text. ".repeat(30), "zh")).toContain("zh.minHanFraction");
    expect(dropped("欢迎光临本店全场商品打五折起。".repeat(30), "zh", {}, "zh")).toEqual(
      expect.arrayContaining(["zh.maxDuplicate10GramChars", "zh.maxDuplicate13GramChars"]),
    );
  });
});

describe("all presets", () => {
  const all: HeuristicRules = { presets: ["gopher", "c4", "fineweb", "slimpajama", "zh"] };
  const hostile: [string, string][] = [
    ["empty", ""],
    ["white space only", " \n\t\u3000\n "],
    ["NUL", "\0".repeat(100)],
    ["lone surrogates", `${"\ud800".repeat(50)} a \udc00\udc00`],
    ["one long line", "word ".repeat(200_000)],
    ["one long word", "x".repeat(1_000_000)],
    ["emoji", "😀😃😄".repeat(1000)],
  ];
  for (const [name, text] of hostile)
    it(`judges hostile text: ${name}`, () => {
      const { signals, findings } = evaluateHeuristics(text, "en", all);
      for (const [key, value] of Object.entries(signals)) expect(Number.isFinite(value), key).toBe(true);
      expect(findings.some((f) => f.verdict === "drop")).toBe(true);
    });

  it("takes a text of more lines than a call has arguments", () => {
    expect(run("ab\n".repeat(200_000), "c4").spans).toHaveLength(200_000);
  });
  it("judges the same from the signals alone", () => {
    const text = "Some words that have been written.\n".repeat(4);
    const thresholds = { "gopher.minWords": 5, "fineweb.maxDuplicateLineChars": 0.9, "zh.minHanFraction": null };
    const rules = { ...all, thresholds };
    const { signals, findings } = evaluateHeuristics(text, "en", rules);
    const again = judgeSignals(JSON.parse(JSON.stringify(signals)), rules);
    const withoutLines = findings.filter((f) => again.some((a) => a.rule === f.rule));
    expect(again).toEqual(withoutLines);
    expect(again.length).toBeGreaterThan(40);
  });
});

describe("words", () => {
  it("splits words, symbols and scripts without spaces", () => {
    const split = splitWords("Don't pay $3.14... now 你好 don’t-stop");
    expect(Array.from({ length: split.count }, (_, i) => wordAt(split, i))).toEqual([
      "Don't",
      "pay",
      "$",
      "3.14",
      "...",
      "now",
      "你",
      "好",
      "don’t",
      "-",
      "stop",
    ]);
  });
  it("splits lines as Python does", () => {
    expect(splitLines("a\r\nb\n\nc\u2028d\n").map((l) => [l.start, l.end])).toEqual([
      [0, 1],
      [3, 4],
      [5, 5],
      [6, 7],
      [8, 9],
    ]);
    expect(splitLines("")).toEqual([]);
  });
  it("counts sentences", () => {
    expect(countSentences("Dr. Smith came at 3.15 p.m. and left. Was it he? Yes!")).toBe(3);
    expect(countSentences("他来了。她走了！真的吗？")).toBe(3);
    expect(countSentences("no mark at all")).toBe(1);
    expect(countSentences("  ")).toBe(0);
  });
});
