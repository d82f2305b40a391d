/** What PPO tells of a step, under TRL's names. */
import type { Experience } from "./rollout.js";

/** Numbers of the updates of a step: their means, and how much a number varied among them. */
export class Totals {
  private readonly seen = new Map<string, number[]>();
  add(values: Record<string, number>): void {
    for (const [key, value] of Object.entries(values)) this.seen.set(key, [...(this.seen.get(key) ?? []), value]);
  }
  mean(key: string): number {
    return mean(this.seen.get(key) ?? [Number.NaN]);
  }
  variance(key: string): number {
    const all = this.seen.get(key) ?? [];
    const centre = mean(all);
    return all.reduce((s, x) => s + (x - centre) ** 2, 0) / Math.max(1, all.length - 1);
  }
  all(): Record<string, number> {
    return Object.fromEntries([...this.seen.keys()].map((key) => [key, this.mean(key)]));
  }
}

/**
 * How far the policy is from the reference, in nats: the sum over a reply's tokens, the mean over replies. `kl`: of a token's log p - log p_ref;
 * taken as it is (k1), the sum is log p(reply) - log p_ref(reply).
 */
export const klOfReplies = (
  { logp, ref }: Pick<Experience, "logp" | "ref">,
  kl = (logRatio: number) => logRatio,
): number => mean(logp.map((row, i) => row.reduce((sum, p, t) => sum + kl(p - ref[i][t]), 0)));

/** Share of the returns' variance that the critic foresaw; 1 is perfect, 0 no better than the mean. */
function explainedVariance({ returns, values }: Experience): number {
  const flat = returns.flatMap((row, i) => Array.from(row, (r, t) => ({ r, error: r - values[i][t] })));
  const [mr, me] = [mean(flat.map((x) => x.r)), mean(flat.map((x) => x.error))];
  const variance = mean(flat.map((x) => (x.r - mr) ** 2));
  return variance > 0 ? 1 - mean(flat.map((x) => (x.error - me) ** 2)) / variance : 0;
}

export const replyTokens = ({ episodes }: Experience): number =>
  episodes.reduce((n, e) => n + e.ids.length - e.start, 0);

/** `seconds`: of the rollout (with everybody's look at it), and of the updates; `passes`: how often each reply was trained on. */
export function stepMetrics(
  x: Experience,
  totals: Totals,
  penalty: { klCoef: number; kl: (logRatio: number) => number },
  seconds: { rollout: number; update: number },
  passes: number,
): { loss: number } & Record<string, number> {
  const { klCoef } = penalty;
  const kl = klOfReplies(x, penalty.kl);
  const scores = mean(x.scores);
  const tokens = replyTokens(x);
  return {
    loss: totals.mean("loss/policy_avg"),
    ...totals.all(),
    "val/ratio_var": totals.variance("val/ratio"),
    "objective/kl": kl,
    "objective/entropy": mean(x.logp.map((row) => -row.reduce((sum, p) => sum + p, 0))),
    "objective/scores": scores,
    "objective/non_score_reward": -klCoef * kl,
    "objective/rlhf_reward": scores - klCoef * kl,
    "val/explained_variance": explainedVariance(x),
    "val/reply_length": tokens / x.episodes.length,
    "val/num_eos_tokens": x.episodes.filter((e) => e.finished).length,
    klCoef,
    "rollout/tokensPerSecond": Math.round(tokens / seconds.rollout),
    "update/tokensPerSecond": Math.round((tokens * passes) / seconds.update),
  };
}
export const shownMetrics = [
  "objective/scores",
  "objective/kl",
  "policy/clipfrac_avg",
  "val/explained_variance",
  "val/reply_length",
];

export const mean = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / Math.max(1, x.length);
