// Makes recipes/corpus-demo: a small crawl as WARC, HTML pages and JSONL, out of recipes/atlas, with the faults that a real crawl has.
// Run: node scripts/corpus-demo/make.mjs [DIR]. The same input gives the same bytes.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { WARCRecord, WARCSerializer } from "warcio";

const root = fileURLToPath(new URL("../..", import.meta.url));
const out = process.argv[2] ?? join(root, "recipes/corpus-demo");
const atlas = readFileSync(join(root, "recipes/atlas/pretrain.jsonl"), "utf8").trim().split("\n").map(JSON.parse);
const factbook = atlas.filter((d) => d.id.startsWith("factbook/"));
const byCountry = new Map();
for (const d of atlas) {
  const [kind, language, iso] = d.id.split("/");
  if (kind === "factbook" || language !== "zh") continue;
  byCountry.set(iso, [...(byCountry.get(iso) ?? []), d]);
}

const escaped = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
/** Sentences in paragraphs of about 400 characters. */
function paragraphs(text) {
  const list = [];
  for (const sentence of text.split(/(?<=[.。!?])\s*/u)) {
    const last = list.length - 1;
    if (last >= 0 && list[last].length < 400) list[last] += (/[。]$/.test(list[last]) ? "" : " ") + sentence;
    else list.push(sentence);
  }
  return list.filter((p) => p.trim() !== "");
}

const menus = {
  en: ["Home", "Countries", "Maps", "About us", "Contact"],
  zh: ["首页", "国家", "地图", "关于我们", "联系方式"],
};
const ends = {
  en: "Copyright by the Atlas of the World. All rights reserved. We use cookies to make these pages better.",
  zh: "版权所有。本网站使用小型文本文件来改进页面。",
};

/** A page as sites have them: menu, related links, share buttons, comments, footer. */
function page({ title, text, language, related, comment = "" }) {
  const links = related.map((r) => `<li><a href="/${encodeURIComponent(r)}">${escaped(r)}</a></li>`).join("");
  const body = paragraphs(text)
    .map((p) => `<p>${escaped(p)}</p>`)
    .join("\n");
  return `<!DOCTYPE html>
<html lang="${language}"><head><meta charset="utf-8"><title>${escaped(title)} | Atlas</title>
<style>body{font-family:sans-serif}</style><script>window.stats=window.stats||[];stats.push({page:1});</script></head>
<body><div id="top-nav" class="nav"><ul>${menus[language].map((m) => `<li><a href="/${encodeURIComponent(m)}">${m}</a></li>`).join("")}</ul></div>
<div class="layout"><div class="content"><h1>${escaped(title)}</h1>
${body}
<div class="share-buttons"><a href="#f">Share</a> <a href="#t">Tweet</a></div></div>
<div class="sidebar"><h3>See also</h3><ul>${links}</ul></div></div>
${comment && `<div id="comments"><p>${escaped(comment)}</p></div>`}
<footer><p>${ends[language]}</p></footer></body></html>
`;
}

async function record(url, body, { status = "200 OK", type = "text/html; charset=utf-8", date }) {
  async function* content() {
    yield typeof body === "string" ? new TextEncoder().encode(body) : body;
  }
  const id = `<urn:uuid:00000000-0000-4000-8000-${String(date).padStart(12, "0")}>`;
  const warc = WARCRecord.create(
    {
      url,
      date: new Date(Date.UTC(2024, 0, 1) + date * 1000).toISOString().replace(/\.\d+/, ""),
      type: "response",
      warcVersion: "WARC/1.1",
      httpHeaders: { "Content-Type": type },
      statusline: `HTTP/1.1 ${status}`,
      warcHeaders: { "WARC-Record-ID": id },
    },
    content(),
  );
  return Buffer.from(await WARCSerializer.serialize(warc, { gzip: true }));
}

