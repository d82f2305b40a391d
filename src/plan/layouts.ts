/** Every way to spread a workload over a cluster: the best of each strategy, the cheapest of all that fits, and why not the others. */
import type { Cluster } from "./cluster.js";
import { type Layout, layout, microBatches, type Workload } from "./layout.js";
import { type DeviceMemory, deviceMemory } from "./memory.js";
import { type StepTime, stepTime } from "./time.js";

/** Share of a device's memory that can be planned with: the rest goes to the driver, libraries and fragmentation. */
export const USABLE = 0.94;

export interface Planned {
  strategy: string;
  layout: Layout;
  memory: DeviceMemory;
  time: StepTime;
  fits: boolean;
  /** Why it does not fit, or what it costs against the chosen one. */
  why: string;
}
/** A strategy that this cluster, model or batch has no room for at all. */
export interface Impossible {
  strategy: string;
  why: string;
}
export interface Plan {
  planned: Planned[];
  impossible: Impossible[];
  chosen: Planned | undefined;
}

/** A strategy: which grids, which sharding. */
interface Strategy {
  name: string;
  tensor: boolean;
  pipeline: boolean;
  sharding: Pick<Layout, "zero" | "offload">;
}
const none = "none" as const;
const STRATEGIES: Strategy[] = [
  { name: "ddp", tensor: false, pipeline: false, sharding: { zero: 0, offload: none } },
  { name: "zero1", tensor: false, pipeline: false, sharding: { zero: 1, offload: none } },
  { name: "zero2", tensor: false, pipeline: false, sharding: { zero: 2, offload: none } },
  { name: "zero3", tensor: false, pipeline: false, sharding: { zero: 3, offload: none } },
  { name: "zero2-offload", tensor: false, pipeline: false, sharding: { zero: 2, offload: "optimizer" } },
  { name: "zero3-offload", tensor: false, pipeline: false, sharding: { zero: 3, offload: "optimizer" } },
  { name: "zero3-infinity", tensor: false, pipeline: false, sharding: { zero: 3, offload: "all" } },
  { name: "tensor", tensor: true, pipeline: false, sharding: { zero: 0, offload: none } },
  { name: "tensor-zero1", tensor: true, pipeline: false, sharding: { zero: 1, offload: none } },
  { name: "tensor-zero3", tensor: true, pipeline: false, sharding: { zero: 3, offload: none } },
  { name: "pipeline", tensor: false, pipeline: true, sharding: { zero: 0, offload: none } },
  { name: "pipeline-zero1", tensor: false, pipeline: true, sharding: { zero: 1, offload: none } },
  { name: "3d", tensor: true, pipeline: true, sharding: { zero: 0, offload: none } },
  { name: "3d-zero1", tensor: true, pipeline: true, sharding: { zero: 1, offload: none } },
];

const divisors = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);

/** Grids of a strategy: tensor x pipeline, the rest data. */
function grids(s: Strategy, w: Workload, c: Cluster): { tensor: number; pipeline: number; data: number }[] {
  const { numHeads, numKvHeads, intermediateSize, numLayers } = w.shape;
  const tensors = s.tensor
    ? divisors(c.devicesPerNode).filter(
        (t) =>
          t > 1 && numHeads % t === 0 && (numKvHeads % t === 0 || t % numKvHeads === 0) && intermediateSize % t === 0,
      )
    : [1];
  const pipelines = s.pipeline ? divisors(numLayers).filter((p) => p > 1 && p <= c.devices) : [1];
  return tensors
    .flatMap((tensor) => pipelines.map((pipeline) => ({ tensor, pipeline, data: c.devices / (tensor * pipeline) })))
    .filter(({ data }) => Number.isInteger(data) && data >= 1);
}

/** Sharded over one replica is not sharded; with offload it is still worth something. */
const sharesNothing = (s: Strategy, data: number): boolean =>
  data === 1 && s.sharding.zero > 0 && s.sharding.offload === "none";

/** Layouts of one strategy: grids x micro-batch x recomputation x chunks. */
function* variants(s: Strategy, w: Workload, c: Cluster): Generator<Layout> {
  for (const grid of grids(s, w, c)) {
    const share = w.globalBatch / grid.data;
    if (share < 1 || sharesNothing(s, grid.data)) continue;
    for (let microBatch = 1; microBatch <= Math.min(64, share); microBatch *= 2) {
      const some = { ...s.sharding, ...grid, microBatch, sequenceParallel: grid.tensor > 1 };
      const m = microBatches(w, layout({ ...some, name: "" }));
      for (const recompute of [false, true])
        for (const chunks of grid.pipeline > 1 && m % grid.pipeline === 0 ? [1, 2, 4] : [1])
          if ((w.shape.numLayers / grid.pipeline) % chunks === 0)
            yield layout({ ...some, name: layoutName({ ...some, ...grid, recompute, chunks }), recompute, chunks });
    }
  }
}

