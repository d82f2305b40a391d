/**
 * WARC and WET (ISO 28500:2017): `response` records hold an HTTP answer, `conversion` records (WET) plain text,
 * `resource` records a page without HTTP. Own framing in place of a library's, because lengths must be checked:
 * a wrong Content-Length or a truncated file is listed with its offset, and reading goes on at the next record.
 */
import { readPieces } from "./bytes.js";
import { endOfHeader } from "./http.js";
import { oversized } from "./lines.js";
import { type Limits, type Piece, type Position, type RawRecord, unusable } from "./record.js";

const MAX_HEADER = 1 << 16;
/** What stands between two records. */
const BETWEEN = "\r\n\r\nWARC/1.";
const decoder = new TextDecoder("utf-8");

export async function* readWarc(
  file: string,
  from: Position,
  limits: Limits,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const start = from.seek ?? 0;
  const source = new Bytes(readPieces(file, start), start, !/\.gz$/i.test(file));
  let number = from.seek === undefined ? 0 : from.records;
  try {
    for (;;) {
      // Before a record: line ends of the record before, which some writers leave out or double.
      while (await source.skipLineEnds()) {
        number++;
        const record = await readRecord(source, file, number, source.offset, limits);
        // A record that is cut off by the damage says so itself.
        if (source.atDamage && record.reason !== undefined) {
          record.reason += ` (${source.damage})`;
          source.goOn();
        }
        const next = await source.boundary();
        if (number > from.records) yield { record, next };
      }
      if (source.damage === undefined) return;
      const record = unusable(file, ++number, source.damage, source.damageAt ?? source.offset);
      source.goOn();
      const next = await source.boundary();
      if (number > from.records) yield { record, next };
    }
  } finally {
    await source.close();
  }
}

async function readRecord(
  source: Bytes,
  file: string,
  line: number,
  offset: number | undefined,
  limits: Limits,
): Promise<RawRecord> {
  const bad = (reason: string): RawRecord => unusable(file, line, reason, offset);
  const nothing = (): RawRecord => ({ ...unusable(file, line, "", offset), reason: undefined, skip: true });
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
    if (source.atRecord && got < length)
      return bad(`the length of the WARC record is wrong: a record begins after ${got} of its ${length} bytes`);
    if (got < length) return bad(`truncated: ${got} of ${length} bytes of the WARC record`);
    if (wanted) return bad(oversized(length, limits));
    return nothing();
  }
  const body = await source.peek(length);
  if (body.length < length || !(await source.closesAt(length))) {
    const got = body.length;
    if ((await source.findRecord()) === false && got < length)
      return bad(`truncated: ${got} of ${length} bytes of the WARC record`);
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
    if (type === "resource") return nothing();
  }
  return record;
}

function headerFields(head: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of head.split(/\r?\n/).slice(1)) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  return fields;
}

/** A byte stream with look-ahead, that knows the offsets of the file from which reading can begin. */
class Bytes {
  private held: Buffer = Buffer.alloc(0);
  /** In a packed file: places in `held`, not negative and ascending, where a member begins. */
  private marks: { at: number; offset: number }[] = [];
  /** Nothing more is to be had: the file ends here, or something is missing (`damage`). */
  private ended = false;
  /** Whether `discard` met the beginning of another record. */
  atRecord = false;
  /** What is wrong with the bytes that would come next; `goOn` leaves them out. */
  damage: string | undefined;
  /** Offset of the damaged member, where it is known. */
  damageAt: number | undefined;
  /** The last known offset at or before here. */
  offset: number;

  constructor(
    private readonly pieces: AsyncGenerator<Piece>,
    start: number,
    /** Every offset of a plain file will do. */
    private readonly plain: boolean,
  ) {
    this.offset = start;
  }

  async close(): Promise<void> {
    this.ended = true;
    await this.pieces.return(undefined);
  }

  /** All that came before the damage has been taken. */
  get atDamage(): boolean {
    return this.damage !== undefined && this.held.length === 0;
  }
  /** Passes over the damage. */
  goOn(): void {
    this.damage = undefined;
    this.ended = false;
  }

