/**
 * A rendered conversation that knows who wrote what: the template or the people. Special tokens are read only in what
 * the template wrote; "<|im_end|>" typed by a person stays plain text. To tell them apart, contents are rendered as
 * placeholders first, and put in afterwards.
 */
import type { AddedToken, Tokenizer } from "../tokenizer/tokenizer.js";
import { type ChatTemplate, type Message, REPLY_END, REPLY_START, RecordError } from "./templates.js";

export interface Span {
  start: number;
  end: number;
}

export interface Rendering {
  /** What Hugging Face's apply_chat_template gives for the same messages. */
  text: string;
  /** What people wrote, by message. Empty where `opaque`. */
  people: (Span & { message: number })[];
  /** The template changes contents in ways of its own, so that it is not known which part of the text is theirs. */
  opaque: boolean;
  /** What {% generation %} encloses; undefined: the template has no such markers. */
  marked: Span[] | undefined;
}

const OPEN = "\uE0F0";
const CLOSE = "\uE0F1";
const MARKS = new RegExp(`[${REPLY_START}${REPLY_END}]`);

/** Throws RecordError when the template refuses the messages, or when a person's text could pass for the template's. */
export function render(
  template: ChatTemplate,
  messages: readonly Message[],
  addGenerationPrompt: boolean,
  looksSpecial: (text: string) => boolean,
): Rendering {
  const text = template.render(messages, addGenerationPrompt);
  const marked = template.renderMarked && ([] as Span[]);
  const { placeholders, contents } = withPlaceholders(messages);
  const skeleton = (template.renderMarked ?? template.render)(placeholders, addGenerationPrompt);
  const pieces = skeleton.split(new RegExp(`${OPEN}(\\d+)${CLOSE}`));

  const people: Rendering["people"] = [];
  let at = 0;
  let fits = true;
  for (let i = 0; i < pieces.length && fits; i += 2) {
    const next = unmarked(pieces[i], at, marked);
    fits = text.startsWith(next, at);
    at += next.length;
    if (i + 1 === pieces.length) break;
    const { content, message } = contents[Number(pieces[i + 1])];
    const after = unmarked(pieces[i + 2], 0, undefined);
    const found = spellings(content).find((c) => text.startsWith(c + after, at));
    fits &&= found !== undefined;
    people.push({ message, start: at, end: at + (found ?? "").length });
    at += (found ?? "").length;
  }
  if (fits && at === text.length) return { text, people, opaque: false, marked };

  for (const { content } of contents)
    if (looksSpecial(content) || MARKS.test(content))
      throw new RecordError(
        `A message holds the text of a special token, and ${template.name} changes messages, so they cannot be told apart.`,
      );
  const own: Span[] | undefined = template.renderMarked && [];
  if (template.renderMarked) unmarked(template.renderMarked(messages, addGenerationPrompt), 0, own);
  return { text, people: [], opaque: true, marked: own };
}

/** The messages with a numbered placeholder for each text in them. An empty text stays one: templates ask for that. */
function withPlaceholders(messages: readonly Message[]): {
  placeholders: Message[];
  contents: { content: string; message: number }[];
} {
  const contents: { content: string; message: number }[] = [];
  const placeholder = (content: string, message: number): string =>
    content === "" ? "" : `${OPEN}${contents.push({ content, message }) - 1}${CLOSE}`;
  const placeholders = messages.map((m, i) => ({
    ...m,
    content: placeholder(m.content, i),
    ...(m.input !== undefined && { input: placeholder(m.input, i) }),
  }));
  return { placeholders, contents };
}

/** How a template may print a text and leave it what it is: many of them trim. */
const spellings = (text: string): string[] => [text, text.trim(), text.trimEnd(), text.trimStart()];

/** The piece without its marks; the places of the marks go to `spans`, `at` being the place of the piece. */
function unmarked(piece: string, at: number, spans: Span[] | undefined): string {
  let out = "";
  for (const part of piece.split(/([\uE0F2\uE0F3])/)) {
    if (part === REPLY_START) spans?.push({ start: at + out.length, end: Number.POSITIVE_INFINITY });
    else if (part === REPLY_END) {
      const open = spans?.at(-1);
      if (open) open.end = at + out.length;
    } else out += part;
  }
  return out;
}

/** Tokenizes parts of renderings as Hugging Face would, but for special tokens that people typed. */
export class RenderingEncoder {
  private readonly added = new Map<string, AddedToken>();
  private readonly inTemplate: RegExp;
  private readonly inPeople: RegExp;

  constructor(private readonly tokenizer: Tokenizer) {
    const tokens = (tokenizer.json.added_tokens as AddedToken[] | undefined) ?? [];
    for (const token of tokens) this.added.set(token.content, token);
    this.inTemplate = anyOf(tokens);
    // Added words that are no control tokens (<think>, say) mean the same whoever writes them.
    this.inPeople = anyOf(tokens.filter((t) => !t.special));
  }

  /** Whether a text holds the text of a control token. */
  readonly looksSpecial = (text: string): boolean =>
    text.split(this.inTemplate).some((part, i) => i % 2 === 1 && this.added.get(part)?.special);

  /** Ids of text[start..end), cut at `borders`: no token reaches over one. */
  encode(rendering: Rendering, { start, end }: Span, borders: readonly number[] = []): number[] {
    const ids: number[] = [];
    let from = start;
    for (const to of [...borders.filter((b) => b > start && b < end), end]) {
      this.encodeSpan(rendering, from, to, ids);
      from = to;
    }
    return ids;
  }

  private encodeSpan({ text, people }: Rendering, start: number, end: number, ids: number[]): void {
    const parts: (string | AddedToken)[] = [];
    const add = (piece: string, tokens: RegExp): void =>
      piece.split(tokens).forEach((part, i) => {
        if (i % 2 === 1) parts.push(this.added.get(part)!);
        else if (typeof parts.at(-1) === "string") parts[parts.length - 1] += part;
        else parts.push(part);
      });
    let at = start;
    for (const p of people) {
      if (p.end <= start || p.start >= end) continue;
      const [from, to] = [Math.max(p.start, start), Math.min(p.end, end)];
      add(text.slice(at, from), this.inTemplate);
      add(text.slice(from, to), this.inPeople);
      at = to;
    }
    add(text.slice(at, end), this.inTemplate);
    parts.forEach((part, i) => {
      if (typeof part !== "string") {
        ids.push(part.id);
        return;
      }
      const [before, after] = [parts[i - 1], parts[i + 1]];
      let plain = part;
      if (typeof before === "object" && before.rstrip) plain = plain.trimStart();
      if (typeof after === "object" && after.lstrip) plain = plain.trimEnd();
      if (plain !== "") for (const id of this.tokenizer.encode(plain, { allowSpecial: false })) ids.push(id);
    });
  }
}

/** Matches any of the tokens, the longest first, in one group for split(). */
function anyOf(tokens: readonly AddedToken[]): RegExp {
  const contents = tokens.map((t) => t.content).sort((a, b) => b.length - a.length);
  const escaped = contents.map((t) => t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`(${escaped.join("|") || "(?!)"})`, "u");
}
