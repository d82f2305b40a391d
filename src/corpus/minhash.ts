/**
 * Near duplicates: MinHash signatures, bands of locality-sensitive hashing (Leskovec, Rajaraman & Ullman, "Mining of massive
 * datasets", chapter 3), and then the true Jaccard similarity of the shingles.
 *
 * A document goes only if it was compared with the document that stays in its place. Without that, A ~ B ~ C chains A to C,
 * and whole corpora go.
 */
import { openTextKernels } from "../device/text.js";
import { UserError } from "../run/errors.js";
import { keepBefore, type Standing, type Twin } from "./exact.js";
import { lowerCase, unitClasses } from "./words.js";

export interface MinHashOptions {
  /** Units of a shingle: words; in scripts without spaces (Chinese, Japanese, Thai, ...) each character is a unit. */
  shingle: number;
  bands: number;
  rows: number;
  /** Least Jaccard similarity of the shingles at which two documents are twins. */
  threshold: number;
  seed: number;
}
export const MINHASH_DEFAULTS: MinHashOptions = { shingle: 5, bands: 14, rows: 8, threshold: 0.8, seed: 1 };

/** Chance to overlook a pair that is just as similar as the threshold, which `bandsFor` keeps to. */
const MISS = 1e-4;
const HASHES = 128;
/** Numbers of a signature at most. */
const MOST = 1024;

/** Chance that `bands` of `rows` overlook a pair that is just as similar as the threshold. */
const missed = (threshold: number, bands: number, rows: number): number => (1 - threshold ** rows) ** bands;

/** The most rows (fewest candidates) with which a pair at the threshold is overlooked with at most MISS. */
export function bandsFor(threshold: number): { bands: number; rows: number } {
  for (let rows = 16; rows > 1; rows--) {
    const bands = Math.floor(HASHES / rows);
    if (missed(threshold, bands, rows) <= MISS) return { bands, rows };
  }
  return { bands: HASHES, rows: 1 };
}

/** The same where one of the two is given. */
function otherOf(threshold: number, given: { bands?: number; rows?: number }): { bands: number; rows: number } {
  let { bands = 1, rows = 1 } = given;
  if (given.bands === undefined) while (missed(threshold, bands, rows) > MISS && bands * rows < MOST - rows) bands++;
  else while (rows < 16 && missed(threshold, bands, rows + 1) <= MISS) rows++;
  return { bands, rows };
}

/**
 * Fills in what is left out: 14 bands of 8 rows, and below the usual threshold, where these would miss most, as many as it needs. `key`: what a
 * message calls an option.
 */
export function checkMinHash(
  options: Partial<MinHashOptions> = {},
  key = (name: string): string => `deduplicate.near.${name}`,
): MinHashOptions {
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const all = { ...MINHASH_DEFAULTS, ...given };
  if (!(all.threshold > 0 && all.threshold <= 1))
    throw new UserError(`${key("threshold")} is ${all.threshold}; it must be above 0 and at most 1.`, 2);
  const whole = (name: "shingle" | "bands" | "rows", most: number): void => {
    if (!Number.isInteger(all[name]) || all[name] < 1 || all[name] > most)
      throw new UserError(`${key(name)} is ${all[name]}; it must be a whole number from 1 to ${most}.`, 2);
  };
  whole("shingle", 64);
  whole("bands", MOST);
  whole("rows", MOST);
  if (all.threshold < MINHASH_DEFAULTS.threshold && (options.bands === undefined || options.rows === undefined))
    Object.assign(
      all,
      options.bands === undefined && options.rows === undefined
        ? bandsFor(all.threshold)
        : otherOf(all.threshold, given),
    );
  whole("rows", Math.floor(MOST / all.bands));
  return all;
}

/** Signatures and shingles of texts; holds the buffers that its calls use again. One for each thread. */
export class MinHasher {
  readonly options: MinHashOptions;
  readonly hashes: number;
  private readonly kernels = openTextKernels();
  private units = new Uint16Array(1 << 16);
  private out = new BigUint64Array(1 << 12);

  constructor(options: Partial<MinHashOptions> = {}) {
    this.options = checkMinHash(options);
    this.hashes = this.options.bands * this.options.rows;
  }

