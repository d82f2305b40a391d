/**
 * The memory of training steps. All tensors of a step come from here and are gone when the step ends, so that the garbage collector owns
 * no tensor memory and peak memory is a number the program knows. Gradients of parameters come from here too: they take the place of
 * activations that the backward pass is done with, and are kept over the end of a micro-batch until the optimizer has read them.
 *
 * A request gets the smallest free interval that holds it, of equal ones the first, and only where there is none what lies behind all
 * others; what is released joins the free memory on both sides of it. Nothing depends on the addresses that the system chose, so steps of
 * one shape touch the same memory again and again.
 */
import type { Device, Ptr } from "../device/device.js";

const ALIGN = 64;
/** Address space asked for at a time; only touched pages cost memory. */
const CHUNK = 512 * 2 ** 20;

interface Interval {
  ptr: Ptr;
  bytes: number;
}
interface Chunk extends Interval {
  /** By address; no two of them touch. */
  free: Interval[];
}
interface Place {
  chunk: Chunk;
  interval: Interval;
}
interface Block {
  chunk: Chunk;
  bytes: number;
  kept: boolean;
}

/** Whether this is the rest of its chunk, which may never have been touched. */
const isTail = (chunk: Chunk, { ptr, bytes }: Interval): boolean => ptr + bytes === chunk.ptr + chunk.bytes;

export class Arena {
  private readonly chunks: Chunk[] = [];
  private readonly blocks = new Map<Ptr, Block>();
  private live = 0;
  private closing = false;
  /** Most bytes alive at once since the arena was made. */
  peakBytes = 0;

  constructor(readonly device: Device) {}

  /** `kept`: not gone with the step, but when it is released. */
  alloc(bytes: number, kept = false): Ptr {
    // Anything else would move the free memory's borders to no address, for good.
    if (!Number.isSafeInteger(bytes) || bytes < 0) throw new Error(`Arena: ${bytes} is no number of bytes.`);
    const size = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
    const { chunk, interval } = this.bestFit(size) ?? this.grow(size);
    // What is kept goes to the far end, so that what comes and goes beside it finds its room in one piece.
    const far = kept && !isTail(chunk, interval);
    const ptr = far ? interval.ptr + interval.bytes - size : interval.ptr;
    if (!far) interval.ptr += size;
    interval.bytes -= size;
    if (interval.bytes === 0) chunk.free.splice(chunk.free.indexOf(interval), 1);
    this.blocks.set(ptr, { chunk, bytes: size, kept });
    this.live += size;
    if (this.live > this.peakBytes) this.peakBytes = this.live;
    this.closing = false;
    return ptr;
  }

  private bestFit(size: number): Place | undefined {
    let best: Place | undefined;
    let tail: Place | undefined;
    for (const chunk of this.chunks)
      for (const interval of chunk.free) {
        if (interval.bytes < size) continue;
        if (isTail(chunk, interval)) tail ??= { chunk, interval };
        else if (!best || interval.bytes < best.interval.bytes) best = { chunk, interval };
      }
    return best ?? tail;
  }

  private grow(size: number): Place {
    const bytes = Math.max(CHUNK, size);
    const interval = { ptr: this.device.alloc(bytes), bytes };
    const chunk = { ...interval, free: [interval] };
    this.chunks.push(chunk);
    return { chunk, interval };
  }

  release(ptr: Ptr): void {
    const block = this.blocks.get(ptr);
    if (!block) throw new Error("Arena: this memory is not given out; it was released before, or its step has ended.");
    this.blocks.delete(ptr);
    this.live -= block.bytes;
    const { free } = block.chunk;
    const behind = free.findIndex((f) => f.ptr > ptr);
    let at = behind < 0 ? free.length : behind;
    const [before, after] = [free[at - 1], free[at]];
    const joined = { ptr, bytes: block.bytes };
    let neighbours = 0;
    if (after && ptr + block.bytes === after.ptr) {
      joined.bytes += after.bytes;
      neighbours++;
    }
    if (before && before.ptr + before.bytes === ptr) {
      joined.ptr = before.ptr;
      joined.bytes += before.bytes;
      neighbours++;
      at--;
    }
    free.splice(at, neighbours, joined);
    if (this.closing) this.giveBack();
  }

  /** Ends the step: what came from the arena is invalid from here on, but for what is kept. */
  reset(): void {
    for (const [ptr, { kept }] of this.blocks) if (!kept) this.release(ptr);
  }

  /** Whether its memory was given back, and nothing was asked of it since. */
  get closed(): boolean {
    return this.closing;
  }

  /** Gives the memory back to the system; while something in it is kept, as soon as that is released. */
  close(): void {
    this.reset();
    this.closing = true;
    this.giveBack();
  }

  private giveBack(): void {
    if (this.blocks.size > 0) return;
    for (const { ptr, bytes } of this.chunks.splice(0)) this.device.free(ptr, bytes);
  }
}
