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

/** What is left out of a banding, so that no more is overlooked than MISS, as far as a signature has room for it. */
export function bandingFor(
  threshold: number,
  given: { bands?: number; rows?: number },
): { bands: number; rows: number } {
  if (given.bands === undefined && given.rows === undefined) return bandsFor(threshold);
  let { bands = 1, rows = 1 } = given;
  if (given.bands === undefined) while (missed(threshold, bands, rows) > MISS && (bands + 1) * rows <= MOST) bands++;
  else if (given.rows === undefined)
    while ((rows + 1) * bands <= MOST && rows < 16 && missed(threshold, bands, rows + 1) <= MISS) rows++;
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
  if (all.threshold < MINHASH_DEFAULTS.threshold) Object.assign(all, bandingFor(all.threshold, given));
  // What was not given makes room for what was.
  if (options.rows === undefined) all.rows = Math.max(1, Math.min(all.rows, Math.floor(MOST / all.bands)));
  else if (options.bands === undefined) all.bands = Math.max(1, Math.min(all.bands, Math.floor(MOST / all.rows)));
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
  /** Pairs that shared a band, and pairs whose shingles were compared: of the others, signatures or sketches told enough. */
  candidates: number;
  verified: number;
  /** Documents that share bands with so many others that they were not compared with all of these. */
  limited: number;
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

/** Shingles on demand, those that were made last kept within a budget of bytes. */
class ShingleCache {
  private readonly sets = new Map<number, BigUint64Array>();
  private bytes = 0;
  constructor(
    private readonly hasher: MinHasher,
    private readonly textOf: (index: number) => string,
    private readonly budget = 256e6,
  ) {}
  get(index: number): BigUint64Array {
    const known = this.sets.get(index);
    if (known) return known;
    const set = this.hasher.shingles(this.textOf(index));
    this.bytes += set.byteLength;
    this.sets.set(index, set);
    for (const [oldest, old] of this.sets) {
      if (this.bytes <= this.budget || this.sets.size <= 2) break;
      this.sets.delete(oldest);
      this.bytes -= old.byteLength;
    }
    return set;
  }
}

/** Memory for sketches, in bytes; and below how many bytes none is cut for it. */
const SKETCHES = 256e6;
const SHORTEST = 256;

/** Sketches of documents' shingles. Two of them tell at once of most pairs that they are not similar enough, and never of one that is. */
class Sketches {
  private readonly kernels = openTextKernels();
  private readonly at: Uint32Array;
  /** Of each document the number of its shingles; 0: it has no sketch yet. */
  private readonly sizes: Uint32Array;
  /** Words of one at most. */
  private readonly most: number;
  private words = new BigUint64Array(1 << 12);
  private used = 0;

  constructor(documents: number) {
    this.at = new Uint32Array(documents);
    this.sizes = new Uint32Array(documents);
    let bytes = 65_536;
    while (bytes > SHORTEST && bytes * documents > SKETCHES) bytes /= 2;
    this.most = bytes / 8;
  }

  has(document: number): boolean {
    return this.sizes[document] > 0;
  }

  add(document: number, shingles: BigUint64Array): void {
    const { used, most, words } = this;
    if (words.length < used + most) {
      this.words = new BigUint64Array(2 * words.length + most);
      this.words.set(words.subarray(0, used));
    }
    this.at[document] = used;
    this.sizes[document] = shingles.length;
    this.used += this.kernels.minhashSketch(shingles, shingles.length, most, this.words.subarray(used));
  }

  /** Puts those first that may be as similar as `least`, and returns how many they are. */
  possible(document: number, least: number, others: Uint32Array, n: number): number {
    return this.kernels.minhashPossible(this.words, this.at, this.sizes, this.most, document, least, others, n);
  }
}

/** What one document is compared with at most: members of a bucket, the last ones, and bytes of their shingles. */
interface Bounds {
  members: number;
  bytes: number;
}

const CROWD = 32;

/** Documents that were there before, found by the bands that they share with one, and asked how similar they are: the cheap questions first. */
class Search {
  candidates = 0;
  verified = 0;
  limited = 0;
  private readonly head: Int32Array;
  private readonly next: Int32Array;
  private readonly seen: Int32Array;
  private readonly met: Uint32Array;
  private readonly cache: ShingleCache;
  private readonly sketches: Sketches;
  /** Numbers of a signature that two documents have in common at least. */
  private readonly least: number;

  constructor(
    private readonly hasher: MinHasher,
    private readonly signatures: Uint32Array,
    textOf: (index: number) => string,
    private readonly n: number,
    private readonly buckets: Buckets,
    private readonly bounds: Bounds = { members: Infinity, bytes: Infinity },
  ) {
    const { hashes, options } = hasher;
    this.head = new Int32Array(buckets.count).fill(-1);
    this.next = new Int32Array(n * options.bands);
    this.seen = new Int32Array(n).fill(-1);
    this.met = new Uint32Array(n);
    this.cache = new ShingleCache(hasher, textOf);
    this.sketches = new Sketches(n);
    this.least = Math.ceil((options.threshold - estimateSlack(options.threshold, hashes)) * hashes);
  }

  /** Calls `found` with those that share a band with a document and have the similarity of the threshold. */
  each(index: number, found: (other: number, similarity: number) => void): void {
    const { met, hasher, cache, bounds } = this;
    const { threshold } = hasher.options;
    let { count, whole } = this.meet(index);
    this.candidates += count;
    // Of a crowd most have a sketch, which says more than a signature; of strangers none need be made.
    if (count > CROWD) {
      this.sketch(index);
      count = this.sketches.possible(index, threshold, met, count);
    }
    count = openTextKernels().minhashLikely(this.signatures, hasher.hashes, index, this.least, met, count);
    if (count > 0) {
      this.sketch(index);
      for (let i = 0; i < count; i++) this.sketch(met[i]);
      count = this.sketches.possible(index, threshold, met, count);
    }
    const own = count > 0 ? cache.get(index) : undefined;
    let bytes = 0;
    for (let i = 0; own && i < count; i++) {
      const shingles = cache.get(met[i]);
      bytes += shingles.byteLength;
      if (bytes > bounds.bytes && i > 0) {
        whole = false;
        break;
      }
      this.verified++;
      const similarity = hasher.similarity(own, shingles);
      if (similarity >= threshold) found(met[i], similarity);
    }
    if (!whole) this.limited++;
  }

  add(index: number): void {
    const { n, head, next, buckets } = this;
    for (let band = 0; band < this.hasher.options.bands; band++) {
      const bucket = buckets.of[band * n + index];
      if (bucket < 0) continue;
      next[band * n + index] = head[bucket];
      head[bucket] = index;
    }
  }

  /** Fills `met`. `whole`: with all there are. */
  private meet(index: number): { count: number; whole: boolean } {
    const { n, head, next, seen, met, buckets, bounds } = this;
    let count = 0;
    let whole = true;
    for (let band = 0; band < this.hasher.options.bands; band++) {
      const bucket = buckets.of[band * n + index];
      if (bucket < 0) continue;
      let at = head[bucket];
      for (let left = bounds.members; at >= 0 && left > 0; left--, at = next[band * n + at]) {
        if (seen[at] === index) continue;
        seen[at] = index;
        met[count++] = at;
      }
      whole &&= at < 0;
    }
    return { count, whole };
  }

  private sketch(document: number): void {
    if (!this.sketches.has(document)) this.sketches.add(document, this.cache.get(document));
  }
}

/**
 * So that a site of any size from one template, whose pages share bands with each other and are just not similar enough, takes a time that
 * grows with it and not with its square. The last ones of a bucket are the nearest in length. The shingles lie in the cache.
 */
const BOUNDS: Bounds = { members: 20_000, bytes: 128e6 };

/**
 * Which documents go, and for whom. Documents are taken in the order of `keepBefore`; one goes if a document that stays, and
 * shares a band with it, has true similarity >= threshold; the most similar one is its twin. So nothing goes by way of a third.
 */
export function nearDuplicates(
  corpus: Corpus,
  options: Partial<MinHashOptions> = {},
  bounds: Bounds = BOUNDS,
): NearDuplicates {
  const hasher = new MinHasher(options);
  const { bands, rows } = hasher.options;
  const { documents, signatures, fixed = 0 } = corpus;
  const n = documents.length;
  const buckets = corpus.buckets ?? bucketsOf(signatures, n, bands, rows);
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  order.sort((a, b) => (a < fixed ? 0 : 1) - (b < fixed ? 0 : 1) || keepBefore(documents[a], documents[b]));
  const search = new Search(hasher, signatures, corpus.textOf, n, buckets, bounds);
  const twins: Twin[] = [];
  for (const index of order) {
    let best: Twin | undefined;
    if (index >= fixed)
      search.each(index, (kept, similarity) => {
        const better =
          !best ||
          similarity > best.similarity ||
          (similarity === best.similarity && keepBefore(documents[kept], documents[best.kept]) < 0);
        if (better) best = { index, kept, similarity };
      });
    if (best) twins.push(best);
    else search.add(index);
  }
  twins.sort((a, b) => a.index - b.index);
  const { candidates, verified, limited } = search;
  return { twins, candidates, verified, limited };
}

/** Five standard deviations of the share of equal minima, which estimates the similarity: a pair at the threshold is passed over once in 3.5 million (normal tail). */
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
  const { bands, rows } = hasher.options;
  const { signatures, textOf, count } = corpus;
  const search = new Search(hasher, signatures, textOf, count, bucketsOf(signatures, count, bands, rows));
  const pairs: Pair[] = [];
  for (let b = 0; b < count; b++) {
    search.each(b, (a, similarity) => void pairs.push({ a, b, similarity }));
    search.add(b);
  }
  return pairs.sort((x, y) => x.a - y.a || x.b - y.b);
}
