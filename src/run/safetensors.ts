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
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
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
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
};
/** As in the reference implementation: a header beyond this is an attack or a damaged file. */
const MAX_HEADER = 100_000_000;

export interface TensorInfo {
  dtype: string;
  shape: number[];
  bytes: number;
}
export interface TensorSpec {
  name: string;
  dtype: string;
  shape: readonly number[];
}
export interface SafetensorsFile {
  names(): string[];
  /** What the header says beside the tensors (`__metadata__`), of all parts. */
  metadata(): Readonly<Record<string, string>>;
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

function readHeader(path: string, fd: number): { places: Map<string, Place>; metadata: Record<string, string> } {
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
  const { __metadata__: said } = json as { __metadata__?: unknown };
  return { places, metadata: typeof said === "object" && said !== null ? (said as Record<string, string>) : {} };
}

/** Opens a file, or the model in a folder: model.safetensors. A file may be in parts, listed in an index beside it. */
export function openSafetensors(path: string): SafetensorsFile {
  const isFolder = existsSync(path) && statSync(path).isDirectory();
  const whole = isFolder ? join(path, "model.safetensors") : path;
  const index = `${whole}.index.json`;
  let files = [whole];
  if (!existsSync(whole) && existsSync(index)) {
    let map: unknown;
    try {
      map = (JSON.parse(readFileSync(index, "utf8")) as { weight_map?: unknown } | null)?.weight_map;
    } catch (error) {
      throw new UserError(`${index} is not JSON: ${(error as Error).message.replace(/\s+/g, " ")}`);
    }
    const shards = [...new Set(Object.values((map ?? {}) as object))] as string[];
    const bad = shards.find((f) => typeof f !== "string" || f.includes("/") || f.includes("\\"));
    if (bad !== undefined || shards.length === 0) throw new UserError(`${index} does not list shards beside it.`);
    files = shards.map((f) => join(dirname(whole), f));
  }
  const missing = files.find((f) => !existsSync(f));
  if (missing) throw new UserError(`${missing} does not exist. Weights are read from safetensors files.`);
  const folder = files.find((f) => statSync(f).isDirectory());
  if (folder) throw new UserError(`${folder} is a folder, where a file of weights is meant.`);
  const fds = files.map((f) => openSync(f, "r"));
  const close = (): void => {
    for (const fd of fds.splice(0)) closeSync(fd);
  };
  try {
    const headers = files.map((f, i) => readHeader(f, fds[i]));
    const places = new Map(headers.flatMap((h) => [...h.places]));
    const place = (name: string): Place => {
      const p = places.get(name);
      if (!p) throw new UserError(`${path} has no tensor ${name}.`);
      return p;
    };
    return {
      names: () => [...places.keys()],
      metadata: () => Object.assign({}, ...headers.map((h) => h.metadata)) as Record<string, string>,
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

const bytesOf = ({ dtype, shape }: TensorSpec): number => shape.reduce((a, b) => a * b, SIZES[dtype]);

/** A file whose tensors come one at a time, in any order: it is written beside its final name, synced and renamed, and so is there whole or not at all. */
class SafetensorsWriter {
  private readonly fd: number;
  private readonly places = new Map<string, { offset: number; bytes: number }>();

  constructor(
    private readonly path: string,
    list: readonly TensorSpec[],
    metadata: Record<string, string>,
  ) {
    const header: Record<string, unknown> = { __metadata__: metadata };
    let end = 0;
    for (const { name, dtype, shape } of list) {
      const bytes = bytesOf({ name, dtype, shape });
      header[name] = { dtype, shape, data_offsets: [end, end + bytes] };
      this.places.set(name, { offset: end, bytes });
      end += bytes;
    }
    const text = Buffer.from(JSON.stringify(header));
    const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
    const head = Buffer.alloc(8);
    head.writeBigUInt64LE(BigInt(padded.length));
    this.fd = openSync(`${path}.partial`, "w");
    this.put(Buffer.concat([head, padded]), 0);
    for (const place of this.places.values()) place.offset += 8 + padded.length;
  }

  private put(data: Uint8Array, at: number): void {
    for (let done = 0; done < data.length; )
      done += writeSync(this.fd, data, done, Math.min(data.length - done, 2 ** 30), at + done);
  }

  has(name: string): boolean {
    return this.places.has(name);
  }
  write(name: string, data: Uint8Array): void {
    const { offset, bytes } = this.places.get(name)!;
    if (data.length !== bytes) throw new RangeError(`${name} has ${bytes} bytes, ${data.length} were given`);
    this.put(data, offset);
  }
  finish(): void {
    fsyncSync(this.fd);
    closeSync(this.fd);
    renameSync(`${this.path}.partial`, this.path);
    const folder = openSync(dirname(this.path), "r");
    fsyncSync(folder);
    closeSync(folder);
  }
}

export interface Writer {
  stage: number;
  rank: number;
  size: number;
}

/** Tensors in `count` lists of about the same number of bytes, in their order; lists that would be empty are left out. */
function divide(list: readonly TensorSpec[], count: number): TensorSpec[][] {
  const total = list.reduce((n, t) => n + bytesOf(t), 0);
  const lists: TensorSpec[][] = Array.from({ length: count }, () => []);
  let before = 0;
  for (const t of list) {
    lists[Math.min(count - 1, Math.floor((before / Math.max(1, total)) * count))].push(t);
    before += bytesOf(t);
  }
  return lists.filter((tensors) => tensors.length > 0);
}

/** Files grow to this size, then tensors go on in another, as Transformers does it. */
const LARGEST_FILE = 4 * 2 ** 30;

/**
 * Tensors in one file or, when there is more than one process to write them or more than 4 GB of them, in several with
 * an index beside: NAME-00001-of-00002.safetensors. Each process is offered every tensor and writes those of its files.
 */
export class SharedWriter {
  private readonly files: SafetensorsWriter[] = [];

  /**
   * `stages`: the tensors that each stage of a pipeline has (one list where there is none). `writer`: which stage this
   * process belongs to, and which of the processes of that stage it is.
   */
  constructor(
    path: string,
    stages: readonly (readonly TensorSpec[])[],
    writer: Writer,
    metadata: Record<string, string> = {},
  ) {
    const sum = (list: readonly TensorSpec[]): number => list.reduce((n, t) => n + bytesOf(t), 0);
    const total = stages.reduce((n, list) => n + sum(list), 0);
    const files = stages.flatMap((list, stage) =>
      divide(list, writer.size * Math.max(1, Math.ceil(sum(list) / writer.size / LARGEST_FILE))).map((tensors, k) => {
        return { tensors, mine: stage === writer.stage && k % writer.size === writer.rank };
      }),
    );
    const count = files.length;
    const number = (i: number): string => String(i).padStart(5, "0");
    const nameOf = (file: number): string =>
      count === 1 ? path : path.replace(/(\.safetensors)$/, `-${number(file + 1)}-of-${number(count)}$1`);
    const lists = files.map((f) => f.tensors);
    for (const [file, { tensors, mine }] of files.entries())
      if (mine) this.files.push(new SafetensorsWriter(nameOf(file), tensors, metadata));
    if (count > 1 && writer.stage === 0 && writer.rank === 0) {
      const map = lists.flatMap((tensors, file) => tensors.map((t) => [t.name, basename(nameOf(file))]));
      const index = { metadata: { ...metadata, total_size: total }, weight_map: Object.fromEntries(map) };
      writeFileSync(`${path}.index.json`, `${JSON.stringify(index, null, 2)}\n`);
    }
  }

  /** `data` is asked for only by the process that writes this tensor. */
  offer(name: string, data: () => Uint8Array): void {
    this.files.find((f) => f.has(name))?.write(name, data());
  }
  finish(): void {
    for (const file of this.files) file.finish();
  }
}
