/** The machines of a plan: what a device can do, how devices are joined, what an hour costs. */
import { z } from "zod";
import { check, nearest, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";

export interface Cluster {
  name: string;
  devices: number;
  devicesPerNode: number;
  /** Bytes of a device, and bytes per second at which it reads them. */
  memory: number;
  memoryBandwidth: number;
  /** Dense matrix products, bf16 in and fp32 sums, per second at the very best. */
  flops: number;
  /** Share of `flops` that a large matrix product reaches. */
  matmulEfficiency: number;
  /** Bytes per second that one device sends (and at once receives) within a node, and between nodes. */
  intraBandwidth: number;
  interBandwidth: number;
  /** Seconds of a message beyond its bytes. */
  intraLatency: number;
  interLatency: number;
  /** Main memory for each device, its speed (the optimizer runs there under offload), and the speed of the way to it. */
  hostMemory: number;
  hostMemoryBandwidth: number;
  hostBandwidth: number;
  /** Of one device for one hour, in any currency; 0: not known. */
  pricePerHour: number;
}

type Device = Omit<Cluster, "name" | "devices" | "pricePerHour">;
const GB = 1e9;
/** Main memory of a usual server of eight devices: 2 TB, 16 channels of DDR4; shared by eight. */
const HOST = { hostMemory: 250 * GB, hostMemoryBandwidth: 40 * GB };
const LATENCY = { intraLatency: 5e-6, interLatency: 15e-6 };

/**
 * Data sheets of the makers. A100: 312 TFLOP/s, 600 GB/s NVLink both ways together, one 200 Gb/s InfiniBand port a device (the
 * cluster of Narayanan et al. 2021). The efficiency of large products is what those authors' throughput implies (docs/plan.md).
 */
const DEVICES: Record<string, Device> = {
  "a100-80": {
    devicesPerNode: 8,
    memory: 80 * GB,
    memoryBandwidth: 2039 * GB,
    flops: 312e12,
    matmulEfficiency: 0.65,
    intraBandwidth: 300 * GB,
    interBandwidth: 25 * GB,
    hostBandwidth: 25 * GB,
    ...HOST,
    ...LATENCY,
  },
  "a100-40": {
    devicesPerNode: 8,
    memory: 40 * GB,
    memoryBandwidth: 1555 * GB,
    flops: 312e12,
    matmulEfficiency: 0.65,
    intraBandwidth: 300 * GB,
    interBandwidth: 25 * GB,
    hostBandwidth: 25 * GB,
    ...HOST,
    ...LATENCY,
  },
  h100: {
    devicesPerNode: 8,
    memory: 80 * GB,
    memoryBandwidth: 3350 * GB,
    flops: 989e12,
    matmulEfficiency: 0.58,
    intraBandwidth: 450 * GB,
    interBandwidth: 50 * GB,
    hostBandwidth: 50 * GB,
    ...HOST,
    ...LATENCY,
  },
  "v100-32": {
    devicesPerNode: 16,
    memory: 32 * GB,
    memoryBandwidth: 900 * GB,
    flops: 125e12,
    matmulEfficiency: 0.6,
    intraBandwidth: 150 * GB,
    interBandwidth: 6.25 * GB,
    hostBandwidth: 12 * GB,
    ...HOST,
    ...LATENCY,
  },
};

const positive = z.number().positive();
/** A cluster file: a known device to begin with, and what differs. Sizes in GB, speeds in GB/s and TFLOP/s, as data sheets have them. */
export const clusterSchema = z.strictObject({
  name: z.string().optional(),
  device: z.string().optional(),
  devices: z.int().min(1).optional(),
  devicesPerNode: z.int().min(1).optional(),
  memoryGB: positive.optional(),
  memoryBandwidthGBps: positive.optional(),
  tflops: positive.optional(),
  matmulEfficiency: z.number().positive().max(1).optional(),
  intraBandwidthGBps: positive.optional(),
  interBandwidthGBps: positive.optional(),
  intraLatencyUs: z.number().min(0).optional(),
  interLatencyUs: z.number().min(0).optional(),
  hostMemoryGB: z.number().min(0).optional(),
  hostMemoryBandwidthGBps: positive.optional(),
  hostBandwidthGBps: positive.optional(),
  pricePerHour: z.number().min(0).optional(),
});
export type ClusterSettings = z.output<typeof clusterSchema>;

export function readCluster(file: string): ClusterSettings {
  const settings = check(clusterSchema, readYaml(file));
  if (Object.keys(settings).length === 0)
    throw new UserError(`${file} describes no cluster: it is empty. docs/plan.md shows what such a file says.`, 2);
  return settings;
}

export function makeCluster(s: ClusterSettings): Cluster {
  const kind = s.device ?? "a100-80";
  const base = DEVICES[kind.toLowerCase()];
  if (!base) {
    const near = nearest(kind.toLowerCase(), Object.keys(DEVICES));
    throw new UserError(
      `There is no device "${kind}". ${near ? `Did you mean "${near}"? ` : ""}The known ones are ${Object.keys(DEVICES).join(", ")}; any other is described in a file (--cluster).`,
      2,
    );
  }
  const scaled = (value: number | undefined, unit: number, otherwise: number): number =>
    value === undefined ? otherwise : value * unit;
  const devices = s.devices ?? base.devicesPerNode;
  return {
    name: s.name ?? kind,
    devices,
    devicesPerNode: Math.min(devices, s.devicesPerNode ?? base.devicesPerNode),
    memory: scaled(s.memoryGB, GB, base.memory),
    memoryBandwidth: scaled(s.memoryBandwidthGBps, GB, base.memoryBandwidth),
    flops: scaled(s.tflops, 1e12, base.flops),
    matmulEfficiency: s.matmulEfficiency ?? base.matmulEfficiency,
    intraBandwidth: scaled(s.intraBandwidthGBps, GB, base.intraBandwidth),
    interBandwidth: scaled(s.interBandwidthGBps, GB, base.interBandwidth),
    intraLatency: scaled(s.intraLatencyUs, 1e-6, base.intraLatency),
    interLatency: scaled(s.interLatencyUs, 1e-6, base.interLatency),
    hostMemory: scaled(s.hostMemoryGB, GB, base.hostMemory),
    hostMemoryBandwidth: scaled(s.hostMemoryBandwidthGBps, GB, base.hostMemoryBandwidth),
    hostBandwidth: scaled(s.hostBandwidthGBps, GB, base.hostBandwidth),
    pricePerHour: s.pricePerHour ?? 0,
  };
}
