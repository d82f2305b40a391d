/**
 * Byte fallback: how SentencePiece's BPE spells text (Kudo and Richardson 2018; Llama 2, TinyLlama, Mistral 7B). Tokens are characters and
 * what merges make of them, a space is ▁, and a character that the vocabulary lacks is written in bytes, <0x00> to <0xFF>. Merges see a
 * whole text, not words.
 */
import { UserError } from "../run/errors.js";

type Json = Record<string, unknown>;

/** LOWER ONE EIGHTH BLOCK, which stands for a space. */
export const MARK = "\u2581";

export const byteToken = (byte: number): string => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
const BYTE = /^<0x([0-9A-Fa-f]{2})>$/;
/** The byte that a token stands for; undefined: it is text. */
export const byteOf = (token: string): number | undefined => {
  const hex = BYTE.exec(token)?.[1];
  return hex === undefined ? undefined : Number.parseInt(hex, 16);
};

/** Where a text may be cut without any merge noticing, so that its pieces, which come again and again, need to be merged once. */
export class Cutter {
  /** Two characters that stand beside each other in some token that merges make. */
  private readonly joined = new Set<string>();

  constructor(merged: Iterable<string>) {
    for (const token of merged) {
      let before = "";
      for (const c of token) {
        if (before !== "") this.joined.add(before + c);
        before = c;
      }
    }
  }

  cut(text: string): string[] {
    const pieces: string[] = [];
    let from = 0;
    let at = 0;
    let before = "";
    for (const c of text) {
      if (before !== "" && !this.joined.has(before + c)) {
        pieces.push(text.slice(from, at));
        from = at;
      }
      before = c;
      at += c.length;
    }
    if (from < at) pieces.push(text.slice(from));
    return pieces;
  }
}

/** The text of tokens, in order: a run of bytes is a text, or, where it is none, U+FFFD for each. */
export function textOf(tokens: readonly string[]): string {
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let text = "";
  for (let i = 0; i < tokens.length; ) {
    const run: number[] = [];
    for (let byte = byteOf(tokens[i]); byte !== undefined; byte = byteOf(tokens[++i] ?? "")) run.push(byte);
    if (run.length === 0) text += tokens[i++].replaceAll(MARK, " ");
    else {
      try {
        text += utf8.decode(Uint8Array.from(run));
      } catch {
        text += "\uFFFD".repeat(run.length);
      }
    }
  }
  return text;
}

/** The bytes of one token, for a text that comes token by token. */
export function bytesOf(token: string): Uint8Array {
  const byte = byteOf(token);
  return byte === undefined ? Buffer.from(token.replaceAll(MARK, " ")) : Uint8Array.of(byte);
}

/**
 * How many spaces the decoder takes from the beginning of a text, which are those that encoding puts there. Throws UserError for a decoder
 * other than Llama 2's: ▁ to a space, bytes to characters, all in one, the first space away.
 */
export function strippedSpaces(decoder: Json | null | undefined, path: string): number {
  const steps = decoder?.type === "Sequence" ? (decoder.decoders as Json[]) : [decoder ?? {}];
  const [replace, bytes, fuse, strip, ...more] = steps;
  const isUsual =
    replace?.type === "Replace" &&
    (replace.pattern as Json | undefined)?.String === MARK &&
    replace.content === " " &&
    bytes?.type === "ByteFallback" &&
    fuse?.type === "Fuse" &&
    (!strip || (strip.type === "Strip" && strip.content === " " && strip.stop === 0)) &&
    more.length === 0;
  if (isUsual) return strip ? Number(strip.start) : 0;
  throw new UserError(
    `${path}: the decoder of a tokenizer with byte_fallback must be a Sequence of Replace (${MARK} to a space), ByteFallback, Fuse and perhaps Strip; ` +
      `this one is ${JSON.stringify(steps.map((s) => s?.type ?? null))}.`,
  );
}
