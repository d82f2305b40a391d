/** The pre-tokenizers: regular expressions that cut text into the words that byte-pair merges never cross. */
import { UserError } from "../run/errors.js";
import { toRegExp } from "./oniguruma.js";
import { IDEOGRAPH } from "./unicode.js";

export const PRETOKENIZERS = ["gpt2", "llama3", "qwen", "han"] as const;
export type Pretokenizer = (typeof PRETOKENIZERS)[number];

/**
 * As they stand in tokenizer.json (Oniguruma); GPT-2's is built into its ByteLevel step. `han` is Llama 3's, and each
 * Chinese character is a word (as in BERT): without spaces to cut at, whole clauses become tokens, and a name is spelled
 * differently wherever it stands.
 */
export const PATTERNS: Record<Pretokenizer, string> = {
  gpt2: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  llama3:
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  han: `[${IDEOGRAPH}]|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}${IDEOGRAPH}]?(?:(?![${IDEOGRAPH}])\\p{L})+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}${IDEOGRAPH}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
  qwen: "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

type Json = Record<string, unknown>;

/** One step: a space put before the text, or the text cut. */
export interface PretokenizerStep {
  pattern?: RegExp;
  /** The expression as the file has it. */
  source?: string;
  /** What becomes of the matches and of what lies between them; default: both are kept, in order ("Isolated"). */
  keep?: "matches" | "between";
  /** A space goes before a text that does not begin with one. */
  prefixSpace?: boolean;
}

/** The steps of a tokenizer's `pre_tokenizer`; `path` names the file in errors. */
export function pretokenizerSteps(pre: Json | null | undefined, path: string): PretokenizerStep[] {
  if (!pre) return [];
  switch (pre.type) {
    case "Sequence":
      return (pre.pretokenizers as Json[]).flatMap((p) => pretokenizerSteps(p, path));
    case "ByteLevel": {
      const prefix = pre.add_prefix_space === false ? [] : [{ prefixSpace: true }];
      return pre.use_regex === false ? prefix : [...prefix, cutBy(PATTERNS.gpt2, path)];
    }
    case "Digits":
      return [cutBy(pre.individual_digits === true ? "\\p{N}" : "\\p{N}+", path)];
    case "Split": {
      const { Regex: source, String: literal } = pre.pattern as { Regex?: string; String?: string };
      const step = cutBy(source ?? literal!.replace(/[^\p{L}\p{N}\s]/gu, "\\$&"), path);
      if (pre.behavior === "Isolated") return [step];
      if (pre.behavior === "Removed") return [{ ...step, keep: pre.invert === true ? "matches" : "between" }];
      throw new UserError(
        `${path}: the pre-tokenizer Split is asked for the behavior "${pre.behavior}"; Isolated and Removed are implemented.`,
      );
    }
  }
  throw new UserError(
    `${path}: the pre-tokenizer "${pre.type}" is not implemented. Byte-level BPE with ByteLevel, Split, Digits and Sequence can be read.`,
  );
}

function cutBy(source: string, path: string): PretokenizerStep {
  try {
    return { pattern: toRegExp(source), source };
  } catch (error) {
    throw new UserError(`${path}: ${(error as Error).message}.`);
  }
}

/** Applies the steps, in order, to one text without special tokens. */
export function cutWords(text: string, steps: readonly PretokenizerStep[]): string[] {
  let pieces = [text];
  for (const step of steps) {
    if (step.prefixSpace) pieces = pieces.map((p) => (p.startsWith(" ") ? p : ` ${p}`));
    if (step.pattern) pieces = pieces.flatMap((p) => cut(p, step));
  }
  return pieces;
}

/** The pieces that match and the pieces between them, in order. */
function cut(text: string, { pattern, keep }: PretokenizerStep): string[] {
  const out: string[] = [];
  const between = (from: number, to: number): void =>
    void (keep !== "matches" && to > from && out.push(text.slice(from, to)));
  let from = 0;
  for (const m of text.matchAll(pattern!)) {
    between(from, m.index);
    if (keep !== "between" && m[0] !== "") out.push(m[0]);
    from = m.index + m[0].length;
  }
  between(from, text.length);
  return out;
}

/** Which of the PATTERNS the steps are, and whether a space is put before; undefined when they are something else. */
export function knownSteps(
  steps: readonly PretokenizerStep[],
): { pretokenizer: Pretokenizer; prefixSpace: boolean } | undefined {
  const prefixSpace = steps[0]?.prefixSpace === true;
  const [step, ...others] = prefixSpace ? steps.slice(1) : steps;
  const pretokenizer = (Object.keys(PATTERNS) as Pretokenizer[]).find((name) => PATTERNS[name] === step?.source);
  return pretokenizer && !step.keep && others.length === 0 ? { pretokenizer, prefixSpace } : undefined;
}
