/** The parts of tokenizer.json around the model: what is done to text before, and which tokens are put around it. */
import { UserError } from "../run/errors.js";

type Json = Record<string, unknown>;

const FORMS = ["NFC", "NFD", "NFKC", "NFKD"];

export function normalizerOf(normalizer: Json | null | undefined, path: string): (text: string) => string {
  if (!normalizer) return (text) => text;
  const form = String(normalizer.type);
  if (form === "Sequence") {
    const list = (normalizer.normalizers as Json[]).map((n) => normalizerOf(n, path));
    return (text) => list.reduce((t, f) => f(t), text);
  }
  if (FORMS.includes(form)) return (text) => text.normalize(form);
  throw new UserError(
    `${path}: the normalizer "${form}" is not implemented; ${FORMS.join(", ")} and a Sequence of them are.`,
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

/** Throws where a tokenizer is no byte-level BPE, with the reason. */
export function requireByteLevel(json: Json, path: string): void {
  if (!isObject(json)) throw new UserError(`${path} holds no JSON object, which a tokenizer is.`);
  const model = json.model as Json | undefined;
  const type = model?.type ?? (model?.merges ? "BPE" : undefined);
  if (type !== "BPE") {
    const found = type === undefined ? "there is none in it" : `here it is "${type}"`;
    throw new UserError(`${path}: the tokenizer model must be BPE, and ${found}. Lyceum reads byte-level BPE.`);
  }
  requireParts(json, model as Json, path);
  for (const key of ["byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"])
    if (model![key])
      throw new UserError(
        `${path}: the model's ${key} is ${JSON.stringify(model![key])}, which byte-level BPE has no use for and Lyceum cannot apply.`,
      );
  const steps = flat(json.pre_tokenizer as Json | null);
  const last = steps.findIndex((s) => s.type === "ByteLevel");
  if (last < 0)
    throw new UserError(
      `${path}: no pre-tokenizer is ByteLevel, so this is no byte-level BPE, which is what Lyceum reads.`,
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
    case "Split": {
      const { pattern } = part;
      require(isObject(pattern) && isText(pattern.Regex ?? pattern.String), "pattern", "a Regex or a String");
      return;
    }
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
/** Ids beyond this could not be merged, and belong to no vocabulary that is used. */
const isId = (id: unknown): id is number => Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 26;

const flat = (pre: Json | null | undefined): Json[] =>
  !pre ? [] : pre.type === "Sequence" ? (pre.pretokenizers as Json[]).flatMap(flat) : [pre];
