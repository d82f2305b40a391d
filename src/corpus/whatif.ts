/** `corpus what-if`: the same corpus under other thresholds, from the recorded signals; texts are read only for line rules. */

import { readFileSync } from "node:fs";
import { parse } from "yaml";
import { nearest } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { judgeScore } from "./classifier.js";
import type { Finding, Span } from "./document.js";
import { applySpans } from "./document.js";
import type { Duplicate } from "./duplicates.js";
import type { Outcome } from "./finish.js";
import { type BuildFolder, readRows } from "./folder.js";
import { evaluateHeuristics, judgeSignals, needsText, publishedThreshold, thresholdNames } from "./heuristics/index.js";
import { judge as judgeRules } from "./heuristics/rules.js";
import { judgeLanguage, ofHeuristics, rulesFor } from "./judge.js";
import { type Recipe, recipeSchema, SIMPLE_RULES } from "./recipe.js";
import type { Row } from "./unit.js";
import { openBuild, restoreFinding, type StoredDecision, unitsOf } from "./why.js";

export interface WhatIf {
  rules: Record<string, { before: unknown; after: unknown }>;
  documents: number;
  kept: { before: number; after: number };
  /** Characters (UTF-16 units) of the documents that are kept. */
  characters: { before: number; after: number };
  /** Kept now and not then, and the other way round; at most 20 ids of each. */
  gained: { documents: number; ids: string[] };
  lost: { documents: number; ids: string[] };
  /** Documents that each rule would drop, where that changes. */
  dropped: Record<string, { before: number; after: number }>;
  seconds: number;
  note: string;
}

/** May only be raised: what is less similar than the build's threshold was not recorded. */
const NEAR = "deduplicate.near.threshold";

const NOTE =
  "Duplicates are not looked for again: a document that a filter had dropped is counted as kept, and a twin stays out as long as the document kept for it stays in.";

/** `changes`: rule name to value, as given on the command line. Throws UserError for a rule that does not exist. */
export function whatIf(dir: string, changes: readonly string[]): WhatIf {
  const began = Date.now();
  const folder = openBuild(dir);
  const recipe = recipeSchema.parse(parse(readFileSync(folder.path("recipe.yaml"), "utf8"))) as Recipe;
  const rules: WhatIf["rules"] = {};
  const changed = structuredClone(recipe);
  let texts = false;
  for (const change of changes) texts = apply(change, recipe, changed, rules) || texts;
  const result: WhatIf = {
    rules,
    documents: 0,
    kept: { before: 0, after: 0 },
    characters: { before: 0, after: 0 },
    gained: { documents: 0, ids: [] },
    lost: { documents: 0, ids: [] },
    dropped: {},
    seconds: 0,
    note: NOTE,
  };
  const lost = new Set<string>();
  const later: (() => void)[] = [];
  for (const unit of unitsOf(folder)) judgeUnit(folder, unit, changed, texts, result, lost, later);
  // Twins last: whether their kept document still is there is known only now.
  for (const twin of later) twin();
  result.dropped = Object.fromEntries(Object.entries(result.dropped).filter(([, n]) => n.before !== n.after));
  result.seconds = (Date.now() - began) / 1000;
  return result;
}

