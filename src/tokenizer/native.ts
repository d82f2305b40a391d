/** The engine's BPE encoder: the same ids as the JavaScript one, on all cores. For the three known pre-tokenizers. */
import { currentCpu } from "../device/cpu.js";
import type { Device, Ptr } from "../device/device.js";
import type { BpeModel } from "./bpe.js";
import type { Pretokenizer } from "./pretokenize.js";
import { characterClasses, SPACE } from "./unicode.js";

const PATTERN_NUMBERS: Record<Pretokenizer, number> = { gpt2: 0, llama3: 1, qwen: 2 };
/** Long texts are cut into pieces of about this many characters, so that every core has work. */
const PIECE = 1 << 15;

let versions = 0;

export class NativeBpe {
  private readonly version = ++versions;
  private readonly classes: Ptr;
  private readonly byteIds: Ptr;
  private readonly table: Ptr;
  private readonly slots: number;

  private constructor(
    private readonly device: Device,
    private readonly pattern: number,
    byteIds: Int32Array,
    merges: readonly [left: number, right: number, rank: number, id: number][],
  ) {
    const keep = (bytes: Uint8Array): Ptr => {
      const ptr = device.alloc(bytes.length);
      device.bytes(ptr, bytes.length).set(bytes);
      return ptr;
    };
    this.classes = keep(characterClasses());
    this.byteIds = keep(new Uint8Array(byteIds.buffer));
    this.slots = 2 ** Math.ceil(Math.log2(merges.length * 2 + 16));
    const table = new BigUint64Array(this.slots * 2);
    const mask = BigInt(this.slots - 1);
    for (const [left, right, rank, id] of merges) {
      const key = ((BigInt(left) << 32n) | BigInt(right)) + 1n;
      let at = (BigInt.asUintN(64, key * 0x9e3779b97f4a7c15n) >> 20n) & mask;
      while (table[Number(2n * at)] !== 0n) at = (at + 1n) & mask;
      table[Number(2n * at)] = key;
      table[Number(2n * at + 1n)] = (BigInt(rank) << 32n) | BigInt(id);
    }
    this.table = keep(new Uint8Array(table.buffer));
  }

  /** null where the engine is not built, or the model is one that it does not know. */
  static of(model: BpeModel, pattern: Pretokenizer, prefixSpace: boolean): NativeBpe | null {
    if (!model.hasAllBytes || model.ignoreMerges || prefixSpace) return null;
    try {
      return new NativeBpe(currentCpu(), PATTERN_NUMBERS[pattern], model.byteIds, [...model.entries()]);
    } catch {
      return null; // no engine here: the JavaScript encoder does the work
    }
  }

  /** Ids of each text, given as pieces: plain text to encode, and ids that stand between. */
  encode(texts: readonly (readonly (string | number)[])[]): Uint32Array[] {
    const parts = texts.map((pieces) =>
      pieces.flatMap((p): (string | number)[] => (typeof p === "string" ? cut(p) : [p])),
    );
    const plain = parts.flat().filter((p) => typeof p === "string");
    const { device } = this;
    const size = plain.reduce((n, p) => n + Buffer.byteLength(p), 0);
    // Text, ids (at most one a byte), starts and counts in one piece of memory.
    const [idsAt, startsAt] = [round(size), round(size) + round(size * 4)];
    const countsAt = startsAt + round((plain.length + 1) * 8);
    const bytes = countsAt + round((plain.length + 1) * 8);
    const memory = device.alloc(bytes);
    try {
      const text = device.bytes(memory, Math.max(1, size));
      const starts = new Float64Array(plain.length + 1);
      const encoder = new TextEncoder();
      plain.forEach((p, i) => {
        starts[i + 1] = starts[i] + encoder.encodeInto(p, text.subarray(starts[i])).written;
      });
      const words = device.bytes(memory + startsAt, (plain.length + 1) * 8);
      new BigInt64Array(words.buffer, words.byteOffset).set(BigInt64Array.from(starts, BigInt));
      // biome-ignore format: one call
      device.bpeEncode(memory, memory + startsAt, plain.length, this.pattern, this.classes, this.byteIds, this.table, this.slots, this.version, memory + idsAt, memory + countsAt);
      const ids = device.i32(memory + idsAt, Math.max(1, size));
      const counts = device.i32(memory + countsAt, plain.length * 2 || 1); // low halves of int64
      let next = 0;
      return parts.map((pieces) => {
        const found = pieces.map((p) => {
          if (typeof p === "number") return [p];
          const from = starts[next];
          return ids.subarray(from, from + counts[2 * next++]);
        });
        const out = new Uint32Array(found.reduce((n, f) => n + f.length, 0));
        let at = 0;
        for (const f of found) {
          out.set(f, at);
          at += f.length;
        }
        return out;
      });
    } finally {
      device.free(memory, bytes);
    }
  }
}
const round = (n: number): number => Math.ceil((n + 1) / 64) * 64;

/** Cuts a long text where a word certainly ends: after a newline that something other than white space follows. */
function cut(text: string): string[] {
  const out: string[] = [];
  let from = 0;
  const border = new RegExp(`\\n(?=[^${SPACE}])`, "gu");
  while (text.length - from > 2 * PIECE) {
    border.lastIndex = from + PIECE;
    const match = border.exec(text);
    if (!match) break;
    out.push(text.slice(from, match.index + 1));
    from = match.index + 1;
  }
  out.push(text.slice(from));
  return out;
}
