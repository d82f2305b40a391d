/**
 * A tokenizer as llama.cpp has it. Its two kinds: "gpt2", byte-level BPE whose ways of cutting words it knows by name, and "llama", SentencePiece's
 * BPE, where scores say which pair is merged first. What it would cut into other tokens is refused.
 */
import { DialogueEncoder } from "../dialogue/mask.js";
import { stopTokens } from "../generate/loaded.js";
import type { LlamaConfig } from "../nn/config.js";
import { UserError } from "../run/errors.js";
import { CHAR_TO_BYTE } from "../tokenizer/bytes.js";
import { byteOf, MARK } from "../tokenizer/fallback.js";
import { knownSteps, PATTERNS, pretokenizerSteps } from "../tokenizer/pretokenize.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import { IDEOGRAPH } from "../tokenizer/unicode.js";
import type { GgufValue } from "./gguf.js";

interface Model {
  vocab: Record<string, number>;
  merges: (string | [string, string])[];
  unk_token?: string | null;
  byte_fallback?: boolean;
  ignore_merges?: boolean;
}
interface Step {
  type: string;
  normalizers?: Step[];
  prepend?: string;
  pattern?: { String?: string };
  content?: string;
}

const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;
const BYTE = 6;

interface Added {
  content: string;
  special?: boolean;
  lstrip?: boolean;
  rstrip?: boolean;
  single_word?: boolean;
  normalized?: boolean;
}

/** The keys of a file that tell of the tokenizer. Throws UserError where llama.cpp would give other ids. */
export function tokenizerOf(tokenizer: Tokenizer, c: LlamaConfig, dir: string): Record<string, GgufValue> {
  const { added_tokens, model } = tokenizer.json as { added_tokens?: Added[]; model: Model };
  const added = new Map((added_tokens ?? []).map((t) => [t.content, t]));
  const hidden = (added_tokens ?? []).find(
    (t) =>
      t.normalized &&
      tokenizer.tokenToId(t.content) !== undefined &&
      tokenizer.idToToken(tokenizer.tokenToId(t.content)!) !== t.content,
  );
  if (hidden) throw otherIds(dir, `its token ${hidden.content} is one only where it stands so in normalized text`);
  const greedy = (added_tokens ?? []).find((t) => t.lstrip || t.rstrip || t.single_word);
  if (greedy)
    throw otherIds(dir, `its token ${greedy.content} takes the spaces beside it, or stands for whole words only`);
  const tokens: string[] = [];
  const types: number[] = [];
  for (let id = 0; id < c.vocabSize; id++) {
    const token = tokenizer.idToToken(id);
    const special = token === undefined ? undefined : added.get(token);
    tokens.push(token ?? `[PAD${id}]`);
    types.push(
      token === undefined ? UNUSED : !special ? typeOf(token, model) : special.special ? CONTROL : USER_DEFINED,
    );
  }
  const twice = tokens.find(
    (token, id) => tokenizer.idToToken(id) === undefined && tokenizer.tokenToId(token) !== undefined,
  );
  if (twice !== undefined)
    throw otherIds(dir, `a row without a token would be called ${twice}, as one of its tokens is`);
  // Where no token ends a reply, llama.cpp would take number 11: a row that no token has does no harm.
  const ends = stopTokens(dir, c, tokenizer).filter((id) => id < c.vocabSize);
  if (ends.length === 0) ends.push(types.lastIndexOf(UNUSED));
  if (ends[0] < 0)
    throw new UserError(
      `${dir}: no token ends a reply, and llama.cpp must have one: name eos_token in tokenizer_config.json.`,
    );
  const { before, after } = around(tokenizer);
  const bos = tokenizer.bosId ?? c.bosTokenId;
  const unknown = model.byte_fallback ? tokenizer.tokenToId(model.unk_token ?? "") : undefined;
  if (unknown !== undefined && unknown < c.vocabSize) types[unknown] = UNKNOWN;
  const ids = { bos, eos: ends[0], eot: ends[1], eom: ends[2], padding: tokenizer.padId ?? c.padTokenId, unknown };
  if (
    ends.length > 3 ||
    before.some((id) => id !== bos) ||
    after.some((id) => id !== ends[0]) ||
    before.length + after.length > 2
  )
    throw otherIds(
      dir,
      "the tokens that it puts around a text, or that end a reply, are more than a file of llama.cpp's can say",
    );
  const template = templateIn(tokenizer);
  return {
    "tokenizer.ggml.tokens": { strings: tokens },
    "tokenizer.ggml.token_type": { i32s: types },
    ...(model.byte_fallback ? sentencePiece(tokenizer, tokens, dir) : byteLevel(tokenizer, tokens, dir)),
    ...Object.fromEntries(
      Object.entries(ids).flatMap(([name, id]) =>
        id === undefined || id >= c.vocabSize ? [] : [[`tokenizer.ggml.${name}_token_id`, { u32: id }]],
      ),
    ),
    "tokenizer.ggml.add_bos_token": { bool: before.length > 0 },
    "tokenizer.ggml.add_eos_token": { bool: after.length > 0 },
    ...(template !== undefined && { "tokenizer.chat_template": { string: template } }),
  };
}

