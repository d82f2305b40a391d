/**
 * Weights in int8 for generation: every matrix of the layers and the output matrix, each row with a scale of its own (its largest
 * weight / 127). Reading weights is what a token costs, and this is half of bf16. Activations are rounded to int8 in groups of 64
 * where the processor multiplies bytes; sums are fp32. Embedding, norms, attention and the pass over the prompt stay as they were.
 */
import type { Device, Ptr } from "../device/device.js";
import type { Llama } from "../nn/llama.js";
import { UserError } from "../run/errors.js";
import type { Parameter } from "../tensor/tensor.js";

/** Rows are padded with zeros to a multiple of this many bytes (native/lyceum.h). */
const GROUP = 64;

export interface Int8Matrix {
  values: Ptr;
  scale: Ptr;
}

export class Int8Weights {
  readonly bytes: number;
  private readonly memory: Ptr;
  private readonly matrices = new Map<Parameter, Int8Matrix>();

  /** Rounds the weights as they are now; later changes of the model are not seen. */
  constructor(private readonly model: Llama) {
    const { device, layers, outputMatrix, grid, head } = model;
    if (grid.tensor.size * grid.pipeline.size > 1 || head !== "lm" || !outputMatrix)
      throw new UserError("int8 is for generation from a language model that one process has all of.");
    const list = [...layers.flatMap(({ qkv, output, gateUp, down }) => [qkv, output, gateUp, down]), outputMatrix];
    const line = (n: number): number => Math.ceil(n / 64) * 64;
    const sizes = list.map(({ shape: [N, K] }) => ({ values: line(N * padded(K)), scale: line(N * 4) }));
    this.bytes = sizes.reduce((n, s) => n + s.values + s.scale, 0);
    this.memory = device.alloc(this.bytes);
    let at = this.memory;
    list.forEach((W, i) => {
      this.matrices.set(W, { values: at, scale: at + sizes[i].values });
      at += sizes[i].values + sizes[i].scale;
    });
    model.eachLayer(({ qkv, output, gateUp, down }) => {
      for (const W of [qkv, output, gateUp, down]) this.round(device, W);
    });
    this.round(device, outputMatrix);
  }

  private round(device: Device, W: Parameter): void {
    const { values, scale } = this.of(W);
    const [N, K] = W.shape;
    device.quantizeRows(W.ptr, values, scale, N, K, W.dtype);
  }

  of(W: Parameter): Int8Matrix {
    return this.matrices.get(W)!;
  }

  close(): void {
    this.model.device.free(this.memory, this.bytes);
  }
}

const padded = (K: number): number => Math.ceil(K / GROUP) * GROUP;
