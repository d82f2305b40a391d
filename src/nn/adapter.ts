/**
 * What adapters (LoRA) add to a model's forward pass; lora.ts puts them beside its matrices, merges and saves them.
 */
import { linear, type TrainedRows } from "../tensor/ops.js";
import type { ParameterSet } from "../tensor/parameters.js";
import type { Parameter, Tape, Tensor } from "../tensor/tensor.js";

export interface LoraAdapter {
  readonly scale: number;
  readonly parameters: ParameterSet;
  /** The frozen matrix -> its two factors. */
  readonly factors: Map<Parameter, { A: Parameter; B: Parameter }>;
  /** The table and the output matrix -> their rows of new tokens, when there are any. */
  readonly rows: Map<Parameter, TrainedRows>;
}

/** A projection of the model, with its adapter when it has one. */
export function loraLinear(
  tape: Tape,
  x: Tensor,
  W: Parameter,
  lora: LoraAdapter | undefined,
  residual?: Tensor,
): Tensor {
  const y = linear(tape, x, W, residual);
  const factors = lora?.factors.get(W);
  return factors ? linear(tape, linear(tape, x, factors.A), factors.B, y, lora!.scale) : y;
}

/** The rows of new tokens, of which a matrix has a copy: where trained ones lie, and where forward passes read them. */
export function inMatrix(matrix: Parameter, { from, trained }: TrainedRows): { copy: Uint8Array; own: Uint8Array } {
  const { device, bytes, ptr } = trained;
  return { own: device.bytes(ptr, bytes), copy: device.bytes(matrix.ptr + (from * bytes) / trained.shape[0], bytes) };
}

/** Puts trained rows where forward passes read them; both units are in memory. */
export function putRows(matrix: Parameter, rows: TrainedRows): void {
  const { own, copy } = inMatrix(matrix, rows);
  copy.set(own);
}
