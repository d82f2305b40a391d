/**
 * Trains a byte-level BPE (Sennrich et al. 2016): count words, then merge the most frequent pair of neighbours again and
 * again. Counts are kept per pair and updated only where a merge happened; ties go to the lower ids, as in Hugging Face.
 */
import type { Comm } from "../parallel/comm.js";
import { UserError } from "../run/errors.js";
import { ALPHABET, toByteChars } from "./bytes.js";
import { NativeTrainer } from "./native.js";
import { toRegExp } from "./oniguruma.js";
import { PATTERNS, PRETOKENIZERS, type Pretokenizer } from "./pretokenize.js";
import { Tokenizer } from "./tokenizer.js";
import { wellFormed } from "./unicode.js";

export interface TrainOptions {
  vocabSize: number;
  pretokenizer?: Pretokenizer;
  specialTokens?: readonly string[];
  /** Pairs rarer than this are not merged; default 2. */
  minFrequency?: number;
  /** In the engine, on all cores, where there is one; default true. */
  engine?: boolean;
}

interface Word {
  ids: number[];
  count: number;
}

/**
 * Trains on texts, of which each is cut into words by itself. The same tokenizer, whether the engine does the work or
 * JavaScript, and on any number of threads. Throws a UserError for a vocabulary that is too small and for no text at all.
 */
export function trainBpe(texts: Iterable<string>, options: TrainOptions): Tokenizer {
  const training = new Training(options);
  try {
    for (const text of texts) training.words.add(text);
    return training.finish();
  } finally {
    training.words.close();
  }
}

/** The same for texts that come one after the other, and are not kept: only their words are. */
export async function trainBpeOn(texts: AsyncIterable<string>, options: TrainOptions): Promise<Tokenizer> {
  const training = new Training(options);
  try {
    for await (const text of texts) training.words.add(text);
    return training.finish();
  } finally {
    training.words.close();
  }
}

/**
 * The same on all processes of a job, each with texts of its own: each counts its words, the first gets all counts and merges. The
 * tokenizer has the bytes of one that one process trains on all texts; the others get undefined.
 */
export async function trainBpeTogether(
  texts: AsyncIterable<string>,
  options: TrainOptions,
  world: Comm,
): Promise<Tokenizer | undefined> {
  const training = new Training({ ...options, engine: true });
  try {
    for await (const text of texts) training.words.add(text);
    // One has more to read than another.
    world.barrier(true);
    training.collect(world);
    return world.rank === 0 ? training.finish() : undefined;
  } finally {
    training.words.close();
  }
}

type Merges = [left: number, right: number, merged: number][];

/** Counts words, then merges their bytes; in the engine, or here. */
interface Words {
  add(text: string): void;
  /** Different words so far. */
  readonly words: number;
  merge(vocab: readonly string[], wanted: number, minFrequency: number): Merges;
  close(): void;
}

class Training {
  readonly words: Words;
  private readonly vocab: string[];
  private readonly pretokenizer: Pretokenizer;
  private readonly specialTokens: readonly string[];

  constructor(private readonly options: TrainOptions) {
    const { vocabSize, pretokenizer = "llama3", specialTokens = ["<|endoftext|>"] } = options;
    if (!PRETOKENIZERS.includes(pretokenizer))
      throw new UserError(`pretokenizer is "${pretokenizer}"; it must be ${PRETOKENIZERS.join(", ")}.`, 2);
    if (specialTokens.includes("")) throw new UserError("A special token must have a text; one of these has none.", 2);
    this.pretokenizer = pretokenizer;
    this.specialTokens = specialTokens;
    this.vocab = [...new Set([...specialTokens, ...ALPHABET])];
    if (vocabSize < this.vocab.length)
      throw new UserError(
        `A vocabulary of ${vocabSize} is too small: the 256 bytes and ${specialTokens.length} special tokens alone need ${this.vocab.length}.`,
        2,
      );
    const native = options.engine === false ? null : NativeTrainer.open(pretokenizer);
    this.words = native ?? new WordCounts(pretokenizer);
  }

  collect(world: Comm): void {
    if (!(this.words instanceof NativeTrainer)) throw new Error("Counts are exchanged in the engine's memory.");
    this.words.collect(world);
  }

  finish(): Tokenizer {
    const { vocab, words, options } = this;
    if (words.words === 0) throw new UserError("There is no text to train a tokenizer on.");
    const spelled = words
      .merge(vocab, options.vocabSize, options.minFrequency ?? 2)
      .map(([left, right, merged]): [string, string] => {
        if (merged === vocab.length) vocab.push(vocab[left] + vocab[right]);
        return [vocab[left], vocab[right]];
      });
    return Tokenizer.fromParts(vocab, spelled, this.pretokenizer, this.specialTokens);
  }
}

class WordCounts implements Words {
  private readonly counts = new Map<string, number>();
  private readonly pattern: RegExp;

