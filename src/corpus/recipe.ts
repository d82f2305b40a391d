/** The recipe of a corpus: its sources, and the settings of each block. Every block but reading can be left out. */
import { dirname, isAbsolute, join } from "node:path";
import { z } from "zod";
import { check, overridden, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { pathsSchema } from "../run/settings.js";
import { PRETOKENIZERS } from "../tokenizer/pretokenize.js";
import { ADS } from "./ads.js";
import { GARBLED } from "./garbled.js";
import { HARMFUL } from "./harmful.js";
import { PRESET_NAMES, type Thresholds, thresholdNames } from "./heuristics/index.js";
import { PII_KINDS } from "./pii.js";
import { LANGUAGES } from "./script.js";

/** The data sets of deduplicate.against: read like a source of this name, and nothing of them is written out. */
export const AGAINST = "against";

const share = z.number().min(0).max(1);
const words = z.array(z.string().min(1)).default([]);
const natural = z.int().min(1);

const sourceSchema = z.strictObject({
  name: z.string().regex(/^[\w.-]+$/, "a name of letters, digits, dot, dash and underscore"),
  /** Files and folders; formats are told by their names. */
  files: pathsSchema,
  /** Of twins, the one from the source with the smaller number is kept. */
  priority: z.int().min(0).default(0),
  /** Share of the tokens that training sees; without weights every document is taken once. */
  weight: z.number().positive().optional(),
  /** Already clean: it is counted, deduplicated and checked for evaluation sets, and no filter drops any of it. */
  trusted: z.boolean().default(false),
});

/** Thresholds of rules by their names; null switches a rule off. */
const thresholdsOf = (names: readonly string[]): z.ZodType<Thresholds> =>
  z.strictObject(
    Object.fromEntries(names.map((name) => [name, z.number().nullable().optional()])),
  ) as z.ZodType<unknown> as z.ZodType<Thresholds>;

const heuristicsSchema = z.strictObject({
  presets: z.array(z.enum(PRESET_NAMES as [string, ...string[]])).default(["gopher", "c4", "fineweb"]),
  /** Presets for languages that need others. */
  byLanguage: z.record(z.string(), z.array(z.enum(PRESET_NAMES as [string, ...string[]]))).default({ zh: ["zh"] }),
  thresholds: thresholdsOf(thresholdNames()).default({}),
});

/** Blocks whose rules compare one signal with one threshold. */
export const SIMPLE_RULES = { garbled: GARBLED, ads: ADS, harmful: HARMFUL };
const simpleSchema = (block: keyof typeof SIMPLE_RULES) =>
  thresholdsOf(SIMPLE_RULES[block].map((r) => r.name)).optional();

const nearSchema = z.strictObject({
  threshold: z.number().gt(0).max(1).default(0.8),
  shingle: natural.default(5),
  /** Left out: 14 and 8 from a threshold of 0.8 on, more bands of fewer rows below it. */
  bands: natural.optional(),
  rows: natural.optional(),
});

export const recipeSchema = z.strictObject({
  name: z.string().min(1).optional(),
  seed: z.int().min(0).default(1),
  sources: z.array(sourceSchema).min(1),
  limits: z
    .strictObject({
      /** Bytes of one record at most, packed or not. */
      maxRecordBytes: natural.default(16_000_000),
      /** Seconds for one page. */
      timeout: z.number().positive().default(20),
    })
    .prefault({}),
  url: z
    .strictObject({
      blocklists: words,
      categories: words,
      words,
      softWords: words,
      allow: words,
    })
    .prefault({}),
  extract: z.strictObject({ mode: z.enum(["fast", "readability"]).default("fast") }).prefault({}),
  language: z
    .strictObject({
      /** ISO 639-1 (else 639-3) codes; without them every language is kept. */
      keep: z
        .array(z.string().refine((code) => LANGUAGES.has(code), "a code that lid.176 knows, such as en, zh or ceb"))
        .default([]),
      threshold: share.default(0.65),
      thresholds: z.record(z.string(), share).default({}),
    })
    .optional(),
  heuristics: heuristicsSchema.optional(),
  /** Thresholds by name (garbled.maxMojibake); {} for the published ones. */
  garbled: simpleSchema("garbled"),
  ads: simpleSchema("ads"),
  harmful: simpleSchema("harmful"),
  pii: z.strictObject({ kinds: z.array(z.enum(PII_KINDS)).default([...PII_KINDS]) }).optional(),
  classifier: z
    .strictObject({
      /** Of "corpus train-classifier", or any supervised fastText .bin. */
      model: z.string().min(1),
      /** The label of good texts, for a model from elsewhere. */
      label: z.string().optional(),
      mode: z.enum(["threshold", "pareto"]).default("pareto"),
      threshold: share.default(0.5),
      /** Of the Pareto distribution; GPT-3 took 9. */
      alpha: z.number().positive().default(9),
    })
    .optional(),
  /** Evaluation sets (JSONL, Parquet: every string in a record; text: every line), that must not be in the corpus. */
  decontaminate: z
    .strictObject({
      files: pathsSchema,
      words: natural.default(13),
      minWords: natural.default(8),
      mode: z.enum(["drop", "cut"]).default("drop"),
    })
    .optional(),
  deduplicate: z
    .strictObject({
      exact: z.boolean().default(true),
      near: z.union([z.literal(false), nearSchema]).prefault({}),
      /** Runs of so many tokens (words and symbols) that stand in the corpus more than once are cut out. */
      substring: z
        .union([
          z.literal(false),
          z.strictObject({
            tokens: z.int().min(2).default(50),
            mode: z.enum(["keep-first", "remove-all"]).default("keep-first"),
            /** Above this the windows are hashed on disk, in place of a suffix array in memory (36 bytes a token). */
            memoryTokens: natural.default(40_000_000),
          }),
        ])
        .default(false),
      /** Documents of other data sets: twins of theirs go. */
      against: words,
    })
    .optional(),
  /** Characters that are left of a document at least, after all cuts. */
  minCharacters: natural.default(1),
  split: z.strictObject({ validation: share.default(0.01) }).prefault({}),
  /** A folder with tokenizer.json, or the size of one to train on what is kept; without it no shards are written. */
  tokenizer: z
    .union([
      z.string().min(1),
      z.strictObject({
        vocabSize: natural,
        pretokenizer: z.enum(PRETOKENIZERS).default("llama3"),
        specialTokens: z.array(z.string().min(1)).min(1).default(["<|endoftext|>"]),
        /** Characters of the sample that it is trained on. */
        sample: natural.default(20_000_000),
      }),
    ])
    .optional(),
  /** Records (or bytes) of one unit of work: what is lost at most when the run is killed. */
  unit: z.strictObject({ records: natural.default(500), bytes: natural.default(4_000_000) }).prefault({}),
});
export type Recipe = z.output<typeof recipeSchema>;

/** Keys whose values are files or folders, looked for beside the recipe. */
const PATHS = new Set(["files", "blocklists", "against", "tokenizer", "model"]);

function beside(value: unknown, folder: string, key = ""): unknown {
  if (typeof value === "string") return PATHS.has(key) && !isAbsolute(value) ? join(folder, value) : value;
  if (Array.isArray(value)) return value.map((v) => beside(v, folder, key));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, beside(v, folder, k)]));
}

/** Throws UserError (exit code 2) that names file, line and key of every mistake. */
export function loadRecipe(file: string, overrides: readonly string[] = []): Recipe {
  const raw = readYaml(file);
  const { stages, data } = raw.value as { stages?: unknown; data?: unknown };
  if (stages !== undefined)
    throw new UserError(`${file} is a recipe of stages, and not of a corpus: lyceum run ${file}`, 2);
  if (data !== undefined)
    throw new UserError(
      `${file} holds the settings of a stage, and not a corpus's: lyceum pretrain (or sft, ...) ${file}`,
      2,
    );
  const source = overridden(raw, overrides);
  const value = beside(source.value, dirname(file));
  const recipe = check(recipeSchema, { ...source, value });
  if (recipe.sources.some((s) => s.name === AGAINST))
    throw new UserError(`${file}: a source cannot have the name "${AGAINST}": it stands for deduplicate.against.`, 2);
  const names = recipe.sources.map((s) => s.name);
  const twice = names.find((n, i) => names.indexOf(n) !== i);
  if (twice) throw new UserError(`${file}: two sources have the name "${twice}". Give each its own.`, 2);
  return recipe;
}
