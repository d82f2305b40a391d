/** All blocks that look at one document at a time: every rule is evaluated and recorded, also after one has said drop. */
import type { Document, Finding, Span } from "./document.js";
import { applySpans } from "./document.js";
import { evaluateHeuristics, type HeuristicRules, type PresetName } from "./heuristics/index.js";
import type { LanguageIdentifier } from "./language.js";
import type { Recipe } from "./recipe.js";

export interface Judgement {
  findings: Finding[];
  signals: Record<string, number>;
  /** What the line rules cut. */
  spans: Span[];
  /** The text that is left; "" when the document is dropped. */
  text: string;
  language: string | undefined;
  /** The first finding that says drop. */
  dropped: Finding | undefined;
}

export interface JudgeContext {
  recipe: Recipe;
  identifier: LanguageIdentifier | undefined;
}

/** The presets for a language, as the recipe has them. */
export function rulesFor(recipe: Recipe, language: string | undefined): HeuristicRules | undefined {
  if (!recipe.heuristics) return undefined;
  const { presets, byLanguage, thresholds } = recipe.heuristics;
  return { presets: (byLanguage[language ?? ""] ?? presets) as PresetName[], thresholds };
}

/** `urlFindings`: what the URL filter said when the document was read. */
export function judge(
  document: Document,
  urlFindings: readonly Finding[],
  trusted: boolean,
  context: JudgeContext,
): Judgement {
  const { recipe, identifier } = context;
  const findings: Finding[] = [...urlFindings];
  const signals: Record<string, number> = {};
  const spans: Span[] = [];
  let { language } = document;
  const { text } = document;
  // A blocked page was not extracted: there is no text to judge.
  const blocked = urlFindings.some((f) => f.verdict === "drop");
  if (!blocked) {
    if (text.trim() === "")
      findings.push({
        stage: "extract",
        rule: "extract.text",
        value: 0,
        threshold: 1,
        verdict: "drop",
        detail: "no text was found",
      });
    if (identifier && recipe.language) {
      const found = identifier.identify(text);
      language = found.language;
      signals["language.score"] = found.score;
      findings.push(...judgeLanguage(found, recipe.language));
    }
    const rules = rulesFor(recipe, language);
    if (rules) {
      const evaluation = evaluateHeuristics(text, language, rules);
      Object.assign(signals, evaluation.signals);
      findings.push(...evaluation.findings);
      spans.push(...evaluation.spans);
    }
  }
  if (trusted)
    for (const finding of findings) if (finding.verdict === "drop" && finding.stage !== "extract") trust(finding);
  const dropped = findings.find((f) => f.verdict === "drop");
  const kept = trusted ? [] : spans;
  return { findings, signals, spans: kept, text: dropped ? "" : applySpans(text, kept), language, dropped };
}

function trust(finding: Finding): void {
  finding.verdict = "pass";
  finding.detail = `would be dropped, but the source is trusted${finding.detail ? `; ${finding.detail}` : ""}`;
}

export function judgeLanguage(
  found: { language: string; score: number },
  settings: { keep: string[]; threshold: number; thresholds: Record<string, number> },
): Finding[] {
  const threshold = settings.thresholds[found.language] ?? settings.threshold;
  const findings: Finding[] = [
    {
      stage: "language",
      rule: "language.threshold",
      value: found.score,
      threshold,
      verdict: found.score < threshold ? "drop" : "pass",
      detail: found.language,
    },
  ];
  if (settings.keep.length > 0)
    findings.unshift({
      stage: "language",
      rule: "language.keep",
      value: found.language,
      threshold: settings.keep.join(" "),
      verdict: settings.keep.includes(found.language) ? "pass" : "drop",
    });
  return findings;
}
