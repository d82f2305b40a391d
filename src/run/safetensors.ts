/**
 * safetensors files: an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
 * bytes. A file comes from strangers, so every number of its header is checked before it is used.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { UserError } from "./errors.js";

const SIZES: Record<string, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
  U16: 2,
  U32: 4,
  U64: 8,
};
/** As in the reference implementation: a header beyond this is an attack or a damaged file. */
const MAX_HEADER = 100_000_000;

export interface TensorInfo {
  dtype: string;
  shape: number[];
  bytes: number;
}
export interface TensorEntry {
  name: string;
  dtype: string;
  shape: readonly number[];
  data: Uint8Array;
}
export interface SafetensorsFile {
  names(): string[];
  info(name: string): TensorInfo;
  /** Reads one tensor straight into `target`, which has exactly its bytes. */
  readInto(name: string, target: Uint8Array): void;
  close(): void;
}

interface Place extends TensorInfo {
  fd: number;
  path: string;
  offset: number;
}

function readFully(fd: number, target: Uint8Array, position: number, path: string): void {
  for (let done = 0; done < target.length; ) {
    const n = readSync(fd, target, done, Math.min(target.length - done, 2 ** 30), position + done);
    if (n === 0) throw new UserError(`${path} ends before its header says it does: the file was cut short.`);
    done += n;
  }
}

function readHeader(path: string, fd: number): Map<string, Place> {
  const size = fstatSync(fd).size;
  const damaged = (why: string): UserError => new UserError(`${path} is not a sound safetensors file: ${why}.`);
  if (size < 8) throw damaged(`it has only ${size} bytes`);
  const head = Buffer.alloc(8);
  readFully(fd, head, 0, path);
  const length = head.readBigUInt64LE();
  if (length > MAX_HEADER || Number(length) + 8 > size)
    throw damaged(`its header claims ${length} bytes, the file has ${size}`);
  const text = Buffer.alloc(Number(length));
  readFully(fd, text, 8, path);
  let json: Record<string, { dtype?: unknown; shape?: unknown; data_offsets?: unknown }>;
  try {
    json = JSON.parse(text.toString("utf8"));
  } catch {
    throw damaged("its header is not JSON");
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw damaged("its header is not an object");
  const places = new Map<string, Place>();
  const start = 8 + Number(length);
  for (const [name, t] of Object.entries(json)) {
    if (name === "__metadata__") continue;
    const whole = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;
    const { dtype, shape, data_offsets: span } = t ?? {};
    if (typeof dtype !== "string" || !(dtype in SIZES))
      throw damaged(`tensor ${name} has the unknown type ${JSON.stringify(dtype)}`);
    if (!Array.isArray(shape) || !shape.every(whole)) throw damaged(`tensor ${name} has a bad shape`);
    if (!Array.isArray(span) || span.length !== 2 || !span.every(whole))
      throw damaged(`tensor ${name} has bad offsets`);
    const bytes = shape.reduce((a, b) => a * b, SIZES[dtype]);
    if (span[1] - span[0] !== bytes)
      throw damaged(`tensor ${name} takes ${span[1] - span[0]} bytes, its shape and type need ${bytes}`);
    if (start + span[1] > size) throw damaged(`tensor ${name} ends beyond the end of the file`);
    places.set(name, { dtype, shape, bytes, fd, path, offset: start + span[0] });
  }
  let end = 0;
  for (const [name, p] of [...places].sort((a, b) => a[1].offset - b[1].offset || a[1].bytes - b[1].bytes)) {
    if (p.offset < end) throw damaged(`tensor ${name} overlaps another`);
    end = p.offset + p.bytes;
  }
  return places;
}

/** Opens a file, or the model in a folder (model.safetensors, or the shards that model.safetensors.index.json lists). */
export function openSafetensors(path: string): SafetensorsFile {
  const isFolder = existsSync(path) && statSync(path).isDirectory();
  const index = join(path, "model.safetensors.index.json");
  let files = [isFolder ? join(path, "model.safetensors") : path];
  if (isFolder && !existsSync(files[0]) && existsSync(index)) {
    const { weight_map: map } = JSON.parse(readFileSync(index, "utf8")) as { weight_map?: Record<string, string> };
    const shards = [...new Set(Object.values(map ?? {}))];
    const bad = shards.find((f) => f.includes("/") || f.includes("\\"));
    if (bad !== undefined || shards.length === 0) throw new UserError(`${index} does not list shards beside it.`);
    files = shards.map((f) => join(path, f));
  }
  const missing = files.find((f) => !existsSync(f));
  if (missing) throw new UserError(`${missing} does not exist. Weights are read from safetensors files.`);
  const fds = files.map((f) => openSync(f, "r"));
  const close = (): void => {
    for (const fd of fds.splice(0)) closeSync(fd);
  };
  try {
    const places = new Map(files.flatMap((f, i) => [...readHeader(f, fds[i])]));
    const place = (name: string): Place => {
      const p = places.get(name);
      if (!p) throw new UserError(`${path} has no tensor ${name}.`);
      return p;
    };
    return {
      names: () => [...places.keys()],
      info: place,
      readInto(name, target) {
        const p = place(name);
        if (target.length !== p.bytes)
          throw new RangeError(`${name} has ${p.bytes} bytes, the target ${target.length}`);
        readFully(p.fd, target, p.offset, p.path);
      },
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

/** Writes a file beside its final name, syncs it and renames it: it is there whole or not at all. */
export function writeSafetensors(
  path: string,
  entries: Iterable<TensorEntry>,
  metadata: Record<string, string> = {},
): void {
  const list = [...entries];
  const header: Record<string, unknown> = { __metadata__: metadata };
  let offset = 0;
  for (const { name, dtype, shape, data } of list) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + data.length] };
    offset += data.length;
  }
  const text = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(padded.length));
  const partial = `${path}.partial`;
  const fd = openSync(partial, "w");
  try {
    for (const data of [head, padded, ...list.map((e) => e.data)])
      for (let done = 0; done < data.length; ) done += writeSync(fd, data, done, Math.min(data.length - done, 2 ** 30));
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(partial, path);
  const folder = openSync(dirname(path), "r");
  fsyncSync(folder);
  closeSync(folder);
}
