/** The heuristic presets: measures a text once, judges every rule of the chosen presets, and says what would be cut. */
import type { Finding, Span } from "../document.js";
import { c4, LINE_RULES, PAGE_RULES } from "./c4.js";
import { FINEWEB, FINEWEB_SHORT_LINE, fineweb } from "./fineweb.js";
import { GOPHER_QUALITY, GOPHER_REPETITION, gopherQuality, gopherRepetition } from "./gopher.js";
import { Measured } from "./measure.js";
import { judge, type Rule, type Signals, type Thresholds } from "./rules.js";
import { SLIMPAJAMA, slimpajama } from "./slimpajama.js";
import { ZH, zh } from "./zh.js";

export type { Rule, Signals, Thresholds } from "./rules.js";

/** Every rule of a preset with its published threshold. */
export const PRESETS = {
  gopher: [...GOPHER_QUALITY, ...GOPHER_REPETITION],
  c4: [...LINE_RULES, ...PAGE_RULES],
  fineweb: FINEWEB,
  slimpajama: SLIMPAJAMA,
  zh: ZH,
} satisfies Record<string, Rule[]>;
export type PresetName = keyof typeof PRESETS;
export const PRESET_NAMES = Object.keys(PRESETS) as PresetName[];

/** The length of a line up to which it is short is a threshold of the measure, not of a rule. */
const SETTINGS = ["fineweb.shortLineLength"];
const KNOWN = new Set([...Object.values(PRESETS).flatMap((rules) => rules.map((r) => r.name)), ...SETTINGS]);

export interface HeuristicRules {
  presets: readonly PresetName[];
  /** By name, e.g. {"gopher.minWords": 100}; null switches a rule off. */
  thresholds?: Thresholds;
}

/** All names by which a threshold can be changed. */
export const thresholdNames = (): string[] => [...KNOWN];

/** The threshold of a rule as its preset has it; undefined when there is no such rule. */
export const publishedThreshold = (name: string): number | undefined =>
  Object.values(PRESETS)
    .flatMap((rules) => rules as Rule[])
    .find((r) => r.name === name)?.threshold;

/** Whether a change of this threshold can be judged from the signals alone, without the text. */
export function needsText(name: string): boolean {
  if (SETTINGS.includes(name)) return true;
  return Object.values(PRESETS).some((rules) => (rules as Rule[]).some((r) => r.name === name && r.needsText));
}

export interface Evaluation {
  signals: Signals;
  findings: Finding[];
  /** What the line rules would cut; UTF-16 offsets into the text as given. */
  spans: Span[];
}

/**
 * Measures `text` and judges every rule of the presets; all are recorded, also after one has failed.
 * `language` chooses the stop words (undefined: English). Never throws on any text.
 */
export function evaluateHeuristics(text: string, language: string | undefined, rules: HeuristicRules): Evaluation {
  const doc = new Measured(text, language);
  const overrides = rules.thresholds ?? {};
  const signals: Signals = {};
  const findings: Finding[] = [];
  const spans: Span[] = [];
  for (const preset of rules.presets) {
    if (preset === "gopher") {
      Object.assign(signals, gopherQuality(doc), gopherRepetition(doc));
      findings.push(...judge(PRESETS.gopher, signals, overrides));
    } else if (preset === "c4") {
      const result = c4(doc, overrides);
      Object.assign(signals, result.signals);
      findings.push(...result.findings, ...judge(PAGE_RULES, signals, overrides));
      for (const span of result.spans) spans.push(span); // spread, they would overflow the stack: a text may have as many lines
    } else if (preset === "fineweb") {
      Object.assign(signals, fineweb(doc, overrides["fineweb.shortLineLength"] ?? FINEWEB_SHORT_LINE));
      findings.push(...judge(FINEWEB, signals, overrides));
    } else if (preset === "slimpajama") {
      Object.assign(signals, slimpajama(doc));
      findings.push(...judge(SLIMPAJAMA, signals, overrides));
    } else if (preset === "zh") {
      Object.assign(signals, zh(doc));
      findings.push(...judge(ZH, signals, overrides));
    }
  }
  return { signals, findings, spans };
}

/** The same judgement from recorded signals: for what-if. Rules that need the text keep no finding here. */
export function judgeSignals(signals: Signals, rules: HeuristicRules): Finding[] {
  return rules.presets.flatMap((preset) =>
    judge(
      (PRESETS[preset] as Rule[]).filter((r) => !r.needsText),
      signals,
      rules.thresholds ?? {},
    ),
  );
}
