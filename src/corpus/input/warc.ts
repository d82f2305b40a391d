/**
 * WARC and WET (ISO 28500:2017): `response` records hold an HTTP answer, `conversion` records (WET) plain text,
 * `resource` records a page without HTTP. Own framing in place of a library's, because lengths must be checked:
 * a wrong Content-Length or a truncated file is listed with its offset, and reading goes on at the next record.
 */
import { readPieces } from "./bytes.js";
import { oversized } from "./lines.js";
import { type Limits, type Position, type RawRecord, unusable } from "./record.js";

const MAX_HEADER = 1 << 16;
const decoder = new TextDecoder("utf-8");

export async function* readWarc(
  file: string,
  from: Position,
  limits: Limits,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const source = new Bytes(readPieces(file, from.seek ?? 0));
  let number = from.seek === undefined ? 0 : from.records;
  for (;;) {
    // Before a record: line ends of the record before, which some writers leave out or double.
    const begin = await source.skipLineEnds();
    if (begin === undefined) break;
    number++;
    const { record, skipped } = await readRecord(source, file, number, begin.offset, limits);
    const next = await source.boundary();
    if (number > from.records && !skipped) yield { record, next };
    else if (number > from.records) yield { record: { ...record, reason: "" }, next };
    if (source.damage !== undefined && record.reason === undefined && !skipped) continue;
  }
  if (source.damage !== undefined && number >= from.records)
    yield { record: unusable(file, number + 1, source.damage, source.offset), next: undefined };
}

/** `skipped`: a record of a kind that holds no document (request, metadata, warcinfo). It is passed on with an empty reason. */
async function readRecord(
  source: Bytes,
  file: string,
  line: number,
  offset: number | undefined,
  limits: Limits,
): Promise<{ record: RawRecord; skipped: boolean }> {
  const bad = (reason: string): { record: RawRecord; skipped: boolean } => ({
    record: unusable(file, line, reason, offset),
    skipped: false,
  });
  const head = await source.header();
  if (head === undefined || !/^WARC\/\d/.test(head)) {
    const found = await source.findRecord();
    return bad(
      `no WARC record begins here${head === undefined ? " (no end of its header)" : ""}${found ? "; reading goes on at the next one" : ""}: the length of the record before it may be wrong`,
    );
  }
  const fields = headerFields(head);
  const length = Number(fields.get("content-length"));
  if (!/^\d+$/.test(fields.get("content-length") ?? "") || !Number.isSafeInteger(length)) {
    await source.findRecord();
    return bad(`the WARC record has no valid Content-Length (${fields.get("content-length") ?? "none"})`);
  }
  const type = fields.get("warc-type") ?? "";
  const wanted = type === "response" || type === "resource" || type === "conversion";
  if (!wanted || length > limits.maxRecordBytes) {
    const got = await source.discard(length);
    if (got < length) return bad(`truncated: ${got} of ${length} bytes of the WARC record`);
    if (wanted) return bad(oversized(length, limits));
    return { record: unusable(file, line, "", offset), skipped: true };
  }
  const body = await source.take(length);
  if (body.length < length) return bad(`truncated: ${body.length} of ${length} bytes of the WARC record`);
  if (!(await source.atRecordEnd())) {
    await source.findRecord();
    return bad("the length of the WARC record is wrong: its end is not where its Content-Length says");
  }
  const record: RawRecord = {
    kind: "html",
    bytes: body,
    file,
    line,
    offset,
    id: fields.get("warc-record-id")?.replace(/^<|>$/g, ""),
    url: fields.get("warc-target-uri")?.replace(/^<|>$/g, ""),
    date: fields.get("warc-date"),
    contentType: fields.get("content-type"),
  };
  if (type === "conversion") record.kind = "text";
  else if (/application\/http/i.test(record.contentType ?? "")) {
    if (type === "resource") return { record: unusable(file, line, "", offset), skipped: true };
  } else record.contentType = `resource;${record.contentType ?? ""}`;
  return { record, skipped: false };
}

function headerFields(head: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of head.split(/\r?\n/).slice(1)) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  return fields;
}

/** A byte stream with look-ahead, that knows at which offset of the file it stands when a member begins there. */
class Bytes {
  private held = Buffer.alloc(0);
  /** File offsets of places in `held` where reading can begin, ascending. */
  private marks: { at: number; offset: number }[] = [];
  private ended = false;
  damage: string | undefined;
  /** The last known offset at or before here. */
  offset: number | undefined;
  private readonly pieces: AsyncIterator<{ data: Uint8Array; offset: number | undefined; damage?: string }>;
  /** A plain file can be read from any offset. */
  private linear = true;
  private members = 0;

