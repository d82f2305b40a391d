/** `lyceum corpus train-classifier`: good texts against crawled ones, with precision and recall on held-out texts. */
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { type Example, QualityClassifier, TRAIN_DEFAULTS } from "../corpus/classifier.js";
import { documentsOf } from "../corpus/input/documents.js";
import { UserError } from "../run/errors.js";
import { whole } from "./flags.js";

export interface ClassifierFlags {
  good: string[];
  crawled: string[];
  out: string;
  epochs: string;
  seed: string;
  json?: boolean;
}

/** Rounded down, so that a threshold of it keeps what has this score. */
function threeDigits(x: number): number {
  const unit = 10 ** (Math.floor(Math.log10(Math.max(x, 1e-9))) - 2);
  return Number((Math.floor(x / unit) * unit).toPrecision(3));
}

export async function command(flags: ClassifierFlags): Promise<void> {
  const epochs = whole("--epochs", flags.epochs, 1);
  const seed = whole("--seed", flags.seed, 0, Number.MAX_SAFE_INTEGER);
  // Before the work, and not after it.
  accessSync(dirname(flags.out), constants.W_OK);
  if (existsSync(flags.out) && statSync(flags.out).isDirectory())
    throw new UserError(`--out ${flags.out} is a folder, where a file is meant.`, 2);
  const examples: Example[] = [];
  let rejected = 0;
  for (const [kind, paths] of [
    ["good", flags.good],
    ["crawled", flags.crawled],
  ] as const)
    for await (const { id, text } of documentsOf(paths, kind, () => rejected++))
      if (text.trim() !== "") examples.push({ id: `${kind}/${id}`, text, good: kind === "good" });
  const classifier = QualityClassifier.train(examples, { ...TRAIN_DEFAULTS, epochs, seed });
  classifier.save(flags.out);
  const { report } = classifier;
  if (flags.json) {
    console.log(JSON.stringify({ out: flags.out, rejected, ...report }));
    return;
  }
  if (report) {
    const { train, heldOut, atHalf, accuracy, auc } = report;
    console.log(
      `trained on ${train.good} good and ${train.crawled} crawled texts, measured on ${heldOut.good} and ${heldOut.crawled} held out`,
    );
    console.log(
      `at 0.5: precision ${atHalf.precision.toFixed(3)}, recall ${atHalf.recall.toFixed(3)}, F1 ${atHalf.f1.toFixed(3)}; accuracy ${accuracy.toFixed(3)}, AUC ${auc.toFixed(3)}`,
    );
    for (const t of report.thresholds)
      console.log(`  ${t.threshold.toFixed(2)}  precision ${t.precision.toFixed(3)}  recall ${t.recall.toFixed(3)}`);
    const best = report.crawledScores.map(({ share, score }) => `${share * 100}% score ${threeDigits(score)} or more`);
    console.log(
      `of the crawled texts, the best ${best.join(", the best ")}: a threshold at that score keeps that share of a crawl like this one`,
    );
  }
  if (rejected > 0) console.error(`${rejected} records could not be used`);
  console.log(flags.out);
}
