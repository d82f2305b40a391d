/** What generate is told by programs that no compiler has checked. */
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { type GenerateOptions, generate, generateAsync } from "../../src/generate/generate.js";
import { loadForGeneration } from "../../src/generate/loaded.js";
import { UserError } from "../../src/run/errors.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-options-"));
cpSync(new URL("../golden/eval/model", import.meta.url), dir, { recursive: true });
const loaded = loadForGeneration(dir, { threads: 1 });
afterAll(() => {
  loaded.close();
  rmSync(dir, { recursive: true });
});
const told = (options: object) => () => generate(loaded.model, [[1, 2, 3]], { maxTokens: 2, ...options });

test.each([
  ["maxTokens", [Number.NaN, -1, 1.5, "5", undefined]],
  ["temperature", [Number.NaN, -1, Number.POSITIVE_INFINITY, "0", null]],
  ["topK", [Number.NaN, -1, 1.5, 2 ** 31, "a"]],
  ["topP", [Number.NaN, -1, 2, "a"]],
  ["minP", [Number.NaN, -1, 2]],
  ["repetitionPenalty", [Number.NaN, -1, 0, Number.POSITIVE_INFINITY]],
  ["seed", [Number.NaN, -1, 1.5, 2 ** 70, "x", null]],
  ["firstRow", [Number.NaN, -1, 0.5]],
])("%s: what no kernel can take is refused", (key, values) => {
  for (const value of values) {
    expect(told({ [key]: value })).toThrow(UserError);
    const shown = typeof value === "string" ? `"${value}"` : value;
    expect(told({ [key]: value })).toThrow(`${key} is ${shown}; it must be a`);
  }
});

test("one prompt that is no list of them is told as such", () => {
  for (const prompts of [[1, 2, 3], "abc", ["abc"], Int32Array.of(1, 2), [null], undefined])
    expect(() => generate(loaded.model, prompts as never, { maxTokens: 1 })).toThrow(/a list of prompts.*\[ids\]/);
});

test("an option that there is not is named, with the nearest", async () => {
  expect(told({ max_new_tokens: 3 })).toThrow(/no option "max_new_tokens". .*maxTokens/);
  expect(told({ topp: 0.5 })).toThrow(/no option "topp". Did you mean "topP"\?/);
  const wrong = { maxTokens: 1, temprature: 1 } as GenerateOptions;
  await expect(generateAsync(loaded.model, [[1]], wrong)).rejects.toThrow(/Did you mean "temperature"/);
});

test("the defaults are what they are said to be", () => {
  const all = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0, firstRow: 0 };
  expect(told({})()).toEqual(told(all)());
  expect(told({ temperature: undefined, topP: undefined })()).toEqual(told(all)());
  expect(told({ temperature: 2 })()).toEqual(told({ ...all, temperature: 2 })());
});

test("what was loaded is closed with its weights", () => {
  const own = loadForGeneration(dir, { threads: 1, weights: "int8" });
  own.close();
  own[Symbol.dispose]();
  expect(() => own.model.mustBeOpen()).toThrow(/closed/);
  expect(() => own.weights?.mustBeOpen()).toThrow(/closed/);
});
