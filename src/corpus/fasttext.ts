/**
 * fastText's supervised model (Joulin et al. 2017, arXiv 1607.01759): a linear classifier over words, hashed n-grams and, if it has
 * them, character n-grams; its `.bin` file, format 12. Predicts as `fasttext predict-prob` does.
 *
 * All text is bytes here: fastText hashes UTF-8 bytes and knows no characters but as lead and continuation bytes.
 */
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { UserError } from "../run/errors.js";

const MAGIC = 793712314;
const VERSION = 12;
export const LOSS = { hs: 1, ns: 2, softmax: 3, ova: 4 } as const;
const SUPERVISED = 3;
const EOS = "</s>";

export interface FastTextArgs {
  dim: number;
  ws: number;
  epoch: number;
  minCount: number;
  neg: number;
  wordNgrams: number;
  loss: number;
  bucket: number;
  minn: number;
  maxn: number;
  lrUpdateRate: number;
  t: number;
}

export interface FastTextModel {
  args: FastTextArgs;
  /** Bytes of a word (as Latin-1) -> row of `input`. */
  words: Map<string, number>;
  counts: number[];
  /** With the prefix, usually __label__. */
  labels: string[];
  labelCounts: number[];
  tokens: number;
  /** (words + buckets) x dim. */
  input: Float32Array;
  /** labels x dim. */
  output: Float32Array;
}

/** FNV-1a over bytes that fastText takes as signed. */
function hashBytes(bytes: string): number {
  let h = 2166136261;
  for (let i = 0; i < bytes.length; i++) {
    const b = bytes.charCodeAt(i);
    h = Math.imul(h ^ (b > 127 ? b | 0xffffff00 : b), 16777619);
  }
  return h >>> 0;
}

/** The factor of fastText's n-gram hash, in halves of 16 bits. */
const C1 = 116049371 >>> 16;
const C0 = 116049371 & 0xffff;

/** High half of h * 116049371 + next modulo 2^64, for h as two halves; `next` is signed, as fastText keeps hashes in int32. */
function highOfNext(high: number, low: number, next: number): number {
  const [a, b] = [low >>> 16, low & 0xffff];
  const [ab, ba, bb] = [Math.imul(a, C0) >>> 0, Math.imul(b, C1), Math.imul(b, C0) >>> 0];
  const middle = (bb >>> 16) + (ab & 0xffff) + (ba & 0xffff);
  const product = ((middle << 16) | (bb & 0xffff)) >>> 0;
  const carry = product + (next >>> 0) > 0xffffffff ? 1 : 0;
  const above = Math.imul(a, C1) + (ab >>> 16) + (ba >>> 16) + (middle >>> 16) + carry + (next < 0 ? -1 : 0);
  return (Math.imul(high, 116049371) + above) >>> 0;
}
const lowOfNext = (low: number, next: number): number => (Math.imul(low, 116049371) + next) >>> 0;

/** x modulo m for whole x < 2^53: `%` of numbers above 2^31 is a slow library call. */
function modulo(x: number, m: number): number {
  const rest = x - Math.floor(x / m) * m;
  return rest < 0 ? rest + m : rest >= m ? rest - m : rest;
}

const known = new WeakMap<Map<string, number>, Int32Array>();
/** Hashes of the dictionary's words, by row. */
function wordHashes(words: Map<string, number>): Int32Array {
  let hashes = known.get(words);
  if (!hashes) {
    hashes = new Int32Array(words.size);
    for (const [word, id] of words) hashes[id] = hashBytes(word);
    known.set(words, hashes);
  }
  return hashes;
}

const SEPARATORS = /[ \n\r\t\v\f\0]+/;

/** Rows of the input matrix that a text selects, in order; the end of the line is a word too. */
export function features(model: FastTextModel, text: string): number[] {
  const { args, words } = model;
  const rows: number[] = [];
  const hashes: number[] = [];
  const dictionary = wordHashes(words);
  const take = (word: string): void => {
    const id = words.get(word);
    if (id === undefined && word.startsWith("__label__")) return;
    hashes.push(id === undefined ? hashBytes(word) | 0 : dictionary[id]);
    if (id !== undefined) rows.push(id);
    if (args.maxn > 0 && word !== EOS) characterGrams(model, `<${word}>`, rows);
  };
  // Latin-1 of the UTF-8 bytes: one unit of the string is one byte.
  for (const word of Buffer.from(text, "utf8").toString("latin1").split(SEPARATORS)) if (word !== "") take(word);
  take(EOS);
  const { bucket, wordNgrams } = args;
  if (bucket === 0) return rows;
  const step = modulo(2 ** 32, bucket);
  for (let i = 0; i < hashes.length; i++) {
    let high = hashes[i] < 0 ? 0xffffffff : 0;
    let low = hashes[i] >>> 0;
    for (let j = i + 1; j < hashes.length && j < i + wordNgrams; j++) {
      high = highOfNext(high, low, hashes[j]);
      low = lowOfNext(low, hashes[j]);
      rows.push(words.size + modulo(modulo(high, bucket) * step + low, bucket));
    }
  }
  return rows;
}

