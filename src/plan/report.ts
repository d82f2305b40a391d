/** A plan as a table for people and as JSON for programs. */
import { duration } from "../run/progress.js";
import type { Cluster } from "./cluster.js";
import { LINK_EFFICIENCY } from "./collectives.js";
import type { GridResult } from "./grid.js";
import { residents, type Workload, writesReplies } from "./layout.js";
import { type Plan, type Planned, USABLE } from "./layouts.js";
import { layerParameters } from "./shape.js";
import { bytesPerParameter, deepspeedZero2, deepspeedZero3 } from "./states.js";

export interface Report {
  workload: Workload;
  cluster: Cluster;
  plan: Plan;
  /** Tokens of the whole run; undefined: days and cost are not asked for. */
  tokens: number | undefined;
  /** The chosen layout on devices that are not all equally fast. */
  simulated?: GridResult | undefined;
}

/** What a run of `tokens` takes. */
export function runCost(p: Planned, c: Cluster, tokens: number) {
  const seconds = tokens / p.time.tokensPerSecond;
  const deviceHours = (seconds / 3600) * c.devices;
  return { days: seconds / 86400, deviceHours, cost: c.pricePerHour > 0 ? deviceHours * c.pricePerHour : null };
}

export function reportJson(report: Report) {
  const { workload: w, cluster, plan, tokens, simulated } = report;
  const nodes = { gpusPerNode: cluster.devicesPerNode, nodes: Math.ceil(cluster.devices / cluster.devicesPerNode) };
  const P = w.shape.parameters;
  const largest = Math.max(layerParameters(w.shape), w.shape.vocabSize * w.shape.hiddenSize);
  return {
    model: w.shape,
    stage: w.stage,
    contextLength: w.contextLength,
    globalBatch: w.globalBatch,
    precision: w.precision,
    cluster,
    strategies: plan.planned.map((p) => {
      const { models, ...memory } = p.memory;
      return {
        strategy: p.strategy,
        fits: p.fits,
        why: p.why,
        layout: p.layout,
        ...memory,
        modelStates: memory.parameters + memory.gradients + memory.optimizer,
        ...(models.length > 1 && { models }),
        stepSeconds: p.time.seconds,
        tokensPerSecond: p.time.tokensPerSecond,
        utilisation: p.time.utilisation,
        bubble: p.time.bubble,
        sentBytes: p.time.sent,
        seconds: p.time.parts,
        ...(tokens !== undefined && runCost(p, cluster, tokens)),
      };
    }),
    impossible: plan.impossible,
    chosen: plan.chosen?.strategy ?? null,
    deepspeed: {
      zero2: deepspeedZero2(P, nodes, false),
      zero2Offload: deepspeedZero2(P, nodes, true),
      zero3: deepspeedZero3(P, largest, nodes, "none"),
      zero3Offload: deepspeedZero3(P, largest, nodes, "optimizer"),
      zero3Infinity: deepspeedZero3(P, largest, nodes, "all"),
    },
    ...(simulated && { simulated }),
    assumptions: assumptions(report),
  };
}

/** What the numbers rest on; the first thing to read when one of them surprises. */
export function assumptions({ workload: w, cluster: c }: Report): string[] {
  const { parameters: p, gradients: g, optimizer: o } = bytesPerParameter(w.precision);
  const models = residents(w);
  const lines = [
    `Model ${w.shape.name}: ${billions(w.shape.parameters)} parameters (${w.shape.note}); ${w.shape.numLayers} layers, hidden size ${w.shape.hiddenSize}.`,
    `${w.precision}: ${p} + ${g} + ${o} = ${p + g + o} bytes a trained parameter (value, gradient, Adam's state), ${p} a frozen one. 1 GB is 10^9 bytes.`,
    `A step has ${w.globalBatch} sequences of ${w.contextLength} tokens. Attention is computed ${w.attention === "blocked" ? "in blocks, so that the scores are not kept" : "with its scores kept"}; logits ${w.logits === "chunked" ? "in chunks" : "whole"}.`,
    `${Math.round(100 * USABLE)}% of a device's memory can be used; matrix products reach ${Math.round(100 * c.matmulEfficiency)}% of ${(c.flops / 1e12).toFixed(0)} TFLOP/s; links ${Math.round(100 * LINK_EFFICIENCY)}% of their speed.`,
  ];
  if (models.length > 1) {
    const bytes = models.map(
      (m) => (m.shape.parameters + m.adapters) * p + (m.trained ? m.adapters || m.shape.parameters : 0) * (g + o),
    );
    const sum = bytes.reduce((a, b) => a + b, 0);
    lines.push(
      `${models.length} models in memory: ${models.map((m, i) => `${m.role} ${gb(bytes[i])} GB${m.trained ? "" : " (frozen)"}`).join(", ")}: ${gb(sum)} GB of model states, ` +
        `${gb(sum / c.devices)} GB on each of ${c.devices} when all are sharded (ZeRO-3).`,
    );
  }
  if (writesReplies(w))
    lines.push(
      `${w.stage.toUpperCase()}: replies of ${w.replyLength} tokens are written, scored by ${w.reward ? "all models" : "the models (the reward is a module: it has no parameters, and its time is not counted)"}, and trained on ${w.updateEpochs === 1 ? "once" : `${w.updateEpochs} times`}; the key-value cache and the activations are not in memory together.`,
    );
  if (w.stage === "dpo" && !w.residentReference)
    lines.push(
      "DPO: the reference's log-probabilities are computed once, before training, so only one model is in memory (--resident-reference: both).",
    );
  lines.push(
    "ZeRO-2 and ZeRO-3 send gradients after every micro-batch, the others once a step.",
    `The layouts are those of Megatron-LM and DeepSpeed. ${runnable(w)}; what is offloaded lies on disk there.`,
  );
  return lines;
}

