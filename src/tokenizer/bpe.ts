/** The BPE model of tokenizer.json: vocabulary and merges, and words to ids (Sennrich et al. 2016) in JavaScript. */
import { UserError } from "../run/errors.js";
import { BYTE_TO_CHAR } from "./bytes.js";
import { byteOf, byteToken, Cutter } from "./fallback.js";

type Json = Record<string, unknown>;

/** A pair of ids as one number, and a rank with the id it makes: both stay below 2^53. */
const PAIR = 2 ** 26;
const NONE = Number.POSITIVE_INFINITY;
/** Words are remembered, up to this length and this many. */
const CACHED_LENGTH = 64;
const CACHED_WORDS = 200_000;

/** Up to so many parts going over them again and again is faster than a queue. */
const SHORT = 128;

/** The least first: a binary heap. */
class Queue {
  private readonly heap: number[] = [];

  push(value: number): void {
    const { heap } = this;
    let at = heap.push(value) - 1;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (heap[above] <= value) break;
      heap[at] = heap[above];
      at = above;
    }
    heap[at] = value;
  }

  pop(): number | undefined {
    const { heap } = this;
    const first = heap[0];
    const last = heap.pop();
    if (heap.length === 0 || last === undefined) return first;
    let at = 0;
    for (let below = 1; below < heap.length; below = 2 * at + 1) {
      if (below + 1 < heap.length && heap[below + 1] < heap[below]) below++;
      if (heap[below] >= last) break;
      heap[at] = heap[below];
      at = below;
    }
    heap[at] = last;
    return first;
  }
}

export class BpeModel {
  readonly ids: ReadonlyMap<string, number>;
  /** left * PAIR + right -> rank * PAIR + id of the merged token. */
  private readonly merges = new Map<number, number>();
  /** Words are spelled in characters, and in bytes only where a character has no token; else always in bytes. */
  readonly byteFallback: boolean;
  /** Id of each byte; -1 where the vocabulary has none. */
  readonly byteIds: Int32Array;
  /** A word that is in the vocabulary is one token, whatever the merges say. */
  readonly ignoreMerges: boolean;
  /** Stands for a byte that the vocabulary lacks; undefined: such a byte is left out. */
  private readonly unknownId: number | undefined;
  private readonly fuseUnknown: boolean;
  private readonly cache = new Map<string, readonly number[]>();
  private readonly cutter: Cutter | undefined;

  /** Throws a UserError where a merge names a token that the vocabulary lacks, or bytes to fall back on are missing. */
  constructor(model: Json, path: string) {
    this.ids = new Map(Object.entries(model.vocab as Record<string, number>));
    this.byteFallback = model.byte_fallback === true;
    this.byteIds = Int32Array.from(
      BYTE_TO_CHAR.map((c, byte) => (this.byteFallback ? byteToken(byte) : c)),
      (token) => this.ids.get(token) ?? -1,
    );
    if (this.byteFallback && !this.hasAllBytes)
      throw new UserError(
        `${path}: byte_fallback is true, and the vocabulary has no ${byteToken(this.byteIds.indexOf(-1))}.`,
      );
    this.ignoreMerges = model.ignore_merges === true;
    this.unknownId = this.ids.get(model.unk_token as string);
    this.fuseUnknown = model.fuse_unk === true;
    const lines = (model.merges as (string | [string, string])[]).filter(
      (m) => typeof m !== "string" || !m.startsWith("#version"),
    );
    for (const [rank, merge] of lines.entries()) {
      const [left, right, ...more] = typeof merge === "string" ? merge.split(" ") : merge;
      const pair = [this.ids.get(left), this.ids.get(right), this.ids.get(left + right)];
      if (more.length || pair.includes(undefined))
        throw new UserError(
          `${path}: merge ${rank + 1}, ${JSON.stringify(merge)}, does not name two tokens of the vocabulary that make a third.`,
        );
      this.merges.set(pair[0]! * PAIR + pair[1]!, rank * PAIR + pair[2]!);
    }
    if (this.byteFallback) this.cutter = this.cutterOf(lines);
  }

  private cutterOf(merges: readonly (string | [string, string])[]): Cutter | undefined {
    const pairs = merges.map((merge) => (typeof merge === "string" ? merge.split(" ") : merge));
    // A byte stands beside whichever character: where bytes merge, no border is certain.
    const mergesBytes = pairs.some((pair) => pair.some((token) => byteOf(token) !== undefined));
    return mergesBytes ? undefined : new Cutter(pairs.map((pair) => pair.join("")));
  }

  /** Ids of left, right and merged token, and rank, of every merge. */
  *entries(): Generator<{ left: number; right: number; rank: number; id: number }> {
    for (const [pair, merge] of this.merges)
      yield { left: Math.floor(pair / PAIR), right: pair % PAIR, rank: Math.floor(merge / PAIR), id: merge % PAIR };
  }

