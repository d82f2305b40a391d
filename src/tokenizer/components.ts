/** The parts of tokenizer.json around the model: what is done to text before, and which tokens are put around it. */
import { UserError } from "../run/errors.js";
import { expressionOf, type Pattern } from "./oniguruma.js";

type Json = Record<string, unknown>;

const FORMS = ["NFC", "NFD", "NFKC", "NFKD"];

/** What is done to a text first. `begins`: not where it goes on from a text before it, so that nothing is put before it. */
export type Normalize = (text: string, begins?: boolean) => string;

export function normalizerOf(normalizer: Json | null | undefined, path: string): Normalize {
  if (!normalizer) return (text) => text;
  const form = String(normalizer.type);
  switch (form) {
    case "Sequence": {
      const list = (normalizer.normalizers as Json[]).map((n) => normalizerOf(n, path));
      return (text, begins = true) => list.reduce((t, f) => f(t, begins), text);
    }
    case "Prepend": {
      const prepend = String(normalizer.prepend);
      return (text, begins = true) => (begins && text !== "" ? prepend + text : text);
    }
    case "Replace": {
      const pattern = expressionOf(normalizer.pattern as Pattern, path);
      if ("".search(pattern) === 0)
        throw new UserError(
          `${path}: the normalizer Replace has a pattern that matches where nothing is; that is not implemented.`,
        );
      const content = String(normalizer.content);
      return (text) => text.replaceAll(pattern, () => content);
    }
  }
  if (FORMS.includes(form)) return (text) => text.normalize(form);
  throw new UserError(
    `${path}: the normalizer "${form}" is not implemented; ${FORMS.join(", ")}, Prepend, Replace and a Sequence of them are.`,
  );
}

/** Ids that stand before and after a single text. */
export interface Around {
  before: number[];
  after: number[];
}

export function postProcessorOf(post: Json | null | undefined, path: string): Around {
  if (!post) return { before: [], after: [] };
  switch (post.type) {
    case "ByteLevel": // changes offsets only
      return { before: [], after: [] };
    case "Sequence": {
      const list = (post.processors as Json[]).map((p) => postProcessorOf(p, path));
      return {
        before: list.toReversed().flatMap((p) => p.before),
        after: list.flatMap((p) => p.after),
      };
    }
    case "TemplateProcessing": {
      const single = post.single as { SpecialToken?: { id: string }; Sequence?: unknown }[];
      const known = post.special_tokens as Record<string, { ids: number[] }>;
      const at = single.findIndex((s) => s.Sequence !== undefined);
      const ids = (list: typeof single): number[] => list.flatMap((s) => known[s.SpecialToken?.id ?? ""]?.ids ?? []);
      return { before: ids(single.slice(0, at)), after: ids(single.slice(at + 1)) };
    }
    case "RobertaProcessing":
    case "BertProcessing":
      return { before: [(post.cls as [string, number])[1]], after: [(post.sep as [string, number])[1]] };
  }
  throw new UserError(
    `${path}: the post-processor "${post.type}" is not implemented; ByteLevel, TemplateProcessing, RobertaProcessing and BertProcessing are.`,
  );
}

/** Throws where a tokenizer is no BPE over bytes, be it byte-level or with byte fallback, with the reason. */
export function requireBpe(json: Json, path: string): void {
  if (!isObject(json)) throw new UserError(`${path} holds no JSON object, which a tokenizer is.`);
  const model = json.model as Json | undefined;
  const type = model?.type ?? (model?.merges ? "BPE" : undefined);
  if (type !== "BPE") {
    const found = type === undefined ? "there is none in it" : `here it is "${type}"`;
    throw new UserError(
      `${path}: the tokenizer model must be BPE, and ${found}. Lyceum reads BPE that is byte-level or has byte fallback.`,
    );
  }
  requireParts(json, model as Json, path);
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix", "dropout"])
    if (model![key])
      throw new UserError(
        `${path}: the model's ${key} is ${JSON.stringify(model![key])}, which BPE over bytes has no use for and Lyceum cannot apply.`,
      );
  const steps = flat(json.pre_tokenizer as Json | null);
  const last = steps.findIndex((s) => s.type === "ByteLevel");
  if (model!.byte_fallback) {
    if (last < 0) return;
    throw new UserError(
      `${path}: a pre-tokenizer is ByteLevel and the model's byte_fallback is true: a text is spelled in bytes either way, and can be in one only.`,
    );
  }
  if (last < 0)
    throw new UserError(
      `${path}: no pre-tokenizer is ByteLevel and the model has no byte_fallback, so there are texts it cannot spell. Lyceum reads BPE that has one of them.`,
    );
  if (last < steps.length - 1)
    throw new UserError(`${path}: ${steps[last + 1].type} stands after ByteLevel; nothing can be cut after it.`);
}

