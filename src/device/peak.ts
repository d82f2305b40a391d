/** What this processor can do at its best: the engine's own matrix product, large and alone. */
import { BF16, type Device, dtypeBytes, F32 } from "./device.js";

/** Floating point operations per second of a 768^3 product: of the fastest of twenty, or (`all`) of all of them. */
export function peakFlops(device: Device, precision: "bf16" | "fp32", all = false): number {
  const n = 768;
  const dt = precision === "bf16" ? BF16 : F32;
  const bytes = n * n * dtypeBytes(dt);
  const p = device.alloc(3 * bytes);
  const products = 20;
  let best = Number.POSITIVE_INFINITY;
  const began = performance.now();
  for (let i = 0; i < products; i++) {
    const start = performance.now();
    // biome-ignore format: one product
    device.matmul(0, 1, n, n, n, 1, p, dt, n, p + bytes, dt, n, 0, p + 2 * bytes, dt, n, 0, 1, 0, 0, 0);
    best = Math.min(best, performance.now() - start);
  }
  const milliseconds = all ? (performance.now() - began) / products : best;
  device.free(p, 3 * bytes);
  return (2 * n ** 3) / (milliseconds / 1000);
}
