/**
 * Token shards: a corpus as the trainer reads it. A folder with
 *   tokens.bin      all documents end to end, uint16 (vocabulary up to 65,536) or uint32, each closed by the token between documents
 *   documents.bin   uint32 length of each document, in tokens
 *   manifest.json   counts, the UTF-8 bytes they stand for (for bits per byte), and the tokenizer's fingerprint
 * and the packed rows a training step takes from it.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { z } from "zod";
import type { Device } from "../device/device.js";
import type { TokenBatch } from "../nn/llama.js";
import { naming, UserError } from "../run/errors.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Document } from "./read.js";

const count = z.int().min(0);
const manifestSchema = z.object({
  tokens: count,
  documents: count,
  bytes: count,
  dtype: z.enum(["uint16", "uint32"]),
  vocabSize: count,
  tokenizer: z.string(),
});
export type Manifest = z.output<typeof manifestSchema>;

const damaged = (dir: string, file: string, why: string): UserError =>
  new UserError(
    `${dir}/${file}: ${why}: the shards are damaged. Delete ${dir} and start again: a run makes its own shards anew, also with --resume, and those of a corpus come of building it again.`,
  );

/** Tokenizes documents into `dir`, which appears whole or not at all. */
export async function writeShards(
  documents: AsyncIterable<Document> | Iterable<Document>,
  tokenizer: Tokenizer,
  dir: string,
): Promise<Manifest> {
  const partial = `${dir}.partial`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  const wide = tokenizer.vocabSize > 65536;
  const tokensFile = openSync(`${partial}/tokens.bin`, "w");
  const lengthsFile = openSync(`${partial}/documents.bin`, "w");
  const manifest: Manifest = {
    tokens: 0,
    documents: 0,
    bytes: 0,
    dtype: wide ? "uint32" : "uint16",
    vocabSize: tokenizer.vocabSize,
    tokenizer: tokenizer.fingerprint,
  };
  const separator = tokenizer.separatorId;
  const flush = (texts: string[]): void => {
    for (const [i, encoded] of tokenizer.encodeBatch(texts, { allowSpecial: false }).entries()) {
      const n = encoded.length + (separator === undefined ? 0 : 1);
      const ids = wide ? new Uint32Array(n) : new Uint16Array(n);
      ids.set(encoded);
      if (separator !== undefined) ids[n - 1] = separator;
      writeSync(tokensFile, ids);
      writeSync(lengthsFile, Uint32Array.of(n));
      manifest.tokens += n;
      manifest.documents++;
      manifest.bytes += Buffer.byteLength(texts[i]);
    }
  };
  let pending: string[] = [];
  let pendingSize = 0;
  for await (const { text } of documents) {
    pending.push(text);
    pendingSize += text.length;
    if (pendingSize > 4e6) {
      flush(pending);
      pending = [];
      pendingSize = 0;
    }
  }
  flush(pending);
  for (const file of [tokensFile, lengthsFile]) {
    fsyncSync(file);
    closeSync(file);
  }
  writeFileSync(`${partial}/manifest.json`, `${JSON.stringify(manifest, null, 2)}\n`);
  rmSync(dir, { recursive: true, force: true });
  renameSync(partial, dir);
  return manifest;
}

/** The manifest of a folder of shards; undefined when there is none. */
export function readManifest(dir: string): Manifest | undefined {
  const name = "manifest.json";
  const path = `${dir}/${name}`;
  if (!existsSync(path)) return undefined;
  const text = naming(path, () => readFileSync(path, "utf8"));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw damaged(dir, name, "it is not JSON, or was cut short");
  }
  const { data, error } = manifestSchema.safeParse(json);
  if (data) return data;
  const { path: key, message } = error.issues[0];
  throw damaged(dir, name, [...key.map(String), message].join(": "));
}

/** Throws where a file has not as many bytes as the manifest says; one that is missing has none. */
function mustHave(dir: string, file: string, bytes: number): void {
  const there = statSync(`${dir}/${file}`, { throwIfNoEntry: false });
  const size = there?.isFile() ? there.size : 0;
  if (size !== bytes) throw damaged(dir, file, `it has ${size} bytes, but its manifest promises ${bytes}`);
}

/** A batch of rows of `contextLength` tokens, with the token that each one should predict (-1: none). */
export interface PretrainBatch extends TokenBatch {
  targets: Int32Array;
}

