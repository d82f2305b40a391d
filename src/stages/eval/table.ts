/** An evaluation for people: samples side by side, then one table with a column for each model. */
import type { Evaluation, SideBySide, TaskResults } from "./evaluation.js";

/** A row of numbers; a line without them is a heading. */
interface Row {
  name: string;
  cells?: string[];
}

/** `names`: of the models, in their order. */
export function describeTasks({ models, samples }: Evaluation, names: readonly string[]): string {
  const known = new Map(models.map(({ model }, i) => [model, names[i]]));
  const rows = rowsOf(
    models.map((m) => m.tasks),
    known,
  );
  const first = Math.max(...rows.map((r) => (r.cells ? r.name.length : 0)));
  const widths = names.map((name, m) => Math.max(name.length, 8, ...rows.map((r) => r.cells?.[m].length ?? 0)));
  const line = (name: string, cells: readonly string[]): string =>
    `${name.padEnd(first)}${cells.map((cell, m) => `  ${cell.padStart(widths[m])}`).join("")}`.trimEnd();
  const table = rows.map(({ name, cells }) => (cells ? line(name, cells) : name));
  const note = rows.some((r) => r.cells?.some((cell) => cell.includes("["))) ? [INTERVALS] : [];
  return [...samples.flatMap((s) => describeSample(s, known)), line("", names), ...table, ...note].join("\n");
}
const INTERVALS = "[low, high]: 95% intervals. Models whose intervals overlap may be equally good: ask more records.";

function rowsOf(tasks: readonly TaskResults[], known: ReadonlyMap<string, string>): Row[] {
  const rows: Row[] = [];
  /** The rows of a task that any model has; its heading tells what was measured, from the first that has it. */
  function section<T>(
    pick: (t: TaskResults) => T | undefined,
    heading: (t: T) => string,
    lines: (first: T) => [string, (t: T) => string | undefined][],
  ): void {
    const found = tasks.map(pick);
    const one = found.find((t) => t !== undefined);
    if (one === undefined) return;
    rows.push({ name: heading(one) });
    for (const [name, cell] of lines(one)) {
      const cells = found.map((t) => (t === undefined ? "-" : (cell(t) ?? "-")));
      if (cells.some((c) => c !== "-")) rows.push({ name: `  ${name}`, cells });
    }
  }
  section(
    (t) => t.perplexity,
    (p) => `perplexity: ${number(p.texts, "text")}, ${number(p.bytes, "byte")}`,
    () => [
      ["bits per byte", (p) => p.bitsPerByte.toFixed(3)],
      ["perplexity (a token)", (p) => significant(p.perplexity)],
      ["tokens", (p) => String(p.tokens)],
    ],
  );
  section(
    (t) => t.exact,
    (e) => `exact match: ${number(e.questions, "question")}`,
    ({ groups }) => [
      ["contains an answer", (e) => share(e.contains, e.containsInterval)],
      ...groupRows(groups, (e: { groups: typeof groups }, g) => `${percent(e.groups[g].contains)}%`),
      ["is an answer", (e) => share(e.exact, e.exactInterval)],
      ["tokens of a reply", (e) => e.length.toFixed(1)],
    ],
  );
  section(
    (t) => t.choice,
    (c) => `multiple choice: ${number(c.questions, "question")}, ${percent(c.chance)}% by chance`,
    ({ groups }) => [
      ["by log p a byte", (c) => share(c.accuracyPerByte, c.accuracyPerByteInterval)],
      ...groupRows(groups, (c: { groups: typeof groups }, g) => `${percent(c.groups[g].accuracyPerByte)}%`),
      ["by log p", (c) => share(c.accuracy, c.accuracyInterval)],
    ],
  );
  section(
    (t) => t.reward,
    (r) => `replies: ${number(r.prompts, "prompt")}`,
    () => [
      [
        "mean reward",
        (r) => (r.mean === undefined ? undefined : `${r.mean.toFixed(2)} ${bounds(r.interval!, (x) => x.toFixed(2))}`),
      ],
      ["tokens of a reply", (r) => r.length.toFixed(1)],
      ["ended by the model", (r) => `${percent(r.finished)}%`],
      ["too long for the judge", (r) => (r.cut ? String(r.cut) : undefined)],
    ],
  );
  section(
    (t) => t.winRate,
    (w) => `against ${known.get(w.against) ?? w.against}: ${number(w.prompts, "prompt")}`,
    () => [
      ["win rate, ties half", (w) => share(w.winRate, w.interval)],
      ["won, tied, lost", (w) => `${w.wins}, ${w.ties}, ${w.losses}`],
    ],
  );
  return rows;
}

/** A row for each group, when there is more than one. */
function groupRows<T>(groups: object, cell: (t: T, group: string) => string): [string, (t: T) => string][] {
  const names = Object.keys(groups);
  return names.length < 2 ? [] : names.map((g) => [`  ${g}`, (t) => cell(t, g)]);
}

function describeSample({ file, line, prompt, replies }: SideBySide, known: ReadonlyMap<string, string>): string[] {
  const names = replies.map((r) => known.get(r.model) ?? r.model);
  const width = Math.max(...names.map((n) => n.length));
  const mark = ({ right, score }: SideBySide["replies"][number]): string =>
    right === undefined ? (score === undefined ? "" : `${score.toFixed(2).padStart(6)}  `) : right ? "✓ " : "✗ ";
  return [
    `${shorten(prompt)}  (${file}:${line})`,
    ...replies.map((r, i) => `  ${names[i].padEnd(width)}  ${mark(r)}${shorten(r.text)}`),
    "",
  ];
}

const percent = (x: number): number => Math.round(x * 100);
const bounds = ([low, high]: [number, number], show: (x: number) => string): string => `[${show(low)}, ${show(high)}]`;
const share = (x: number, interval: [number, number]): string =>
  `${percent(x)}% ${bounds(interval, (v) => String(percent(v)))}`;
const number = (n: number, what: string): string => `${n.toLocaleString("en-US")} ${what}${n === 1 ? "" : "s"}`;
const significant = (x: number): string => (x < 1000 ? x.toPrecision(4) : x.toExponential(2));
/** One line of at most 100 characters; control characters, which a young model writes, would garble a terminal. */
export function shorten(text: string): string {
  const line = text.replace(/[\s\p{Cc}]+/gu, " ").trim();
  const characters = [...line];
  return characters.length > 100 ? `${characters.slice(0, 100).join("")}…` : line;
}
