/** Keys and values of past tokens, which decoding reads instead of computing them again. */
import { type Device, dtypeBytes, type Ptr } from "../device/device.js";
import { dtypeOf } from "../tensor/tensor.js";

/** Per layer [rows, KV, maxLength, D]. */
export interface KvCache {
  readonly rows: number;
  readonly maxLength: number;
  /** Elements of one row of a layer's keys: KV maxLength D. */
  readonly rowSize: number;
  readonly keys: Ptr[];
  readonly values: Ptr[];
}

export function makeCache(
  device: Device,
  rows: number,
  maxLength: number,
  layers: number,
  { numKvHeads, headDim }: { numKvHeads: number; headDim: number },
  precision: "bf16" | "fp32",
): KvCache & { close(): void } {
  const rowSize = numKvHeads * maxLength * headDim;
  const each = rows * rowSize * dtypeBytes(dtypeOf(precision));
  // In one piece, so that it lies in large pages: a step writes to as many places as there are rows, heads and layers.
  const bytes = 2 * layers * each;
  const memory = device.alloc(bytes);
  const keys = Array.from({ length: layers }, (_, i) => memory + 2 * i * each);
  return {
    rows,
    maxLength,
    rowSize,
    keys,
    values: keys.map((p) => p + each),
    close: () => device.free(memory, bytes),
  };
}
