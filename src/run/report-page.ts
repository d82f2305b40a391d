/** The page of a training run: HTML, CSS and SVG written here, nothing fetched, readable without scripts. */

/** Some neighbouring steps of a curve, the last of which is `step`. */
export interface Point {
  step: number;
  mean: number;
  low: number;
  high: number;
}
export interface Curve {
  title: string;
  lines: { name: string; points: Point[] }[];
}
export interface RunReport {
  name: string;
  stage: string;
  steps: { done: number; all: number };
  figures: [name: string, value: number | undefined][];
  curves: Curve[];
  samples: { step: number; text: string }[];
  /** config.yaml as it is. */
  settings: string;
  rejected: { count: number; first: { file: string; line: number; reason: string }[] };
}

const escaped = (text: unknown): string =>
  String(text).replace(
    /[&<>"']/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]!,
  );

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** A number as people read it: 12,345; 0.0213; 2e-4. */
export function shown(value: number): string {
  const size = Math.abs(value);
  if (size >= 1000) return WHOLE.format(value);
  if (size > 0 && size < 1e-2) return value.toExponential(1).replace(/\.0(?=e)/, "");
  return String(Number(value.toPrecision(4)));
}

const STYLE = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6878; --paper: #fff; --line: #d9dee5; --c0: #2f7d6b; --c1: #c9553d; --c2: #3f6fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --paper: #14181e; --line: #2e3641; --c0: #54b39c; --c1: #e07a62; --c2: #7aa5e8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } .soft { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem 1.2rem; } dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1.2rem; } figure { margin: 0; } .wide { grid-column: 1 / -1; }
@media (max-width: 30rem) { .grid { grid-template-columns: 1fr; } }
figcaption { font-size: .9rem; } svg { width: 100%; display: block; overflow: visible; } svg text { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--line); } .key { font-size: .85rem; margin-left: .8rem; } .key::before { content: ""; display: inline-block; width: .8rem; height: .2rem; margin-right: .3rem; vertical-align: middle; background: currentColor; }
${[0, 1, 2].map((i) => `.c${i} { color: var(--c${i}); stroke: var(--c${i}); } .b${i} { fill: var(--c${i}); opacity: .2; } .p${i} { fill: var(--c${i}); }`).join("\n")}
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; border-left: 3px solid var(--line); padding-left: .8rem; margin: .4rem 0; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; } summary { cursor: pointer; }`;

export function renderRun(r: RunReport): string {
  const { done, all } = r.steps;
  const state = done >= all ? `${shown(all)} steps, finished` : `${shown(done)} of ${shown(all)} steps`;
  const title = r.stage && r.stage !== r.name ? `${r.name}: ${r.stage}` : r.name;
  const figures = r.figures.filter(([, value]) => value !== undefined && Number.isFinite(value));
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)}</title><style>${STYLE}</style></head><body>
<h1>${escaped(title)}</h1>
<p class="soft">${state}</p>
<dl>${figures.map(([name, value]) => `<div><dt>${escaped(name)}</dt><dd>${shown(value!)}</dd></div>`).join("")}</dl>
<h2>Curves</h2>
<p class="soft">By step. A line is the mean of neighbouring steps, the band around it their least and largest value.</p>
<div class="grid">${r.curves.map((curve, i) => chart(curve, i === 0)).join("\n")}</div>
${samples(r.samples)}
${rejected(r.rejected)}
<h2>Settings</h2>
<pre>${escaped(r.settings.trimEnd())}</pre>
</body></html>
`;
}

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 8, 22];

