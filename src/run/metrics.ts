/**
 * Metrics of a run, twice: metrics.jsonl for people and programs, TensorBoard event files for its curves.
 * An event file is a sequence of TFRecords (length, crc, data, crc; CRC-32C masked) holding Event protocol buffers.
 */
import { appendFileSync, closeSync, existsSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";

/** A list holds one number for each process. */
export type MetricValues = Record<string, number | string | readonly number[]>;

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
    const text = readFileSync(this.path, "utf8");
    let end = 0;
    for (let at = 0; at < text.length; ) {
      const next = text.indexOf("\n", at) + 1 || text.length + 1;
      if (stepOf(text.slice(at, next - 1)) <= startStep) end = next;
      at = next;
    }
    if (end > text.length) appendFileSync(this.path, "\n");
    else if (end < text.length) truncateSync(this.path, Buffer.byteLength(text.slice(0, end)));
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

function stepOf(row: string): number {
  try {
    return (JSON.parse(row) as { step: number }).step;
  } catch {
    return Number.POSITIVE_INFINITY; // cut short when the run was killed, or the end of the file
  }
}

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
