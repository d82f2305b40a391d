/** The HTTP answer inside a WARC response record: status, type, and the body as the browser would have seen it. */
import { brotliDecompressSync, gunzipSync, inflateRawSync, inflateSync } from "node:zlib";

export interface HttpBody {
  status: number;
  contentType: string;
  body: Uint8Array;
  /** Why the record cannot be used. */
  reason?: string;
}

export function parseHttp(bytes: Uint8Array, maxBytes: number): HttpBody {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const end = endOfHeader(buffer, 0);
  const bad = (reason: string): HttpBody => ({ status: 0, contentType: "", body: bytes, reason });
  if (!end || end.at > 1 << 18) return bad("the HTTP answer has no end of its header");
  const [first, ...lines] = buffer.subarray(0, end.at).toString("latin1").split(/\r?\n/);
  const status = Number(/^HTTP\/[\d.]+\s+(\d{3})/.exec(first)?.[1]);
  if (!status) return bad("the HTTP answer has no status line");
  const fields = new Map<string, string>();
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  let body: Uint8Array = buffer.subarray(end.at + end.size);
  const contentType = fields.get("content-type") ?? "";
  // Crawlers often store the body unpacked and leave the header as it was: what does not look packed is taken as it stands.
  if (/chunked/i.test(fields.get("transfer-encoding") ?? "")) {
    const whole = dechunk(body);
    if (typeof whole === "string") return { status, contentType, body, reason: whole };
    body = whole;
  }
  const codings = (fields.get("content-encoding") ?? "").toLowerCase().split(",").map(nameOf).filter(packs);
  // The last one was put on last.
  for (const [i, coding] of codings.reverse().entries()) {
    if (i > 0 && body[0] === 0x3c) break; // a page already: some servers name several and pack once
    const unpacked = unpack(body, coding, maxBytes);
    if (typeof unpacked === "string") return { status, contentType, body, reason: unpacked };
    body = unpacked;
  }
  return { status, contentType, body };
}

/** The empty line behind a header, with either kind of line ends: the first one, as the body may have the other. */
export function endOfHeader(buffer: Buffer, from: number): { at: number; size: number } | undefined {
  const crlf = buffer.indexOf("\r\n\r\n", from);
  const bare = (crlf < 0 ? buffer : buffer.subarray(0, crlf)).indexOf("\n\n", from);
  if (bare >= 0) return { at: bare, size: 2 };
  return crlf < 0 ? undefined : { at: crlf, size: 4 };
}

const nameOf = (coding: string): string => coding.split(";")[0].trim();

/** Not of "identity", nor of what servers name by mistake: a character set, a coding of mails, a type. */
function packs(coding: string): boolean {
  if (/^(?:|identity|none|[78]bit|binary|plain|html|text(?:\/.*)?)$/.test(coding)) return false;
  try {
    new TextDecoder(coding);
    return false;
  } catch {
    return true;
  }
}

/** A coding (RFC 9110, section 8.4.1) that is not known is refused: what it packs would be taken for a page. */
function unpack(body: Uint8Array, encoding: string, maxOutputLength: number): Uint8Array | string {
  const isGzip = body[0] === 0x1f && body[1] === 0x8b;
  try {
    if (isGzip) return gunzipSync(body, { maxOutputLength });
    if (/^(?:x-)?gzip$/.test(encoding)) return body;
    if (encoding === "deflate")
      return (body[0] & 15) === 8 ? inflateSync(body, { maxOutputLength }) : inflateRawSync(body, { maxOutputLength });
    if (encoding === "br") {
      // Brotli has no signature; markup has.
      if (body[0] === 0x3c) return body;
      return brotliDecompressSync(body, { maxOutputLength });
    }
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (code === "ERR_BUFFER_TOO_LARGE")
      return `oversized: the page unpacks to more than ${(maxOutputLength / 1e6).toFixed(0)} MB (limits.maxRecordBytes)`;
    return `the page's ${encoding} packing is damaged: ${message}`;
  }
  if (body[0] === 0x3c) return body; // markup, whatever it is called
  return `the page is packed as "${encoding}", which is not known`;
}

/**
 * The whole chunks (RFC 9112, section 7.1): a size that is wrong, or none, ends them as the end of the bytes does. A reason where not even the
 * first is whole; where it looks like none, the body was stored without them.
 */
function dechunk(body: Uint8Array): Uint8Array | string {
  const pieces: Uint8Array[] = [];
  const ended = Buffer.from(body.subarray(-7)).toString("latin1") === "\r\n0\r\n\r\n";
  for (let at = 0; at < body.length; ) {
    const end = body.indexOf(10, at);
    if (end < 0 || end - at > 64) break;
    const line = Buffer.from(body.subarray(at, end)).toString("latin1");
    if (!/^\s*(?:0x)?[0-9a-f]+\s*(?:;|$)/i.test(line)) break;
    const size = Number.parseInt(line, 16);
    if (size === 0) return Buffer.concat(pieces);
    const after = end + 1 + size;
    const close = body[after] === 10 ? 1 : body[after] === 13 && body[after + 1] === 10 ? 2 : 0;
    // A crawler's limit cuts the last one off.
    const cut = !ended && after >= body.length - 1;
    if (close === 0 && !cut) break;
    pieces.push(body.subarray(end + 1, after));
    at = after + Math.max(close, 1);
  }
  if (pieces.length > 0) return Buffer.concat(pieces);
  return ended ? "the size of the HTTP answer's first chunk is wrong" : body;
}
