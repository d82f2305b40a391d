/** Seconds of a step on a described cluster, where they go, and what each device sends. */
import type { Cluster } from "./cluster.js";
import { collectiveBytes, collectiveSeconds, type Group, messageSeconds } from "./collectives.js";
import { decodeSeconds, headSeconds, layerSeconds, trainingFlops, UPDATE_BYTES } from "./compute.js";
import { type Layout, microBatches, type Resident, residents, type Workload, writesReplies } from "./layout.js";
import { activationCase, stageParameters } from "./memory.js";
import { layerParameters } from "./shape.js";
import { simulatePipeline } from "./simulate.js";
import { valueBytes } from "./states.js";

export interface StepTime {
  seconds: number;
  /** Parts of it: the pipeline with its bubble, gradients still on their way when it ends, the update, main memory, writing replies. */
  parts: { pipeline: number; gradients: number; update: number; offload: number; generation: number; scoring: number };
  /** Share of the pipeline's time in which a device waits for others. */
  bubble: number;
  /** Bytes that one device sends in a step, by the direction of the grid; host: to and from main memory. */
  sent: { data: number; tensor: number; pipeline: number; host: number };
  tokensPerSecond: number;
  /** Share of the devices' peak that is the model's own arithmetic (MFU; recomputed layers do not count). */
  utilisation: number;
}

/** Share of a transfer that is felt even when it runs beside computation: it takes memory bandwidth and waits for its turn. */
const FELT = 0.1;
const beside = (transfer: number, compute: number): number => Math.max(transfer, compute + FELT * transfer);

/** Tensor-parallel groups fill a node first, then replicas, then the pipeline (Narayanan et al. 2021, section 3). */
function groups(l: Layout, c: Cluster): { tensor: Group; data: Group; pipelineWithin: boolean } {
  const tensorPerNode = Math.min(l.tensor, c.devicesPerNode);
  const left = Math.max(1, Math.floor(c.devicesPerNode / l.tensor));
  return {
    tensor: { size: l.tensor, perNode: tensorPerNode },
    data: { size: l.data, perNode: Math.min(l.data, left) },
    pipelineWithin: l.tensor * l.data * 2 <= c.devicesPerNode,
  };
}

/** Seconds of one micro-batch on each stage, with what is sent for it, and bytes that its forward and backward passes send. */
export function stageSeconds({ shape, adapters }: Resident, w: Workload, l: Layout, c: Cluster) {
  const a = activationCase(w, l);
  const { tensor, data, pipelineWithin } = groups(l, c);
  const layers = shape.numLayers / l.pipeline;
  const layer = layerSeconds(shape, a, c);
  const head = headSeconds(shape, a, c);
  const hidden = a.tokens * shape.hiddenSize * valueBytes(w.precision);
  // Two sums of the hidden states forward (attention, MLP) and two backward (Megatron-LM, Shoeybi et al. 2019, section 3).
  const sum = l.tensor > 1 ? collectiveSeconds(hidden, tensor, c, 2) : 0;
  let forward = layer.forward + 2 * sum;
  // A frozen matrix has no gradient of its own: one product backward in the place of two.
  let backward = layer.backward / (adapters > 0 ? 2 : 1) + 2 * sum + (l.recompute ? forward : 0);

  // ZeRO-3 gathers each layer before its forward and its backward pass; gradients are scattered as they are produced (ZeRO-2 too).
  const layerBytes = (layerParameters(shape) / l.tensor) * valueBytes(w.precision);
  const pass = l.data > 1 ? collectiveSeconds(layerBytes, data, c, 1) : 0;
  const fetch = l.offload === "all" ? layerBytes / l.data / c.hostBandwidth : 0;
  if (l.zero === 3) {
    forward = beside(pass + fetch, forward);
    backward = beside(2 * pass + fetch, backward);
  } else if (l.zero === 2) backward = beside(pass, backward);

  const last = l.pipeline - 1;
  const sums = collectiveBytes(hidden, l.tensor, 2) * layers;
  return {
    stages: Array.from({ length: l.pipeline }, (_, s) => ({
      forward: layers * forward + (s === last ? head.forward : 0),
      backward: layers * backward + (s === last ? head.backward : 0),
    })),
    send: l.pipeline > 1 ? messageSeconds(hidden / l.tensor, pipelineWithin, c) : 0,
    sentForward: { tensor: 2 * sums, pipeline: l.pipeline > 1 ? (l.chunks * hidden) / l.tensor : 0 },
    sentBackward: {
      tensor: (l.recompute ? 4 : 2) * sums,
      pipeline: l.pipeline > 1 ? (l.chunks * hidden) / l.tensor : 0,
    },
  };
}

/** The exchange of gradients and parameters once a step: seconds that nothing hides, and bytes sent. */
export function exchange({ shape, adapters }: Resident, w: Workload, l: Layout, c: Cluster) {
  const whole = stageParameters(shape, 0, l);
  const trained = adapters > 0 ? adapters / (l.tensor * l.pipeline) : whole;
  if (l.data === 1) return { whole, trained, seconds: 0, sent: 0 };
  const { data } = groups(l, c);
  const m = microBatches(w, l);
  const { stages } = stageSeconds({ role: "model", shape, adapters, trained: true }, w, l, c);
  const bytes = trained * valueBytes(w.precision);
  const shown = (seconds: number, compute: number): number => beside(seconds, compute) - compute;
  // Only the last micro-batch's backward pass has gradients to send while it computes.
  const scatter = collectiveSeconds(bytes, data, c, l.zero === 0 ? 2 : 1);
  let seconds = l.zero <= 1 ? shown(scatter, stages[0].backward) : 0;
  // The new parameters are gathered layer by layer while the next step's first forward pass runs.
  if (l.zero === 1 || l.zero === 2) seconds += shown(collectiveSeconds(bytes, data, c, 1), stages[0].forward);
  const gathered = l.zero === 3 ? 2 * m * whole : trained;
  const scattered = l.zero >= 2 ? m * trained : trained;
  return {
    whole,
    trained,
    seconds,
    sent: collectiveBytes((gathered + scattered) * valueBytes(w.precision), l.data, 1),
  };
}

