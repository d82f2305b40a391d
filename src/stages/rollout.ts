/**
 * What reinforcement learning from feedback needs besides its loss: prompts, replies sampled from the policy, and the
 * log-probabilities and values of their tokens.
 */
import { firstReason, type Rejected } from "../corpus/read.js";
import { recordsOf } from "../dialogue/jsonl.js";
import type { DialogueEncoder } from "../dialogue/mask.js";
import { type EncodedReply, promptOf, replyBatch } from "../dialogue/preference.js";
import { messagesOf } from "../dialogue/records.js";
import { contentOf, type Message, RecordError } from "../dialogue/templates.js";
import { generate } from "../generate/generate.js";
import { readLlamaConfig } from "../nn/config.js";
import { hasScalarHead } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import type { Grid } from "../parallel/grid.js";
import { NonFiniteError, UserError } from "../run/errors.js";
import { visited } from "../run/order.js";
import { Tape } from "../tensor/tensor.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

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

/** Tokens that a policy can see, prompt and reply together. Throws a UserError when the folder is a reward model's. */
export function policyContext(dir: string): number {
  if (hasScalarHead(dir))
    throw new UserError(`${dir} is a reward model: it scores replies and cannot write them. Name an SFT model.`, 2);
  return readLlamaConfig(dir).maxPositionEmbeddings;
}

/**
 * Prompts of files of records: {prompt}, or instruction and conversation records, whose last reply is left out. Those longer than
 * maxPromptLength, or with less than maxTokens of the context of the policy `from` left for the reply, are set aside, and so are
 * those that its chat template refuses.
 */
export async function readPrompts(
  o: { from: string; prompts: readonly string[]; maxPromptLength: number; maxTokens: number },
  encoder: DialogueEncoder,
  rejected: Rejected[],
): Promise<Prompt[]> {
  const { prompts: files, maxTokens } = o;
  const context = policyContext(o.from);
  if (maxTokens >= context)
    throw new UserError(
      `maxTokens is ${maxTokens}; the context of ${o.from} is ${context}, prompt and reply together.`,
      2,
    );
  const room = Math.min(o.maxPromptLength, context - maxTokens);
  const prompts: Prompt[] = [];
  const before = rejected.length;
  for await (const { file, line, value, error } of recordsOf(files, "prompts")) {
    const messages = error ?? promptMessages(value);
    const reject = (reason: string): void => void rejected.push({ file, line, reason });
    if (typeof messages === "string") {
      reject(messages);
      continue;
    }
    let ids: Int32Array;
    try {
      ids = encoder.prompt(messages);
    } catch (error) {
      if (!(error instanceof RecordError)) throw error;
      reject(error.message);
      continue;
    }
    if (ids.length > room)
      reject(
        room < o.maxPromptLength
          ? `the prompt of ${ids.length} tokens leaves no room for a reply of ${maxTokens} in the context of ${context}`
          : `the prompt of ${ids.length} tokens is longer than maxPromptLength, ${room}`,
      );
    else prompts.push({ messages, ids, source: { file, line } });
  }
  if (prompts.length === 0)
    throw new UserError(`${files.join(", ")}: no prompt can be used.${firstReason(rejected, before)}`);
  return prompts;
}
/** What holds a prompt by itself, whatever answers it. */
const ASKING = ["prompt", "question", "instruction"];

function promptMessages(record: unknown): Message[] | string {
  if (typeof record !== "object" || record === null || Array.isArray(record)) return "the record is not a JSON object";
  const r = record as Record<string, unknown>;
  if (ASKING.some((key) => r[key] !== undefined)) return promptOf(r);
  const messages = messagesOf(r);
  if (typeof messages === "string") return messages;
  return promptOf({ prompt: messages.at(-1)?.role === "assistant" ? messages.slice(0, -1) : messages });
}

/** Tokens of an episode at most, prompt and reply together. */
export const longestEpisode = (prompts: readonly Pick<Prompt, "ids">[], maxTokens: number): number =>
  prompts.reduce((n, { ids }) => Math.max(n, ids.length), 0) + maxTokens;