/** dp8-tp4-pp2-zero1: the grid and the sharding, as people write it. */
function layoutName(l: Omit<Layout, "name">): string {
  const grid = [
    ["dp", l.data],
    ["tp", l.tensor],
    ["pp", l.pipeline],
  ] as const;
  const parts = grid.filter(([, n]) => n > 1).map(([name, n]) => `${name}${n}`);
  if (l.chunks > 1) parts.push(`v${l.chunks}`);
  if (l.zero > 0) parts.push(`zero${l.zero}`);
  if (l.offload !== "none") parts.push(l.offload === "all" ? "offload-all" : "offload");
  parts.push(`mb${l.microBatch}`);
  if (l.recompute) parts.push("recompute");
  return parts.join("-");
}

/** The best layout of every strategy, in the order of the literature; `chosen` takes the fewest device-hours for a token. */
export function plan(w: Workload, c: Cluster): Plan {
  const planned: Planned[] = [];
  const impossible: Impossible[] = [];
  for (const s of STRATEGIES) {
    const best = bestOf(s, w, c);
    if (best) planned.push(best);
    else impossible.push({ strategy: s.name, why: whyImpossible(s, w, c) });
  }
  const fitting = planned.filter((p) => p.fits);
  const chosen = fitting.reduce<Planned | undefined>(
    // A strategy later in the list has more to it: it must be faster by more than rounding.
    (best, p) => (!best || p.time.tokensPerSecond > 1.001 * best.time.tokensPerSecond ? p : best),
    undefined,
  );
  for (const p of planned) p.why = p.fits ? whySlower(p, chosen) : whyTooLarge(p, c);
  return { planned, impossible, chosen };
}

export const fitsDevice = (m: DeviceMemory, c: Cluster): boolean =>
  m.total <= USABLE * c.memory && m.host <= USABLE * c.hostMemory;

/** The fastest variant that fits; if none does, the one that comes nearest. */
function bestOf(s: Strategy, w: Workload, c: Cluster): Planned | undefined {
  let best: Planned | undefined;
  for (const l of variants(s, w, c)) {
    const memory = deviceMemory(w, l);
    const fits = fitsDevice(memory, c);
    if (best?.fits && !fits) continue;
    if (!fits && best && memory.total >= best.memory.total) continue;
    const time = stepTime(w, l, c);
    if (fits && best?.fits && time.tokensPerSecond <= best.time.tokensPerSecond) continue;
    best = { strategy: s.name, layout: l, memory, time, fits, why: "" };
  }
  return best;
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;

function whyTooLarge({ memory: m }: Planned, c: Cluster): string {
  if (m.total <= USABLE * c.memory)
    return `needs ${gigabytes(m.host)} of main memory for each device, which has ${gigabytes(c.hostMemory)}`;
  const parts = ["parameters", "gradients", "optimizer", "activations", "kvCache", "buffers"] as const;
  const largest = parts.reduce((a, b) => (m[b] > m[a] ? b : a));
  const name = largest === "kvCache" ? "the replies' key-value cache" : largest;
  return (
    `needs ${gigabytes(m.total)} and ${gigabytes(USABLE * c.memory)} can be used, even with recomputation and micro-batches ` +
    `of one sequence; the largest part is ${name} (${gigabytes(m[largest])})`
  );
}

function whySlower(p: Planned, chosen: Planned | undefined): string {
  if (!chosen || p === chosen) return "the fewest device-hours of all that fit";
  const slower = chosen.time.tokensPerSecond / p.time.tokensPerSecond;
  if (slower <= 1.001) return "as fast, and more complicated";
  const times = `fits, ${((slower - 1) * 100).toFixed(slower < 1.1 ? 1 : 0)}% slower`;
  const { parts, bubble, seconds } = p.time;
  const causes: [string, number][] = [
    ["recomputed layers", p.layout.recompute && !chosen.layout.recompute ? seconds / 5 : 0],
    ["waiting in the pipeline", bubble * parts.pipeline],
    ["gradients on their way", parts.gradients],
    ["the update in main memory", p.layout.offload === "none" ? 0 : parts.update + parts.offload],
  ];
  const [cause, cost] = causes.reduce((a, b) => (b[1] > a[1] ? b : a));
  return cost > 0.02 * seconds ? `${times}: ${cause}` : times;
}

function whyImpossible(s: Strategy, w: Workload, c: Cluster): string {
  const { numHeads, numLayers } = w.shape;
  const all = grids(s, w, c);
  const found = all.filter((g) => !sharesNothing(s, g.data));
  if (c.devices > 1 && all.length > found.length && found.length === 0)
    return `${c.devices} devices leave no replicas to share the states`;
  if (found.length > 0) {
    const least = Math.min(...found.map((g) => g.data));
    return `${least} replicas need a batch of ${least} sequences at least; it has ${w.globalBatch}`;
  }
  if (c.devices === 1) return "one device has nobody to share with";
  if (s.tensor && s.pipeline)
    return `no grid of ${c.devices} devices splits ${numHeads} heads and ${numLayers} layers evenly`;
  return s.tensor
    ? `${numHeads} heads cannot be split evenly among 2 or more of a node's ${c.devicesPerNode} devices`
    : `${numLayers} layers cannot be split evenly into 2 or more stages on ${c.devices} devices`;
}
