/**
 * Gradients of several micro-batches, added up in fp32 where they are bf16. Rounded after every addition, a sum loses what is less than half
 * its last digit: with hundreds of micro-batches that is most of what they say. So a sum is kept in halves, as master weights are
 * (native/rows.h; Kalamkar et al. 2020): the upper one lies where the optimizer will read the gradient, and beside it are the lower 16 bits,
 * 2 bytes a parameter, until the step's last micro-batch is over. Each micro-batch's own gradient is there for as long as its unit's turn,
 * of a layer; the table's, the output matrix's and the vectors' until the pass is over.
 */
import { type Device, type DType, F32, type Ptr } from "../device/device.js";
import type { Unit } from "./tensor.js";

/** Parameters without a gradient yet get one of zeros, so that a unit's gradients can be read as one piece. */
export function zeroMissing(unit: Unit): void {
  for (const p of unit.parameters) if (p.requiresGrad) p.gradForAccumulation();
}

/** Memory of a unit's size, 2 bytes an element; whatever lies in it. */
export interface Room {
  take(unit: Unit): Ptr;
  giveBack(unit: Unit, ptr: Ptr): void;
}

export class GradientSums {
  private readonly halves = new Map<Unit, { high: Ptr; low: Ptr }>();

  constructor(
    private readonly device: Device,
    private readonly dtype: DType,
    private readonly room: Room,
  ) {}

  /**
   * A backward pass is over. Unless it was the step's last, what it left is the sum so far, and from here on no unit has a gradient until it
   * is written again.
   */
  passOver(units: readonly Unit[], last: boolean): void {
    if (this.dtype === F32) return; // sums are fp32 as they are
    for (const unit of units) {
      if (last) this.finish(unit);
      else if (this.halves.has(unit)) this.add(unit);
      else if (unit.grads !== 0) this.begin(unit);
    }
  }

  private begin(unit: Unit): void {
    zeroMissing(unit);
    const low = this.room.take(unit);
    this.device.fill(low, 0, unit.length, this.dtype);
    this.halves.set(unit, { high: unit.grads, low });
    this.leave(unit, 0);
  }

  /** A unit's gradient of this micro-batch is whole: it joins the sum, if there is one, and its memory is free. */
  add(unit: Unit): void {
    const sum = this.halves.get(unit);
    if (!sum || unit.grads === 0) return;
    zeroMissing(unit);
    this.device.sumPieces(unit.grads, unit.length, 1, sum.high, sum.low, 1, this.dtype);
    this.room.giveBack(unit, unit.grads);
    this.leave(unit, 0);
  }

  /** The last micro-batch has added what it had: from here on the unit's gradient is the sum, rounded. */
  finish(unit: Unit): void {
    this.add(unit);
    const sum = this.halves.get(unit);
    if (!sum) return;
    this.room.giveBack(unit, sum.low);
    this.halves.delete(unit);
    this.leave(unit, sum.high);
  }

  /** Throws while another micro-batch is waited for: gradients are not to be read yet. */
  mustBeDone(): void {
    if (this.halves.size > 0)
      throw new Error("Gradients are read, and no backward pass was said to be the step's last.");
  }

  /** `grads`: where the unit's gradient is, whole; 0: nowhere. */
  private leave(unit: Unit, grads: Ptr): void {
    unit.grads = grads;
    for (const p of unit.parameters) p.gradWritten = grads !== 0 && p.requiresGrad;
  }
}
