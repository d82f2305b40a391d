/** `report.html` of a build: one file without any address of another machine. The numbers are gathered here, the page is in report-page.ts. */
import { readFileSync } from "node:fs";
import type { BuildSummary } from "./build.js";
import { type BuildFolder, readRows } from "./folder.js";
import { hash53 } from "./hash.js";
import { type ReportData, renderReport } from "./report-page.js";
import type { Row } from "./unit.js";
import { openBuild, type StoredDecision, unitsOf } from "./why.js";

/** Documents whose signals make the histograms; more would only make them slower. */
const SAMPLE = 20_000;
const SHOWN = 3;
const EXCERPT = 280;

type Lasting = Omit<BuildSummary, "seconds" | "cpuSeconds" | "peakMemory" | "units">;

interface Example {
  id: string;
  value: number | string;
  threshold: number | string | null;
  unit: string;
  row: number;
  order: number;
}

/** Writes DIR/report.html and returns its path. */
export function writeReport(dir: string): string {
  const folder = openBuild(dir);
  const summary = JSON.parse(readFileSync(folder.path("funnel.json"), "utf8")) as Lasting;
  const units = unitsOf(folder);
  const every = Math.max(1, Math.ceil(summary.counts.documents / SAMPLE));
  const values = new Map<string, number[]>();
  const domains = new Map<string, { documents: number; kept: number }>();
  const examples = new Map<string, { dropped: Example[]; kept: Example[] }>();
  const thresholds = new Map<string, number>();
  for (const unit of units) {
    const signals = readRows<Record<string, number | string | null>>(folder.rows("signals", unit));
    const decisions = readRows<StoredDecision>(folder.rows("decisions", unit));
    for (const [row, decision] of decisions.entries()) {
      const { domain } = signals[row];
      if (typeof domain === "string") {
        const entry = domains.get(domain) ?? { documents: 0, kept: 0 };
        entry.documents++;
        if (decision.action === "keep") entry.kept++;
        domains.set(domain, entry);
      }
      const order = hash53(decision.id);
      for (const [, rule, value, threshold, verdict] of decision.findings) {
        if (typeof threshold === "number") thresholds.set(rule, threshold);
        if (typeof value === "string" && verdict === "pass") continue;
        const lists = examples.get(rule) ?? { dropped: [], kept: [] };
        examples.set(rule, lists);
        const isDrop = verdict === "drop";
        if (isDrop && decision.rule !== rule && lists.dropped.length >= SHOWN) continue;
        if (!isDrop && decision.action !== "keep") continue;
        // Kept ones are shown where the rule came nearest to dropping them.
        const rank =
          isDrop || typeof threshold !== "number" || typeof value !== "number" ? order : Math.abs(value - threshold);
        insert(isDrop ? lists.dropped : lists.kept, { id: decision.id, value, threshold, unit, row, order: rank });
      }
      if (order % every !== 0) continue;
      for (const [name, value] of Object.entries(signals[row])) {
        if (typeof value !== "number") continue;
        const list = values.get(name);
        if (list) list.push(value);
        else values.set(name, [value]);
      }
    }
  }
  const data: ReportData = {
    title: `Corpus ${dir.split("/").pop()}`,
    stages: summary.stages,
    overlaps: summary.duplicates.overlaps,
    repeats: { runs: summary.duplicates.repeats, characters: summary.duplicates.repeatCharacters },
    mix: summary.finished.mix,
    tokens: { train: summary.finished.train, validation: summary.finished.validation },
    languages: top(Object.entries(summary.counts.languages), 24),
    domains: [...domains]
      .sort((a, b) => b[1].documents - a[1].documents || (a[0] < b[0] ? -1 : 1))
      .slice(0, 24)
      .map(([domain, n]) => ({ domain, ...n })),
    histograms: [...values]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, list]) => histogram(name, list, thresholds)),
    examples: excerpts(folder, examples),
  };
  folder.write("report.html", renderReport(data));
  return folder.path("report.html");
}

function insert(list: Example[], example: Example): void {
  list.push(example);
  list.sort((a, b) => a.order - b.order || (a.id < b.id ? -1 : 1));
  if (list.length > SHOWN) list.pop();
}

const top = (entries: [string, number][], n: number): [string, number][] =>
  entries.sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, n);

const BINS = 40;

/** Between the 0.5th and the 99.5th percentile; what lies beyond is in the end bins. */
function histogram(
  name: string,
  values: number[],
  thresholds: ReadonlyMap<string, number>,
): ReportData["histograms"][number] {
  const sorted = values.sort((a, b) => a - b);
  let low = sorted[Math.floor(sorted.length * 0.005)];
  let high = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.995))];
  const [preset, signal] = [name.split(".")[0], name.slice(name.indexOf(".") + 1)];
  const lines = [...thresholds].filter(
    ([rule]) =>
      rule.startsWith(`${preset}.`) &&
      rule
        .slice(preset.length + 1)
        .replace(/^(?:min|max)/, "")
        .toLowerCase() === signal.toLowerCase(),
  );
  for (const [, t] of lines) {
    low = Math.min(low, t);
    high = Math.max(high, t);
  }
  if (high === low) high = low + 1;
  const bins = new Array<number>(BINS).fill(0);
  for (const value of sorted)
    bins[Math.min(BINS - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * BINS)))]++;
  return { name, low, high, bins, thresholds: lines.map(([rule, value]) => ({ rule, value })) };
}

function excerpts(
  folder: BuildFolder,
  examples: ReadonlyMap<string, { dropped: Example[]; kept: Example[] }>,
): ReportData["examples"] {
  const wanted = new Map<string, Set<number>>();
  for (const { dropped, kept } of examples.values())
    for (const { unit, row } of [...dropped, ...kept]) wanted.set(unit, (wanted.get(unit) ?? new Set()).add(row));
  const texts = new Map<string, string>();
  for (const [unit, rows] of wanted) {
    const documents = readRows<Row>(folder.rows("documents", unit));
    for (const row of rows) texts.set(`${unit}:${row}`, documents[row].text.slice(0, EXCERPT));
  }
  const show = ({ id, value, threshold, unit, row }: Example): ReportData["examples"][number]["dropped"][number] => ({
    id,
    value,
    threshold,
    text: texts.get(`${unit}:${row}`) ?? "",
  });
  return [...examples]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([rule, { dropped, kept }]) => ({ rule, dropped: dropped.map(show), kept: kept.map(show) }));
}
