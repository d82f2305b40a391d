/** Choosing the next tokens of a batch: draws that depend on (seed, row, position) only, and the tokens that were seen before. */
import type { Device, Ptr } from "../device/device.js";
import { NonFiniteError } from "../run/errors.js";

export interface SamplingOptions {
  /** 0: greedy. */
  temperature?: number;
  /** 0: off. */
  topK?: number;
  /** Nucleus (Holtzman et al. 2020); 1: off. */
  topP?: number;
  /** Least share of the best token's probability; 0: off. */
  minP?: number;
  /** CTRL (Keskar et al. 2019); 1: off. */
  repetitionPenalty?: number;
  seed?: number;
  /** Number of the first row, where processes share the rows among them. */
  firstRow?: number;
}

export class Sampler {
  readonly ids: Int32Array;
  readonly logProbs: Float32Array;
  private readonly memory: { ptr: Ptr; bytes: number };
  private readonly at: { u: Ptr; ids: Ptr; logp: Ptr; counts: Ptr; history: Ptr };
  private readonly counts: Int32Array;
  /** With a repetition penalty: the tokens of each row of the batch, `width` at most. */
  private readonly history: Int32Array;
  private readonly width: number;

  /** `longest`: tokens that a row can come to have, its prompt included. */
  constructor(
    private readonly device: Device,
    rows: number,
    longest: number,
    private readonly options: SamplingOptions,
  ) {
    const { repetitionPenalty = 1 } = options;
    this.width = repetitionPenalty === 1 ? 1 : longest;
    const bytes = 4 * rows * (4 + this.width);
    const ptr = device.alloc(bytes);
    this.memory = { ptr, bytes };
    const [u, ids, logp, counts, history] = [0, 1, 2, 3, 4].map((i) => ptr + i * 4 * rows);
    this.at = { u, ids, logp, counts, history };
    this.ids = device.i32(ids, rows);
    this.logProbs = device.f32(logp, rows);
    this.counts = device.i32(counts, rows);
    this.history = device.i32(history, rows * this.width);
  }

  private get remembers(): boolean {
    return this.width > 1;
  }

  /** Notes tokens that the row `b` of the batch now has. */
  remember(b: number, tokens: ArrayLike<number>): void {
    if (!this.remembers) return;
    this.history.set(Array.from(tokens), b * this.width + this.counts[b]);
    this.counts[b] += tokens.length;
  }

  /** Row `to` of the batch is from here on what row `from` was. */
  move(from: number, to: number): void {
    if (!this.remembers) return;
    this.history.copyWithin(to * this.width, from * this.width, from * this.width + this.counts[from]);
    this.counts[to] = this.counts[from];
  }

  /**
   * One token for each row of logits [B, V], which are changed: `ids`, and `logProbs` under softmax(logits / temperature).
   * rows[b]: which sequence row b is, of how many new tokens so far.
   */
  draw(logits: Ptr, V: number, rows: readonly { row: number; position: number }[]): void {
    const { device, at, options, width } = this;
    const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, seed = 0, firstRow = 0 } = options;
    const B = rows.length;
    if (temperature > 0)
      rows.forEach(({ row, position }, b) => {
        device.randomUniform(at.u + 4 * b, 1, seed, (firstRow + row) * 2 ** 24 + position);
      });
    // biome-ignore format: one call
    device.sample(logits, B, V, at.history, at.counts, width, repetitionPenalty, temperature, topK, topP, minP, at.u, at.ids, at.logp);
    for (let b = 0; b < B; b++)
      if (Number.isNaN(this.logProbs[b])) throw new NonFiniteError("A log-probability of the model");
    if (this.remembers) for (let b = 0; b < B; b++) this.remember(b, [this.ids[b]]);
  }

  close(): void {
    this.device.free(this.memory.ptr, this.memory.bytes);
  }
}