  private async more(): Promise<boolean> {
    if (this.ended) return false;
    const { done, value } = await this.pieces.next();
    if (done || value.damage !== undefined) {
      if (!done) {
        this.damage = value.damage;
        this.damageAt = value.offset;
      }
      this.ended = true;
      return false;
    }
    if (value.offset !== undefined && !this.plain) this.marks.push({ at: this.held.length, offset: value.offset });
    this.held =
      this.held.length === 0
        ? Buffer.from(value.data.buffer as ArrayBuffer, value.data.byteOffset, value.data.length)
        : Buffer.concat([this.held, value.data]);
    return true;
  }
  private async fill(n: number): Promise<void> {
    while (this.held.length < n && (await this.more()));
  }
  private drop(n: number): void {
    this.held = this.held.subarray(n);
    if (this.plain) this.offset += n;
    for (const mark of this.marks) mark.at -= n;
    while (this.marks.length > 0 && this.marks[0].at < 0) this.offset = this.marks.shift()!.offset;
  }
  /** Offset in the file of the first held byte, when reading can begin there. */
  private here(): number | undefined {
    if (this.plain) return this.offset;
    return this.marks[0]?.at === 0 ? this.marks[0].offset : undefined;
  }
  /** Passes over line ends; false at the end. */
  async skipLineEnds(): Promise<boolean> {
    for (;;) {
      let n = 0;
      while (n < this.held.length && (this.held[n] === 13 || this.held[n] === 10)) n++;
      if (n > 0) this.drop(n);
      if (this.held.length > 0) break;
      if (!(await this.more())) return false;
    }
    this.offset = this.here() ?? this.offset;
    return true;
  }
  /** Where reading can go on after a record; undefined when only from the file's beginning. */
  async boundary(): Promise<number | undefined> {
    return (await this.skipLineEnds()) ? this.here() : undefined;
  }
  async header(): Promise<string | undefined> {
    for (let from = 0; ; ) {
      const end = endOfHeader(this.held, from);
      if (end) {
        const text = decoder.decode(this.held.subarray(0, end.at));
        // Left in place when it is no WARC header: the search for the next record begins behind its first byte.
        if (/^WARC\/\d/.test(text)) this.drop(end.at + end.size);
        return text;
      }
      from = Math.max(0, this.held.length - 3);
      if (this.held.length > MAX_HEADER || !(await this.more())) return undefined;
    }
  }
  /** The next n bytes, fewer at the end; they stay. */
  async peek(n: number): Promise<Uint8Array> {
    await this.fill(n);
    return this.held.subarray(0, n);
  }
  /** Whether line ends and a record, or the end of the file, come after n bytes. If so, they are dropped. */
  async closesAt(n: number): Promise<boolean> {
    let at = n;
    do {
      await this.fill(at + 16);
      while (at < this.held.length && (this.held[at] === 13 || this.held[at] === 10)) at++;
    } while (at === this.held.length && (await this.more()));
    const closes = at >= this.held.length || this.held.subarray(at, at + 5).toString("latin1") === "WARC/";
    if (closes) this.drop(n);
    return closes;
  }
  /**
   * Passes over n bytes; returns how many there were. A record that begins in between (`atRecord`) ends it: the length is
   * wrong, and without the search one such number would cost the rest of the file.
   */
  async discard(n: number): Promise<number> {
    let left = n;
    this.atRecord = false;
    while (left > 0) {
      await this.fill(Math.min(left, BETWEEN.length));
      if (this.held.length === 0) break;
      const at = this.held.subarray(0, left).indexOf(BETWEEN);
      if (at >= 0) {
        this.drop(at);
        this.atRecord = true;
        return n - left + at;
      }
      // The end of what is held may be the beginning of the mark.
      const keep = this.ended || left <= this.held.length ? 0 : BETWEEN.length - 1;
      const step = Math.min(left, this.held.length - keep);
      if (step > 0) this.drop(step);
      left -= Math.max(0, step);
      if (keep > 0 && !(await this.more())) {
        const rest = Math.min(left, this.held.length);
        this.drop(rest);
        left -= rest;
        break;
      }
    }
    return n - left;
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
