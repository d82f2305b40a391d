/**
 * What reinforcement learning from feedback needs besides its loss: prompts, replies sampled from the policy, the
 * log-probabilities of their tokens, and someone who scores them.
 */
import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import type { Rejected } from "../corpus/read.js";
import type { Device } from "../device/device.js";
import type { DialogueEncoder } from "../dialogue/mask.js";
import { type EncodedReply, promptOf, replyBatch } from "../dialogue/preference.js";
import { jsonRecords, toConversation } from "../dialogue/records.js";
import type { Message } from "../dialogue/templates.js";
import { generate } from "../generate/generate.js";
import { hasScalarHead, loadLlama } from "../nn/folder.js";
import type { Llama, Precision } from "../nn/llama.js";
import type { Grid } from "../parallel/grid.js";
import { NonFiniteError, UserError } from "../run/errors.js";
import { Tape } from "../tensor/tensor.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { scoreSequences } from "./reward.js";

export interface Prompt {
  messages: Message[];
  ids: Int32Array;
  source: { file: string; line: number };
}

/** A reply that the policy gave: `ids` from `start` on, its stop token included when it came to one. */
export interface Episode extends EncodedReply {
  prompt: Prompt;
  text: string;
  finished: boolean;
}

/** Prompts of JSONL files: {prompt}, or instruction and conversation records, whose last reply is left out. */
export function readPrompts(
  files: readonly string[],
  encoder: DialogueEncoder,
  maxLength: number,
  rejected: Rejected[],
): Prompt[] {
  const prompts: Prompt[] = [];
  for (const file of files) {
    if (!existsSync(file)) throw new UserError(`${file} does not exist. It is named under prompts.`, 2);
    for (const { line, value, error } of jsonRecords(file)) {
      const messages = error ?? promptMessages(value);
      const reject = (reason: string): void => void rejected.push({ file, line, reason });
      if (typeof messages === "string") {
        reject(messages);
        continue;
      }
      const ids = encoder.prompt(messages);
      if (ids.length > maxLength)
        reject(`the prompt of ${ids.length} tokens leaves no room for a reply; at most ${maxLength} fit`);
      else prompts.push({ messages, ids, source: { file, line } });
    }
  }
  if (prompts.length === 0) {
    const why = rejected[0] ? ` ${rejected[0].file}:${rejected[0].line}: ${rejected[0].reason}.` : "";
    throw new UserError(`${files.join(", ")}: no prompt can be used.${why}`);
  }
  return prompts;
}
function promptMessages(record: unknown): Message[] | string {
  const r = record as Record<string, unknown> | null;
  if (r && (r.prompt !== undefined || r.question !== undefined)) return promptOf({ prompt: r.prompt ?? r.question });
  const conversation = toConversation(record);
  return typeof conversation === "string" ? conversation : conversation.messages.slice(0, -1);
}

export interface RolloutOptions {
  maxTokens: number;
  temperature: number;
  seed: number;
  /** Number of the first prompt, where processes share the prompts among them. */
  firstRow?: number;
}

/** One reply to each prompt, sampled from the policy itself: no top-k, no top-p. */
export function rollout(policy: Llama, tokenizer: Tokenizer, prompts: readonly Prompt[], o: RolloutOptions): Episode[] {
  const stop = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  const replies = generate(
    policy,
    prompts.map((p) => p.ids),
    { ...o, topK: 0, topP: 1, stop },
  );
  return replies.map(({ ids, finish }, i) => ({
    prompt: prompts[i],
    ids: Int32Array.from([...prompts[i].ids, ...ids]),
    start: prompts[i].ids.length,
    text: tokenizer.decode(ids, { skipSpecialTokens: true }),
    finished: finish === "stop",
  }));
}

/** For each episode a number for each of its reply tokens. */
export type PerToken = Float32Array[];

/** log p of the reply tokens under softmax(logits / temperature). */
export function replyLogProbs(
  model: Llama,
  episodes: readonly EncodedReply[],
  temperature: number,
  batchSize = 32,
): PerToken {
  return perToken(model, episodes, batchSize, (tape, batch) =>
    model.logProbs(tape, batch, batch.targets, temperature).toArray(),
  );
}

/** The value before each reply token: the head's number at the token that precedes it. */
export function replyValues(critic: Llama, episodes: readonly EncodedReply[], batchSize = 32): PerToken {
  return perToken(critic, episodes, batchSize, (tape, batch) => critic.values(tape, batch).toArray());
}

