/**
 * ROUGE-L (Lin 2004, section 3): how much of two texts is one common subsequence of words. Self-instruct (Wang et al. 2022,
 * section 2.2) uses it to tell a new instruction from a copy of an old one.
 */

/** A letter of a script without spaces is a word, as ROUGE is used for Chinese; elsewhere runs of letters and digits. */
const SINGLE =
  "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}\\p{Script=Lao}\\p{Script=Khmer}\\p{Script=Myanmar}";
const WORDS = new RegExp(`[${SINGLE}]|(?:(?![${SINGLE}_])[\\p{L}\\p{M}\\p{N}])+`, "gu");

/** Lower-case words; for English the same as Google's rouge_score without a stemmer. */
export const rougeWords = (text: string): string[] => text.normalize("NFC").toLowerCase().match(WORDS) ?? [];

/**
 * Length of the longest common subsequence. Bit-parallel (Hyyrö 2004): a column of the table is one large integer, so that
 * a comparison costs b.length additions and not a.length * b.length.
 */
export function commonSubsequence<T>(a: readonly T[], b: readonly T[]): number {
  const places = new Map<T, bigint>();
  a.forEach((word, i) => {
    places.set(word, (places.get(word) ?? 0n) | (1n << BigInt(i)));
  });
  const all = (1n << BigInt(a.length)) - 1n;
  let column = all;
  for (const word of b) {
    const match = column & (places.get(word) ?? 0n);
    column = ((column + match) | (column - match)) & all;
  }
  let length = 0;
  for (let zeros = ~column & all; zeros > 0n; zeros &= zeros - 1n) length++;
  return length;
}

/** F1 of ROUGE-L with beta = 1: precision LCS / |b|, recall LCS / |a|. 0 when a text has no words. */
export function rougeL(a: readonly string[], b: readonly string[]): number {
  return a.length === 0 || b.length === 0 ? 0 : (2 * commonSubsequence(a, b)) / (a.length + b.length);
}

export interface NearCopy {
  score: number;
  /** What the nearest text was called when it was added. */
  name: string;
}

/**
 * Texts kept so far, asked for the nearest to a new one. Only texts that share enough words to pass the threshold are
 * compared: the number of shared words, order aside, bounds the common subsequence from above.
 */
export class NearCopies {
  private readonly names: string[] = [];
  private readonly texts: string[][] = [];
  /** Word -> [text, how often in it] pairs, laid end to end. */
  private readonly postings = new Map<string, number[]>();

  /** `threshold`: a text is a copy when ROUGE-L is above it; 0.7 in Self-instruct and in Alpaca. */
  constructor(readonly threshold = 0.7) {}

  get size(): number {
    return this.texts.length;
  }

  add(text: string, name: string): void {
    const words = rougeWords(text);
    const id = this.texts.push(words) - 1;
    this.names.push(name);
    for (const [word, times] of counted(words)) {
      const list = this.postings.get(word);
      if (list) list.push(id, times);
      else this.postings.set(word, [id, times]);
    }
  }

  /** The nearest text above the threshold (the first of equals), or undefined: the text is new. */
  find(text: string): NearCopy | undefined {
    const words = rougeWords(text);
    const shared = new Map<number, number>();
    for (const [word, times] of counted(words)) {
      const list = this.postings.get(word) ?? [];
      for (let i = 0; i < list.length; i += 2)
        shared.set(list[i], (shared.get(list[i]) ?? 0) + Math.min(times, list[i + 1]));
    }
    let best: { score: number; id: number } | undefined;
    for (const [id, count] of shared) {
      const other = this.texts[id];
      if ((2 * count) / (words.length + other.length) <= this.threshold) continue;
      const score = rougeL(other, words);
      if (score <= this.threshold) continue;
      if (!best || score > best.score || (score === best.score && id < best.id)) best = { score, id };
    }
    return best && { score: best.score, name: this.names[best.id] };
  }
}

function counted(words: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}
