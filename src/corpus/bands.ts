/**
 * Which documents share a band of their MinHash signatures, found by all processes together. A band's key belongs to one process,
 * by its lower bits: there all documents with that key meet, by all-to-all, one band after the other. What has met nobody, which
 * is most, goes no further; the rest is told to the first process, which alone compares texts.
 *
 * Messages go in rounds, so that no process gets more than ROUND bytes at once. What a process holds is its own share: the
 * keys of its documents (8 bytes a band), and of one band the keys that are its to sort. One process does the same, alone.
 */
import { readFileSync } from "node:fs";
import { openTextKernels } from "../device/text.js";
import type { Comm } from "../parallel/comm.js";
import type { BuildFolder } from "./folder.js";
import { type Buckets, eachRepeated, isEmpty, type MinHashOptions } from "./minhash.js";

/** The processes that take part. */
export type Peers = Pick<Comm, "rank" | "size" | "allToAll" | "gatherNumbers" | "barrier">;
const alone: Peers = {
  rank: 0,
  size: 1,
  allToAll: (pieces) => [...pieces],
  gatherNumbers: (values) => [[...values]],
  barrier: () => {},
};

const ROUND = 16 * 2 ** 20;

/** The documents that share bands with others, on the first process. Documents are numbered through all units. */
export class SharedBands {
  /** `pairs`: of each band, lists of a document's number and its bucket, a number below `count`. */
  constructor(
    private readonly pairs: readonly (readonly Uint32Array[])[],
    private readonly count: number,
  ) {}

  /** Of the documents `left` those that share a band, and their buckets by their places among them. */
  among(left: readonly number[]): { documents: number[]; buckets: Buckets } {
    let most = -1;
    for (const list of this.pairs.flat()) for (let i = 0; i < list.length; i += 2) most = Math.max(most, list[i]);
    // -1: shares none, or is no longer there; -2: shares one, and may be left; from 0 on: its place.
    const places = new Int32Array(most + 1).fill(-1);
    for (const list of this.pairs.flat()) for (let i = 0; i < list.length; i += 2) places[list[i]] = -2;
    const documents = left.filter((number) => places[number] === -2);
    for (const [place, number] of documents.entries()) places[number] = place;
    const of = new Int32Array(this.pairs.length * documents.length).fill(-1);
    for (const [band, lists] of this.pairs.entries())
      for (const list of lists)
        for (let i = 0; i < list.length; i += 2) {
          const place = places[list[i]];
          if (place >= 0) of[band * documents.length + place] = list[i + 1];
        }
    return { documents, buckets: { of, count: this.count } };
  }
}

/**
 * All processes call it with the same units, in their order (`kept`: documents with a signature); each reads the signatures of
 * every so many of them. The first gets the result, the others one without documents. `round`: most bytes that a process gets at
 * once.
 */
export function shareBands(
  folder: BuildFolder,
  units: readonly { unit: string; kept: number }[],
  options: MinHashOptions,
  world: Peers = alone,
  round = ROUND,
): SharedBands {
  const { size, rank } = world;
  const { keys, stride, numbers } = ownKeys(folder, units, options, world);
  // A disk is quicker for one process than for another.
  world.barrier(true);
  const n = numbers.length;
  const words = new Uint32Array(keys.buffer);
  const all: Uint32Array[][] = [];
  let count = 0;
  for (let band = 0; band < options.bands; band++) {
    const at = (i: number): number => 2 * (band * stride + i);
    const met: Uint32Array[] = [];
    const send = (i: number, into: Uint32Array, to: number): void => {
      into[to] = words[at(i)];
      into[to + 1] = words[at(i) + 1];
      into[to + 2] = numbers[i];
    };
    handOver(world, round, { n, width: 3, to: (i) => words[at(i)] % size, send }, (records) => met.push(records));
    const found: number[] = [];
    const { column, documents } = columnOf(met);
    eachRepeated(column, (places) => {
      for (const place of places) found.push(documents[place], count * size + rank);
      count++;
    });
    const pairs: Uint32Array[] = [];
    const tell = (i: number, into: Uint32Array, to: number): void => {
      into[to] = found[2 * i];
      into[to + 1] = found[2 * i + 1];
    };
    handOver(world, round, { n: found.length / 2, width: 2, to: () => 0, send: tell }, (records) =>
      pairs.push(records),
    );
    all.push(pairs);
  }
  return new SharedBands(all, Math.max(...world.gatherNumbers([count]).map(([own]) => own)) * size);
}

