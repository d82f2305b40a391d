/** The parts of a text that several presets measure, split once. */
import { characters, type Line, SINGLE, SYMBOL, splitLines, splitWords, type Words, wordAt } from "../words.js";

export class Measured {
  readonly words: Words;
  readonly lines: Line[];
  /** Code points of the whole text. */
  readonly chars: number;
  /** Whether UTF-16 units and characters are the same thing in this text. */
  private readonly plain: boolean;
  private ids?: { units: Int32Array; distinct: number; lengths: Int32Array };
  private wordSet?: Set<string>;

  constructor(
    readonly text: string,
    readonly language: string | undefined,
  ) {
    this.words = splitWords(text);
    this.lines = splitLines(text);
    this.chars = characters(text);
    this.plain = this.chars === text.length;
  }

  length(part: string): number {
    return this.plain ? part.length : characters(part);
  }

  line(i: number): string {
    return this.text.slice(this.lines[i].start, this.lines[i].end);
  }

  /** Every word and symbol as an id, with its characters. */
  wordIds(): { units: Int32Array; distinct: number; lengths: Int32Array } {
    if (this.ids) return this.ids;
    const known = new Map<string, number>();
    const { count } = this.words;
    const units = new Int32Array(count);
    const lengths = new Int32Array(count);
    for (let i = 0; i < count; i++) {
      const word = wordAt(this.words, i);
      let id = known.get(word);
      if (id === undefined) {
        id = known.size;
        known.set(word, id);
      }
      units[i] = id;
      lengths[i] = this.length(word);
    }
    this.wordSet = new Set(known.keys());
    this.ids = { units, distinct: known.size, lengths };
    return this.ids;
  }

  distinctWords(): Set<string> {
    this.wordIds();
    return this.wordSet!;
  }

  /** Words without symbols, their characters, and how many of all words hold a letter. */
  wordCounts(): { words: number; chars: number; alphabetic: number } {
    const { lengths } = this.wordIds();
    let words = 0;
    let chars = 0;
    let alphabetic = 0;
    for (let i = 0; i < this.words.count; i++) {
      if (this.words.kinds[i] === SYMBOL) continue;
      words++;
      chars += lengths[i];
      if (this.words.kinds[i] === SINGLE || this.startsAlphabetic(i)) alphabetic++;
    }
    return { words, chars, alphabetic };
  }

  private startsAlphabetic(i: number): boolean {
    const unit = this.text.charCodeAt(this.words.starts[i]) | 32;
    return (unit >= 97 && unit <= 122) || /\p{L}/u.test(wordAt(this.words, i));
  }
}

/** a / b, and 0 where there is nothing to divide by: an empty text has no repetition and no symbols. */
export const ratio = (a: number, b: number): number => (b === 0 ? 0 : a / b);

export function countOf(text: string, part: string): number {
  let count = 0;
  for (let at = text.indexOf(part); at >= 0; at = text.indexOf(part, at + part.length)) count++;
  return count;
}