const typeOf = (token: string, model: Model): number =>
  model.byte_fallback && byteOf(token) !== undefined ? BYTE : NORMAL;

/** The chat template; of several that have names, the default. */
function templateIn({ chatTemplate }: Tokenizer): string | undefined {
  const several = chatTemplate as unknown as { name: string; template: string }[] | string | undefined;
  return Array.isArray(several) ? several.find(({ name }) => name === "default")?.template : several;
}

/** The parts of a normalizer. */
const partsOf = (of: Step | null | undefined): Step[] =>
  !of ? [] : of.type === "Sequence" ? (of.normalizers ?? []).flatMap(partsOf) : [of];

const pairsOf = ({ merges }: Model): [string, string][] =>
  merges
    .filter((m) => typeof m !== "string" || !m.startsWith("#version"))
    .map((m) => (typeof m === "string" ? (m.split(" ") as [string, string]) : m));

// ---- byte-level BPE ----

function byteLevel(tokenizer: Tokenizer, tokens: readonly string[], dir: string): Record<string, GgufValue> {
  const { model, normalizer } = tokenizer.json as { model: Model; normalizer?: Step };
  const forms = partsOf(normalizer).map(({ type }) => type);
  if (forms.some((form) => form !== "NFC"))
    throw otherIds(dir, `this tokenizer normalizes texts (${forms.join(", ")})`);
  return {
    "tokenizer.ggml.model": { string: "gpt2" },
    "tokenizer.ggml.pre": { string: pretokenizerOf(tokenizer, tokens, dir) },
    "tokenizer.ggml.merges": { strings: pairsOf(model).map((pair) => pair.join(" ")) },
  };
}

// ---- SentencePiece ----

function sentencePiece(tokenizer: Tokenizer, tokens: readonly string[], dir: string): Record<string, GgufValue> {
  const { model, normalizer, pre_tokenizer } = tokenizer.json as {
    model: Model;
    normalizer?: Step;
    pre_tokenizer: null;
  };
  if (model.ignore_merges) throw otherIds(dir, "words that are in its vocabulary are one token (ignore_merges)");
  const steps = partsOf(normalizer);
  const usual = (s: Step): boolean =>
    (s.type === "Prepend" && s.prepend === MARK) ||
    (s.type === "Replace" && s.pattern?.String === " " && s.content === MARK);
  const strange = steps.find((s) => !usual(s));
  if (strange) throw otherIds(dir, `this tokenizer normalizes texts (${strange.type})`);
  const same = (a: Uint32Array, b: Uint32Array): boolean => a.join() === b.join();
  const cuts = pretokenizerSteps(pre_tokenizer, dir);
  const prefixes = [...steps.filter((s) => s.type === "Prepend"), ...cuts.filter((step) => step.prefix !== undefined)];
  if (
    prefixes.length > 1 ||
    cuts.some((step) => step.pattern) ||
    !same(tokenizer.encode(" a  b"), tokenizer.encode(`${MARK}a${MARK}${MARK}b`))
  )
    throw otherIds(dir, "it treats spaces in a way of its own");
  // It puts a space before each text and behind each special token, or nowhere.
  const [first, behind] = (["nothing", "token"] as const).map(
    (before) => !same(tokenizer.encode("a", { before }), tokenizer.encode("a", { before: "text" })),
  );
  return {
    "tokenizer.ggml.model": { string: "llama" },
    "tokenizer.ggml.pre": { string: "default" },
    "tokenizer.ggml.scores": { f32s: scoresOf(tokenizer, tokens.length, dir) },
    "tokenizer.ggml.add_space_prefix": { bool: first && (behind || !beginsWithToken(tokenizer)) },
  };
}

