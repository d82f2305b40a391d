/**
 * The parameters of a model, in units: a layer's matrices are one, the embedding another, all vectors together one more.
 * A unit lies in one piece of memory, its gradients in another; what moves between processes, or between memory and
 * disk, is a unit. Who holds which memory is the Keeper's business: here the plain one, which keeps everything;
 * src/parallel/zero.ts has those that keep a share.
 */
import { type Device, type DType, dtypeBytes, type Ptr } from "../device/device.js";
import type { Arena } from "./arena.js";
import { GradientSums, type Room, zeroMissing } from "./gradients.js";
import { Parameter, type Unit } from "./tensor.js";

/** A parameter stored under several names in a Hugging Face file: q, k and v are the rows of one matrix here. */
export interface Part {
  name: string;
  rows: number;
  /** What this process has of the whole tensor, where several share it: rows (axis 0) or columns (1) from `from`, of `full`. */
  cut?: Cut;
}
export interface Cut {
  axis: 0 | 1;
  from: number;
  full: number;
}

export interface ParameterSpec {
  shape: readonly number[];
  parts: Part[];
  init: "normal" | "ones" | "zeros";
  /** Name of the unit that the parameter belongs to: matrices to one, vectors to another. Those of vectors come last. */
  unit: string;
  /** Number of the stream of random numbers that its first values come from; default: its place in the list. */
  stream?: number;
}

/** Elements between parameters are padded so that each begins at a cache line, in fp32 as in bf16. */
const ALIGN = 32;
const padded = (n: number, multiple = ALIGN): number => Math.ceil(n / multiple) * multiple;

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
  /** While `held` all values stay in memory: for generation, in which processes go different ways. */
  hold(held: boolean): void;
  /**
   * Runs a backward pass of a step that may have several, as with gradient accumulation. `last`: no other follows, and so a layer's whole
   * gradient is there when its turn is over.
   */
  backward(last: boolean, pass: () => void): void;
  /** Called once, when the set is made. */
  place(set: ParameterSet): void;
  /** A unit is used from here to the update: the embedding, the head, the vectors. */
  use(unit: Unit, recording: boolean): void;
  /** The pass over the model is about to use a layer's unit, and has used it. */
  before(unit: Unit, pass: Pass): void;
  after(unit: Unit, pass: Pass): void;
  /** A unit's gradients are about to be written: they get memory where they have none, if the keeper likes from `arena`, the step's. */
  openGrads(unit: Unit, arena?: Arena): void;
  /** Between kernels: moves transfers on that are under way. */
  poke(): void;
  /** What this process updates, once gradients are settled. */
  mine(): readonly Piece[];
  /** Gradients of all micro-batches are there: sums them over the replicas. Returns the sum of squares of each unit. */
  settle(): number[];
  /** The optimizer has changed its pieces of the values. */
  updated(): void;
  /** Gradients are needed no longer. */
  dropGrads(): void;
  /** All values of a unit are in memory from open to close; `changed`: they were written, and are to be kept. */
  open(unit: Unit): void;
  close(unit: Unit, changed: boolean): void;
  /**
   * A whole unit of numbers that lie piece by piece with the processes, as the optimizer's state does: `own` is this
   * process's piece, of `width` bytes an element. The result is valid until the next call.
   */
  gather(unit: Unit, own: Ptr, width: number): Ptr;
  /** Bytes as the ZeRO paper counts them, which holds gradients all the time. `onDisk`: the parameters lie there. */
  stateBytes(): { parameters: number; gradients: number; onDisk?: boolean };
  /** Throws when a replica has come to differ. */
  verify(): void;
  free(): void;
}

/** While `work` runs, all values of these sets are in memory, wherever they lie otherwise (ZeRO-3, offload). */
export async function holding<T>(sets: readonly ParameterSet[], work: () => T | Promise<T>): Promise<T> {
  for (const { keeper } of sets) keeper.hold(true);
  try {
    return await work();
  } finally {
    for (const { keeper } of sets) keeper.hold(false);
  }
}

export class ParameterSet {
  readonly parameters: Parameter[] = [];
  private closed = false;
  readonly units: Unit[] = [];
  /** Elements with padding, and without. */
  readonly length: number;
  readonly count: number;
  /** What several processes that write one checkpoint have to know of each other. Here: this one writes all. */
  storage: Storage = {
    stages: () => [[...this.tensors()]],
    writer: { stage: 0, rank: 0, size: 1 },
    whole: (t, ptr, width) => this.device.bytes(ptr, t.size * width),
  };
  /** For processes that have different parts of a model: what is to be done before gradients are settled ... */
  beforeSettle: () => void = () => {};
  /** ... and the sum of squares over all of them, from those of this process's units. */
  total: (squares: readonly number[]) => number = (squares) => squares.reduce((a, b) => a + b, 0);

