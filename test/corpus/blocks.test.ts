import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { diffLines } from "../../src/corpus/diff.js";
import { applySpans, type Span, spanMap } from "../../src/corpus/document.js";
import { checkConservation, nextStage } from "../../src/corpus/funnel.js";
import { hash53, uniform } from "../../src/corpus/hash.js";
import { type JudgeContext, judge } from "../../src/corpus/judge.js";
import { loadIdentifier } from "../../src/corpus/language.js";
import { bandsFor } from "../../src/corpus/minhash.js";
import { recipeSchema } from "../../src/corpus/recipe.js";
import { loadBlockLists, UrlFilter, type UrlSettings } from "../../src/corpus/url.js";

describe("UrlFilter", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-url-"));
  afterAll(() => rmSync(dir, { recursive: true }));
  for (const [category, file, lines] of [
    ["adult", "domains", "bad.co.uk\nwww.worse.example\n# a comment\nmünchen.example\nhalf.example/path\n"],
    ["adult", "urls", "shared.example/~someone/pics\ngröße.example/maß\nmixed.example/Ä\n"],
    ["ads", "domains", "Ads.Example\n"],
  ] as const) {
    mkdirSync(join(dir, category), { recursive: true });
    writeFileSync(join(dir, category, file), lines);
  }
  const none: UrlSettings = { blocklists: [dir], categories: [], words: [], softWords: [], allow: [] };
  const dropped = (settings: Partial<UrlSettings>, url: string): string[] => {
    const all = { ...none, ...settings };
    return new UrlFilter(all, loadBlockLists(all))
      .judge(url)
      .filter((f) => f.verdict === "drop")
      .map((f) => `${f.rule}: ${f.detail ?? f.value}`);
  };
  it("blocks domains with everything below them, by the registrable domain, in any case", () => {
    expect(dropped({}, "https://bad.co.uk/page")).toEqual(['url.domain: on the list "adult"']);
    expect(dropped({}, "http://a.b.BAD.co.uk:8080/")).toEqual(['url.domain: on the list "adult"']);
    expect(dropped({}, "https://other.co.uk/")).toEqual([]);
    expect(dropped({}, "https://notbad.co.uk/")).toEqual([]);
    expect(dropped({}, "https://worse.example/")).toHaveLength(1);
    expect(dropped({ categories: ["ads"] }, "https://bad.co.uk/")).toEqual([]);
    expect(dropped({ categories: ["ads"] }, "https://x.ads.example/")).toHaveLength(1);
    expect(dropped({ allow: ["bad.co.uk"] }, "https://www.bad.co.uk/")).toEqual([]);
    expect(dropped({ allow: ["www.a.bad.co.uk"] }, "https://www.a.bad.co.uk/")).toEqual([]);
    expect(dropped({ allow: ["www.a.bad.co.uk"] }, "https://a.bad.co.uk/")).toHaveLength(1);
  });
  it("blocks addresses by whole path segments, and words", () => {
    expect(dropped({}, "https://www.shared.example/~someone/pics/1.html?x")).toEqual([
      'url.address: on the list "adult"',
    ]);
    expect(dropped({}, "https://shared.example/~someone/picsel")).toEqual([]);
    expect(dropped({ words: ["casino"] }, "https://fine.example/best-CASINO-2024")).toEqual(["url.words: casino"]);
    expect(dropped({ words: ["casino"] }, "https://fine.example/occasinos")).toEqual([]);
    expect(dropped({ softWords: ["free", "win"] }, "https://fine.example/win")).toEqual([]);
    expect(dropped({ softWords: ["free", "win"] }, "https://fine.example/win/free%20")).toEqual([
      "url.softWords: win free",
    ]);
    expect(dropped({ words: ["x"] }, "http://%%%bad url")).toEqual([]);
  });
  it("is not passed by another spelling of an address, and reads lists in UTF-8", () => {
    for (const url of [
      "http://shared.example:80/~someone/pics/1",
      "HTTP://someone:secret@shared.example/~someone/pics",
      "shared.example/a/../~someone/pics",
      `https://shared.example/~someone/pics/${"a/".repeat(100)}`,
      "https://shared.example./~someone/pics",
      "http://größe.example/maß/1",
      "http://xn--gre-6ka8i.example/ma%C3%9F",
      "http://mixed.example/Ä",
      "http://mixed.example/ä/1",
    ])
      expect(dropped({}, url), url).toHaveLength(1);
    expect(dropped({}, "http://bad.co.uk./")).toHaveLength(1);
    expect(dropped({}, "http://a.münchen.example/")).toHaveLength(1);
    expect(dropped({}, "http://shared.example:8080/~someone/pics")).toEqual([]);
    expect(dropped({}, "http://half.example/other")).toEqual([]);
    expect(dropped({ allow: ["münchen.example"] }, "http://xn--mnchen-3ya.example/")).toEqual([]);
    const began = performance.now();
    dropped({}, `http://shared.example/${"/".repeat(200_000)}x`);
    expect(performance.now() - began).toBeLessThan(2000);
  });
  it("says what is wrong with a list", () => {
    expect(() => loadBlockLists({ ...none, categories: ["malware"] })).toThrow(
      /no block list has the category malware/,
    );
    expect(() => loadBlockLists({ ...none, blocklists: [join(dir, "nothing")] })).toThrow(/is not a folder/);
  });
});