/** Whether a conversation begins with a token, so that no text is the first one. Most templates begin with bos; one that cannot be asked may. */
function beginsWithToken(tokenizer: Tokenizer): boolean {
  if (templateIn(tokenizer) === undefined) return false;
  try {
    const prompt = new DialogueEncoder(tokenizer).prompt([{ role: "user", content: "a" }]);
    return tokenizer.endOf(prompt.subarray(0, 1)) === "token";
  } catch {
    return true;
  }
}

/**
 * What is merged first has the highest score, and of equal scores what stands leftmost. It looks for pairs that together are a token; here
 * there must be a merge for each.
 */
function scoresOf(tokenizer: Tokenizer, rows: number, dir: string): number[] {
  const { model } = tokenizer.json as { model: Model };
  const strange = (why: string): UserError => otherIds(dir, `its merges are not SentencePiece's: ${why}`);
  const pairs = pairsOf(model);
  const merges = new Set(pairs.map((pair) => pair.join(" ")));
  // From the first to the last merge that makes a token. Tokens whose merges lie among each other's had one score.
  const spans = new Map<string, { first: number; last: number }>();
  for (const [rank, [left, right]] of pairs.entries()) {
    const span = spans.get(left + right);
    if (span) span.last = rank;
    else spans.set(left + right, { first: rank, last: rank });
  }
  const scores = new Array<number>(rows).fill(0);
  let [group, end] = [0, -1];
  const tied: string[] = [];
  let before = "";
  for (const [token, { first, last }] of spans) {
    if (first > end) group++;
    else tied.push(before, token);
    end = Math.max(end, last);
    before = token;
    scores[tokenizer.tokenToId(token)!] = -group;
  }
  const odd = tied.find((token) => [...token].some((c) => c !== MARK));
  if (odd !== undefined) throw strange(`"${odd}" is merged among others`);
  // Llama 2's runs of spaces: which of them come first, the merges say otherwise than the scores, and it should make no difference.
  const longest = Math.max(0, ...tied.map((token) => token.length));
  for (let n = 2; n <= 4 * longest; n++) {
    const ours = [...tokenizer.encode(" ".repeat(n), { before: "text" })].map((id) => tokenizer.idToToken(id)!);
    if (ours.join("|") !== byScores(n, (token) => scores[tokenizer.tokenToId(token) ?? -1]).join("|"))
      throw strange(`of ${n} spaces it makes other tokens`);
  }
  for (const token of Object.keys(model.vocab)) {
    const characters = [...token];
    for (let n = 1; n < characters.length; n++) {
      const [left, right] = [characters.slice(0, n).join(""), characters.slice(n).join("")];
      if (Object.hasOwn(model.vocab, left) && Object.hasOwn(model.vocab, right) && !merges.has(`${left} ${right}`))
        throw strange(`none joins "${left}" and "${right}", and "${token}" is a token`);
    }
  }
  return scores;
}

/** What llama.cpp makes of so many spaces. */
function byScores(n: number, score: (token: string) => number | undefined): string[] {
  const parts = new Array<string>(n).fill(MARK);
  for (;;) {
    let [best, at] = [Number.NEGATIVE_INFINITY, -1];
    for (let i = 0; i + 1 < parts.length; i++) {
      const found = score(parts[i] + parts[i + 1]) ?? Number.NEGATIVE_INFINITY;
      if (found > best) [best, at] = [found, i];
    }
    if (at < 0) return parts;
    parts.splice(at, 2, parts[at] + parts[at + 1]);
  }
}

/** Why a tokenizer cannot be written as it is. */
const otherIds = (dir: string, why: string): UserError =>
  new UserError(
    `${dir}: llama.cpp would cut texts into other tokens: ${why}. Its weights can be used with Hugging Face's tools.`,
  );

