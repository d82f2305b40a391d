/** Who answers prompts in words: a checkpoint of one's own, or any service that speaks OpenAI's chat completions. */
import { setTimeout } from "node:timers/promises";
import { generate } from "../generate/generate.js";
import { loadForGeneration } from "../generate/loaded.js";
import { UserError } from "../run/errors.js";
import { DialogueEncoder } from "./mask.js";

export interface Answer {
  text: string;
  /** False: the answer was cut off at maxTokens. */
  whole: boolean;
}
export interface Teacher {
  /** Noted in each record. */
  name: string;
  /**
   * An answer to each prompt. `first`: number of the first of them in the whole run; with it a sample is a function of the
   * seed and the prompt's number. Throws UserError when there is no answer to be had.
   */
  ask(prompts: readonly string[], first: number): Promise<Answer[]>;
  close(): void;
}
export interface TeacherOptions {
  /** The model's name, for a service. */
  model?: string;
  temperature: number;
  maxTokens: number;
  seed: number;
  /** For a service: requests a minute at most; seconds until one is given up; times it is tried again. */
  perMinute: number;
  timeout: number;
  retries: number;
  /** Seconds before the first new try; each further one waits twice as long. */
  pause?: number;
  /** Told what a service does not take, and why it is asked again. */
  note?: (text: string) => void;
}

/** `source`: a model's folder, or the address of a service, such as http://localhost:8000/v1. */
export function openTeacher(source: string, options: TeacherOptions): Teacher {
  return /^https?:\/\//i.test(source) ? new Service(source, options) : checkpoint(source, options);
}

/** Fewer tokens than this hold no task. */
const LEAST_ROOM = 64;

function checkpoint(dir: string, { temperature, maxTokens, seed }: TeacherOptions): Teacher {
  const { model, tokenizer, stop } = loadForGeneration(dir);
  const encoder = tokenizer.chatTemplate === undefined ? undefined : new DialogueEncoder(tokenizer);
  const context = model.config.maxPositionEmbeddings;
  return {
    name: dir,
    async ask(prompts, first) {
      const ids = prompts.map((p) =>
        encoder
          ? encoder.prompt([{ role: "user", content: p }])
          : // A base model goes on with the text: its line must be at an end.
            tokenizer.encode(`${p}\n`, { addSpecialTokens: true }),
      );
      const longest = ids.reduce((n, { length }) => Math.max(n, length), 0);
      if (longest + LEAST_ROOM > context)
        throw new UserError(
          `${dir} cannot teach: a prompt has ${longest} tokens, and its context of ${context} leaves no room for an answer. ` +
            "The least that can be shown and asked is --examples 1 --tasks 1; if that is too long, take a teacher with a longer context.",
        );
      return generate(model, ids, { maxTokens, temperature, seed, stop, firstRow: first }).map((reply) => ({
        text: tokenizer.decode(reply.ids, { skipSpecialTokens: true }),
        whole: reply.finish === "stop",
      }));
    },
    close: () => model.close(),
  };
}

/** What a service answers when another try may go better: too many requests, or something broken on its side. */
const passing = (status: number): boolean => status === 408 || status === 429 || status >= 500;
/** Node's own limit for the first byte of an answer is five minutes; a longer one would never be reached. */
const LONGEST_TIMEOUT = 300;

class Service implements Teacher {
  readonly name: string;
  private readonly url: string;
  private readonly key = process.env.OPENAI_API_KEY;
  /** What is asked besides the messages. Services differ in what they take: what one refuses is left out from then on. */
  private readonly settings: Record<string, unknown>;
  /** When the next request may leave. */
  private next = 0;

  constructor(
    source: string,
    private readonly options: TeacherOptions,
  ) {
    const { model, temperature, maxTokens, timeout } = options;
    if (!URL.canParse(source)) throw new UserError(`--teacher is "${source}", which is no address of a service.`, 2);
    const { username, password, search } = new URL(source);
    // It would stand in every record, and in what is printed.
    if (username || password || search)
      throw new UserError("--teacher is an address without a user or a ?query; a key belongs into OPENAI_API_KEY.", 2);
    if (!model) throw new UserError(`--model is missing: which model should ${source} answer with?`, 2);
    if (timeout > LONGEST_TIMEOUT)
      throw new UserError(`--timeout is ${timeout}; it must be at most ${LONGEST_TIMEOUT} seconds.`, 2);
    const base = source.replace(/\/+$/, "").replace(/\/chat\/completions$/, "");
    this.url = `${base}/chat/completions`;
    this.name = `${model} at ${base}`;
    this.settings = { temperature, max_tokens: maxTokens, seed: 0 };
  }

  async ask(prompts: readonly string[], first: number): Promise<Answer[]> {
    // When one cannot be had, the others are not waited for.
    const stopped = new AbortController();
    try {
      return await Promise.all(prompts.map((prompt, i) => this.answer(prompt, first + i, stopped.signal)));
    } finally {
      stopped.abort();
    }
  }

  close(): void {}

