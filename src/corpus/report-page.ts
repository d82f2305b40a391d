/** The page of a corpus report: HTML, CSS and SVG written here, nothing fetched, readable without scripts. */
import type { Overlap } from "./exact.js";
import type { SourceShare } from "./finish.js";
import type { FunnelStage } from "./funnel.js";
import type { Manifest } from "./shards.js";

interface Shown {
  id: string;
  value: number | string;
  threshold: number | string | null;
  text: string;
}

export interface ReportData {
  title: string;
  stages: FunnelStage[];
  overlaps: Overlap[];
  /** Runs that stand elsewhere too, cut out of documents that stay. */
  repeats: { runs: number; characters: number };
  mix: SourceShare[];
  tokens: { train: Manifest | undefined; validation: Manifest | undefined };
  languages: [string, number][];
  domains: { domain: string; documents: number; kept: number }[];
  histograms: {
    name: string;
    low: number;
    high: number;
    bins: number[];
    thresholds: { rule: string; value: number }[];
  }[];
  examples: { rule: string; dropped: Shown[]; kept: Shown[] }[];
}

const escaped = (text: unknown): string =>
  String(text).replace(
    /[&<>"']/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]!,
  );
const count = (n: number): string => n.toLocaleString("en-US");
const short = (value: number | string | null): string =>
  typeof value === "number" ? String(Math.round(value * 1e4) / 1e4) : escaped(value ?? "");

const STYLE = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6878; --paper: #fff; --line: #d9dee5; --kept: #2f7d6b; --gone: #c9553d; --mark: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --paper: #14181e; --line: #2e3641; --kept: #54b39c; --gone: #e07a62; --mark: #e0b050; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } .bar { height: .9rem; background: var(--kept); } .bar.gone { background: var(--gone); } .track { display: flex; min-width: 12rem; background: var(--line); }
.soft { color: var(--soft); } .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; } .scroll { overflow-x: auto; } td.ids { min-width: 20rem; } td.rule { padding-left: 1.2rem; } svg { width: 100%; height: 6rem; display: block; } rect { fill: var(--kept); } line { stroke: var(--gone); stroke-width: 1.5; } 
blockquote { margin: .3rem 0; padding: .3rem .6rem; border-left: 3px solid var(--line); overflow-wrap: anywhere; white-space: pre-wrap; font-size: .88rem; } blockquote.gone { border-color: var(--gone); } blockquote.kept { border-color: var(--kept); }
code { font-size: .88em; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { margin: 1rem auto; } th, td { padding-right: .4rem; font-size: .88rem; } .track { min-width: 3.5rem; } td.rule { padding-left: .6rem; } td code { overflow-wrap: anywhere; } }`;

export function renderReport(data: ReportData): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(data.title)}</title><style>${STYLE}</style></head><body>
<h1>${escaped(data.title)}</h1>
${totals(data)}
<h2>Funnel</h2>
${funnel(data.stages)}
${mix(data.mix)}
${overlaps(data.overlaps)}
<h2>Languages</h2>
${bars(data.languages.map(([name, n]) => ({ name, kept: n, all: n })))}
${data.domains.length > 0 ? `<h2>Domains</h2><p class="soft">Documents of the largest domains; the dark part passed all filters.</p>${bars(data.domains.map((d) => ({ name: d.domain, kept: d.kept, all: d.documents })))}` : ""}
<h2>Signals</h2>
<p class="soft">How the documents are spread (0.5 to 99.5 percent of them; the rest is in the end bins). A line is a threshold.</p>
<div class="grid">${data.histograms.map(histogram).join("\n")}</div>
<h2>Examples</h2>
<p class="soft">For each rule: documents that it drops, and kept ones for which it came nearest to dropping them.</p>
${data.examples.map(example).join("\n")}
</body></html>
`;
}

function totals({ stages, tokens, repeats }: ReportData): string {
  const [first, last] = [stages[0], stages[stages.length - 1]];
  const share = first.in === 0 ? 0 : (100 * last.kept) / first.in;
  const side = (name: string, m: Manifest | undefined): string => (m ? ` ${name}: ${count(m.tokens)} tokens.` : "");
  const cut =
    repeats.runs === 0
      ? ""
      : ` ${count(repeats.runs)} runs of text that stand elsewhere too, ${count(repeats.characters)} characters, were cut out of these.`;
  return `<p>${count(first.in)} records were read, ${count(last.kept)} documents (${share.toFixed(1)}%) are kept.${cut}${side("Training", tokens.train)}${side("Validation", tokens.validation)}</p>`;
}

