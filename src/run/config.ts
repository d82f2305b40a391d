/**
 * Configuration: YAML checked against a zod schema. A mistake is answered with the file, the line, the key, its value,
 * what is allowed, and for an unknown key the nearest known one. All mistakes are told at once.
 * Keys are camelCase; the snake_case of the same key (as in Hugging Face's files) is read as well.
 */
import { readFileSync } from "node:fs";
import { isCollection, LineCounter, parse, parseDocument, stringify } from "yaml";
import { z } from "zod";
import { systemMessage, UserError } from "./errors.js";

type Json = Record<string, unknown>;

export interface ConfigSource {
  /** As the user named it; for messages. */
  file: string;
  value: unknown;
  /** "line:column" of a key path, when the file has it. */
  place(path: readonly PropertyKey[]): string;
  /** The argument of the command line that a key path comes from, where it comes from one. */
  set?: (path: readonly PropertyKey[]) => string | undefined;
}

/** Reads a YAML file. Throws UserError (exit code 2) when it is missing or is not YAML. */
export function readYaml(file: string): ConfigSource {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new UserError(systemMessage(error, file) ?? `${file}: ${(error as Error).message}`, 2);
  }
  if (text.includes("\0")) throw new UserError(`${file}: not YAML: it holds NULs, as programs and archives do.`, 2);
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  const broken = document.errors[0];
  if (broken) {
    const [at] = broken.linePos ?? [];
    const what = broken.message.split("\n")[0].replace(/ at line \d+, column \d+:?$/, "");
    throw new UserError(`${file}${at ? `:${at.line}:${at.col}` : ""}: not YAML: ${what}`, 2);
  }
  return {
    file,
    value: plain(() => document.toJS() ?? {}, `${file}: not YAML that can be read: `),
    place(path) {
      for (let n = path.length; n > 0; n--) {
        const parent = n === 1 ? document.contents : document.getIn(path.slice(0, n - 1), true);
        if (!isCollection(parent)) continue;
        const key = path[n - 1];
        for (const item of parent.items as { key?: { value: unknown; range?: number[] }; range?: number[] }[])
          if (camelCase(String(item.key?.value)) === key && item.key?.range) {
            const { line, col } = lines.linePos(item.key.range[0]);
            return `${line}:${col}`;
          }
      }
      return "";
    },
  };
}

/** What a document means. Throws UserError, which begins with `where`, for an alias of nothing, of too much, or of what it stands in. */
function plain(read: () => unknown, where: string): unknown {
  let circle = false;
  try {
    const value = read();
    circle = true;
    JSON.stringify(value);
    return value;
  } catch (error) {
    const why = circle ? "An alias stands in what it names" : (error as Error).message.split("\n")[0];
    throw new UserError(`${where}${why.replace(/\.?$/, ".")}`, 2);
  }
}

const asTyped = (overrides: readonly string[]): string[] => overrides.map((text) => `--set ${text}`);

/** `a.b=value` arguments, the value read as YAML, laid over the file's. `typed`: what the user wrote for each. */
export function applyOverrides(
  value: unknown,
  overrides: readonly string[],
  typed: readonly string[] = asTyped(overrides),
): unknown {
  const root = camelKeys(value) as Json;
  if (typeof root !== "object") return root; // `check` says what the file is
  for (const [i, text] of overrides.entries()) {
    const equals = text.indexOf("=");
    if (equals < 1)
      throw new UserError(`${typed[i]}: write it as key=value, such as --set optimizer.weightDecay=0.`, 2);
    const path = overriddenPath(text);
    if (path.includes("")) throw new UserError(`${typed[i]}: a name is missing between the dots of its key.`, 2);
    const odd = path.find((key) => EVERY_OBJECTS.has(key));
    if (odd) throw new UserError(`${typed[i]}: there is no key "${odd}".`, 2);
    let at = root;
    for (const key of path.slice(0, -1)) {
      if (typeof at[key] !== "object" || at[key] === null) at[key] = {};
      at = at[key] as Json;
    }
    const value = plain(() => parse(text.slice(equals + 1)), `${typed[i]}: the value is not YAML: `);
    at[path[path.length - 1]] = camelKeys(value);
  }
  return root;
}

/** Names that every object has a meaning for: to set them would change other objects than this one. */
const EVERY_OBJECTS = new Set(["__proto__", "constructor", "prototype"]);

/** Groups whose keys have dots themselves: thresholds of a corpus's rules, such as gopher.minWords. */
const DOTTED = new Set(["thresholds", "garbled", "ads", "harmful"]);

