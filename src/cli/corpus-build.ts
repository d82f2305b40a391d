/** `lyceum corpus build`: a recipe to a folder with clean documents, token shards, and a reason for every decision. */
import { availableParallelism } from "node:os";
import { basename, extname } from "node:path";
import { type BuildProgress, type BuildSummary, build, buildTogether } from "../corpus/build.js";
import { funnelLines } from "../corpus/funnel.js";
import { loadRecipe, recipeSchema } from "../corpus/recipe.js";
import { writeReport } from "../corpus/report.js";
import { UserError } from "../run/errors.js";
import { duration, mebibytes, openProgress } from "../run/progress.js";
import { whole } from "./flags.js";
import { joinWorld } from "./world.js";

export interface BuildFlags {
  out?: string;
  workers?: string;
  set?: string[];
  against?: string[];
  json?: boolean;
}

export async function command(file: string, flags: BuildFlags): Promise<void> {
  const recipe = loadRecipe(file, flags.set ?? []);
  if (flags.against) {
    recipe.deduplicate ??= recipeSchema.shape.deduplicate.parse({});
    recipe.deduplicate!.against.push(...flags.against);
  }
  const world = await joinWorld();
  const cores = world?.threads ?? availableParallelism();
  const workers = flags.workers === undefined ? cores : whole("--workers", flags.workers, 1, 256);
  const dir = flags.out ?? `runs/${recipe.name ?? basename(file, extname(file))}`;
  const summary = world
    ? await buildTogether(
        recipe,
        dir,
        workers,
        world.comm.rank === 0 ? terminal(process.stderr) : openProgress(process.stderr, false),
        world.comm,
      )
    : await build(recipe, dir, workers, terminal(process.stderr));
  if (!summary) return;
  writeReport(dir);
  if (flags.json) console.log(JSON.stringify({ dir, ...summary }));
  else for (const line of summaryLines(dir, summary)) console.error(line);
  if (summary.finished.kept === 0) throw nothingKept(dir, summary.stages);
}

/** Names the rule that took most. */
function nothingKept(dir: string, stages: BuildSummary["stages"]): UserError {
  const rules = stages.flatMap((s) => s.rules.map(({ rule, first }) => ({ stage: s.stage, rule, first })));
  const worst = rules.sort((a, b) => b.first - a.first)[0];
  const { in: all, failed } = stages[0];
  const why =
    failed === all
      ? `none of its ${all} records could be used; ${dir}/rejected.jsonl says why`
      : `${worst.rule} (${worst.stage}) took ${worst.first} of its ${all - failed} documents; ${dir}/report.html lists all rules`;
  return new UserError(`${dir}: nothing is kept: ${why}.`);
}

/** On a terminal the funnel as it grows, redrawn in place; elsewhere a line now and then. */
function terminal(stream: NodeJS.WriteStream): BuildProgress {
  const progress: BuildProgress = openProgress(stream);
  if (!stream.isTTY) return progress;
  let shown = 0;
  const erase = (): void => {
    if (shown > 0) stream.write(`\u001b[${shown}A\u001b[J`);
    shown = 0;
  };
  return {
    note(text) {
      erase();
      progress.note(text);
    },
    status(text, keep) {
      erase();
      progress.status(text, keep);
    },
    picture(lines) {
      progress.end();
      erase();
      // A line that wraps, or a picture that is higher than the window, could not be taken back.
      const width = Math.max(20, (stream.columns || 80) - 1);
      const fitting = lines.slice(-Math.max(1, (stream.rows || 24) - 2)).map((line) => line.slice(0, width));
      stream.write(`${fitting.join("\n")}\n`);
      shown = fitting.length;
    },
    end() {
      erase();
      progress.end();
    },
  };
}

function summaryLines(
  dir: string,
  { stages, finished, duplicates, units, seconds, peakMemory }: BuildSummary,
): string[] {
  const lines = funnelLines(stages);
  if (duplicates.repeats > 0)
    lines.push(
      `${"substring".padEnd(14)} ${counted(duplicates.repeats, "run")} of text that occur elsewhere too (${duplicates.repeatCharacters.toLocaleString("en-US")} characters), cut out of documents that are kept`,
    );
  for (const side of ["train", "validation"] as const) {
    const m = finished[side];
    if (m)
      lines.push(
        `${side.padEnd(14)} ${counted(m.documents, "document")}, ${m.tokens.toLocaleString("en-US")} tokens (${m.dtype})${finished.mix.some((s) => s.wanted !== undefined) ? ", drawn by the sources' weights" : ""}`,
      );
  }
  for (const { source, documents, rule, took } of finished.emptied)
    lines.push(`nothing is left of the source ${source} (${counted(documents, "document")}): ${rule} took ${took}`);
  if (finished.mix.length > 1) {
    lines.push("source          documents        tokens   share  wanted  epochs");
    for (const s of finished.mix)
      lines.push(
        `${s.source.padEnd(14)} ${String(s.documents).padStart(10)} ${String(s.tokens).padStart(13)} ${percent(s.share)} ${percent(s.wanted)} ${s.epochs.toFixed(2).padStart(7)}`,
      );
  }
  for (const o of duplicates.overlaps.filter((row) => row.from !== row.against))
    lines.push(
      `${o.documents} documents of ${o.from} are in ${o.against}, such as ${o.examples[0].id} (${o.examples[0].kept}, ${o.examples[0].similarity.toFixed(2)})`,
    );
  const reused =
    units.reused > 0 ? `, ${units.reused} of ${units.read + units.judged + units.reused} units taken from earlier` : "";
  lines.push(`${dir}: ${duration(seconds)}, ${mebibytes(peakMemory)} of memory at most${reused}`);
  const failed = stages[0].failed;
  if (failed > 0)
    lines.push(`${failed} records could not be used; they are listed with reasons in ${dir}/rejected.jsonl`);
  lines.push(`report: ${dir}/report.html`);
  return lines;
}

const counted = (n: number, what: string): string => `${n.toLocaleString("en-US")} ${what}${n === 1 ? "" : "s"}`;
const percent = (share: number | undefined): string =>
  share === undefined ? "      -" : `${(share * 100).toFixed(1)}%`.padStart(7);