  /** True when every byte has a token: then any text can be encoded and nothing is lost. */
  get hasAllBytes(): boolean {
    return !this.byteIds.includes(-1);
  }

  encodeWord(word: string): readonly number[] {
    if (!this.byteFallback) return this.remembered(word);
    const whole = this.ignoreMerges ? this.ids.get(word) : undefined;
    if (whole !== undefined) return [whole];
    return this.cutter ? this.cutter.cut(word).flatMap((piece) => this.remembered(piece)) : this.remembered(word);
  }

  private remembered(word: string): readonly number[] {
    let ids = this.cache.get(word);
    if (ids) return ids;
    ids = this.byteFallback ? this.mergeAll(this.characters(word)) : this.mergeBytes(Buffer.from(word));
    if (word.length < CACHED_LENGTH) {
      if (this.cache.size >= CACHED_WORDS) this.cache.clear();
      this.cache.set(word, ids);
    }
    return ids;
  }

  /** Ids of the characters, or of their bytes. */
  private characters(word: string): number[] {
    return Array.from(word).flatMap((c) => this.ids.get(c) ?? Array.from(Buffer.from(c), (byte) => this.byteIds[byte]));
  }

  private mergeBytes(bytes: Uint8Array): number[] {
    if (this.ignoreMerges) {
      const whole = this.ids.get(Array.from(bytes, (b) => BYTE_TO_CHAR[b]).join(""));
      if (whole !== undefined) return [whole];
    }
    const parts: number[] = [];
    let wasUnknown = false;
    for (const b of bytes) {
      const id = this.byteIds[b];
      if (id >= 0) parts.push(id);
      else if (this.unknownId !== undefined && !(wasUnknown && this.fuseUnknown)) parts.push(this.unknownId);
      wasUnknown = id < 0;
    }
    return this.mergeAll(parts);
  }

  private of(left: number, right: number): number {
    return this.merges.get(left * PAIR + right) ?? NONE;
  }

  /**
   * The lowest-ranked pair, leftmost first, is merged until none is left. All places of one rank are done in one pass,
   * until a merge makes a pair of lower rank, which then goes first; so a long word takes a pass a rank, not a pass a merge.
   */
  private mergeAll(parts: number[]): number[] {
    if (parts.length > SHORT) return this.mergeMany(parts);
    let ids = parts;
    for (;;) {
      let best = NONE;
      for (let i = 0; i + 1 < ids.length; i++) best = Math.min(best, this.of(ids[i], ids[i + 1]));
      if (best === NONE) return ids;
      const out: number[] = [];
      let i = 0;
      for (let lowest = best; i < ids.length && lowest >= best; i++) {
        if (i + 1 >= ids.length || this.of(ids[i], ids[i + 1]) !== best) {
          out.push(ids[i]);
          continue;
        }
        const merged = best % PAIR;
        i++;
        if (out.length) lowest = this.of(out[out.length - 1], merged);
        if (i + 1 < ids.length) lowest = Math.min(lowest, this.of(merged, ids[i + 1]));
        out.push(merged);
      }
      ids = i < ids.length ? out.concat(ids.slice(i)) : out;
    }
  }

  /** The same with a queue of pairs, by rank and then by place: whatever the merges, n parts take n log n. */
  private mergeMany(parts: number[]): number[] {
    const ids = Int32Array.from(parts);
    const gone = -1;
    const next = Int32Array.from(parts, (_, i) => (i + 1 < parts.length ? i + 1 : gone));
    const previous = Int32Array.from(parts, (_, i) => i - 1);
    const queue = new Queue();
    const rankAt = (at: number): number => Math.floor(this.of(ids[at], ids[next[at]]) / PAIR);
    const add = (at: number): void => {
      if (at === gone || next[at] === gone) return;
      const rank = rankAt(at);
      if (rank !== NONE) queue.push(rank * PAIR + at);
    };
    for (let i = 0; i + 1 < parts.length; i++) add(i);
    for (let first = queue.pop(); first !== undefined; first = queue.pop()) {
      const at = first % PAIR;
      // Another merge may have taken one of the two since.
      if (ids[at] === gone || next[at] === gone || rankAt(at) !== Math.floor(first / PAIR)) continue;
      const taken = next[at];
      ids[at] = this.of(ids[at], ids[taken]) % PAIR;
      ids[taken] = gone;
      next[at] = next[taken];
      if (next[at] !== gone) previous[next[at]] = at;
      add(previous[at]);
      add(at);
    }
    return Array.from(ids.filter((id) => id !== gone));
  }
}
