/** What counts as a word, a line and a sentence: shared by the heuristics, the shingles and the exact matches. */

/** Languages written without spaces between words; their unit is the character. */
const SPACELESS = new Set(["zh", "ja", "th", "lo", "km", "my", "yue", "wuu", "cmn"]);
export const isSpaceless = (language: string | undefined): boolean =>
  language !== undefined && SPACELESS.has(language.split(/[-_]/)[0].toLowerCase());

export const SPACE = 0;
export const WORD = 1;
export const SYMBOL = 2;
/** A letter of a script that has no spaces: a word of its own. */
export const SINGLE = 3;

const SINGLE_SCRIPT =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;

function classOf(char: string): number {
  if (/\s/u.test(char)) return SPACE;
  // Control characters divide words but are none (datatrove counts them with the punctuation).
  if (/[\p{L}\p{M}\p{N}_]/u.test(char)) return SINGLE_SCRIPT.test(char) ? SINGLE : WORD;
  return SYMBOL;
}

let classes: Uint8Array | undefined;
/** The class of every UTF-16 unit. A table, because four Unicode regular expressions a character would cost more than all the rest. */
export function unitClasses(): Uint8Array {
  if (classes) return classes;
  classes = new Uint8Array(65536);
  for (let unit = 0; unit < 65536; unit++)
    classes[unit] = unit >= 0xd800 && unit < 0xe000 ? SYMBOL : classOf(String.fromCharCode(unit));
  return classes;
}

let folds: Uint16Array | undefined;
/** Lower case of every UTF-16 unit, where it is one unit too. */
export function lowerCase(): Uint16Array {
  if (folds) return folds;
  folds = new Uint16Array(65536);
  for (let unit = 0; unit < 65536; unit++) {
    const lower = String.fromCharCode(unit).toLowerCase();
    folds[unit] = lower.length === 1 ? lower.charCodeAt(0) : unit;
  }
  return folds;
}

/** Words and symbols in their order: [start, end) in UTF-16 units; `kind` is WORD, SINGLE or SYMBOL. */
export interface Words {
  text: string;
  count: number;
  starts: Int32Array;
  ends: Int32Array;
  kinds: Uint8Array;
}

/** An apostrophe between letters and a point, comma or colon between digits stay inside the word: don't, 3.14, 12:30. */
function joins(text: string, at: number, table: Uint8Array): boolean {
  const unit = text.charCodeAt(at);
  const next = text.charCodeAt(at + 1);
  if (!(table[next] === WORD)) return false;
  if (unit === 0x27 || unit === 0x2019) return true;
  if (unit !== 0x2e && unit !== 0x2c && unit !== 0x3a) return false;
  const before = text.charCodeAt(at - 1);
  return before >= 0x30 && before <= 0x39 && next >= 0x30 && next <= 0x39;
}

/**
 * Splits text as a rule-based tokenizer does: runs of letters, marks and digits are words, every other character is a
 * symbol of its own, except that a repeated one ("...", "-----") is one symbol. Letters of scripts without spaces
 * stand alone. Never throws; a lone surrogate is a symbol.
 */
export function splitWords(text: string): Words {
  const table = unitClasses();
  let capacity = Math.max(16, text.length >> 2);
  let starts = new Int32Array(capacity);
  let ends = new Int32Array(capacity);
  let kinds = new Uint8Array(capacity);
  let count = 0;
  const length = text.length;
  for (let i = 0; i < length; ) {
    const unit = text.charCodeAt(i);
    let kind = table[unit];
    if (kind === SPACE) {
      i++;
      continue;
    }
    const start = i++;
    if (kind === WORD) {
      while (i < length) {
        if (table[text.charCodeAt(i)] === WORD) i++;
        else if (i + 1 < length && joins(text, i, table)) i += 2;
        else break;
      }
    } else if (kind === SYMBOL) {
      if (unit >= 0xd800 && unit < 0xdc00 && i < length && (text.charCodeAt(i) & 0xfc00) === 0xdc00) {
        i++;
        if (/[\p{L}\p{M}\p{N}]/u.test(text.slice(start, i))) kind = SINGLE;
      } else while (i < length && text.charCodeAt(i) === unit) i++;
    }
    if (count === capacity) {
      capacity *= 2;
      starts = grow(starts, new Int32Array(capacity));
      ends = grow(ends, new Int32Array(capacity));
      kinds = grow(kinds, new Uint8Array(capacity));
    }
    starts[count] = start;
    ends[count] = i;
    kinds[count++] = kind;
  }
  return { text, count, starts, ends, kinds };
}

function grow<T extends Int32Array | Uint8Array>(from: T, into: T): T {
  into.set(from as never);
  return into;
}

export const wordAt = (words: Words, i: number): string => words.text.slice(words.starts[i], words.ends[i]);

/** Lines as Python's str.splitlines() gives them (datatrove uses it): every Unicode line end, none after the last. */
export interface Line {
  start: number;
  /** Without the line end. */
  end: number;
  /** Where the next line starts. */
  next: number;
}

export function splitLines(text: string): Line[] {
  const lines: Line[] = [];
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are line ends for str.splitlines()
  const ends = /\r\n|[\n\v\f\r\u001c-\u001e\u0085\u2028\u2029]/g;
  let start = 0;
  for (let match = ends.exec(text); match; match = ends.exec(text)) {
    lines.push({ start, end: match.index, next: ends.lastIndex });
    start = ends.lastIndex;
  }
  if (start < text.length) lines.push({ start, end: text.length, next: text.length });
  return lines;
}

const ABBREVIATION =
  /(?:^|[\s("'])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|Inc|Ltd|Co|No|Fig|al|e\.g|i\.e|U\.S|approx|dept|est|Gen|Gov|Rev|Vol|pp)$/;

/**
 * Sentences in a line: a run of terminal marks, with closing quotes, before a space and something that can begin a sentence.
 * An approximation of Punkt (Kiss & Strunk 2006), which needs a trained model; text without any mark is one sentence.
 */
export function countSentences(line: string): number {
  if (line.trim() === "") return 0;
  let count = 0;
  let last = 0;
  const mark = /[.!?…]+["'”’)\]]*(?=\s+["'“‘([]?[\p{Lu}\p{Lo}\p{N}])|[。！？]+[”’」』）]*/gu;
  for (let match = mark.exec(line); match; match = mark.exec(line)) {
    if (match[0] === "." && ABBREVIATION.test(line.slice(Math.max(0, match.index - 8), match.index))) continue;
    count++;
    last = mark.lastIndex;
  }
  return count + (line.slice(last).trim() === "" ? 0 : 1);
}

const SURROGATE = /[\ud800-\udfff]/;
/** Characters (code points), the unit of the published thresholds; a lone surrogate counts as one. */
export function characters(text: string): number {
  if (!SURROGATE.test(text)) return text.length;
  let count = text.length;
  for (let i = 1; i < text.length; i++)
    if ((text.charCodeAt(i) & 0xfc00) === 0xdc00 && (text.charCodeAt(i - 1) & 0xfc00) === 0xd800) count--;
  return count;
}
