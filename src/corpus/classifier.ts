/**
 * The quality classifier: good texts against crawled ones, a linear model over words and hashed word pairs in fastText's form (Joulin et al. 2017),
 * and what is kept by its score: above a threshold, or by chance that grows with the score, as GPT-3 (Brown et al. 2020, appendix A).
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { UserError } from "../run/errors.js";
import type { Finding } from "./document.js";
import { exactKey } from "./exact.js";
import { type FastTextModel, features, hiddenOf, LOSS, loadFastText, predict, saveFastText } from "./fasttext.js";
import { uniform } from "./hash.js";
import { splitWords, wordAt } from "./words.js";

export interface TrainOptions {
  dim: number;
  epochs: number;
  learningRate: number;
  /** Buckets of the hashed word pairs. */
  bucket: number;
  /** Words seen fewer times are left to their pairs. */
  minCount: number;
  /** Part of the documents, by hash of the text, that only measures. */
  heldOut: number;
  /** Words of a document that are read. */
  maxWords: number;
  seed: number;
}
export const TRAIN_DEFAULTS: TrainOptions = {
  dim: 8,
  epochs: 5,
  learningRate: 0.5,
  bucket: 200_000,
  minCount: 2,
  heldOut: 0.1,
  maxWords: 1000,
  seed: 1,
};

export interface Example {
  id: string;
  text: string;
  good: boolean;
}

export interface Measures {
  threshold: number;
  precision: number;
  recall: number;
  f1: number;
}
export interface ClassifierReport {
  /** Documents after exact duplicates were taken out, which would stand on both sides of the split. */
  train: { good: number; crawled: number };
  heldOut: { good: number; crawled: number };
  duplicates: number;
  /** Same text among the good and the crawled ones: counted, and left out of both. */
  contradictions: number;
  accuracy: number;
  /** Probability that a good text scores above a crawled one. */
  auc: number;
  atHalf: Measures;
  thresholds: Measures[];
  /** The score that the best such share of the held-out crawled texts reaches: what a threshold would keep of a crawl like it. */
  crawledScores: { share: number; score: number }[];
}

const GOOD = "__label__good";
const CRAWLED = "__label__crawled";

/** What the model reads: words and symbols in lower case with spaces between, so that "end." and "end" meet, and Chinese has words. */
export function prepare(text: string, maxWords: number): string {
  const words = splitWords(text.slice(0, maxWords * 40).toLowerCase());
  return Array.from({ length: Math.min(words.count, maxWords) }, (_, i) => wordAt(words, i)).join(" ");
}