function characterGrams(model: FastTextModel, word: string, rows: number[]): void {
  const { minn, maxn, bucket } = model.args;
  const continues = (at: number): boolean => (word.charCodeAt(at) & 0xc0) === 0x80;
  for (let i = 0; i < word.length; i++) {
    if (continues(i)) continue;
    for (let end = i, n = 1; end < word.length && n <= maxn; n++) {
      end++;
      while (end < word.length && continues(end)) end++;
      if (n >= minn && !(n === 1 && (i === 0 || end === word.length)))
        rows.push(model.words.size + (hashBytes(word.slice(i, end)) % bucket));
    }
  }
}

/** Mean of the rows: the one hidden layer. */
export function hiddenOf(model: FastTextModel, rows: readonly number[]): Float32Array {
  const { dim } = model.args;
  const hidden = new Float32Array(dim);
  for (const row of rows) for (let k = 0, at = row * dim; k < dim; k++) hidden[k] += model.input[at + k];
  for (let k = 0; k < dim; k++) hidden[k] /= rows.length;
  return hidden;
}

function dot(model: FastTextModel, row: number, hidden: Float32Array): number {
  let sum = 0;
  for (let k = 0, at = row * hidden.length; k < hidden.length; k++) sum += model.output[at + k] * hidden[k];
  return sum;
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** Probability of every label, in the order of `labels`; all 0 for a text without any known word. */
export function predict(model: FastTextModel, text: string): Float64Array {
  const rows = features(model, text);
  const p = new Float64Array(model.labels.length);
  if (rows.length === 0) return p;
  const hidden = hiddenOf(model, rows);
  const { loss } = model.args;
  if (loss === LOSS.hs) return hierarchical(model, hidden, p);
  for (let k = 0; k < p.length; k++) p[k] = dot(model, k, hidden);
  if (loss === LOSS.softmax) {
    const most = Math.max(...p);
    let sum = 0;
    for (let k = 0; k < p.length; k++) sum += p[k] = Math.exp(p[k] - most);
    for (let k = 0; k < p.length; k++) p[k] /= sum;
  } else for (let k = 0; k < p.length; k++) p[k] = sigmoid(p[k]);
  return p;
}

/** Huffman tree over the labels (Mikolov et al. 2013): inner node i is decided by output row i; right with sigmoid(score). */
function hierarchical(model: FastTextModel, hidden: Float32Array, p: Float64Array): Float64Array {
  const n = p.length;
  const count = [...model.labelCounts, ...new Array<number>(n - 1).fill(1e15)];
  const children: [number, number][] = [];
  let leaf = n - 1;
  let inner = n;
  const least = (): number => (leaf >= 0 && count[leaf] < count[inner] ? leaf-- : inner++);
  for (let i = n; i < 2 * n - 1; i++) {
    children.push([least(), least()]);
    count[i] = count[children[i - n][0]] + count[children[i - n][1]];
  }
  const stack: [number, number][] = [[2 * n - 2, 1]];
  for (let top = stack.pop(); top; top = stack.pop()) {
    const [node, probability] = top;
    if (node < n) {
      p[node] = probability;
      continue;
    }
    const right = sigmoid(dot(model, node - n, hidden));
    stack.push([children[node - n][0], probability * (1 - right)], [children[node - n][1], probability * right]);
  }
  return p;
}

/** Reads a file piece by piece, so that a model may be larger than a Buffer. */
class Reader {
  private readonly buffer = Buffer.alloc(1 << 20);
  private at = 0;
  private filled = 0;
  constructor(
    private readonly fd: number,
    private readonly path: string,
  ) {}
  private need(bytes: number): void {
    if (this.filled - this.at >= bytes) return;
    this.buffer.copy(this.buffer, 0, this.at, this.filled);
    this.filled -= this.at;
    this.at = 0;
    while (this.filled < bytes) {
      const read = readSync(this.fd, this.buffer, this.filled, this.buffer.length - this.filled, null);
      if (read === 0) throw new UserError(`${this.path} ends too early: the file is damaged or was not copied whole.`);
      this.filled += read;
    }
  }
  private take(bytes: number): number {
    this.need(bytes);
    this.at += bytes;
    return this.at - bytes;
  }
  int32 = (): number => this.buffer.readInt32LE(this.take(4));
  int64 = (): number => Number(this.buffer.readBigInt64LE(this.take(8)));
  double = (): number => this.buffer.readDoubleLE(this.take(8));
  byte = (): number => this.buffer[this.take(1)];
  word(): string {
    const bytes: number[] = [];
    for (let b = this.byte(); b !== 0; b = this.byte()) bytes.push(b);
    return Buffer.from(bytes).toString("latin1");
  }
  floats(count: number): Float32Array {
    const all = new Float32Array(count);
    const bytes = new Uint8Array(all.buffer);
    for (let done = 0; done < bytes.length; ) {
      if (this.at === this.filled) this.need(1);
      const n = Math.min(this.filled - this.at, bytes.length - done);
      bytes.set(this.buffer.subarray(this.at, this.at + n), done);
      this.at += n;
      done += n;
    }
    return all;
  }
}

/** Loads a supervised `.bin`. Throws UserError for anything else, saying what it is. */
export function loadFastText(path: string): FastTextModel {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    throw new UserError(`${path} cannot be opened: ${(error as Error).message}`);
  }
  try {
    const r = new Reader(fd, path);
    const size = fstatSync(fd).size;
    if (size < 8 || r.int32() !== MAGIC) throw new UserError(`${path} is not a fastText model (.bin).`);
    const version = r.int32();
    if (version !== VERSION)
      throw new UserError(`${path} is a fastText model of format ${version}; only format 12 can be read.`);
    const [dim, ws, epoch, minCount, neg, wordNgrams, loss, kind, bucket, minn, maxn, lrUpdateRate] = Array.from(
      { length: 12 },
      r.int32,
    );
    const args = { dim, ws, epoch, minCount, neg, wordNgrams, loss, bucket, minn, maxn, lrUpdateRate, t: r.double() };
    if (kind !== SUPERVISED)
      throw new UserError(`${path} holds word vectors, not a classifier; train one with "fasttext supervised".`);
    const [entries, nwords] = [r.int32(), r.int32()];
    r.int32(); // labels: entries - nwords
    const tokens = r.int64();
    const pruned = r.int64();
    const model = { args, words: new Map<string, number>(), counts: [], labels: [], labelCounts: [], tokens } as Omit<
      FastTextModel,
      "input" | "output"
    >;
    for (let i = 0; i < entries; i++) {
      const word = r.word();
      const count = r.int64();
      if (r.byte() === 0) {
        model.words.set(word, model.words.size);
        model.counts.push(count);
      } else {
        model.labels.push(Buffer.from(word, "latin1").toString("utf8"));
        model.labelCounts.push(count);
      }
    }
    if (pruned >= 0 || r.byte() !== 0)
      throw new UserError(`${path} is a quantized model (.ftz); give the .bin that it was made from.`);
    const matrix = (rows: number, what: string): Float32Array => {
      const [m, n] = [r.int64(), r.int64()];
      if (m !== rows || n !== dim || m * n * 4 > size)
        throw new UserError(`${path}: its ${what} matrix is ${m} x ${n}, not ${rows} x ${dim}: the file is damaged.`);
      return r.floats(m * n);
    };
    const input = matrix(nwords + bucket, "input");
    if (r.byte() !== 0) throw new UserError(`${path} has a quantized output; give the .bin that it was made from.`);
    return { ...model, input, output: matrix(model.labels.length, "output") };
  } finally {
    closeSync(fd);
  }
}

