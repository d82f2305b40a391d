/**
 * A rendered conversation that knows who wrote what: the template or the people. Special tokens are read only in what
 * the template wrote; "<|im_end|>" typed by a person stays plain text. To tell them apart, contents are rendered as
 * placeholders first, and put in afterwards.
 */
import type { Before } from "../tokenizer/pretokenize.js";
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
const PLACEHOLDER = new RegExp(`${OPEN}(\\d+)${CLOSE}`);
const MARKS = new RegExp(`([${REPLY_START}${REPLY_END}])`); // in a group, so that `split` keeps them

interface Content {
  content: string;
  message: number;
}

/** Renders conversations with one template. Its methods throw RecordError when the template refuses the messages. */
export class Renderer {
  /**
   * What a verbatim template prints for one message. Running Jinja costs far more than tokenizing, and a conversation is
   * rendered once for each of its replies.
   */
  private readonly messages = new Map<string, readonly string[]>();
  private generationPrompt: string | undefined;

  constructor(
    private readonly template: ChatTemplate,
    /** Whether a text could pass for a control token. */
    private readonly looksSpecial: (text: string) => boolean,
  ) {}

  /** The text alone. */
  text(messages: readonly Message[], addGenerationPrompt: boolean): string {
    if (!this.template.verbatim) return this.template.render(messages, addGenerationPrompt);
    const contents = contentsOf(messages);
    return this.skeleton(messages, addGenerationPrompt)
      .map((piece, i) => (i % 2 === 0 ? piece : contents[Number(piece)].content))
      .join("");
  }

  /** Throws RecordError also when a person's text could pass for the template's. */
  render(messages: readonly Message[], addGenerationPrompt: boolean): Rendering {
    const { template } = this;
    const text = this.text(messages, addGenerationPrompt);
    const contents = contentsOf(messages);
    const marked = template.renderMarked && ([] as Span[]);
    const people = placed(text, this.skeleton(messages, addGenerationPrompt), contents, marked);
    if (people) return { text, people, opaque: false, marked };

    for (const { content } of contents)
      if (this.looksSpecial(content) || MARKS.test(content))
        throw new RecordError(
          `A message holds the text of a special token, and ${template.name} changes messages, so they cannot be told apart.`,
        );
    const own: Span[] | undefined = template.renderMarked && [];
    if (template.renderMarked) unmarked(template.renderMarked(messages, addGenerationPrompt), 0, own);
    return { text, people: [], opaque: true, marked: own };
  }

  /** What the template prints, and between that the numbers of the contents. */
  private skeleton(messages: readonly Message[], addGenerationPrompt: boolean): readonly string[] {
    const { template } = this;
    if (!template.verbatim) {
      const print = template.renderMarked ?? template.render;
      return print(withPlaceholders(messages), addGenerationPrompt).split(PLACEHOLDER);
    }
    const pieces = [""];
    let contents = 0;
    messages.forEach((m, i) => {
      const [before, ...rest] = this.message(m, i === 0);
      pieces[pieces.length - 1] += before;
      for (let k = 0; k < rest.length; k += 2) pieces.push(String(contents + Number(rest[k])), rest[k + 1]);
      contents += contentsOf([m]).length; // those that are not printed are numbered as well
    });
    if (addGenerationPrompt) {
      this.generationPrompt ??= after(template, [], true);
      pieces[pieces.length - 1] += this.generationPrompt;
    }
    return pieces;
  }

  private message(m: Message, first: boolean): readonly string[] {
    const key = `${m.role} ${m.content === ""} ${!m.input} ${first}`;
    const made =
      this.messages.get(key) ??
      (first
        ? this.template.render(withPlaceholders([m]), false)
        : after(this.template, withPlaceholders([m]), false)
      ).split(PLACEHOLDER);
    this.messages.set(key, made);
    return made;
  }
}

/** What a verbatim template prints after a first message. */
function after(template: ChatTemplate, messages: readonly Message[], addGenerationPrompt: boolean): string {
  const first: Message = { role: "user", content: "" };
  return template.render([first, ...messages], addGenerationPrompt).slice(template.render([first], false).length);
}

/** What people wrote, in the order in which placeholders are numbered. */
function contentsOf(messages: readonly Message[]): Content[] {
  return messages.flatMap(({ content, input = "" }, message) =>
    [content, input].filter((c) => c !== "").map((c) => ({ content: c, message })),
  );
}

/** The messages with a numbered placeholder for each text in them. An empty text stays one: templates ask for that. */
function withPlaceholders(messages: readonly Message[]): Message[] {
  let count = 0;
  const placeholder = (text: string): string => (text === "" ? "" : `${OPEN}${count++}${CLOSE}`);
  return messages.map((m) => ({
    ...m,
    content: placeholder(m.content),
    ...(m.input !== undefined && { input: placeholder(m.input) }),
  }));
}

/** Where in `text` the contents stand that the skeleton has; undefined: they are not there as they are, or trimmed. */
function placed(
  text: string,
  skeleton: readonly string[],
  contents: readonly Content[],
  marked: Span[] | undefined,
): Rendering["people"] | undefined {
  const people: Rendering["people"] = [];
  let at = 0;
  for (let i = 0; ; i += 2) {
    const piece = unmarked(skeleton[i], at, marked);
    if (!text.startsWith(piece, at)) return undefined;
    at += piece.length;
    if (i + 1 === skeleton.length) return at === text.length ? people : undefined;
    const { content, message } = contents[Number(skeleton[i + 1])];
    const after = unmarked(skeleton[i + 2], 0, undefined);
    const found = spellings(content).find((c) => text.startsWith(c, at) && text.startsWith(after, at + c.length));
    if (found === undefined) return undefined;
    people.push({ message, start: at, end: at + found.length });
    at += found.length;
  }
}

/** How a template may print a text and leave it what it is: many of them trim. */
const spellings = (text: string): string[] => [text, text.trim(), text.trimEnd(), text.trimStart()];

/** The piece without its marks; the places of the marks go to `spans`, `at` being the place of the piece. */
function unmarked(piece: string, at: number, spans: Span[] | undefined): string {
  let out = "";
  for (const part of piece.split(MARKS)) {
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
    const tokens = tokenizer.addedTokens;
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
      const stands = i > 0 ? "token" : this.standsBehind(text, start);
      for (const id of this.tokenizer.encode(plain, { allowSpecial: false, before: stands })) ids.push(id);
    });
  }

  /** What is before a place of a rendering: some tokenizers put a space behind a token, or before the first text. */
  private standsBehind(text: string, at: number): Before {
    if (at === 0) return "nothing";
    const before = text.slice(0, at);
    const trimmed = before.trimEnd();
    // White space behind such a token is the token's own.
    const ends = ({ content, rstrip }: AddedToken): boolean =>
      content !== "" && (rstrip ? trimmed.endsWith(content) : before.endsWith(content));
    return [...this.added.values()].some(ends) ? "token" : "text";
  }
}

/** Matches any of the tokens, the longest first, in one group for split(). */
function anyOf(tokens: readonly AddedToken[]): RegExp {
  const contents = tokens.map((t) => t.content).sort((a, b) => b.length - a.length);
  const escaped = contents.map((t) => t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`(${escaped.join("|") || "(?!)"})`, "u");
}
