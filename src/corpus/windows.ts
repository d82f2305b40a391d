/** Windows of N tokens grouped on disk: hashes in partition files, read one partition at a time, equal hashes compared by their tokens. */
import { closeSync, mkdirSync, mkdtempSync, openSync, readSync, rmSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { openTextKernels } from "../device/text.js";
import { UserError } from "../run/errors.js";

/** A window's record: its hash and its place, 8 bytes each. */
const RECORD = 16;
const PARTITIONS = 256;
const BUFFERED = 1 << 16;

export class WindowFiles {
  private readonly folder: string;
  private readonly tokens: number;
  private readonly parts: number[] = [];
  private readonly buffers: BigUint64Array[] = [];
  private readonly filled = new Int32Array(PARTITIONS);
  private total = 0;

  /** Files are made in a new folder inside `directory`; `close` removes it. */
  constructor(
    private readonly directory: string,
    private readonly length: number,
  ) {
    mkdirSync(directory, { recursive: true });
    this.folder = mkdtempSync(join(directory, "windows-"));
    this.tokens = openSync(join(this.folder, "tokens"), "w+");
    for (let p = 0; p < PARTITIONS; p++) {
      this.parts.push(openSync(join(this.folder, `part-${p}`), "w+"));
      this.buffers.push(new BigUint64Array(BUFFERED / 8));
    }
  }

  /** Appends a document. Its windows do not reach into the next one. */
  add(tokens: Uint32Array): void {
    this.write(this.tokens, new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength));
    const hashes = new BigUint64Array(Math.max(0, tokens.length - this.length + 1));
    const count = openTextKernels().suffixWindows(tokens, tokens.length, this.length, hashes);
    for (let i = 0; i < count; i++) {
      const part = Number(hashes[i] >> 56n);
      const buffer = this.buffers[part];
      buffer[this.filled[part]++] = hashes[i];
      buffer[this.filled[part]++] = BigInt(this.total + i);
      if (this.filled[part] === buffer.length) this.flush(part);
    }
    this.total += tokens.length;
  }

  private flush(part: number): void {
    const buffer = this.buffers[part];
    this.write(this.parts[part], new Uint8Array(buffer.buffer, 0, this.filled[part] * 8));
    this.filled[part] = 0;
  }

  private write(fd: number, bytes: Uint8Array): void {
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
      throw new UserError(
        `The disk of ${this.directory} is full: searching repeated spans needs ${RECORD + 4} bytes a token there. Free some space, or name another directory.`,
      );
    }
  }

  /** One bit a token: set where a window begins that goes. */
  marks(mode: "keep-first" | "remove-all"): Uint8Array {
    const marks = new Uint8Array((this.total >>> 3) + 1);
    const kernels = openTextKernels();
    for (let part = 0; part < PARTITIONS; part++) {
      this.flush(part);
      const bytes = statSync(join(this.folder, `part-${part}`)).size;
      const records = new BigUint64Array(bytes / 8);
      readFully(this.parts[part], new Uint8Array(records.buffer), 0);
      const n = bytes / RECORD;
      const keys = new BigUint64Array(n);
      for (let i = 0; i < n; i++) keys[i] = records[2 * i];
      const order = new Uint32Array(n);
      kernels.minhashOrder(keys, order, new BigUint64Array(n), new Uint32Array(n), n);
      for (let i = 0; i < n; ) {
        let end = i + 1;
        while (end < n && keys[end] === keys[i]) end++;
        // The sort is stable and windows were written in order, so the places ascend.
        if (end - i > 1)
          this.group(
            Array.from(order.subarray(i, end), (r) => Number(records[2 * r + 1])),
            mode,
            marks,
          );
        i = end;
      }
    }
    return marks;
  }

  /** Marks what goes of windows with equal hashes; ones with other tokens, should hashes meet, are taken apart first. */
  private group(places: readonly number[], mode: "keep-first" | "remove-all", marks: Uint8Array): void {
    const { length } = this;
    for (let rest = places; rest.length > 1; ) {
      const first = this.window(rest[0]);
      const same = rest.filter((at, i) => i === 0 || Buffer.compare(first, this.window(at)) === 0);
      const last = same[same.length - 1];
      if (last >= same[0] + length)
        for (const at of same) if (mode === "remove-all" || at >= same[0] + length) marks[at >>> 3] |= 1 << (at & 7);
      rest = rest.length === same.length ? [] : rest.filter((at) => !same.includes(at));
    }
  }

  private window(at: number): Buffer {
    const bytes = Buffer.alloc(this.length * 4);
    readFully(this.tokens, bytes, at * 4);
    return bytes;
  }

  close(): void {
    for (const fd of [this.tokens, ...this.parts]) closeSync(fd);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function readFully(fd: number, into: Uint8Array, position: number): void {
  for (let at = 0; at < into.length; ) {
    const read = readSync(fd, into, at, into.length - at, position + at);
    if (read === 0) throw new UserError("A file of token windows ended early: was its folder changed meanwhile?");
    at += read;
  }
}
