/**
 * The parameters of a model, in units: a layer's matrices are one, the embedding another, all vectors together one more.
 * A unit lies in one piece of memory, its gradients in another; what moves between processes, or between memory and
 * disk, is a unit. Who holds which memory is the Keeper's business: here the plain one, which keeps everything;
 * src/parallel/zero.ts has those that keep a share.
 */
import { type Device, type DType, dtypeBytes, type Ptr } from "../device/device.js";
import { Parameter } from "./tensor.js";

/** A parameter stored under several names in a Hugging Face file: q, k and v are the rows of one matrix here. */
export interface Part {
  name: string;
  rows: number;
}

export interface ParameterSpec {
  shape: readonly number[];
  parts: Part[];
  init: "normal" | "ones" | "zeros";
  /** Name of the unit that the parameter belongs to; vectors always belong to the last one, "vectors". */
  unit: string;
}

/** Elements between parameters are padded so that each begins at a cache line, in fp32 as in bf16. */
const ALIGN = 32;
const padded = (n: number, multiple = ALIGN): number => Math.ceil(n / multiple) * multiple;

/** Parameters that lie together. `values` and `grads` are 0 while they are not in memory. */
export interface Unit {
  readonly index: number;
  readonly name: string;
  /** Elements, padding included; divisible by the keeper's pieces. */
  readonly length: number;
  /** Whether weight decay applies: to matrices. */
  readonly decay: boolean;
  readonly parameters: Parameter[];
  values: Ptr;
  grads: Ptr;
}

/** What one process updates: elements of one unit, with their gradient. `at` counts the elements of the pieces before. */
export interface Piece {
  unit: Unit;
  at: number;
  /** Its first element, counted from the unit's. */
  from: number;
  length: number;
  values: Ptr;
  grads: Ptr;
}

export type Pass = "forward" | "backward";

/** Who holds the memory of the units, and makes the gradients of several processes one. */
export interface Keeper {
  /** Equal pieces that every unit divides into. */
  readonly pieces: number;
  /** Whether the backward pass that runs is the step's last: only then is a layer's whole gradient there when its turn is over. */
  lastMicroBatch: boolean;
  /** Called once, when the set is made. */
  place(set: ParameterSet): void;
  /** A unit is used from here to the update: the embedding, the head, the vectors. */
  use(unit: Unit, recording: boolean): void;
  /** The pass over the model is about to use a layer's unit, and has used it. */
  before(unit: Unit, pass: Pass): void;
  after(unit: Unit, pass: Pass): void;
  /** Between kernels: moves transfers on that are under way. */
  poke(): void;
  /** What this process updates, once gradients are settled. */
  mine(): readonly Piece[];
  /** Gradients of all micro-batches are there: sums them over the processes. Returns the sum of all their squares. */
  settle(): number;
  /** The optimizer has changed its pieces of the values. */
  updated(): void;
  /** All values of a unit are in memory from open to close; `changed`: they were written, and are to be kept. */
  open(unit: Unit): void;
  close(unit: Unit, changed: boolean): void;
  /**
   * A whole unit of numbers that lie piece by piece with the processes, as the optimizer's state does: `own` is this
   * process's piece, of `width` bytes an element. The result is valid until the next call.
   */
  gather(unit: Unit, own: Ptr, width: number): Ptr;
  /** Those who write a checkpoint together, and which of them this process is. */
  readonly writers: { rank: number; size: number };
  /** Bytes held all the time, as the ZeRO paper counts them. */
  stateBytes(): { parameters: number; gradients: number };
  /** Throws when a replica has come to differ. */
  verify(): void;
  free(): void;
}

export class ParameterSet {
  readonly parameters: Parameter[] = [];
  readonly units: Unit[] = [];
  /** Elements with padding, and without. */
  readonly length: number;
  readonly count: number;

  constructor(
    readonly device: Device,
    readonly dtype: DType,
    readonly specs: readonly ParameterSpec[],
    readonly trainable = true,
    readonly keeper: Keeper = new WholeKeeper(),
  ) {
    const size = (s: ParameterSpec): number => s.shape.reduce((a, b) => a * b, 1);
    const unitOf = (s: ParameterSpec): string => (s.shape.length > 1 ? s.unit : "vectors");
    const names = [...new Set(specs.map(unitOf))].sort((a, b) => Number(a === "vectors") - Number(b === "vectors"));
    const made = new Map<ParameterSpec, Parameter>();
    for (const [index, name] of names.entries()) {
      const members = specs.filter((s) => unitOf(s) === name);
      const elements = members.reduce((n, s) => n + padded(size(s)), 0);
      const unit: Unit = {
        index,
        name,
        length: padded(elements, ALIGN * keeper.pieces),
        decay: name !== "vectors",
        parameters: [],
        values: 0,
        grads: 0,
      };
      let offset = 0;
      for (const s of members) {
        const parameter = new Parameter(
          device,
          s.parts.map((p) => p.name).join("+"),
          unit,
          offset * dtypeBytes(dtype),
          dtype,
          s.shape,
          trainable,
        );
        made.set(s, parameter);
        unit.parameters.push(parameter);
        offset += padded(size(s));
      }
      this.units.push(unit);
    }
    this.parameters = specs.map((s) => made.get(s)!);
    this.length = this.units.reduce((n, u) => n + u.length, 0);
    this.count = specs.reduce((n, s) => n + size(s), 0);
    keeper.place(this);
  }

