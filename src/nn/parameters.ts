/**
 * The parameters of a model as flat buffers: one for the values, one for the gradients. Matrices come first, then
 * vectors, so that the optimizer handles "decayed" and "not decayed" as two ranges and clipping is one pass.
 */
import { type Device, type DType, dtypeBytes, type Ptr } from "../device/device.js";
import { Parameter } from "../tensor/tensor.js";

/** A parameter stored under several names in a Hugging Face file: q, k and v are the rows of one matrix here. */
export interface Part {
  name: string;
  rows: number;
}

export interface ParameterSpec {
  shape: readonly number[];
  parts: Part[];
  init: "normal" | "ones" | "zeros";
}

/** Elements between parameters are padded so that each begins at a cache line, in fp32 as in bf16. */
const ALIGN = 32;
const padded = (n: number): number => Math.ceil(n / ALIGN) * ALIGN;

export class ParameterSet {
  readonly parameters: Parameter[] = [];
  /** Elements of the flat buffers, padding included; the first `decayed` of them belong to matrices. */
  readonly length: number;
  readonly decayed: number;
  /** Elements without padding. */
  readonly count: number;
  readonly ptr: Ptr;
  readonly gradPtr: Ptr;

  constructor(
    readonly device: Device,
    readonly dtype: DType,
    readonly specs: readonly ParameterSpec[],
    readonly trainable = true,
  ) {
    const size = (s: ParameterSpec): number => s.shape.reduce((a, b) => a * b, 1);
    const matrices = specs.filter((s) => s.shape.length > 1);
    const vectors = specs.filter((s) => s.shape.length <= 1);
    const total = (list: ParameterSpec[]): number => list.reduce((n, s) => n + padded(size(s)), 0);
    this.decayed = total(matrices);
    this.length = this.decayed + total(vectors);
    this.count = specs.reduce((n, s) => n + size(s), 0);
    const bytes = dtypeBytes(dtype);
    this.ptr = device.alloc(this.length * bytes);
    this.gradPtr = trainable ? device.alloc(this.length * bytes) : 0;
    const offsets = new Map<ParameterSpec, number>();
    let offset = 0;
    for (const s of [...matrices, ...vectors]) {
      offsets.set(s, offset);
      offset += padded(size(s)) * bytes;
    }
    for (const s of specs) {
      const at = offsets.get(s)!;
      const grad = trainable ? this.gradPtr + at : 0;
      this.parameters.push(
        new Parameter(device, s.parts.map((p) => p.name).join("+"), this.ptr + at, dtype, s.shape, grad),
      );
    }
  }

  /** Normal(0, std) matrices and unit norms, drawn by counter: parameter i is stream i of `seed`, whatever the precision. */
  initialize(seed: number, std: number): void {
    this.specs.forEach((s, i) => {
      const p = this.parameters[i];
      if (s.init === "normal") this.device.randomNormal(p.ptr, p.size, seed, i, 0, std, this.dtype);
      else this.device.fill(p.ptr, s.init === "ones" ? 1 : 0, p.size, this.dtype);
    });
  }

  /** Begins a new optimizer step: the next write to each gradient overwrites it. */
  clearGrads(): void {
    for (const p of this.parameters) p.gradWritten = false;
  }
  /** Before the gradients are read as one buffer: parameters that took no part in the step have gradient 0. */
  settleGrads(): void {
    for (const p of this.parameters) if (p.requiresGrad) p.gradForAccumulation();
  }

  /** Every named tensor of the Hugging Face layout, as a piece of the flat buffer. */
  *named(): Generator<{ name: string; ptr: Ptr; gradPtr: Ptr; shape: number[]; size: number }> {
    const bytes = dtypeBytes(this.dtype);
    for (const [i, s] of this.specs.entries()) {
      const p = this.parameters[i];
      const rowSize = s.shape.length > 1 ? p.size / s.shape[0] : 1;
      let row = 0;
      for (const part of s.parts) {
        const at = row * rowSize * bytes;
        const size = part.rows * rowSize;
        const gradPtr = p.gradPtr === 0 ? 0 : p.gradPtr + at;
        yield { name: part.name, ptr: p.ptr + at, gradPtr, shape: [part.rows, ...s.shape.slice(1)], size };
        row += part.rows;
      }
    }
  }

  close(): void {
    this.device.free(this.ptr, this.length * dtypeBytes(this.dtype));
    if (this.gradPtr) this.device.free(this.gradPtr, this.length * dtypeBytes(this.dtype));
  }
}
