/** Choosing the next tokens of a batch: draws that depend on (seed, row, position) only, and the tokens that were seen before. */
import type { Device, Ptr } from "../device/device.js";
import { nearest } from "../run/config.js";
import { NonFiniteError, UserError } from "../run/errors.js";

export interface SamplingOptions {
  /** Default 0: greedy. */
  temperature?: number;
  /** Default 0: off. */
  topK?: number;
  /** Nucleus (Holtzman et al. 2020); default 1: off. */
  topP?: number;
  /** Least share of the best token's probability; default 0: off. */
  minP?: number;
  /** CTRL (Keskar et al. 2019); default 1: off. */
  repetitionPenalty?: number;
  /**
   * Default 0. The same seed gives the same reply to the same prompt, so a server whose replies shall differ passes another one with each
   * request.
   */
  seed?: number;
  /** Number of the first row, where processes share the rows among them; default 0. */
  firstRow?: number;
}

const DEFAULTS: Required<SamplingOptions> = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 0,
  firstRow: 0,
};

const count = {
  fits: (x: number) => Number.isInteger(x) && x >= 0 && x < 2 ** 31,
  as: "a whole number from 0, below 2^31",
};
const share = { fits: (x: number) => x >= 0 && x <= 1, as: "a number from 0 to 1" };
const ALLOWED: Record<keyof SamplingOptions | "maxTokens", { fits: (x: number) => boolean; as: string }> = {
  maxTokens: { fits: (x) => Number.isInteger(x) && x >= 0, as: "a whole number from 0" },
  temperature: { fits: (x) => x >= 0 && Number.isFinite(x), as: "a number from 0" },
  topK: count,
  topP: share,
  minP: share,
  repetitionPenalty: { fits: (x) => x > 0 && Number.isFinite(x), as: "a number above 0" },
  seed: { fits: (x) => Number.isInteger(x) && x >= 0 && x < 2 ** 64, as: "a whole number from 0, below 2^64" },
  firstRow: count,
};

/** Throws UserError for numbers that no kernel can take, and for options that there are not; `others` there are besides. */
export function checkSampling(options: SamplingOptions & { maxTokens: number }, others: readonly string[]): void {
  const known = [...Object.keys(ALLOWED), ...others];
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue;
    const near = nearest(key, known);
    const hint = near ? `Did you mean "${near}"?` : `There are: ${known.join(", ")}.`;
    throw new UserError(`There is no option "${key}". ${hint}`, 2);
  }
  for (const [key, { fits, as }] of Object.entries(ALLOWED)) {
    const value: unknown = options[key as keyof typeof ALLOWED];
    if (value === undefined && key !== "maxTokens") continue;
    if (typeof value === "number" && fits(value)) continue;
    throw new UserError(`${key} is ${typeof value === "string" ? `"${value}"` : value}; it must be ${as}.`, 2);
  }
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
  private readonly options: Required<SamplingOptions>;

  /** `longest`: tokens that a row can come to have, its prompt included. */
  constructor(
    private readonly device: Device,
    rows: number,
    longest: number,
    options: SamplingOptions,
  ) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    this.options = { ...DEFAULTS, ...Object.fromEntries(given) };
    this.width = this.options.repetitionPenalty === 1 ? 1 : longest;
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
    const { temperature, topK, topP, minP, repetitionPenalty, seed, firstRow } = options;
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
