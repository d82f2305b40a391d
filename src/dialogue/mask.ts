/**
 * From a conversation to tokens, and which of them are trained: the replies and the token that ends each of them.
 *
 * The mask comes from the template's spans while tokenizing, never from searching for tokens: the text before a reply is
 * the conversation so far rendered with the generation prompt, the reply is what the rendering has more once it is in.
 * Each span is tokenized by itself, so that training sees the same boundary between prompt and reply as generation.
 *
 * What people wrote is never read as special tokens: "<|im_end|>" typed by a user stays plain text. To know what the
 * template wrote and what people wrote, contents are rendered as placeholders first.
 */
import { UserError } from "../run/errors.js";
import type { AddedToken, Tokenizer } from "../tokenizer/tokenizer.js";
import { type ChatTemplate, type Message, templateOf } from "./templates.js";

export interface Sample {
  ids: Int32Array;
  /** 1: this token is a target. */
  trainable: Uint8Array;
}

/** Where the reply of a sample with one trained reply begins. */
export const replyStart = (sample: Sample): number => sample.trainable.indexOf(1);

/** The three constructions of multi-turn samples in the notes (4.2.2). */
export const CONSTRUCTIONS = ["all", "last", "split"] as const;
export type Construction = (typeof CONSTRUCTIONS)[number];

/** Text by who wrote it. */
interface Piece {
  text: string;
  written: "template" | "person";
}

export class DialogueEncoder {
  private readonly template: ChatTemplate;
  private readonly special: RegExp;