  private load(text: string): number {
    // NFC: the same letter may come whole or with its accent apart.
    const clean = text.normalize("NFC");
    if (this.units.length < clean.length) this.units = new Uint16Array(clean.length * 2);
    const { units } = this;
    Buffer.from(units.buffer, units.byteOffset, units.byteLength).write(clean, "utf16le");
    return clean.length;
  }

  /** Writes the signature into `into` (hashes elements) and returns the number of shingles; 0: the text has no word. */
  signature(text: string, into: Uint32Array): number {
    const n = this.load(text);
    const { shingle, seed } = this.options;
    // biome-ignore format: as in the header
    return this.kernels.minhashSignature(this.units, n, unitClasses(), lowerCase(), shingle, seed, this.hashes, into);
  }

  /** The different shingles as ascending 64-bit hashes. */
  shingles(text: string): BigUint64Array {
    const n = this.load(text);
    if (this.out.length < 2 * n) this.out = new BigUint64Array(4 * n);
    // biome-ignore format: as in the header
    const count = this.kernels.minhashShingles(this.units, n, unitClasses(), lowerCase(), this.options.shingle, this.out);
    return this.out.slice(0, count);
  }

  /** Jaccard similarity of two sets from `shingles`. */
  similarity(a: BigUint64Array, b: BigUint64Array): number {
    return this.kernels.minhashJaccard(a, a.length, b, b.length);
  }
}

export interface Corpus {
  documents: readonly Standing[];
  /** documents x hashes, from MinHasher.signature. */
  signatures: Uint32Array;
  /** The text again, for verification. */
  textOf(index: number): string;
  /** The first `fixed` documents belong to another data set (--against): they are compared with, and never go. */
  fixed?: number;
  /** Who shares a band with whom, where that is known (bands.ts). */
  buckets?: Buckets;
}

export interface NearDuplicates {
  twins: Twin[];
  /** Pairs that shared a band, and pairs whose shingles were compared. */
  candidates: number;
  verified: number;
}

/** For every band the bucket of each document, of[band * documents + i] (-1: alone in it, or in none), a number below `count`. */
export interface Buckets {
  of: Int32Array;
  count: number;
}

function bucketsOf(signatures: Uint32Array, n: number, bands: number, rows: number): Buckets {
  const keys = new BigUint64Array(n * bands);
  openTextKernels().minhashBands(signatures, n, bands, rows, keys);
  const of = new Int32Array(n * bands).fill(-1);
  const hashes = bands * rows;
  let count = 0;
  for (let band = 0; band < bands; band++)
    eachRepeated(keys.subarray(band * n, (band + 1) * n), (places) => {
      for (const place of places) if (!isEmpty(signatures, place, hashes)) of[band * n + place] = count;
      count++;
    });
  return { of, count };
}

/** Calls `found` with the places of every key that stands in `keys` more than once. Leaves them sorted. */
export function eachRepeated(keys: BigUint64Array, found: (places: Uint32Array) => void): void {
  const n = keys.length;
  const order = new Uint32Array(n);
  openTextKernels().minhashOrder(keys, order, new BigUint64Array(n), new Uint32Array(n), n);
  for (let i = 0; i < n; ) {
    let end = i + 1;
    while (end < n && keys[end] === keys[i]) end++;
    if (end - i > 1) found(order.subarray(i, end));
    i = end;
  }
}

/** The signature of a text without a word; such texts are no one's twins here. */
export function isEmpty(signatures: Uint32Array, index: number, hashes: number): boolean {
  for (let i = index * hashes; i < (index + 1) * hashes; i++) if (signatures[i] !== 0xffffffff) return false;
  return true;
}

/** Fraction of equal minima: an estimate of the similarity with standard deviation sqrt(J (1 - J) / hashes). */
function estimate(signatures: Uint32Array, a: number, b: number, hashes: number): number {
  let equal = 0;
  for (let i = 0, x = a * hashes, y = b * hashes; i < hashes; i++) if (signatures[x + i] === signatures[y + i]) equal++;
  return equal / hashes;
}

/** Shingles on demand, the most recently used ones kept within a budget of bytes. */
class ShingleCache {
  private readonly sets = new Map<number, BigUint64Array>();
  private bytes = 0;
  constructor(
    private readonly hasher: MinHasher,
    private readonly textOf: (index: number) => string,
    private readonly budget = 256e6,
  ) {}
  get(index: number): BigUint64Array {
    let set = this.sets.get(index);
    if (set) this.sets.delete(index);
    else {
      set = this.hasher.shingles(this.textOf(index));
      this.bytes += set.byteLength;
    }
    this.sets.set(index, set);
    for (const [oldest, old] of this.sets) {
      if (this.bytes <= this.budget || this.sets.size <= 2) break;
      this.sets.delete(oldest);
      this.bytes -= old.byteLength;
    }
    return set;
  }
}