  constructor(pretokenizer: Pretokenizer) {
    this.pattern = toRegExp(PATTERNS[pretokenizer]);
  }
  add(text: string): void {
    for (const [w] of wellFormed(text).matchAll(this.pattern)) this.counts.set(w, (this.counts.get(w) ?? 0) + 1);
  }
  get words(): number {
    return this.counts.size;
  }
  merge(vocab: readonly string[], wanted: number, minFrequency: number): Merges {
    return mergesOf(this.counts, [...vocab], wanted, minFrequency);
  }
  close(): void {}
}

/** Merges of the counted words; the merged tokens are added to `vocab`. */
function mergesOf(
  counts: ReadonlyMap<string, number>,
  vocab: string[],
  vocabSize: number,
  minFrequency: number,
): Merges {
  const idOf = new Map(vocab.map((t, i) => [t, i]));
  const words: Word[] = [...counts].map(([w, count]) => ({ ids: [...toByteChars(w)].map((c) => idOf.get(c)!), count }));

  // Pair (a, b) is the number a * 2^24 + b.
  const BASE = 2 ** 24;
  const pairCounts = new Map<number, number>();
  const where = new Map<number, Set<number>>();
  const add = (pair: number, n: number, word: number): void => {
    pairCounts.set(pair, (pairCounts.get(pair) ?? 0) + n);
    const at = where.get(pair);
    if (at) at.add(word);
    else where.set(pair, new Set([word]));
  };
  words.forEach(({ ids, count }, w) => {
    for (let i = 0; i + 1 < ids.length; i++) add(ids[i] * BASE + ids[i + 1], count, w);
  });
  const heap = new PairHeap();
  for (const [pair, n] of pairCounts) heap.push(n, pair);

  const merges: Merges = [];
  while (vocab.length < vocabSize) {
    const top = heap.pop();
    if (!top || top.count < minFrequency) break;
    const current = pairCounts.get(top.pair) ?? 0;
    if (current !== top.count) {
      // Counts only fall between pushes; put it back at its true place.
      if (current > 0) heap.push(current, top.pair);
      continue;
    }
    const a = Math.floor(top.pair / BASE);
    const b = top.pair % BASE;
    const token = vocab[a] + vocab[b];
    let merged = idOf.get(token);
    if (merged === undefined) {
      merged = vocab.length;
      vocab.push(token);
      idOf.set(token, merged);
    }
    merges.push([a, b, merged]);
    const touched = new Set<number>();
    for (const w of where.get(top.pair) ?? []) {
      const { ids, count } = words[w];
      for (let i = 0; i + 1 < ids.length; i++) {
        if (ids[i] !== a || ids[i + 1] !== b) continue;
        const drop = (pair: number): void => void pairCounts.set(pair, (pairCounts.get(pair) ?? 0) - count);
        if (i > 0) {
          drop(ids[i - 1] * BASE + a);
          const pair = ids[i - 1] * BASE + merged;
          add(pair, count, w);
          touched.add(pair);
        }
        if (i + 2 < ids.length) {
          drop(b * BASE + ids[i + 2]);
          const pair = merged * BASE + ids[i + 2];
          add(pair, count, w);
          touched.add(pair);
        }
        ids.splice(i, 2, merged);
      }
    }
    pairCounts.delete(top.pair);
    where.delete(top.pair);
    for (const pair of touched) heap.push(pairCounts.get(pair)!, pair);
  }
  return merges;
}

/** Highest count first, then the lower pair. Entries may be stale; the trainer checks. */
class PairHeap {
  private readonly counts: number[] = [];
  private readonly pairs: number[] = [];
  private before(i: number, j: number): boolean {
    return this.counts[i] > this.counts[j] || (this.counts[i] === this.counts[j] && this.pairs[i] < this.pairs[j]);
  }
  private swap(i: number, j: number): void {
    [this.counts[i], this.counts[j]] = [this.counts[j], this.counts[i]];
    [this.pairs[i], this.pairs[j]] = [this.pairs[j], this.pairs[i]];
  }
  push(count: number, pair: number): void {
    let i = this.counts.push(count) - 1;
    this.pairs.push(pair);
    for (let up = (i - 1) >> 1; i > 0 && this.before(i, up); i = up, up = (i - 1) >> 1) this.swap(i, up);
  }
  pop(): { count: number; pair: number } | undefined {
    if (this.counts.length === 0) return undefined;
    this.swap(0, this.counts.length - 1);
    const top = { count: this.counts.pop()!, pair: this.pairs.pop()! };
    for (let i = 0; ; ) {
      let best = i;
      for (const child of [2 * i + 1, 2 * i + 2])
        if (child < this.counts.length && this.before(child, best)) best = child;
      if (best === i) return top;
      this.swap(i, best);
      i = best;
    }
  }
}
