/** fastText models against the original program's predictions; training, the report, saving; Pareto keeping. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { type Example, judgeScore, measure, paretoDraw, QualityClassifier } from "../../src/corpus/classifier.js";
import { loadFastText, predict, saveFastText } from "../../src/corpus/fasttext.js";
import { uniform } from "../../src/corpus/hash.js";

const golden = fileURLToPath(new URL("../golden/fasttext/", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "lyceum-classifier-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("a model of the original fastText", () => {
  const texts = readFileSync(`${golden}texts.txt`, "utf8").trimEnd().split("\n");
  for (const loss of ["softmax", "hs", "ova"])
    it(`predicts as it does: ${loss}`, () => {
      const model = loadFastText(`${golden}${loss}.bin`);
      const expected = readFileSync(`${golden}${loss}.expected`, "utf8").trimEnd().split("\n");
      texts.forEach((text, i) => {
        const fields = expected[i].split(" ");
        const p = predict(model, text);
        for (let k = 0; k < fields.length; k += 2)
          // fastText adds 1e-5 to every factor, prints six digits, and looks the sigmoid of ova up in a table of 512.
          expect(Math.abs(p[model.labels.indexOf(fields[k])] - Number(fields[k + 1]))).toBeLessThan(
            loss === "ova" ? 1e-2 : 1e-4,
          );
      });
    });
  it("is written back as the same bytes", () => {
    for (const loss of ["softmax", "hs", "ova"]) {
      saveFastText(loadFastText(`${golden}${loss}.bin`), join(folder, "again.bin"));
      expect(readFileSync(join(folder, "again.bin")).equals(readFileSync(`${golden}${loss}.bin`))).toBe(true);
    }
  });
  it("needs to be one, whole, with a label that it has", () => {
    const path = join(folder, "bad.bin");
    writeFileSync(path, "not a model");
    expect(() => loadFastText(path)).toThrow(/not a fastText model/);
    const whole = readFileSync(`${golden}hs.bin`);
    for (const bytes of [20, 100, 900, whole.length - 4]) {
      writeFileSync(path, whole.subarray(0, bytes));
      expect(() => loadFastText(path)).toThrow(/ends too early|damaged/);
    }
    expect(() => loadFastText(join(folder, "none.bin"))).toThrow(/cannot be opened/);
    expect(() => QualityClassifier.load(`${golden}hs.bin`)).toThrow(/name the one of good texts/);
    expect(() => QualityClassifier.load(`${golden}hs.bin`, "good")).toThrow(/__label__tiere/);
    expect(QualityClassifier.load(`${golden}hs.bin`, "__label__tiere").score("cat dog")).toBeGreaterThan(0.5);
  });
});

/** Two kinds of text that share most words and differ in how often they use some. */
function examples(count: number): Example[] {
  const common = Array.from({ length: 300 }, (_, i) => `word${i}`);
  const good = ["therefore", "chapter", "theorem", "history", "river", "however"];
  const crawled = ["click", "login", "cart", "sale", "cookies", "share"];
  return Array.from({ length: count }, (_, i) => {
    const isGood = i % 3 === 0;
    const words = Array.from({ length: 60 }, (_, k) => {
      const u = uniform(5, "own", `${i} ${k}`);
      const pick = Math.floor(uniform(6, "pick", `${i} ${k}`) * 1e6);
      const own = uniform(7, "kind", `${i} ${k}`) < 0.8 === isGood ? good : crawled;
      return u < 0.1 ? own[pick % own.length] : common[pick % common.length];
    });
    return { id: `e${i}`, good: isGood, text: `${words.join(" ")}.` };
  });
}