function perToken(
  model: Llama,
  episodes: readonly EncodedReply[],
  batchSize: number,
  forward: (tape: Tape, batch: ReturnType<typeof replyBatch>) => Float32Array,
): PerToken {
  const tape = new Tape(model.device, false);
  const found: PerToken = [];
  for (let i = 0; i < episodes.length; i += batchSize) {
    const batch = replyBatch(episodes.slice(i, i + batchSize));
    const all = forward(tape, batch);
    for (const { from, to } of batch.spans) found.push(all.slice(from, to));
    tape.reset();
  }
  tape.arena.close();
  return found;
}

/** Who says how good replies are: a reward model, or a function in a JavaScript module. */
export interface Judge {
  name: string;
  score(episodes: readonly Episode[]): Promise<number[]>;
  /** Bytes of memory that it holds. */
  bytes: number;
  close(): void;
}

/**
 * `source`: the folder of a reward model, or a .js / .mjs module whose default export is (prompt, reply) => number.
 * Throws UserError when the reward model has another tokenizer than the policy, or the module is not what it should be.
 */
export async function openJudge(
  source: string,
  device: Device,
  precision: Precision,
  tokenizer: Tokenizer,
  policy: string,
  grid?: Grid,
): Promise<Judge> {
  if (/\.[cm]?js$/.test(source)) return moduleJudge(source);
  if (/\.[cm]?ts$/.test(source))
    throw new UserError(`${source} is TypeScript; compile it first (npx tsc ${source}) and name the .js file.`, 2);
  if (!existsSync(`${source}/config.json`))
    throw new UserError(`${source} is neither a model folder nor a .js or .mjs module.`, 2);
  if (!hasScalarHead(source))
    throw new UserError(
      `${source} is a language model, not a reward model: there is no score.weight in it. Train one with lyceum reward.`,
    );
  const own = Tokenizer.load(source);
  if (own.fingerprint !== tokenizer.fingerprint)
    throw new UserError(
      `The reward model ${source} and the policy ${policy} have different tokenizers: their tokens mean different things. Train the reward model from the policy's family.`,
    );
  const model = loadLlama(device, source, precision, {
    head: "scalar",
    trainable: false,
    name: "reward",
    ...(grid && { grid }),
  });
  const mean = rewardMean(source);
  return {
    name: source,
    bytes: model.parameters.count * (precision === "bf16" ? 2 : 4),
    async score(episodes) {
      const { keeper } = model.parameters;
      keeper.hold(true);
      const found = scoreSequences(
        model,
        episodes.map((e) => e.ids),
      );
      keeper.hold(false);
      const scores = found.map((r) => r - mean);
      if (scores.some((r) => !Number.isFinite(r))) throw new NonFiniteError("A reward");
      return scores;
    },
    close: () => model.close(),
  };
}

/** The mean reward that `lyceum reward` noted in config.json; 0 when it did not. */
export function rewardMean(dir: string): number {
  const { reward_mean } = JSON.parse(readFileSync(`${dir}/config.json`, "utf8")) as { reward_mean?: number };
  return reward_mean ?? 0;
}

export type RewardFunction = (prompt: string, reply: string) => number | Promise<number>;
export async function loadRewardFunction(source: string): Promise<RewardFunction> {
  if (!existsSync(source))
    throw new UserError(
      `${source} does not exist. It should be a module with a default export (prompt, reply) => number.`,
      2,
    );
  let module: { default?: unknown };
  try {
    module = (await import(pathToFileURL(resolve(source)).href)) as { default?: unknown };
  } catch (error) {
    throw new UserError(`${source} cannot be loaded: ${(error as Error).message}`);
  }
  if (typeof module.default !== "function")
    throw new UserError(`${source} has no default export that is a function (prompt, reply) => number.`, 2);
  return module.default as RewardFunction;
}

async function moduleJudge(source: string): Promise<Judge> {
  const reward = await loadRewardFunction(source);
  return {
    name: source,
    bytes: 0,
    close: () => {},
    async score(episodes) {
      const scores: number[] = [];
      for (const { prompt, text } of episodes) {
        const at = `${prompt.source.file}:${prompt.source.line}`;
        let score: unknown;
        try {
          score = await reward(prompt.messages.at(-1)!.content, text);
        } catch (error) {
          throw new UserError(`${source} failed on the prompt of ${at}: ${(error as Error).message}`);
        }
        if (typeof score !== "number" || !Number.isFinite(score))
          throw new UserError(
            `${source} gave ${String(score)} for a reply to the prompt of ${at}; it must give a finite number.`,
          );
        scores.push(score);
      }
      return scores;
    },
  };
}
