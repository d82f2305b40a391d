/** A sample as people read it: what is trained in green, what is only context dim; without colour, trained text in ⟦ ⟧. */
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Sample } from "./mask.js";

export function showMask({ ids, trainable }: Sample, tokenizer: Tokenizer, colour: boolean): string {
  const paint = (text: string, trained: boolean): string => {
    if (colour) return trained ? `\u001b[32m${text}\u001b[0m` : `\u001b[2m${text}\u001b[0m`;
    return trained ? `⟦${text}⟧` : text;
  };
  let out = "";
  for (let start = 0; start < ids.length; ) {
    let end = start;
    while (end < ids.length && trainable[end] === trainable[start]) end++;
    out += paint(tokenizer.decode(ids.subarray(start, end)), trainable[start] === 1);
    start = end;
  }
  return out;
}