/**
 * The keys of this process's documents, keys[band * stride + i], and their numbers. Texts without a word are left out: they are
 * no one's twins.
 */
function ownKeys(
  folder: BuildFolder,
  units: readonly { unit: string; kept: number }[],
  { bands, rows }: MinHashOptions,
  { rank, size }: Peers,
): { keys: BigUint64Array; stride: number; numbers: Uint32Array } {
  const hashes = bands * rows;
  const kernels = openTextKernels();
  const stride = units.reduce((n, { kept }, u) => n + (u % size === rank ? kept : 0), 0);
  const keys = new BigUint64Array(stride * bands);
  const numbers = new Uint32Array(stride);
  let [at, first] = [0, 0];
  for (const [u, { unit, kept }] of units.entries()) {
    if (u % size === rank && kept > 0) {
      const file = folder.path(`index/${unit}.bin`);
      const bytes = readFileSync(file);
      if (bytes.length !== kept * hashes * 4)
        throw new Error(`${file} has ${bytes.length} bytes, not ${kept} signatures of ${hashes * 4}`);
      const signatures = new Uint32Array(bytes.buffer, bytes.byteOffset, kept * hashes);
      let n = 0;
      for (let d = 0; d < kept; d++) {
        if (isEmpty(signatures, d, hashes)) continue;
        signatures.copyWithin(n * hashes, d * hashes, (d + 1) * hashes);
        numbers[at + n++] = first + d;
      }
      const own = new BigUint64Array(n * bands);
      kernels.minhashBands(signatures, n, bands, rows, own);
      for (let band = 0; band < bands; band++) keys.set(own.subarray(band * n, (band + 1) * n), band * stride + at);
      at += n;
    }
    first += kept;
  }
  return { keys, stride, numbers: numbers.subarray(0, at) };
}

/** The keys and the documents of records that have arrived. */
function columnOf(records: readonly Uint32Array[]): { column: BigUint64Array; documents: Uint32Array } {
  const n = records.reduce((sum, list) => sum + list.length / 3, 0);
  const column = new BigUint64Array(n);
  const words = new Uint32Array(column.buffer);
  const documents = new Uint32Array(n);
  let at = 0;
  for (const list of records)
    for (let i = 0; i < list.length; i += 3, at++) {
      words[2 * at] = list[i];
      words[2 * at + 1] = list[i + 1];
      documents[at] = list[i + 2];
    }
  return { column, documents };
}

interface Records {
  /** How many this process has, and the 32-bit words of one. */
  n: number;
  width: number;
  /** The process that record i is for. */
  to(i: number): number;
  /** Writes record i into a message. */
  send(i: number, into: Uint32Array, at: number): void;
}

/** Brings records to the processes that they are for, at most `round` bytes to each at once; `take` gets what arrives here. */
function handOver(world: Peers, round: number, records: Records, take: (records: Uint32Array) => void): void {
  const { n, width, to, send } = records;
  const atOnce = Math.max(1, Math.floor(round / (4 * width * world.size)));
  const most = Math.max(...world.gatherNumbers([n]).map(([own]) => own));
  for (let from = 0; from < most; from += atOnce) {
    const end = Math.min(n, from + atOnce);
    const counts = new Array<number>(world.size).fill(0);
    for (let i = from; i < end; i++) counts[to(i)] += width;
    const messages = counts.map((length) => new Uint32Array(length));
    const at = new Array<number>(world.size).fill(0);
    for (let i = from; i < end; i++) {
      const peer = to(i);
      send(i, messages[peer], at[peer]);
      at[peer] += width;
    }
    for (const bytes of world.allToAll(messages.map((m) => new Uint8Array(m.buffer))))
      if (bytes.length > 0) take(new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4));
  }
}