function funnel(stages: readonly FunnelStage[]): string {
  const all = Math.max(1, stages[0]?.in ?? 0);
  const rows = stages.map((s) => {
    const dropping = s.rules.filter((r) => r.first > 0).sort((a, b) => b.first - a.first || b.any - a.any);
    const others = s.rules.filter((r) => r.first === 0 && r.any > 0).sort((a, b) => b.any - a.any);
    const rules = dropping.map(
      (r) =>
        `<tr><td class="soft rule" colspan="2"><code>${escaped(r.rule)}</code>${r.any > r.first ? ` and ${count(r.any - r.first)} that an earlier rule dropped` : ""}</td><td></td><td class="n soft">${count(r.first)}</td><td></td></tr>`,
    );
    if (others.length > 0)
      rules.push(
        `<tr><td class="soft rule" colspan="5">would also drop some of these: ${others.map((r) => `<code>${escaped(r.rule)}</code> ${count(r.any)}`).join(", ")}</td></tr>`,
      );
    const width = (n: number): string => `style="width:${((100 * n) / all).toFixed(2)}%"`;
    return `<tr><th scope="row">${escaped(s.stage)}</th><td><div class="track"><div class="bar" ${width(s.kept)}></div><div class="bar gone" ${width(s.dropped + s.failed)}></div></div></td><td class="n">${count(s.kept)}</td><td class="n">${count(s.dropped)}</td><td class="n">${count(s.failed)}</td></tr>${rules.join("")}`;
  });
  return `<div class="scroll"><table><thead><tr><th>stage</th><th></th><th class="n">kept</th><th class="n">dropped</th><th class="n">failed</th></tr></thead><tbody>${rows.join("\n")}</tbody></table></div>`;
}

function mix(sources: readonly SourceShare[]): string {
  if (sources.length === 0) return "";
  const percent = (x: number | undefined): string => (x === undefined ? "" : `${(100 * x).toFixed(1)}%`);
  const rows = sources.map(
    (s) =>
      `<tr><td>${escaped(s.source)}</td><td class="n">${count(s.documents)}</td><td class="n">${count(s.bytes)}</td><td class="n">${count(s.tokens)}</td><td class="n">${percent(s.share)}</td><td class="n">${percent(s.wanted)}</td><td class="n">${s.epochs.toFixed(2)}</td></tr>`,
  );
  return `<h2>Sources</h2><div class="scroll"><table><thead><tr><th>source</th><th class="n">documents</th><th class="n">bytes</th><th class="n">tokens taken</th><th class="n">share</th><th class="n">wanted</th><th class="n">epochs</th></tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
}

function overlaps(rows: readonly Overlap[]): string {
  if (rows.length === 0) return "";
  const cells = rows.map(
    (o) =>
      `<tr><td>${escaped(o.from)}</td><td>${escaped(o.against)}</td><td class="n">${count(o.documents)}</td><td class="n">${o.meanSimilarity.toFixed(3)}</td><td class="ids"><code>${o.examples.map((e) => `${escaped(e.id)} = ${escaped(e.kept)}`).join("<br>")}</code></td></tr>`,
  );
  return `<h2>Duplicates</h2><div class="scroll"><table><thead><tr><th>dropped from</th><th>kept in</th><th class="n">documents</th><th class="n">mean similarity</th><th>such as</th></tr></thead><tbody>${cells.join("")}</tbody></table></div>`;
}

function bars(rows: readonly { name: string; kept: number; all: number }[]): string {
  const most = Math.max(1, ...rows.map((r) => r.all));
  const cells = rows.map(
    (r) =>
      `<tr><td>${escaped(r.name)}</td><td><div class="track"><div class="bar" style="width:${((100 * r.kept) / most).toFixed(2)}%"></div><div class="bar gone" style="width:${((100 * (r.all - r.kept)) / most).toFixed(2)}%"></div></div></td><td class="n">${count(r.all)}</td></tr>`,
  );
  return `<table><tbody>${cells.join("")}</tbody></table>`;
}

function histogram({ name, low, high, bins, thresholds }: ReportData["histograms"][number]): string {
  const most = Math.max(1, ...bins);
  const width = 100 / bins.length;
  const rects = bins
    .map((n, i) => {
      // Square roots: a bin with a hundredth of the documents can still be seen.
      const height = 100 * Math.sqrt(n / most);
      return n === 0
        ? ""
        : `<rect x="${(i * width).toFixed(2)}" y="${(100 - height).toFixed(2)}" width="${(width * 0.9).toFixed(2)}" height="${height.toFixed(2)}"/>`;
    })
    .join("");
  const lines = thresholds
    .map(
      (t) =>
        `<line x1="${((100 * (t.value - low)) / (high - low)).toFixed(2)}" x2="${((100 * (t.value - low)) / (high - low)).toFixed(2)}" y1="0" y2="100"><title>${escaped(t.rule)} ${t.value}</title></line>`,
    )
    .join("");
  return `<figure><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="histogram of ${escaped(name)}">${rects}${lines}</svg><figcaption>${escaped(name)} <span class="soft">${short(low)} to ${short(high)}${thresholds.map((t) => `; ${escaped(t.rule)} ${short(t.value)}`).join("")}</span></figcaption></figure>`;
}

function example({ rule, dropped, kept }: ReportData["examples"][number]): string {
  const one =
    (kind: "gone" | "kept") =>
    (e: Shown): string =>
      `<blockquote class="${kind}"><code>${escaped(e.id)}</code> <span class="soft">${short(e.value)}${e.threshold === null ? "" : ` (${short(e.threshold)})`}</span>\n${escaped(e.text)}</blockquote>`;
  return `<details><summary><code>${escaped(rule)}</code> <span class="soft">${dropped.length > 0 ? "" : "drops nothing"}</span></summary>
${dropped.length > 0 ? `<h3>Dropped</h3>${dropped.map(one("gone")).join("")}` : ""}${kept.length > 0 ? `<h3>Kept</h3>${kept.map(one("kept")).join("")}` : ""}</details>`;
}
