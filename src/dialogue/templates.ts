/**
 * Chat templates: how a conversation becomes one text. A template is Jinja, stored in tokenizer_config.json, so that
 * Hugging Face's apply_chat_template renders what was trained.
 *
 *   notes    the LLaMA format of the notes (4.2.2): content is the instruction and the input, joined
 *   alpaca   Stanford Alpaca's, with its preamble and ### Input:
 *   chatml   <|im_start|>role ... <|im_end|>
 *
 * Every reply ends with an end-of-turn token of its own, which differs from the pad token: were they one, the masking
 * of padding would also hide the token that teaches the model to stop.
 */
import { Template } from "@huggingface/jinja";
import { UserError } from "../run/errors.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
  /** Alpaca's `input`, which templates join to the content or set apart. */
  input?: string;
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

export const TEMPLATES: Record<string, NamedTemplate> = {
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
export const TEMPLATE_NAMES = Object.keys(TEMPLATES);

/** Puts a named template into the tokenizer: its special tokens (new ones get the next ids), eos, pad and chat_template. */
export function installTemplate(tokenizer: Tokenizer, name: string): void {
  const template = TEMPLATES[name];
  if (!template) throw new UserError(`template is "${name}"; it must be ${TEMPLATE_NAMES.join(", ")}.`, 2);
  tokenizer.addSpecialTokens(template.specialTokens);
  Object.assign(tokenizer.config, { chat_template: template.jinja, eos_token: template.endOfTurn, pad_token: PAD });
}

/** A conversation format that a tokenizer knows: renders messages, and names the token that ends a reply. */
export interface ChatTemplate {
  render(messages: readonly Message[], addGenerationPrompt: boolean): string;
  readonly endOfTurn: string;
}

/** The template that a folder brings in its tokenizer_config.json. */
export function templateOf(tokenizer: Tokenizer): ChatTemplate {
  const source = tokenizer.chatTemplate;
  if (source === undefined)
    throw new UserError(
      `This tokenizer has no chat template: the model is a base model. Fine-tune it first (lyceum sft), or name a template (${TEMPLATE_NAMES.join(", ")}).`,
    );
  const token = (key: string): string => {
    const value = tokenizer.config[key] as string | { content: string } | null | undefined;
    return typeof value === "string" ? value : (value?.content ?? "");
  };
  const [bos_token, eos_token, pad_token] = ["bos_token", "eos_token", "pad_token"].map(token);
  if (eos_token === "")
    throw new UserError("This tokenizer has a chat template but no eos_token: a reply could never end.");
  if (eos_token === pad_token)
    throw new UserError(
      `This tokenizer uses ${eos_token} to end a reply and to pad. Masking the padding would hide the end: they must differ.`,
    );
  let template: Template;
  try {
    template = new Template(source);
  } catch (error) {
    throw new UserError(`The chat template of this tokenizer is not valid Jinja: ${(error as Error).message}`);
  }
  return {
    endOfTurn: eos_token,
    render(messages, addGenerationPrompt) {
      try {
        return template.render({
          messages,
          add_generation_prompt: addGenerationPrompt,
          bos_token,
          eos_token,
          pad_token,
        });
      } catch (error) {
        throw new UserError(`The chat template cannot render this conversation: ${(error as Error).message}`);
      }
    },
  };
}
