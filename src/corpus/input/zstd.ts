/**
 * zstd frames (RFC 8878) by the zstd library itself, as WebAssembly from the package zstddec: its checks of sizes and checksums are all made, and
 * memory is bounded by the frame's window. The package's own stream does not look at the library's errors, so that the library is called here.
 */
import { createReadStream } from "node:fs";
import { ZSTDDecoder } from "zstddec/stream";
import { UserError } from "../../run/errors.js";
import type { Piece } from "./record.js";

interface Library {
  memory: { buffer: ArrayBuffer };
  malloc(bytes: number): number;
  free(at: number): void;
  ZSTD_createDCtx(): number;
  ZSTD_freeDCtx(context: number): void;
  /** 0: a frame has ended; above: it goes on; below: an error, by its number. */
  ZSTD_decompressStream(context: number, output: number, input: number): number;
}

/** Numbers of zstd_errors.h. */
const MEANING: Record<number, string> = {
  10: "no frame begins there",
  16: "the frame was packed with a window of more than 128 MiB: unpack the file first (zstd -d --long=31)",
  22: "the frame is damaged: its checksum is wrong",
  32: "the frame was packed with a dictionary: unpack the file first (zstd -d -D DICTIONARY)",
  64: "there is not enough memory to unpack the frame",
};

const CHUNK = 1 << 16;
/** Most that a block unpacks to. */
const BLOCK = 1 << 17;
/** A buffer of the library's: address, size, and how much of it is used. */
const BUFFER = 12;

let loaded: Promise<Library> | undefined;
async function load(): Promise<Library> {
  const decoder = new ZSTDDecoder();
  const { _init } = decoder;
  let library: unknown;
  decoder._init = (result) => {
    _init(result);
    library = result.instance.exports;
  };
  await decoder.init();
  return library as Library;
}

/**
 * A frame that unpacks to no more than `most` is given out when it has ended, and nothing of it where it is damaged; of a larger one, all that
 * came before the damage is out already. The file ends with the first damage.
 */
export async function* zstdFrames(file: string, most: number): AsyncGenerator<Piece> {
  loaded ??= load();
  const zstd = await loaded;
  const context = zstd.ZSTD_createDCtx();
  const input = zstd.malloc(2 * BUFFER + CHUNK + BLOCK);
  const output = input + BUFFER;
  const packed = output + BUFFER;
  const unpacked = packed + CHUNK;
  try {
    if (!context || !input) throw new UserError(`${file} cannot be unpacked: too many zstd files are open at once.`);
    let frame = 0; // its offset in the file
    let offset = 0; // the chunk's
    let state = 0;
    let held: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of createReadStream(file, { highWaterMark: CHUNK }) as AsyncIterable<Uint8Array>) {
      new Uint8Array(zstd.memory.buffer).set(chunk, packed);
      let taken = 0;
      let made = 0;
      do {
        new Uint32Array(zstd.memory.buffer, input, 6).set([packed, chunk.length, taken, unpacked, BLOCK, 0]);
        state = zstd.ZSTD_decompressStream(context, output, input);
        [, , taken, , , made] = new Uint32Array(zstd.memory.buffer, input, 6);
        if (state < 0) {
          const why = MEANING[-state] ?? `the frame is damaged (error ${-state} of the zstd library)`;
          yield damaged(`zstd data at byte ${frame}: ${why}; reading ends there`);
          return;
        }
        if (made > 0) held.push(new Uint8Array(zstd.memory.buffer).slice(unpacked, unpacked + made));
        size += made;
        if (state > 0 && size <= most) continue;
        for (const data of held) yield { data, offset: undefined };
        held = [];
        if (state > 0) continue;
        size = 0;
        frame = offset + taken;
      } while (taken < chunk.length || (made === BLOCK && state > 0));
      offset += chunk.length;
    }
    if (state === 0) return;
    // Nothing speaks against what there is of it.
    for (const data of held) yield { data, offset: undefined };
    yield damaged("the zstd file is truncated: it ends inside a frame");
  } finally {
    zstd.ZSTD_freeDCtx(context);
    zstd.free(input);
  }
}

const damaged = (damage: string): Piece => ({ data: new Uint8Array(0), offset: undefined, damage });
