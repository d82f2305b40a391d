/**
 * AdamW (Loshchilov & Hutter 2019) over a ParameterSet: decoupled weight decay on the matrices only, fp32 master
 * weights beside bf16 parameters, gradient clipping by the global norm.
 *
 * State in bf16 mode: 2 (parameter) + 2 (gradient) + 4 (master) + 4 (m) + 4 (v) = 16 bytes a parameter, as in the notes.
 * Of those 12 belong to the optimizer, which holds them for the pieces that its process updates, and no others. Two of them it need not
 * hold: the upper half of a master weight is the parameter itself, so only the lower half lies here (Kalamkar et al. 2020, Split-SGD).
 */
import { dtypeBytes, F32, type Ptr } from "../device/device.js";
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
  /** Flat buffers of `length` elements, piece after piece: both moments, fp32 ... */
  readonly m: Ptr;
  readonly v: Ptr;
  /** ... the lower halves of the master weights, int16; 0 in fp32 mode, where parameters are their own masters ... */
  readonly low: Ptr;
  /** ... and the averaged weights, fp32; 0: there are none. */
  readonly ema: Ptr;
  /** All of these, with the bytes of an element. */
  private readonly buffers: { ptr: Ptr; width: number }[] = [];
  /** Elements that this process updates. */
  readonly length: number;
  private closed = false;
  /** Steps done. */
  step = 0;

  constructor(
    readonly parameters: ParameterSet,
    readonly config: AdamWConfig,
    readonly memory: StateMemory = inMemory(parameters.device),
  ) {
    parameters.mustBeOpen();
    const { device, dtype, keeper } = parameters;
    const pieces = keeper.mine();
    this.length = pieces.reduce((n, p) => n + p.length, 0);
    const buffer = (name: string, width: number): Ptr => {
      const ptr = memory.alloc(name, this.length * width);
      this.buffers.push({ ptr, width });
      return ptr;
    };
    this.m = buffer("m", 4);
    this.v = buffer("v", 4);
    this.low = dtype === F32 ? 0 : buffer("low", 2);
    this.ema = config.ema ? buffer("ema", 4) : 0;
    for (const p of this.ema ? pieces : []) {
      device.cast(p.values, dtype, this.ema + p.at * 4, F32, p.length);
      memory.behind(this.ema + p.at * 4, p.length * 4);
    }
  }

  /** L2 norm of all gradients, over all processes. Call once the step's gradients are complete. */
  gradNorm(): number {
    return Math.sqrt(this.parameters.settleGrads());
  }

  /** One update; `gradNorm` is what gradNorm() returned. Gradients are cleared afterwards, and their memory is given back. */
  update(learningRate: number, gradNorm: number): void {
    const { parameters: set, config, memory } = this;
    this.mustBeOpen();
    const [b1, b2] = config.betas;
    const clip = config.gradClip > 0 && gradNorm > config.gradClip ? config.gradClip / (gradNorm + 1e-6) : 1;
    this.step++;
    const c1 = 1 - b1 ** this.step;
    const c2 = 1 - b2 ** this.step;
    const pieces = set.keeper.mine();
    for (const [i, p] of pieces.entries()) {
      const next = pieces[i + 1];
      for (const { ptr, width } of next ? this.buffers : []) memory.ahead(ptr + next.at * width, next.length * width);
      if (p.grads === 0) throw new Error(`${p.unit.name} has no gradients: gradNorm() makes those that are missing.`);
      const [m, v, low, ema] = this.at(p);
      const decay = p.unit.decay ? config.weightDecay : 0;
      // biome-ignore format: one call
      set.device.adamw(p.length, p.values, low, m, v, ema, p.grads, set.dtype, learningRate, b1, b2, config.eps, decay, c1, c2, clip, config.ema ?? 0);
      for (const { ptr, width } of this.buffers) memory.behind(ptr + p.at * width, p.length * width);
    }
    set.keeper.updated();
    set.clearGrads();
  }

  /** Throws where its state, or the parameters, were given back. */
  mustBeOpen(): void {
    if (this.closed) throw new Error("This optimizer was closed: its state is gone.");
    this.parameters.mustBeOpen();
  }

  /** Runs `body` while the parameters are the averaged ones. */
  withAverage(body: () => void): void {
    this.mustBeOpen();
    const { device, dtype, keeper } = this.parameters;
    const width = dtypeBytes(dtype);
    const aside = device.alloc(this.length * width);
    const place = (p: Piece): Uint8Array => device.bytes(aside + p.at * width, p.length * width);
    const values = (p: Piece): Uint8Array => device.bytes(p.values, p.length * width);
    for (const p of keeper.mine()) {
      place(p).set(values(p));
      device.cast(this.ema + p.at * 4, F32, p.values, dtype, p.length);
    }
    keeper.updated();
    try {
      body();
    } finally {
      for (const p of keeper.mine()) values(p).set(place(p));
      device.free(aside, this.length * width);
    }
    keeper.updated();
  }

  /** Where the piece's part of each buffer begins: m, v, low, ema; 0 for one that is not there. */
  private at(p: Piece): [m: Ptr, v: Ptr, low: Ptr, ema: Ptr] {
    const { m, v, low, ema } = this;
    return [m + p.at * 4, v + p.at * 4, low && low + p.at * 2, ema && ema + p.at * 4];
  }

  /** Bytes of the state as the ZeRO paper counts them: 4 + 4 a parameter, and 4 for the master copy. */
  stateBytes(): number {
    return this.length * (this.low ? 12 : 8);
  }
  /** Bytes that are held: of the master copy 2. */
  heldBytes(): number {
    return this.buffers.reduce((n, { width }) => n + this.length * width, 0);
  }

  close(): void {
    for (const { ptr, width } of this.buffers.splice(0)) this.memory.free(ptr, this.length * width);
    this.closed = true;
  }
}
