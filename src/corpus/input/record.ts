/** A record as it lies in the input, before anything has been made of it; the bytes of a file; and where to go on reading. */

export interface RawRecord {
  /** What `bytes` are: a page, a text, or a JSON object on one line. */
  kind: "html" | "text" | "json";
  bytes: Uint8Array;
  file: string;
  /** Line, row or record number in the file, from 1. */
  line: number;
  /** Byte offset of the record: in the compressed file for WARC, in the uncompressed text for JSONL, JSON and text. */
  offset?: number | undefined;
  id?: string | undefined;
  url?: string | undefined;
  contentType?: string | undefined;
  date?: string | undefined;
  /** Set when the record is not usable: it is only listed. */
  reason?: string | undefined;
  /** The file is this one record. */
  whole?: boolean | undefined;
  /** A record of a kind that holds no document (a WARC request, say): not counted. */
  skip?: boolean | undefined;
}

/** The record after which a unit of work ended. */
export interface Position {
  /** Number of the file in the source's list. */
  file: number;
  /** Records of that file that are done. */
  records: number;
  /** Byte offset from which the next record can be read directly, where the format allows it. */
  seek?: number | undefined;
}

export interface Limits {
  /** Bytes of one record at most; larger ones are skipped without being held, and listed. */
  maxRecordBytes: number;
  /** Nobody can set it, so that no message names the setting. */
  fixed?: boolean;
}

/** Unpacked bytes of a file, in order. */
export interface Piece {
  data: Uint8Array;
  /** Offset in the file, when reading can begin at this piece (a gzip member; any place in a plain file). */
  offset: number | undefined;
  /** Something is missing here: the pieces after it do not go on with those before it. */
  damage?: string;
}

const EMPTY = new Uint8Array(0);
/** A record that can only be listed. */
export const unusable = (file: string, line: number, reason: string, offset?: number): RawRecord => ({
  kind: "text",
  bytes: EMPTY,
  file,
  line,
  offset,
  reason,
});
