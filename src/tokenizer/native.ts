/** The engine's BPE: encoding and training on all cores, with the ids and merges of the JavaScript code. */
import { randomBytes } from "node:crypto";
import { isMainThread } from "node:worker_threads";
import { currentCpu } from "../device/cpu.js";
import type { Device, Ptr } from "../device/device.js";
import type { Comm } from "../parallel/comm.js";
import type { Piece } from "./added.js";
import type { BpeModel } from "./bpe.js";
import { CHAR_TO_BYTE } from "./bytes.js";
import { isPrefixed, type Pretokenizer, type PretokenizerStep } from "./pretokenize.js";
import { characterClasses, LETTER, SPACE } from "./unicode.js";

const PATTERN_NUMBERS: Record<Pretokenizer, number> = { gpt2: 0, llama3: 1, qwen: 2, han: 3 };
/** Characters handed to the engine at once; a longer text is cut. */
const ROUND = 1 << 22;

/** Ids and ranks have 21 bits in the engine's table. */
const LARGEST = 1 << 21;

/** The engine; null where it cannot be opened, and in worker threads, each of which would have a pool of threads of its own beside the others. */
function engine(): Device | null {
  if (!isMainThread) return null;
  try {
    return currentCpu();
  } catch {
    return null;
  }
}

/** Pieces of engine memory that are given back together. */
class Memory {
  private readonly pieces: [Ptr, number][] = [];
  constructor(private readonly device: Device) {}
  alloc(bytes: number): Ptr {
    const ptr = this.device.alloc(bytes);
    this.pieces.push([ptr, bytes]);
    return ptr;
  }
  put(data: ArrayBufferView): Ptr {
    const ptr = this.alloc(data.byteLength + 16);
    this.device.bytes(ptr, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return ptr;
  }
  free(): void {
    for (const [ptr, bytes] of this.pieces.splice(0)) this.device.free(ptr, bytes);
  }
}

/** Engine memory for as long as `owner` lives. */
const reclaimed = new FinalizationRegistry<Memory>((memory) => memory.free());
const tables = new Map<boolean, { device: Device; ptr: Ptr }>();
/** The table of character classes, once for all tokenizers; one more for those that Chinese characters are words to. */
function classesOn(device: Device, pattern: Pretokenizer): Ptr {
  const han = pattern === "han";
  const known = tables.get(han);
  if (known?.device === device) return known.ptr;
  const ptr = new Memory(device).put(characterClasses(han));
  tables.set(han, { device, ptr });
  return ptr;
}

/** Texts in engine memory as its kernels take them: UTF-8, each followed by a zero byte. */
class Texts {
  readonly memory: Memory;
  readonly text: Ptr;
  readonly starts: Ptr;
  private readonly bytes: Buffer;
  private readonly places: BigInt64Array;
  private used = 0;
  count = 0;

  /** Room for texts of so many characters in all. */
  constructor(device: Device, characters: number, texts: number) {
    this.memory = new Memory(device);
    const capacity = 3 * characters + texts + 16;
    this.text = this.memory.alloc(capacity);
    this.starts = this.memory.alloc((texts + 1) * 8);
    const { buffer, byteOffset } = device.bytes(this.text, capacity);
    this.bytes = Buffer.from(buffer as ArrayBuffer, byteOffset, capacity);
    const places = device.bytes(this.starts, (texts + 1) * 8);
    this.places = new BigInt64Array(places.buffer, places.byteOffset, texts + 1);
  }
  get size(): number {
    return this.used;
  }
  clear(): void {
    this.used = 0;
    this.count = 0;
  }
  add(text: string): void {
    this.used += this.bytes.write(text, this.used, "utf8");
    this.bytes[this.used++] = 0;
    this.places[++this.count] = BigInt(this.used);
  }
}

export class NativeBpe {
  private constructor(
    private readonly device: Device,
    private readonly model: Ptr,
    /** What goes before a text. */
    private readonly prefix: PretokenizerStep | undefined,
  ) {}

  /** null where there is no engine, or the vocabulary lacks a byte: that is left to the JavaScript encoder. */
  static of(model: BpeModel, pattern: Pretokenizer, prefix: PretokenizerStep | undefined): NativeBpe | null {
    const merges = [...model.entries()].sort((a, b) => a.rank - b.rank);
    const fits = model.ids.size < LARGEST && merges.every(({ left, right, id }) => Math.max(left, right, id) < LARGEST);
    const device = model.hasAllBytes && fits ? engine() : null;
    if (!device) return null;
    const memory = new Memory(device);
    const triples = new Int32Array(merges.length * 3);
    for (const [i, { left, right, id }] of merges.entries()) triples.set([left, right, id], 3 * i);
    const table = slotsFor(merges.length);
    const mergeTable = memory.alloc(table * 8);
    const work = new Memory(device);
    const kept = memory.put(triples);
    device.bpeMerges(kept, merges.length, mergeTable, table);
    const words = model.ignoreMerges ? wordTable(model, device, memory, work) : [0, 0, 0];
    work.free();
    const version = randomBytes(8).readBigInt64LE();
    const fields = [
      PATTERN_NUMBERS[pattern],
      classesOn(device, pattern),
      memory.put(model.byteIds),
      kept,
      mergeTable,
      table,
      ...words,
    ];
    const native = new NativeBpe(device, memory.put(BigInt64Array.from([...fields.map(BigInt), version])), prefix);
    reclaimed.register(native, memory);
    return native;
  }