/**
 * Which documents go, and for whom. Documents are taken in the order of `keepBefore`; one goes if a document that stays, and
 * shares a band with it, has true similarity >= threshold; the most similar one is its twin. So nothing goes by way of a third.
 */
export function nearDuplicates(corpus: Corpus, options: Partial<MinHashOptions> = {}): NearDuplicates {
  const hasher = new MinHasher(options);
  const { bands, rows, threshold } = hasher.options;
  const { documents, signatures, fixed = 0 } = corpus;
  const n = documents.length;
  const buckets = corpus.buckets ?? bucketsOf(signatures, n, bands, rows);
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  order.sort((a, b) => (a < fixed ? 0 : 1) - (b < fixed ? 0 : 1) || keepBefore(documents[a], documents[b]));
  const head = new Int32Array(buckets.count).fill(-1);
  const next = new Int32Array(n * bands);
  const seen = new Int32Array(n).fill(-1);
  const cache = new ShingleCache(hasher, corpus.textOf);
  const slack = estimateSlack(threshold, hasher.hashes);
  const result: NearDuplicates = { twins: [], candidates: 0, verified: 0 };
  for (const index of order) {
    let best: Twin | undefined;
    for (let band = 0; index >= fixed && band < bands; band++) {
      const bucket = buckets.of[band * n + index];
      if (bucket < 0) continue;
      for (let at = head[bucket]; at >= 0; at = next[band * n + at]) {
        if (seen[at] === index) continue;
        seen[at] = index;
        result.candidates++;
        if (estimate(signatures, index, at, hasher.hashes) < threshold - slack) continue;
        result.verified++;
        const similarity = hasher.similarity(cache.get(index), cache.get(at));
        if (similarity < threshold) continue;
        const better =
          !best ||
          similarity > best.similarity ||
          (similarity === best.similarity && keepBefore(documents[at], documents[best.kept]) < 0);
        if (better) best = { index, kept: at, similarity };
      }
    }
    if (best) result.twins.push(best);
    else
      for (let band = 0; band < bands; band++) {
        const bucket = buckets.of[band * n + index];
        if (bucket < 0) continue;
        next[band * n + index] = head[bucket];
        head[bucket] = index;
      }
  }
  result.twins.sort((a, b) => a.index - b.index);
  return result;
}

/** Five standard deviations of the estimate: a pair at the threshold is passed over once in 3.5 million (normal tail). */
const estimateSlack = (threshold: number, hashes: number): number =>
  5 * Math.sqrt((threshold * (1 - threshold)) / hashes) + 1 / hashes;

export interface Pair {
  a: number;
  b: number;
  similarity: number;
}

/** All pairs that share a band and have true similarity >= threshold; a < b, ascending. For reports: it is quadratic in a cluster's size. */
export function nearPairs(
  corpus: Pick<Corpus, "signatures" | "textOf"> & { count: number },
  options: Partial<MinHashOptions> = {},
): Pair[] {
  const hasher = new MinHasher(options);
  const { bands, rows, threshold } = hasher.options;
  const n = corpus.count;
  const buckets = bucketsOf(corpus.signatures, n, bands, rows);
  const members: number[][] = Array.from({ length: buckets.count }, () => []);
  const seen = new Int32Array(n).fill(-1);
  const cache = new ShingleCache(hasher, corpus.textOf);
  const slack = estimateSlack(threshold, hasher.hashes);
  const pairs: Pair[] = [];
  for (let b = 0; b < n; b++) {
    for (let band = 0; band < bands; band++) {
      const bucket = buckets.of[band * n + b];
      if (bucket < 0) continue;
      for (const a of members[bucket]) {
        if (seen[a] === b) continue;
        seen[a] = b;
        if (estimate(corpus.signatures, a, b, hasher.hashes) < threshold - slack) continue;
        const similarity = hasher.similarity(cache.get(a), cache.get(b));
        if (similarity >= threshold) pairs.push({ a, b, similarity });
      }
      members[bucket].push(b);
    }
  }
  return pairs.sort((x, y) => x.a - y.a || x.b - y.b);
}
