/**
 * Model states: bytes of parameters, gradients and optimizer on each device, under data parallelism and ZeRO.
 *
 * Mixed precision with Adam (Rajbhandari et al. 2020, section 3.1): 2 + 2 + K with K = 12 (fp32 master copy, m, v) =
 * 16 bytes a parameter. Sharded over N devices (its figure 1): 16 P; 4 P + 12 P / N; 2 P + 14 P / N; 16 P / N.
 */

export type Zero = 0 | 1 | 2 | 3;
/** optimizer: gradients and optimizer states in main memory (ZeRO-Offload, Ren et al. 2021); all: parameters too (ZeRO-Infinity). */
export type Offload = "none" | "optimizer" | "all";
export type Precision = "bf16" | "fp32";

export interface StateBytes {
  parameters: number;
  gradients: number;
  optimizer: number;
}

/** Bytes of a parameter's value, and of anything else that is kept in it: activations, keys and values, gradients that are sent. */
export const valueBytes = (precision: Precision): number => (precision === "bf16" ? 2 : 4);

/** Bytes of one parameter's value, gradient and optimizer state. In fp32 there is no master copy beside the parameter. */
export const bytesPerParameter = (precision: Precision): StateBytes =>
  precision === "bf16" ? { parameters: 2, gradients: 2, optimizer: 12 } : { parameters: 4, gradients: 4, optimizer: 8 };

export interface Sharding {
  zero: Zero;
  offload: Offload;
  /** Data parallel ranks that share the states. */
  ranks: number;
  precision: Precision;
}

/**
 * States of `count` parameters, `trainable` of which have gradients and optimizer states: what one device holds, and
 * what its share in main memory is.
 */
export function modelStates(
  count: number,
  s: Sharding,
  trainable: number = count,
): { device: StateBytes; host: StateBytes } {
  const bytes = bytesPerParameter(s.precision);
  const share = (from: 1 | 2 | 3): number => (s.zero >= from ? 1 / s.ranks : 1);
  const parameters = count * bytes.parameters * share(3);
  const gradients = trainable * bytes.gradients * share(2);
  const optimizer = trainable * bytes.optimizer * share(1);
  const none: StateBytes = { parameters: 0, gradients: 0, optimizer: 0 };
  if (s.offload === "none") return { device: { parameters, gradients, optimizer }, host: none };
  if (s.offload === "optimizer") return { device: { ...none, parameters }, host: { ...none, gradients, optimizer } };
  return { device: none, host: { parameters, gradients, optimizer } };
}

export const stateTotal = (s: StateBytes): number => s.parameters + s.gradients + s.optimizer;

/** Devices of a cluster, as DeepSpeed's estimators take them. */
export interface Nodes {
  gpusPerNode: number;
  nodes: number;
}
/** DeepSpeed's own margin on main memory. */
const CPU_MARGIN = 1.5;

/**
 * What DeepSpeed estimates for ZeRO-2 (its documentation, "Memory Requirements"), in bytes. DeepSpeed converts the gradients to
 * fp32 for the update, hence 4 P + 16 P / N where the paper has 2 P + 14 P / N.
 */
export function deepspeedZero2(params: number, { gpusPerNode, nodes }: Nodes, offload: boolean) {
  const gpus = gpusPerNode * nodes;
  return offload
    ? { gpu: 2 * params, cpu: params * Math.max(4 * gpusPerNode, 16) * CPU_MARGIN }
    : { gpu: 4 * params + (16 * params) / gpus, cpu: params * 4 * gpusPerNode * CPU_MARGIN };
}

/** The same for ZeRO-3. `largestLayer`: parameters of the largest layer, which is gathered whole; `init`: built already sharded. */
export function deepspeedZero3(
  params: number,
  largestLayer: number,
  { gpusPerNode, nodes }: Nodes,
  offload: Offload,
  init = true,
) {
  const gpus = gpusPerNode * nodes;
  const gathered = 4 * largestLayer;
  const whole = params * 4 * gpusPerNode;
  if (offload === "none")
    return {
      gpu: gathered + (18 * params) / gpus,
      cpu: (init ? largestLayer * 4 * gpusPerNode : whole) * CPU_MARGIN,
    };
  const perParameter = offload === "all" ? 18 : 16;
  const sharded = (params * perParameter) / nodes;
  return {
    gpu: gathered + (offload === "all" ? 0 : (2 * params) / gpus),
    cpu: (init ? sharded : Math.max(whole, sharded)) * CPU_MARGIN,
  };
}
