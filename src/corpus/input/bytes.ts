/**
 * Files as a stream of bytes, whatever they are packed in (gzip of one or many members, zstd, or plain).
 * A gzip file of many members (WARC: one a record) tells where each one begins, so that reading can go on there.
 *
 * Damage is reported, not thrown: what came before it counts, and a gzip file goes on at its next whole member (unless looking for one
 * costs too much: then the report says that reading ends). A member that unpacks to
 * no more than 16 MiB is compared with its checksum before anything of it is given out; of one that a wrong byte is in, nothing counts. Of a
 * larger member all that came before the damage is out already. So it is with zstd's frames; but a zstd file ends with its first damage.
 */
import { createReadStream } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import zlib, { constants, createInflateRaw, inflateRawSync } from "node:zlib";
import type { Piece } from "./record.js";
import { zstdFrames } from "./zstd.js";

const NOTHING = new Uint8Array(0);
const CHUNK = 1 << 18;
/** A member whose packed size is beyond this is unpacked as a stream. */
const MAX_MEMBER = 1 << 26;
/** Unpacked size up to which a member is unpacked at once. */
const MAX_UNPACKED = 1 << 24;
/** Deflate packs no better than 1032 to 1: of members that do not overlap no more can be unpacked. */
const MOST_PACKED = 1032;
/** Bytes beyond that which are read and unpacked in vain while a whole member is looked for: what costs more was made to. */
const MAX_VAIN = 1 << 28;

export async function* readPieces(file: string, start = 0): AsyncGenerator<Piece> {
  if (/\.gz$/i.test(file)) yield* gzipMembers(file, start);
  else if (/\.zst$/i.test(file)) yield* zstdFrames(file, MAX_UNPACKED);
  else {
    let offset = start;
    for await (const data of createReadStream(file, { start, highWaterMark: CHUNK })) {
      yield { data, offset };
      offset += data.length;
    }
  }
}

/** The first bytes of a file, unpacked: fewer where it is shorter, or damaged. */
export async function headOf(file: string, size: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  let length = 0;
  for await (const { data, damage } of readPieces(file)) {
    if (damage !== undefined) break;
    parts.push(data);
    length += data.length;
    if (length >= size) break;
  }
  return Buffer.concat(parts).subarray(0, size);
}

/** The bytes of a record, piece by piece. Of one that is too long the length is enough. */
export class Held {
  size = 0;
  private parts: Uint8Array[] = [];

  constructor(private readonly most: number) {}

  get isTooLong(): boolean {
    return this.size > this.most;
  }
  add(bytes: Uint8Array): void {
    this.size += bytes.length;
    if (this.isTooLong) this.parts = [];
    else if (bytes.length > 0) this.parts.push(bytes);
  }
  take(): Uint8Array {
    return this.parts.length === 1 ? this.parts[0] : Buffer.concat(this.parts);
  }
  /** Nothing but ASCII's spaces. */
  isBlank(): boolean {
    return !this.isTooLong && this.parts.every((part) => part.every((byte) => byte === 32 || (byte > 8 && byte < 14)));
  }
  clear(): void {
    this.size = 0;
    this.parts = [];
  }
}

