/** The goldens of test/golden/tokenizer: what Hugging Face tokenizers made of the same texts. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";

export type Json = Record<string, unknown>;
export interface Results {
  ids: number[][];
  /** By number of the text: decoded with special tokens and without, where it is not the text itself. */
  decoded: Record<string, [withSpecial: string, without: string]>;
}
export type Change = [path: string, value: unknown][];

export const pathOf = (name: string): string => fileURLToPath(new URL(`../golden/tokenizer/${name}`, import.meta.url));
export const golden = <T>(name: string): T => JSON.parse(readFileSync(pathOf(name), "utf8")) as T;

/** A tokenizer from the parts of a tokenizer.json. */
export function fromJson(json: unknown): Tokenizer {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-"));
  try {
    writeFileSync(join(dir, "tokenizer.json"), JSON.stringify(json));
    return Tokenizer.load(dir);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** A tokenizer.json with a change of variants.json; the same as in patterns.py. */
export function changed(base: string, change: Change): Json {
  const json = golden<Json>(`${base}.json`);
  const model = json.model as { vocab: Record<string, number>; merges: unknown[] };
  for (const [path, value] of change) {
    if (path === "stringMerges") model.merges = (model.merges as string[][]).map((m) => m.join(" "));
    else if (path === "without") {
      const named = (token: string): boolean => [...token].some((c) => (value as string[]).includes(c));
      model.vocab = Object.fromEntries(Object.entries(model.vocab).filter(([t, id]) => id < 4 || !named(t)));
      model.merges = (model.merges as string[][]).filter(([a, b]) => !named(a) && !named(b));
    } else if (path === "vocab+")
      for (const token of value as string[]) model.vocab[token] ??= Math.max(...Object.values(model.vocab)) + 1;
    else if (path === "added_tokens+") {
      const start = Math.max(...Object.values(model.vocab)) + 1;
      for (const [i, token] of (value as { content: string }[]).entries())
        (json.added_tokens as Json[]).push({ id: model.vocab[token.content] ?? start + i, ...token });
    } else {
      const keys = path.split(".");
      const last = keys.pop()!;
      keys.reduce((at, key) => at[key] as Json, json)[last] = value;
    }
  }
  return json;
}

/** Every text, one at a time and many at once: the JavaScript encoder, and the engine's where it knows the tokenizer. */
export function check(tokenizer: Tokenizer, { ids, decoded }: Results, texts: readonly string[]): void {
  const few = texts.slice(0, ids.length);
  const large = " ".repeat(21_000);
  const batch = tokenizer.encodeBatch([...few, large]).map((b) => b.join());
  const wrong = few.flatMap((text, i) => {
    const [withSpecial, without] = decoded[i] ?? [text, text];
    const wanted = [ids[i].join(), ids[i].join(), withSpecial, without];
    const ours = [
      tokenizer.encode(text).join(),
      batch[i],
      tokenizer.decode(ids[i]),
      tokenizer.decode(ids[i], { skipSpecialTokens: true }),
    ];
    return ours.join("\0") === wanted.join("\0") ? [] : [{ text, ours, wanted }];
  });
  expect(wrong).toEqual([]);
}
