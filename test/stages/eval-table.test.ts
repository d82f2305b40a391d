/** The evaluation as people see it. */
import { expect, test } from "vitest";
import type { Evaluation } from "../../src/stages/eval/evaluation.js";
import { describeTasks } from "../../src/stages/eval/table.js";

const exact = {
  questions: 4,
  exact: 0,
  exactInterval: [0, 0.49] as [number, number],
  contains: 0.75,
  containsInterval: [0.301, 0.954] as [number, number],
  length: 6.25,
  groups: {
    "en capital": { exact: 0, contains: 1, questions: 3 },
    "zh capital": { exact: 0, contains: 0, questions: 1 },
  },
};
const evaluation: Evaluation = {
  models: [
    {
      model: "runs/a/sft/model",
      tasks: {
        perplexity: {
          texts: 1,
          tokens: 1200,
          bytes: 4321,
          loss: 1.5,
          perplexity: Math.exp(1.5),
          bitsPerByte: 0.601,
          context: 64,
        },
        exact,
        reward: { prompts: 3, mean: 0.5, interval: [-0.25, 1.125], std: 1, length: 7, finished: 1 },
      },
    },
    {
      model: "runs/a/dpo/model",
      tasks: {
        exact: {
          ...exact,
          contains: 0.5,
          groups: { "en capital": exact.groups["en capital"], "zh capital": exact.groups["zh capital"] },
        },
        reward: { prompts: 3, mean: 1, interval: [1, 1], std: 0, length: 9, finished: 2 / 3, cut: 1 },
        winRate: {
          against: "runs/a/sft/model",
          prompts: 3,
          winRate: 0.5,
          interval: [0.14, 0.86],
          wins: 1,
          ties: 1,
          losses: 1,
        },
      },
    },
  ],
  samples: [
    {
      file: "t.jsonl",
      line: 9,
      prompt: "Where\nis it?",
      replies: [
        { model: "runs/a/sft/model", text: "Here.\u0000\u001b[31m", right: true },
        { model: "other/model", text: "x".repeat(120), score: -1 },
      ],
    },
  ],
};

test("samples, then a column for each model; what was not measured is a dash or no row", () => {
  expect(describeTasks(evaluation, ["sft", "dpo"]).split("\n")).toEqual([
    "Where is it?  (t.jsonl:9)",
    "  sft          ✓ Here. [31m",
    `  other/model   -1.00  ${"x".repeat(100)}…`,
    "",
    "                                         sft                dpo",
    "perplexity: 1 text, 4,321 bytes",
    "  bits per byte                        0.601                  -",
    "  perplexity (a token)                 4.482                  -",
    "  tokens                                1200                  -",
    "exact match: 4 questions",
    "  contains an answer            75% [30, 95]       50% [30, 95]",
    "    en capital                          100%               100%",
    "    zh capital                            0%                 0%",
    "  is an answer                    0% [0, 49]         0% [0, 49]",
    "  tokens of a reply                      6.3                6.3",
    "replies: 3 prompts",
    "  mean reward             0.50 [-0.25, 1.13]  1.00 [1.00, 1.00]",
    "  tokens of a reply                      7.0                9.0",
    "  ended by the model                    100%                67%",
    "  too long for the judge                   -                  1",
    "against sft: 3 prompts",
    "  win rate, ties half                      -       50% [14, 86]",
    "  won, tied, lost                          -            1, 1, 1",
    "[low, high]: 95% intervals. Models whose intervals overlap may be equally good: ask more records.",
  ]);
});