/** mulberry32: the order of examples and the first weights; nothing of statistical weight rests on it. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class QualityClassifier {
  private constructor(
    readonly model: FastTextModel,
    /** The label whose probability is the score. */
    readonly label: string,
    /** Words read of a document; undefined: a model from elsewhere, which gets the text as it is. */
    private readonly maxWords?: number,
    readonly report?: ClassifierReport,
  ) {}

  /** Probability that the text is a good one, in [0, 1]. */
  score(text: string): number {
    // fastText reads one line; a line end is a separator like a space.
    const p = predict(this.model, this.maxWords === undefined ? text : prepare(text, this.maxWords));
    return p[this.model.labels.indexOf(this.label)];
  }

  /** Writes PATH (fastText's format) and PATH.json (how it reads a text, and the report). */
  save(path: string): void {
    saveFastText(this.model, path);
    const side = { label: this.label, maxWords: this.maxWords, report: this.report };
    writeFileSync(`${path}.json`, `${JSON.stringify(side, null, 2)}\n`);
  }

  /** Loads a model of `save`, or any supervised fastText `.bin`; of the latter `label` names the good class. */
  static load(path: string, label?: string): QualityClassifier {
    const model = loadFastText(path);
    const side = existsSync(`${path}.json`)
      ? (JSON.parse(readFileSync(`${path}.json`, "utf8")) as {
          label: string;
          maxWords?: number;
          report?: ClassifierReport;
        })
      : undefined;
    const chosen = label ?? side?.label;
    if (chosen === undefined || !model.labels.includes(chosen))
      throw new UserError(
        `${path} has the labels ${model.labels.slice(0, 20).join(", ")}; ${chosen === undefined ? "name the one of good texts" : `"${chosen}" is none of them`}.`,
        2,
      );
    return new QualityClassifier(model, chosen, side?.maxWords, side?.report);
  }

  /** Trains on `examples` (both kinds; neither the order matters nor the ids) and measures on the held-out ones. */
  static train(examples: Iterable<Example>, options: Partial<TrainOptions> = {}): QualityClassifier {
    const all = { ...TRAIN_DEFAULTS, ...options };
    const { kept, duplicates, contradictions } = withoutTwins(examples);
    const prepared = kept.map(({ key, good, text }) => ({ key, good, text: prepare(text, all.maxWords) }));
    const isHeldOut = prepared.map((e) => uniform(all.seed, "held-out", e.key) < all.heldOut);
    const training = prepared.filter((_, i) => !isHeldOut[i]);
    const heldOut = prepared.filter((_, i) => isHeldOut[i]);
    const count = (list: typeof prepared) => {
      const good = list.filter((e) => e.good).length;
      return { good, crawled: list.length - good };
    };
    const [train, held] = [count(training), count(heldOut)];
    for (const [name, n] of Object.entries({ ...train, heldOutGood: held.good, heldOutCrawled: held.crawled }))
      if (n === 0)
        throw new UserError(
          `The classifier has no ${name} texts (${train.good} good and ${train.crawled} crawled to train on, ${held.good} and ${held.crawled} held out). It needs more of both kinds.`,
        );
    const model = descend(training, all);
    const scores = heldOut.map((e) => predict(model, e.text)[0]);
    const good = heldOut.map((e) => e.good);
    const crawled = scores.filter((_, i) => !good[i]).sort((a, b) => b - a);
    const crawledScores = [0.1, 0.25, 0.5].map((share) => ({
      share,
      score: crawled[Math.max(0, Math.ceil(share * crawled.length) - 1)],
    }));
    const measures = measure(scores, good);
    const report: ClassifierReport = { train, heldOut: held, duplicates, contradictions, ...measures, crawledScores };
    return new QualityClassifier(model, GOOD, all.maxWords, report);
  }
}

function withoutTwins(examples: Iterable<Example>) {
  const byText = new Map<string, Example | null>();
  let duplicates = 0;
  let contradictions = 0;
  for (const example of examples) {
    const key = exactKey(example.text);
    const before = byText.get(key);
    if (before === undefined) byText.set(key, example);
    else if (before && before.good !== example.good) {
      byText.set(key, null);
      contradictions++;
    } else {
      duplicates++;
      // The smaller id, so that the order of reading does not decide which white space is read.
      if (before && example.id < before.id) byText.set(key, example);
    }
  }
  // In an order, and with a key for the draw, that are the same wherever the files lie.
  const kept = [...byText].flatMap(([key, example]) => (example ? [{ key, ...example }] : []));
  kept.sort((a, b) => (a.key < b.key ? -1 : 1));
  return { kept, duplicates, contradictions };
}

