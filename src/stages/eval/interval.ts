/** How sure a share or a mean is: 95% intervals, and the share of comparisons that one of two models wins. */

export interface Share {
  /** 0 to 1. */
  share: number;
  /** The 95% interval. */
  interval: [number, number];
  n: number;
}

/** The normal distribution's 97.5% point. */
const Z = 1.959963984540054;

/**
 * Wilson's score interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference"), with
 * `successes` out of `n`. It stays within 0 and 1, and is honest at shares of 0 and 1, where the textbook's
 * p +- z sqrt(p (1 - p) / n) has no width at all.
 *
 * Ties may be counted as half a success: the variance of such a result is p (1 - p) - ties / 4n, less than the
 * p (1 - p) that the formula assumes, so that the interval is then wider than it need be, never narrower.
 */
export function wilson(successes: number, n: number): Share {
  if (n === 0) return { share: 0, interval: [0, 1], n };
  const p = successes / n;
  const scale = 1 / (1 + Z ** 2 / n);
  const middle = scale * (p + Z ** 2 / (2 * n));
  const half = scale * Z * Math.sqrt((p * (1 - p)) / n + Z ** 2 / (4 * n ** 2));
  // At the ends the formula gives 0 and 1 exactly; the rounding of a computer does not.
  const low = successes === 0 ? 0 : Math.max(0, middle - half);
  const high = successes === n ? 1 : Math.min(1, middle + half);
  return { share: p, interval: [low, high], n };
}

export interface WinRate extends Share {
  wins: number;
  ties: number;
  losses: number;
}

/** How often the first of two is scored higher on the same prompts, a tie counted half. */
export function winRate(scores: readonly number[], against: readonly number[]): WinRate {
  if (scores.length !== against.length) throw new RangeError("both models need a score for each prompt");
  const wins = scores.filter((s, i) => s > against[i]).length;
  const ties = scores.filter((s, i) => s === against[i]).length;
  return { ...wilson(wins + ties / 2, scores.length), wins, ties, losses: scores.length - wins - ties };
}

export interface Mean {
  mean: number;
  /** Standard deviation of the values, with n - 1. */
  std: number;
  /** 95% interval of the mean. */
  interval: [number, number];
  n: number;
}

const RESAMPLES = 2000;

/**
 * The mean and its 95% interval by the percentile bootstrap (Efron 1979; Efron & Tibshirani 1993, section 13.3): rewards
 * are often a few whole numbers, or have a long tail, and are far from normal. The same values give the same interval.
 */
export function bootstrapMean(values: readonly number[]): Mean {
  const n = values.length;
  const mean = average(values);
  const std = n > 1 ? Math.sqrt(values.reduce((s, x) => s + (x - mean) ** 2, 0) / (n - 1)) : 0;
  if (n === 0) return { mean, std, interval: [0, 0], n };
  const random = randomFrom(1);
  const means = Float64Array.from({ length: RESAMPLES }, () => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += values[Math.floor(random() * n)];
    return sum / n;
  }).sort();
  return { mean, std, interval: [quantile(means, 0.025), quantile(means, 0.975)], n };
}

export const average = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / Math.max(1, x.length);

/** Linear between the two nearest (Hyndman & Fan 1996, type 7). */
function quantile(sorted: Float64Array, q: number): number {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** Numbers in [0, 1) from a seed: xorshift32 (Marsaglia 2003). */
function randomFrom(seed: number): () => number {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}