/** The key path of a `--set` argument. Names that users give (of instruction types, say) are left as they are. */
function overriddenPath(text: string): string[] {
  const path: string[] = [];
  const keys = text.slice(0, text.indexOf("=")).split(".");
  for (const [i, key] of keys.entries()) {
    const group = path.at(-1) ?? "";
    if (DOTTED.has(group)) return [...path, camelCase(keys.slice(i).join("."))];
    path.push(NAMED_BY_USER.has(group) ? key : camelCase(key));
  }
  return path;
}

/** The same source with `--set` arguments laid over it; a mistake in one of them is told as that argument's, as it was typed. */
export function overridden(
  source: ConfigSource,
  overrides: readonly string[],
  typed: readonly string[] = asTyped(overrides),
): ConfigSource {
  const given = overrides.map((text, i) => ({ typed: typed[i], path: overriddenPath(text) })).reverse();
  return {
    ...source,
    value: applyOverrides(source.value, overrides, typed),
    set: (path) =>
      path.length > 0
        ? given.find((g) => g.path.every((key, i) => i >= path.length || key === String(path[i])))?.typed
        : undefined,
  };
}

/** Where a key path comes from, for messages: the argument of the command line, or the file and the line. */
export function placeOf(source: ConfigSource, path: readonly PropertyKey[]): string {
  const place = source.place(path);
  return source.set?.(path) ?? `${source.file}${place && `:${place}`}`;
}

/** The value as the schema sees it, with defaults filled in. Throws one UserError (exit code 2) that lists every mistake. */
export function check<T extends z.ZodType>(schema: T, source: ConfigSource): z.output<T> {
  const result = schema.safeParse(camelKeys(source.value));
  if (result.success) return result.data;
  const messages = result.error.issues.flatMap((issue) => describe(issue, schema, source));
  const more = messages.length > 8 ? [`and ${messages.length - 8} more`] : [];
  throw new UserError([...messages.slice(0, 8), ...more].join("\n       "), 2);
}

export const toYaml = (value: unknown): string => stringify(value, { lineWidth: 120 });

function describe(issue: z.core.$ZodIssue, schema: z.ZodType, source: ConfigSource): string[] {
  if (issue.code === "invalid_union") {
    // Of the kinds that the value may have, it has one: what is wrong there is what was meant.
    const within = issue.errors.filter((list) =>
      list.every((inner) => inner.path.length > 0 || inner.code === "unrecognized_keys"),
    );
    if (within.length === 1)
      return within[0].flatMap((inner) => describe({ ...inner, path: [...issue.path, ...inner.path] }, schema, source));
  }
  const at = (path: readonly PropertyKey[]): string => placeOf(source, path);
  if (issue.code === "unrecognized_keys") {
    const known = keysAt(schema, issue.path);
    return issue.keys.map((key) => {
      const path = [...issue.path, key];
      const near = nearest(key, known);
      const elsewhere = near === undefined ? placeElsewhere(schema, key) : undefined;
      if (elsewhere?.exact) return `${at(path)}: there is no key "${path.join(".")}". Write ${elsewhere.path}.`;
      if (elsewhere) return `${at(path)}: there is no key "${path.join(".")}". Did you mean ${elsewhere.path}?`;
      const hint = near ? `Did you mean "${near}"?` : `Known here: ${known.join(", ")}.`;
      return `${at(path)}: there is no key "${path.join(".")}". ${hint}`;
    });
  }
  const value = issue.path.reduce<unknown>((v, k) => (v as Json | undefined)?.[k as string], camelKeys(source.value));
  const key = issue.path.join(".") || "the file";
  if (value === undefined) return [`${at(issue.path)}: ${key} is missing; it must be ${allowed(issue)}.`];
  return [`${at(issue.path)}: ${key} is ${quoted(value)}; it must be ${allowed(issue)}.`];
}

