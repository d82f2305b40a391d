/**
 * BPE as `tokenizer.json`, byte-level or with byte fallback: read, written, and applied with the same ids as Hugging Face `tokenizers`.
 * A stream turns ids into text one at a time without ever splitting a UTF-8 character.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { systemMessage, UserError } from "../run/errors.js";
import { type AddedToken, AddedTokens, type Piece, specialToken } from "./added.js";
import { BpeModel } from "./bpe.js";
import { CHAR_TO_BYTE } from "./bytes.js";
import { type Around, type Normalize, normalizerOf, postProcessorOf, requireBpe } from "./components.js";
import * as fallback from "./fallback.js";
import { NativeBpe } from "./native.js";
import {
  type Before,
  cutWords,
  knownSteps,
  PATTERNS,
  type Pretokenizer,
  type PretokenizerStep,
  pretokenizerSteps,
} from "./pretokenize.js";
import { wellFormed } from "./unicode.js";

export type { AddedToken } from "./added.js";

type Json = Record<string, unknown>;

export interface EncodeOptions {
  /** Recognise added tokens in the text; default true, as Hugging Face does. Off for text that a user wrote. */
  allowSpecial?: boolean;
  /** Put the tokens around the text that the post-processor asks for (bos, say); default false. */
  addSpecialTokens?: boolean;
  /**
   * What the text stands behind; default nothing. Some tokenizers put a space before a text (Llama 2), or only before the very first: with
   * "text", it goes on from a text before it, and none is put.
   */
  before?: Before;
  /** Large inputs in the engine, on all cores, where there is one; default true. */
  engine?: boolean;
}

export interface DecodeOptions {
  /** Leave out special tokens; default false, in a stream true. */
  skipSpecialTokens?: boolean;
  /** The text goes on from one before it: the space that some tokenizers put before a text is not taken away. Default false. */
  continues?: boolean;
}

/** Text as it comes: push(id) returns what is certain, end() the rest. */
export interface StreamDecoder {
  push(id: number): string;
  end(): string;
}

/** The usual names of the token between documents. */
const SEPARATORS = ["<|endoftext|>", "<|end_of_text|>", "</s>"];
/** Below this many characters the engine's start costs more than it saves. */
const ENGINE_FROM = 20_000;

/** Jinja; older folders have several, each with a name. */
const isTemplate = (found: unknown): boolean =>
  found === undefined ||
  typeof found === "string" ||
  (Array.isArray(found) && found.every((t) => typeof t?.name === "string" && typeof t.template === "string"));

export class Tokenizer {
  private readonly model: BpeModel;
  private readonly ids: Map<string, number>;
  private readonly tokens: string[] = [];
  /** What an id stands for, once it was asked for. */
  private readonly bytes: (Uint8Array | undefined)[] = [];
  private readonly steps: PretokenizerStep[];
  private readonly normalize: Normalize;
  private readonly around: Around;
  /** Spaces at the beginning of a decoded text that encoding has put there. */
  private readonly stripped: number;
  /** The encoder in the engine, for large inputs; null where it cannot be had. */
  private native: NativeBpe | null | undefined;
  private readonly added = new Map<number, AddedToken>();
  private finder!: AddedTokens;

  private constructor(
    /** tokenizer.json */
    readonly json: Json,
    /** tokenizer_config.json */
    readonly config: Json,
    path: string,
  ) {
    requireBpe(json, path);
    this.model = new BpeModel(json.model as Json, path);
    this.ids = new Map(this.model.ids);
    for (const [token, id] of this.ids) this.tokens[id] = token;
    this.steps = pretokenizerSteps(json.pre_tokenizer as Json | null, path);
    this.normalize = normalizerOf(json.normalizer as Json | null, path);
    this.around = postProcessorOf(json.post_processor as Json | null, path);
    this.stripped = this.model.byteFallback ? fallback.strippedSpaces(json.decoder as Json | null, path) : 0;
    this.add((json.added_tokens as AddedToken[] | undefined) ?? []);
  }

  /**
   * Adds tokens under the ids that Hugging Face gives them, whatever the file says: the model's own where it has the
   * text, else the next free one.
   */
  private add(tokens: readonly AddedToken[]): void {
    let next = this.model.ids.size;
    for (const id of this.added.keys()) next = Math.max(next, id + 1);
    for (const token of tokens) {
      const id = this.ids.get(token.content) ?? next;
      next = Math.max(next, id + 1);
      this.ids.set(token.content, id);
      this.tokens[id] = token.normalized ? this.normalize(token.content) : token.content;
      this.added.set(id, { ...token, id });
      this.bytes[id] = undefined;
    }
    this.finder = new AddedTokens(this.added.values(), this.normalize);
  }