/** Writes the model so that fastText itself reads it. */
export function saveFastText(model: FastTextModel, path: string): void {
  const { args } = model;
  const fd = openSync(path, "w");
  try {
    const head = Buffer.alloc(8 + 12 * 4 + 8 + 3 * 4 + 16);
    let at = 0;
    const int32 = (v: number): void => {
      at = head.writeInt32LE(v, at);
    };
    // biome-ignore format: the order of the file
    for (const v of [MAGIC, VERSION, args.dim, args.ws, args.epoch, args.minCount, args.neg, args.wordNgrams, args.loss,
      SUPERVISED, args.bucket, args.minn, args.maxn, args.lrUpdateRate]) int32(v);
    at = head.writeDoubleLE(args.t, at);
    for (const v of [model.words.size + model.labels.length, model.words.size, model.labels.length]) int32(v);
    at = head.writeBigInt64LE(BigInt(model.tokens), at);
    head.writeBigInt64LE(-1n, at);
    writeSync(fd, head);
    const entry = (bytes: Buffer, count: number, type: number): void => {
      const end = Buffer.alloc(10);
      end.writeBigInt64LE(BigInt(count), 1);
      end[9] = type;
      writeSync(fd, Buffer.concat([bytes, end]));
    };
    for (const [word, id] of model.words) entry(Buffer.from(word, "latin1"), model.counts[id], 0);
    model.labels.forEach((label, i) => {
      entry(Buffer.from(label, "utf8"), model.labelCounts[i], 1);
    });
    for (const [matrix, rows] of [
      [model.input, model.words.size + args.bucket],
      [model.output, model.labels.length],
    ] as const) {
      const shape = Buffer.alloc(17); // the first byte: not quantized
      shape.writeBigInt64LE(BigInt(rows), 1);
      shape.writeBigInt64LE(BigInt(args.dim), 9);
      writeSync(fd, shape);
      const bytes = new Uint8Array(matrix.buffer, matrix.byteOffset, matrix.byteLength);
      for (let done = 0; done < bytes.length; )
        done += writeSync(fd, bytes, done, Math.min(1 << 26, bytes.length - done));
    }
  } finally {
    closeSync(fd);
  }
}