  unit(name: string): Unit {
    return this.units.find((u) => u.name === name)!;
  }

  /** Normal(0, std) matrices and unit norms, drawn by counter: parameter i is stream i of `seed`, whatever the precision. */
  initialize(seed: number, std: number): void {
    for (const unit of this.units) {
      this.keeper.open(unit);
      for (const p of unit.parameters) {
        const i = this.parameters.indexOf(p);
        const { init } = this.specs[i];
        if (init === "normal") this.device.randomNormal(p.ptr, p.size, seed, i, 0, std, this.dtype);
        else this.device.fill(p.ptr, init === "ones" ? 1 : 0, p.size, this.dtype);
      }
      this.keeper.close(unit, true);
    }
  }

  /** Begins a new optimizer step: the next write to each gradient overwrites it. */
  clearGrads(): void {
    for (const p of this.parameters) p.gradWritten = false;
  }
  /** Before gradients are read: parameters that took no part in the step have gradient 0. Returns the sum of all squares. */
  settleGrads(): number {
    return this.keeper.settle();
  }

  /** Every named tensor of the Hugging Face layout, unit by unit; without its memory. */
  *tensors(): Generator<NamedTensor> {
    for (const unit of this.units) {
      for (const p of unit.parameters) {
        const s = this.specs[this.parameters.indexOf(p)];
        const rowSize = s.shape.length > 1 ? p.size / s.shape[0] : 1;
        let inUnit = p.offset / dtypeBytes(this.dtype);
        for (const { name, rows } of s.parts) {
          const size = rows * rowSize;
          yield { name, shape: [rows, ...s.shape.slice(1)], size, unit, inUnit };
          inUnit += size;
        }
      }
    }
  }

  /**
   * The same, each in memory until the next one is asked for. With several processes all must go through it together.
   * `changed`: the caller writes the values, and they are to be kept.
   */
  *named(changed = false): Generator<NamedTensor & { ptr: Ptr; gradPtr: Ptr }> {
    const width = dtypeBytes(this.dtype);
    let open: Unit | undefined;
    for (const t of this.tensors()) {
      if (t.unit !== open) {
        if (open) this.keeper.close(open, changed);
        this.keeper.open(t.unit);
        open = t.unit;
      }
      const at = t.inUnit * width;
      yield { ...t, ptr: t.unit.values + at, gradPtr: t.unit.grads && t.unit.grads + at };
    }
    if (open) this.keeper.close(open, changed);
  }

  close(): void {
    this.keeper.free();
  }
}

export interface NamedTensor {
  name: string;
  shape: number[];
  size: number;
  unit: Unit;
  /** Its first element, counted from the unit's. */
  inUnit: number;
}

/** Parameters without a gradient yet get one of zeros, so that a unit's gradients can be read as one piece. */
export function zeroMissing(unit: Unit): void {
  for (const p of unit.parameters) if (p.requiresGrad) p.gradForAccumulation();
}

/** One process alone: everything is in memory all the time, and complete. */
export class WholeKeeper implements Keeper {
  readonly pieces = 1;
  lastMicroBatch = false;
  readonly writers = { rank: 0, size: 1 };
  private set!: ParameterSet;

  place(set: ParameterSet): void {
    this.set = set;
    const { device, dtype, length } = set;
    let values = device.alloc(length * dtypeBytes(dtype));
    let grads = set.trainable ? device.alloc(length * dtypeBytes(dtype)) : 0;
    for (const unit of set.units) {
      unit.values = values;
      unit.grads = grads;
      values += unit.length * dtypeBytes(dtype);
      if (set.trainable) grads += unit.length * dtypeBytes(dtype);
    }
  }
  use(): void {}
  before(): void {}
  after(): void {}
  poke(): void {}
  open(): void {}
  close(): void {}
  updated(): void {}
  verify(): void {}
  gather(_: Unit, own: Ptr): Ptr {
    return own;
  }

  mine(): Piece[] {
    let at = 0;
    return this.set.units.map((unit) => {
      const piece = { unit, at, from: 0, length: unit.length, values: unit.values, grads: unit.grads };
      at += unit.length;
      return piece;
    });
  }

  settle(): number {
    const { device, dtype, units } = this.set;
    let squares = 0;
    for (const unit of units) {
      zeroMissing(unit);
      squares += device.sumSquares(unit.grads, unit.length, dtype);
    }
    return squares;
  }

  stateBytes() {
    const bytes = this.set.length * dtypeBytes(this.set.dtype);
    return { parameters: bytes, gradients: this.set.trainable ? bytes : 0 };
  }

  free(): void {
    const { device, dtype, length, units } = this.set;
    device.free(units[0].values, length * dtypeBytes(dtype));
    if (units[0].grads) device.free(units[0].grads, length * dtypeBytes(dtype));
  }
}
