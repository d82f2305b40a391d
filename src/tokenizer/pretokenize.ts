/** The pre-tokenizers: regular expressions that cut text into the words that byte-pair merges never cross. */
export type Pretokenizer = "gpt2" | "llama3" | "qwen";

/** As they stand in tokenizer.json (Oniguruma); GPT-2's is built into its ByteLevel step. */
export const PATTERNS: Record<Pretokenizer, string> = {
  gpt2: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  llama3:
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  qwen: "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

/** Unicode White_Space, which is what \s means to Oniguruma (JavaScript's \s adds U+FEFF and lacks U+0085). */
export const SPACE = "\\t-\\r \\x85\\xA0\\u1680\\u2000-\\u200A\\u2028\\u2029\\u202F\\u205F\\u3000";

/** The same expression for JavaScript: \s spelled out, case-insensitive groups (which Node 20 lacks) written as classes. */
export function toRegExp(pattern: string): RegExp {
  const insensitive = pattern.replace(/\(\?i:((?:[^()\\]|\\.)*)\)/g, (_, body: string) => {
    // ſ (U+017F) is a case variant of s.
    return `(?:${body.replace(/[a-z]/g, (c) => (c === "s" ? "[sSſ]" : `[${c}${c.toUpperCase()}]`))})`;
  });
  let inClass = false;
  let out = "";
  for (let i = 0; i < insensitive.length; i++) {
    const two = insensitive.slice(i, i + 2);
    if (two === "\\s") out += inClass ? SPACE : `[${SPACE}]`;
    else if (two === "\\S") out += `[^${SPACE}]`;
    else if (two[0] === "\\") out += two;
    else {
      if (two[0] === "[") inClass = true;
      if (two[0] === "]") inClass = false;
      out += two[0];
      continue;
    }
    i++;
  }
  return new RegExp(out, "gu");
}