async function* gzipMembers(file: string, start: number): AsyncGenerator<Piece> {
  const handle = await open(file);
  try {
    const window = new Window(handle, start);
    let lost: Lost | undefined;
    while (await window.fill(1)) {
      const { offset } = window;
      const header = await gzipHeader(window);
      // Zero bytes after the last member are padding (tar, block devices).
      if (typeof header === "string" && !lost && offset > 0 && (await onlyZeros(window))) return;
      let member: Member | "large" =
        typeof header === "string"
          ? { damage: header, cost: CHUNK }
          : await inflateMember(window, header, lost !== undefined);
      if (lost) {
        // What only looks like a member must not be given out: of a large one that was searched for, all is read before.
        const large = member === "large";
        if (member === "large") member = await readLarge(file, window, header as number);
        if (member.damage === undefined && (await isInside(window, offset, lost)))
          member = { damage: lost.damage, cost: member.cost };
        if (member.damage === undefined) {
          // A file that goes on has not ended inside the member, whatever packed data looked like with a part of them missing.
          const damage = lost.data ? "a gzip member is damaged: its end is missing" : lost.damage;
          yield { data: NOTHING, offset: lost.offset, damage: `${damage}; reading goes on at byte ${offset}` };
          lost = undefined;
          if (large) {
            window.seek(offset);
            member = "large";
          }
        }
      }
      let from = offset + 1;
      if (member === "large") {
        member = yield* inflateLarge(file, window, header as number);
        // It may have been read into the next one.
        from = Math.max(from, window.offset - CHUNK);
      } else if (member.damage === undefined) yield { data: member.data!, offset };
      if (member.damage === undefined) continue;
      if (!lost) lost = { offset, damage: member.damage, data: member.data, end: 0, vain: 0, reached: offset };
      else {
        lost.vain += member.cost;
        lost.reached = Math.max(lost.reached, window.offset);
        if (lost.vain > MAX_VAIN + MOST_PACKED * (lost.reached - lost.offset)) {
          lost.damage += `; reading ends at byte ${offset}: too much looks like gzip members there, and is none`;
          break;
        }
      }
      if (member.end !== undefined && offset >= lost.end) {
        window.seek(member.end);
        if (!(await window.fill(1)) || (await beginsMember(window))) lost.end = member.end;
      }
      window.seek(from);
      if (!(await findMember(window))) break;
    }
    if (!lost) return;
    // The file ends inside the member, and nothing speaks against what there is of it.
    if (lost.data) yield { data: lost.data, offset: lost.offset };
    yield { data: NOTHING, offset: lost.offset, damage: lost.damage };
  } finally {
    await handle.close();
  }
}

/** The damage behind which a whole member is looked for. */
interface Lost {
  offset: number;
  damage: string;
  /** See Member. */
  data: Uint8Array | undefined;
  /** Offset behind the last damaged member that had an end with another member behind it, or the file's. */
  end: number;
  /** Bytes that were read and unpacked while looking, and offset up to which. */
  vain: number;
  reached: number;
}

/**
 * Whether the whole member that begins at `offset`, and behind which the window stands, is content of a damaged one (a packed page in a
 * record that is not packed further), and none of the file. If the damage is a missing piece, the file's own may seem to lie inside, too, but
 * they end where another begins.
 */
const isInside = async (window: Window, offset: number, lost: Lost): Promise<boolean> =>
  offset < lost.end && window.offset !== lost.end && !(await beginsMember(window));

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
  /** Goes to any place in the file. */
  seek(offset: number): void {
    const ahead = offset - this.offset;
    const held = ahead >= 0 && ahead <= this.bytes.length;
    this.bytes = held ? this.bytes.subarray(ahead) : Buffer.alloc(0);
    this.offset = offset;
    this.ended &&= held;
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
      zero = window.bytes.subarray(0, n).indexOf(0, at);
      if (zero < 0 && (!all || n > at + 65536)) return "the gzip file is truncated in a member's header";
    }
    at = zero + 1;
  }
  if (flags & 2) at += 2;
  return (await window.fill(at)) ? at : "the gzip file is truncated in a member's header";
}

interface Member {
  /** Beside a damage: the file ends inside the member, and this came before. */
  data?: Uint8Array;
  damage?: string | undefined;
  /** Offset behind its checksum, where a damaged one has an end. */
  end?: number;
  /** Bytes that were read and unpacked, at most. */
  cost: number;
}

/** Drops the member from the window, unless it is damaged. `doubtful`: it may be none, and is unpacked by and by, so that the cost is known. */
async function inflateMember(window: Window, header: number, doubtful: boolean): Promise<Member | "large"> {
  let want = CHUNK;
  let most = doubtful ? CHUNK : MAX_UNPACKED;
  for (;;) {
    const all = !(await window.fill(want));
    const packed = window.bytes.subarray(header, want);
    let data: Buffer;
    let taken: number;
    try {
      // `info` also returns the engine, which knows how many bytes it has taken.
      const { buffer, engine } = inflateRawSync(packed, {
        info: true,
        finishFlush: constants.Z_SYNC_FLUSH, // what there is, also of a member that goes on beyond the window
        maxOutputLength: most,
        chunkSize: 1 << 16, // most pages in one or two pieces: with Node's 16 kB it takes twice as long
      } as never) as unknown as {
        buffer: Buffer;
        engine: { bytesWritten: number };
      };
      [data, taken] = [buffer, engine.bytesWritten];
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code !== "ERR_BUFFER_TOO_LARGE")
        return { damage: `a gzip member is damaged: ${message}`, cost: packed.length + most };
      if (most === MAX_UNPACKED) return "large";
      most = Math.min(most * 8, MAX_UNPACKED);
      continue;
    }
    const end = header + taken;
    const cost = packed.length + data.length;
    if (taken < packed.length || all) {
      if (!(await window.fill(end + 8)))
        return {
          data,
          damage: `the gzip file is truncated: it ends inside a member${taken < packed.length ? "'s checksum" : ""}`,
          cost,
        };
      const damage = checkMember(window.bytes.subarray(end, end + 8), crc32(data), data.length);
      if (damage !== undefined) return { damage, end: window.offset + end + 8, cost };
      window.drop(end + 8);
      return { data, cost };
    }
    if (want > MAX_MEMBER) return "large";
    want = Math.max(want * 4, window.bytes.length * 2);
  }
}

