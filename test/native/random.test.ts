/** Philox 4x32-10: the published vectors, then every draw against them, and the shapes of the distributions. */
import { expect, test } from "vitest";
import { BF16, F32 } from "../../src/device/device.js";
import { expectClose, expectSameOnAnyThreads, held, onEach } from "./reference.js";

type Words = readonly [number, number, number, number];
const product = (a: number, b: number): [high: number, low: number] => {
  const p = BigInt(a) * BigInt(b);
  return [Number(p >> 32n), Number(p & 0xffffffffn)];
};
/** Salmon, Moraes, Dror & Shaw 2011, section 3.3. */
function philox(counter: Words, key: readonly [number, number]): Words {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = product(0xd2511f53, c0);
    const [high1, low1] = product(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}
const halves = (x: number): [number, number] => [x >>> 0, Math.floor(x / 2 ** 32) >>> 0];
/** Draw i of the engine: counter (i / 4, stream), key seed; the upper 24 bits of each word. */
const uniform = (seed: number, stream: number, n: number): Float64Array =>
  Float64Array.from({ length: n }, (_, i) => {
    const words = philox([...halves(Math.floor(i / 4)), ...halves(stream)], halves(seed));
    return (words[i % 4] >>> 8) / 2 ** 24;
  });
const SEEDS = [
  [0, 0],
  [7, 3],
  [2 ** 32 - 1, 2 ** 32 + 5],
  [2 ** 53 - 1, 2 ** 52 + 12345],
] as const;

test("the reference gives the known answers of Random123", () => {
  // tests/kat_vectors of Random123: philox4x32 10 rounds.
  const pi: Words = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
  const ones: Words = [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff];
  expect(philox([0, 0, 0, 0], [0, 0])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  expect(philox(ones, [0xffffffff, 0xffffffff])).toEqual([0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
  expect(philox(pi, [0xa4093822, 0x299f31d0])).toEqual([0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
});

test("uniform draws are the reference's to the last bit, for small and large seeds and streams, any length", () => {
  for (const [seed, stream] of SEEDS) {
    const expected = uniform(seed, stream, 1100);
    onEach((b) => {
      for (const n of [1, 3, 4, 17, 1024, 1100]) {
        const u = b.alloc(n);
        b.device.randomUniform(u, n, seed, stream);
        expect(b.get(u, n)).toEqual(expected.subarray(0, n));
      }
    });
  }
});

test("normal draws are Box & Muller's of the same words", () => {
  for (const [seed, stream] of SEEDS) {
    const u = uniform(seed, stream, 1100);
    const expected = u.map((_, i) => {
      const radius = Math.sqrt(-2 * Math.log(1 - u[i - (i % 2)]));
      const angle = 2 * Math.PI * u[i - (i % 2) + 1];
      return 0.5 + 2 * radius * (i % 2 ? Math.sin(angle) : Math.cos(angle));
    });
    onEach((b) => {
      for (const n of [1, 3, 65, 1099]) {
        const [z, half] = [b.alloc(n), b.alloc(n, BF16)];
        b.device.randomNormal(z, n, seed, stream, 0.5, 2, F32);
        expectClose(b.get(z, n), expected.subarray(0, n), 1e-6);
        b.device.randomNormal(half, n, seed, stream, 0.5, 2, BF16);
        expect(b.get(half, n, BF16)).toEqual(held(b.get(z, n), BF16));
      }
    });
  }
});

/** Counts of the bins against equal shares; `limit` is the quantile 0.999 of chi-square with bins - 1 degrees of freedom. */
function expectEvenBins(values: Float64Array, bins: number, limit: number): void {
  const counts = new Array<number>(bins).fill(0);
  for (const x of values) counts[Math.floor(x * bins)]++;
  const share = values.length / bins;
  expect(counts.reduce((s, c) => s + (c - share) ** 2 / share, 0)).toBeLessThan(limit);
}

test("uniform draws fill [0, 1) evenly, each alone and neighbours together", () => {
  onEach((b) => {
    const n = 40_000;
    const u = b.alloc(n);
    b.device.randomUniform(u, n, 7, 3);
    const x = b.get(u, n);
    expect(x.every((v) => v >= 0 && v < 1)).toBe(true);
    expectEvenBins(x, 10, 27.88);
    // Pairs in an 8 x 8 grid: 63 degrees of freedom.
    const pairs = Float64Array.from({ length: n / 2 }, (_, i) => (Math.floor(x[2 * i] * 8) + x[2 * i + 1]) / 8);
    expectEvenBins(pairs, 64, 103.44);
  });
});

test("normal draws have the mean, spread, skewness and tails of a normal distribution", () => {
  onEach((b) => {
    const n = 40_000;
    const z = b.alloc(n);
    b.device.randomNormal(z, n, 7, 4, 1, 2, F32);
    const x = b.get(z, n).map((v) => (v - 1) / 2);
    const moment = (k: number): number => x.reduce((s, v) => s + v ** k, 0) / n;
    // Four standard errors of each: 1, sqrt 2, sqrt 15, sqrt 96 over sqrt n.
    const error = 4 / Math.sqrt(n);
    expect(Math.abs(moment(1))).toBeLessThan(error);
    expect(Math.abs(moment(2) - 1)).toBeLessThan(error * Math.sqrt(2));
    expect(Math.abs(moment(3))).toBeLessThan(error * Math.sqrt(15));
    expect(Math.abs(moment(4) - 3)).toBeLessThan(error * Math.sqrt(96));
    const beyond = x.filter((v) => Math.abs(v) > 1.959964).length / n;
    expect(Math.abs(beyond - 0.05)).toBeLessThan(error * Math.sqrt(0.05 * 0.95));
  });
});

test("the number of threads does not change a byte", () => {
  expectSameOnAnyThreads((b) => {
    const [u, z] = [b.alloc(10_001), b.alloc(10_001, BF16)];
    b.device.randomUniform(u, 10_001, 1, 2);
    b.device.randomNormal(z, 10_001, 1, 2, 0, 1, BF16);
    return b.bytes(u, 10_001) + b.bytes(z, 10_001, BF16);
  });
});
