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
  let records: Omit<RawRecord, "bytes">[] = [];
  let lengths: number[] = [];
  let bytes = 0;
  // Records are copied at once: a reader's buffer is larger than its record, and would be held as a whole. The memory is used again.
  let packed = new Uint8Array(1 << 20);
  const close = (last: boolean): UnitInput => {
    const unit = { records, lengths, bytes: packed.slice(0, bytes), start, next, last };
    start = next;
    records = [];
    lengths = [];
    bytes = 0;
    return unit;
  };
  for await (const { record, next: after } of readSource(files, from, limits)) {
    // Closed only now that there is a record after it: the last unit knows that it is the last.
    if (records.length > 0 && (records.length >= size.records || bytes + record.bytes.length > size.bytes))
      yield close(false);
    next = after;
    if (record.skip) continue;
    const { bytes: content, ...rest } = record;
    records.push(rest);
    lengths.push(content.length);
    const needed = bytes + content.length;
    if (needed > packed.length) {
      const more = new Uint8Array(Math.max(needed, Math.min(2 * packed.length, size.bytes)));
      more.set(packed.subarray(0, bytes));
      packed = more;
    }
    packed.set(content, bytes);
    bytes = needed;
  }
  yield close(true);
}
