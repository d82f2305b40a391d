/** A sample as people read it: what is trained in green, what is only context dim; without colour, trained text in ⟦ ⟧. */
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Sample } from "./mask.js";

const PAINT = { trained: "\u001b[32m", context: "\u001b[2m", plain: "\u001b[0m" };

/** A character whose bytes are tokens of both kinds is shown as trained; one that the sample's end cuts, as U+FFFD. */
export function showMask({ ids, trainable }: Sample, tokenizer: Tokenizer, colour: boolean): string {
  const paint = ({ text, trained }: Run): string => {
    const shown = visible(text);
    if (colour) return `${trained ? PAINT.trained : PAINT.context}${shown}${PAINT.plain}`;
    return trained ? `⟦${shown}⟧` : shown;
  };
  return runs(ids, trainable, tokenizer).map(paint).join("");
}

interface Run {
  text: string;
  trained: boolean;
}

/** The text in runs of one kind. Tokens are merged until their text is whole. */
function runs(ids: Int32Array, trainable: Uint8Array, tokenizer: Tokenizer): Run[] {
  const found: Run[] = [];
  const stream = tokenizer.stream({ skipSpecialTokens: false });
  let pending = false; // whether a token since the last whole character is trained
  const add = (text: string, trained: boolean): void => {
    const last = found.at(-1);
    if (last?.trained === trained) last.text += text;
    else found.push({ text, trained });
  };
  for (let i = 0; i < ids.length; i++) {
    pending ||= trainable[i] === 1;
    const text = stream.push(ids[i]);
    if (text === "") continue;
    add(text, pending);
    // The token may also hold the first bytes of the next character.
    pending = trainable[i] === 1 && tokenizer.decode([ids[i]]).endsWith("\uFFFD");
  }
  const rest = stream.end();
  if (rest !== "") add(rest, pending);
  return found;
}

/** Control characters as their pictures (U+2400 ...): text from a file must not steer the terminal. */
const visible = (text: string): string =>
  text.replace(/[^\P{Cc}\n\t]/gu, (c) => {
    const code = c.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : code === 127 ? "\u2421" : "\uFFFD";
  });
