/** What Transformers made of the chat templates, and tokenizers that have them (test/golden/templates/make.py). */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Message } from "../../src/dialogue/templates.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { type Change, changed, fromJson } from "../tokenizer/golden.js";

interface Made {
  text: string;
  /** With the generation prompt. */
  prompt: string;
  ids: string;
  promptIds: string;
  /** Of templates with {% generation %}. */
  mask?: string;
  refused?: string;
}

const dir = new URL("../golden/templates/", import.meta.url);
export const golden = JSON.parse(readFileSync(new URL("golden.json", dir), "utf8")) as {
  conversations: Message[][];
  templates: Record<string, { jinja: string; eos: string; made: Made[] }>;
};

/** The golden tokenizer with a template of golden.json. */
export function tokenizerWith(name: string): Tokenizer {
  const tokenizer = Tokenizer.load(fileURLToPath(new URL("tokenizer.json", dir)));
  const { jinja, eos } = golden.templates[name];
  Object.assign(tokenizer.config, { chat_template: jinja, bos_token: "<s>", eos_token: eos, pad_token: "<|pad|>" });
  return tokenizer;
}

/** The same with byte fallback: what puts a space before each text, and what puts it before the first only. */
export const fallback = JSON.parse(readFileSync(new URL("fallback.json", dir), "utf8")) as Record<
  "prepend" | "first",
  { change: Change; templates: Record<string, { jinja: string; eos: string; made: Pick<Made, "ids" | "promptIds">[] }> }
>;

export function fallbackWith(kind: keyof typeof fallback, name: string): Tokenizer {
  const { change, templates } = fallback[kind];
  const tokenizer = fromJson(changed("llama2", change));
  const { jinja, eos } = templates[name];
  Object.assign(tokenizer.config, { chat_template: jinja, bos_token: "<s>", eos_token: eos, pad_token: "<|pad|>" });
  return tokenizer;
}