describe("spans", () => {
  const spans = fc.array(
    fc.record({
      start: fc.nat(40),
      length: fc.nat(10),
      replacement: fc.option(fc.string({ maxLength: 3 }), { nil: undefined }),
    }),
    { maxLength: 6 },
  );
  const text = "The quick brown fox jumps over the lazy dog, twice.";
  const made = (list: { start: number; length: number; replacement: string | undefined }[]): Span[] =>
    list.map(({ start, length, replacement }) => ({
      start,
      end: start + length,
      reason: "test",
      ...(replacement === undefined ? {} : { replacement }),
    }));
  it("cuts the same characters whatever their order and overlaps", () => {
    fc.assert(
      fc.property(spans, (list) => {
        const cuts = made(list.map((s) => ({ ...s, replacement: undefined })));
        const expected = [...text].filter((_, i) => !cuts.some((c) => i >= c.start && i < c.end)).join("");
        expect(applySpans(text, cuts)).toBe(expected);
        expect(applySpans(text, [...cuts].reverse())).toBe(expected);
      }),
    );
  });
  it("finds the place of what is left in the whole text", () => {
    fc.assert(
      fc.property(spans, fc.nat(60), fc.integer({ min: 1, max: 10 }), (list, from, length) => {
        const cuts = made(list);
        const left = applySpans(text, cuts);
        const start = Math.min(from, left.length - 1);
        const end = Math.min(left.length, start + length);
        if (start < 0 || end <= start) return;
        const map = spanMap(text, cuts);
        const [a, b] = [map.start(start), map.end(end)];
        expect(b).toBeGreaterThanOrEqual(a);
        // Cutting the place in the whole text as well takes exactly this piece out, when it ends inside no replacement.
        if (cuts.every((c) => c.replacement === undefined)) {
          const both = applySpans(text, [...cuts, { start: a, end: b, reason: "piece" }]);
          expect(both).toBe(left.slice(0, start) + left.slice(end));
        }
      }),
    );
  });
});

describe("diffLines", () => {
  it("gives a script that makes the second text from the first", () => {
    const line = fc.constantFrom("a", "b", "c", "d");
    fc.assert(
      fc.property(fc.array(line, { maxLength: 12 }), fc.array(line, { maxLength: 12 }), (first, second) => {
        const changes = diffLines(first.join("\n"), second.join("\n"));
        const from = first.join("\n").split("\n");
        const to: string[] = [];
        let at = 0;
        for (const { kind, text } of changes) {
          if (kind === "=") for (let n = Number(text); n > 0; n--) to.push(from[at++]);
          else if (kind === "-") expect(from[at++]).toBe(text);
          else to.push(text);
        }
        expect(at).toBe(from.length);
        expect(to).toEqual(second.join("\n").split("\n"));
      }),
    );
  });
});

