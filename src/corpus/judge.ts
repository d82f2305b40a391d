/** All blocks that look at one document at a time: every rule is evaluated and recorded, also after one has said drop. */
import { existsSync, statSync } from "node:fs";
import { basename } from "node:path";
import { UserError } from "../run/errors.js";
import { evaluateAds } from "./ads.js";
import { judgeScore, type QualityClassifier } from "./classifier.js";
import { Decontaminator } from "./decontaminate.js";
import { applySpans, chanceKey, type Document, type Finding, type Span } from "./document.js";
import { evaluateGarbled } from "./garbled.js";
import { evaluateHarmful } from "./harmful.js";
import { evaluateHeuristics, type HeuristicRules, type PresetName } from "./heuristics/index.js";
import { listFiles, readSource } from "./input/source.js";
import type { LanguageIdentifier } from "./language.js";
import { evaluatePii } from "./pii.js";
import { AGAINST, type Recipe } from "./recipe.js";

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
  evaluations: Decontaminator | undefined;
  classifier: QualityClassifier | undefined;
}

/**
 * Whether a trusted source is not spared: there is nothing to keep, or it must not be seen in training. Another data set, of which nothing
 * is written out, is spared what stands in evaluation sets: the twins of such a document must be found.
 */
const always = (stage: string, dataset: string): boolean =>
  stage === "extract" || (stage === "decontaminate" && dataset !== AGAINST);

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
    const add = (found: { signals?: Record<string, number>; findings: Finding[]; spans?: Span[] }): void => {
      Object.assign(signals, found.signals);
      findings.push(...found.findings);
      // One by one: there may be more than a call takes.
      for (const span of found.spans ?? []) spans.push(span);
    };
    const rules = rulesFor(recipe, language);
    if (rules) add(evaluateHeuristics(text, language, rules));
    if (recipe.garbled) add(evaluateGarbled(text, recipe.garbled));
    if (recipe.ads) add(evaluateAds(text, recipe.ads));
    if (recipe.harmful) add(evaluateHarmful(text, language, recipe.harmful));
    if (context.classifier && recipe.classifier) {
      const score = context.classifier.score(text);
      const finding = judgeScore(score, chanceKey(document), { ...recipe.classifier, seed: recipe.seed });
      add({ signals: { "classifier.score": score }, findings: [finding] });
    }
    if (context.evaluations) add(context.evaluations.evaluate(text));
    if (recipe.pii) add(evaluatePii(text, recipe.pii.kinds));
  }
  if (trusted)
    for (const finding of findings)
      if (finding.verdict === "drop" && !always(finding.stage, document.dataset)) trust(finding);
  const dropped = findings.find((f) => f.verdict === "drop");
  // Another data set is compared as the sources are: after the cuts.
  const kept = trusted && document.dataset !== AGAINST ? spans.filter((s) => !ofHeuristics(s)) : spans;
  return { findings, signals, spans: kept, text: dropped ? "" : applySpans(text, kept), language, dropped };
}

/** Whether a line rule cuts it, and not PII or decontamination. */
export const ofHeuristics = ({ reason }: Span): boolean => !/^(?:decontaminate|pii)\b/.test(reason);

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

const KEY = "decontaminate.files";
/** Bytes of a record: a file of text is one. */
const LARGEST_SET = 2 ** 28;

/** The files of the evaluation sets. In a folder those of a known format; a file that is named may have another name, and is text. */
export function evaluationFiles(recipe: Recipe): string[] {
  return (recipe.decontaminate?.files ?? []).flatMap((path) => {
    if (!existsSync(path)) throw new UserError(`${path} does not exist. It is named under ${KEY}.`, 2);
    return statSync(path).isDirectory() ? listFiles([path], KEY) : [path];
  });
}

/**
 * The runs of the evaluation sets; undefined when the recipe names none. Throws a UserError where a file cannot be read as a whole, or
 * nothing in it can be looked for: a corpus would be taken for clean.
 */
export async function loadEvaluations(recipe: Recipe): Promise<Decontaminator | undefined> {
  if (!recipe.decontaminate) return undefined;
  const { words, minWords, mode } = recipe.decontaminate;
  const evaluations = new Decontaminator({ n: words, minWords: Math.min(minWords, words), mode });
  for (const file of evaluationFiles(recipe)) {
    const set = basename(file);
    let found = 0;
    for await (const { record } of readSource([file], { file: 0, records: 0 }, { maxRecordBytes: LARGEST_SET }, true)) {
      if (record.skip) continue;
      if (record.reason !== undefined)
        throw new UserError(`${file}, record ${record.line}: ${record.reason}. It is an evaluation set (${KEY}).`);
      const lines = Buffer.from(record.bytes).toString("utf8").split("\n");
      for (const [i, line] of lines.entries())
        for (const text of stringsOf(line)) if (evaluations.addEvaluation(set, String(record.line + i), text)) found++;
    }
    if (found === 0)
      throw new UserError(
        `${file}: nothing in it can be looked for. Evaluation sets (${KEY}) are JSONL, Parquet or text, with items of at least ${evaluations.options.minWords} words (decontaminate.minWords).`,
      );
  }
  return evaluations;
}
/** Every string in a JSON line, or the line itself when it is none. */
function stringsOf(line: string): string[] {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return [line];
  }
  const found: string[] = [];
  const open = [value];
  while (open.length > 0) {
    const next = open.pop();
    if (typeof next === "string") found.push(next);
    else if (next !== null && typeof next === "object") for (const inner of Object.values(next)) open.push(inner);
  }
  return found;
}
