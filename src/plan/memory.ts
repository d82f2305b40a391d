/** Bytes on the fullest device of a layout: model states, activations, buffers, key-value cache. */
import {
  type ActivationCase,
  backwardWorkspace,
  cacheBytes,
  headActivations,
  layerActivations,
  layerInput,
  logitBytes,
} from "./activations.js";
import { type Layout, microBatches, type Resident, residents, type Workload, writesReplies } from "./layout.js";
import { embeddingParameters, headParameters, layerParameters, type ModelShape } from "./shape.js";
import { modelStates, type StateBytes, stateTotal, valueBytes } from "./states.js";

export interface DeviceMemory extends StateBytes {
  /** What the layout keeps; and what it would keep either way. */
  activations: number;
  activationsKept: number;
  activationsRecomputed: number;
  /** Buckets of gradients, gathered layers, logits, gradients of activations, the layer that is recomputed. */
  buffers: number;
  /** Keys and values of the replies while they are written (PPO, GRPO). */
  kvCache: number;
  /** States + buffers + the larger of activations and cache: replies are written and trained on at different times. */
  total: number;
  /** Main memory that goes with the device. */
  host: number;
  /** Each model's states on the device. */
  models: { role: Resident["role"]; bytes: number }[];
}

/** Parameters summed in one message while the backward pass goes on; two such buckets are filled in turn. */
const BUCKET = 50e6;

/** Parameters of a pipeline stage, on one device of its tensor-parallel group. */
export function stageParameters(shape: ModelShape, stage: number, { pipeline, tensor }: Layout): number {
  const layers = (layerParameters(shape) * shape.numLayers) / pipeline;
  const first = stage === 0 ? embeddingParameters(shape) : 0;
  // Tied matrices on different stages exist twice (Narayanan et al. 2021, section 5).
  const last = stage === pipeline - 1 && pipeline > 1 && shape.tied ? embeddingParameters(shape) : 0;
  const head = stage === pipeline - 1 ? headParameters(shape) : 0;
  return (layers + first + last + head) / tensor;
}

export const activationCase = (w: Workload, l: Layout): ActivationCase => ({
  tokens: l.microBatch * w.contextLength,
  contextLength: w.contextLength,
  tensor: l.tensor,
  sequenceParallel: l.sequenceParallel,
  precision: w.precision,
  attention: w.attention,
});

/** The fullest device. */
export function deviceMemory(w: Workload, l: Layout): DeviceMemory {
  // Stages between the first and the last hold fewer micro-batches than the first, and no more matrices.
  const stages = l.pipeline === 1 ? [0] : [0, l.pipeline - 1];
  return stages.map((s) => stageMemory(w, l, s)).reduce((a, b) => (b.total > a.total ? b : a));
}

function stageMemory(w: Workload, l: Layout, stage: number): DeviceMemory {
  const c = activationCase(w, l);
  const sharding = { zero: l.zero, offload: l.offload, ranks: l.data, precision: w.precision };
  const states: StateBytes = { parameters: 0, gradients: 0, optimizer: 0 };
  let host = 0;
  const models = residents(w).map(({ role, shape, trained, adapters }) => {
    const own = stageParameters(shape, stage, l);
    const added = adapters / (l.tensor * l.pipeline);
    const { device, host: beside } = modelStates(own + added, sharding, trained ? added || own : 0);
    for (const key of ["parameters", "gradients", "optimizer"] as const) states[key] += device[key];
    host += stateTotal(beside);
    return { role, bytes: stateTotal(device) };
  });

  // Only one model is in its backward pass at a time: the largest counts.
  const largest = residents(w)
    .filter((r) => r.trained)
    .map((r) => r.shape)
    .reduce((a, b) => (b.parameters > a.parameters ? b : a));
  const last = stage === l.pipeline - 1;
  const m = microBatches(w, l);
  const held = Math.min(m, l.pipeline - stage);
  // Interleaving lets the first stage run further ahead: 1 + (p - 1) / (p v) as many (Korthikanti et al. 2022, section 4.2.3).
  const ahead = l.chunks > 1 ? held * (1 + (l.pipeline - 1) / (l.pipeline * l.chunks)) : held;
  const layers = largest.numLayers / l.pipeline;
  const around = last ? headActivations(largest, c) : 0;
  const kept = ahead * layers * layerActivations(largest, c) + around;
  const recomputed = ahead * layers * layerInput(largest, c) + around;

  const width = valueBytes(w.precision);
  const layerBytes = (layerParameters(largest) / l.tensor) * width;
  const ends = stage === 0 || last ? (embeddingParameters(largest) / l.tensor) * width : 0;
  const shared = l.data > 1 || l.offload !== "none";
  const buckets = l.zero >= 2 && shared ? 2 * Math.min(BUCKET, stageParameters(largest, stage, l)) * width : 0;
  // This layer and the next one's parameters, and this layer's gradient; the embedding's is a layer too.
  const gathered = l.zero === 3 && shared ? 3 * Math.max(layerBytes, ends) : 0;
  const buffers =
    buckets +
    gathered +
    backwardWorkspace(largest, c) +
    (last ? logitBytes(largest, c, w.logits) : 0) +
    (l.recompute ? layerActivations(largest, c) - layerInput(largest, c) : 0);
  const replies = writesReplies(w) ? Math.ceil(w.globalBatch / l.data) : 0;
  const kvCache = cacheBytes(w.shape, replies * w.contextLength, w.precision) / (l.tensor * l.pipeline);
  const activations = l.recompute ? recomputed : kept;
  return {
    ...states,
    activations,
    activationsKept: kept,
    activationsRecomputed: recomputed,
    buffers,
    kvCache,
    total: stateTotal(states) + buffers + Math.max(activations, kvCache),
    host,
    models,
  };
}