describe("funnel", () => {
  const read = { stage: "read", in: 10, kept: 9, dropped: 0, failed: 1, bytesDropped: 0, rules: [] };
  it("refuses numbers that do not add up", () => {
    const next = nextStage([read], "url", [{ rule: "url.words", first: 2, any: 3, bytes: 5 }]);
    expect(next).toMatchObject({ in: 9, kept: 7, dropped: 2 });
    expect(() => checkConservation([read, next])).not.toThrow();
    expect(() => checkConservation([{ ...read, kept: 8 }])).toThrow(/lost documents: 10 came in/);
    expect(() => checkConservation([read, { ...next, in: 8, kept: 6 }])).toThrow(
      /between "read" and "url" documents were lost/,
    );
  });
});

describe("hash, bands, language", () => {
  it("draws evenly and the same for the same id", () => {
    const draws = Array.from({ length: 4000 }, (_, i) => uniform(1, "mix", `id${i}`));
    expect(draws.reduce((a, b) => a + b) / 4000).toBeCloseTo(0.5, 1);
    expect(uniform(1, "mix", "x")).toBe(uniform(1, "mix", "x"));
    expect(uniform(2, "mix", "x")).not.toBe(uniform(1, "mix", "x"));
    expect(new Set(Array.from({ length: 50_000 }, (_, i) => hash53(`site${i}.example`))).size).toBe(50_000);
  });
  it("bands of the dedup command overlook a pair at the threshold once in ten thousand at most", () => {
    for (const t of [0.5, 0.7, 0.8, 0.9, 0.99]) {
      const { bands, rows } = bandsFor(t);
      expect(bands * rows).toBeLessThanOrEqual(128);
      expect((1 - t ** rows) ** bands).toBeLessThanOrEqual(1e-4);
    }
  });
  it("tells languages apart, and says und where there are no letters", async () => {
    const { identify } = await loadIdentifier();
    const samples: Record<string, string> = {
      en: "The declaration was read aloud in the main square of the town.",
      de: "Die Erklärung wurde auf dem Marktplatz der Stadt laut verlesen.",
      fr: "La déclaration a été lue à haute voix sur la place de la ville.",
      zh: "这份宣言在城市的广场上被大声宣读。",
      ja: "この宣言は町の広場で大きな声で読み上げられました。",
      ru: "Декларация была зачитана вслух на главной площади города.",
      ar: "تمت قراءة الإعلان بصوت عال في الساحة الرئيسية للمدينة.",
    };
    for (const [language, sample] of Object.entries(samples)) expect(identify(sample).language).toBe(language);
    expect(identify("123 --- 456")).toEqual({ language: "und", score: 0 });
  });
});

describe("judging a document", () => {
  const context = (recipe: object, more: Partial<JudgeContext> = {}): JudgeContext => ({
    recipe: recipeSchema.parse({ sources: [{ name: "S", files: ["x"] }], ...recipe }),
    identifier: undefined,
    evaluations: undefined,
    classifier: undefined,
    ...more,
  });
  const document = (id: string, text: string, unnamed?: true) => ({
    id,
    text,
    ...(unnamed && { unnamed }),
    source: { file: "x", line: 1 },
    dataset: "S",
    metadata: {},
  });
  it("takes more spans than a call has arguments", () => {
    const { spans } = judge(document("1", "ann@mail.org ".repeat(200_000)), [], false, context({ pii: {} }));
    expect(spans.length).toBe(200_000);
  });
  it("draws by the text where a document has no id of its own, wherever it lies", () => {
    const settings = context({ classifier: { model: "m" } }, { classifier: { score: () => 0.5 } as never });
    const limit = (id: string, unnamed?: true) =>
      judge(document(id, "The same text.", unnamed), [], false, settings).findings[0].threshold;
    expect(limit("S/a.jsonl:1", true)).toBe(limit("S/d.jsonl:1", true));
    expect(limit("a")).not.toBe(limit("d"));
  });
});