/** The prompts of a step (1, 2, ...): each in its turn, in another order every time that all have been asked. */
export const promptsOfStep = (prompts: readonly Prompt[], step: number, count: number, seed: number): Prompt[] =>
  Array.from({ length: count }, (_, i) => prompts[visited((step - 1) * count + i, prompts.length, seed)]);

/** Rollouts one after the other that taught nothing. */
const UNMOVED = 5;

/** For each step, whether its rewards taught nothing; tells it once, when all did of several steps in turn or of a run that has fewer. */
export function tellUnmoved(steps: number, told: string): (unmoved: boolean) => void {
  const many = Math.min(UNMOVED, steps);
  let count = 0;
  return (unmoved) => {
    count = unmoved ? count + 1 : 0;
    if (count === many)
      console.error(`${many === 1 ? "in this step" : `in ${many} steps one after the other`} ${told}`);
  };
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

/** Replies and what PPO's models thought of them: everything that its updates need, fixed while they run. */
export interface Experience {
  episodes: Episode[];
  scores: number[];
  /** log p of each reply token: of the policy that sampled, and of the reference. */
  logp: PerToken;
  ref: PerToken;
  /** The critic's expectation before each reply token, and one after the last. */
  values: PerToken;
  advantages: Float64Array[];
  /** What the critic should have said: one for each token, and with `trl` one for the place after them. */
  returns: Float64Array[];
}

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

/**
 * The value before each reply token, which is the head's number at the token that precedes it, and one more: the value
 * after the last token.
 */
export function replyValues(critic: Llama, episodes: readonly EncodedReply[], batchSize = 32): PerToken {
  return perToken(
    critic,
    episodes,
    batchSize,
    (tape, batch) => critic.values(tape, batch, valueRows(batch)).toArray(),
    1,
  );
}

/** The rows of a batch that have a value: those before the tokens of a reply, and its last token. */
export const valueRows = ({ spans }: Pick<ReturnType<typeof replyBatch>, "spans">): Int32Array =>
  Int32Array.from(spans.flatMap(({ from, to }) => Array.from({ length: to + 1 - from }, (_, i) => from + i)));

/** Throws NonFiniteError when a number is NaN or infinite. */
export function checkFinite(what: string, rows: PerToken): void {
  if (rows.some((row) => row.some((x) => !Number.isFinite(x)))) throw new NonFiniteError(what);
}

function perToken(
  model: Llama,
  episodes: readonly EncodedReply[],
  batchSize: number,
  forward: (tape: Tape, batch: ReturnType<typeof replyBatch>) => Float32Array,
  after = 0,
): PerToken {
  const tape = new Tape(model.device, false);
  const found: PerToken = [];
  try {
    for (let i = 0; i < episodes.length; i += batchSize) {
      const batch = replyBatch(episodes.slice(i, i + batchSize));
      const all = forward(tape, batch);
      for (const { from, to } of batch.spans) found.push(all.slice(from, to + after));
      tape.reset();
    }
  } finally {
    tape.close();
  }
  return found;
}

/** What each data-parallel process has found on its own episodes, as lists over all of them. */
export function shareEpisodes(grid: Grid, episodes: Episode[], scores: number[], perToken: PerToken[]) {
  if (grid.data.size === 1) return { episodes, scores, perToken };
  const rows = grid.everyone(
    episodes.map((e, i) => ({
      episode: { ...e, ids: [...e.ids], prompt: { ...e.prompt, ids: [...e.prompt.ids] } },
      score: scores[i],
      perToken: perToken.map((list) => [...list[i]]),
    })),
  );
  return {
    episodes: rows.map(({ episode: e }): Episode => {
      return { ...e, ids: Int32Array.from(e.ids), prompt: { ...e.prompt, ids: Int32Array.from(e.prompt.ids) } };
    }),
    scores: rows.map((r) => r.score),
    perToken: perToken.map((_, k) => rows.map((r) => Float32Array.from(r.perToken[k]))),
  };
}

/** Some replies with their scores, to look at. */
export const showEpisodes = (episodes: readonly Episode[], scores: readonly number[], count: number): string =>
  episodes
    .slice(0, count)
    .map((e, i) => `${contentOf(e.prompt.messages.at(-1)!)} -> ${e.text}  [${scores[i].toFixed(2)}]`)
    .join("\n");
