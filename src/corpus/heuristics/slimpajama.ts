/**
 * SlimPajama's filter (Cerebras 2023, "SlimPajama: A 627B token, cleaned and deduplicated version of RedPajama"): documents with fewer than
 * 200 characters after removing punctuation, runs of spaces, line ends and tabs. Its other step is the MinHash deduplication.
 */
import { characters } from "../words.js";
import type { Measured } from "./measure.js";
import type { Rule, Signals } from "./rules.js";

export const SLIMPAJAMA: Rule[] = [
  { name: "slimpajama.minCharacters", signal: "slimpajama.characters", kind: "min", threshold: 200 },
];

export function slimpajama(doc: Measured): Signals {
  // NFC first, as there; the 32 ASCII marks of Python's string.punctuation, then one space for every run of white space.
  const clean = doc.text
    .normalize("NFC")
    .replace(/[!-/:-@[-`{-~]/g, "")
    .replace(/\s+/g, " ")
    .trim();
  return { "slimpajama.characters": characters(clean) };
}
