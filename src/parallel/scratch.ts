/**
 * Memory for messages. Their lengths follow the tokens of a batch, and are hardly ever the same twice: so a block is up to an eighth longer
 * than what is asked for, in sizes of which there are few, and is kept for the next message
 * that fits in and fills half of it.
 */
import type { Device, Ptr } from "../device/device.js";

/** A page. */
const LEAST = 4096;

export class Scratch {
  private static readonly pools = new WeakMap<Device, Scratch>();
  private readonly free = new Map<number, Ptr[]>();
  private readonly sizes = new Map<Ptr, number>();

  private constructor(private readonly device: Device) {}

  /** The one of a device, for all that sends and receives there. */
  static of(device: Device): Scratch {
    const pool = Scratch.pools.get(device) ?? new Scratch(device);
    Scratch.pools.set(device, pool);
    return pool;
  }

  /** At least `bytes`, given back with `giveBack`. */
  take(bytes: number): Ptr {
    const size = sizeOf(bytes);
    for (let fits = size; fits <= 2 * size; fits = sizeOf(fits + 1)) {
      const found = this.free.get(fits)?.pop();
      if (found !== undefined) return found;
    }
    const ptr = this.device.alloc(size);
    this.sizes.set(ptr, size);
    return ptr;
  }

  giveBack(ptr: Ptr): void {
    const size = this.sizes.get(ptr)!;
    const list = this.free.get(size);
    if (list) list.push(ptr);
    else this.free.set(size, [ptr]);
  }
}

/** Eight sizes from each power of two to the next. */
function sizeOf(bytes: number): number {
  let step = LEAST;
  while (step * 16 <= bytes) step *= 2;
  return Math.max(1, Math.ceil(bytes / step)) * step;
}
