/**
 * AdamW (Loshchilov & Hutter 2019) over a ParameterSet: decoupled weight decay on the matrices only, fp32 master
 * weights beside bf16 parameters, gradient clipping by the global norm.
 *
 * State in bf16 mode: 2 (parameter) + 2 (gradient) + 4 (master) + 4 (m) + 4 (v) = 16 bytes a parameter, as in the notes.
 * Of those 12 belong to the optimizer, which holds them for the pieces that its process updates, and no others.
 */
import { BF16, F32, type Ptr } from "../device/device.js";
import { inMemory, type StateMemory } from "../parallel/offload.js";
import type { ParameterSet, Piece } from "../tensor/parameters.js";

export interface AdamWConfig {
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  /** Global gradient norm above which gradients are scaled down; 0: no clipping. */
  gradClip: number;
  /** Decay of a moving average of the weights (Polyak & Juditsky 1992), kept in fp32; 0 or absent: none. */
  ema?: number;
}

export class AdamW {
  /** Flat fp32 buffers of `length` elements, piece after piece. In fp32 mode master is 0: the parameters are their own. */
  readonly master: Ptr;
  readonly m: Ptr;
  readonly v: Ptr;
  /** The averaged weights; 0: there are none. */
  readonly ema: Ptr;
  /** Elements that this process updates. */
  readonly length: number;
  /** Steps done. */
  step = 0;

  constructor(
    readonly parameters: ParameterSet,
    readonly config: AdamWConfig,
    readonly memory: StateMemory = inMemory(parameters.device),
  ) {
    const { device, dtype, keeper } = parameters;
    const pieces = keeper.mine();
    this.length = pieces.reduce((n, p) => n + p.length, 0);
    this.m = memory.alloc("m", this.length * 4);
    this.v = memory.alloc("v", this.length * 4);
    this.master = dtype === F32 ? 0 : memory.alloc("master", this.length * 4);
    this.ema = config.ema ? memory.alloc("ema", this.length * 4) : 0;
    for (const start of [this.master, this.ema].filter((s) => s !== 0))
      for (const p of pieces) {
        device.cast(p.values, dtype, start + p.at * 4, F32, p.length);
        memory.behind(start + p.at * 4, p.length * 4);
      }
  }

  /** L2 norm of all gradients, over all processes. Call once the step's gradients are complete. */
  gradNorm(): number {
    return Math.sqrt(this.parameters.settleGrads());
  }

  /** One update; `gradNorm` is what gradNorm() returned. Gradients are cleared afterwards, and their memory is given back. */
  update(learningRate: number, gradNorm: number): void {
    const { parameters: set, config, memory } = this;
    const [b1, b2] = config.betas;
    const clip = config.gradClip > 0 && gradNorm > config.gradClip ? config.gradClip / (gradNorm + 1e-6) : 1;
    this.step++;
    const c1 = 1 - b1 ** this.step;
    const c2 = 1 - b2 ** this.step;
    const pieces = set.keeper.mine();
    const state = (p: Piece): Ptr[] => [this.m, this.v, ...(this.master ? [this.master] : [])].map((s) => s + p.at * 4);
    for (const [i, p] of pieces.entries()) {
      if (i + 1 < pieces.length) for (const s of state(pieces[i + 1])) memory.ahead(s, pieces[i + 1].length * 4);
      if (p.grads === 0) throw new Error(`${p.unit.name} has no gradients: gradNorm() makes those that are missing.`);
      const [m, v, master = p.values] = state(p);
      const decay = p.unit.decay ? config.weightDecay : 0;
      // biome-ignore format: one call
      set.device.adamw(p.length, master, m, v, p.grads, p.values, set.dtype, learningRate, b1, b2, config.eps, decay, c1, c2, clip);
      if (this.ema && config.ema) {
        const average = this.ema + p.at * 4;
        set.device.scale(average, config.ema, average, p.length, F32);
        set.device.axpy(1 - config.ema, master, average, p.length, F32);
        memory.behind(average, p.length * 4);
      }
      for (const s of state(p)) memory.behind(s, p.length * 4);
    }
    set.keeper.updated();
    set.clearGrads();
  }

  /** Runs `body` while the parameters are the averaged ones. */
  withAverage(body: () => void): void {
    const { device, dtype, keeper } = this.parameters;
    const own = keeper.mine();
    // In fp32 the parameters are their own master weights: they are put aside.
    const aside = dtype === F32 ? device.alloc(this.length * 4) : 0;
    for (const p of own) {
      if (aside) device.cast(p.values, F32, aside + p.at * 4, F32, p.length);
      device.cast(this.ema + p.at * 4, F32, p.values, dtype, p.length);
    }
    keeper.updated();
    body();
    if (aside) for (const p of own) device.cast(aside + p.at * 4, F32, p.values, F32, p.length);
    if (aside) device.free(aside, this.length * 4);
    if (aside) keeper.updated();
    else this.restoreParameters();
  }

  /** Bytes of the state, as the ZeRO paper counts them: 4 + 4 a parameter, and 4 for the master copy. */
  stateBytes(): number {
    return this.length * 4 * (this.master ? 3 : 2);
  }

  /** The parameters as the rounded master weights, after these were changed. */
  restoreParameters(): void {
    const { device, dtype, keeper } = this.parameters;
    if (dtype === F32) return;
    for (const p of keeper.mine()) device.cast(this.master + p.at * 4, F32, p.values, BF16, p.length);
    keeper.updated();
  }

  close(): void {
    for (const ptr of [this.m, this.v, this.master, this.ema]) if (ptr) this.memory.free(ptr, this.length * 4);
  }
}