/** A value in a message: of a long one its beginning. */
function quoted(value: unknown): string {
  const text = typeof value === "number" ? String(value) : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 60)}…` : text;
}

function allowed(issue: z.core.$ZodIssue): string {
  if (issue.code === "invalid_value") return issue.values.map(String).join(" or ");
  if ((issue.code === "too_small" || issue.code === "too_big") && issue.origin === "array") {
    const most = issue.code === "too_small" ? issue.minimum : issue.maximum;
    if (issue.code === "too_big" || Number(most) > 1) return `a list of ${most}`;
  }
  if (issue.code === "too_small")
    return issue.origin === "array" || issue.origin === "string"
      ? `given (it is empty)`
      : `${issue.inclusive ? "at least" : "more than"} ${issue.minimum}`;
  if (issue.code === "too_big") return `${issue.inclusive ? "at most" : "less than"} ${issue.maximum}`;
  if (issue.code === "invalid_type") return issue.expected === "int" ? "a whole number" : article(issue.expected);
  if (issue.code === "invalid_union") {
    const options = issue.errors.map((list) => list.map(allowed).join(", "));
    return [...new Set(options)].join(" or ");
  }
  return issue.message;
}
const KINDS: Record<string, string> = { object: "a group of keys", array: "a list", string: "a text" };
const article = (noun: string): string => KINDS[noun] ?? `${/^[aeiou]/.test(noun) ? "an" : "a"} ${noun}`;

/** The keys that the schema knows at a path. */
function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let options = [schema];
  for (const key of path) options = options.flatMap(unwrap).flatMap((s) => child(s, key));
  return options.flatMap(unwrap).flatMap((s) => (s instanceof z.ZodObject ? Object.keys(s.shape) : []));
}
/** Where else in the schema a key stands, or one that is spelled much like it: learningRate is optimizer.learningRate. */
function placeElsewhere(schema: z.ZodType, key: string): { path: string; exact: boolean } | undefined {
  const all = placesOf(schema);
  const name = all.some((p) => p.name === key)
    ? key
    : nearest(key, [...new Set(all.map((p) => p.name))], Math.floor(key.length / 3));
  const path = all.find((p) => p.name === name)?.path;
  return path === undefined ? undefined : { path, exact: name === key };
}
/** Every key of the schema, and the path to it. */
function placesOf(schema: z.ZodType, path = ""): { name: string; path: string }[] {
  return unwrap(schema).flatMap((s) =>
    s instanceof z.ZodObject
      ? Object.entries(s.shape).flatMap(([name, inner]) => [
          { name, path: path + name },
          ...placesOf(inner as z.ZodType, `${path}${name}.`),
        ])
      : [],
  );
}
function unwrap(schema: z.ZodType): z.ZodType[] {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault)
    return unwrap(schema.def.innerType as z.ZodType);
  if (schema instanceof z.ZodPipe) return unwrap(schema.def.in as z.ZodType);
  if (schema instanceof z.ZodUnion) return (schema.options as z.ZodType[]).flatMap(unwrap);
  return [schema];
}
function child(schema: z.ZodType, key: PropertyKey): z.ZodType[] {
  if (schema instanceof z.ZodObject)
    return schema.shape[key as string] ? [schema.shape[key as string] as z.ZodType] : [];
  if (schema instanceof z.ZodArray) return [schema.element as z.ZodType];
  if (schema instanceof z.ZodRecord) return [schema.valueType as z.ZodType];
  return [];
}

/** The candidate with the smallest edit distance (Levenshtein 1966), when it is close enough to be meant: `within` so many letters. */
export function nearest(
  word: string,
  candidates: readonly string[],
  within = Math.max(2, Math.ceil(word.length / 3)),
): string | undefined {
  let best: string | undefined;
  let least = within + 1;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < least) [best, least] = [candidate, distance];
  }
  return best;
}
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length];
}

/** Keys of the files that users bring, by the names Hugging Face and the literature give them. */
const SYNONYMS: Record<string, string> = {
  numHiddenLayers: "numLayers",
  numAttentionHeads: "numHeads",
  numKeyValueHeads: "numKvHeads",
  lr: "learningRate",
  maxSteps: "steps",
  numTrainEpochs: "epochs",
  perDeviceTrainBatchSize: "batchSize",
  gradientAccumulationSteps: "gradientAccumulation",
  maxGradNorm: "gradClip",
};
function camelCase(key: string): string {
  const camel = key.replace(/_+([a-z0-9])/g, (_, c: string) => c.toUpperCase());
  return Object.hasOwn(SYNONYMS, camel) ? SYNONYMS[camel] : camel;
}
/** Whether the keys of this group are names that the user chose (instruction types, say) and are left as they are. */
const NAMED_BY_USER = new Set(["weights"]);
function camelKeys(value: unknown, keep = false): unknown {
  if (Array.isArray(value)) return value.map((v) => camelKeys(v));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).map(([k, v]) => {
      const key = keep ? k : camelCase(k);
      return [key, camelKeys(v, NAMED_BY_USER.has(key))];
    }),
  );
}
