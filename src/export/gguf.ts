/**
 * GGUF files, version 3 (ggml's format, read by llama.cpp and what is built on it): a magic number, counts, key-value pairs, the list of
 * tensors, and their bytes, each at a multiple of 32. Everything is little-endian; dimensions are listed from the innermost.
 */
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { UserError } from "../run/errors.js";

/** A value of a key, with the type that readers of this key expect. */
export type GgufValue =
  | { u32: number }
  | { f32: number }
  | { bool: boolean }
  | { string: string }
  | { strings: readonly string[] }
  | { i32s: readonly number[] }
  | { f32s: readonly number[] };

/** Types of tensors by ggml's numbers: elements that lie together, and the bytes that they take. */
export const GGUF_TYPES = {
  F32: { id: 0, block: 1, bytes: 4 },
  F16: { id: 1, block: 1, bytes: 2 },
  Q8_0: { id: 8, block: 32, bytes: 34 },
  BF16: { id: 30, block: 1, bytes: 2 },
} as const;
export type GgufType = keyof typeof GGUF_TYPES;

export interface GgufTensor {
  name: string;
  type: GgufType;
  /** As elsewhere: rows before columns. */
  shape: readonly number[];
  /** Made when it is written, and then forgotten. */
  data(): Uint8Array;
}

const ALIGN = 32;
const padding = (bytes: number): number => (ALIGN - (bytes % ALIGN)) % ALIGN;

const u32 = (n: number): Buffer => {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n);
  return b;
};
const u64 = (n: number): Buffer => {
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(BigInt(n));
  return b;
};
const f32 = (x: number): Buffer => {
  const b = Buffer.alloc(4);
  b.writeFloatLE(x);
  return b;
};
const text = (s: string): Buffer => {
  const bytes = Buffer.from(s, "utf8");
  return Buffer.concat([u64(bytes.length), bytes]);
};

/** Type number and bytes of a value. */
function encoded(value: GgufValue): Buffer {
  if ("u32" in value) return Buffer.concat([u32(4), u32(value.u32)]);
  if ("f32" in value) return Buffer.concat([u32(6), f32(value.f32)]);
  if ("bool" in value) return Buffer.concat([u32(7), Buffer.of(value.bool ? 1 : 0)]);
  if ("string" in value) return Buffer.concat([u32(8), text(value.string)]);
  if ("strings" in value) return Buffer.concat([u32(9), u32(8), u64(value.strings.length), ...value.strings.map(text)]);
  const [type, list] = "i32s" in value ? [5, Int32Array.from(value.i32s)] : [6, Float32Array.from(value.f32s)];
  return Buffer.concat([u32(9), u32(type), u64(list.length), Buffer.from(list.buffer)]);
}

const sizeOf = ({ type, shape }: GgufTensor): number =>
  (shape.reduce((a, b) => a * b, 1) / GGUF_TYPES[type].block) * GGUF_TYPES[type].bytes;

/**
 * Writes a file beside its final name, syncs it and renames it: it is there whole or not at all. Returns its bytes. Throws UserError for a
 * number that its key has no room for.
 */
export function writeGguf(
  path: string,
  pairs: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTensor[],
): number {
  let offset = 0;
  const list = tensors.map((tensor) => {
    const { name, type, shape } = tensor;
    const dimensions = [...shape].reverse().map(u64);
    const info = [text(name), u32(shape.length), ...dimensions, u32(GGUF_TYPES[type].id), u64(offset)];
    offset += sizeOf(tensor) + padding(sizeOf(tensor));
    return Buffer.concat(info);
  });
  const keys = Object.entries(pairs);
  for (const [key, value] of keys)
    if ("u32" in value && value.u32 !== value.u32 >>> 0)
      throw new UserError(
        `${path} cannot be written: ${key} would be ${value.u32}, and a GGUF file has a whole number from 0 to 4,294,967,295 there. Mend the model's config.json.`,
      );
  const head = Buffer.concat([
    Buffer.from("GGUF"),
    u32(3),
    u64(tensors.length),
    u64(keys.length),
    ...keys.flatMap(([key, value]) => [text(key), encoded(value)]),
    ...list,
  ]);
  const unfinished = `${path}.part`;
  const fd = openSync(unfinished, "w");
  let written = 0;
  const write = (data: Uint8Array): void => {
    for (let done = 0; done < data.length; ) done += writeSync(fd, data, done, Math.min(data.length - done, 2 ** 30));
    written += data.length;
  };
  try {
    write(head);
    write(new Uint8Array(padding(written)));
    for (const tensor of tensors) {
      const data = tensor.data();
      if (data.length !== sizeOf(tensor)) throw new RangeError(`${tensor.name} has ${data.length} bytes.`);
      write(data);
      write(new Uint8Array(padding(written)));
    }
    fsyncSync(fd);
  } catch (error) {
    rmSync(unfinished, { force: true });
    throw error;
  } finally {
    closeSync(fd);
  }
  renameSync(unfinished, path);
  return written;
}
