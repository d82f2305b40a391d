/** Cuts a source into units of work: the same cuts whatever has been done before, and however many workers there are. */
import type { Limits, Position, RawRecord } from "./input/record.js";
import { readSource } from "./input/source.js";

export interface UnitInput {
  records: Omit<RawRecord, "bytes">[];
  lengths: number[];
  bytes: Uint8Array<ArrayBuffer>;
  start: Position;
  next: Position;
  /** Nothing comes after this unit. */
  last: boolean;
}

export async function* cutUnits(
  files: readonly string[],
  from: Position,
  size: { records: number; bytes: number },
  limits: Limits,
): AsyncGenerator<UnitInput> {
  let start = from;
  let next = from;
  let records: RawRecord[] = [];
  let bytes = 0;
  const close = (last: boolean): UnitInput => {
    const packed = new Uint8Array(bytes);
    let at = 0;
    for (const record of records) {
      packed.set(record.bytes, at);
      at += record.bytes.length;
    }
    const unit = {
      records: records.map(({ bytes: _, ...record }) => record),
      lengths: records.map((r) => r.bytes.length),
      bytes: packed,
      start,
      next,
      last,
    };
    start = next;
    records = [];
    bytes = 0;
    return unit;
  };
  for await (const { record, next: after } of readSource(files, from, limits)) {
    // Closed only now that there is a record after it: the last unit knows that it is the last.
    if (records.length > 0 && (records.length >= size.records || bytes + record.bytes.length > size.bytes))
      yield close(false);
    next = after;
    if (record.skip) continue;
    // A copy: the reader's buffer is larger than its record, and would be held as a whole.
    records.push({ ...record, bytes: record.bytes.slice() });
    bytes += record.bytes.length;
  }
  yield close(true);
}
