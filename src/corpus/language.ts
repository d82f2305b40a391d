/**
 * Which language a text is in: fastText's lid.176 (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"),
 * run as WebAssembly; a verdict in another script than the text's is passed over. The model is Facebook's, CC BY-SA 3.0 (see THIRD-PARTY-NOTICES.md).
 */
import { type FastTextModel, getLIDModel } from "fasttext.wasm.js";
import { scriptOf } from "./script.js";

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
/** Predictions among which one in the text's script is looked for. */
const OTHERS = 8;

let loading: Promise<LanguageIdentifier> | undefined;

/** Loaded once a thread. */
export function loadIdentifier(): Promise<LanguageIdentifier> {
  loading ??= load();
  return loading;
}

async function load(): Promise<LanguageIdentifier> {
  const lid = await getLIDModel();
  const model: FastTextModel = await lid.load();
  const predict = (sample: string, k: number): Identified[] => {
    const found = model.predict(sample, k, 0);
    try {
      return Array.from({ length: found.size() }, (_, i) => {
        const [score, label] = found.get(i) as unknown as [number, string];
        return { language: label.replace("__label__", ""), score: Math.min(1, Math.round(score * 1e4) / 1e4) };
      });
    } finally {
      // The vector lives in WebAssembly memory, which no garbage collector sees.
      (found as unknown as { delete(): void }).delete();
    }
  };
  return {
    identify(text) {
      const sample = sampleOf(text);
      const written = scriptOf(sample);
      if (!written) return { language: "und", score: 0 };
      const [first] = predict(sample, 1);
      // Few Wu texts are on the web, and many Chinese ones are taken for it.
      if (first && first.language !== "wuu" && written.fits(first.language)) return first;
      const others = predict(sample, OTHERS);
      const next = others.find(({ language }) => language !== "wuu" && written.fits(language));
      // In a script that one language has, the rest of the probability is its.
      if (written.usual !== undefined && written.share > 0.5)
        return next && next.language !== written.usual && next.score > 0.2
          ? next
          : { language: written.usual, score: Math.round(written.share * 1e4) / 1e4 };
      return next ?? first ?? { language: "und", score: 0 };
    },
  };
}

/** The beginning, and as much from the middle, where menus and dates are rarer; addresses and digits say nothing. */
function sampleOf(text: string): string {
  const pieces =
    text.length <= SAMPLE * 2
      ? text.slice(0, SAMPLE * 2)
      : `${text.slice(0, SAMPLE)} ${text.slice(text.length >> 1, (text.length >> 1) + SAMPLE)}`;
  const clean = pieces
    .toWellFormed()
    .replace(/https?:\/\/\S+|[\d\0]+/g, " ")
    .replace(/\s+/g, " ")
    .trim();
  return capitals(clean) ? clean.toLowerCase() : clean;
}

/** Whether most letters are capitals: the model has hardly seen such text. */
function capitals(text: string): boolean {
  let [upper, lower] = [0, 0];
  for (let i = 0; i < text.length && i < 400; i++) {
    const c = text.charCodeAt(i);
    if (c < 128 ? c >= 97 && c <= 122 : /\p{Ll}/u.test(text[i])) lower++;
    else if (c < 128 ? c >= 65 && c <= 90 : /\p{Lu}/u.test(text[i])) upper++;
  }
  return upper > 4 && upper > lower * 2;
}
