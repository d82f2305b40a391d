/** How many documents came into each block and what became of them; checked to add up. */
import type { Counts } from "./unit.js";

export interface FunnelRule {
  rule: string;
  /** Documents that went by this rule first, and documents that it would drop. */
  first: number;
  any: number;
  bytes: number;
}

export interface FunnelStage {
  stage: string;
  in: number;
  kept: number;
  dropped: number;
  failed: number;
  bytesDropped: number;
  rules: FunnelRule[];
}

/** in = kept + dropped + failed at every stage, and each stage begins with what the one before kept. Throws when it does not hold. */
export function checkConservation(stages: readonly FunnelStage[]): void {
  for (const [i, s] of stages.entries()) {
    if (s.in !== s.kept + s.dropped + s.failed)
      throw new Error(
        `the stage "${s.stage}" lost documents: ${s.in} came in, ${s.kept} + ${s.dropped} + ${s.failed} are accounted for`,
      );
    if (i > 0 && s.in !== stages[i - 1].kept)
      throw new Error(
        `between "${stages[i - 1].stage}" and "${s.stage}" documents were lost: ${stages[i - 1].kept} left, ${s.in} came in`,
      );
  }
}

export const emptyCounts = (): Counts => ({
  documents: 0,
  bytes: 0,
  rejected: 0,
  kept: 0,
  keptBytes: 0,
  rules: {},
  languages: {},
});

export function addCounts(total: Counts, more: Counts): void {
  for (const key of ["documents", "bytes", "rejected", "kept", "keptBytes"] as const) total[key] += more[key];
  for (const [language, n] of Object.entries(more.languages))
    total.languages[language] = (total.languages[language] ?? 0) + n;
  for (const [name, rule] of Object.entries(more.rules)) {
    total.rules[name] ??= { stage: rule.stage, first: 0, any: 0, bytes: 0 };
    const sum = total.rules[name];
    sum.first += rule.first;
    sum.any += rule.any;
    sum.bytes += rule.bytes;
  }
}

/** The stages that look at one document, in their order, from the units' counts. */
export function documentStages(counts: Counts): FunnelStage[] {
  const stages: FunnelStage[] = [
    {
      stage: "read",
      in: counts.documents + counts.rejected,
      kept: counts.documents,
      dropped: 0,
      failed: counts.rejected,
      bytesDropped: 0,
      rules: [],
    },
  ];
  const names = [...new Set(Object.values(counts.rules).map((r) => r.stage))];
  const order = [
    "url",
    "extract",
    "language",
    "heuristics",
    "garbled",
    "ads",
    "harmful",
    "classifier",
    "decontaminate",
    "pii",
  ];
  for (const stage of names.sort((a, b) => order.indexOf(a) - order.indexOf(b))) {
    const rules = Object.entries(counts.rules)
      .filter(([, r]) => r.stage === stage)
      .map(([rule, { first, any, bytes }]) => ({ rule, first, any, bytes }));
    stages.push(nextStage(stages, stage, rules));
  }
  return stages;
}

export function nextStage(stages: readonly FunnelStage[], stage: string, rules: FunnelRule[]): FunnelStage {
  const incoming = stages[stages.length - 1].kept;
  const dropped = rules.reduce((n, r) => n + r.first, 0);
  return {
    stage,
    in: incoming,
    kept: incoming - dropped,
    dropped,
    failed: 0,
    bytesDropped: rules.reduce((n, r) => n + r.bytes, 0),
    rules,
  };
}

const count = (n: number): string => n.toLocaleString("en-US");

/** The funnel as lines for a terminal: a bar for what is kept of all that was read, and the rules that dropped most. */
export function funnelLines(stages: readonly FunnelStage[], rulesShown = 5): string[] {
  const all = Math.max(1, stages[0]?.in ?? 0);
  const lines: string[] = [];
  for (const s of stages) {
    const bar = "█".repeat(Math.round((24 * s.kept) / all)).padEnd(24, "·");
    const gone = [s.dropped > 0 ? `-${count(s.dropped)}` : "", s.failed > 0 ? `${count(s.failed)} failed` : ""].filter(
      Boolean,
    );
    lines.push(`${s.stage.padEnd(14)} ${bar} ${count(s.kept).padStart(11)}  ${gone.join(", ")}`);
    const worst = s.rules.filter((r) => r.first > 0).sort((a, b) => b.first - a.first || (a.rule < b.rule ? -1 : 1));
    for (const r of worst.slice(0, rulesShown)) lines.push(`${" ".repeat(15)}${r.rule.padEnd(34)} -${count(r.first)}`);
  }
  return lines;
}