export class Shards {
  readonly manifest: Manifest;
  private readonly tokens: Uint16Array | Uint32Array;
  /** First token of each document, and the end. */
  private readonly starts: Float64Array;
  /** Whether a token closes each document. */
  private readonly closed: boolean;
  private readonly mapping: { ptr: number; bytes: number };

  constructor(
    private readonly device: Device,
    readonly dir: string,
    tokenizer: Tokenizer,
  ) {
    const m = readManifest(dir);
    if (!m) throw new UserError(`${dir} is not a folder of token shards: there is no manifest.json in it.`);
    this.manifest = m;
    if (m.tokenizer !== tokenizer.fingerprint)
      throw new UserError(
        `${dir} was made with another tokenizer (${m.tokenizer.slice(0, 12)}) than this run's (${tokenizer.fingerprint.slice(0, 12)}). Tokenize the corpus again.`,
      );
    if (m.tokens === 0) throw new UserError(`${dir} holds no tokens.`);
    const width = m.dtype === "uint16" ? 2 : 4;
    mustHave(dir, "tokens.bin", m.tokens * width);
    mustHave(dir, "documents.bin", m.documents * 4);
    this.mapping = device.mapFile(`${dir}/tokens.bin`);
    const bytes = device.bytes(this.mapping.ptr, this.mapping.bytes);
    this.tokens =
      width === 2
        ? new Uint16Array(bytes.buffer, bytes.byteOffset, m.tokens)
        : new Uint32Array(bytes.buffer, bytes.byteOffset, m.tokens);
    // An earlier version closed documents by eos, whatever that was.
    this.closed = [tokenizer.separatorId, tokenizer.eosId].includes(this.tokens[m.tokens - 1]);
    const lengths = readFileSync(`${dir}/documents.bin`);
    this.starts = new Float64Array(m.documents + 1);
    for (let i = 0; i < m.documents; i++) this.starts[i + 1] = this.starts[i] + lengths.readUInt32LE(i * 4);
    if (this.starts[m.documents] !== m.tokens)
      throw damaged(
        dir,
        "documents.bin",
        `its documents have ${this.starts[m.documents]} tokens, and tokens.bin ${m.tokens}`,
      );
  }

  /** Whole rows of `contextLength` tokens; a corpus shorter than one row is one short row. */
  rows(contextLength: number): number {
    return Math.max(1, Math.floor(this.manifest.tokens / contextLength));
  }

  /**
   * The rows with the given numbers as one batch. Documents that meet in a row do not see each other; each begins with the token that closed
   * the one before, from which its first token is foretold, as generation from an empty prompt has it.
   */
  batch(rows: readonly number[], contextLength: number): PretrainBatch {
    const length = Math.min(contextLength, this.manifest.tokens);
    const ids = new Int32Array(rows.length * length);
    const targets = new Int32Array(ids.length).fill(-1);
    const positions = new Int32Array(ids.length);
    const cu = [0];
    let at = 0;
    for (const row of rows) {
      let token = row * length;
      const rowEnd = token + length;
      let document = this.documentOf(token);
      while (token < rowEnd) {
        const documentEnd = this.endOf(document);
        const end = Math.min(rowEnd, documentEnd);
        for (let position = 0; token < end; token++, at++, position++) {
          ids[at] = this.tokenAt(token);
          positions[at] = position;
          const next = token + 1;
          if (this.closed ? next < this.manifest.tokens : next < documentEnd) targets[at] = this.tokenAt(next);
        }
        if (at > cu[cu.length - 1]) cu.push(at);
        document++;
      }
    }
    return { ids, targets, positions, cuSeqlens: Int32Array.from(cu) };
  }

  /** Where a document ends, as training sees it: before the token that closes it, with which the next one begins. */
  private endOf(document: number): number {
    const end = this.starts[document + 1];
    return this.closed && end < this.manifest.tokens ? end - 1 : end;
  }

  /** Kernels index by ids and check nothing. */
  private tokenAt(index: number): number {
    const id = this.tokens[index];
    if (id < this.manifest.vocabSize) return id;
    throw damaged(this.dir, "tokens.bin", `token ${index} is ${id}, but the vocabulary has ${this.manifest.vocabSize}`);
  }

  /** The first document that ends behind a token. */
  private documentOf(token: number): number {
    let low = 0;
    let high = this.starts.length - 2;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (this.endOf(mid) > token) high = mid;
      else low = mid + 1;
    }
    return low;
  }

  close(): void {
    this.device.unmapFile(this.mapping.ptr, this.mapping.bytes);
  }
}
