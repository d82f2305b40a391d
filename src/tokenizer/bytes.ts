/** GPT-2's byte alphabet: each byte has a printable character, so that vocabulary files hold text. */
const printable = (b: number): boolean => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);

export const BYTE_TO_CHAR: string[] = [];
export const CHAR_TO_BYTE = new Map<string, number>();
for (let b = 0, next = 256; b < 256; b++) {
  const c = String.fromCodePoint(printable(b) ? b : next++);
  BYTE_TO_CHAR.push(c);
  CHAR_TO_BYTE.set(c, b);
}

/** The 256 characters in code point order: the initial alphabet, as Hugging Face orders it. */
export const ALPHABET = [...BYTE_TO_CHAR].sort((a, b) => a.codePointAt(0)! - b.codePointAt(0)!);

const encoder = new TextEncoder();
export function toByteChars(text: string): string {
  let out = "";
  for (const b of encoder.encode(text)) out += BYTE_TO_CHAR[b];
  return out;
}