function apply(change: string, recipe: Recipe, changed: Recipe, rules: WhatIf["rules"]): boolean {
  const equals = change.indexOf("=");
  if (equals < 1)
    throw new UserError(`--rule ${change}: write it as NAME=VALUE, such as --rule gopher.minWords=100.`, 2);
  const name = change.slice(0, equals);
  const text = change.slice(equals + 1).trim();
  const value = text === "off" || text === "null" ? null : Number(text);
  if (value !== null && (text === "" || !Number.isFinite(value)))
    throw new UserError(`--rule ${change}: the value must be a number, or "off".`, 2);
  if (name === "minCharacters" && value !== null) {
    rules[name] = { before: recipe.minCharacters, after: value };
    changed.minCharacters = value;
    return false;
  }
  const language = /^language\.threshold(?:\.(\w+))?$/.exec(name);
  if (language && recipe.language && changed.language && value !== null) {
    const [, code] = language;
    rules[name] = {
      before: code ? (recipe.language.thresholds[code] ?? recipe.language.threshold) : recipe.language.threshold,
      after: value,
    };
    if (code) changed.language.thresholds[code] = value;
    else changed.language.threshold = value;
    return false;
  }
  if (
    name === "classifier.minScore" &&
    recipe.classifier?.mode === "threshold" &&
    changed.classifier &&
    value !== null
  ) {
    rules[name] = { before: recipe.classifier.threshold, after: value };
    changed.classifier.threshold = value;
    return false;
  }
  if (name === NEAR && recipe.deduplicate?.near && changed.deduplicate?.near && value !== null) {
    const { threshold } = recipe.deduplicate.near;
    if (value < threshold || value > 1)
      throw new UserError(
        `--rule ${change}: similarities below the build's threshold (${threshold}) were not recorded; give one from ${threshold} to 1, or build again.`,
        2,
      );
    rules[name] = { before: threshold, after: value };
    changed.deduplicate.near.threshold = value;
    return false;
  }
  const block = (Object.keys(SIMPLE_RULES) as (keyof typeof SIMPLE_RULES)[]).find((b) => name.startsWith(`${b}.`));
  const rule = block && SIMPLE_RULES[block].find((r) => r.name === name);
  if (block && rule && recipe[block] && changed[block]) {
    const old = recipe[block][name];
    rules[name] = { before: old === undefined ? rule.threshold : old, after: value };
    changed[block][name] = value;
    return false;
  }
  const used =
    recipe.heuristics && new Set([recipe.heuristics.presets, ...Object.values(recipe.heuristics.byLanguage)].flat());
  const known = thresholdNames().filter((n) => used?.has(n.split(".")[0]));
  if (!recipe.heuristics || !changed.heuristics || !known.includes(name)) {
    const simple = (Object.keys(SIMPLE_RULES) as (keyof typeof SIMPLE_RULES)[]).filter((b) => recipe[b]);
    const names = [
      ...known,
      ...simple.flatMap((b) => SIMPLE_RULES[b].map((r) => r.name)),
      ...(recipe.language ? ["language.threshold"] : []),
      ...(recipe.classifier?.mode === "threshold" ? ["classifier.minScore"] : []),
      ...(recipe.deduplicate?.near ? [NEAR] : []),
      "minCharacters",
    ];
    const near = nearest(name, names);
    throw new UserError(
      `There is no rule "${name}" to change. ${near ? `Did you mean "${near}"?` : `There are: ${names.join(", ")}.`}`,
      2,
    );
  }
  changed.heuristics.thresholds[name] = value;
  const published = publishedThreshold(name);
  rules[name] = { before: recipe.heuristics.thresholds[name] ?? published ?? "as published", after: value };
  return needsText(name);
}

function judgeUnit(
  folder: BuildFolder,
  unit: string,
  recipe: Recipe,
  texts: boolean,
  result: WhatIf,
  lost: Set<string>,
  later: (() => void)[],
): void {
  const decisions = readRows<StoredDecision>(folder.rows("decisions", unit));
  const signals = readRows<Record<string, number | string | null>>(folder.rows("signals", unit));
  const outcomes = readRows<Outcome>(folder.rows("outcome", unit));
  const duplicates = readRows<Duplicate | null>(folder.rows("duplicates", unit));
  const documents = texts ? readRows<Row>(folder.rows("documents", unit)) : [];
  const spans = readRows<Span[]>(folder.rows("spans", unit));
  const repeats = readRows<Span[]>(folder.path(`repeats/${unit}.jsonl`));
  const trusted = recipe.sources.find(
    (s) => unit.startsWith(`${s.name}-`) && /^\d+$/.test(unit.slice(s.name.length + 1)),
  )?.trusted;
  for (const [i, decision] of decisions.entries()) {
    const { id } = decision;
    const before = outcomes[i].action === "keep";
    const old = decision.findings.map(restoreFinding);
    const judged = trusted ? { findings: old, spans: undefined } : rejudge(old, signals[i], recipe, documents[i]);
    for (const [list, key] of [
      [old, "before"],
      [judged.findings, "after"],
    ] as const)
      for (const finding of list) {
        if (finding.verdict !== "drop") continue;
        result.dropped[finding.rule] ??= { before: 0, after: 0 };
        result.dropped[finding.rule][key]++;
      }
    const { characters: kept } = outcomes[i];
    // What no line rule cuts stays cut, and repeated runs: none of it is looked for again.
    const ruled = judged.spans ? [...judged.spans, ...spans[i].filter((s) => !ofHeuristics(s))] : spans[i];
    const cut = [...ruled, ...repeats[i]];
    const characters = !texts && kept !== undefined ? kept : lengthAfter(signals[i], documents[i], cut);
    const passes = !judged.findings.some((f) => f.verdict === "drop") && characters >= recipe.minCharacters;
    const finish = (after: boolean): void =>
      count(result, id, { before, after }, { before: kept ?? 0, after: characters }, lost);
    const near = recipe.deduplicate?.near || undefined;
    const twin =
      duplicates[i]?.kind === "near" && duplicates[i].similarity < (near?.threshold ?? 0) ? null : duplicates[i];
    if (passes && twin) later.push(() => finish(lost.has(twin.kept)));
    else finish(passes);
  }
}

