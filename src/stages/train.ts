/** A stage from code: its settings are those of its YAML file, checked in the same way, and what it leaves is in its folder. */
import { launched } from "../parallel/mpi.js";
import { check } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { RunFolder } from "../run/folder.js";
import type { MetricValues } from "../run/metrics.js";
import { STAGES, type StageSettings } from "./registry.js";

export interface StageOptions {
  /** The run's folder. */
  out: string;
  /** Goes on from its last checkpoint, where there is one. */
  resume?: boolean;
  /** When it is aborted, the run is saved after the step at hand, and ends with a UserError of exit code 130. */
  signal?: AbortSignal;
  /** Told after every step, with what metrics.jsonl has of it. */
  onStep?: (step: number, metrics: MetricValues) => void;
}

/** Runs a stage, and returns its folder. Throws UserError for settings that are wrong, and whatever ends the run. */
export async function train<S extends keyof StageSettings>(
  stage: S,
  settings: StageSettings[S],
  { out, resume, signal, onStep }: StageOptions,
): Promise<string> {
  if (!Object.hasOwn(STAGES, stage))
    throw new UserError(`There is no stage "${stage}"; known are ${Object.keys(STAGES).join(", ")}.`, 2);
  const job = launched();
  if (job)
    throw new UserError(
      `train() runs in one process, and ${job.size} were started. On several, a stage is run by its command: lyceum launch -n ${job.size} -- ${stage} CONFIG.yaml`,
      2,
    );
  const { schema, run } = STAGES[stage];
  const config = check(schema, { file: `settings of ${stage}`, value: settings, place: () => "" }) as object;
  const { keepCheckpoints = 1 } = config as { keepCheckpoints?: number };
  const folder = RunFolder.open(out, { stage, ...config }, { resume, keepCheckpoints });
  folder.signal = signal;
  folder.hearsSignals = false;
  folder.onStep = onStep;
  try {
    await folder.mustGoOn();
    await run(config, folder);
  } finally {
    folder.close();
  }
  return out;
}
