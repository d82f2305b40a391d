/**
 * From a conversation to tokens, and which of them are trained: the replies and the token that ends each of them.
 *
 * The mask comes from the template's spans, never from searching for tokens: a reply begins where the conversation before
 * it, rendered with the generation prompt, ends; or a template marks its replies with {% generation %}. No token reaches
 * over the beginning of a reply, so that training sees the same boundary between prompt and reply as generation.
 */
import { UserError } from "../run/errors.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import { Renderer, type Rendering, RenderingEncoder, type Span } from "./rendering.js";
import { type ChatTemplate, type Message, REPLY_START, RecordError, templateOf } from "./templates.js";

export interface Sample {
  ids: Int32Array;
  /** 1: this token is a target. */
  trainable: Uint8Array;
  /** Tokens of the conversation that no sample has, since they are beyond maxLength; told by its last sample. */
  cut?: number;
}

/** Where the reply of a sample with one trained reply begins. */
export const replyStart = (sample: Sample): number => sample.trainable.indexOf(1);

/** The three constructions of multi-turn samples in the notes (4.2.2). */
export const CONSTRUCTIONS = ["all", "last", "split"] as const;
export type Construction = (typeof CONSTRUCTIONS)[number];

const ROLES = ["system", "user", "assistant"];

export class DialogueEncoder {
  private readonly template: ChatTemplate;
  private readonly encoder: RenderingEncoder;
  private readonly renderer: Renderer;

  /** Throws UserError when the tokenizer has no chat template, or one that cannot be used. */
  constructor(tokenizer: Tokenizer) {
    this.template = templateOf(tokenizer);
    this.encoder = new RenderingEncoder(tokenizer);
    this.renderer = new Renderer(this.template, this.encoder.looksSpecial);
  }

  /** The tokens to generate a reply from: the conversation, and the generation prompt. Throws UserError when they cannot be rendered. */
  prompt(messages: readonly Message[]): Int32Array {
    for (const { role } of messages)
      if (!ROLES.includes(role))
        throw new RecordError(`A message has the role ${JSON.stringify(role)}; it must be ${ROLES.join(", ")}.`);
    const rendering = this.renderer.render(messages, true);
    const borders = new Prefixes(this.renderer, messages).starts(messages.length, rendering);
    return Int32Array.from(this.encoder.encode(rendering, { start: 0, end: rendering.text.length }, borders));
  }

  /** What the template writes between the generation prompt and a reply: an empty thought (Qwen3), mostly nothing. */
  beforeReply(messages: readonly Message[]): string {
    const mark = REPLY_START;
    const [prompt, whole] = [messages, [...messages, { role: "assistant" as const, content: mark }]].map((list, i) =>
      this.renderer.text(list, i === 0),
    );
    return whole.startsWith(prompt) ? whole.slice(prompt.length, Math.max(prompt.length, whole.indexOf(mark))) : "";
  }

  /**
   * The samples of a conversation: one for `all` (every reply is a target) and for `last`, one per reply for `split`.
   * Cut at maxLength tokens. What the template writes after the last reply is left out. Returns the reason when no target
   * is left: the record cannot be trained on. Throws UserError when the template cannot be trained with. A pad token that
   * also ends replies does no harm: nothing is padded, and the mask does not look for tokens.
   */
  samples(
    messages: readonly Message[],
    construction: Construction,
    maxLength: number,
  ): Sample[] | { rejected: string } {
    const asked = messages.flatMap((m, i) => (m.role === "assistant" && m.weight !== 0 ? [i] : []));
    const last = asked.at(-1);
    if (last === undefined) return { rejected: "there is no reply in it" };
    let whole: Sample[];
    try {
      const prefixes = new Prefixes(this.renderer, messages);
      if (construction === "all") whole = [this.sample(messages.slice(0, last + 1), asked, prefixes)];
      else
        whole = (construction === "last" ? [last] : asked).map((i) =>
          this.sample(messages.slice(0, i + 1), [i], prefixes),
        );
    } catch (error) {
      if (error instanceof RecordError) return { rejected: error.message };
      throw error;
    }
    // Token 0 is never predicted: a target there teaches nothing.
    const kept = whole
      .map(({ ids, trainable }): Sample => ({ ids: ids.slice(0, maxLength), trainable: trainable.slice(0, maxLength) }))
      .filter((s) => s.trainable.indexOf(1, 1) > 0);
    if (kept.length === 0) return { rejected: `no token of a reply is within the first ${maxLength} tokens` };
    const cut = whole[whole.length - 1].ids.length - maxLength;
    if (cut > 0) kept[kept.length - 1].cut = cut;
    return kept;
  }