/** One trained model's forward and backward passes, gradient exchange and update; and a forward pass alone. */
function trainingPass(model: Resident, w: Workload, l: Layout, c: Cluster) {
  const m = microBatches(w, l);
  const { stages, send, sentForward, sentBackward } = stageSeconds(model, w, l, c);
  const pipeline = pipelineSeconds(stages, m, l.chunks, send);
  const { whole, trained, seconds, sent } = exchange(model, w, l, c);
  const owned = l.zero >= 1 ? trained / l.data : trained;
  const offloaded = l.offload !== "none";
  const update = (owned * UPDATE_BYTES) / (offloaded ? c.hostMemoryBandwidth : c.memoryBandwidth);
  // Gradients go to main memory and parameters come back.
  const hostBytes = offloaded ? 2 * owned * valueBytes(w.precision) : 0;
  const fetched = l.offload === "all" ? m * (whole / l.data) * valueBytes(w.precision) : 0;
  const slowest = Math.max(...stages.map((s) => s.forward));
  return {
    pipeline: pipeline.seconds,
    bubble: pipeline.bubble,
    gradients: seconds,
    update,
    offload: hostBytes / c.hostBandwidth,
    sent: {
      data: sent,
      tensor: m * (sentForward.tensor + sentBackward.tensor),
      pipeline: m * (sentForward.pipeline + sentBackward.pipeline),
      host: hostBytes + 2 * fetched,
    },
    scoring: (m - 1) * slowest + stages.reduce((n, s) => n + s.forward, 0),
    sentScoring: {
      data: l.zero === 3 ? m * collectiveBytes(whole * valueBytes(w.precision), l.data, 1) : 0,
      tensor: m * sentForward.tensor,
      pipeline: m * sentForward.pipeline,
      host: fetched,
    },
  };
}

/** Beyond a few rounds every further micro-batch costs the slowest stage's time: those are added without simulating them. */
function pipelineSeconds(
  stages: readonly { forward: number; backward: number }[],
  m: number,
  chunks: number,
  send: number,
): { seconds: number; bubble: number } {
  const p = stages.length;
  const micro = Math.min(m, 2 * p);
  const run = simulatePipeline({
    stages: p,
    micro,
    schedule: "1f1b",
    chunks,
    forward: stages.map((s) => s.forward / chunks),
    backward: stages.map((s) => s.backward / chunks),
    send,
  });
  const seconds = run.seconds + (m - micro) * Math.max(...stages.map((s) => s.forward + s.backward));
  const worked = m * stages.reduce((n, s) => n + s.forward + s.backward, 0);
  return { seconds, bubble: 1 - worked / (p * seconds) };
}

export function stepTime(w: Workload, l: Layout, c: Cluster): StepTime {
  const devices = l.data * l.tensor * l.pipeline;
  const sequences = microBatches(w, l) * l.microBatch * l.data;
  const tokens = sequences * w.contextLength;
  const parts = { pipeline: 0, gradients: 0, update: 0, offload: 0, generation: 0, scoring: 0 };
  const sent = { data: 0, tensor: 0, pipeline: 0, host: 0 };
  const add = (some: typeof sent, times: number): void => {
    for (const key of ["data", "tensor", "pipeline", "host"] as const) sent[key] += times * some[key];
  };
  let bubble = 0;
  let flops = 0;
  const writes = writesReplies(w);
  const repeats = writes ? w.updateEpochs : 1;
  for (const model of residents(w)) {
    const pass = trainingPass(model, w, l, c);
    const perToken = trainingFlops(model.shape, w.contextLength, w.attention) / 3;
    if (writes || !model.trained) {
      // Every model looks at the replies once; with adapters the actor is the reference as well.
      const looks = writes && w.reference && model.role === "actor" && model.adapters > 0 ? 2 : 1;
      parts.scoring += looks * pass.scoring;
      add(pass.sentScoring, looks);
      flops += looks * tokens * perToken;
    }
    if (!model.trained) continue;
    for (const key of ["pipeline", "gradients", "update", "offload"] as const) parts[key] += repeats * pass[key];
    add(pass.sent, repeats);
    bubble = Math.max(bubble, pass.bubble);
    flops += repeats * tokens * perToken * (model.adapters > 0 ? 2 : 3);
  }
  if (writes) {
    const past = w.contextLength - w.replyLength / 2; // on average
    const token = decodeSeconds(w.shape, sequences / l.data, past, w.precision, l.tensor * l.pipeline, c);
    // Under ZeRO-3 every token needs every layer gathered again.
    const bytes = stageParameters(w.shape, 0, l) * valueBytes(w.precision);
    const gather = l.zero === 3 && l.data > 1 ? collectiveSeconds(bytes, groups(l, c).data, c, 1) : 0;
    parts.generation = w.replyLength * beside(gather, token);
    if (gather > 0) sent.data += w.replyLength * collectiveBytes(bytes, l.data, 1);
    flops += (tokens * trainingFlops(w.shape, w.contextLength, w.attention)) / 3;
  }
  const seconds = Object.values(parts).reduce((a, b) => a + b, 0);
  return {
    seconds,
    parts,
    bubble,
    sent,
    tokensPerSecond: tokens / seconds,
    utilisation: flops / (seconds * devices * c.flops),
  };
}
