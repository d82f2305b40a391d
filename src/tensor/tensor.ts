/**
 * Tensor and Tape: reverse-mode automatic differentiation over the kernels of a Device.
 *
 * A tensor is contiguous and row-major. An operation (ops.ts) runs its kernel at once and, while the tape records,
 * leaves a closure that turns the gradient of its result into gradients of its inputs. `backward` runs the closures
 * in reverse; after each one the memory of its result and of that result's gradient goes back to the arena, so
 * activations shrink while the backward pass goes down the model.
 */
import { BF16, type Device, type DType, dtypeBytes, F32, type Ptr } from "../device/device.js";
import { Arena } from "./arena.js";

/** Memory shared by tensors; counted, so that a gradient can flow to two places without a copy. */
class Storage {
  refs = 1;
  /** The memory was given back before its time; who still wants the values waits until they are made again. */
  private waiting: (() => void)[] | undefined;
  constructor(
    private place: Ptr,
    private readonly arena?: Arena,
  ) {}
  get ptr(): Ptr {
    if (this.waiting) throw new Error("These values were dropped: whenMade says when they are there again.");
    if (this.arena?.closed)
      throw new Error("The tape was closed, and with it went this tensor's memory: read it before.");
    return this.place;
  }
  retain(): this {
    this.refs++;
    return this;
  }
  release(): void {
    if (--this.refs === 0 && !this.waiting) this.arena?.release(this.place);
  }
  /** Gives the memory back. */
  drop(): void {
    this.arena?.release(this.place);
    this.waiting = [];
  }
  /** Whether somebody waits for values that were dropped. */
  get missed(): boolean {
    return (this.waiting?.length ?? 0) > 0;
  }
  /** Runs `use` when the values are there: at once, if they were not dropped. */
  whenMade(use: () => void): void {
    if (this.waiting) this.waiting.push(use);
    else use();
  }
  /** Runs what waits, with the values in memory of somebody else's. */
  lend(place: Ptr): void {
    const waiting = this.waiting ?? [];
    this.waiting = undefined;
    this.place = place;
    for (const use of waiting) use();
    this.waiting = [];
  }
}

export class Tensor {
  grad: Tensor | undefined;
  /** Set by operations that in their backward pass make their result once more, if it is missed: it need not be kept till then. */
  madeAgain = false;
  constructor(
    readonly device: Device,
    readonly storage: Storage,
    readonly dtype: DType,
    readonly shape: readonly number[],
    /** False: no gradient is asked for, and operations skip computing it. */
    public requiresGrad = false,
  ) {}

  get ptr(): Ptr {
    return this.storage.ptr;
  }
  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }
  get bytes(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  /** A copy of the values as fp32, whatever the storage type. */
  toArray(): Float32Array {
    const n = this.size;
    if (this.dtype === F32) return this.device.f32(this.ptr, n).slice();
    const words = this.device.u16(this.ptr, n);
    const bits = new Uint32Array(n);
    for (let i = 0; i < n; i++) bits[i] = words[i] << 16;
    return new Float32Array(bits.buffer);
  }
}

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
  /** Sees that its gradients have memory. `arena`: of the tape whose step is about to write them. */
  openGrads(arena?: Arena): void;
}

/**
 * A trained matrix or vector: lives as long as its model. Its gradient lives from the first write of a step to the optimizer's update, and
 * is not zeroed: the first write overwrites it (`gradBeta` tells), later ones accumulate.
 */
export class Parameter extends Tensor {
  /** Whether this step has put anything into the gradient yet. */
  gradWritten = false;

  constructor(
    device: Device,
    readonly name: string,
    private readonly unit: Unit,
    /** Bytes from the beginning of the unit. */
    readonly offset: number,
    dtype: DType,
    shape: readonly number[],
    readonly trainable: boolean,
  ) {
    super(device, new Storage(0), dtype, shape, trainable);
  }

  override get ptr(): Ptr {
    return this.unit.values + this.offset;
  }
  get gradPtr(): Ptr {
    return this.unit.grads === 0 ? 0 : this.unit.grads + this.offset;
  }

  /** For kernels that can overwrite: beta for this write (0 the first time in a step, then 1). From here on there is a gradPtr. */
  gradBeta(arena?: Arena): 0 | 1 {
    this.unit.openGrads(arena);
    const beta = this.gradWritten ? 1 : 0;
    this.gradWritten = true;
    return beta;
  }
  /** For kernels that only accumulate: clears the buffer before the first write of a step. */
  gradForAccumulation(arena?: Arena): Ptr {
    if (this.gradBeta(arena) === 0) this.device.fill(this.gradPtr, 0, this.size, this.dtype);
    return this.gradPtr;
  }
  gradArray(): Float32Array {
    if (!this.gradWritten) return new Float32Array(this.size);
    return new Tensor(this.device, new Storage(this.gradPtr), this.dtype, this.shape).toArray();
  }
}

type Backward = (outputGrad: Tensor) => void;
type Node = { output: Tensor; backward: Backward; release: Tensor[] } | (() => void);

export class Tape {
  readonly arena: Arena;
  private readonly nodes: Node[] = [];
  private scopeTensors: Tensor[] | undefined;
  private readonly lanes: Tape[] = [];

  constructor(
    readonly device: Device,
    /** False: nothing is recorded; for evaluation and generation. */
    public recording = true,
    arena?: Arena,
  ) {
    this.arena = arena ?? new Arena(device);
  }

