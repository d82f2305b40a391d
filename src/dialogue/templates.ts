/**
 * Chat templates: how a conversation becomes one text. A template is Jinja, stored in tokenizer_config.json, so that
 * Hugging Face's apply_chat_template renders what was trained.
 *
 *   notes    the LLaMA format of the notes (4.2.2): content is the instruction and the input, joined
 *   alpaca   Stanford Alpaca's, with its preamble and ### Input:
 *   chatml   <|im_start|>role ... <|im_end|>
 *
 * Every reply ends with an end-of-turn token of its own, which differs from the pad token: were they one, a program that
 * masks padding by its token would also hide the one that teaches the model to stop.
 */
import { UserError } from "../run/errors.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import { compileJinja } from "./jinja.js";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
  /** Alpaca's `input`, which templates join to the content or set apart. */
  input?: string;
  /** 0: a reply that is read, and not learned. */
  weight?: 0;
}

interface NamedTemplate {
  jinja: string;
  endOfTurn: string;
  specialTokens: readonly string[];
}

const PAD = "<|pad|>";
const turns = (system: string, user: string, assistant: string, prompt = ""): string =>
  `{%- for message in messages -%}{%- if message.role == 'system' -%}${system}{%- elif message.role == 'user' -%}${user}{%- else -%}${assistant}{%- endif -%}{%- endfor -%}${
    prompt && `{%- if add_generation_prompt -%}${prompt}{%- endif -%}`
  }`;
const ALPACA_TASK = "Below is an instruction that describes a task";
const ALPACA_WRITE = "Write a response that appropriately completes the request.\\n\\n";

export const TEMPLATE_NAMES = ["notes", "alpaca", "chatml"] as const;
type TemplateName = (typeof TEMPLATE_NAMES)[number];

export const TEMPLATES: Record<TemplateName, NamedTemplate> = {
  notes: {
    jinja: turns(
      "{{- message.content + '\\n\\n' -}}",
      "{{- '### Instruction:\\n' + message.content + (message.input or '') + '\\n\\n### Response:\\n' -}}",
      "{{- message.content + '<|end|>' -}}",
    ),
    endOfTurn: "<|end|>",
    specialTokens: ["<|end|>", PAD],
  },
  alpaca: {
    jinja: turns(
      "{{- message.content + '\\n\\n' -}}",
      `{%- if message.input -%}{{- ('${ALPACA_TASK}, paired with an input that provides further context. ${ALPACA_WRITE}' if loop.first else '') + '### Instruction:\\n' + message.content + '\\n\\n### Input:\\n' + message.input + '\\n\\n### Response:' -}}{%- else -%}{{- ('${ALPACA_TASK}. ${ALPACA_WRITE}' if loop.first else '') + '### Instruction:\\n' + message.content + '\\n\\n### Response:' -}}{%- endif -%}`,
      "{{- message.content + '<|end|>' -}}",
    ),
    endOfTurn: "<|end|>",
    specialTokens: ["<|end|>", PAD],
  },
  chatml: {
    jinja: turns(
      "{{- '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' -}}",
      "{{- '<|im_start|>user\\n' + message.content + (message.input or '') + '<|im_end|>\\n' -}}",
      "{{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' -}}",
      "{{- '<|im_start|>assistant\\n' -}}",
    ),
    endOfTurn: "<|im_end|>",
    specialTokens: ["<|im_end|>", "<|im_start|>", PAD],
  },
};

/** Puts a named template into the tokenizer: its special tokens (new ones get the next ids), eos, pad and chat_template. */
export function installTemplate(tokenizer: Tokenizer, name: TemplateName): void {
  const template = TEMPLATES[name];
  tokenizer.addSpecialTokens(template.specialTokens);
  Object.assign(tokenizer.config, { chat_template: template.jinja, eos_token: template.endOfTurn, pad_token: PAD });
}

/** A conversation format that a tokenizer knows: renders messages, and names the token that ends a reply. */
export interface ChatTemplate {
  /** For messages to people: "the chat template notes", or that it is the tokenizer's own. */
  readonly name: string;
  /**
   * Whether it prints contents as they are, and one message after the other: of each it asks for its role, which of its
   * texts are empty, and whether it is the first. So do the named ones.
   */
  readonly verbatim: boolean;
  readonly endOfTurn: string;
  /**
   * As Hugging Face's apply_chat_template. Alpaca's input is joined to the content where the template knows nothing of
   * it: it would else be lost. Throws RecordError when the template refuses the messages.
   */
  render(messages: readonly Message[], addGenerationPrompt: boolean): string;
  /** The same with REPLY_START and REPLY_END around what {% generation %} encloses; undefined: it has no such markers. */
  readonly renderMarked: ChatTemplate["render"] | undefined;
}

