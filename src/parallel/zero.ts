/**
 * Data parallelism and ZeRO (Rajbhandari et al. 2020) over the units of a ParameterSet. N processes train replicas of a
 * model on different rows. With P parameters in bf16, each of them keeps, of the notes' 2 + 2 + 12 bytes a parameter,
 *
 *   0  everything                                   16 P              gradients: all-reduce
 *   1  a share of the optimizer's state             4 P + 12 P / N    gradients: reduce-scatter; parameters: all-gather
 *   2  and of the gradients                         2 P + 14 P / N    the same, as soon as a layer's are there
 *   3  and of the parameters                        16 P / N          and parameters: all-gather before a layer is used
 *
 * A unit divides into N pieces; piece r of every unit is process r's. Sums are exchanged and added as comm.ts says, so
 * all four leave the same bits in every parameter. With gradient accumulation they differ by roundings: 2 and 3 add up
 * reduced gradients, 0 and 1 reduce what was added up.
 *
 * In others' words: a unit is DeepSpeed's bucket and FSDP's unit, a piece a shard; `open` gathers a unit's shards, `giveUp` frees what was
 * gathered, `poke` moves communication on while kernels run, `settle` waits for the last reduce-scatters.
 */
import { createHash } from "node:crypto";
import { type Device, type DType, dtypeBytes, F32, type Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";
import { GradientSums, type Room, zeroMissing } from "../tensor/gradients.js";
import type { Keeper, ParameterSet, Pass, Piece } from "../tensor/parameters.js";
import type { Unit } from "../tensor/tensor.js";
import type { Comm, Pending } from "./comm.js";
import { inMemory, type StateMemory } from "./offload.js";

export type ZeroStage = 0 | 1 | 2 | 3;

export class ZeroKeeper implements Keeper, Room {
  readonly pieces: number;
  private set!: ParameterSet;
  private device!: Device;
  private dtype!: DType;
  private own: Piece[] = [];
  /** Units that are whole in every process: their values, and their gradients (0, 1). */
  private values: Ptr = 0;
  private grads: Ptr = 0;
  /** This process's pieces of the values (3) and of the gradients (2, 3), unit after unit. */
  private valuePieces: Ptr = 0;
  private gradPieces: Ptr = 0;
  /** Lower halves of sums over micro-batches: of these pieces, once there is a second micro-batch ... */
  private lowPieces: Ptr = 0;
  /** ... and, with the upper ones, of what is added up before it is reduced. */
  private sums!: GradientSums;
  /** Buffers of a unit's size that no unit uses now. */
  private readonly spare = new Map<string, { ptr: Ptr; bytes: number }[]>();
  /** Units whose gradient pieces hold something of this step already. */
  private readonly reduced = new Set<Unit>();
  private readonly gathering = new Map<Unit, Pending>();
  private readonly underWay: Pending[] = [];
  private gathered: { ptr: Ptr; bytes: number } | undefined;
  private lastMicroBatch = false;
  private held = false;

  constructor(
    private readonly comm: Comm,
    private readonly stage: ZeroStage,
    private readonly memory?: StateMemory,
  ) {
    this.pieces = comm.size;
  }

  private get bytes(): number {
    return dtypeBytes(this.dtype);
  }
  private share(unit: Unit): number {
    return unit.length / this.pieces;
  }
  /** Units that are used all the time, or at both ends of the model, stay in memory from their first use to the update. */
  private stays(unit: Unit): boolean {
    return !unit.name.startsWith("layer ");
  }
  /** Vectors are a thousandth of a model, and used everywhere: their values are whole in every process. */
  private persists(unit: Unit): boolean {
    return this.stage < 3 || !unit.decay;
  }

  place(set: ParameterSet): void {
    this.set = set;
    const { device, dtype, units, length, trainable } = set;
    this.device = device;
    this.dtype = dtype;
    this.sums = new GradientSums(device, dtype, this);
    const { bytes, comm, stage } = this;
    const keepsGrads = trainable && stage < 2;
    let values = device.alloc(this.persistentBytes());
    let grads = keepsGrads ? device.alloc(length * bytes) : 0;
    this.values = values;
    this.grads = grads;
    if (stage === 3)
      this.valuePieces = (this.memory ?? inMemory(device)).alloc("parameters", (length / comm.size) * bytes);
    if (trainable && stage >= 2) this.gradPieces = device.alloc(this.pieceBytes());
    let at = 0;
    for (const unit of units) {
      const n = this.share(unit);
      const from = comm.rank * n;
      if (this.persists(unit)) {
        unit.values = values;
        values += unit.length * bytes;
      }
      if (keepsGrads) {
        unit.grads = grads;
        grads += unit.length * bytes;
      }
      this.own.push({
        unit,
        at: stage === 0 ? at * comm.size : at,
        from: stage === 0 ? 0 : from,
        length: stage === 0 ? unit.length : n,
        values: this.persists(unit) ? unit.values + (stage === 0 ? 0 : from * bytes) : this.valuePieces + at * bytes,
        grads: keepsGrads ? unit.grads + (stage === 0 ? 0 : from * bytes) : this.gradPieces + at * bytes,
      });
      at += n;
    }
  }

  mine(): readonly Piece[] {
    return this.own;
  }

  // ---- values: gathered before use, given up after (stage 3) ----

  hold(held: boolean): void {
    if (held) for (const unit of this.set.units) this.open(unit);
    this.held = held;
    if (!held) for (const unit of this.set.units) this.giveUp(unit);
  }

  use(unit: Unit, recording: boolean): void {
    this.open(unit);
    if (recording) this.openGrads(unit);
  }

  before(unit: Unit, pass: Pass): void {
    this.poke();
    this.open(unit);
    const next = this.set.units[unit.index + (pass === "forward" ? 1 : -1)];
    if (next && !this.stays(next) && next.values === 0) this.startGather(next);
    if (pass === "backward") this.openGrads(unit);
  }

  after(unit: Unit, pass: Pass): void {
    if (pass === "backward" && trains(unit)) this.gradientDone(unit);
    const next = this.set.units[unit.index + 1];
    const lastLayer = !next || this.stays(next);
    // The last layer's forward is followed by its own backward, at once.
    if (pass === "backward" || !lastLayer || !trains(unit)) this.giveUp(unit);
  }

  /** Moves transfers on. */
  poke(): void {
    while (this.underWay[0]?.test()) this.underWay.shift();
  }
  private waitForAll(): void {
    while (this.underWay.length > 0) this.underWay.shift()!.wait();
  }

  private startGather(unit: Unit): void {
    const n = this.share(unit) * this.bytes;
    const own = this.own[unit.index].values;
    this.memory?.ahead(own, n);
    unit.values = this.take(unit);
    const pending = this.comm.startAllGather(own, n, unit.values);
    this.gathering.set(unit, pending);
    this.underWay.push(pending);
  }
  private finishGather(unit: Unit): void {
    const pending = this.gathering.get(unit);
    if (!pending) return;
    pending.wait();
    this.gathering.delete(unit);
    this.memory?.behind(this.own[unit.index].values, this.share(unit) * this.bytes);
  }
  private giveUp(unit: Unit): void {
    if (this.held || this.persists(unit) || unit.values === 0) return;
    this.finishGather(unit);
    this.giveBack(unit, unit.values);
    unit.values = 0;
  }

  // ---- gradients: summed over the processes ----

  backward(last: boolean, pass: () => void): void {
    this.lastMicroBatch = last;
    try {
      pass();
    } finally {
      this.lastMicroBatch = false;
    }
    this.sums.passOver(this.set.units, last);
  }

  /** A buffer for a unit's gradients until they are reduced (2, 3) or added to those of the micro-batches before. */
  openGrads(unit: Unit): void {
    if (unit.grads !== 0 || !trains(unit)) return;
    unit.grads = this.take(unit);
    for (const p of unit.parameters) p.gradWritten = false;
  }

  /** Gradients that are summed wait in memory of their own; what a step that was given up has left is forgotten. */
  dropGrads(): void {
    this.waitForAll();
    this.reduced.clear();
    for (const unit of this.set.units) {
      this.sums.finish(unit);
      if (this.stage < 2 || unit.grads === 0) continue;
      this.giveBack(unit, unit.grads);
      unit.grads = 0;
    }
  }

  /** A layer's gradient of this micro-batch is there. */
  private gradientDone(unit: Unit): void {
    const { stage, lastMicroBatch } = this;
    if (stage >= 2) this.reduce(unit, !lastMicroBatch);
    else if (lastMicroBatch) {
      this.sums.finish(unit);
      this.reduce(unit);
    } else this.sums.add(unit);
  }

  /** `more`: reduced gradients of other micro-batches will be added. */
  private reduce(unit: Unit, more = false): void {
    const { comm, dtype, bytes, stage } = this;
    zeroMissing(unit);
    const n = this.share(unit);
    const buffer = unit.grads;
    if (stage >= 2) {
      unit.grads = 0;
      this.reduceAway(unit, buffer, more);
    }
    // Data parallelism without ZeRO updates every replica in full: it needs the other pieces too.
    else if (stage === 0) this.underWay.push(comm.startAllReduce(buffer, unit.length, dtype));
    else this.underWay.push(comm.startReduceScatter(buffer, n, dtype, buffer + comm.rank * n * bytes));
    this.reduced.add(unit);
  }

  /** 2 and 3: only the own piece of the sum is kept, and the buffer is given back. */
  private reduceAway(unit: Unit, buffer: Ptr, more: boolean): void {
    const { grads } = this.own[unit.index];
    const add = this.reduced.has(unit);
    const low = more || add ? this.lowHalf(unit) : 0;
    const sum = this.comm.startReduceScatter(buffer, this.share(unit), this.dtype, grads, add, low);
    let over = false;
    const finish = (): true => {
      if (!over) this.giveBack(unit, buffer);
      over = true;
      return true;
    };
    this.underWay.push({
      test: () => sum.test() && finish(),
      wait: () => {
        sum.wait();
        finish();
      },
    });
  }

  /** Where the lower half of this process's piece of a sum lies; 0 in fp32. */
  private lowHalf(unit: Unit): Ptr {
    if (this.dtype === F32) return 0;
    if (this.lowPieces === 0) this.lowPieces = this.device.alloc(this.pieceBytes());
    return this.lowPieces + this.own[unit.index].grads - this.gradPieces;
  }

  settle(): number[] {
    const { comm, device, dtype, bytes } = this;
    this.sums.mustBeDone();
    for (const unit of this.set.units) {
      if (this.stage >= 2 && unit.grads === 0 && this.reduced.has(unit)) continue;
      if (this.stage < 2 && this.reduced.has(unit)) continue;
      this.openGrads(unit);
      this.reduce(unit);
    }
    this.waitForAll();
    this.reduced.clear();
    // Squares are added piece by piece, in one order, whoever holds the pieces: the norm has the same bits in all stages.
    const squares = (unit: Unit, rank: number): number =>
      device.sumSquares(unit.grads + rank * this.share(unit) * bytes, this.share(unit), dtype);
    const byRank =
      this.stage === 0
        ? Array.from({ length: comm.size }, (_, r) => this.set.units.map((unit) => squares(unit, r)))
        : comm.gatherNumbers(this.own.map((p) => device.sumSquares(p.grads, p.length, dtype)));
    return this.set.units.map((_, u) => byRank.reduce((sum, of) => sum + of[u], 0));
  }

  updated(): void {
    const { comm, bytes } = this;
    for (const { unit, values } of this.own) {
      if (this.stage === 0) continue;
      if (this.persists(unit)) this.underWay.push(comm.startAllGather(values, this.share(unit) * bytes, unit.values));
      else {
        this.giveUp(unit); // what was gathered is old now
        this.memory?.behind(values, this.share(unit) * bytes);
      }
    }
    this.waitForAll();
  }

  // ---- outside of a step ----

  open(unit: Unit): void {
    if (unit.values === 0) this.startGather(unit);
    this.finishGather(unit);
  }

  close(unit: Unit, changed: boolean): void {
    if (this.persists(unit)) return;
    if (changed) {
      const { values, length, from } = this.own[unit.index];
      const n = length * this.bytes;
      this.device.bytes(values, n).set(this.device.bytes(unit.values + from * this.bytes, n));
    }
    this.giveUp(unit);
  }

  gather(unit: Unit, own: Ptr, width: number): Ptr {
    if (this.stage === 0) return own;
    const bytes = unit.length * width;
    if (!this.gathered || this.gathered.bytes < bytes) {
      if (this.gathered) this.device.free(this.gathered.ptr, this.gathered.bytes);
      this.gathered = { ptr: this.device.alloc(bytes), bytes };
    }
    this.comm.allGather(own, this.share(unit) * width, this.gathered.ptr);
    return this.gathered.ptr;
  }

  /** The values that every process holds whole must be the same bits in all of them. */
  verify(): void {
    const hash = createHash("sha256");
    for (const unit of this.set.units)
      if (this.persists(unit)) hash.update(this.device.bytes(unit.values, unit.length * this.bytes));
    const all = this.comm.gatherText(hash.digest("hex"));
    const odd = all.findIndex((h) => h !== all[0]);
    if (odd >= 0)
      throw new UserError(
        `The replicas are no longer the same: data-parallel process ${odd} has other parameters than process 0. That is a fault of a machine's memory, or a bug. Go on with --resume from the last checkpoint.`,
      );
  }

  // ---- memory ----

  /** Layers share buffers; padding between parameters lies elsewhere in other units, and must stay 0. */
  private spareFor(unit: Unit): { ptr: Ptr; bytes: number }[] {
    const kind = this.stays(unit) ? unit.name : "layer";
    const list = this.spare.get(kind) ?? [];
    this.spare.set(kind, list);
    return list;
  }
  take(unit: Unit): Ptr {
    const spare = this.spareFor(unit).pop();
    if (spare !== undefined) return spare.ptr;
    return this.device.alloc(unit.length * this.bytes);
  }
  giveBack(unit: Unit, ptr: Ptr): void {
    this.spareFor(unit).push({ ptr, bytes: unit.length * this.bytes });
  }

  stateBytes() {
    const { comm, stage, set } = this;
    const persistent = this.persistentBytes();
    const shared = set.length * this.bytes - persistent;
    return {
      parameters: persistent + shared / comm.size,
      gradients: set.trainable ? (set.length * this.bytes) / (stage >= 2 ? comm.size : 1) : 0,
      onDisk: stage === 3 && this.memory !== undefined,
    };
  }
  /** Of all pieces of this process. */
  private pieceBytes(): number {
    return (this.set.length / this.comm.size) * this.bytes;
  }
  private persistentBytes(): number {
    return this.set.units.filter((u) => this.persists(u)).reduce((n, u) => n + u.length * this.bytes, 0);
  }

  free(): void {
    const { device, set, bytes } = this;
    this.dropGrads();
    for (const unit of set.units) this.giveUp(unit);
    for (const { ptr, bytes } of [...this.spare.values()].flat()) device.free(ptr, bytes);
    device.free(this.values, this.persistentBytes());
    const piece = this.pieceBytes();
    if (this.lowPieces) device.free(this.lowPieces, piece);
    if (this.grads) device.free(this.grads, set.length * bytes);
    if (this.gradPieces) device.free(this.gradPieces, piece);
    if (this.valuePieces) (this.memory ?? inMemory(device)).free(this.valuePieces, piece);
    if (this.gathered) device.free(this.gathered.ptr, this.gathered.bytes);
  }
}

const trains = (unit: Unit): boolean => unit.parameters.some((p) => p.requiresGrad);
