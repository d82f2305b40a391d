/** What is to be trained (Workload), and how it is spread over devices (Layout). */
import type { ModelShape } from "./shape.js";
import type { Offload, Precision, Zero } from "./states.js";

export const PLANNED_STAGES = ["pretrain", "sft", "reward", "dpo", "ppo", "grpo"] as const;
export type PlannedStage = (typeof PLANNED_STAGES)[number];

export interface Workload {
  stage: PlannedStage;
  shape: ModelShape;
  /** Tokens of a sequence; where replies are written (PPO, GRPO), of prompt and reply together. */
  contextLength: number;
  /** Sequences of a step, over all devices. A preference is two sequences. */
  globalBatch: number;
  precision: Precision;
  attention: "blocked" | "full";
  logits: "chunked" | "full";
  /** PPO and GRPO: tokens of a reply, and passes over the replies. */
  replyLength: number;
  updateEpochs: number;
  /** PPO: the critic. */
  critic: ModelShape;
  /** PPO and GRPO: the reward model. Undefined: rewards come from a module, which has no parameters. */
  reward: ModelShape | undefined;
  /** PPO and GRPO: whether there is a reference at all. GRPO without a KL term has none. */
  reference: boolean;
  /** Parameters of LoRA adapters beside the frozen model (of PPO and GRPO the actor's); 0: all parameters are trained. */
  adapters: number;
  /** DPO: the reference stays in memory. Lyceum computes its log-probabilities once, before training, and lets it go. */
  residentReference: boolean;
}

export interface Layout {
  name: string;
  data: number;
  tensor: number;
  pipeline: number;
  zero: Zero;
  offload: Offload;
  recompute: boolean;
  /** Sequences of a micro-batch, on one replica. */
  microBatch: number;
  /** Chunks of layers on a device (interleaved 1F1B). */
  chunks: number;
  sequenceParallel: boolean;
}

/** A model in memory, and whether it is trained. */
export interface Resident {
  role: "model" | "actor" | "critic" | "ref" | "reward" | "policy";
  shape: ModelShape;
  trained: boolean;
  /** Parameters with a gradient, when they are not the model's own. */
  adapters: number;
}

/** Whether a step writes replies, has them scored, and learns from them. */
export const writesReplies = ({ stage }: Workload): boolean => stage === "ppo" || stage === "grpo";

/**
 * The models of a stage (notes 4.2.3: PPO has four, two of them trained; GRPO has no critic). With adapters the reference is the model without
 * them; where a module gives the rewards there is no reward model.
 */
export function residents(w: Workload): Resident[] {
  const { shape, adapters, reward } = w;
  const frozen = { trained: false, adapters: 0 };
  const reference: Resident[] = adapters > 0 ? [] : [{ role: "ref", shape, ...frozen }];
  if (writesReplies(w))
    return [
      { role: "actor", shape, trained: true, adapters },
      ...(w.stage === "ppo" ? [{ role: "critic" as const, shape: w.critic, trained: true, adapters: 0 }] : []),
      ...(w.reference ? reference : []),
      ...(reward ? [{ role: "reward" as const, shape: reward, ...frozen }] : []),
    ];
  if (w.stage !== "dpo") return [{ role: "model", shape, trained: true, adapters }];
  return [{ role: "policy", shape, trained: true, adapters }, ...(w.residentReference ? reference : [])];
}

/** Micro-batches of a step on one replica. */
export const microBatches = (w: Workload, l: Layout): number =>
  Math.max(1, Math.round(w.globalBatch / (l.data * l.microBatch)));

export const layout = (some: Partial<Layout> & { name: string }): Layout => ({
  data: 1,
  tensor: 1,
  pipeline: 1,
  zero: 0,
  offload: "none",
  recompute: false,
  microBatch: 1,
  chunks: 1,
  sequenceParallel: false,
  ...some,
});

export const workload = (some: Partial<Workload> & { shape: ModelShape }): Workload => ({
  stage: "pretrain",
  contextLength: 2048,
  globalBatch: 512,
  precision: "bf16",
  attention: "blocked",
  logits: "chunked",
  replyLength: Math.floor((some.contextLength ?? 2048) / 2),
  updateEpochs: some.stage === "grpo" ? 1 : 4,
  critic: some.shape,
  reward: some.shape,
  reference: true,
  adapters: 0,
  residentReference: false,
  ...some,
});