function chart({ title, lines }: Curve, wide: boolean): string {
  const [width, height] = wide ? [960, 280] : [460, 180];
  const points = lines.flatMap((l) => l.points);
  const low = Math.min(...points.map((p) => p.low));
  const high = Math.max(...points.map((p) => p.high));
  const ticks = ticksOf(low, high);
  const [bottom, top] = [Math.min(low, ticks[0]), Math.max(high, ticks[ticks.length - 1])];
  const [first, last] = [Math.min(...points.map((p) => p.step)), Math.max(...points.map((p) => p.step))];
  const fixed = (n: number): string => n.toFixed(1);
  const x = (step: number): number => LEFT + ((step - first) / Math.max(1, last - first)) * (width - LEFT - RIGHT);
  const y = (value: number): number =>
    TOP + (1 - (value - bottom) / Math.max(top - bottom, 1e-30)) * (height - TOP - BOTTOM);
  const at = (step: number, value: number): string => `${fixed(x(step))},${fixed(y(value))}`;
  const grid = ticks.map(
    (t) =>
      `<line class="axis" x1="${LEFT}" x2="${width - RIGHT}" y1="${fixed(y(t))}" y2="${fixed(y(t))}"/><text x="${LEFT - 6}" y="${fixed(y(t) + 4)}" text-anchor="end">${shown(t)}</text>`,
  );
  const steps = [first, Math.round((first + last) / 2), last]
    .filter((s, i, all) => all.indexOf(s) === i)
    .map((s, i, all) => {
      const anchor = i === 0 ? "start" : i === all.length - 1 ? "end" : "middle";
      return `<text x="${fixed(x(s))}" y="${height - 6}" text-anchor="${anchor}">${shown(s)}</text>`;
    });
  const drawn = lines.map(({ name, points: own }, i) => {
    const colour = i % 3;
    const band = own.some((p) => p.low < p.high)
      ? `<polygon class="b${colour}" points="${own.map((p) => at(p.step, p.high)).join(" ")} ${own
          .toReversed()
          .map((p) => at(p.step, p.low))
          .join(" ")}"/>`
      : "";
    const line = `<polyline class="c${colour}" points="${own.map((p) => at(p.step, p.mean)).join(" ")}"/>`;
    const dots =
      own.length > 60
        ? ""
        : own
            .map(
              (p) =>
                `<circle class="p${colour}" cx="${fixed(x(p.step))}" cy="${fixed(y(p.mean))}" r="3"><title>${escaped(name)} ${shown(p.mean)} at step ${shown(p.step)}</title></circle>`,
            )
            .join("");
    return band + line + dots;
  });
  const keys =
    lines.length > 1 ? lines.map(({ name }, i) => `<span class="key c${i % 3}">${escaped(name)}</span>`) : [];
  const range = `${title} from step ${first} to ${last}, between ${shown(low)} and ${shown(high)}`;
  return `<figure${wide ? ' class="wide"' : ""}><figcaption>${escaped(title)}${keys.join("")}</figcaption>
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(range)}">${grid.join("")}${steps.join("")}${drawn.join("")}</svg></figure>`;
}

/** Three to six round numbers (1, 2 or 5 times a power of ten apart) that lie within a range or reach just over it. */
export function ticksOf(low: number, high: number): number[] {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999)!;
  const from = Math.floor(low / step + 1e-9);
  const to = Math.ceil(high / step - 1e-9);
  return Array.from({ length: Math.max(1, to - from) + 1 }, (_, i) => Number(((from + i) * step).toPrecision(12)));
}

function samples(list: RunReport["samples"]): string {
  if (list.length === 0) return "";
  const entries = list.map(
    ({ step, text }, i) =>
      `<details${i === list.length - 1 ? " open" : ""}><summary>step ${shown(step)}</summary><pre>${escaped(text)}</pre></details>`,
  );
  return `<h2>Samples</h2>\n${entries.join("\n")}`;
}

function rejected({ count, first }: RunReport["rejected"]): string {
  if (count === 0) return "";
  const rows = first.map((r) => `<tr><td>${escaped(r.file)}:${escaped(r.line)}</td><td>${escaped(r.reason)}</td></tr>`);
  return `<h2>Set aside</h2>
<p class="soft">${shown(count)} records could not be used; all are in rejected.jsonl${first.length < count ? `, the first ${first.length} here` : ""}.</p>
<table><tbody>${rows.join("")}</tbody></table>`;
}