const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Throws where a part of the file is not of the kind that the format says, as in a file that was edited or damaged. */
function requireParts(json: Json, model: Json, path: string): void {
  const damaged = (what: string): UserError => new UserError(`${path}: the file is damaged: ${what}.`);
  if (!isObject(model.vocab)) throw damaged("model.vocab is not a table of tokens and ids");
  for (const [token, id] of Object.entries(model.vocab))
    if (!isId(id)) throw damaged(`the token ${JSON.stringify(token)} has the id ${JSON.stringify(id)}`);
  if (!Array.isArray(model.merges)) throw damaged("model.merges is not a list");
  const bad = model.merges.findIndex((m) => typeof m !== "string" && !(Array.isArray(m) && m.every(isText)));
  if (bad >= 0) throw damaged(`merge ${bad + 1} is ${JSON.stringify(model.merges[bad])}`);
  for (const key of Object.keys(LISTS)) requireComponent(json[key], key, LISTS[key], damaged);
  const added = json.added_tokens ?? [];
  if (!Array.isArray(added)) throw damaged("added_tokens is not a list");
  for (const token of added)
    if (!isObject(token) || !isText(token.content) || !isId(token.id))
      throw damaged(`an added token is ${JSON.stringify(token)}`);
}

/** Under which name a Sequence of each kind has its parts. */
const LISTS: Record<string, string> = {
  normalizer: "normalizers",
  pre_tokenizer: "pretokenizers",
  post_processor: "processors",
};

/** The same of a normalizer, pre-tokenizer or post-processor, and of all in it; `name` says where it stands. */
function requireComponent(part: unknown, name: string, list: string, damaged: (what: string) => UserError): void {
  if (part === undefined || part === null) return;
  if (!isObject(part)) throw damaged(`${name} is ${JSON.stringify(part)}`);
  const require = (holds: boolean, key: string, what: string): void => {
    if (!holds) throw damaged(`the ${key} of ${name} (${part.type}) is ${JSON.stringify(part[key])}, and not ${what}`);
  };
  switch (part.type) {
    case "Sequence": {
      const parts = part[list];
      require(Array.isArray(parts), list, "a list");
      for (const [i, inner] of (parts as unknown[]).entries()) {
        if (inner === null) throw damaged(`${name}.${list}[${i}] is null`);
        requireComponent(inner, `${name}.${list}[${i}]`, list, damaged);
      }
      return;
    }
    case "Prepend":
      require(isText(part.prepend), "prepend", "a text");
      return;
    case "Metaspace":
      require(isText(part.replacement) && [...part.replacement].length === 1, "replacement", "a character");
      return;
    case "Replace":
      require(isText(part.content), "content", "a text");
      require(isPattern(part.pattern), "pattern", "a Regex or a String");
      return;
    case "Split":
      require(isPattern(part.pattern), "pattern", "a Regex or a String");
      return;
    case "TemplateProcessing": {
      const { single, special_tokens: known } = part;
      require(Array.isArray(single) && single.every(isObject), "single", "a list of tokens and the sequence");
      require(isObject(known) &&
        Object.values(known).every(
          (t) => isObject(t) && Array.isArray(t.ids) && t.ids.every(isId),
        ), "special_tokens", "a table of tokens and ids");
      return;
    }
    case "RobertaProcessing":
    case "BertProcessing":
      for (const key of ["cls", "sep"]) {
        const pair = part[key];
        require(Array.isArray(pair) && isText(pair[0]) && isId(pair[1]), key, "a token and its id");
      }
  }
}

const isText = (value: unknown): value is string => typeof value === "string";
const isPattern = (value: unknown): boolean => isObject(value) && isText(value.Regex ?? value.String);
/** Ids beyond this could not be merged, and belong to no vocabulary that is used. */
const isId = (id: unknown): id is number => Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 26;

const flat = (pre: Json | null | undefined): Json[] =>
  !pre ? [] : pre.type === "Sequence" ? (pre.pretokenizers as Json[]).flatMap(flat) : [pre];
