/** Bytes of a page or a text to a string: byte order mark, what can only be one encoding, HTTP header, <meta>, then detection by chardet. */
import { isAscii, isUtf8 } from "node:buffer";
import { analyse } from "chardet";

export interface Decoded {
  /** The text, cut between characters (a surrogate pair may be cut where the encoding is not UTF-8). */
  pieces: string[];
  charset: string;
  /** What decided. */
  from: "bom" | "http" | "meta" | "utf-8" | "detected" | "default";
  /** Share of replacement characters that decoding put in. */
  replaced: number;
}

const META =
  /<meta[^>]{0,300}?charset\s*=\s*["']?\s*([\w.:-]{2,40})|<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{2,40})/i;

/**
 * Bytes in one piece of text. A string of more than 100 kB gets memory of its own from V8, anew for every page, and fetching that takes
 * several times longer than decoding; so who can take the text in pieces asks for those.
 */
const PIECE = 16_384;

/** The whole text; see `decodePieces`. */
export function decode(bytes: Uint8Array, contentType?: string): Omit<Decoded, "pieces"> & { text: string } {
  const { pieces, ...rest } = decodePieces(bytes, contentType);
  return { ...rest, text: pieces.join("") };
}

/** Never throws: an encoding that nobody knows is passed over. `contentType`: the HTTP header, if there is one. */
export function decodePieces(bytes: Uint8Array, contentType?: string): Decoded {
  const bom = byteOrderMark(bytes);
  if (bom) return as(bytes, bom, "bom")!;
  const http = /charset\s*=\s*["']?\s*([\w.:-]+)/i.exec(contentType ?? "")?.[1];
  const japanese = hasEscapes(bytes) ? as(bytes, "iso-2022-jp", "detected") : undefined;
  if (japanese && japanese.replaced < 0.01) return japanese;
  // The declaration is ASCII; Latin-1 shows it whatever the encoding is.
  const found = META.exec(Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 4096)).toString("latin1"));
  const meta = found?.[1] ?? found?.[2] ?? "";
  // Bytes that are valid UTF-8 with something beyond ASCII in them are hardly ever anything else, whatever is declared.
  const utf8 = asUtf8(bytes);
  if (utf8 && (!http || !isAscii(bytes) || /^utf-?8$/i.test(http))) return utf8;
  const nearly = utf8 ? undefined : nearlyUtf8(bytes);
  if (nearly) return nearly;
  const declared = (http ? as(bytes, http, "http") : undefined) ?? (meta ? as(bytes, meta, "meta") : undefined);
  if (declared && declared.replaced < 0.001) return declared;
  const guess = analyse(bytes.length > 65536 ? bytes.subarray(0, 65536) : bytes)[0];
  const detected = guess && guess.confidence >= 40 ? as(bytes, guess.name, "detected") : undefined;
  if (declared && (!detected || declared.replaced <= detected.replaced + 0.01)) return declared;
  return detected ?? declared ?? utf8 ?? as(bytes, "windows-1252", "default")!;
}

/** ISO-2022-JP is ASCII that changes its meaning by escapes (RFC 1468), which stand for nothing in any other text. */
export function hasEscapes(bytes: Uint8Array): boolean {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  return ["\x1b$B", "\x1b$@"].some((found) => buffer.includes(found)) && isAscii(bytes);
}

function byteOrderMark(b: Uint8Array): string | undefined {
  if (b[0] === 0xef && b[1] === 0xbb && b[2] === 0xbf) return "utf-8";
  if (b[0] === 0xff && b[1] === 0xfe) return "utf-16le";
  if (b[0] === 0xfe && b[1] === 0xff) return "utf-16be";
  return undefined;
}

/** `isUtf8` and the slices of a Buffer are several times faster than a TextDecoder that is to throw. */
function asUtf8(bytes: Uint8Array): Decoded | undefined {
  if (!isUtf8(bytes)) return undefined;
  const pieces: string[] = [];
  for (let start = 0, end = 0; start < bytes.length; start = end) {
    end = Math.min(start + PIECE, bytes.length);
    // Not inside of a character.
    while (end < bytes.length && (bytes[end] & 0xc0) === 0x80) end--;
    const piece = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start);
    // A piece without other characters takes a byte for each, whatever stands in the others.
    pieces.push(piece.toString(isAscii(piece) ? "latin1" : "utf8"));
  }
  return { pieces, charset: "utf-8", from: "utf-8", replaced: 0 };
}

/** Of the characters beyond ASCII that many may be damaged; in other encodings they are few that look like one of UTF-8. */
const DAMAGED = 1 / 20;

/** UTF-8 with a stray byte, or with a character that was cut. */
function nearlyUtf8(bytes: Uint8Array): Decoded | undefined {
  const decoded = as(bytes, "utf-8", "utf-8")!;
  let [beyond, replaced] = [0, 0];
  for (const piece of decoded.pieces)
    for (let i = 0; i < piece.length; i++) {
      const c = piece.charCodeAt(i);
      if (c < 0x80 || (c & 0xfc00) === 0xdc00) continue;
      beyond++;
      if (c === 0xfffd) replaced++;
    }
  return replaced <= DAMAGED * beyond ? decoded : undefined;
}

function as(bytes: Uint8Array, charset: string, from: Decoded["from"]): Decoded | undefined {
  let decoder: InstanceType<typeof TextDecoder>;
  try {
    decoder = new TextDecoder(charset.toLowerCase());
  } catch {
    return undefined;
  }
  const pieces: string[] = [];
  let length = 0;
  let replaced = 0;
  const take = (piece: string): void => {
    for (let i = piece.indexOf("\ufffd"); i >= 0; i = piece.indexOf("\ufffd", i + 1)) replaced++;
    length += piece.length;
    pieces.push(piece);
  };
  // As a stream to the end: Node 20 takes windows-1252 for ISO 8859-1 in a last piece, and its dashes and quotes for control characters.
  for (let start = 0; start < bytes.length; start += PIECE)
    take(decoder.decode(bytes.subarray(start, start + PIECE), { stream: true }));
  take(decoder.decode());
  return { pieces, charset: decoder.encoding, from, replaced: replaced / Math.max(1, length) };
}
