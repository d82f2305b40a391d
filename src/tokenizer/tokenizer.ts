/**
 * Byte-level BPE as `tokenizer.json`: read, written, and applied with the same ids as Hugging Face `tokenizers`.
 * A StreamDecoder turns ids into text one at a time without ever splitting a UTF-8 character.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { UserError } from "../run/errors.js";
import { CHAR_TO_BYTE, toByteChars } from "./bytes.js";
import { NativeBpe } from "./native.js";
import { PATTERNS, type Pretokenizer, toRegExp } from "./pretokenize.js";

type Json = Record<string, unknown>;
export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  lstrip: boolean;
  rstrip: boolean;
}
export interface EncodeOptions {
  /** Recognise special tokens in the text; default true, as Hugging Face does. Off for text that a user wrote. */
  allowSpecial?: boolean;
  /** Put the tokens around the text that the post-processor asks for (bos, say); default false. */
  addSpecialTokens?: boolean;
}

const escaped = (s: string): string => s.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

export class Tokenizer {
  private readonly ids: Map<string, number>;
  private readonly tokens: string[] = [];
  private readonly ranks = new Map<string, number>();
  private readonly cache = new Map<string, readonly number[]>();
  private readonly steps: PretokenizerStep[];
  private readonly normalize: (text: string) => string;
  /** Ids that the post-processor puts before and after a text. */
  private readonly around: { before: string[]; after: string[] };
  /** The same in the engine, for large inputs; null where it cannot be had. */
  private native: NativeBpe | null | undefined;
  private added: Map<string, AddedToken>;
  private special: RegExp | undefined;

  private constructor(
    /** tokenizer.json */
    readonly json: Json,
    /** tokenizer_config.json */
    readonly config: Json,
    path: string,
  ) {
    const model = json.model as Json;
    const type = model?.type ?? (model?.merges ? "BPE" : undefined);
    if (type !== "BPE") throw new UserError(`${path}: the tokenizer model is "${type}"; Lyceum reads byte-level BPE.`);
    this.ids = new Map(Object.entries(model.vocab as Record<string, number>));
    for (const [token, id] of this.ids) this.tokens[id] = token;
    for (const [rank, m] of (model.merges as (string | [string, string])[]).entries())
      this.ranks.set(typeof m === "string" ? m.replace(" ", "\n") : `${m[0]}\n${m[1]}`, rank);
    this.steps = pretokenizerSteps(json.pre_tokenizer as Json | null, path);
    this.normalize = normalizerOf(json.normalizer as Json | null, path);
    this.around = templateOf(json.post_processor as Json | null);
    this.added = new Map();
    for (const t of (json.added_tokens as AddedToken[] | undefined) ?? []) this.added.set(t.content, t);
    this.indexAdded();
  }

  private indexAdded(): void {
    for (const t of this.added.values()) {
      this.ids.set(t.content, t.id);
      this.tokens[t.id] = t.content;
    }
    // The longest first, so that a token which begins like another is still found.
    const contents = [...this.added.keys()].sort((a, b) => b.length - a.length);
    this.special = contents.length ? new RegExp(contents.map(escaped).join("|"), "gu") : undefined;
  }