  constructor(
    readonly device: Device,
    readonly dtype: DType,
    readonly specs: readonly ParameterSpec[],
    readonly trainable = true,
    readonly keeper: Keeper = new WholeKeeper(),
  ) {
    const size = (s: ParameterSpec): number => s.shape.reduce((a, b) => a * b, 1);
    const ofVectors = new Set(specs.filter((s) => s.shape.length === 1).map((s) => s.unit));
    const names = [...new Set(specs.map((s) => s.unit))].sort((a, b) => +ofVectors.has(a) - +ofVectors.has(b));
    const made = new Map<ParameterSpec, Parameter>();
    for (const [index, name] of names.entries()) {
      const members = specs.filter((s) => s.unit === name);
      const elements = members.reduce((n, s) => n + padded(size(s)), 0);
      const unit: Unit = {
        index,
        name,
        length: padded(elements, ALIGN * keeper.pieces),
        decay: !ofVectors.has(name),
        parameters: [],
        values: 0,
        grads: 0,
        openGrads: (arena) => keeper.openGrads(unit, arena),
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
    this.mustBeOpen();
    for (const unit of this.units) {
      this.keeper.open(unit);
      for (const p of unit.parameters) {
        const i = this.parameters.indexOf(p);
        const { init, stream = i } = this.specs[i];
        if (init === "normal") this.draw(p, this.specs[i], seed, stream, std);
        else this.device.fill(p.ptr, init === "ones" ? 1 : 0, p.size, this.dtype);
      }
      this.keeper.close(unit, true);
    }
  }

  /** Draws the whole parameter, of which this process may keep a part: the same numbers however it is shared. */
  private draw(p: Parameter, { parts }: ParameterSpec, seed: number, stream: number, std: number): void {
    const { device, dtype } = this;
    if (!parts.some((part) => part.cut)) {
      device.randomNormal(p.ptr, p.size, seed, stream, 0, std, dtype);
      return;
    }
    const width = dtypeBytes(dtype);
    const shapes = parts.map((part) => wholeShape([part.rows, p.shape[1]], part.cut));
    const size = shapes.reduce((n, [rows, columns]) => n + rows * columns, 0);
    const all = device.alloc(size * width);
    device.randomNormal(all, size, seed, stream, 0, std, dtype);
    let [from, to] = [all, p.ptr];
    for (const [i, part] of parts.entries()) {
      const shape = [part.rows, p.shape[1]];
      takePart(device, from, to, shape, part.cut, width);
      from += shapes[i][0] * shapes[i][1] * width;
      to += shape[0] * shape[1] * width;
    }
    device.free(all, size * width);
  }

  /** Begins a new optimizer step: the next write to each gradient overwrites it, wherever it lies then. */
  clearGrads(): void {
    this.keeper.dropGrads();
    for (const p of this.parameters) p.gradWritten = false;
  }
  /** Before gradients are read: parameters that took no part in the step have gradient 0. Returns the sum of all squares. */
  settleGrads(): number {
    this.mustBeOpen();
    this.beforeSettle();
    return this.total(this.keeper.settle());
  }

  /** Every named tensor of the Hugging Face layout, unit by unit; without its memory. */
  *tensors(): Generator<NamedTensor> {
    this.mustBeOpen();
    for (const unit of this.units) {
      for (const p of unit.parameters) {
        const s = this.specs[this.parameters.indexOf(p)];
        const rowSize = s.shape.length > 1 ? p.size / s.shape[0] : 1;
        let inUnit = p.offset / dtypeBytes(this.dtype);
        for (const { name, rows, cut } of s.parts) {
          const size = rows * rowSize;
          const shape = [rows, ...s.shape.slice(1)];
          yield { name, shape, whole: wholeShape(shape, cut), size, unit, inUnit, ...(cut && { cut }) };
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
    this.mustBeOpen();
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
    this.closed = true;
    this.keeper.free();
  }
  /** Throws where the memory was given back. */
  mustBeOpen(): void {
    if (this.closed) throw new Error("These parameters were closed with their model: their memory is gone.");
  }
}

export interface Storage {
  /** The tensors of each stage of a pipeline, whole, and each once. */
  stages(): { name: string; whole: readonly number[] }[][];
  writer: { stage: number; rank: number; size: number };
  /** A whole tensor from the parts at `ptr` of all processes that share it, which must all ask; `width` bytes an element. */
  whole(t: NamedTensor, ptr: Ptr, width: number): Uint8Array;
}

export interface NamedTensor {
  name: string;
  /** Of what this process has, and of the whole tensor. */
  shape: number[];
  whole: number[];
  cut?: Cut;
  size: number;
  unit: Unit;
  /** Its first element, counted from the unit's. */
  inUnit: number;
}

/** Names and whole shapes of a list of parameters. */
export const tensorsOf = (specs: readonly ParameterSpec[]): { name: string; whole: number[] }[] =>
  specs.flatMap((s) =>
    s.parts.map(({ name, rows, cut }) => ({ name, whole: wholeShape([rows, ...s.shape.slice(1)], cut) })),
  );

const wholeShape = (shape: readonly number[], cut: Cut | undefined): number[] =>
  shape.map((n, axis) => (cut?.axis === axis ? cut.full : n));

/** Copies this process's part, of `shape`, out of a whole tensor; `width` bytes an element. */
export function takePart(
  device: Device,
  whole: Ptr,
  to: Ptr,
  shape: readonly number[],
  cut: Cut | undefined,
  width: number,
): void {
  const [rows, columns = 1] = shape;
  const copy = (from: Ptr, at: Ptr, elements: number): void =>
    device.bytes(at, elements * width).set(device.bytes(from, elements * width));
  if (cut?.axis === 1) {
    for (let r = 0; r < rows; r++) copy(whole + (r * cut.full + cut.from) * width, to + r * columns * width, columns);
  } else copy(whole + (cut?.from ?? 0) * columns * width, to, rows * columns);
}

/** Sets what lies between and behind a unit's gradients to 0: the optimizer goes over it, and the norm counts it. */
function clearPadding(unit: Unit, device: Device, dtype: DType): void {
  const width = dtypeBytes(dtype);
  const ends = [...unit.parameters.slice(1).map((p) => p.offset / width), unit.length];
  for (const [i, p] of unit.parameters.entries()) {
    const end = p.offset / width + p.size;
    if (ends[i] > end) device.fill(unit.grads + end * width, 0, ends[i] - end, dtype);
  }
}

/** Where values that are not used all the time lie (see src/parallel/offload.ts). */
interface Shelf {
  alloc(name: string, bytes: number): Ptr;
  free(ptr: Ptr, bytes: number): void;
  ahead(ptr: Ptr, bytes: number): void;
  behind(ptr: Ptr, bytes: number): void;
}

/**
 * One process alone: values are in memory all the time, and complete; with a shelf, while they are held. A unit's gradients are there from
 * their first write in a step until they are dropped, and lie in the step's arena: the more of them there are, the more activations are gone.
 */
export class WholeKeeper implements Keeper, Room {
  readonly pieces = 1;
  private set!: ParameterSet;
  private sums!: GradientSums;
  /** Memory of gradients, with what gives it back; and the arena where it was taken last. */
  private readonly grads = new Map<Ptr, () => void>();
  private arena: Arena | undefined;

  constructor(private readonly shelf?: Shelf) {}

  place(set: ParameterSet): void {
    this.set = set;
    const { device, dtype, length } = set;
    this.sums = new GradientSums(device, dtype, this);
    const bytes = length * dtypeBytes(dtype);
    let values = this.shelf ? this.shelf.alloc("values", bytes) : device.alloc(bytes);
    for (const unit of set.units) {
      unit.values = values;
      values += unit.length * dtypeBytes(dtype);
    }
  }
  hold(held: boolean): void {
    const { units, length, dtype } = this.set;
    if (held) this.shelf?.ahead(units[0].values, length * dtypeBytes(dtype));
    else this.shelf?.behind(units[0].values, length * dtypeBytes(dtype));
  }
  use(): void {}
  before(): void {}
  after(unit: Unit, pass: Pass): void {
    if (pass === "backward") this.sums.add(unit);
  }
  backward(last: boolean, pass: () => void): void {
    pass();
    this.sums.passOver(this.set.units, last);
  }

  openGrads(unit: Unit, arena?: Arena): void {
    if (unit.grads !== 0) return;
    const { device, dtype } = this.set;
    this.arena = arena;
    unit.grads = this.take(unit);
    clearPadding(unit, device, dtype);
  }
  take(unit: Unit): Ptr {
    const { arena } = this;
    const { device, dtype } = this.set;
    const bytes = unit.length * dtypeBytes(dtype);
    const ptr = arena ? arena.alloc(bytes, true) : device.alloc(bytes);
    this.grads.set(ptr, () => (arena ? arena.release(ptr) : device.free(ptr, bytes)));
    return ptr;
  }
  giveBack(_: Unit, ptr: Ptr): void {
    this.grads.get(ptr)!();
    this.grads.delete(ptr);
  }
  dropGrads(): void {
    for (const unit of this.set.units) {
      this.sums.finish(unit);
      if (unit.grads !== 0) this.giveBack(unit, unit.grads);
      unit.grads = 0;
    }
  }

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

  settle(): number[] {
    const { device, dtype, units } = this.set;
    this.sums.mustBeDone();
    return units.map((unit) => {
      zeroMissing(unit);
      return device.sumSquares(unit.grads, unit.length, dtype);
    });
  }

  stateBytes() {
    const bytes = this.set.length * dtypeBytes(this.set.dtype);
    return { parameters: bytes, gradients: this.set.trainable ? bytes : 0 };
  }

  free(): void {
    const { device, dtype, length, units } = this.set;
    (this.shelf ?? device).free(units[0].values, length * dtypeBytes(dtype));
    this.dropGrads();
  }
}
