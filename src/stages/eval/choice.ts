/**
 * Multiple choice by log-probability: the model does not answer, each choice is scored as the answer, and the most
 * probable one counts. Raw sums favour short choices; divided by the bytes of the choice they do not (after `acc` and
 * `acc_bytes` of the Language Model Evaluation Harness, Gao et al. 2021; its `acc_norm` divides by characters, which is the same in
 * English; bytes and not tokens, so that models with different tokenizers are asked the same).
 *
 * A chat model is given the question through its chat template and the choice as its reply, without the token that ends
 * it; a base model reads the choice as the continuation of the question, or of what a benchmark puts around it (`query`).
 */
import { DialogueEncoder } from "../../dialogue/mask.js";
import type { Loaded } from "../../generate/loaded.js";
import { average, wilson } from "./interval.js";
import { logLikelihoods, type Scored } from "./likelihood.js";
import { plainText } from "./replies.js";
import { askedIn, type Choice, type Tasks } from "./tasks.js";

export interface ChoiceResult {
  questions: number;
  /** Share of questions whose most probable choice is right, and its 95% interval. */
  accuracy: number;
  accuracyInterval: [number, number];
  /** The same with log-probabilities divided by the bytes of the choice. */
  accuracyPerByte: number;
  accuracyPerByteInterval: [number, number];
  /** What guessing gives. */
  chance: number;
  groups: Record<string, { accuracy: number; accuracyPerByte: number; questions: number }>;
}
export interface ChoiceOutcome {
  /** log p (nats) of each choice. */
  logProbs: number[];
  /** Index of the most probable choice, raw and per byte. */
  raw: number;
  perByte: number;
}

export function multipleChoice(loaded: Loaded, tasks: Tasks["choices"]): ChoiceOutcome[] {
  const encode = choiceEncoder(loaded);
  const sequences = tasks.flatMap((task) =>
    encode(task).map((s): Scored => ({ ...s, at: `${task.source.file}:${task.source.line}` })),
  );
  const sums = logLikelihoods(loaded.model, sequences).map((logp) => logp.reduce((a, b) => a + b, 0));
  let next = 0;
  return tasks.map(({ choices }) => {
    const logProbs = choices.map(() => sums[next++]);
    const perByte = logProbs.map((p, i) => p / Buffer.byteLength(choices[i]));
    return { logProbs, raw: largest(logProbs), perByte: largest(perByte) };
  });
}

export function summarizeChoice(tasks: readonly Choice[], outcomes: readonly ChoiceOutcome[]): ChoiceResult {
  const right = (key: "raw" | "perByte", group?: string): number =>
    outcomes.filter((o, i) => o[key] === tasks[i].answer && (group === undefined || tasks[i].group === group)).length;
  const [raw, perByte] = [wilson(right("raw"), tasks.length), wilson(right("perByte"), tasks.length)];
  const groups: ChoiceResult["groups"] = {};
  for (const group of new Set(tasks.map((t) => t.group))) {
    const questions = tasks.filter((t) => t.group === group).length;
    groups[group] = {
      accuracy: right("raw", group) / questions,
      accuracyPerByte: right("perByte", group) / questions,
      questions,
    };
  }
  return {
    questions: tasks.length,
    accuracy: raw.share,
    accuracyInterval: raw.interval,
    accuracyPerByte: perByte.share,
    accuracyPerByteInterval: perByte.interval,
    chance: average(tasks.map((t) => 1 / t.choices.length)),
    groups,
  };
}

/** The sequences of a question's choices, each behind the question. */
function choiceEncoder({ tokenizer }: Loaded): (task: Choice) => { ids: Int32Array; start: number }[] {
  const chat = tokenizer.chatTemplate === undefined ? undefined : new DialogueEncoder(tokenizer);
  const plain = { allowSpecial: false };
  return (task) => {
    const { choices, query = plainText(askedIn(task)) } = task;
    // White space belongs to the word after it, as in training: " Paris" is one token where " " and "Paris" are two.
    const text = query.trimEnd();
    const gap = query.slice(text.length);
    const opening = chat?.beforeReply(askedIn(task)) ?? "";
    const space = opening.slice(opening.trimEnd().length);
    // Line ends are tokens of their own; a space is the choice's.
    const [written, led] = space.includes("\n") ? [opening, ""] : [opening.trimEnd(), space];
    const prompt = chat?.prompt(askedIn(task)) ?? [];
    const before = chat
      ? [...prompt, ...tokenizer.encode(written, { before: tokenizer.endOf(prompt) })]
      : [...tokenizer.encode(text, { ...plain, addSpecialTokens: true })];
    const goesOn = { ...plain, before: tokenizer.endOf(before) };
    return choices.map((choice) => {
      const after = chat ? `${led}${choice}` : `${gap || gapBetween(text, choice)}${choice}`;
      return { ids: Int32Array.from([...before, ...tokenizer.encode(after, goesOn)]), start: before.length };
    });
  };
}

/** A space, except beside scripts that are written without. */
const UNSPACED = String.raw`[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\u3000-\u303f\uff00-\uffef]`;
const endsUnspaced = new RegExp(`${UNSPACED}$`, "u");
const beginsUnspaced = new RegExp(`^${UNSPACED}`, "u");
const gapBetween = (question: string, choice: string): string =>
  endsUnspaced.test(question) || beginsUnspaced.test(choice) ? "" : " ";

const largest = (x: readonly number[]): number => x.indexOf(Math.max(...x));
