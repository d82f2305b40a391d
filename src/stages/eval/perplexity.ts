/**
 * Perplexity and bits per byte of texts.
 *
 *   loss = -1/N sum log p(token | tokens before it)      perplexity = exp(loss)
 *   bits per byte = sum -log2 p / bytes in UTF-8
 *
 * Perplexity is per token, and so is comparable only between models with the same tokenizer; bits per byte is comparable
 * between all. A text longer than the context is read in windows that overlap by half: every token is scored once, and
 * those after the first window with at least half a context before them.
 */
import type { Loaded } from "../../generate/loaded.js";
import { logLikelihoods, type Scored, startToken } from "./likelihood.js";
import type { Tasks } from "./tasks.js";

export interface Perplexity {
  texts: number;
  tokens: number;
  bytes: number;
  /** Nats a token. */
  loss: number;
  perplexity: number;
  bitsPerByte: number;
  /** Tokens of the longest window. */
  context: number;
}

/** Windows are no longer than this, whatever the model can read: attention's cost grows with the square. */
export const CONTEXT = 2048;

export function perplexity(
  { model, tokenizer }: Loaded,
  texts: Tasks["texts"],
  dir: string,
  context = CONTEXT,
): Perplexity {
  const window = Math.min(context, model.config.maxPositionEmbeddings);
  const start = startToken(tokenizer, dir);
  const encoded = tokenizer.encodeBatch(
    texts.map((t) => t.text),
    { allowSpecial: false },
  );
  const windows = texts.flatMap(({ source }, i) =>
    windowsOf(Int32Array.from([start, ...encoded[i]]), window).map(
      (w): Scored => ({ ...w, at: `${source.file}:${source.line}` }),
    ),
  );
  let sum = 0;
  let tokens = 0;
  for (const logp of logLikelihoods(model, windows)) {
    tokens += logp.length;
    for (const p of logp) sum -= p;
  }
  const bytes = texts.reduce((n, t) => n + Buffer.byteLength(t.text), 0);
  const loss = sum / tokens;
  return {
    texts: texts.length,
    tokens,
    bytes,
    loss,
    perplexity: Math.exp(loss),
    bitsPerByte: sum / Math.LN2 / bytes,
    context: window,
  };
}

/** Windows of at most `length` tokens in which every token of `ids` but the first is scored once. */
export function windowsOf(ids: Int32Array, length: number): { ids: Int32Array; start: number }[] {
  const windows: { ids: Int32Array; start: number }[] = [];
  const kept = Math.max(1, Math.floor(length / 2));
  for (let next = 1; next < ids.length; ) {
    const from = next === 1 ? 0 : next - kept;
    const end = Math.min(ids.length, from + length);
    windows.push({ ids: ids.slice(from, end), start: next - from });
    next = end;
  }
  return windows;
}