  /** Ids of each text, given as pieces: plain text to encode, and ids that stand between. */
  encode(texts: readonly (readonly Piece[])[]): Uint32Array[] {
    const { prefix } = this;
    const parts = texts.map((pieces) =>
      pieces.flatMap((p): (string | number)[] => {
        if (typeof p === "number") return [p];
        const { text, before } = p;
        return cut(prefix && isPrefixed(prefix, text, before) ? prefix.prefix + text : text);
      }),
    );
    const found = this.encodePlain(parts.flatMap((pieces) => pieces.filter((p) => typeof p === "string")));
    let next = 0;
    return parts.map((pieces) => {
      const ids = pieces.map((p) => (typeof p === "number" ? Uint32Array.of(p) : found[next++]));
      return ids.length === 1 ? ids[0] : joined(ids);
    });
  }

  private encodePlain(texts: readonly string[]): Uint32Array[] {
    const { device } = this;
    const rounds = inRounds(texts);
    const characters = Math.max(0, ...rounds.map((round) => round.reduce((n, t) => n + t.length, 0)));
    const most = Math.max(0, ...rounds.map((round) => round.length));
    const input = new Texts(device, characters, most);
    try {
      const out = input.memory.alloc((3 * characters + most) * 4 || 1);
      const ends = input.memory.alloc(most * 8 || 1);
      return rounds.flatMap((round) => {
        input.clear();
        for (const text of round) input.add(text);
        device.bpeEncode(this.model, input.text, input.starts, round.length, out, ends);
        const places = device.i32(ends, round.length * 2); // the lower halves of int64
        const ids = device.bytes(out, 4 * places[2 * round.length - 2]);
        let from = 0;
        return round.map((_, i) => {
          const to = places[2 * i];
          const own = new Uint32Array(to - from);
          new Uint8Array(own.buffer).set(ids.subarray(4 * from, 4 * to));
          from = to;
          return own;
        });
      });
    } finally {
      input.memory.free();
    }
  }
}

/** A power of two with at least as many free places as taken ones. */
const slotsFor = (n: number): number => 2 ** Math.ceil(Math.log2(n * 2 + 16));

/** For ignore_merges: which words are tokens as they are. */
function wordTable(model: BpeModel, device: Device, memory: Memory, work: Memory): [Ptr, Ptr, number] {
  const tokens = [...model.ids].filter(([token]) => [...token].every((c) => CHAR_TO_BYTE.has(c)));
  const bytes = Buffer.concat(tokens.map(([token]) => Uint8Array.from(token, (c) => CHAR_TO_BYTE.get(c)!)));
  const starts = new BigInt64Array(tokens.length + 1);
  // Each of its characters is one byte, and one UTF-16 unit.
  for (const [i, [token]] of tokens.entries()) starts[i + 1] = starts[i] + BigInt(token.length);
  const slots = slotsFor(tokens.length);
  const [words, table] = [memory.put(bytes), memory.alloc(slots * 16)];
  const ids = work.put(Int32Array.from(tokens, ([, id]) => id));
  device.bpeWords(words, work.put(starts), ids, tokens.length, table, slots);
  return [words, table, slots];
}

/** Texts in groups of up to ROUND characters, or one text that is longer. */
function inRounds(texts: readonly string[]): string[][] {
  const rounds: string[][] = [];
  let size = 0;
  for (const text of texts) {
    if (rounds.length === 0 || size + text.length > ROUND) {
      rounds.push([]);
      size = 0;
    }
    rounds[rounds.length - 1].push(text);
    size += text.length;
  }
  return rounds;
}

function joined(ids: readonly Uint32Array[]): Uint32Array {
  const out = new Uint32Array(ids.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of ids) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/**
 * Where a word certainly ends, whatever stands around: after a letter that no letter follows (bpe_border), and after a newline between
 * what is no white space. Of several newlines GPT-2's pattern makes one word or two, by what follows.
 */
const BORDER = new RegExp(`(?<=[${LETTER}])(?=[^${LETTER}])|(?<=[^${SPACE}]\\n)(?=[^${SPACE}])`, "gu");

/** Cuts a text that is too long for one round. */
function cut(text: string): string[] {
  const out: string[] = [];
  let from = 0;
  while (text.length - from > ROUND) {
    BORDER.lastIndex = from + ROUND / 2;
    const match = BORDER.exec(text);
    if (!match) break;
    out.push(text.slice(from, match.index));
    from = match.index;
  }
  out.push(text.slice(from));
  return out;
}

/** Tag of the messages that carry counts. */
const COUNTS = 1;

/** Counted words in one piece of memory: starts[words + 1], counts[words], and what the words are spelled with. */
function laid(memory: Memory, words: number, bytes: number) {
  // Large messages travel in blocks of 64 bytes; and 16 bytes behind the last word are read.
  const size = Math.ceil((8 * (2 * words + 1) + bytes + 16) / 64) * 64;
  const starts = memory.alloc(size);
  const counts = starts + 8 * (words + 1);
  return { starts, counts, spelled: counts + 8 * words, size };
}

/** Counts the words of texts, then merges: the engine's side of training. */
export class NativeTrainer {
  private readonly trainer: Ptr;
  private readonly input: Texts;
  private waiting: string[] = [];
  private size = 0;

  private constructor(
    private readonly device: Device,
    pretokenizer: Pretokenizer,
  ) {
    this.trainer = device.bpeTrainOpen(PATTERN_NUMBERS[pretokenizer], classesOn(device, pretokenizer));
    this.input = new Texts(device, 2 * ROUND, ROUND);
  }
  /** null where there is no engine. */
  static open(pretokenizer: Pretokenizer): NativeTrainer | null {
    const device = engine();
    return device && new NativeTrainer(device, pretokenizer);
  }

  add(text: string): void {
    for (const part of cut(text)) {
      if (this.size + part.length > ROUND || this.waiting.length >= ROUND) this.flush();
      this.waiting.push(part);
      this.size += part.length;
    }
  }
  private flush(): void {
    // A text without a place to cut it has memory of its own.
    const input = this.size > 2 * ROUND ? new Texts(this.device, this.size, this.waiting.length) : this.input;
    try {
      input.clear();
      for (const text of this.waiting) input.add(text);
      this.device.bpeTrainCount(this.trainer, input.text, input.starts, this.waiting.length);
    } finally {
      if (input !== this.input) input.memory.free();
    }
    this.waiting = [];
    this.size = 0;
  }

  /** How many different words the texts hold. */
  get words(): number {
    this.flush();
    return Number(this.device.bpeTrainWords(this.trainer));
  }

  /** Brings what all processes have counted to the first, by twos. All must call it. */
  collect(world: Comm): void {
    const { rank, size } = world;
    for (let step = 1; step < size; step *= 2) {
      if (rank % (2 * step) === step) {
        this.sendTo(world, rank - step);
        return;
      }
      if (rank + step < size) this.receiveFrom(world, rank + step);
    }
  }
  private sendTo(world: Comm, to: number): void {
    const { device, trainer, words } = this;
    const bytes = Number(device.bpeTrainSize(trainer));
    const memory = new Memory(device);
    try {
      world.send(memory.put(Float64Array.of(words, bytes)), 16, to, COUNTS);
      const { starts, counts, spelled, size } = laid(memory, words, bytes);
      device.bpeTrainList(trainer, spelled, starts, counts);
      world.send(starts, size, to, COUNTS);
    } finally {
      memory.free();
    }
  }
  private receiveFrom(world: Comm, from: number): void {
    const { device, trainer } = this;
    const memory = new Memory(device);
    this.flush();
    try {
      const head = memory.alloc(16);
      world.recv(head, 16, from, COUNTS);
      const [words, bytes] = new Float64Array(device.bytes(head, 16).slice().buffer);
      const { starts, counts, spelled, size } = laid(memory, words, bytes);
      world.recv(starts, size, from, COUNTS);
      device.bpeTrainAdd(trainer, spelled, starts, counts, words);
    } finally {
      memory.free();
    }
  }

  /** Merges as ids [left, right, merged] until the vocabulary, of which the first tokens are given, has `wanted`. */
  merge(vocab: readonly string[], wanted: number, minFrequency: number): [number, number, number][] {
    const idOf = new Map(vocab.map((t, i) => [t, i]));
    const byteIds = Int32Array.from({ length: 256 });
    for (const [c, b] of CHAR_TO_BYTE) byteIds[b] = idOf.get(c)!;
    const spelled = vocab.map((t) => {
      const bytes = Array.from(t, (c) => CHAR_TO_BYTE.get(c));
      return bytes.includes(undefined) ? new Uint8Array() : Uint8Array.from(bytes as number[]);
    });
    const starts = new BigInt64Array(vocab.length + 1);
    for (const [i, bytes] of spelled.entries()) starts[i + 1] = starts[i] + BigInt(bytes.length);
    const memory = new Memory(this.device);
    try {
      const merges = memory.alloc(wanted * 12);
      const given = [memory.put(byteIds), memory.put(Buffer.concat(spelled)), memory.put(starts)] as const;
      const n = Number(this.device.bpeTrainMerge(this.trainer, ...given, vocab.length, wanted, minFrequency, merges));
      const ids = this.device.i32(merges, Math.max(1, n * 3));
      return Array.from({ length: n }, (_, i) => [ids[3 * i], ids[3 * i + 1], ids[3 * i + 2]]);
    } finally {
      memory.free();
    }
  }
  close(): void {
    this.device.bpeTrainClose(this.trainer);
    this.input.memory.free();
  }
}
