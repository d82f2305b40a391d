/**
 * Which record comes when, and which ones are held out: functions of a seed and a number or a name, so that nothing is stored and a run that is resumed goes on
 * where it was.
 */
import { createHash } from "node:crypto";

/**
 * Element `index` of a shuffle of 0 .. n-1 that is a function of (seed, epoch): a four-round Feistel network over the
 * next power of four, walked until it falls inside.
 */
export function shuffled(index: number, n: number, seed: number, epoch: number): number {
  const bits = Math.max(1, Math.ceil(Math.log2(Math.max(2, n)) / 2));
  const mask = 2 ** bits - 1;
  let x = index;
  do {
    let left = Math.floor(x / 2 ** bits) & mask;
    let right = x & mask;
    for (let round = 0; round < 4; round++) {
      let h =
        Math.imul(right ^ Math.imul(seed + 1, 0x9e3779b1), 0x85ebca6b) ^ Math.imul(epoch * 4 + round + 1, 0xc2b2ae35);
      h = Math.imul(h ^ (h >>> 15), 0x27d4eb2f);
      [left, right] = [right, left ^ ((h ^ (h >>> 13)) & mask)];
    }
    x = left * 2 ** bits + right;
  } while (x >= n);
  return x;
}

/** The record of n that is visited at place `at` of an endless row: each epoch has all of them, in another order. */
export const visited = (at: number, n: number, seed: number): number => shuffled(at % n, n, seed, Math.floor(at / n));

/** Share of the documents that goes to validation, by hash of the id (of what has none: its content): the same one falls on the same side in any corpus. */
export function isValidation(id: string, share: number): boolean {
  if (share <= 0) return false;
  return createHash("sha256").update(id).digest().readUInt32LE(0) < share * 2 ** 32;
}
