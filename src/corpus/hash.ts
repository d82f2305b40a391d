/** Hashes that decide something about a document: the same on every machine, and independent of the order of the input. */
import { createHash } from "node:crypto";

/**
 * 53 bits of a string: two 32-bit multiply-rotate hashes over its UTF-16 units (the mixing steps and finaliser of MurmurHash3,
 * Appleby 2011), joined. For tables, not against people who look for collisions.
 */
export function hash53(text: string, seed = 0): number {
  let a = seed ^ 0x2f0b4a27;
  let b = seed ^ 0x6c8e9cf5;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    a = Math.imul(a ^ c, 0xcc9e2d51);
    a = (a << 15) | (a >>> 17);
    b = Math.imul(b ^ c, 0x1b873593);
    b = (b << 13) | (b >>> 19);
  }
  a = finish(a ^ text.length);
  b = finish(b ^ Math.imul(text.length, 5) ^ a);
  return (b & 0x1fffff) * 2 ** 32 + (a >>> 0);
}

function finish(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

/** A number in [0, 1) that is a function of the seed, the purpose and the id only. */
export function uniform(seed: number, purpose: string, id: string): number {
  const digest = createHash("sha256").update(`${seed}\n${purpose}\n${id}`).digest();
  return (digest.readUInt32LE(0) + (digest.readUInt32LE(4) & 0x1fffff) * 2 ** 32) / 2 ** 53;
}

export const sha256 = (data: string | Uint8Array): string => createHash("sha256").update(data).digest("hex");
