/**
 * The losses of the DPO family. All see two numbers of a pair, log p of the chosen and of the rejected reply, beside what the
 * reference says of them; each gives its derivatives by these two.
 */
import { logSigmoid, sigmoid } from "./reward.js";

export const PREFERENCE_LOSSES = ["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "kto"] as const;

/** Sums of log p over the reply tokens of a pair, under policy and reference, and the number of those tokens. */
export interface PairLogProbs {
  chosen: number;
  rejected: number;
  refChosen: number;
  refRejected: number;
  chosenTokens: number;
  rejectedTokens: number;
  /** KTO: the sums of a reply under the prompt of another; what they say is how far the policy has moved altogether. */
  other?: number;
  refOther?: number;
}
export interface PreferenceLossOptions {
  loss: (typeof PREFERENCE_LOSSES)[number];
  beta: number;
  labelSmoothing: number;
  referenceFree: boolean;
  lengthAverage: boolean;
  gamma: number;
}

/**
 * Mean loss over pairs, and its derivatives by the policy's sums log p(chosen) and log p(rejected).
 *   sigmoid  -(1-s) log sigmoid(beta D) - s log sigmoid(-beta D)             s = labelSmoothing (Mitchell 2023: conservative DPO)
 *   robust   the same with + s, over 1 - 2s                                  Chowdhury et al. 2024
 *   ipo      (D - 1 / (2 beta))^2                                            Azar et al. 2023
 *   hinge    max(0, 1 - beta D)                                              Zhao et al. 2023 (SLiC)
 *   simpo    -log sigmoid(beta (mean chosen - mean rejected) - gamma)        Meng et al. 2024; no reference
 *   orpo     -mean chosen - beta log sigmoid(log odds ratio)                 Hong et al. 2024; no reference
 *   kto      1 - sigmoid(beta (r_chosen - z)), 1 - sigmoid(beta (z - r_rejected))   Ethayarajh et al. 2024; z = `movedBy`
 * with D = r_chosen - r_rejected, r = log p - log p_ref.
 */
export function preferenceLoss(
  pairs: readonly PairLogProbs[],
  o: PreferenceLossOptions,
): { loss: number; dChosen: number[]; dRejected: number[] } {
  const { beta, labelSmoothing: s } = o;
  const n = pairs.length;
  const dChosen = pairs.map(() => 0);
  const dRejected = pairs.map(() => 0);
  let loss = 0;
  const ref = (x: number): number => (hasReference(o) ? x : 0);
  const ratios = pairs.map((p) => ({ chosen: p.chosen - ref(p.refChosen), rejected: p.rejected - ref(p.refRejected) }));
  const z = movedBy(pairs);

  pairs.forEach((p, i) => {
    const r = ratios[i];
    const delta = r.chosen - r.rejected;
    let slope: number; // d loss / d delta
    if (o.loss === "sigmoid") {
      loss += -(1 - s) * logSigmoid(beta * delta) - s * logSigmoid(-beta * delta);
      slope = beta * (s * sigmoid(beta * delta) - (1 - s) * sigmoid(-beta * delta));
    } else if (o.loss === "robust") {
      loss += (-(1 - s) * logSigmoid(beta * delta) + s * logSigmoid(-beta * delta)) / (1 - 2 * s);
      slope = (-beta * ((1 - s) * sigmoid(-beta * delta) + s * sigmoid(beta * delta))) / (1 - 2 * s);
    } else if (o.loss === "hinge") {
      loss += Math.max(0, 1 - beta * delta);
      slope = beta * delta < 1 ? -beta : 0;
    } else if (o.loss === "ipo") {
      const [nc, nr] = o.lengthAverage ? [p.chosenTokens, p.rejectedTokens] : [1, 1];
      const error = r.chosen / nc - r.rejected / nr - 1 / (2 * beta);
      loss += error * error;
      dChosen[i] = (2 * error) / nc / n;
      dRejected[i] = (-2 * error) / nr / n;
      return;
    } else if (o.loss === "kto") {
      const good = sigmoid(beta * (r.chosen - z));
      const bad = sigmoid(beta * (z - r.rejected));
      loss += (1 - good + (1 - bad)) / 2;
      dChosen[i] = (-beta * good * (1 - good)) / 2 / n;
      dRejected[i] = (beta * bad * (1 - bad)) / 2 / n;
      return;
    } else {
      const [c, j] = [p.chosen / p.chosenTokens, p.rejected / p.rejectedTokens];
      if (o.loss === "simpo") {
        const x = beta * (c - j) - o.gamma;
        loss += -logSigmoid(x);
        dChosen[i] = (-beta * sigmoid(-x)) / p.chosenTokens / n;
        dRejected[i] = (beta * sigmoid(-x)) / p.rejectedTokens / n;
      } else {
        // log odds(y) = log p - log(1 - p), with p the geometric mean over tokens; its slope by log p is 1 / (1 - p). A p that
        // fp32 has rounded to 1 has no odds; one a little below is meant.
        const [oneLessC, oneLessJ] = [c, j].map((logp) => -Math.expm1(Math.min(logp, -1e-6)));
        const x = c - j - (Math.log(oneLessC) - Math.log(oneLessJ));
        loss += -c - beta * logSigmoid(x);
        dChosen[i] = (-1 - (beta * sigmoid(-x)) / oneLessC) / p.chosenTokens / n;
        dRejected[i] = (beta * sigmoid(-x)) / oneLessJ / p.rejectedTokens / n;
      }
      return;
    }
    dChosen[i] = slope / n;
    dRejected[i] = -slope / n;
  });
  return { loss: loss / n, dChosen, dRejected };
}

/**
 * KTO's reference point: an estimate of KL(p || p_ref) from replies that do not belong to their prompts, at least 0. It is not
 * differentiated: a reply is good or bad against where the policy is by now.
 */
export function movedBy(pairs: readonly PairLogProbs[]): number {
  return Math.max(0, pairs.reduce((sum, p) => sum + (p.other ?? 0) - (p.refOther ?? 0), 0) / pairs.length);
}

/** Whether a loss asks what the reference says. */
export const hasReference = ({ loss, referenceFree }: Pick<PreferenceLossOptions, "loss" | "referenceFree">): boolean =>
  !referenceFree && loss !== "simpo" && loss !== "orpo";
