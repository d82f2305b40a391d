/**
 * Files as a stream of bytes, whatever they are packed in (gzip of one or many members, zstd, or plain).
 * A gzip file of many members (WARC: one a record) tells where each one begins, so that reading can go on there.
 * Damage is reported, not thrown: what came before it counts.
 */
import { createReadStream } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { createGunzip, inflateRawSync } from "node:zlib";
import { Decompress } from "fzstd";

export interface Piece {
  data: Uint8Array;
  /** Offset in the file, when reading can begin at this piece (a gzip member; any place in a plain file). */
  offset: number | undefined;
  /** What ended the stream before its time. Nothing comes after it. */
  damage?: string;
}

const CHUNK = 1 << 18;
/** A member whose packed size is beyond this is unpacked as a stream, without knowing where the next one begins. */
const MAX_MEMBER = 1 << 26;
/** Unpacked size up to which a member is unpacked at once. */
const MAX_UNPACKED = 1 << 24;

export async function* readPieces(file: string, start = 0): AsyncGenerator<Piece> {
  if (/\.gz$/i.test(file)) yield* gzipMembers(file, start);
  else if (/\.zst$/i.test(file)) yield* zstd(file);
  else {
    let offset = start;
    for await (const data of createReadStream(file, { start, highWaterMark: CHUNK })) {
      yield { data, offset };
      offset += data.length;
    }
  }
}

async function* gzipMembers(file: string, start: number): AsyncGenerator<Piece> {
  const handle = await open(file);
  try {
    const window = new Window(handle, start);
    for (;;) {
      if (!(await window.fill(1))) return;
      const offset = window.offset;
      const header = await gzipHeader(window);
      if (typeof header === "string") {
        // Zero bytes after the last member are padding (tar, block devices).
        if (offset > 0 && (await onlyZeros(window))) return;
        yield { data: new Uint8Array(0), offset, damage: header };
        return;
      }
      const unpacked = await inflateMember(window, header);
      if (unpacked === "large") {
        yield* gunzipFrom(file, offset);
        return;
      }
      if (typeof unpacked === "string") {
        yield { data: new Uint8Array(0), offset, damage: unpacked };
        return;
      }
      yield { data: unpacked, offset };
    }
  } finally {
    await handle.close();
  }
}

/** A part of the file in memory, that grows at its end and is dropped at its beginning. */
class Window {
  bytes: Buffer = Buffer.alloc(0);
  private ended = false;
  constructor(
    private readonly handle: FileHandle,
    /** Place of bytes[0] in the file. */
    public offset: number,
  ) {}
  /** Tries to have at least `n` bytes; false when the file ends before. */
  async fill(n: number): Promise<boolean> {
    while (this.bytes.length < n && !this.ended) {
      const chunk = Buffer.allocUnsafe(Math.max(CHUNK, n - this.bytes.length));
      const { bytesRead } = await this.handle.read(chunk, 0, chunk.length, this.offset + this.bytes.length);
      if (bytesRead === 0) this.ended = true;
      else this.bytes = Buffer.concat([this.bytes, chunk.subarray(0, bytesRead)]);
    }
    return this.bytes.length >= n;
  }
  drop(n: number): void {
    this.bytes = this.bytes.subarray(n);
    this.offset += n;
  }
}

/** Length of the member's header (RFC 1952, section 2.3), or what is wrong with it. */
async function gzipHeader(window: Window): Promise<number | string> {
  if (!(await window.fill(10))) return "the gzip file is truncated in a member's header";
  const b = window.bytes;
  if (b[0] !== 0x1f || b[1] !== 0x8b) return "not gzip data";
  if (b[2] !== 8) return `gzip data packed by an unknown method (${b[2]})`;
  const flags = b[3];
  let at = 10;
  if (flags & 4) {
    if (!(await window.fill(12))) return "the gzip file is truncated in a member's header";
    at += 2 + window.bytes.readUInt16LE(10);
  }
  for (const flag of [8, 16]) {
    if (!(flags & flag)) continue;
    let zero = -1;
    for (let n = at + 256; zero < 0; n += 4096) {
      const all = await window.fill(n);
      zero = window.bytes.indexOf(0, at);
      if (zero < 0 && (!all || n > at + 65536)) return "the gzip file is truncated in a member's header";
    }
    at = zero + 1;
  }
  if (flags & 2) at += 2;
  return (await window.fill(at)) ? at : "the gzip file is truncated in a member's header";
}

async function inflateMember(window: Window, header: number): Promise<Uint8Array | string> {
  let want = CHUNK;
  for (;;) {
    const all = !(await window.fill(want));
    const packed = window.bytes.subarray(header);
    try {
      // `info` also returns the engine, which knows how many bytes it has taken.
      const { buffer, engine } = inflateRawSync(packed, {
        info: true,
        maxOutputLength: MAX_UNPACKED,
        chunkSize: 1 << 16, // most pages in one or two pieces: with Node's 16 kB it takes twice as long
      } as never) as unknown as {
        buffer: Buffer;
        engine: { bytesWritten: number };
      };
      const end = header + engine.bytesWritten;
      if (!(await window.fill(end + 8))) return "the gzip file is truncated in a member's checksum";
      const size = window.bytes.readUInt32LE(end + 4);
      if (size !== buffer.length >>> 0) return "a gzip member is damaged: its length is wrong";
      window.drop(end + 8);
      return buffer;
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code === "ERR_BUFFER_TOO_LARGE") return "large";
      if (code !== "Z_BUF_ERROR") return `a gzip member is damaged: ${message}`;
      if (all) return "the gzip file is truncated: it ends inside a member";
      if (want > MAX_MEMBER) return "large";
      want = Math.max(want * 4, window.bytes.length * 2);
    }
  }
}

async function onlyZeros(window: Window): Promise<boolean> {
  for (;;) {
    if (!(await window.fill(1))) return true;
    if (window.bytes.some((b) => b !== 0)) return false;
    window.drop(window.bytes.length);
  }
}

async function* gunzipFrom(file: string, start: number): AsyncGenerator<Piece> {
  const gunzip = createGunzip({ chunkSize: CHUNK });
  const raw = createReadStream(file, { start });
  raw.on("error", (e) => gunzip.destroy(e));
  let first: number | undefined = start;
  try {
    for await (const data of raw.pipe(gunzip)) {
      yield { data, offset: first };
      first = undefined;
    }
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    const damage =
      code === "Z_BUF_ERROR"
        ? "the gzip file is truncated: it ends inside a member"
        : `the gzip data is damaged: ${message}`;
    yield { data: new Uint8Array(0), offset: undefined, damage };
  } finally {
    raw.destroy();
  }
}

/** zstd frames (RFC 8878) by fzstd, which unpacks block by block: memory is bounded by the frame's window. */
async function* zstd(file: string): AsyncGenerator<Piece> {
  let out: Uint8Array[] = [];
  const unpacker = new Decompress((data) => void out.push(data));
  try {
    let size = 0;
    for await (const chunk of createReadStream(file, { highWaterMark: 1 << 16 })) {
      size += chunk.length;
      unpacker.push(chunk);
      for (const data of out) yield { data, offset: undefined };
      out = [];
    }
    if (size === 0) return;
    unpacker.push(new Uint8Array(0), true);
    for (const data of out) yield { data, offset: undefined };
  } catch (error) {
    if ((error as { code?: unknown }).code === "ENOENT") throw error;
    for (const data of out) yield { data, offset: undefined };
    yield {
      data: new Uint8Array(0),
      offset: undefined,
      damage: `the zstd data is damaged or truncated: ${(error as Error).message}`,
    };
  }
}
