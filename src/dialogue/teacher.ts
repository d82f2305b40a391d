/** Who answers a prompt in words: a checkpoint of one's own, or any service that speaks OpenAI's chat completions. */
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
  name: string;
  /** Throws a UserError when there is no answer to be had. */
  answer(prompt: string, seed: number): Promise<Answer>;
  close(): void;
}
export interface TeacherOptions {
  /** The model's name, for a service. */
  model?: string;
  temperature: number;
  maxTokens: number;
  /** For a service: requests a minute at most; seconds until one is given up; times it is tried again. */
  perMinute: number;
  timeout: number;
  retries: number;
  /** Seconds before the first new try; each further one waits twice as long. */
  pause?: number;
}

/** `source`: a model's folder, or the address of a service, such as http://localhost:8000/v1. */
export function openTeacher(source: string, options: TeacherOptions): Teacher {
  return /^https?:\/\//.test(source) ? service(source.replace(/\/+$/, ""), options) : checkpoint(source, options);
}

function checkpoint(dir: string, { temperature, maxTokens }: TeacherOptions): Teacher {
  const { model, tokenizer, stop } = loadForGeneration(dir);
  const encoder = tokenizer.chatTemplate === undefined ? undefined : new DialogueEncoder(tokenizer);
  return {
    name: dir,
    async answer(prompt, seed) {
      const ids = encoder ? encoder.prompt([{ role: "user", content: prompt }]) : tokenizer.encode(prompt);
      const [reply] = generate(model, [ids], { maxTokens, temperature, seed, stop });
      return { text: tokenizer.decode(reply.ids, { skipSpecialTokens: true }), whole: reply.finish === "stop" };
    },
    close: () => model.close(),
  };
}

/** What a service answers when another try may go better: too many requests, or something broken on its side. */
const passing = (status: number): boolean => status === 408 || status === 429 || status >= 500;

function service(url: string, o: TeacherOptions): Teacher {
  const { model } = o;
  if (!model) throw new UserError(`--model is missing: which model should ${url} answer with?`, 2);
  const key = process.env.OPENAI_API_KEY;
  let next = 0;

  /** One try: an answer, or why there is none and how long to wait. */
  const attempt = async (body: string): Promise<Answer | { why: string; wait?: number }> => {
    let response: Response;
    try {
      response = await fetch(`${url}/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) },
        body,
        signal: AbortSignal.timeout(o.timeout * 1000),
      });
      const text = await response.text();
      if (!response.ok) {
        const why = `it answered ${response.status} ${response.statusText}: ${text.slice(0, 300)}`;
        if (!passing(response.status)) {
          const hint = response.status === 401 ? " The key is read from the environment variable OPENAI_API_KEY." : "";
          throw new UserError(`${url}: ${why}.${hint}`);
        }
        const after = Number(response.headers.get("retry-after"));
        return { why, ...(after > 0 && { wait: after }) };
      }
      const [choice] = (
        JSON.parse(text) as { choices?: { message?: { content?: unknown }; finish_reason?: unknown }[] }
      ).choices ?? [undefined];
      const content = choice?.message?.content;
      if (typeof content !== "string") return { why: `its answer holds no message: ${text.slice(0, 300)}` };
      return { text: content, whole: choice?.finish_reason !== "length" };
    } catch (error) {
      if (error instanceof UserError) throw error;
      const { name, message, cause } = error as Error & { cause?: Error };
      if (name === "TimeoutError") return { why: `it did not answer within ${o.timeout} seconds` };
      return {
        why: error instanceof SyntaxError ? "its answer is not JSON" : `${message} ${cause?.message ?? ""}`.trim(),
      };
    }
  };

  return {
    name: `${model} at ${url}`,
    close: () => {},
    async answer(prompt, seed) {
      const body = JSON.stringify({
        model,
        messages: [{ role: "user", content: prompt }],
        temperature: o.temperature,
        max_tokens: o.maxTokens,
        seed,
      });
      for (let tries = 0; ; tries++) {
        const now = performance.now();
        if (now < next) await setTimeout(next - now);
        next = Math.max(now, next) + 60_000 / o.perMinute;
        const result = await attempt(body);
        if ("text" in result) return result;
        if (tries >= o.retries)
          throw new UserError(`${url} gave no answer in ${tries + 1} tries; at last ${result.why}.`);
        await setTimeout(1000 * (result.wait ?? (o.pause ?? 1) * 2 ** tries));
      }
    },
  };
}