/** The tokens that the post-processor puts before and behind a text. */
function around(tokenizer: Tokenizer): { before: number[]; after: number[] } {
  const plain = [...tokenizer.encode("a")];
  const whole = [...tokenizer.encode("a", { addSpecialTokens: true })];
  const at = whole.findIndex((_, i) => plain.every((id, k) => whole[i + k] === id));
  return { before: whole.slice(0, at), after: whole.slice(at + plain.length) };
}

/** llama.cpp knows ways of cutting words by name. */
function pretokenizerOf(tokenizer: Tokenizer, tokens: readonly string[], dir: string): string {
  const { pre_tokenizer, model } = tokenizer.json as { pre_tokenizer: null; model: { ignore_merges?: boolean } };
  const steps = pretokenizerSteps(pre_tokenizer, dir);
  const known = knownSteps(steps);
  if (known?.prefix) throw otherIds(dir, "this tokenizer puts a space before each text");
  // Both are Llama 3's; with the first, a word that is in the vocabulary is one token, whatever the merges say.
  if (known?.pretokenizer === "llama3") return model.ignore_merges ? "llama-bpe" : "smaug-bpe";
  if (model.ignore_merges) throw otherIds(dir, "words that are in its vocabulary are one token (ignore_merges)");
  if (known?.pretokenizer === "qwen") return "qwen2";
  if (known?.pretokenizer === "gpt2") return "gpt-2";
  if (known?.pretokenizer === "han") {
    // No merge leads over the border of a Chinese character, where this tokenizer cuts: it need not be cut there.
    const mixed = tokens.find(mixesIdeographs);
    if (mixed === undefined) return "smaug-bpe";
    throw otherIds(
      dir,
      `it has no pre-tokenizer that cuts at every Chinese character, and "${decoded(mixed)}" is a token`,
    );
  }
  const sources = steps.map((s) => s.source);
  if (sources.length === 2 && sources[0] === "\\p{N}" && sources[1] === PATTERNS.gpt2) return "smollm";
  throw otherIds(dir, "it does not know this pre-tokenizer");
}

const decoded = (token: string): string =>
  Buffer.from(Array.from(token, (c) => CHAR_TO_BYTE.get(c) ?? 0x3f)).toString("utf8");
const CHINESE = new RegExp(`[${IDEOGRAPH}]`, "u");
const LETTER = /^\p{L}/u;

/** Whether a token, of a byte-level alphabet, reaches over the border of a Chinese character, or may be such a piece of one and of a letter. */
export function mixesIdeographs(token: string): boolean {
  const bytes = Array.from(token, (c) => CHAR_TO_BYTE.get(c) ?? -1);
  if (bytes.includes(-1)) return false; // an added one: no merge makes it
  const tail = bytes.findIndex((b) => b < 0x80 || b > 0xbf);
  if (tail < 0) return false; // within one character
  // The end of a character, whole ones, and the beginning of another.
  const pieces: { may: (pattern: RegExp) => boolean }[] = [];
  for (let at = tail; at < bytes.length; ) {
    const length = bytes[at] < 0x80 ? 1 : bytes[at] < 0xe0 ? 2 : bytes[at] < 0xf0 ? 3 : 4;
    const known = bytes.slice(at, at + length);
    // What it may become, with the least and the greatest bytes that may follow.
    const ends = [0x80, 0xbf].map((b) =>
      Buffer.from(known.concat(Array(length - known.length).fill(b))).toString("utf8"),
    );
    pieces.push({ may: (p) => (known.length < length ? possible(ends, p) : p.test(ends[0])) });
    at += length;
  }
  if (tail > 0 && pieces[0].may(LETTER)) return true;
  return pieces.length + (tail > 0 ? 1 : 0) > 1 && pieces.some((p) => p.may(CHINESE));
}

/** Whether some character from the first to the last matches; where one of them is none, it is taken for possible. */
function possible([first, last]: string[], pattern: RegExp): boolean {
  if (`${first}${last}`.includes("\uFFFD")) return true;
  for (let c = first.codePointAt(0)!; c <= last.codePointAt(0)!; c++)
    if (pattern.test(String.fromCodePoint(c))) return true;
  return false;
}