const nameOf = (d) => d.id.split("/").pop();
const site = (d) => `https://atlas.example/${d.id}`;
const crawl = [];
let clock = 0;
const add = async (url, body, options = {}) => void crawl.push(await record(url, body, { ...options, date: clock++ }));
for (const [i, d] of factbook.entries()) {
  const related = Array.from({ length: 6 }, (_, k) => nameOf(factbook[(i * 7 + k * 13) % factbook.length]));
  const html = page({
    title: nameOf(d),
    text: d.text,
    language: "en",
    related,
    comment: i % 5 === 0 ? "I was there last summer, and it was wonderful, thank you for this page!" : "",
  });
  await add(site(d), html);
  // What every crawl is full of: copies, copies with a change, pages that are nearly empty, errors.
  if (i % 9 === 1) await add(`${site(d)}?session=${i}`, html);
  if (i % 9 === 3)
    await add(
      `https://mirror.example/${d.id}`,
      page({ title: nameOf(d), text: `${d.text} Last changed in spring.`, language: "en", related }),
    );
  if (i % 11 === 4)
    await add(
      `${site(d)}/stub`,
      page({ title: nameOf(d), text: "This page is not written yet.", language: "en", related }),
    );
  if (i % 17 === 5) await add(`${site(d)}/old`, "<html><body>Not found</body></html>", { status: "404 Not Found" });
}
const spam =
  "Buy now! Best price, free shipping, limited offer, order now at http://cheap.example/a http://cheap.example/b. ";
await add("https://shop.example/deal", page({ title: "Deals", text: spam.repeat(30), language: "en", related: [] }));
await add(
  "https://ads.blocked.example/page",
  page({ title: "Blocked", text: factbook[3].text, language: "en", related: [] }),
);
const garbled = Buffer.from(factbook[8].text, "utf8")
  .toString("latin1")
  .replace(/ (?=[A-Z])/g, " Ã©Ã¨Ã¼ ");
await add("https://atlas.example/garbled", page({ title: "Garbled", text: garbled, language: "en", related: [] }));
const spanish =
  "Esta página está escrita en español. El atlas describe los países del mundo, sus capitales y sus monedas, y muchas otras cosas que se pueden leer con calma. ";
await add("https://atlas.example/es", page({ title: "Atlas", text: spanish.repeat(4), language: "en", related: [] }));
await add(
  "https://atlas.example/contact",
  page({
    title: "Contact",
    text: `${factbook[11].text} Questions go to the editor, editor.in.chief@atlas-office.org, or by telephone.`,
    language: "en",
    related: [],
  }),
);
await add("https://atlas.example/data.pdf", Buffer.from("%PDF-1.4 and so on"), { type: "application/pdf" });

mkdirSync(join(out, "pages"), { recursive: true });
mkdirSync(join(out, "blocklists/ads"), { recursive: true });
const last = crawl.pop();
// The last record is cut off, as it is when a crawler is stopped.
writeFileSync(join(out, "crawl.warc.gz"), Buffer.concat([...crawl, last.subarray(0, last.length - 20)]));
writeFileSync(join(out, "blocklists/ads/domains"), "blocked.example\nspam.example\n");

const chinese = [...byCountry].slice(0, 60);
for (const [iso, documents] of chinese) {
  const title = documents[0].text.split("\n")[0];
  const text = documents.map((d) => d.text.split("\n").pop()).join("");
  writeFileSync(
    join(out, `pages/${iso}.html`),
    page({ title, text, language: "zh", related: chinese.slice(0, 5).map(([name]) => name) }),
  );
}
const dump = atlas
  .filter((d) => /^(?:plain|titled)\//.test(d.id))
  .map((d) => JSON.stringify({ id: d.id, text: d.text }));
dump.splice(100, 0, '{"id": "broken", "text": "this line was cut o');
writeFileSync(join(out, "dump.jsonl"), `${dump.join("\n")}\n`);
// One sentence of the corpus as if it were a question of an evaluation set.
const question = factbook[23].text.split(/(?<=\.)\s/).find((s) => s.split(" ").length > 15);
writeFileSync(join(out, "evaluation.jsonl"), `${JSON.stringify({ question })}\n`);
console.log(`${crawl.length + 1} WARC records, ${chinese.length} pages, ${dump.length} lines in ${out}`);