  /** The added tokens under the ids that they have here (those of the file may be others). */
  get addedTokens(): AddedToken[] {
    return [...this.added.values()];
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
    const added = [...new Set(specialTokens)].map((content, id) => specialToken(id, content));
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
    if (!existsSync(file)) {
      const sentencePiece = existsSync(`${path}/tokenizer.model`)
        ? " Its tokenizer.model is SentencePiece's: Transformers writes the other with AutoTokenizer.from_pretrained and save_pretrained."
        : "";
      throw new UserError(
        isFolder
          ? `${path} has no tokenizer.json in it.${sentencePiece}`
          : `${path} does not exist. Name a folder with a tokenizer.json.`,
        2,
      );
    }
    const read = (f: string): Json => {
      try {
        return JSON.parse(readFileSync(f, "utf8")) as Json;
      } catch (error) {
        throw new UserError(
          systemMessage(error, f) ?? `${f} is not JSON: ${(error as Error).message.replace(/\s+/g, " ")}`,
        );
      }
    };
    const configFile = file.replace(/tokenizer\.json$/, "tokenizer_config.json");
    const config = configFile !== file && existsSync(configFile) ? read(configFile) : {};
    // Transformers 5 keeps the chat template in a file of its own, which goes before the one in the config.
    const templateFile = file.replace(/tokenizer\.json$/, "chat_template.jinja");
    if (typeof config !== "object" || config === null || Array.isArray(config))
      throw new UserError(`${configFile} holds no JSON object.`);
    if (templateFile !== file && existsSync(templateFile)) config.chat_template = readFileSync(templateFile, "utf8");
    if (config.chat_template === null) delete config.chat_template;
    else if (!isTemplate(config.chat_template))
      throw new UserError(
        `${configFile}: chat_template must be a text, or a list of {"name", "template"}, which are texts. Mend it, or take it out.`,
      );
    return new Tokenizer(read(file), config, file);
  }

  save(dir: string): void {
    mkdirSync(dir, { recursive: true });
    // Transformers makes a Llama tokenizer of its own for that name, which puts spaces elsewhere; so it takes the file as it is.
    if (this.model.byteFallback && /^Llama/.test(String(this.config.tokenizer_class)))
      Object.assign(this.config, {
        tokenizer_class: "PreTrainedTokenizerFast",
        model_input_names: this.config.model_input_names ?? ["input_ids", "attention_mask"],
      });
    writeFileSync(`${dir}/tokenizer.json`, `${JSON.stringify(this.json, null, 2)}\n`);
    writeFileSync(`${dir}/tokenizer_config.json`, `${JSON.stringify(this.config, null, 2)}\n`);
    rmSync(`${dir}/chat_template.jinja`, { force: true }); // an older one would go before the one just written
  }

  encode(text: string, options: EncodeOptions = {}): Uint32Array {
    return this.encodeBatch([text], options)[0];
  }

  /** As `encode` of each; large inputs on all cores. */
  encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Uint32Array[] {
    const isLarge = options.engine !== false && texts.reduce((n, t) => n + t.length, 0) > ENGINE_FROM;
    const native = isLarge ? this.engine() : null;
    return native
      ? native.encode(texts.map((t) => this.pieces(t, options)))
      : texts.map((t) => this.encodeHere(t, options));
  }

  private encodeHere(text: string, options: EncodeOptions): Uint32Array {
    const ids: number[] = [];
    for (const piece of this.pieces(text, options)) {
      if (typeof piece === "number") ids.push(piece);
      else
        for (const word of cutWords(piece.text, this.steps, piece.before))
          for (const id of this.model.encodeWord(word)) ids.push(id);
    }
    return Uint32Array.from(ids);
  }

  /** Plain texts, normalized, and the ids of added tokens between and around them. */
  private pieces(
    text: string,
    { allowSpecial = true, addSpecialTokens = false, before = "nothing" }: EncodeOptions,
  ): Piece[] {
    // Half of a surrogate pair is no character: it becomes U+FFFD, as in every UTF-8 encoder.
    const whole = wellFormed(text);
    const plain: Piece[] = whole === "" ? [] : [{ text: this.normalize(whole, before !== "text"), before }];
    const inside = allowSpecial ? this.finder.split(whole, before) : plain;
    return addSpecialTokens ? [...this.around.before, ...inside, ...this.around.after] : inside;
  }