describe("training", () => {
  const set = examples(1500);
  const trained = QualityClassifier.train(set);
  it("tells the kinds apart on held-out texts", () => {
    const report = trained.report!;
    console.log(
      `classifier: held out ${report.heldOut.good} + ${report.heldOut.crawled}, precision ${report.atHalf.precision.toFixed(3)}, recall ${report.atHalf.recall.toFixed(3)}, AUC ${report.auc.toFixed(4)}`,
    );
    expect(report.heldOut.good + report.heldOut.crawled).toBeGreaterThan(100);
    expect(report.auc).toBeGreaterThan(0.95);
    expect(report.atHalf.precision).toBeGreaterThan(0.8);
    expect(report.atHalf.recall).toBeGreaterThan(0.8);
  });
  it("does not depend on the order of reading", () => {
    const again = QualityClassifier.train([...set].reverse());
    expect(Buffer.from(again.model.input.buffer).equals(Buffer.from(trained.model.input.buffer))).toBe(true);
    expect(again.report).toEqual(trained.report);
  });
  it("does not depend on the ids, which may be places of files", () => {
    const again = QualityClassifier.train(set.map((e, i) => ({ ...e, id: `/elsewhere/${1e6 - i}.html` })));
    expect(Buffer.from(again.model.input.buffer).equals(Buffer.from(trained.model.input.buffer))).toBe(true);
  });
  it("saves and loads with the same scores, in a form that is fastText's", () => {
    const path = join(folder, "quality.bin");
    trained.save(path);
    const loaded = QualityClassifier.load(path);
    for (const { text } of set.slice(0, 20)) expect(loaded.score(text)).toBe(trained.score(text));
    expect(loaded.report).toEqual(trained.report);
  });
  it("learns nothing from labels by chance", () => {
    const report = QualityClassifier.train(set.map((e) => ({ ...e, good: uniform(9, "label", e.id) < 0.5 }))).report!;
    expect(Math.abs(report.auc - 0.5)).toBeLessThan(0.15);
  });
  it("counts twins, and leaves out what is called both good and crawled", () => {
    const more: Example[] = [
      ...set,
      { id: "x1", good: set[0].good, text: `${set[0].text}  ` },
      { id: "x2", good: !set[1].good, text: set[1].text },
    ];
    const report = QualityClassifier.train(more, { epochs: 1 }).report!;
    expect([report.duplicates, report.contradictions]).toEqual([1, 1]);
    const sum = report.train.good + report.train.crawled + report.heldOut.good + report.heldOut.crawled;
    expect(sum).toBe(1499);
  });
  it("needs both kinds", () => {
    expect(() => QualityClassifier.train(set.filter((e) => e.good))).toThrow(/no crawled texts/);
    expect(() => QualityClassifier.train([])).toThrow(/It needs more of both kinds/);
  });
  it("scores hostile text", () => {
    for (const text of ["", "\0", "\ud800", " \n", "x".repeat(10_000_000), "a ".repeat(2_000_000)]) {
      const score = trained.score(text);
      expect(score).toBeGreaterThanOrEqual(0);
      expect(score).toBeLessThanOrEqual(1);
    }
  });
});

describe("measures", () => {
  it("are those one counts by hand", () => {
    const m = measure([0.9, 0.8, 0.5, 0.4, 0.1], [true, false, true, true, false]);
    expect(m.atHalf).toEqual({ threshold: 0.5, precision: 2 / 3, recall: 2 / 3, f1: 2 / 3 });
    expect(m.accuracy).toBeCloseTo(3 / 5, 12);
    // Pairs good above crawled: 0.9 > both, 0.5 > 0.1, 0.4 > 0.1: 4 of 6.
    expect(m.auc).toBeCloseTo(4 / 6, 12);
    expect(measure([0.5, 0.5], [true, false]).auc).toBe(0.5);
  });
});

describe("keeping", () => {
  it("draws from Pareto(9) by seed and id", () => {
    const draws = Array.from({ length: 20_000 }, (_, i) => paretoDraw(3, `id${i}`, 9));
    // P(draw > x) = (1 + x)^-9, mean 1/8.
    for (const x of [0.05, 0.2, 0.5]) {
      const p = (1 + x) ** -9;
      const got = draws.filter((d) => d > x).length / draws.length;
      expect(Math.abs(got - p)).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / draws.length));
    }
    expect(paretoDraw(3, "a", 9)).toBe(paretoDraw(3, "a", 9));
    expect(paretoDraw(3, "a", 9)).not.toBe(paretoDraw(4, "a", 9));
    // Documents keep the verdicts that they had.
    expect(paretoDraw(1, "doc1", 9)).toBe(0.02824119390517077);
  });
  it("keeps what the draw allows, or what is above the threshold", () => {
    const limit = 1 - paretoDraw(1, "doc", 9);
    expect(judgeScore(limit + 0.001, "doc").verdict).toBe("pass");
    expect(judgeScore(limit - 0.001, "doc")).toMatchObject({
      verdict: "drop",
      threshold: limit,
      rule: "classifier.pareto",
    });
    expect(judgeScore(0.5, "doc", { mode: "threshold" }).verdict).toBe("pass");
    expect(judgeScore(0.49, "doc", { mode: "threshold" })).toMatchObject({ verdict: "drop", threshold: 0.5 });
  });
});
