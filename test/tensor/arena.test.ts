/** The arena as an allocator: what joins, what fits best, what is kept, what is refused. */
import { expect, test } from "vitest";
import type { Device, Ptr } from "../../src/device/device.js";
import { Arena } from "../../src/tensor/arena.js";

const MiB = 2 ** 20;

/** Address space that nobody touches; a chunk lies at the end of the one before, so that blocks could join over the border. */
function fake(): { arena: Arena; chunks: Map<Ptr, number> } {
  const chunks = new Map<Ptr, number>();
  let next = 2 ** 40;
  const device = {
    alloc(bytes: number) {
      chunks.set(next, bytes);
      next += bytes;
      return next - bytes;
    },
    free(ptr: Ptr, bytes: number) {
      expect(chunks.get(ptr)).toBe(bytes);
      chunks.delete(ptr);
    },
  };
  return { arena: new Arena(device as unknown as Device), chunks };
}

test("what is released joins its neighbours, in whatever order", () => {
  const orders = [0, 1, 2, 3].flatMap((a) =>
    [0, 1, 2, 3].flatMap((b) => [0, 1, 2, 3].map((c) => [a, b, c, 6 - a - b - c])),
  );
  for (const order of orders.filter((o) => new Set(o).size === 4 && o[3] >= 0)) {
    const { arena } = fake();
    const blocks = [100, 64, 1000, 1].map((bytes) => arena.alloc(bytes));
    const wall = arena.alloc(64);
    expect(blocks.map((p) => p - blocks[0])).toEqual([0, 128, 192, 1216]); // cache lines
    expect(wall - blocks[0]).toBe(1280);
    for (const i of order) arena.release(blocks[i]);
    expect(arena.alloc(1280), `released in the order ${order}`).toBe(blocks[0]);
    expect(arena.peakBytes).toBe(1344);
  }
});

test("the smallest hole that is large enough; of equal ones the first; what lies behind all only if there is none", () => {
  const { arena, chunks } = fake();
  const [large, , small, , same, , rest] = [300 * MiB, 64, 128, 64, 128, 64, 200 * MiB].map((n) => arena.alloc(n));
  for (const hole of [large, same, small, rest]) arena.release(hole);
  expect(arena.alloc(128)).toBe(small);
  expect(arena.alloc(64)).toBe(same);
  expect(arena.alloc(64)).toBe(same + 64);
  expect(arena.alloc(100 * MiB)).toBe(large); // the end of the chunk is a better fit, and may never have been touched
  expect(arena.alloc(201 * MiB)).toBe(rest);
  expect(chunks.size).toBe(1);
  const huge = arena.alloc(600 * MiB); // more than a chunk usually has
  expect([...chunks]).toEqual([
    [large, 512 * MiB],
    [huge, 600 * MiB],
  ]);
  arena.reset();
  expect(arena.alloc(512 * MiB)).toBe(large);
  expect(arena.alloc(600 * MiB)).toBe(huge);
});

test("what is kept outlives steps, at the far end of its hole, and is released like all else", () => {
  const { arena } = fake();
  const [hole] = [1024, 64].map((n) => arena.alloc(n));
  arena.release(hole);
  const kept = arena.alloc(256, true);
  expect(kept).toBe(hole + 768);
  expect(arena.alloc(768)).toBe(hole);
  arena.reset();
  expect(arena.alloc(1024)).toBe(kept + 256);
  expect(arena.alloc(768)).toBe(hole);
  arena.release(kept);
  arena.reset();
  expect(arena.alloc(MiB)).toBe(hole);
});

test("steps of one shape get the same memory; blocks never meet; in the end all is one piece again", () => {
  const { arena, chunks } = fake();
  const step = (): number[] => {
    let state = 1;
    const random = (n: number): number => {
      state = (state * 48271) % 2147483647;
      return state % n;
    };
    const live: { ptr: Ptr; bytes: number; kept: boolean }[] = [];
    const given: number[] = [];
    for (let i = 0; i < 3000; i++) {
      if (i % 1000 === 999) {
        arena.reset(); // a micro-batch is over
        live.splice(0, live.length, ...live.filter((b) => b.kept));
      }
      if (live.length > 0 && random(5) < 2) arena.release(live.splice(random(live.length), 1)[0].ptr);
      else {
        const block = { bytes: 1 + random(16 * MiB), kept: random(10) === 0 };
        const ptr = arena.alloc(block.bytes, block.kept);
        expect(ptr % 64).toBe(0);
        expect(live.every((b) => ptr + block.bytes <= b.ptr || b.ptr + b.bytes <= ptr)).toBe(true);
        expect([...chunks].some(([from, bytes]) => from <= ptr && ptr + block.bytes <= from + bytes)).toBe(true);
        live.push({ ptr, ...block });
        given.push(ptr);
      }
    }
    for (const { ptr } of live) arena.release(ptr);
    return given;
  };
  const first = step();
  expect(chunks.size).toBeGreaterThan(1);
  const { peakBytes } = arena;
  for (let i = 0; i < 3; i++) expect(step()).toEqual(first);
  expect(arena.peakBytes).toBe(peakBytes);
  expect([...chunks].map(([, bytes]) => arena.alloc(bytes))).toEqual([...chunks.keys()]);
});

test("memory that is not given out cannot be released", () => {
  const { arena } = fake();
  const [twice, old, inside] = [64, 64, 128].map((n) => arena.alloc(n));
  arena.release(twice);
  for (const wrong of [twice, inside + 64, 0]) expect(() => arena.release(wrong)).toThrow("not given out");
  arena.reset();
  expect(() => arena.release(old)).toThrow("its step has ended");
});

test("closed, it gives all back; what is kept can be read until it is released", () => {
  const { arena, chunks } = fake();
  arena.alloc(64);
  const kept = [arena.alloc(64, true), arena.alloc(64, true)];
  arena.close();
  expect(chunks.size).toBe(1);
  arena.release(kept[0]);
  expect(chunks.size).toBe(1);
  arena.release(kept[1]);
  expect(chunks.size).toBe(0);
  arena.alloc(64); // and can be used again
  expect(chunks.size).toBe(1);
  arena.close();
  expect(chunks.size).toBe(0);
});

test("what is no number of bytes is refused, and moves nothing", () => {
  const { arena } = fake();
  const first = arena.alloc(64);
  for (const bytes of [Number.NaN, undefined, -64, 1.5, Number.POSITIVE_INFINITY] as number[])
    expect(() => arena.alloc(bytes)).toThrow(`${bytes} is no number of bytes`);
  expect(arena.alloc(64)).toBe(first + 64);
});
