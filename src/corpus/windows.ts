/**
 * Windows of N tokens grouped on disk: their hashes in partition files, read and sorted one partition at a time.
 *
 * Windows count as equal when 88 bits of two independent hashes are: in a corpus of 10^10 tokens two different ones meet with probability
 * 2 x 10^-7. So the tokens themselves need not be kept.
 */
import { closeSync, fstatSync, mkdirSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { openTextKernels } from "../device/text.js";
import { UserError } from "../run/errors.js";

/** 64 bits of the first hash; 40 bits of the place; 24 bits of the second hash. As four numbers of 32 bits. */
const WORDS = 4;
const RECORD = WORDS * 4;
const PARTITIONS = 256;
const BUFFERED = 1 << 14;

export class WindowFiles {
  private readonly folder: string;
  /** Opened when something is written to them: a small corpus fills few. */
  private readonly parts: (number | undefined)[] = new Array(PARTITIONS);
  private readonly buffers: Uint32Array[] = new Array(PARTITIONS);
  private readonly filled = new Int32Array(PARTITIONS);
  private total = 0;

  /** Files are made in a new folder inside `directory`; `close` removes it. */
  constructor(
    private readonly directory: string,
    private readonly length: number,
  ) {
    mkdirSync(directory, { recursive: true });
    this.folder = mkdtempSync(join(directory, "windows-"));
  }

  /** Appends a document. Its windows do not reach into the next one. */
  add(tokens: Uint32Array): void {
    const kernels = openTextKernels();
    const size = Math.max(0, tokens.length - this.length + 1);
    const first = new BigUint64Array(size);
    const second = new BigUint64Array(size);
    kernels.suffixWindows(tokens, tokens.length, this.length, 1, first);
    kernels.suffixWindows(tokens, tokens.length, this.length, 2, second);
    // Numbers of 32 bits, low half first: a BigInt for each window would cost more than its hash.
    const hashes = new Uint32Array(first.buffer);
    const checks = new Uint32Array(second.buffer);
    for (let i = 0; i < size; i++) {
      const part = hashes[2 * i + 1] >>> 24;
      this.buffers[part] ??= new Uint32Array(BUFFERED);
      const buffer = this.buffers[part];
      const at = this.filled[part];
      const place = this.total + i;
      buffer[at] = hashes[2 * i];
      buffer[at + 1] = hashes[2 * i + 1];
      buffer[at + 2] = place;
      buffer[at + 3] = (checks[2 * i + 1] & 0xffffff00) | Math.floor(place / 2 ** 32);
      this.filled[part] = at + WORDS;
      if (at + WORDS === BUFFERED) this.flush(part);
    }
    this.total += tokens.length;
  }

  private flush(part: number): void {
    if (this.filled[part] === 0) return;
    this.parts[part] ??= openSync(join(this.folder, `part-${part}`), "w+");
    const bytes = new Uint8Array(this.buffers[part].buffer, 0, this.filled[part] * 4);
    this.filled[part] = 0;
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(this.parts[part]!, bytes, at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
      throw new UserError(
        `The disk of ${this.directory} is full: searching repeated spans needs ${RECORD} bytes a token there. Free some space, or name another directory.`,
      );
    }
  }

  /** One bit a token: set where a window begins that goes. */
  marks(mode: "keep-first" | "remove-all"): Uint8Array {
    const marks = new Uint8Array(Math.floor(this.total / 8) + 1);
    const kernels = openTextKernels();
    for (let part = 0; part < PARTITIONS; part++) {
      this.flush(part);
      const fd = this.parts[part];
      if (fd === undefined) continue;
      const records = new Uint32Array(fstatSync(fd).size / 4);
      readFully(fd, new Uint8Array(records.buffer));
      const n = records.length / WORDS;
      const keys = new BigUint64Array(n);
      const halves = new Uint32Array(keys.buffer);
      for (let i = 0; i < n; i++) {
        halves[2 * i] = records[WORDS * i];
        halves[2 * i + 1] = records[WORDS * i + 1];
      }
      const order = new Uint32Array(n);
      kernels.minhashOrder(keys, order, new BigUint64Array(n), new Uint32Array(n), n);
      for (let i = 0; i < n; ) {
        let end = i + 1;
        while (end < n && halves[2 * end] === halves[2 * i] && halves[2 * end + 1] === halves[2 * i + 1]) end++;
        if (end - i > 1) this.group(records, order.subarray(i, end), mode, marks);
        i = end;
      }
    }
    return marks;
  }

  /** Marks what goes of windows with the same first hash. The sort is stable, so their places ascend. */
  private group(records: Uint32Array, rows: Uint32Array, mode: "keep-first" | "remove-all", marks: Uint8Array): void {
    const placeOf = (row: number): number => records[WORDS * row + 2] + (records[WORDS * row + 3] & 0xff) * 2 ** 32;
    const checkOf = (row: number): number => records[WORDS * row + 3] >>> 8;
    for (let rest = rows; rest.length > 1; ) {
      const check = checkOf(rest[0]);
      const same = rest.filter((row) => checkOf(row) === check);
      const first = placeOf(same[0]);
      if (placeOf(same[same.length - 1]) >= first + this.length)
        for (const row of same) {
          const place = placeOf(row);
          if (mode === "remove-all" || place >= first + this.length) marks[Math.floor(place / 8)] |= 1 << (place % 8);
        }
      rest = rest.length === same.length ? new Uint32Array(0) : rest.filter((row) => checkOf(row) !== check);
    }
  }

  close(): void {
    for (const fd of this.parts) if (fd !== undefined) closeSync(fd);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function readFully(fd: number, into: Uint8Array): void {
  for (let at = 0; at < into.length; ) {
    const read = readSync(fd, into, at, into.length - at, at);
    if (read === 0) throw new UserError("A file of token windows ended early: was its folder changed meanwhile?");
    at += read;
  }
}
