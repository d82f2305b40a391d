/**
 * AdamW (Loshchilov & Hutter 2019) over a ParameterSet: decoupled weight decay on the matrices only, fp32 master
 * weights beside bf16 parameters, gradient clipping by the global norm.
 *
 * State in bf16 mode: 2 (parameter) + 2 (gradient) + 4 (master) + 4 (m) + 4 (v) = 16 bytes a parameter, as in the notes.
 */
import { BF16, dtypeBytes, F32, type Ptr } from "../device/device.js";
import type { ParameterSet } from "../nn/parameters.js";

export interface AdamWConfig {
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  /** Global gradient norm above which gradients are scaled down; 0: no clipping. */
  gradClip: number;
}

export class AdamW {
  readonly master: Ptr;
  readonly m: Ptr;
  readonly v: Ptr;
  /** Steps done. */
  step = 0;
  private readonly bytes: number;

  constructor(
    readonly parameters: ParameterSet,
    readonly config: AdamWConfig,
  ) {
    const { device, length, dtype, ptr } = parameters;
    this.bytes = length * 4;
    this.m = device.alloc(this.bytes);
    this.v = device.alloc(this.bytes);
    this.master = dtype === F32 ? ptr : device.alloc(this.bytes);
    if (dtype === BF16) device.cast(ptr, BF16, this.master, F32, length);
  }

  /** L2 norm of all gradients. Call once the step's gradients are complete. */
  gradNorm(): number {
    const { parameters: p } = this;
    p.settleGrads();
    return Math.sqrt(p.device.sumSquares(p.gradPtr, p.length, p.dtype));
  }

  /** One update; `gradNorm` is what gradNorm() returned. Gradients count as cleared afterwards. */
  update(learningRate: number, gradNorm: number): void {
    const { parameters: p, config } = this;
    const [b1, b2] = config.betas;
    const clip = config.gradClip > 0 && gradNorm > config.gradClip ? config.gradClip / (gradNorm + 1e-6) : 1;
    this.step++;
    const c1 = 1 - b1 ** this.step;
    const c2 = 1 - b2 ** this.step;
    const range = (from: number, to: number, decay: number): void => {
      if (to === from) return;
      const at = from * 4;
      const low = from * dtypeBytes(p.dtype);
      // biome-ignore format: one call
      p.device.adamw(to - from, this.master + at, this.m + at, this.v + at, p.gradPtr + low, p.ptr + low, p.dtype, learningRate, b1, b2, config.eps, decay, c1, c2, clip);
    };
    range(0, p.decayed, config.weightDecay);
    range(p.decayed, p.length, 0);
    p.clearGrads();
  }

  close(): void {
    const { device, dtype } = this.parameters;
    for (const ptr of dtype === F32 ? [this.m, this.v] : [this.m, this.v, this.master]) device.free(ptr, this.bytes);
  }
}
