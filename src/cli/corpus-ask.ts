/** `lyceum corpus why | what-if | report`: questions to a finished build. */

import type { Change } from "../corpus/diff.js";
import { writeReport } from "../corpus/report.js";
import { type WhatIf, whatIf } from "../corpus/whatif.js";
import { type Why, why } from "../corpus/why.js";
import { UserError } from "../run/errors.js";

export function whyCommand(dir: string, id: string, options: { json?: boolean }): void {
  const answer = why(dir, id);
  if (options.json) console.log(JSON.stringify(answer));
  else console.log(whyLines(answer).join("\n"));
}

function whyLines(a: Why): string[] {
  const verdict = a.action === "keep" ? `kept (${a.split})` : `dropped by ${a.rule} (${a.stage})`;
  const lines = [
    `${a.id}: ${verdict}`,
    ...(a.url ? [a.url] : []),
    `${a.dataset}, ${a.source.file}, record ${a.source.line}, language ${a.language ?? "unknown"}`,
  ];
  for (const f of a.findings) {
    const mark = f.verdict === "drop" ? "✗" : f.verdict === "edit" ? "~" : "·";
    const value = typeof f.value === "number" ? Number(f.value.toPrecision(6)) : f.value;
    lines.push(
      `  ${mark} ${f.rule.padEnd(36)} ${String(value).padStart(12)}  ${f.threshold === undefined ? "" : `(${f.threshold})`} ${f.detail ?? ""}`.trimEnd(),
    );
  }
  if (a.spans.length > 0) lines.push(`${a.spans.length} ${a.spans.length === 1 ? "cut" : "cuts"}:`);
  for (const s of a.spans.slice(0, 20))
    lines.push(`  ${s.start}-${s.end} ${s.reason}: ${JSON.stringify(s.text.slice(0, 80))}`);
  if (a.duplicate) {
    const { kind, kept, dataset, similarity, diff } = a.duplicate;
    lines.push(
      `${kind} duplicate of ${kept} (${dataset}), Jaccard similarity ${similarity}; what differs (- there, + here):`,
    );
    for (const [i, c] of diff.slice(0, 60).entries())
      lines.push(
        c.kind === "=" ? `    ${c.text} equal lines` : `  ${c.kind} ${different(c, diff[i - 1], diff[i + 1])}`,
      );
  }
  return lines;
}

/** A line of a diff from shortly before where it departs from the line that stands in its place. */
function different(change: Change, before: Change | undefined, after: Change | undefined): string {
  const other = change.kind === "-" ? after : before;
  let at = 0;
  if (other && other.kind !== "=" && other.kind !== change.kind)
    while (at < change.text.length && change.text[at] === other.text[at]) at++;
  const from = at > 80 ? at - 40 : 0;
  const end = from + 200;
  return `${from > 0 ? "… " : ""}${change.text.slice(from, end)}${end < change.text.length ? " …" : ""}`;
}

export function whatIfCommand(dir: string, options: { rule: string[]; json?: boolean }): void {
  if (!options.rule?.length) throw new UserError("Name a change with --rule, such as --rule gopher.minWords=100.", 2);
  const answer = whatIf(dir, options.rule);
  if (options.json) console.log(JSON.stringify(answer));
  else console.log(whatIfLines(answer).join("\n"));
}

function whatIfLines(a: WhatIf): string[] {
  const n = (x: number): string => x.toLocaleString("en-US");
  const lines = Object.entries(a.rules).map(([rule, v]) => `${rule}: ${v.before} -> ${v.after ?? "off"}`);
  lines.push(
    `kept: ${n(a.kept.before)} -> ${n(a.kept.after)} of ${n(a.documents)} documents (${n(a.characters.before)} -> ${n(a.characters.after)} characters)`,
  );
  for (const [rule, v] of Object.entries(a.dropped)) lines.push(`  ${rule} would drop ${n(v.before)} -> ${n(v.after)}`);
  if (a.gained.documents > 0)
    lines.push(`gained ${n(a.gained.documents)}, such as ${a.gained.ids.slice(0, 3).join(", ")}`);
  if (a.lost.documents > 0) lines.push(`lost ${n(a.lost.documents)}, such as ${a.lost.ids.slice(0, 3).join(", ")}`);
  lines.push(a.note, `${a.seconds.toFixed(1)} s`);
  return lines;
}

export function reportCommand(dir: string): void {
  console.log(writeReport(dir));
}