  private async answer(prompt: string, number: number, stopped: AbortSignal): Promise<Answer> {
    const { retries, pause = 1, perMinute, seed } = this.options;
    for (let tries = 0; ; ) {
      const now = performance.now();
      const start = Math.max(now, this.next);
      this.next = start + 60_000 / perMinute;
      if (start > now) await setTimeout(start - now, undefined, { signal: stopped });
      // 31 bits: some services keep no more of a seed.
      const result = await this.attempt(prompt, ((seed % 2 ** 31) * 1_000_003 + number) % 2 ** 31, stopped);
      if ("text" in result) return result;
      if (result.changed) continue;
      if (tries++ >= retries)
        throw new UserError(`${this.url} gave no answer in ${tries} tries; at last ${result.why}. ${RESUME}`);
      const wait = result.wait ?? Math.min(60, pause * 2 ** (tries - 1));
      this.options.note?.(`${this.name}: ${result.why}. Asked again in ${Math.ceil(wait)} s.`);
      await setTimeout(1000 * wait, undefined, { signal: stopped });
    }
  }

  /** One try: an answer, or why there is none and how many seconds to wait. */
  private async attempt(prompt: string, seed: number, stopped: AbortSignal): Promise<Answer | Failure> {
    const { model, timeout } = this.options;
    const settings = { ...this.settings, ...("seed" in this.settings && { seed }) };
    try {
      const response = await fetch(this.url, {
        method: "POST",
        headers: {
          "content-type": "application/json",
          ...(this.key && { authorization: `Bearer ${this.key}` }),
        },
        body: JSON.stringify({ model, messages: [{ role: "user", content: prompt }], ...settings }),
        signal: AbortSignal.any([AbortSignal.timeout(timeout * 1000), stopped]),
      });
      const text = await response.text();
      return response.ok ? answerIn(text) : this.refusal(response, text, settings);
    } catch (error) {
      if (error instanceof UserError || stopped.aborted) throw error;
      const { name, message, cause } = error as Error & { cause?: Error & { code?: string } };
      if (name === "TimeoutError") return { why: `it did not answer within ${timeout} seconds` };
      return { why: [message, cause?.message || cause?.code].filter(Boolean).join(": ") };
    }
  }

  /** What to do about an answer that is an error. Throws UserError when no other try can go better. */
  private refusal(response: Response, text: string, sent: object): Failure {
    const { status, statusText, headers } = response;
    const why = `it answered ${`${status} ${statusText}`.trim()}: ${text.trim().slice(0, 300) || "(nothing)"}`;
    // Too many requests, but more patience would not help: the account is empty.
    if (passing(status) && !text.includes("insufficient_quota")) return { why, wait: retryAfter(headers) };
    const refused = REFUSED.test(text) && (status === 400 || status === 422) && this.leaveOut(sent, text);
    if (refused) return { why, changed: true };
    const unknown = status === 401 || status === 403;
    const hint = unknown ? ` The key is read from OPENAI_API_KEY, which is ${this.key ? "set" : "not set"}.` : "";
    throw new UserError(`${this.url}: ${why}.${hint} ${RESUME}`);
  }

  /** Leaves out the first setting that the answer names, for all requests to come; false where it names none. */
  private leaveOut(sent: object, answer: string): boolean {
    const named = Object.keys(sent).find((key) => key !== "max_completion_tokens" && answer.includes(key));
    if (named === undefined) return false;
    // Another request may have met the same answer before.
    if (!(named in this.settings)) return true;
    if (named === "max_tokens") this.settings.max_completion_tokens = this.settings.max_tokens;
    else
      this.options.note?.(
        `${this.name} does not take a ${named} of ${this.options[named as "seed"]}: its own is used.`,
      );
    delete this.settings[named];
    return true;
  }
}

const REFUSED =
  /unsupported|not supported|does not support|unknown|unrecogni[sz]ed|unexpected|extra |not permitted|not allowed/i;
const RESUME = "What has grown is kept; --resume goes on.";

interface Failure {
  why: string;
  wait?: number;
  /** The next try differs, and does not count. */
  changed?: boolean;
}

function answerIn(text: string): Answer | Failure {
  let body: { choices?: { message?: { content?: unknown; refusal?: unknown }; finish_reason?: unknown }[] };
  try {
    body = JSON.parse(text) as typeof body;
  } catch {
    return { why: `its answer is not JSON: ${text.slice(0, 300)}` };
  }
  const choice = Array.isArray(body?.choices) ? body.choices[0] : undefined;
  const said = choice?.message?.content ?? choice?.message?.refusal;
  if (typeof said === "string") return { text: said, whole: choice?.finish_reason !== "length" };
  return { why: `its answer holds no message: ${text.slice(0, 300)}` };
}

/** Seconds that a service asks to wait, told as such or as a date (RFC 9110, section 10.2.3). */
function retryAfter(headers: Headers): number | undefined {
  const value = headers.get("retry-after");
  if (value === null) return undefined;
  const seconds = Number.isNaN(Number(value)) ? (Date.parse(value) - Date.now()) / 1000 : Number(value);
  return seconds > 0 ? seconds : undefined;
}