  constructor(pieces: AsyncIterable<{ data: Uint8Array; offset: number | undefined; damage?: string }>) {
    this.pieces = pieces[Symbol.asyncIterator]();
  }

  private async more(): Promise<boolean> {
    if (this.ended) return false;
    const { done, value } = await this.pieces.next();
    if (done) {
      this.ended = true;
      return false;
    }
    if (value.damage !== undefined) {
      this.damage = value.damage;
      this.offset = value.offset ?? this.offset;
      this.ended = true;
      return false;
    }
    if (value.offset !== undefined) {
      const last = this.marks[this.marks.length - 1];
      const expected = last ? last.offset + (this.held.length - last.at) : value.offset;
      if (this.members++ > 0 && value.offset !== expected) this.linear = false;
      this.marks.push({ at: this.held.length, offset: value.offset });
    } else this.linear = false;
    this.held = this.held.length === 0 ? Buffer.from(value.data) : Buffer.concat([this.held, value.data]);
    return true;
  }
  private drop(n: number): void {
    this.held = this.held.subarray(n);
    for (const mark of this.marks) mark.at -= n;
    // The mark at or before the beginning is the one that counts.
    while (this.marks.length > 1 && this.marks[1].at <= 0) this.marks.shift();
  }
  /** Offset in the file of the first held byte, when reading can begin there. */
  private here(): number | undefined {
    const mark = this.marks[0];
    if (!mark) return undefined;
    if (mark.at === 0) return mark.offset;
    return this.linear && mark.at < 0 ? mark.offset - mark.at : undefined;
  }
  async skipLineEnds(): Promise<{ offset: number | undefined } | undefined> {
    for (;;) {
      let n = 0;
      while (n < this.held.length && (this.held[n] === 13 || this.held[n] === 10)) n++;
      if (n > 0) this.drop(n);
      if (this.held.length > 0) break;
      if (!(await this.more())) return undefined;
    }
    const offset = this.here();
    if (offset !== undefined) this.offset = offset;
    return { offset: offset ?? this.offset };
  }
  /** Where reading can go on after a record; undefined when only from the file's beginning. */
  async boundary(): Promise<number | undefined> {
    const next = await this.skipLineEnds();
    return next === undefined ? undefined : this.here();
  }
  async header(): Promise<string | undefined> {
    for (let from = 0; ; ) {
      const end = this.held.indexOf("\r\n\r\n", from);
      const bare = end < 0 ? this.held.indexOf("\n\n", from) : -1;
      if (end >= 0 || bare >= 0) {
        const text = decoder.decode(this.held.subarray(0, end >= 0 ? end : bare));
        // Left in place when it is no WARC header: the search for the next record begins behind its first byte.
        if (/^WARC\/\d/.test(text)) this.drop(end >= 0 ? end + 4 : bare + 2);
        return text;
      }
      from = Math.max(0, this.held.length - 3);
      if (this.held.length > MAX_HEADER || !(await this.more())) return undefined;
    }
  }
  async take(n: number): Promise<Uint8Array> {
    while (this.held.length < n && (await this.more()));
    const bytes = this.held.subarray(0, n);
    this.drop(bytes.length);
    return bytes;
  }
  async discard(n: number): Promise<number> {
    let left = n;
    while (left > 0) {
      if (this.held.length === 0 && !(await this.more())) break;
      const step = Math.min(left, this.held.length);
      this.drop(step);
      left -= step;
    }
    return n - left;
  }
  /** Line ends, then a record or the end of the file. */
  async atRecordEnd(): Promise<boolean> {
    if ((await this.skipLineEnds()) === undefined) return true;
    while (this.held.length < 5 && (await this.more()));
    return this.held.subarray(0, 5).toString("latin1") === "WARC/";
  }
  /** Goes on to the next thing that looks like a record. */
  async findRecord(): Promise<boolean> {
    if (this.held.length > 0) this.drop(1);
    for (;;) {
      const at = this.held.indexOf("WARC/1.");
      if (at >= 0) {
        this.drop(at);
        return true;
      }
      this.drop(Math.max(0, this.held.length - 6));
      if (!(await this.more())) {
        this.drop(this.held.length);
        return false;
      }
    }
  }
}