/** Stochastic gradient descent with a rate that falls to zero, one example at a time; both kinds weigh the same in sum. */
function descend(training: readonly { good: boolean; text: string }[], options: TrainOptions): FastTextModel {
  const { dim, epochs, learningRate, bucket, minCount, seed } = options;
  const counts = new Map<string, number>();
  let tokens = 0;
  for (const { text } of training)
    for (const word of [...Buffer.from(text, "utf8").toString("latin1").split(" "), "</s>"]) {
      counts.set(word, (counts.get(word) ?? 0) + 1);
      tokens++;
    }
  const entries = [...counts].filter(([word, n]) => n >= minCount && word !== "" && word !== "</s>");
  entries.sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  entries.unshift(["</s>", training.length]);
  const goods = training.filter((e) => e.good).length;
  const random = generator(seed);
  const model: FastTextModel = {
    // biome-ignore format: the fields of the file
    args: { dim, ws: 5, epoch: epochs, minCount, neg: 5, wordNgrams: 2, loss: LOSS.softmax, bucket, minn: 0, maxn: 0, lrUpdateRate: 100, t: 1e-4 },
    words: new Map(entries.map(([word], i) => [word, i])),
    counts: entries.map(([, n]) => n),
    labels: [GOOD, CRAWLED],
    labelCounts: [goods, training.length - goods],
    tokens,
    input: Float32Array.from({ length: (entries.length + bucket) * dim }, () => (2 * random() - 1) / dim),
    output: new Float32Array(2 * dim),
  };
  const rows = training.map((e) => Int32Array.from(features(model, e.text)));
  const order = Uint32Array.from(training, (_, i) => i);
  const weight = [training.length / (2 * (training.length - goods)), training.length / (2 * goods)];
  const gradient = new Float32Array(dim);
  for (let step = 0; step < epochs * order.length; step++) {
    const place = step % order.length;
    if (place === 0)
      for (let i = order.length - 1; i > 0; i--) {
        const j = Math.floor(random() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
    const { good } = training[order[place]];
    const used = rows[order[place]];
    const hidden = hiddenOf(model, used as unknown as number[]);
    const { output, input } = model;
    let logit = 0;
    for (let k = 0; k < dim; k++) logit += (output[k] - output[dim + k]) * hidden[k];
    // Capped: a rare class must not throw the weights about.
    const rate = learningRate * (1 - step / (epochs * order.length)) * Math.min(10, weight[good ? 1 : 0]);
    const push = rate * ((good ? 1 : 0) - 1 / (1 + Math.exp(-logit)));
    for (let k = 0; k < dim; k++) {
      gradient[k] = (push * (output[k] - output[dim + k])) / used.length;
      output[k] += push * hidden[k];
      output[dim + k] -= push * hidden[k];
    }
    for (const row of used) for (let k = 0; k < dim; k++) input[row * dim + k] += gradient[k];
  }
  return model;
}

/** Precision, recall and the area under the curve (Mann & Whitney's U; equal scores count half). */
export function measure(
  scores: readonly number[],
  good: readonly boolean[],
): Pick<ClassifierReport, "accuracy" | "auc" | "atHalf" | "thresholds"> {
  const at = (threshold: number): Measures => {
    let [hit, said, all] = [0, 0, 0];
    scores.forEach((score, i) => {
      if (good[i]) all++;
      if (score >= threshold) {
        said++;
        if (good[i]) hit++;
      }
    });
    const precision = said === 0 ? 0 : hit / said;
    const recall = all === 0 ? 0 : hit / all;
    return { threshold, precision, recall, f1: hit === 0 ? 0 : (2 * precision * recall) / (precision + recall) };
  };
  const order = scores.map((_, i) => i).sort((a, b) => scores[a] - scores[b]);
  let below = 0;
  let wins = 0;
  for (let i = 0; i < order.length; ) {
    let end = i;
    while (end < order.length && scores[order[end]] === scores[order[i]]) end++;
    const tied = order.slice(i, end);
    const bad = tied.filter((k) => !good[k]).length;
    wins += (tied.length - bad) * (below + bad / 2);
    below += bad;
    i = end;
  }
  const goods = good.filter(Boolean).length;
  return {
    accuracy: scores.filter((s, i) => s >= 0.5 === good[i]).length / scores.length,
    auc: wins / (goods * (scores.length - goods)),
    atHalf: at(0.5),
    thresholds: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].map(at),
  };
}

export interface KeepOptions {
  /** threshold: kept at or above it. pareto: kept if a draw from Pareto(alpha) is above 1 - score, so some low ones stay too. */
  mode: "threshold" | "pareto";
  threshold: number;
  alpha: number;
  seed: number;
}
export const KEEP_DEFAULTS: KeepOptions = { mode: "pareto", threshold: 0.5, alpha: 9, seed: 1 };

/** The draw of GPT-3's rule, numpy's pareto: (1 - u)^(-1/alpha) - 1 with u from (seed, id), by a hash that no other draw goes by. */
export function paretoDraw(seed: number, id: string, alpha: number): number {
  const digest = createHash("sha256").update(`${seed}\0${id}`).digest();
  const u = Number(digest.readBigUInt64BE(0) >> 11n) / 2 ** 53;
  return (1 - u) ** (-1 / alpha) - 1;
}

/** Judges a score. The threshold that is recorded is the one in force for this document. */
export function judgeScore(score: number, id: string, options: Partial<KeepOptions> = {}): Finding {
  const { mode, threshold, alpha, seed } = { ...KEEP_DEFAULTS, ...options };
  const limit = mode === "pareto" ? 1 - paretoDraw(seed, id, alpha) : threshold;
  const keep = mode === "pareto" ? score > limit : score >= limit;
  return {
    stage: "classifier",
    rule: mode === "pareto" ? "classifier.pareto" : "classifier.minScore",
    value: score,
    threshold: limit,
    verdict: keep ? "pass" : "drop",
  };
}
