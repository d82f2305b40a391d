/**
 * Preferences from a model's own replies: several replies to each prompt, scored by a judge, the best against the worst.
 * On-policy pairs teach DPO what the model really says; pairs written by somebody else teach it to leave its own ground.
 */
import { z } from "zod";
import type { Rejected } from "../corpus/read.js";
import { openCpu } from "../device/cpu.js";
import { DialogueEncoder } from "../dialogue/mask.js";
import { loadLlama } from "../nn/folder.js";
import { UserError } from "../run/errors.js";
import { onlyAlone, type RunFolder } from "../run/folder.js";
import { batchSizeSchema, replySettings, trainingSettings } from "../run/settings.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { openJudge } from "./judge.js";
import { longestEpisode, readPrompts, rollout } from "./rollout.js";

const { seed, precision, threads } = trainingSettings;

export const preferSchema = z.strictObject({
  stage: z.literal("prefer").optional(),
  seed,
  precision,
  threads,
  ...replySettings,
  /** Replies to each prompt. */
  samples: z.int().min(2).default(4),
  batchSize: batchSizeSchema.default(64),
});
export type PreferConfig = z.output<typeof preferSchema>;

/** Leaves preferences.jsonl in the run folder: {prompt, chosen, rejected}. Prompts whose replies all score the same give none. */
export async function prefer(config: PreferConfig, run: RunFolder): Promise<void> {
  onlyAlone("prefer", run);
  const device = openCpu({ threads: config.threads });
  const tokenizer = Tokenizer.load(config.from);
  const rejected: Rejected[] = [];
  const prompts = await readPrompts(config, new DialogueEncoder(tokenizer), rejected);
  run.setAside(rejected);
  const model = run.own(loadLlama(device, config.from, config.precision, { trainable: false }));
  const policy = { dir: config.from, tokenizer, longest: longestEpisode(prompts, config.maxTokens) };
  const judge = run.own(await openJudge(config.reward, device, config.precision, policy));
  const lines: string[] = [];
  for (let from = 0; from < prompts.length; from += config.batchSize) {
    await run.mustGoOn();
    const some = prompts.slice(from, from + config.batchSize);
    const asked = some.flatMap((p) => Array.from({ length: config.samples }, () => p));
    const { maxTokens, temperature } = config;
    const episodes = rollout(model, tokenizer, asked, { maxTokens, temperature, seed: config.seed * 1_000_003 + from });
    const scores = await judge.score(episodes);
    some.forEach((prompt, i) => {
      const own = episodes
        .slice(i * config.samples, (i + 1) * config.samples)
        .map((e, j) => ({ e, score: scores[i * config.samples + j] }));
      // A reply that was cut off is nobody's preference.
      const whole = own.filter(({ e }) => e.finished && e.text.trim() !== "").sort((a, b) => b.score - a.score);
      const [best, worst] = [whole[0], whole.at(-1)];
      if (best && worst && best.score > worst.score)
        lines.push(JSON.stringify({ prompt: prompt.messages, chosen: best.e.text, rejected: worst.e.text }));
    });
  }
  if (lines.length === 0)
    throw new UserError(
      `No prompt of ${prompts.length} got replies that differ in score: there is nothing to prefer. Raise temperature or samples, or look at what ${config.reward} gives.`,
    );
  console.error(`${lines.length} preferences from ${prompts.length} prompts, ${config.samples} replies each`);
  run.write("preferences.jsonl", `${lines.join("\n")}\n`);
  run.result("model", () => {}); // a finished stage is known by it
}