  tensor(dtype: DType, shape: readonly number[], requiresGrad = false): Tensor {
    const bytes = shape.reduce((a, b) => a * b, 1) * dtypeBytes(dtype);
    const storage = new Storage(this.arena.alloc(bytes), this.arena);
    const t = new Tensor(this.device, storage, dtype, shape, requiresGrad && this.recording);
    this.scopeTensors?.push(t);
    return t;
  }

  /** Copies 32-bit data into the arena for this step. */
  upload(data: Int32Array | Float32Array): Ptr {
    const ptr = this.arena.alloc(data.byteLength);
    this.device.bytes(ptr, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return ptr;
  }

  /** Notes how `output` was made. `release`: tensors that only this operation's backward still needs. */
  record(output: Tensor, backward: Backward, release: Tensor[] = []): Tensor {
    if (this.recording && output.requiresGrad) this.nodes.push({ output, backward, release });
    return output;
  }

  /**
   * Called when the forward pass is done with `t`: where its operation makes it once more in its own backward pass, on the way, its
   * memory is free until then. What other operations want of it meanwhile waits (`whenMade`).
   */
  drop(t: Tensor): void {
    if (this.recording && t.requiresGrad && t.madeAgain) t.storage.drop();
  }

  /**
   * For such an operation's backward pass: make(ptr) with where its result `y` shall be written, 0 for nowhere; in the place of `dy`, the
   * result's gradient, where nobody else has that.
   */
  makeAgain(y: Tensor, dy: Tensor, make: (ptr: Ptr) => void): void {
    if (!y.storage.missed) {
      make(0);
      return;
    }
    const place = dy.storage.refs === 1 ? this.share(dy) : this.tensor(y.dtype, y.shape);
    make(place.ptr);
    y.storage.lend(place.ptr);
    place.storage.release();
  }

  /** A tape for one more pass that is under way at the same time; lane 0 is this one. */
  lane(index: number): Tape {
    if (index === 0) return this;
    this.lanes[index] ??= new Tape(this.device, this.recording);
    return this.lanes[index];
  }

  /** Runs `action` when the backward pass comes by. */
  whenBack(action: () => void): void {
    if (this.recording) this.nodes.push(action);
  }

  /**
   * body(x), of which only x is kept: the backward pass runs it again, recording, and then backward (Chen et al. 2016).
   */
  recompute(x: Tensor, body: (x: Tensor) => Tensor): Tensor {
    if (!this.recording) return body(x);
    this.recording = false;
    const y = this.scope(() => body(x));
    this.recording = true;
    y.requiresGrad = true;
    return this.record(y, (dy) => {
      const again = new Tensor(x.device, x.storage.retain(), x.dtype, x.shape, x.requiresGrad);
      const first = this.nodes.length;
      const result = body(again);
      this.backward(result, this.share(dy), first);
      if (again.grad) this.accumulate(x, again.grad);
      again.storage.release();
    });
  }

  /** Adds `g` to the gradient of `x`; takes over the caller's reference to `g`. */
  accumulate(x: Tensor, g: Tensor): void {
    if (!x.requiresGrad) {
      g.storage.release();
      return;
    }
    if (!x.grad) {
      x.grad = g;
      return;
    }
    const sum = x.grad.storage.refs === 1 ? x.grad : this.tensor(x.dtype, x.shape);
    this.device.add(x.grad.ptr, g.ptr, sum.ptr, x.size, x.dtype);
    if (sum !== x.grad) x.grad.storage.release();
    g.storage.release();
    x.grad = sum;
  }

  /** The same gradient for one more tensor, without a copy. */
  share(g: Tensor): Tensor {
    return new Tensor(this.device, g.storage.retain(), g.dtype, g.shape);
  }

  /**
   * Runs all closures in reverse. `seed` is d(loss)/d(output) of the last recorded operation; operations that know
   * their own gradient (cross entropy) take none. `first`: where the closures begin that are to be run.
   */
  backward(output: Tensor, seed?: Tensor, first = 0): void {
    output.grad = seed ?? this.ones(output);
    while (this.nodes.length > first) {
      const node = this.nodes.pop()!;
      if (typeof node === "function") {
        node();
        continue;
      }
      const { output: y, backward, release } = node;
      if (y.grad) {
        const grad = y.grad;
        y.grad = undefined;
        backward(grad);
        grad.storage.release();
      }
      y.storage.release();
      for (const t of release) t.storage.release();
    }
  }

  private ones(like: Tensor): Tensor {
    const t = this.tensor(like.dtype, like.shape);
    this.device.fill(t.ptr, 1, like.size, like.dtype);
    return t;
  }

  /** While not recording: frees every tensor made inside but the result. (While recording, backward frees them.) */
  scope(body: () => Tensor): Tensor {
    if (this.recording) return body();
    const outer = this.scopeTensors;
    const inner: Tensor[] = [];
    this.scopeTensors = inner;
    try {
      const result = body();
      for (const t of inner) if (t.storage !== result.storage) t.storage.release();
      outer?.push(result);
      return result;
    } finally {
      this.scopeTensors = outer;
    }
  }

  /** Gives all memory back. */
  close(): void {
    for (const lane of this.lanes) lane?.close();
    this.arena.close();
  }

  /** Ends the step. */
  reset(): void {
    this.nodes.length = 0;
    this.arena.reset();
  }
}

export const dtypeOf = (precision: "bf16" | "fp32"): DType => (precision === "bf16" ? BF16 : F32);
