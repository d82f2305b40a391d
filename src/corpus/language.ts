/**
 * Which language a text is in: fastText's lid.176 (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"),
 * run as WebAssembly. The model is Facebook's, CC BY-SA 3.0 (see THIRD-PARTY-NOTICES.md).
 */
import { type FastTextModel, getLIDModel } from "fasttext.wasm.js";

export interface Identified {
  /** ISO 639-1 where there is one, else 639-3; "und" when there is nothing to judge by. */
  language: string;
  /** Probability, 0 to 1. */
  score: number;
}

export interface LanguageIdentifier {
  identify(text: string): Identified;
}

/** Characters that are looked at: the verdict does not change after a few hundred, and the time grows with them. */
const SAMPLE = 800;

let loading: Promise<LanguageIdentifier> | undefined;

/** Loaded once a thread. */
export function loadIdentifier(): Promise<LanguageIdentifier> {
  loading ??= load();
  return loading;
}

async function load(): Promise<LanguageIdentifier> {
  const lid = await getLIDModel();
  const model: FastTextModel = await lid.load();
  return {
    identify(text) {
      const sample = sampleOf(text);
      if (!/\p{L}/u.test(sample)) return { language: "und", score: 0 };
      const found = model.predict(sample, 1, 0);
      try {
        if (found.size() === 0) return { language: "und", score: 0 };
        const [score, label] = found.get(0) as unknown as [number, string];
        return { language: label.replace("__label__", ""), score: Math.min(1, Math.round(score * 1e4) / 1e4) };
      } finally {
        // The vector lives in WebAssembly memory, which no garbage collector sees.
        (found as unknown as { delete(): void }).delete();
      }
    },
  };
}

/** The beginning, and as much from the middle, where menus and dates are rarer; addresses and digits say nothing. */
function sampleOf(text: string): string {
  const pieces =
    text.length <= SAMPLE * 2
      ? text.slice(0, SAMPLE * 2)
      : `${text.slice(0, SAMPLE)} ${text.slice(text.length >> 1, (text.length >> 1) + SAMPLE)}`;
  return (pieces as string & { toWellFormed(): string })
    .toWellFormed()
    .replace(/https?:\/\/\S+|[\d\0]+/g, " ")
    .replace(/\s+/g, " ")
    .trim();
}
