/** JSONL: lines as records. A line that is too long is passed over without being held. */
import { readPieces } from "./bytes.js";
import { type Limits, type Position, type RawRecord, unusable } from "./record.js";

export async function* readLines(
  file: string,
  from: Position,
  limits: Limits,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const packed = /\.(gz|zst)$/i.test(file);
  const seek = packed ? 0 : (from.seek ?? 0);
  let line = packed ? 0 : from.seek === undefined ? 0 : from.records;
  let offset = seek;
  let rest: Uint8Array[] = [];
  let restSize = 0;
  let tooLong = 0;
  const ready = (bytes: Uint8Array): { record: RawRecord; next: number | undefined } | undefined => {
    line++;
    const begin = offset;
    offset += bytes.length + 1;
    return finish(bytes, begin);
  };
  const finish = (bytes: Uint8Array, begin: number) => {
    const next = packed ? undefined : offset;
    if (line <= from.records) return undefined;
    if (bytes.length > limits.maxRecordBytes)
      return { record: unusable(file, line, oversized(bytes.length, limits), begin), next };
    return { record: { kind: "json", bytes, file, line, offset: begin } as RawRecord, next };
  };
  for await (const piece of readPieces(file, seek)) {
    if (piece.damage !== undefined) {
      // The damage takes the number of a line, so that every record has its own.
      const cut = restSize + tooLong;
      if (++line > from.records)
        yield {
          record: unusable(file, line, cut > 0 ? `cut off: ${piece.damage}` : piece.damage, offset),
          next: undefined,
        };
      offset += cut;
      rest = [];
      restSize = tooLong = 0;
      continue;
    }
    const { data } = piece;
    let at = 0;
    for (;;) {
      const end = data.indexOf(10, at);
      if (end < 0) break;
      const head = data.subarray(at, end);
      at = end + 1;
      if (tooLong > 0) {
        line++;
        const begin = offset;
        offset += tooLong + head.length + 1;
        if (line > from.records)
          yield {
            record: unusable(file, line, oversized(tooLong + head.length, limits), begin),
            next: packed ? undefined : offset,
          };
        tooLong = 0;
        continue;
      }
      const bytes = restSize === 0 ? head : Buffer.concat([...rest, head]);
      rest = [];
      restSize = 0;
      const found = ready(bytes);
      if (found) yield found;
    }
    const tail = data.subarray(at);
    if (tooLong > 0) tooLong += tail.length;
    else if (restSize + tail.length > limits.maxRecordBytes) {
      tooLong = restSize + tail.length;
      rest = [];
      restSize = 0;
    } else if (tail.length > 0) {
      rest.push(tail);
      restSize += tail.length;
    }
  }
  if (tooLong > 0 && line + 1 > from.records)
    yield { record: unusable(file, line + 1, oversized(tooLong, limits), offset), next: undefined };
  else if (restSize > 0) {
    const found = ready(Buffer.concat(rest));
    if (found) yield found;
  }
}

const mb = (n: number): string => `${(n / 1e6).toFixed(1)} MB`;
export const oversized = (size: number, limits: Limits): string =>
  `oversized: ${mb(size)}, and at most ${mb(limits.maxRecordBytes)} are read${limits.fixed ? "" : " (limits.maxRecordBytes)"}`;
