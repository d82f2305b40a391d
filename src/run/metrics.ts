/**
 * Metrics of a run, twice: metrics.jsonl for people and programs, TensorBoard event files for its curves.
 * An event file is a sequence of TFRecords (length, crc, data, crc; CRC-32C masked) holding Event protocol buffers.
 */
import { appendFileSync, closeSync, existsSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { naming } from "./errors.js";

/** A list holds one number for each process. */
export type MetricValues = Record<string, number | string | readonly number[]>;
/** What is written of them; null stands for a number that was not finite. */
export type Row = { step: number } & Record<string, number | string | readonly (number | null)[] | null>;

export class Metrics {
  private readonly path: string;
  private events: number | undefined;

  /** On resume, rows after `startStep` are dropped: those steps will be done again. */
  constructor(
    private readonly dir: string,
    private readonly startStep: number,
    /** False: another process writes. */
    private readonly writes = true,
  ) {
    this.path = `${dir}/metrics.jsonl`;
    if (!writes || !existsSync(this.path)) return;
    // They are the last ones, so the file is cut: writing it again could lose the others on a full disk.
    // Its bytes are counted, and not the letters they stand for: damaged ones stand for others, of another length.
    const rows = naming(this.path, () => readFileSync(this.path));
    let end = 0;
    for (let at = 0; at < rows.length; ) {
      const next = rows.indexOf("\n", at) + 1 || rows.length + 1;
      const row = rowOf(rows.toString("utf8", at, next - 1));
      if (row && row.step <= startStep) end = next;
      at = next;
    }
    if (end > rows.length) appendFileSync(this.path, "\n");
    else if (end < rows.length) truncateSync(this.path, end);
  }

  /** Adds one row. Numbers that are not finite are written as null, since JSON has no name for them. */
  write(step: number, values: MetricValues): void {
    if (!this.writes) return;
    const row: Record<string, unknown> = { step };
    for (const [key, value] of Object.entries(values))
      row[key] = typeof value === "number" && !Number.isFinite(value) ? null : value;
    appendFileSync(this.path, `${JSON.stringify(row)}\n`);
    this.writeEvents(step, values);
  }

  private writeEvents(step: number, values: MetricValues): void {
    const now = Date.now() / 1000;
    if (this.events === undefined) {
      this.events = openSync(`${this.dir}/events.out.tfevents.${Math.floor(now)}.lyceum.${process.pid}`, "a");
      writeSync(this.events, tfRecord(Buffer.concat([double(1, now), bytes(3, Buffer.from("brain.Event:2"))])));
      // SessionLog START: TensorBoard forgets what earlier files of the run say of this step and later ones.
      const started = bytes(7, varintField(1, 1));
      writeSync(this.events, tfRecord(Buffer.concat([double(1, now), varintField(2, this.startStep + 1), started])));
    }
    const scalars = Object.entries(values)
      .filter(([, v]) => typeof v === "number")
      .map(([tag, v]) => bytes(1, Buffer.concat([bytes(1, Buffer.from(tag)), float(2, v as number)])));
    const event = Buffer.concat([double(1, now), varintField(2, step), bytes(5, Buffer.concat(scalars))]);
    writeSync(this.events, tfRecord(event));
  }

  close(): void {
    if (this.events !== undefined) closeSync(this.events);
    this.events = undefined;
  }
}

/** A row of metrics.jsonl; undefined of a line that is none: cut short when the run was killed, or damaged. */
export function rowOf(line: string): Row | undefined {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (typeof row !== "object" || row === null || Array.isArray(row)) return undefined;
  const { step } = row as { step?: unknown };
  return Number.isSafeInteger(step) && Object.values(row).every(isValue) ? (row as Row) : undefined;
}
/** JSON has numbers that are read as infinite: 1e999. */
const isValue = (value: unknown): boolean =>
  value === null ||
  typeof value === "string" ||
  Number.isFinite(value) ||
  (Array.isArray(value) && value.every((v) => v === null || Number.isFinite(v)));

// Protocol buffers: a field is its number and wire type, then its value (https://protobuf.dev/programming-guides/encoding).
function varint(n: number): Buffer {
  const out: number[] = [];
  let rest = n;
  for (; rest >= 128; rest = Math.floor(rest / 128)) out.push((rest % 128) | 128);
  return Buffer.from([...out, rest]);
}
const varintField = (field: number, n: number): Buffer => Buffer.concat([varint(field * 8), varint(n)]);
const bytes = (field: number, data: Buffer): Buffer =>
  Buffer.concat([varint(field * 8 + 2), varint(data.length), data]);
function double(field: number, x: number): Buffer {
  const b = Buffer.alloc(9);
  b[0] = field * 8 + 1;
  b.writeDoubleLE(x, 1);
  return b;
}
function float(field: number, x: number): Buffer {
  const b = Buffer.alloc(5);
  b[0] = field * 8 + 5;
  b.writeFloatLE(x, 1);
  return b;
}

function tfRecord(data: Buffer): Buffer {
  const length = Buffer.alloc(8);
  length.writeUInt32LE(data.length, 0);
  return Buffer.concat([length, maskedCrc(length), data, maskedCrc(data)]);
}
function maskedCrc(data: Buffer): Buffer {
  const crc = crc32c(data);
  const out = Buffer.alloc(4);
  out.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0, 0);
  return out;
}
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  return c;
});
/** CRC-32C (Castagnoli), RFC 3720 appendix B.4. */
export function crc32c(data: Uint8Array): number {
  let c = 0xffffffff;
  for (const byte of data) c = CRC_TABLE[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}
