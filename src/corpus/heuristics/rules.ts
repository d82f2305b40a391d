/** A heuristic rule: a signal measured on the text, a threshold, and how the two are compared. */
import type { Finding } from "../document.js";

export interface Rule {
  /** `preset.threshold`, the name by which a recipe overrides it. */
  name: string;
  signal: string;
  /** min: dropped below the threshold; max: dropped above it. */
  kind: "min" | "max";
  threshold: number;
  /** A change needs the text again, because the signal itself depends on other settings or there is more to do than compare. */
  needsText?: boolean;
}

/** What was measured on one text. A signal that does not apply (no stop words known for the language) is NaN. */
export type Signals = Record<string, number>;

/** Thresholds by name; null switches a rule off. */
export type Thresholds = Record<string, number | null>;

/** The threshold in force: undefined when the rule is off. */
export function thresholdOf(rule: Rule, overrides: Thresholds): number | undefined {
  const given = overrides[rule.name];
  return given === undefined ? rule.threshold : (given ?? undefined);
}

/** Judges every rule by the signals alone, so that a changed threshold needs no text. */
export function judge(rules: readonly Rule[], signals: Signals, overrides: Thresholds = {}): Finding[] {
  const findings: Finding[] = [];
  for (const rule of rules) {
    const threshold = thresholdOf(rule, overrides);
    if (threshold === undefined) continue;
    const value = signals[rule.signal];
    const finding: Finding = { stage: "heuristics", rule: rule.name, value, threshold, verdict: "pass" };
    // null: NaN that went through JSON.
    if (value === undefined || value === null || Number.isNaN(value)) {
      finding.value = "none";
      finding.detail = "not measured: it does not apply to this language";
    } else if (rule.kind === "min" ? value < threshold : value > threshold) finding.verdict = "drop";
    findings.push(finding);
  }
  return findings;
}
