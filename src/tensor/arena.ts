/**
 * Step arena: all tensors of one training step come from here and are gone when the step ends, so that the garbage
 * collector owns no tensor memory and peak memory is a number the program knows.
 *
 * A block released inside the step (an activation whose backward is done) is given to the next request of the same
 * size; steps of one shape therefore touch the same addresses again and again.
 */
import type { Device, Ptr } from "../device/device.js";

const ALIGN = 64;
/** Address space asked for at a time; only touched pages cost memory. */
const CHUNK = 512 * 2 ** 20;

export class Arena {
  private readonly chunks: { ptr: Ptr; bytes: number }[] = [];
  private readonly freeBlocks = new Map<number, Ptr[]>();
  private chunk = 0;
  private offset = 0;
  private live = 0;
  /** Most bytes alive at once since the arena was made. */
  peakBytes = 0;

  constructor(readonly device: Device) {}

  private static rounded(bytes: number): number {
    return Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
  }

  alloc(bytes: number): Ptr {
    const size = Arena.rounded(bytes);
    this.live += size;
    if (this.live > this.peakBytes) this.peakBytes = this.live;
    const reused = this.freeBlocks.get(size)?.pop();
    if (reused !== undefined) return reused;
    while (this.chunk < this.chunks.length && this.offset + size > this.chunks[this.chunk].bytes) {
      this.chunk++;
      this.offset = 0;
    }
    if (this.chunk === this.chunks.length) {
      const length = Math.max(CHUNK, size);
      this.chunks.push({ ptr: this.device.alloc(length), bytes: length });
    }
    const ptr = this.chunks[this.chunk].ptr + this.offset;
    this.offset += size;
    return ptr;
  }

  release(ptr: Ptr, bytes: number): void {
    const size = Arena.rounded(bytes);
    this.live -= size;
    const blocks = this.freeBlocks.get(size);
    if (blocks) blocks.push(ptr);
    else this.freeBlocks.set(size, [ptr]);
  }

  /** Ends the step: everything that came from the arena is invalid from here on. */
  reset(): void {
    this.freeBlocks.clear();
    this.chunk = 0;
    this.offset = 0;
    this.live = 0;
  }

  /** Gives the memory back to the system. */
  close(): void {
    this.reset();
    for (const { ptr, bytes } of this.chunks.splice(0)) this.device.free(ptr, bytes);
  }
}