/** Which of the layouts can be run here (docs/parallel.md). */
function runnable({ stage, adapters }: Workload): string {
  const some = stage === "ppo" || stage === "grpo" || adapters > 0;
  return `For ${stage}${adapters > 0 ? " with LoRA" : ""} Lyceum, which computes on CPUs, runs ${some ? "those of data parallelism and ZeRO only" : "all but the interleaved ones (v2 and more)"}`;
}

const gb = (bytes: number): string => (bytes === 0 ? "0" : (bytes / 1e9).toFixed(bytes < 1e8 ? 2 : 1));
const billions = (n: number): string =>
  n >= 1e9 ? `${(n / 1e9).toFixed(2)} billion` : `${(n / 1e6).toFixed(1)} million`;
/** 258123 -> 258k; for speeds and counts. */
function short(n: number): string {
  for (const [unit, letter] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
  ] as const)
    if (n >= unit) return `${Number((n / unit).toPrecision(3))}${letter}`;
  return n >= 1e4 ? `${(n / 1e3).toFixed(0)}k` : n >= 100 ? n.toFixed(0) : n.toPrecision(2);
}
const time = (days: number): string => (days >= 2 ? `${short(days)} days` : duration(days * 86400));

const simulation = (s: GridResult, c: Cluster): string =>
  `Simulated on ${c.devices} devices, ${short(s.pieces)} pieces of work and ${short(s.exchanges)} exchanges: a training pass takes ` +
  `${s.even.toPrecision(3)} s when all are equally fast, and ${s.uneven.toPrecision(3)} s (${(100 * (s.uneven / s.even - 1)).toFixed(1)}% more) when they differ; ` +
  `a device then spends ${Math.round(100 * s.waiting)}% of the pass waiting.`;

export function reportTable(r: Report): string {
  const { plan, cluster: c, tokens, workload: w } = r;
  const head = ["", "strategy", "layout", "param", "grad", "optim", "activ", "(recomp.)", "buffers"];
  if (writesReplies(w)) head.push("kv");
  head.push("total", "step s", "tokens/s", "MFU", "sent");
  if (tokens !== undefined) head.push("takes", ...(c.pricePerHour > 0 ? ["cost"] : ["dev-hours"]));
  const [unit, name] = plan.planned.some((p) => p.memory.total >= 1e9) ? [1e9, "GB"] : [1e6, "MB"];
  const size = (bytes: number): string => {
    if (bytes < unit / 100) return bytes === 0 ? "0" : (bytes / unit).toPrecision(1);
    return (bytes / unit).toFixed(bytes < unit / 10 ? 2 : 1);
  };
  const rows = plan.planned.map((p) => {
    const m = p.memory;
    const mark = p === plan.chosen ? ">" : p.fits ? "" : "x";
    const cells = [mark, p.strategy, p.layout.name, size(m.parameters), size(m.gradients), size(m.optimizer)];
    cells.push(size(m.activationsKept), size(m.activationsRecomputed), size(m.buffers));
    if (writesReplies(w)) cells.push(size(m.kvCache));
    const sent = p.time.sent.data + p.time.sent.tensor + p.time.sent.pipeline + p.time.sent.host;
    cells.push(size(m.total), short(p.time.seconds), short(p.time.tokensPerSecond));
    cells.push(`${Math.round(100 * p.time.utilisation)}%`, size(sent));
    if (tokens !== undefined) {
      const run = runCost(p, c, tokens);
      cells.push(time(run.days), short(run.cost ?? run.deviceHours));
    }
    return cells;
  });
  const widths = head.map((_, i) => Math.max(...[head, ...rows].map((row) => row[i].length)));
  const line = (row: string[]): string =>
    row
      .map((cell, i) => (i < 3 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])))
      .join("  ")
      .trimEnd();
  const title =
    `${w.stage} of ${w.shape.name} on ${c.devices} x ${c.name} (${gb(c.memory)} GB each, ${c.devicesPerNode} a node)` +
    (tokens === undefined ? "" : `, ${short(tokens)} tokens`);
  const width = Math.max(...plan.planned.map((p) => p.strategy.length), 8);
  const reasons = [...plan.planned.map((p) => ({ strategy: p.strategy, why: p.why })), ...plan.impossible];
  return [
    title,
    `memory in ${name}, of the fullest device; sent: ${name} that one device sends in a step; >: chosen, x: does not fit`,
    "",
    line(head),
    ...rows.map(line),
    "",
    plan.chosen
      ? `Cheapest that fits: ${plan.chosen.strategy} as ${plan.chosen.layout.name}.`
      : "No layout fits. Use more devices, devices with more memory, a smaller model or a shorter context.",
    ...reasons.map(({ strategy, why }) => `  ${strategy.padEnd(width)}  ${why}`),
    ...(r.simulated ? ["", simulation(r.simulated, c)] : []),
    "",
    "Assumptions:",
    ...assumptions(r).map((a) => `  ${a}`),
  ].join("\n");
}