  constructor(private readonly tokenizer: Tokenizer) {
    this.template = templateOf(tokenizer);
    const added = ((tokenizer.json.added_tokens as AddedToken[] | undefined) ?? []).map((t) => t.content);
    const escaped = added.sort((a, b) => b.length - a.length).map((t) => t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    this.special = new RegExp(`(${escaped.join("|") || "(?!)"})`, "u");
  }

  /** The tokens to generate a reply from: the conversation, and the generation prompt. */
  prompt(messages: readonly Message[]): Int32Array {
    return Int32Array.from(this.encode(this.render(messages, true)));
  }

  /**
   * The samples of a conversation: one for `all` (every reply is a target) and for `last`, one per reply for `split`.
   * Cut at maxLength tokens. Returns the reason when no target is left: the record cannot be trained on.
   */
  samples(
    messages: readonly Message[],
    construction: Construction,
    maxLength: number,
  ): Sample[] | { rejected: string } {
    const turns = this.turns(messages);
    if (turns.length === 0) return { rejected: "there is no reply in it" };
    const sample = (count: number, trained: (turn: number) => boolean): Sample => {
      const used = turns.slice(0, count);
      const ids = used.flatMap((t) => [...t.prompt, ...t.reply]);
      const trainable = used.flatMap((t, i) => [...t.prompt.map(() => 0), ...t.reply.map(() => (trained(i) ? 1 : 0))]);
      return {
        ids: Int32Array.from(ids).slice(0, maxLength),
        trainable: Uint8Array.from(trainable).slice(0, maxLength),
      };
    };
    const last = turns.length - 1;
    const all =
      construction === "split"
        ? turns.map((_, n) => sample(n + 1, (i) => i === n))
        : [sample(turns.length, (i) => construction === "all" || i === last)];
    const kept = all.filter((s) => s.trainable.includes(1));
    return kept.length > 0 ? kept : { rejected: `no token of a reply is within the first ${maxLength} tokens` };
  }

  /** What precedes each reply and the reply with its end-of-turn token, as ids. */
  private turns(messages: readonly Message[]): { prompt: number[]; reply: number[] }[] {
    const turns: { prompt: number[]; reply: number[] }[] = [];
    let done = 0; // characters of the rendering that are in a turn already
    let before: Piece[] = [];
    messages.forEach(({ role }, i) => {
      if (role !== "assistant") return;
      const prompt = this.render(messages.slice(0, i), true);
      const full = this.render(messages.slice(0, i + 1), false);
      const [promptText, fullText] = [textOf(prompt), textOf(full)];
      if (!fullText.startsWith(promptText) || !promptText.startsWith(textOf(before)))
        throw new UserError(
          "This chat template rewrites earlier turns when a later one is added, so a reply's place in the text is not certain. Use one of the named templates.",
        );
      const reply = from(full, promptText.length);
      const { endOfTurn } = this.template;
      const end = textOf(reply).indexOf(endOfTurn, afterPerson(reply));
      if (end < 0)
        throw new UserError(
          `This chat template does not end a reply with ${endOfTurn}, its eos_token: the model could not learn to stop.`,
        );
      const length = end + endOfTurn.length;
      turns.push({ prompt: this.encode(from(prompt, done)), reply: this.encode(upTo(reply, length)) });
      done = promptText.length + length;
      before = full;
    });
    return turns;
  }

  private render(messages: readonly Message[], addGenerationPrompt: boolean): Piece[] {
    const contents: string[] = [];
    const mark = (content: string): string => {
      contents.push(content);
      return `\uE0F0${String.fromCharCode(0xe100 + contents.length - 1)}\uE0F1`;
    };
    const marked = messages.map((m) => ({
      role: m.role,
      content: mark(m.content),
      ...(m.input !== undefined && m.input !== "" && { input: mark(m.input) }),
    }));
    const pieces = this.template
      .render(marked, addGenerationPrompt)
      .split(/\uE0F0(.)\uE0F1/su)
      .map((text, i): Piece => {
        if (i % 2 === 0) return { text, written: "template" };
        return { text: contents[text.charCodeAt(0) - 0xe100], written: "person" };
      })
      .filter((p) => p.text !== "");
    const plain = this.template.render(messages, addGenerationPrompt);
    if (textOf(pieces) === plain) return pieces;
    // The template changes contents (trims them, say). Then its whole text is taken, if nobody can smuggle a token in.
    for (const { content, input } of messages)
      if (this.special.test(content) || this.special.test(input ?? ""))
        throw new UserError(
          `A message holds the text of a special token, and this chat template changes messages, so they cannot be told apart.`,
        );
    return [{ text: plain, written: "template" }];
  }

  /** Ids of the pieces as one text, special tokens being read only in what the template wrote. */
  private encode(pieces: readonly Piece[]): number[] {
    const ids: number[] = [];
    let text = "";
    const flush = (): void => {
      ids.push(...this.tokenizer.encode(text, { allowSpecial: false }));
      text = "";
    };
    for (const piece of pieces) {
      if (piece.written === "person") {
        text += piece.text;
        continue;
      }
      piece.text.split(this.special).forEach((part, i) => {
        if (i % 2 === 0) text += part;
        else {
          flush();
          ids.push(this.tokenizer.tokenToId(part)!);
        }
      });
    }
    flush();
    return ids;
  }
}

/** Where the last words of a person end; 0 when the template hides them. */
function afterPerson(pieces: readonly Piece[]): number {
  const last = pieces.findLastIndex((p) => p.written === "person");
  return textOf(pieces.slice(0, last + 1)).length;
}
const textOf = (pieces: readonly Piece[]): string => pieces.map((p) => p.text).join("");
function from(pieces: readonly Piece[], start: number): Piece[] {
  let skip = start;
  return pieces.flatMap((p) => {
    const cut = Math.min(skip, p.text.length);
    skip -= cut;
    return cut === p.text.length ? [] : [{ ...p, text: p.text.slice(cut) }];
  });
}
function upTo(pieces: readonly Piece[], end: number): Piece[] {
  let left = end;
  return pieces.flatMap((p) => {
    const text = p.text.slice(0, left);
    left -= text.length;
    return text === "" ? [] : [{ ...p, text }];
  });
}
