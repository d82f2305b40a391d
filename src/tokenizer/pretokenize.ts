/** The pre-tokenizers: regular expressions that cut text into the words that byte-pair merges never cross. */
import { UserError } from "../run/errors.js";
import { expressionOf, type Pattern, sourceOf } from "./oniguruma.js";
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

/** What stands before a text: nothing, a token, or text that it goes on from. */
export type Before = "nothing" | "token" | "text";

/** One step: something put before the text, spaces replaced, or the text cut. */
export interface PretokenizerStep {
  pattern?: RegExp;
  /** The expression as the file has it. */
  source?: string;
  /** What becomes of the matches and of what lies between them; default: both are kept, in order ("Isolated"). */
  keep?: "matches" | "between";
  /** What goes before a text that does not begin with it: a space, or what stands for one. */
  prefix?: string;
  /** The prefix is for the very beginning only, not for what stands behind a token. */
  onlyFirst?: boolean;
  /** What a space becomes. */
  space?: string;
}

/** The steps of a tokenizer's `pre_tokenizer`; `path` names the file in errors. */
export function pretokenizerSteps(pre: Json | null | undefined, path: string): PretokenizerStep[] {
  if (!pre) return [];
  switch (pre.type) {
    case "Sequence":
      return (pre.pretokenizers as Json[]).flatMap((p) => pretokenizerSteps(p, path));
    case "ByteLevel": {
      const prefix = pre.add_prefix_space === false ? [] : [{ prefix: " " }];
      return pre.use_regex === false ? prefix : [...prefix, cutBy({ Regex: PATTERNS.gpt2 }, path)];
    }
    case "Metaspace":
      return metaspace(pre, path);
    case "Digits":
      return [cutBy({ Regex: pre.individual_digits === true ? "\\p{N}" : "\\p{N}+" }, path)];
    case "Split": {
      const step = cutBy(pre.pattern as Pattern, path);
      if (pre.behavior === "Isolated") return [step];
      if (pre.behavior === "Removed") return [{ ...step, keep: pre.invert === true ? "matches" : "between" }];
      throw new UserError(
        `${path}: the pre-tokenizer Split is asked for the behavior "${pre.behavior}"; Isolated and Removed are implemented.`,
      );
    }
  }
  throw new UserError(
    `${path}: the pre-tokenizer "${pre.type}" is not implemented. ByteLevel, Metaspace, Split, Digits and Sequence are.`,
  );
}

const cutBy = (pattern: Pattern, path: string): PretokenizerStep => ({
  pattern: expressionOf(pattern, path),
  source: sourceOf(pattern),
});

/** SentencePiece's spaces: ▁ in their place and, by the scheme, before a text; each may begin a word. */
function metaspace(pre: Json, path: string): PretokenizerStep[] {
  const mark = String(pre.replacement);
  // Files of before there were schemes say whether, and mean always.
  const scheme = pre.prepend_scheme ?? (pre.add_prefix_space === false ? "never" : "always");
  if (!["always", "first", "never"].includes(String(scheme)))
    throw new UserError(
      `${path}: the pre-tokenizer Metaspace has the prepend_scheme ${JSON.stringify(scheme)}; always, first and never are implemented.`,
    );
  const escaped = sourceOf({ String: mark });
  return [
    { space: mark },
    ...(scheme === "never" ? [] : [{ prefix: mark, onlyFirst: scheme === "first" }]),
    ...(pre.split === false ? [] : [cutBy({ Regex: `${escaped}[^${escaped}]*` }, path)]),
  ];
}

/** Applies the steps, in order, to one text without special tokens. */
export function cutWords(text: string, steps: readonly PretokenizerStep[], before: Before = "nothing"): string[] {
  let pieces = [text];
  for (const step of steps) {
    const { space, prefix } = step;
    if (space !== undefined) pieces = pieces.map((p) => p.replaceAll(" ", space));
    if (prefix !== undefined)
      pieces = pieces.map((p, i) => (isPrefixed(step, p, i > 0 ? "token" : before) ? prefix + p : p));
    if (step.pattern) pieces = pieces.flatMap((p) => cut(p, step));
  }
  return pieces;
}

/** Whether the step's prefix goes before a piece. */
export const isPrefixed = ({ prefix, onlyFirst }: PretokenizerStep, piece: string, before: Before): boolean =>
  prefix !== undefined &&
  piece !== "" &&
  before !== "text" &&
  !(onlyFirst && before === "token") &&
  !piece.startsWith(prefix);

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

/** Which of the PATTERNS the steps are, and what puts a space before; undefined when they are something else. */
export function knownSteps(
  steps: readonly PretokenizerStep[],
): { pretokenizer: Pretokenizer; prefix?: PretokenizerStep } | undefined {
  const [prefix, step, ...others] = steps[0]?.prefix === undefined ? [undefined, ...steps] : steps;
  const pretokenizer = (Object.keys(PATTERNS) as Pretokenizer[]).find((name) => PATTERNS[name] === step?.source);
  return pretokenizer && !step?.keep && others.length === 0 ? { pretokenizer, ...(prefix && { prefix }) } : undefined;
}