function rejudge(
  old: readonly Finding[],
  signals: Record<string, number | string | null>,
  recipe: Recipe,
  document: Row | undefined,
): { findings: Finding[]; spans: Span[] | undefined } {
  const language = typeof signals.language === "string" ? signals.language : undefined;
  const rules = rulesFor(recipe, language);
  const evaluation = document && rules ? evaluateHeuristics(document.text, language, rules) : undefined;
  const fresh = new Map<string, Finding>();
  for (const f of evaluation?.findings ?? (rules ? judgeSignals(signals as Record<string, number>, rules) : []))
    fresh.set(f.rule, f);
  if (recipe.language && typeof signals["language.score"] === "number")
    for (const f of judgeLanguage({ language: language ?? "und", score: signals["language.score"] }, recipe.language))
      fresh.set(f.rule, f);
  for (const block of Object.keys(SIMPLE_RULES) as (keyof typeof SIMPLE_RULES)[])
    if (recipe[block])
      for (const f of judgeRules(SIMPLE_RULES[block], signals as Record<string, number>, recipe[block]))
        fresh.set(f.rule, { ...f, stage: block });
  const score = signals["classifier.score"];
  if (recipe.classifier?.mode === "threshold" && typeof score === "number") {
    const finding = judgeScore(score, "", recipe.classifier);
    fresh.set(finding.rule, finding);
  }
  // A rule that was switched off has no finding now; one of another stage keeps its own.
  const off = new Set(
    Object.entries({ ...recipe.heuristics?.thresholds, ...recipe.garbled, ...recipe.ads, ...recipe.harmful }).flatMap(
      ([name, v]) => (v === null ? [name] : []),
    ),
  );
  const findings = old.filter((f) => !off.has(f.rule)).map((f) => fresh.get(f.rule) ?? f);
  // A rule that the build had switched off was measured all the same.
  const judged = new Set(findings.map((f) => f.rule));
  if (old.length > 0) findings.push(...[...fresh.values()].filter((f) => !judged.has(f.rule)));
  return { findings, spans: evaluation?.spans };
}

function lengthAfter(
  signals: Record<string, number | string | null>,
  document: Row | undefined,
  spans: readonly Span[],
): number {
  if (document) return applySpans(document.text, spans).trim().length;
  return Number(signals.characters) - spans.reduce((n, s) => n + (s.end - s.start) - (s.replacement?.length ?? 0), 0);
}

function count(
  result: WhatIf,
  id: string,
  kept: { before: boolean; after: boolean },
  characters: { before: number; after: number },
  lost: Set<string>,
): void {
  result.documents++;
  for (const when of ["before", "after"] as const) {
    if (!kept[when]) continue;
    result.kept[when]++;
    result.characters[when] += characters[when];
  }
  if (kept.before === kept.after) return;
  const list = kept.after ? result.gained : result.lost;
  list.documents++;
  if (list.ids.length < 20) list.ids.push(id);
  if (!kept.after) lost.add(id);
}
