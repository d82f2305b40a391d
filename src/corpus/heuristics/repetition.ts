/** How much of a text is repeated: lines, paragraphs, and n-grams of words or characters (Rae et al. 2021, table A1). */

/** Number of elements seen before, and their characters. */
export function repeated(parts: readonly string[], length: (part: string) => number): { count: number; chars: number } {
  const seen = new Set<string>();
  let count = 0;
  let chars = 0;
  for (const part of parts) {
    if (seen.has(part)) {
      count++;
      chars += length(part);
    } else seen.add(part);
  }
  return { count, chars };
}

/** Open-addressing table from a pair of ids to an id: the hot loop of the n-gram counts. */
class PairIds {
  private readonly mask: number;
  private readonly left: Int32Array;
  private readonly right: Int32Array;
  private readonly ids: Int32Array;
  constructor(capacity: number) {
    let size = 16;
    while (size < capacity * 2) size *= 2;
    this.mask = size - 1;
    this.left = new Int32Array(size);
    this.right = new Int32Array(size);
    this.ids = new Int32Array(size).fill(-1);
  }
  /** The id of (a, b), or `fresh` after storing it. */
  get(a: number, b: number, fresh: number): number {
    let at = (Math.imul(a, 0x9e3779b1) ^ Math.imul(b, 0x85ebca6b)) >>> 0;
    at = (at ^ (at >>> 15)) & this.mask;
    for (; ; at = (at + 1) & this.mask) {
      const id = this.ids[at];
      if (id === -1) {
        this.left[at] = a;
        this.right[at] = b;
        this.ids[at] = fresh;
        return fresh;
      }
      if (this.left[at] === a && this.right[at] === b) return id;
    }
  }
}

/** One level of n-grams: ids[i] names the n-gram that begins at unit i; counts by id, ids in order of first sight. */
export interface Grams {
  n: number;
  ids: Int32Array;
  counts: Int32Array;
}

/**
 * All n-grams up to `longest` over units given as ids (0 .. distinct-1). An n-gram whose beginning occurs once occurs once,
 * so that only what is repeated is looked up: on ordinary text the long n-grams cost almost nothing.
 */
export function* gramLevels(units: Int32Array, distinct: number, longest: number): Generator<Grams> {
  const counts = new Int32Array(distinct);
  for (const id of units) counts[id]++;
  let level: Grams = { n: 1, ids: units, counts };
  yield level;
  for (let n = 2; n <= longest; n++) {
    const size = Math.max(0, units.length - n + 1);
    let candidates = 0;
    for (let i = 0; i < size; i++) if (level.counts[level.ids[i]] > 1) candidates++;
    const table = new PairIds(candidates);
    const ids = new Int32Array(size);
    const next = new Int32Array(size);
    let fresh = 0;
    for (let i = 0; i < size; i++) {
      const prefix = level.ids[i];
      const id = level.counts[prefix] > 1 ? table.get(prefix, units[i + n - 1], fresh) : fresh;
      if (id === fresh) fresh++;
      ids[i] = id;
      next[id]++;
    }
    level = { n, ids, counts: next.subarray(0, fresh) };
    yield level;
  }
}

/** Characters before each unit, so that the characters of units i .. j-1 are offsets[j] - offsets[i]. */
export function offsetsOf(lengths: ArrayLike<number>): Int32Array {
  const offsets = new Int32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) offsets[i + 1] = offsets[i] + lengths[i];
  return offsets;
}

/** Characters of the commonest n-gram times its count; of equals the first seen, as Counter.most_common. `gap`: a space between words. */
export function topGramChars(grams: Grams, offsets: Int32Array, gap: number): number {
  if (grams.ids.length === 0) return 0;
  let best = 0;
  for (let id = 1; id < grams.counts.length; id++) if (grams.counts[id] > grams.counts[best]) best = id;
  const first = grams.ids.indexOf(best);
  return (offsets[first + grams.n] - offsets[first] + gap * (grams.n - 1)) * grams.counts[best];
}

/** Characters in n-grams seen before, without overlap (datatrove find_all_duplicate: after a repeat it goes n units on). */
export function duplicateGramChars(grams: Grams, offsets: Int32Array): number {
  const seen = new Uint8Array(grams.counts.length);
  let chars = 0;
  for (let i = 0; i < grams.ids.length; ) {
    const id = grams.ids[i];
    if (seen[id]) {
      chars += offsets[i + grams.n] - offsets[i];
      i += grams.n;
    } else {
      seen[id] = 1;
      i++;
    }
  }
  return chars;
}
