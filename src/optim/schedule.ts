/** Learning rate as a function of the step: warm-up, then cosine (Loshchilov & Hutter 2017), WSD (Hu et al. 2024), linear or constant. */
export interface ScheduleConfig {
  kind: "cosine" | "wsd" | "linear" | "constant";
  warmupSteps: number;
  /** Where the decay ends, in the same unit as the peak. */
  minLearningRate: number;
  /** WSD: share of all steps that decay at the end (1 - sqrt form), those of the warm-up left out; 0: none does. */
  decayShare: number;
}

/** Learning rate of step 1 .. steps. */
export function learningRate(peak: number, step: number, steps: number, s: ScheduleConfig): number {
  if (step <= s.warmupSteps) return (peak * step) / s.warmupSteps;
  const min = s.minLearningRate;
  const progress = Math.min(1, (step - s.warmupSteps) / Math.max(1, steps - s.warmupSteps));
  if (s.kind === "constant") return peak;
  if (s.kind === "linear") return peak + (min - peak) * progress;
  if (s.kind === "cosine") return min + 0.5 * (peak - min) * (1 + Math.cos(Math.PI * progress));
  // The decay begins at the peak, so not before the warm-up has come to it.
  const decaySteps = Math.min(Math.round(steps * s.decayShare), steps - s.warmupSteps);
  const into = step - (steps - decaySteps);
  return into <= 0 ? peak : min + (peak - min) * (1 - Math.sqrt(Math.min(1, into / decaySteps)));
}
