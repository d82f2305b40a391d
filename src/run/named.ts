/** Settings whose values name files or folders, and what lies there. In a recipe they may also name an earlier stage. */
const NAMED = {
  train: "data",
  validation: "data",
  prompts: "data",
  file: "data",
  tokenizer: "tokenizer",
  from: "model",
  models: "model",
  reference: "model",
  critic: "model",
  reward: "model or module",
} as const;

/** What a setting's value names; undefined: nothing that lies in a file. (The prompts of `samples` are texts.) */
export const namedBy = (key: string): (typeof NAMED)[keyof typeof NAMED] | undefined =>
  Object.hasOwn(NAMED, key) ? NAMED[key as keyof typeof NAMED] : undefined;

/** Whether a reward is a JavaScript module, and no model's folder. */
export const isRewardModule = (name: string): boolean => /\.[cm]?js$/.test(name);