  /** The engine's encoder, when this tokenizer is one that it knows. */
  private engine(): NativeBpe | null {
    if (this.native === undefined) {
      const known = this.model.byteFallback ? undefined : knownSteps(this.steps);
      this.native = known ? NativeBpe.of(this.model, known.pretokenizer, known.prefix) : null;
    }
    return this.native;
  }

  /** What a text stands behind that goes on from these ids; for `EncodeOptions.before`. */
  endOf(ids: ArrayLike<number>): Before {
    return ids.length === 0 ? "nothing" : this.added.has(ids[ids.length - 1]) ? "token" : "text";
  }

  decode(ids: ArrayLike<number>, { skipSpecialTokens = false, continues = false }: DecodeOptions = {}): string {
    const said = Array.from(ids).filter((id) => this.isSaid(id, skipSpecialTokens));
    if (this.model.byteFallback) {
      const text = fallback.textOf(said.map((id) => this.tokens[id]));
      return continues ? text : text.slice(spacesBefore(text, this.stripped));
    }
    const chunks = said.map((id) => this.bytesOf(id));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Buffer.concat(chunks));
  }

  /** Whether an id stands for text: one that is not in the vocabulary does not. */
  private isSaid(id: number, skipSpecial: boolean): boolean {
    return this.tokens[id] !== undefined && !(skipSpecial && this.added.get(id)?.special);
  }

  private bytesOf(id: number): Uint8Array {
    this.bytes[id] ??= this.model.byteFallback ? fallback.bytesOf(this.tokens[id]) : toBytes(this.tokens[id]);
    return this.bytes[id];
  }

  /** In a run of bytes that are no UTF-8, those that are characters are said, where `decode` says U+FFFD for each byte, as Hugging Face. */
  stream({ skipSpecialTokens = true, continues = false }: DecodeOptions = {}): StreamDecoder {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let toStrip = continues ? 0 : this.stripped;
    const stripped = (text: string): string => {
      const spaces = spacesBefore(text, toStrip);
      toStrip = spaces < text.length ? 0 : toStrip - spaces; // only spaces so far
      return text.slice(spaces);
    };
    return {
      push: (id) =>
        this.isSaid(id, skipSpecialTokens) ? stripped(decoder.decode(this.bytesOf(id), { stream: true })) : "",
      end: () => stripped(decoder.decode()),
    };
  }

  /** Ids of the tokens, which are added where they are not yet. */
  addSpecialTokens(contents: readonly string[]): number[] {
    const list = (this.json.added_tokens ?? []) as AddedToken[];
    this.json.added_tokens = list;
    const known = new Set(list.map((t) => t.content));
    for (const content of contents) {
      if (known.has(content)) continue;
      known.add(content);
      this.add([specialToken(0, content)]);
      list.push(specialToken(this.ids.get(content)!, content));
    }
    return contents.map((c) => this.ids.get(c)!);
  }

  get vocabSize(): number {
    return this.tokens.length;
  }
  /** Of these, those of the BPE model itself: the others were added to it. */
  get modelSize(): number {
    return this.model.ids.size;
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
  /** What stands between documents in pretraining: a base model's eos. A chat model's may be the end of a turn, so there the usual names come first. */
  get separatorId(): number | undefined {
    const named = this.chatTemplate === undefined ? [] : SEPARATORS.map((name) => this.ids.get(name));
    return named.find((id) => id !== undefined) ?? this.eosId;
  }
  get chatTemplate(): string | undefined {
    return this.config.chat_template as string | undefined;
  }
  /** Two tokenizers with the same fingerprint give the same ids. */
  get fingerprint(): string {
    const { model, normalizer, pre_tokenizer, added_tokens } = this.json;
    return createHash("sha256")
      .update(JSON.stringify([model, normalizer, pre_tokenizer, added_tokens]))
      .digest("hex");
  }
}

/** How many spaces a text begins with, of so many at most. */
function spacesBefore(text: string, most: number): number {
  let n = 0;
  while (n < most && text[n] === " ") n++;
  return n;
}

/** A token with a character outside the byte alphabet was added as text; every other one is spelled in bytes. */
function toBytes(token: string): Uint8Array {
  const bytes = Array.from(token, (c) => CHAR_TO_BYTE.get(c));
  return bytes.includes(undefined) ? Buffer.from(token) : Uint8Array.from(bytes as number[]);
}
