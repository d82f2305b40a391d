/** `corpus why`: all that is known of one document of a build; for a duplicate its twin and what differs. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { UserError } from "../run/errors.js";
import { type Change, diffLines } from "./diff.js";
import { applySpans, type Finding, type Rejected, type Span } from "./document.js";
import type { Duplicate } from "./duplicates.js";
import type { Outcome } from "./finish.js";
import { BuildFolder, readRows } from "./folder.js";
import type { Row } from "./unit.js";

export interface Why {
  id: string;
  url: string | undefined;
  dataset: string;
  source: Row["source"];
  action: "keep" | "drop";
  stage: string | undefined;
  rule: string | undefined;
  split: string | undefined;
  language: string | undefined;
  findings: Finding[];
  signals: Record<string, number | string | null>;
  spans: (Span & { text: string })[];
  duplicate: (Duplicate & { diff: Change[] }) | undefined;
  text: string;
}

/** A finding as decisions/ stores it. */
export type StoredFinding = [string, string, number | string, number | string | null, Finding["verdict"], string?];
export interface StoredDecision {
  id: string;
  action: "keep" | "drop";
  stage?: string;
  rule?: string;
  findings: StoredFinding[];
}

export function restoreFinding([stage, rule, value, threshold, verdict, detail]: StoredFinding): Finding {
  return {
    stage,
    rule,
    value,
    ...(threshold === null ? {} : { threshold }),
    verdict,
    ...(detail === undefined ? {} : { detail }),
  };
}

/** The folder of a finished build. */
export function openBuild(dir: string): BuildFolder {
  if (!existsSync(`${dir}/funnel.json`))
    throw new UserError(
      existsSync(`${dir}/units`)
        ? `${dir} holds a build that is not finished. Run "lyceum corpus build" again; it goes on where it was.`
        : `${dir} is no corpus build: there is no funnel.json in it.`,
      2,
    );
  return new BuildFolder(dir);
}

export const unitsOf = (folder: BuildFolder): string[] =>
  readdirSync(folder.path("outcome"))
    .filter((f) => f.endsWith(".jsonl"))
    .map((f) => f.slice(0, -6))
    .sort();

interface Place {
  unit: string;
  row: number;
}

/** Documents whose id or address is `wanted`, in order; ids come first. */
function find(folder: BuildFolder, wanted: string): Place[] {
  const byId: Place[] = [];
  const byUrl: Place[] = [];
  const quoted = JSON.stringify(wanted);
  for (const unit of unitsOf(folder)) {
    const text = readFileSync(folder.rows("documents", unit), "utf8");
    if (!text.includes(quoted)) continue;
    for (const [row, line] of text.split("\n").entries()) {
      if (!line.includes(quoted)) continue;
      const { id, url } = JSON.parse(line) as Row;
      if (id === wanted) byId.push({ unit, row });
      else if (url === wanted) byUrl.push({ unit, row });
    }
  }
  return [...byId, ...byUrl];
}

/** Throws UserError when there is no such document; tells so if it was rejected. */
export function why(dir: string, wanted: string): Why {
  const folder = openBuild(dir);
  const [place] = find(folder, wanted);
  if (!place) throw notFound(folder, wanted);
  const { unit, row } = place;
  const at = <T>(kind: "documents" | "signals" | "decisions" | "spans" | "duplicates" | "outcome"): T =>
    readRows<T>(folder.rows(kind, unit))[row];
  const document = at<Row>("documents");
  const outcome = at<Outcome>("outcome");
  const spans = [...at<Span[]>("spans"), ...readRows<Span[]>(folder.path(`repeats/${unit}.jsonl`))[row]];
  const { id: _, language, domain: __, ...signals } = at<Record<string, number | string | null>>("signals");
  const duplicate = at<Duplicate | null>("duplicates");
  const text = applySpans(document.text, spans);
  return {
    id: document.id,
    url: document.url,
    dataset: document.dataset,
    source: document.source,
    action: outcome.action,
    stage: outcome.stage,
    rule: outcome.rule,
    split: outcome.split,
    language: typeof language === "string" ? language : undefined,
    findings: at<StoredDecision>("decisions").findings.map(restoreFinding),
    signals,
    spans: spans.map((s) => ({ ...s, text: document.text.slice(s.start, s.end) })),
    duplicate: duplicate ? { ...duplicate, diff: diffLines(twinText(folder, duplicate), text) } : undefined,
    text: document.text,
  };
}

function twinText(folder: BuildFolder, { kept, dataset }: Duplicate): string {
  for (const { unit, row } of find(folder, kept).concat(against(folder, kept))) {
    const document = readRows<Row>(folder.rows("documents", unit))[row];
    if (document.dataset === dataset)
      return applySpans(document.text, readRows<Span[]>(folder.rows("spans", unit))[row]);
  }
  return "";
}

/** Units of deduplicate.against have no outcome. */
function against(folder: BuildFolder, id: string): Place[] {
  return readdirSync(folder.path("documents"))
    .filter((f) => f.startsWith("against-"))
    .flatMap((f) =>
      readRows<Row>(folder.path(`documents/${f}`)).flatMap((d, row) =>
        d.id === id ? [{ unit: f.slice(0, -6), row }] : [],
      ),
    );
}

function notFound(folder: BuildFolder, wanted: string): UserError {
  const rejected = readRows<Rejected>(folder.path("rejected.jsonl")).find(
    (r) => wanted === r.file || wanted === `${r.file}:${r.line}`,
  );
  if (rejected)
    return new UserError(
      `${wanted} could not be used: ${rejected.reason} (${rejected.file}, record ${rejected.line}).`,
    );
  const [unit] = unitsOf(folder);
  const example = unit === undefined ? undefined : readRows<Outcome>(folder.rows("outcome", unit))[0]?.id;
  return new UserError(
    `No document of ${folder.dir} has the id or the URL "${wanted}".${example ? ` Ids look like "${example}".` : ""}`,
  );
}