  /** The messages as one sample. `trained`: the numbers of the messages whose tokens are targets. */
  private sample(messages: readonly Message[], trained: readonly number[], prefixes: Prefixes): Sample {
    const rendering = this.renderer.render(messages, false);
    prefixes.know(messages.length - 1, rendering.text);
    const borders = prefixes.starts(messages.length, rendering);
    const ids: number[] = [];
    const trainable: number[] = [];
    let at = 0;
    const add = (span: Span, flag: number): void => {
      for (const id of this.encoder.encode(rendering, span, borders)) {
        ids.push(id);
        trainable.push(flag);
      }
      at = span.end;
    };
    const replies = rendering.marked
      ? this.markedReplies(rendering, messages, trained)
      : trained.map((i) => this.reply(rendering, i, prefixes));
    for (const reply of replies) {
      add({ start: at, end: reply.start }, 0);
      add(reply, 1);
    }
    return { ids: Int32Array.from(ids), trainable: Uint8Array.from(trainable) };
  }

  /** The place of reply `i`: from the end of the prompt before it to the end of its end-of-turn token. */
  private reply({ text, people }: Rendering, i: number, prefixes: Prefixes): Span {
    const { name, endOfTurn } = this.template;
    const prompt = prefixes.prompt(i);
    const start = prompt.length;
    const said = people.find((p) => p.message === i);
    const end = text.indexOf(endOfTurn, said?.end ?? start) + endOfTurn.length;
    if (end < endOfTurn.length) throw this.noEnd();
    const alone = prefixes.full(i);
    if (!text.startsWith(prompt) || (said && said.start < start) || !alone.startsWith(text.slice(0, end)))
      throw new UserError(
        `A reply's place in the text is not certain: ${name} writes turns differently when later ones follow. ` +
          `Use one of the named templates (notes, alpaca, chatml)${alone === text ? "" : ", or data.construction split"}.`,
      );
    return { start, end };
  }

  /** What {% generation %} encloses, of the messages in `trained`; with the end-of-turn token, without line breaks after it. */
  private markedReplies(
    { text, marked = [] }: Rendering,
    messages: readonly Message[],
    trained: readonly number[],
  ): Span[] {
    const { endOfTurn, name } = this.template;
    const replies = messages.flatMap((m, i) => (m.role === "assistant" ? [i] : []));
    const before =
      trained.length > 1 ? 0 : (this.renderer.render(messages.slice(0, trained[0]), true).marked?.length ?? 0);
    // A mark for each reply: then which are which is certain.
    const wanted =
      marked.length === replies.length ? marked.filter((_, k) => trained.includes(replies[k])) : marked.slice(before);
    if (marked.length !== replies.length && trained.length > 1 && trained.length < replies.length)
      throw new UserError(
        `Some replies of a conversation have the weight 0, and ${name} marks ${marked.length} spans in ${replies.length} replies: which of them are to be learned is not certain.`,
      );
    const spans = wanted.map(({ start, end }) => {
      if (text.startsWith(endOfTurn, end)) return { start, end: end + endOfTurn.length };
      return { start, end: start + text.slice(start, end).trimEnd().length };
    });
    const last = spans.at(-1);
    if (!last) throw new UserError(`No reply is within {% generation %} in ${name}, though it has such markers.`);
    if (!text.slice(last.start, last.end).endsWith(endOfTurn)) throw this.noEnd();
    return spans;
  }

  private noEnd(): UserError {
    const { name, endOfTurn } = this.template;
    return new UserError(
      `A reply does not end with ${endOfTurn}, the eos_token, in ${name}: the model could not learn to stop. ` +
        `Correct eos_token in tokenizer_config.json, or use one of the named templates (notes, alpaca, chatml).`,
    );
  }
}

/** What a conversation looks like as far as each of its messages: rendered once each. */
class Prefixes {
  private readonly prompts = new Map<number, string>();
  private readonly wholes = new Map<number, string>();

  constructor(
    private readonly renderer: Renderer,
    private readonly messages: readonly Message[],
  ) {}

  know(i: number, full: string): void {
    this.wholes.set(i, full);
  }
  /** What message `i` answers, with the generation prompt. */
  prompt(i: number): string {
    return remembered(this.prompts, i, () => this.renderer.text(this.messages.slice(0, i), true));
  }
  /** The conversation that ends with message `i`. */
  full(i: number): string {
    return remembered(this.wholes, i, () => this.renderer.text(this.messages.slice(0, i + 1), false));
  }

  /** Where the replies among the first `count` messages begin, for generation and for {% generation %}. */
  starts(count: number, { text, marked = [] }: Rendering): number[] {
    const found = new Set(marked.map((m) => m.start));
    for (let i = 0; i < count; i++)
      if (this.messages[i].role === "assistant" && text.startsWith(this.prompt(i))) found.add(this.prompt(i).length);
    return [...found].sort((a, b) => a - b);
  }
}

function remembered(known: Map<number, string>, key: number, make: () => string): string {
  const found = known.get(key) ?? make();
  known.set(key, found);
  return found;
}
