/**
 * Seconds and bytes of collectives among n devices that lie k to a node: within nodes first, then each device with its peers on the
 * other nodes, on its k-th part. A ring sends (n - 1) / n of the bytes for each pass; an all-reduce is two passes (reduce-scatter,
 * all-gather), as in Patarasuk & Yuan 2009.
 */
import type { Cluster } from "./cluster.js";

/** Share of a link's speed that a stream of large messages reaches. NCCL's tests show 70-80% on NVLink and about 90% on InfiniBand. */
export const LINK_EFFICIENCY = 0.8;

export interface Group {
  size: number;
  /** How many of them share a node. */
  perNode: number;
}

/** `passes` 2: all-reduce; 1: reduce-scatter or all-gather. `bytes` are the whole buffer's. */
export function collectiveSeconds(bytes: number, group: Group, c: Cluster, passes: 1 | 2): number {
  const inside = Math.min(group.size, group.perNode);
  const nodes = Math.ceil(group.size / inside);
  const part = (n: number): number => (n - 1) / n;
  const within = part(inside) * (bytes / (c.intraBandwidth * LINK_EFFICIENCY)) + (inside - 1) * c.intraLatency;
  // Between nodes the latency of a tree: NCCL and MPI choose one when there are many.
  const between =
    part(nodes) * (bytes / inside / (c.interBandwidth * LINK_EFFICIENCY)) +
    Math.ceil(Math.log2(nodes)) * c.interLatency;
  return passes * (within + between);
}

/** Bytes that each device sends. */
export const collectiveBytes = (bytes: number, size: number, passes: 1 | 2): number =>
  (passes * bytes * (size - 1)) / size;

export function messageSeconds(bytes: number, within: boolean, c: Cluster): number {
  const [bandwidth, latency] = within ? [c.intraBandwidth, c.intraLatency] : [c.interBandwidth, c.interLatency];
  return latency + bytes / (bandwidth * LINK_EFFICIENCY);
}
