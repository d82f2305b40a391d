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
  const model = json.model as Json | undefined;
  const type = model?.type ?? (model?.merges ? "BPE" : undefined);
  if (type !== "BPE") {
    const found = type === undefined ? "there is none in it" : `"${type}"`;
    throw new UserError(`${path}: the tokenizer model must be BPE, and ${found}. Lyceum reads byte-level BPE.`);
  }
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

const flat = (pre: Json | null | undefined): Json[] =>
  !pre ? [] : pre.type === "Sequence" ? (pre.pretokenizers as Json[]).flatMap(flat) : [pre];
