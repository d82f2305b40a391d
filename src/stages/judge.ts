/**
 * Who says how good replies are: a reward model, or a function of somebody's own in a JavaScript module, for tasks whose
 * answers can be checked.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { inspect, types } from "node:util";
import type { Device } from "../device/device.js";
import { contentOf } from "../dialogue/templates.js";
import { readLlamaConfig } from "../nn/config.js";
import { hasScalarHead, loadLlama } from "../nn/folder.js";
import type { Precision } from "../nn/llama.js";
import type { Grid } from "../parallel/grid.js";
import { NonFiniteError, UserError } from "../run/errors.js";
import { isRewardModule } from "../run/named.js";
import { holding } from "../tensor/parameters.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { scoreSequences } from "./reward.js";
import type { Episode } from "./rollout.js";

export interface Judge {
  name: string;
  score(episodes: readonly Episode[]): Promise<number[]>;
  /** Bytes of memory that it holds. */
  bytes: number;
  close(): void;
}

/** Whose replies are read: a model's folder, its tokenizer, and the tokens of prompt and reply together at most. */
export interface Policy {
  dir: string;
  tokenizer: Tokenizer;
  longest: number;
}

/**
 * `source`: the folder of a reward model, or a .js / .mjs module whose default export is (prompt, reply) => number.
 * Throws UserError when the reward model cannot read the policy's replies, or the module is not what it should be.
 */
export async function openJudge(
  source: string,
  device: Device,
  precision: Precision,
  policy: Policy,
  grid?: Grid,
): Promise<Judge> {
  if (isRewardModule(source)) return moduleJudge(source);
  if (/\.[cm]?ts$/.test(source))
    throw new UserError(`${source} is TypeScript; compile it first (npx tsc ${source}) and name the .js file.`, 2);
  if (!existsSync(`${source}/config.json`)) {
    const near = existsSync(`${source}/model/config.json`) ? ` Did you mean ${source}/model?` : "";
    throw new UserError(`${source} is neither a model folder nor a .js or .mjs module.${near}`, 2);
  }
  if (!hasScalarHead(source))
    throw new UserError(
      `${source} is a language model, not a reward model: there is no score.weight in it. Train one with lyceum reward.`,
    );
  checkReads("reward model", source, policy);
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
      const sequences = episodes.map((e) => e.ids);
      const found = await holding([model.parameters], () => scoreSequences(model, sequences));
      const scores = found.map((r) => r - mean);
      if (scores.some((r) => !Number.isFinite(r))) throw new NonFiniteError("A reward");
      return scores;
    },
    close: () => model.close(),
  };
}

/** Throws a UserError when a model that is to read the policy's tokens has another tokenizer, or a context too short for them. */
export function checkReads(role: string, dir: string, policy: Policy): void {
  if (Tokenizer.load(dir).fingerprint !== policy.tokenizer.fingerprint)
    throw new UserError(
      `The ${role} ${dir} and the policy ${policy.dir} have different tokenizers: their tokens mean different things. Train the ${role} from the policy's family.`,
    );
  const { maxPositionEmbeddings: context } = readLlamaConfig(dir);
  if (policy.longest > context)
    throw new UserError(
      `The ${role} ${dir} was made for ${context} positions, but a prompt and its reply may be ${policy.longest} tokens here. Lower maxTokens, take shorter prompts, or name a ${role} with a longer context.`,
      2,
    );
}

/** The mean reward that `lyceum reward` noted in config.json; 0 when it did not. */
export function rewardMean(dir: string): number {
  const { reward_mean } = JSON.parse(readFileSync(`${dir}/config.json`, "utf8")) as { reward_mean?: number };
  return reward_mean ?? 0;
}

/** `prompt`: the last message, with Alpaca's input joined to it as in the notes. */
export type RewardFunction = (prompt: string, reply: string) => number | Promise<number>;
export async function loadRewardFunction(source: string): Promise<RewardFunction> {
  if (!existsSync(source))
    throw new UserError(
      `${source} does not exist. It should be a module with a default export (prompt, reply) => number.`,
      2,
    );
  let module: { default?: unknown };
  try {
    module = (await watched(() => import(pathToFileURL(resolve(source)).href))) as { default?: unknown };
  } catch (error) {
    const line = error instanceof SyntaxError ? faultyLine(source) : undefined;
    throw new UserError(`${source}${line ? `:${line}` : ""} cannot be loaded: ${said(error)}`);
  }
  const { default: found } = module as { default?: { default?: unknown } };
  // TypeScript's CommonJS has the default export as a property of it.
  const reward = [found, found?.default].find((f) => typeof f === "function");
  if (!reward) throw new UserError(`${source} has no default export that is a function (prompt, reply) => number.`, 2);
  return reward as RewardFunction;
}

/** Where a module is not JavaScript: import() does not say it, node --check does. */
const faultyLine = (source: string): string | undefined =>
  /:(\d+)$/m.exec(spawnSync(process.execPath, ["--check", resolve(source)], { encoding: "utf8" }).stderr)?.[1];

/** A module without these words exports nothing by default, in no notation; `exports` in CommonJS. */
const EXPORTS = /default|exports/;

/**
 * Throws UserError for a module that certainly cannot be used, without running it: what it reads may be there later, and it may be mended
 * until then.
 */
export function checkRewardModule(source: string): void {
  const { status } = spawnSync(process.execPath, ["--check", resolve(source)], { encoding: "utf8" });
  const line = status === 0 ? undefined : faultyLine(source);
  if (line !== undefined) throw new UserError(`${source}:${line} cannot be loaded: it is not JavaScript there.`, 2);
  if (!EXPORTS.test(readFileSync(source, "utf8")))
    throw new UserError(`${source} has no default export that is a function (prompt, reply) => number.`, 2);
}

/**
 * What a module's work gives in the end. Rejects, too, where it would else end the program: without a word when nothing works any more on what
 * was promised, with Node's own when an error is thrown, or a promise rejected, beside the work.
 */
async function watched(work: () => unknown): Promise<unknown> {
  let fail = (_: unknown): void => {};
  const trouble = new Promise<never>((_, reject) => {
    fail = reject;
  });
  const abandoned = (): void => fail("its promise never settles: nothing is left that could answer it");
  const told = (error: unknown): void => fail(error);
  process.on("beforeExit", abandoned).on("uncaughtException", told).on("unhandledRejection", told);
  try {
    const result = await Promise.race([work(), trouble]);
    // Node tells of rejections that nobody handles when the turn ends.
    await Promise.race([turn(), trouble]);
    return result;
  } finally {
    process.off("beforeExit", abandoned).off("uncaughtException", told).off("unhandledRejection", told);
  }
}

/** Whatever a module has thrown, or given: it may have no toString, or one that throws. */
const said = (value: unknown): string =>
  types.isNativeError(value) ? value.message : typeof value === "string" ? value : shown(value);
const shown = (value: unknown): string =>
  inspect(value, { depth: 0, maxStringLength: 100, breakLength: Infinity, customInspect: false, showProxy: true });

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
          score = await watched(() => reward(contentOf(prompt.messages.at(-1)!), text));
        } catch (error) {
          throw new UserError(`${source} failed on the prompt of ${at}: ${said(error)}`);
        }
        if (typeof score !== "number" || !Number.isFinite(score))
          throw new UserError(
            `${source} gave ${shown(score)} for a reply to the prompt of ${at}; it must give a finite number.`,
          );
        scores.push(score);
      }
      return scores;
    },
  };
}
