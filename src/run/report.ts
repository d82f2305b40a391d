/** What a run's page tells, gathered from the run's own files; report-page.ts writes it. */
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { parse } from "yaml";
import { naming, systemMessage } from "./errors.js";
import type { RunFolder } from "./folder.js";
import { type Row, rowOf } from "./metrics.js";
import { type Curve, type Point, renderRun } from "./report-page.js";

/** Points of a curve at most: more could not be seen. */
const POINTS = 300;
/** Samples shown, evenly over the run. */
const SAMPLES = 12;
const REJECTED = 10;
/** Not drawn: they follow from what is, or stand in the figures above. */
const NO_CURVE = new Set(["step", "seconds", "mfu", "peakMemoryMiB", "perplexity"]);

/**
 * Writes report.html into a run's folder, from its metrics, samples, settings and rejected records. `steps`: of the whole run. Where a
 * file cannot be read or written, that is told, and ends no run: the page can be had later.
 */
export function writeReport(run: RunFolder, steps: number): void {
  if (!run.first || !existsSync(`${run.dir}/metrics.jsonl`)) return;
  try {
    writeFileSync(`${run.dir}/report.html.partial`, reportOf(run.dir, steps));
    renameSync(`${run.dir}/report.html.partial`, `${run.dir}/report.html`);
  } catch (error) {
    const why = systemMessage(error);
    if (why === undefined) throw error;
    console.error(`no report: ${why} When that is mended, lyceum report ${run.dir} writes it.`);
  }
}

/** The page of a run's folder; without `steps` the run is taken to have as many as its settings say, or as it did. */
export function reportOf(dir: string, steps?: number): string {
  const { rows, damaged } = rowsOf(`${dir}/metrics.jsonl`, rowOf);
  const done = rows.at(-1)?.step ?? 0;
  const settings = read(`${dir}/config.yaml`);
  const asked = setting(settings, "steps");
  const number = (r: Row, key: string): number => (typeof r[key] === "number" ? r[key] : 0);
  const last = (key: string): number | undefined => rows.findLast((r) => typeof r[key] === "number")?.[key] as number;
  const sum = (...keys: string[]): number =>
    rows.reduce((n, r) => n + keys.reduce((m, key) => m * number(r, key), 1), 0);
  const seconds = sum("seconds");
  const tokens = sum("tokensPerSecond", "seconds");
  const mfu = sum("mfu", "seconds") / seconds;
  const rejected = rowsOf(`${dir}/rejected.jsonl`, rejectedOf);
  return renderRun({
    name: basename(dir),
    stage: String(setting(settings, "stage") ?? ""),
    steps: { done, all: steps ?? (typeof asked === "number" ? asked : done) },
    figures: [
      ["loss", last("loss")],
      ["validation loss", last("validationLoss")],
      ["perplexity", last("perplexity")],
      ["bits per byte", last("bitsPerByte")],
      ["tokens", Math.round(tokens)],
      ["tokens a second", seconds > 0 ? Math.round(tokens / seconds) : undefined],
      ["MFU, percent", mfu > 0 ? Math.round(mfu * 100) : undefined],
      ["peak memory, MiB", last("peakMemoryMiB")],
      ["seconds of steps", seconds < 10 ? Number(seconds.toPrecision(2)) : Math.round(seconds)],
      ["damaged rows of metrics.jsonl, left out", damaged || undefined],
      ["damaged rows of rejected.jsonl, left out", rejected.damaged || undefined],
    ],
    curves: curvesOf(rows),
    samples: samplesOf(dir),
    settings,
    rejected: { count: rejected.rows.length, first: rejected.rows.slice(0, REJECTED) },
  });
}

const read = (file: string): string => (existsSync(file) ? naming(file, () => readFileSync(file, "utf8")) : "");

/** What the lines of a file hold, and how many of them hold nothing that could be used. */
function rowsOf<T>(file: string, of: (line: string) => T | undefined): { rows: T[]; damaged: number } {
  const lines = read(file).split("\n");
  const all = lines.map(of);
  const ended = lines.length - 1; // behind the last line's end is nothing, or what a kill cut short: that will be done again
  return {
    rows: all.filter((row) => row !== undefined),
    damaged: all.slice(0, ended).filter((row, i) => row === undefined && lines[i] !== "").length,
  };
}

function rejectedOf(line: string): { file: string; line: number; reason: string } | undefined {
  try {
    const { file, line: at, reason } = JSON.parse(line);
    const whole = typeof file === "string" && typeof at === "number" && typeof reason === "string";
    return whole ? { file, line: at, reason } : undefined;
  } catch {
    return undefined; // not JSON, or null
  }
}

function setting(settings: string, key: string): unknown {
  try {
    return (parse(settings) as Record<string, unknown> | null)?.[key];
  } catch {
    return undefined; // edited by hand
  }
}

/** One chart a metric; losses of one kind stand in one. */
function curvesOf(rows: readonly Row[]): Curve[] {
  const keys = [...new Set(rows.flatMap((r) => Object.keys(r)))].filter((key) => !NO_CURVE.has(key));
  const charts = new Map<string, Curve>();
  for (const key of keys) {
    const points = rows
      .filter((r) => typeof r[key] === "number")
      .map((r): [number, number] => [r.step, r[key] as number]);
    if (points.length === 0) continue;
    const title = ["loss", "validationLoss", "pretrainLoss"].includes(key) ? "loss" : key;
    const chart = charts.get(title) ?? { title, lines: [] };
    chart.lines.push({ name: key, points: thinned(points) });
    charts.set(title, chart);
  }
  return [...charts.values()];
}

/** Neighbouring points as one: their mean, and the least and the largest of them. */
export function thinned(points: readonly [step: number, value: number][], most = POINTS): Point[] {
  const size = Math.max(1, points.length / most);
  return Array.from({ length: Math.min(points.length, most) }, (_, i) => {
    const group = points.slice(Math.floor(i * size), Math.max(Math.floor(i * size) + 1, Math.floor((i + 1) * size)));
    const values = group.map(([, value]) => value);
    return {
      step: group[i === 0 ? 0 : group.length - 1][0],
      mean: values.reduce((a, b) => a + b, 0) / values.length,
      low: Math.min(...values),
      high: Math.max(...values),
    };
  });
}

function samplesOf(dir: string): { step: number; text: string }[] {
  const names = existsSync(`${dir}/samples`) ? readdirSync(`${dir}/samples`).filter((n) => /^\d+\.txt$/.test(n)) : [];
  names.sort();
  const every = Math.max(1, (names.length - 1) / (SAMPLES - 1));
  const shown =
    names.length <= SAMPLES ? names : Array.from({ length: SAMPLES }, (_, i) => names[Math.round(i * every)]);
  return shown.map((name) => ({ step: Number.parseInt(name, 10), text: read(`${dir}/samples/${name}`).trimEnd() }));
}