  static fromParts(
    vocab: readonly string[],
    merges: readonly [string, string][],
    pretokenizer: Pretokenizer,
    specialTokens: readonly string[],
  ): Tokenizer {
    const byteLevel = {
      type: "ByteLevel",
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: pretokenizer === "gpt2",
    };
    const split = { type: "Split", pattern: { Regex: PATTERNS[pretokenizer] }, behavior: "Isolated", invert: false };
    const added = specialTokens.map((content, id) => addedToken(id, content));
    const json = {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: pretokenizer === "gpt2" ? byteLevel : { type: "Sequence", pretokenizers: [split, byteLevel] },
      post_processor: null,
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: Object.fromEntries(vocab.map((t, i) => [t, i])),
        merges,
      },
    };
    const eos = specialTokens[0];
    const config = {
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      model_max_length: 1e30,
      ...(eos && { eos_token: eos }),
    };
    return new Tokenizer(json, config, "the trained tokenizer");
  }

  /** From a folder with tokenizer.json (and tokenizer_config.json), or from the file itself. */
  static load(path: string): Tokenizer {
    const isFolder = existsSync(path) && statSync(path).isDirectory();
    const file = isFolder ? `${path}/tokenizer.json` : path;
    if (!existsSync(file))
      throw new UserError(isFolder ? `${path} has no tokenizer.json in it.` : `${path} does not exist.`);
    const read = (f: string): Json => {
      try {
        return JSON.parse(readFileSync(f, "utf8")) as Json;
      } catch (error) {
        throw new UserError(`${f} is not JSON: ${(error as Error).message}`);
      }
    };
    const configFile = file.replace(/tokenizer\.json$/, "tokenizer_config.json");
    return new Tokenizer(read(file), configFile !== file && existsSync(configFile) ? read(configFile) : {}, file);
  }

  save(dir: string): void {
    mkdirSync(dir, { recursive: true });
    writeFileSync(`${dir}/tokenizer.json`, `${JSON.stringify(this.json, null, 2)}\n`);
    writeFileSync(`${dir}/tokenizer_config.json`, `${JSON.stringify(this.config, null, 2)}\n`);
  }

  encode(text: string, options: EncodeOptions = {}): Uint32Array {
    const out: number[] = [];
    for (const piece of this.pieces(text, options)) {
      if (typeof piece === "number") out.push(piece);
      else this.encodePlain(piece, out);
    }
    return Uint32Array.from(out);
  }

  /** As `encode` of each; large inputs on all cores. */
  encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Uint32Array[] {
    const native = texts.reduce((n, t) => n + t.length, 0) > 20_000 ? this.engine() : null;
    if (!native) return texts.map((t) => this.encode(t, options));
    return native.encode(texts.map((t) => this.pieces(t, options)));
  }

  /** Plain texts, normalized, and the ids of special tokens between and around them. */
  private pieces(text: string, { allowSpecial = true, addSpecialTokens = false }: EncodeOptions): (string | number)[] {
    const out: (string | number)[] = [];
    const plain = (piece: string): void => void (piece !== "" && out.push(this.normalize(piece)));
    const named = (tokens: string[]): number[] => tokens.flatMap((t) => this.ids.get(t) ?? []);
    if (addSpecialTokens) out.push(...named(this.around.before));
    let from = 0;
    if (allowSpecial && this.special)
      for (const match of text.matchAll(this.special)) {
        if (match.index < from) continue; // inside the spaces that an earlier token took
        const token = this.added.get(match[0])!;
        const before = text.slice(from, match.index);
        plain(token.lstrip ? before.trimEnd() : before);
        out.push(token.id);
        from = match.index + match[0].length;
        if (token.rstrip) while (/\s/u.test(text[from] ?? "")) from++;
      }
    plain(text.slice(from));
    if (addSpecialTokens) out.push(...named(this.around.after));
    return out;
  }

  /** The engine's encoder, when this tokenizer is one that it knows. */
  private engine(): NativeBpe | null {
    if (this.native !== undefined) return this.native;
    const pattern = knownPattern(this.steps);
    const plain = pattern !== undefined && (this.json.model as Json).ignore_merges !== true;
    this.native = plain ? NativeBpe.of(pattern, this.ids, this.ranks) : null;
    return this.native;
  }

  private encodePlain(text: string, out: number[]): void {
    let pieces = [text];
    for (const { pattern, prefixSpace } of this.steps) {
      if (prefixSpace) pieces = pieces.map((p) => (p.startsWith(" ") ? p : ` ${p}`));
      if (pattern) pieces = pieces.flatMap((p) => isolated(p, pattern));
    }
    for (const piece of pieces) {
      let ids = this.cache.get(piece);
      if (!ids) {
        ids = this.merge(toByteChars(piece));
        if (this.cache.size > 200_000) this.cache.clear();
        if (piece.length < 64) this.cache.set(piece, ids);
      }
      for (const id of ids) out.push(id);
    }
  }

  /** Merges the lowest-ranked pair until none is left. */
  private merge(word: string): readonly number[] {
    if ((this.json.model as Json).ignore_merges && this.ids.has(word)) return [this.ids.get(word)!];
    const parts = [...word];
    for (;;) {
      let best = Number.POSITIVE_INFINITY;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]}\n${parts[i + 1]}`) ?? Number.POSITIVE_INFINITY;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts.flatMap((p) => this.ids.get(p) ?? []);
  }

  decode(ids: ArrayLike<number>, options: { skipSpecialTokens?: boolean } = {}): string {
    return new TextDecoder().decode(this.decodeBytes(Array.from(ids), options.skipSpecialTokens ?? false));
  }

  private decodeBytes(ids: readonly number[], skipSpecial: boolean): Uint8Array {
    const bytes: number[] = [];
    for (const id of ids) {
      const token = this.tokens[id];
      if (token === undefined) continue;
      const added = this.added.get(token);
      if (added) {
        if (!(skipSpecial && added.special)) bytes.push(...Buffer.from(token));
      } else for (const c of token) bytes.push(CHAR_TO_BYTE.get(c) ?? 63);
    }
    return Uint8Array.from(bytes);
  }

  /** Text as it comes: push(id) returns what is certain, end() the rest. */
  stream(options: { skipSpecialTokens?: boolean } = { skipSpecialTokens: true }): {
    push(id: number): string;
    end(): string;
  } {
    const decoder = new TextDecoder();
    return {
      push: (id) => decoder.decode(this.decodeBytes([id], options.skipSpecialTokens ?? true), { stream: true }),
      end: () => decoder.decode(),
    };
  }

  addSpecialTokens(contents: readonly string[]): number[] {
    const list = (this.json.added_tokens ?? []) as AddedToken[];
    this.json.added_tokens = list;
    for (const content of contents) {
      if (this.added.has(content)) continue;
      const token = addedToken(this.ids.get(content) ?? this.vocabSize, content);
      list.push(token);
      this.added.set(content, token);
      this.indexAdded();
    }
    return contents.map((c) => this.ids.get(c)!);
  }

  get vocabSize(): number {
    return this.tokens.length;
  }
  tokenToId(token: string): number | undefined {
    return this.ids.get(token);
  }
  idToToken(id: number): string | undefined {
    return this.tokens[id];
  }
  private named(key: string): number | undefined {
    const value = this.config[key] as string | { content: string } | null | undefined;
    return value ? this.ids.get(typeof value === "string" ? value : value.content) : undefined;
  }
  get bosId(): number | undefined {
    return this.named("bos_token");
  }
  get eosId(): number | undefined {
    return this.named("eos_token");
  }
  get padId(): number | undefined {
    return this.named("pad_token");
  }
  get chatTemplate(): string | undefined {
    return this.config.chat_template as string | undefined;
  }
  /** Two tokenizers with the same fingerprint give the same ids. */
  get fingerprint(): string {
    return createHash("sha256")
      .update(JSON.stringify([this.json.model, this.json.pre_tokenizer, this.json.added_tokens]))
      .digest("hex");
  }
}

function addedToken(id: number, content: string): AddedToken {
  return Object.assign({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  });
}

/** The pieces that match and the pieces between them, in order ("Isolated"). */
function isolated(text: string, pattern: RegExp): string[] {
  const out: string[] = [];
  let from = 0;
  for (const m of text.matchAll(pattern)) {
    if (m.index > from) out.push(text.slice(from, m.index));
    if (m[0] !== "") out.push(m[0]);
    from = m.index + m[0].length;
  }
  if (from < text.length) out.push(text.slice(from));
  return out;
}

interface PretokenizerStep {
  pattern?: RegExp;
  /** The expression as the file has it. */
  source?: string;
  /** A space goes before a text that does not begin with one. */
  prefixSpace?: boolean;
}

function pretokenizerSteps(pre: Json | null, path: string): PretokenizerStep[] {
  if (!pre) return [];
  if (pre.type === "Sequence") return (pre.pretokenizers as Json[]).flatMap((p) => pretokenizerSteps(p, path));
  if (pre.type === "ByteLevel") {
    const prefix = pre.add_prefix_space === true ? [{ prefixSpace: true }] : [];
    return pre.use_regex === false ? prefix : [...prefix, { pattern: toRegExp(PATTERNS.gpt2), source: PATTERNS.gpt2 }];
  }
  const pattern = pre.pattern as { Regex?: string; String?: string } | undefined;
  if (pre.type === "Split" && pattern && pre.behavior === "Isolated" && pre.invert !== true) {
    const { Regex: source, String: literal = "" } = pattern;
    return [
      source === undefined ? { pattern: new RegExp(escaped(literal), "gu") } : { pattern: toRegExp(source), source },
    ];
  }
  throw new UserError(
    `${path}: the pre-tokenizer "${pre.type}" is not implemented. Byte-level BPE with ByteLevel, Split (Isolated) and Sequence can be read.`,
  );
}

function knownPattern(steps: readonly PretokenizerStep[]): Pretokenizer | undefined {
  if (steps.length !== 1) return undefined;
  return (Object.keys(PATTERNS) as Pretokenizer[]).find((name) => PATTERNS[name] === steps[0].source);
}

function normalizerOf(normalizer: Json | null, path: string): (text: string) => string {
  if (!normalizer) return (text) => text;
  if (normalizer.type === "Sequence") {
    const list = (normalizer.normalizers as Json[]).map((n) => normalizerOf(n, path));
    return (text) => list.reduce((t, f) => f(t), text);
  }
  const form = String(normalizer.type);
  if (["NFC", "NFD", "NFKC", "NFKD"].includes(form)) return (text) => text.normalize(form);
  throw new UserError(`${path}: the normalizer "${form}" is not implemented; NFC, NFD, NFKC and NFKD are.`);
}

/** What a TemplateProcessing step puts around a single text. Other post-processors do not change ids. */
function templateOf(post: Json | null): { before: string[]; after: string[] } {
  const steps = post?.type === "Sequence" ? (post.processors as Json[]) : post ? [post] : [];
  const template = steps.find((p) => p.type === "TemplateProcessing");
  const single = (template?.single ?? []) as { SpecialToken?: { id: string }; Sequence?: unknown }[];
  const at = single.findIndex((s) => s.Sequence !== undefined);
  const names = (list: typeof single): string[] => list.flatMap((s) => s.SpecialToken?.id ?? []);
  return { before: names(single.slice(0, Math.max(0, at))), after: names(single.slice(at + 1)) };
}
