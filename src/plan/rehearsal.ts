/**
 * A training step of Lyceum's own, gone through without computing: the real model, tape and optimizer run on a device whose
 * kernels only note that they were called. What they would have allocated and called is then known, and not guessed.
 */
import type { Device, Ptr } from "../device/device.js";
import type { LlamaConfig } from "../nn/config.js";
import { Llama, type Precision, packSequences } from "../nn/llama.js";
import { Trainer } from "../optim/trainer.js";
import { optimizerSchema, scheduleSchema } from "../run/settings.js";
import { Arena } from "../tensor/arena.js";
import { Tape } from "../tensor/tensor.js";

export interface RehearsedRun {
  model: LlamaConfig;
  precision: Precision;
  batchSize: number;
  contextLength: number;
  gradientAccumulation: number;
  recompute: boolean;
}

/** Calls of one kernel with one set of shapes. */
export interface Calls {
  kernel: string;
  count: number;
  /** Arguments of some of the calls: other layers' addresses, so that timing them does not find all in the cache. */
  examples: (readonly number[])[];
}

export interface Rehearsal {
  calls: Calls[];
  /** Parameters of the model. */
  parameters: number;
  /** Bytes that are held all the time: values, the optimizer's, tables. */
  states: { parameters: number; optimizer: number; tables: number };
  /** Bytes of gradients. They lie in the arena. */
  gradients: number;
  /** Bytes of the arena that are ever touched, by steps and by evaluation. */
  arena: number;
  /** Seconds of the program around the kernels. */
  scriptSeconds: number;
  /** Gives back the address space that the examples point into. */
  close(): void;
}

/** Methods of a device that are not kernels. */
const MEMORY = new Set(
  "alloc free mapFile unmapFile mapState adviseState bytes f32 i32 u16 init threads cpuName isaList isa".split(" "),
);
const EXAMPLES = 4;
/** Addresses are far above any shape or size that a kernel is called with. */
const isAddress = (x: number): boolean => x >= 2 ** 40;

/** A device whose memory is real address space, which costs nothing until it is touched, and whose kernels only count. */
function silentDevice(real: Device): { device: Device; calls: Map<string, Calls>; noting: { on: boolean } } {
  const calls = new Map<string, Calls>();
  const noting = { on: true };
  const device: Record<string, unknown> = { ...real };
  for (const [name, value] of Object.entries(real)) {
    if (typeof value !== "function" || MEMORY.has(name)) continue;
    device[name] = (...args: number[]): number => {
      if (!noting.on) return 0;
      const key = `${name} ${args.map((a) => (isAddress(a) ? "p" : a)).join(" ")}`;
      const known = calls.get(key) ?? { kernel: name, count: 0, examples: [] };
      known.count++;
      if (known.examples.length < EXAMPLES) known.examples.push(args);
      calls.set(key, known);
      return 0;
    };
  }
  return { device: device as unknown as Device, calls, noting };
}

/** An arena that knows how far it was ever filled: what is released is used again, and stays touched. */
export class WatchedArena extends Arena {
  private readonly ends = new Map<Ptr, number>();
  override alloc(bytes: number, kept = false): Ptr {
    const ptr = super.alloc(bytes, kept);
    this.ends.set(ptr, Math.max(this.ends.get(ptr) ?? 0, Math.ceil(bytes / 64) * 64));
    return ptr;
  }
  /** Bytes of the union of all blocks ever given out. */
  touched(): number {
    let sum = 0;
    let end = 0;
    for (const [ptr, bytes] of [...this.ends].sort((a, b) => a[0] - b[0])) {
      sum += Math.max(0, ptr + bytes - Math.max(end, ptr));
      end = Math.max(end, ptr + bytes);
    }
    return sum;
  }
}

/**
 * Numbers of tokens, rows and sequences lie where nothing else is ever put: kernels that are timed out of their order write over
 * each other's memory, and a token's number read from there would point anywhere. The arena is charged for them all the same.
 */
class RehearsalTape extends Tape {
  private readonly kept: { ptr: Ptr; bytes: number }[] = [];
  override upload(data: Int32Array | Float32Array): Ptr {
    super.upload(data);
    const ptr = this.device.alloc(data.byteLength);
    this.device.bytes(ptr, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    this.kept.push({ ptr, bytes: data.byteLength });
    return ptr;
  }
  giveBack(): void {
    for (const { ptr, bytes } of this.kept.splice(0)) this.device.free(ptr, bytes);
    this.arena.close();
  }
}

/** Goes through one step and one evaluation batch. `device`: the engine that the run would use. */
export function rehearse(real: Device, run: RehearsedRun): Rehearsal {
  const { device, calls, noting } = silentDevice(real);
  const model = new Llama(device, run.model, run.precision);
  model.recompute = run.recompute;
  const trainer = new Trainer(model.trainable, optimizerSchema.parse({}), scheduleSchema.parse({}), 100);
  const { keeper } = model.parameters;
  const arena = new WatchedArena(device);
  const tape = new RehearsalTape(device, true, arena);
  const row = Int32Array.from({ length: run.contextLength }, (_, i) => (i * 7919) % run.model.vocabSize);
  const batch = packSequences(Array.from({ length: run.batchSize }, () => row));
  const targets = Int32Array.from(batch.ids, (_, i) => (i * 104729) % run.model.vocabSize);
  const weights = new Float32Array(targets.length).fill(1 / targets.length);
  const step = (n: number): void => {
    trainer.step(n, () => {
      for (let micro = 0; micro < run.gradientAccumulation; micro++) {
        const { logp } = model.loss(tape, batch, targets, weights);
        keeper.backward(micro === run.gradientAccumulation - 1, () => tape.backward(logp));
        tape.reset();
      }
      return 0;
    });
  };
  calls.clear(); // what initializing the optimizer called
  step(1);
  noting.on = false;
  const began = performance.now();
  step(2);
  const scriptSeconds = (performance.now() - began) / 1000;
  const evaluation = new RehearsalTape(device, false, arena);
  model.logProbs(evaluation, batch, targets);
  const { parameters, gradients } = keeper.stateBytes();
  const result = {
    calls: [...calls.values()],
    parameters: model.parameters.count,
    states: { parameters, optimizer: trainer.optimizer.heldBytes(), tables: model.tables.bytes },
    gradients,
    arena: arena.touched(),
    scriptSeconds,
  };
  return {
    ...result,
    close() {
      evaluation.giveBack();
      tape.giveBack();
      trainer.close();
      model.close();
    },
  };
}