/** RFC 1952, section 2.3.1: CRC-32, and the length modulo 2^32. */
function checkMember(trailer: Buffer, crc: number, length: number): string | undefined {
  if (trailer.readUInt32LE(4) !== length % 2 ** 32) return "a gzip member is damaged: its length is wrong";
  if (trailer.readUInt32LE(0) !== crc) return "a gzip member is damaged: its checksum is wrong";
  return undefined;
}

/** Node has it since 20.15. */
const crc32 = zlib.crc32 ?? crc32OfTable;

let crcTable: Uint32Array | undefined;
/** ISO 3309, reflected polynomial 0xEDB88320 (RFC 1952, section 8). `before`: of the bytes before these. */
export function crc32OfTable(data: Uint8Array, before = 0): number {
  crcTable ??= Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  let crc = ~before;
  for (let i = 0; i < data.length; i++) crc = crcTable[(crc ^ data[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Whether what comes next looks like a member. The upper flags are reserved, and zero. */
async function beginsMember(window: Window): Promise<boolean> {
  if (!(await window.fill(4))) return false;
  const [a, b, method, flags] = window.bytes;
  return a === 0x1f && b === 0x8b && method === 8 && (flags & 0xe0) === 0;
}

/** Goes on to the next thing that looks like a member. */
async function findMember(window: Window): Promise<boolean> {
  while (await window.fill(4)) {
    const at = window.bytes.indexOf("\x1f\x8b\x08", 0, "latin1");
    window.drop(at >= 0 ? at : window.bytes.length - 2);
    if (at < 0) continue;
    if (await beginsMember(window)) return true;
    window.drop(1);
  }
  return false;
}

async function onlyZeros(window: Window): Promise<boolean> {
  for (;;) {
    if (!(await window.fill(1))) return true;
    if (window.bytes.some((b) => b !== 0)) return false;
    window.drop(window.bytes.length);
  }
}

/** A member as a stream; the window stands behind it afterwards, or of a damaged one where its packed data end. */
async function* inflateLarge(file: string, window: Window, header: number): AsyncGenerator<Piece, Member> {
  const { offset } = window;
  const inflate = createInflateRaw({ chunkSize: CHUNK, finishFlush: constants.Z_SYNC_FLUSH });
  const raw = createReadStream(file, { start: offset + header });
  raw.on("error", (e) => inflate.destroy(e));
  let crc = 0;
  let length = 0;
  const ended = (damage?: string, end?: number): Member => ({
    damage,
    ...(end === undefined ? {} : { end }),
    cost: header + inflate.bytesWritten + length,
  });
  try {
    for await (const data of raw.pipe(inflate)) {
      yield { data, offset: length === 0 ? offset : undefined };
      crc = crc32(data, crc);
      length += data.length;
    }
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (!code?.startsWith("Z_")) throw error;
    return ended(`a gzip member is damaged: ${message}`);
  } finally {
    raw.destroy();
    window.seek(offset + header + inflate.bytesWritten);
  }
  if (!(await window.fill(8))) return ended("the gzip file is truncated: it ends inside a member");
  const damage = checkMember(window.bytes.subarray(0, 8), crc, length);
  if (damage !== undefined) return ended(damage, window.offset + 8);
  window.drop(8);
  return ended();
}

/** The same, and gives nothing out. */
async function readLarge(file: string, window: Window, header: number): Promise<Member> {
  const pieces = inflateLarge(file, window, header);
  let step = await pieces.next();
  while (!step.done) step = await pieces.next();
  return step.value;
}
