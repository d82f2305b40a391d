/** Harmful words by language and advertisements: what is found, what is left alone, what is recorded. */
import { describe, expect, it } from "vitest";
import { evaluateAds } from "../../src/corpus/ads.js";
import { evaluateHarmful, harmfulWords } from "../../src/corpus/harmful.js";

describe("harmful words", () => {
  it("are whole words or phrases, in any case", () => {
    expect(harmfulWords("SHIT happens; shiitake does not. Shit!", "en")).toEqual(new Map([["shit", 2]]));
    expect([...harmfulWords("two girls one cup", "en")!.keys()]).toEqual(["two girls one cup"]);
    expect(harmfulWords("Scunthorpe, Essex, and a classic assassin", "en")!.size).toBe(0);
    expect(harmfulWords("Das Buch ist dick.", "de")!.size).toBe(0);
  });
  it("are looked for inside Chinese, Japanese and Thai text", () => {
    expect(harmfulWords("他看了一部强奸电影", "zh")!.size).toBe(1);
    expect(harmfulWords("这种材料具有导电性和稳定性", "zh")!.size).toBe(0);
  });
  it("know their languages", () => {
    for (const language of ["en", "zh", "de", "nb", "tl", "th"]) expect(harmfulWords("", language)).toEqual(new Map());
    for (const language of ["xx", "bg", "../en", ""]) expect(harmfulWords("", language)).toBeUndefined();
  });
  it("are judged by their share, or by C4's rule", () => {
    const clean = "The committee met on Tuesday and talked about the new bridge. ".repeat(10);
    const once = `${clean} Then someone said shit.`;
    const verdicts = (text: string, thresholds = {}) =>
      evaluateHarmful(text, "en", thresholds).findings.map((f) => f.verdict);
    expect(verdicts(clean)).toEqual(["pass", "pass"]);
    expect(verdicts(once)).toEqual(["pass", "pass"]);
    expect(verdicts(once, { "harmful.maxDistinct": 0 })).toEqual(["pass", "drop"]);
    expect(verdicts("porn porn shit video")).toEqual(["drop", "pass"]);
    expect(evaluateHarmful(once, undefined).findings[0]).toMatchObject({ value: "none", verdict: "pass" });
    for (const text of ["", "\0\ud800", " "]) expect(verdicts(text)).toEqual(["pass", "pass"]);
  });
});

describe("advertisements and link farms", () => {
  const dropped = (text: string): string[] =>
    evaluateAds(text)
      .findings.filter((f) => f.verdict === "drop")
      .map((f) => f.rule);
  it("leaves articles alone, also with a few links", () => {
    const article =
      "The harbour was rebuilt after the war, as the archive at https://example.org/harbour tells. It had been the third largest of the coast. ".repeat(
        5,
      );
    expect(dropped(article)).toEqual([]);
    expect(dropped("记者昨天从市气象局获悉，未来三天本市将有小到中雨，市民出行请注意安全。\n".repeat(3))).toEqual([]);
    for (const text of ["", "\0", "\ud800", " \n "]) expect(dropped(text)).toEqual([]);
  });
  it("finds link farms, promotion and lists of contacts", () => {
    const farm = Array.from({ length: 40 }, (_, i) => `cheap-${i} http://www.shop${i}.com/item?id=${i}`).join("\n");
    expect(dropped(farm)).toEqual(["ads.maxUrlChars", "ads.maxLinksPer100Words"]);
    expect(dropped("Buy now and get free shipping! Limited time only, order now, best price, click here.")).toEqual([
      "ads.maxPhrasesPer100Words",
    ]);
    expect(dropped("限时抢购，点击购买，全场包邮！加微信领优惠券。")).toEqual(["ads.maxPhrasesPer100Words"]);
    expect(dropped("QQ：123456789\n微信: 13800138000\n电话：010-12345678\n")).toContain("ads.maxContactLines");
  });
  it("reads a long line in time", () => {
    const start = performance.now();
    evaluateAds("http://".repeat(300_000));
    evaluateAds("a.".repeat(1_000_000));
    expect(performance.now() - start).toBeLessThan(20_000);
  });
});
