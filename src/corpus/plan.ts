/** What a build has to do: the sources with their files, and the keys by which finished work is recognised. */
import { closeSync, existsSync, openSync, readdirSync, readSync, statSync } from "node:fs";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { UserError } from "../run/errors.js";
import { sha256 } from "./hash.js";
import { formatOf, listFiles } from "./input/source.js";
import { evaluationFiles } from "./judge.js";
import { checkMinHash } from "./minhash.js";
import { AGAINST, type Recipe } from "./recipe.js";
import { codeVersion } from "./version.js";

export interface SourcePlan {
  name: string;
  files: string[];
  /** How the files are called in ids. */
  labels: Map<string, string>;
  priority: number;
  readKey: string;
  judgeKey: string;
}

export interface Plan {
  sources: SourcePlan[];
  /** Of all files together; for the progress. */
  bytes: number;
}

export function planBuild(recipe: Recipe): Plan {
  let bytes = 0;
  const blocklists = recipe.url.blocklists.length > 0 ? recipe.url.blocklists.map((d) => fingerprints(d)) : [];
  const against = recipe.deduplicate?.against ?? [];
  const all = [
    ...(against.length > 0 ? [{ name: AGAINST, files: against, priority: 0, trusted: true }] : []),
    ...recipe.sources,
  ];
  const sources = all.map(({ name, files: paths, priority, trusted }) => {
    const files = listFiles(paths, name === AGAINST ? "deduplicate.against" : `sources.${name}.files`, true);
    const labels = labelsOf(files, paths);
    const prints = files.map((file) => {
      // It is listed only: a log that grows beside the pages does not make them other pages.
      if (formatOf(file) === undefined) return file;
      bytes += statSync(file).size;
      return fingerprint(file);
    });
    const { limits, url, extract, unit } = recipe;
    const readKey = sha256(
      JSON.stringify([codeVersion(), name, prints, [...labels.values()], limits, url, blocklists, extract, unit]),
    );
    // Of the deduplication a unit has the signatures only: they know no threshold, except that it may choose the bands.
    const near = recipe.deduplicate?.near && checkMinHash(recipe.deduplicate.near);
    const { garbled, ads, harmful, pii, classifier, decontaminate } = recipe;
    const blocks = [
      garbled,
      ads,
      harmful,
      pii,
      decontaminate,
      classifier,
      classifier && existing(classifier.model, "classifier.model"),
      evaluationFiles(recipe).map(fingerprint),
    ];
    const judgeKey = sha256(
      JSON.stringify([
        readKey,
        trusted,
        recipe.language,
        recipe.heuristics,
        blocks,
        near && { ...near, threshold: 0 },
        recipe.seed,
      ]),
    );
    return { name, files, labels, priority, readKey, judgeKey };
  });
  return { sources, bytes };
}

/** Path, size, time of change, and a hash of both ends: what tells that a file is still the same without reading all of it. */
function fingerprint(file: string): unknown[] {
  const { size, mtimeMs } = statSync(file);
  const end = Buffer.alloc(Math.min(size, 65536));
  const handle = openSync(file, "r");
  try {
    const head = Buffer.alloc(end.length);
    readSync(handle, head, 0, head.length, 0);
    readSync(handle, end, 0, end.length, Math.max(0, size - end.length));
    return [file, size, mtimeMs, sha256(Buffer.concat([head, end]))];
  } finally {
    closeSync(handle);
  }
}

function existing(file: string, where: string): unknown[] {
  if (!existsSync(file)) throw new UserError(`${file} does not exist. It is named under ${where}.`, 2);
  return fingerprint(file);
}

/** Of every file of a folder of block lists; the folder's own times do not tell when one of them is edited. */
function fingerprints(dir: string): unknown[] {
  if (!existsSync(dir)) throw new UserError(`${dir} does not exist. It is named under url.blocklists.`, 2);
  return readdirSync(dir, { recursive: true, encoding: "utf8" })
    .sort()
    .map((file) => {
      const { size, mtimeMs } = statSync(join(dir, file));
      return [file, size, mtimeMs];
    });
}

/**
 * Files' names as they stand in ids: below the folder that the recipe names, so that a moved corpus keeps its ids. Files that would have the
 * same name get as much of their paths as tells them apart.
 */
export function labelsOf(files: readonly string[], roots: readonly string[]): Map<string, string> {
  const folders = roots.map((root) => resolve(root));
  const labels = new Map<string, string>();
  for (const file of new Set(files)) {
    const path = resolve(file);
    const root = folders.find((folder) => path.startsWith(folder.endsWith(sep) ? folder : folder + sep));
    const label = root === undefined ? basename(path) : relative(dirname(root), path);
    labels.set(file, label.split(sep).join("/"));
  }
  const names = new Set(labels.values());
  for (const alike of sameNamed(labels)) {
    const paths = alike.map((file) => resolve(file).split(sep));
    let same = 0;
    while (same < paths[0].length - 1 && paths.every((p) => p[same] === paths[0][same])) same++;
    for (const [i, path] of paths.entries()) {
      const label = path.slice(same).join("/");
      labels.set(alike[i], names.has(label) ? path.join("/") : label);
    }
  }
  // Two of these groups may have met: the whole path is nobody else's.
  for (const alike of sameNamed(labels)) for (const file of alike) labels.set(file, resolve(file).split(sep).join("/"));
  return labels;
}

/** Files that have a name in common, group by group. */
function sameNamed(labels: ReadonlyMap<string, string>): string[][] {
  const owners = new Map<string, string[]>();
  for (const [file, label] of labels) {
    if (!owners.has(label)) owners.set(label, []);
    owners.get(label)!.push(file);
  }
  return [...owners.values()].filter((files) => files.length > 1);
}