/** These messages cannot be had in this format, though others can: a record to set aside, or a chat to end. */
export class RecordError extends UserError {}

/** Private-use characters that stand where {% generation %} and {% endgeneration %} stand in a template. */
export const REPLY_START = "\uE0F2";
export const REPLY_END = "\uE0F3";

/**
 * The template that a folder brings in its tokenizer_config.json: any of Hugging Face's.
 * Throws UserError when there is none, when it is no Jinja, or when no token ends a reply.
 */
export function templateOf(tokenizer: Tokenizer): ChatTemplate {
  const source = sourceOf(tokenizer);
  const named = TEMPLATE_NAMES.find((name) => TEMPLATES[name].jinja === source);
  const name = named ? `the chat template ${named}` : "the tokenizer's chat template";
  const tokens = specialTokens(tokenizer);
  if (!tokens.eos_token)
    throw new UserError("This tokenizer has a chat template but no eos_token: a reply could never end.");
  const compile = (jinja: string): ChatTemplate["render"] => {
    let template: ReturnType<typeof compileJinja>;
    try {
      template = compileJinja(jinja);
    } catch (error) {
      throw new UserError(`There is no valid Jinja in ${name}: ${(error as Error).message}`);
    }
    const print = (messages: readonly Message[], addGenerationPrompt: boolean): string => {
      try {
        // tools and documents are None and not undefined, as Transformers passes them: templates ask `is not none`.
        const given = { messages, tools: null, documents: null, add_generation_prompt: addGenerationPrompt };
        return template({ ...tokens, ...given });
      } catch (error) {
        throw new RecordError(`The messages are refused by ${name}: ${(error as Error).message}`);
      }
    };
    const knows = knowsInput(print);
    return (messages, addGenerationPrompt) => print(knows ? messages : messages.map(joined), addGenerationPrompt);
  };
  const marked = withMarks(source);
  return {
    name,
    verbatim: named !== undefined,
    endOfTurn: tokens.eos_token,
    render: compile(source),
    renderMarked: marked === source ? undefined : compile(marked),
  };
}

/** Whether a template prints a message's input. */
function knowsInput(render: ChatTemplate["render"]): boolean {
  const probe = "\uE0F4";
  try {
    return render([{ role: "user", content: "a", input: probe }], true).includes(probe);
  } catch {
    return false; // it wants more than one message, and says so when a conversation is rendered
  }
}
/** The instruction and its input as one content, as in the notes (4.2.2). */
export const contentOf = ({ content, input = "" }: Message): string => content + input;
const joined = (m: Message): Message => ({ role: m.role, content: contentOf(m) });

/** The Jinja text: a string, or the entry `default` of the list that older folders have. */
function sourceOf(tokenizer: Tokenizer): string {
  const found = tokenizer.config.chat_template as string | { name: string; template: string }[] | null | undefined;
  const source = Array.isArray(found) ? found.find((t) => t.name === "default")?.template : found;
  if (typeof source === "string") return source;
  if (Array.isArray(found))
    throw new UserError(
      `This tokenizer has chat templates (${found.map((t) => t.name).join(", ")}), but none that is named "default".`,
    );
  throw new UserError(
    "This tokenizer has no chat template: the model is a base model. Fine-tune it first (lyceum sft), which puts one in.",
  );
}

/** bos_token, eos_token and their like, as far as they are set. */
function specialTokens(tokenizer: Tokenizer): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [key, value] of Object.entries(tokenizer.config)) {
    if (!key.endsWith("_token")) continue;
    const content = typeof value === "string" ? value : (value as { content?: unknown } | null)?.content;
    if (typeof content === "string" && content !== "") tokens[key] = content;
  }
  return tokens;
}

/** {% generation %} as a block that prints a mark, so that line breaks around it are treated as around any block. */
function withMarks(source: string): string {
  return source.replace(
    /\{%(-?)\s*(end)?generation\s*(-?)%\}/g,
    (_, left: string, end: string | undefined, right: string) =>
      `{%${left} if true %}{{- '${end ? REPLY_END : REPLY_START}' -}}{% endif ${right}%}`,
  );
}
