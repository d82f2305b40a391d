/**
 * Rotary position tables (RoFormer, Su et al. 2021) with the scalings of Hugging Face `modeling_rope_utils`:
 * linear (Chen et al. 2023), dynamic NTK, YaRN (Peng et al. 2023), and Llama 3.1's by-frequency interpolation.
 */
import type { Device, Ptr } from "../device/device.js";
import type { LlamaConfig } from "./config.js";

/** Angle per position of each of the headDim / 2 pairs. */
export function inverseFrequencies(c: LlamaConfig, positions: number): Float64Array {
  const half = c.headDim / 2;
  const s = c.ropeScaling;
  let base = c.ropeTheta;
  if (s?.type === "dynamic" && positions > s.original)
    base *= ((s.factor * positions) / s.original - (s.factor - 1)) ** (c.headDim / (c.headDim - 2));
  const f = Float64Array.from({ length: half }, (_, i) => base ** ((-2 * i) / c.headDim));
  if (s?.type === "linear") return f.map((x) => x / s.factor);
  if (s?.type === "llama3")
    return f.map((x) => {
      const wavelength = (2 * Math.PI) / x;
      if (wavelength < s.original / s.highFreqFactor) return x;
      if (wavelength > s.original / s.lowFreqFactor) return x / s.factor;
      const smooth = (s.original / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
      return ((1 - smooth) * x) / s.factor + smooth * x;
    });
  if (s?.type === "yarn") {
    // The pair that turns so many times within the original context.
    const pairOf = (turns: number): number =>
      (c.headDim * Math.log(s.original / (turns * 2 * Math.PI))) / (2 * Math.log(base));
    const [fast, slow] = [pairOf(s.betaFast), pairOf(s.betaSlow)];
    const low = Math.max(0, s.truncate ? Math.floor(fast) : fast);
    const high = Math.min(c.headDim - 1, s.truncate ? Math.ceil(slow) : slow);
    return f.map((x, i) => {
      const interpolated = Math.min(1, Math.max(0, (i - low) / (high === low ? 0.001 : high - low)));
      return (x / s.factor) * interpolated + x * (1 - interpolated);
    });
  }
  return f;
}

/** Rows at first; then twice as many, as often as it takes. */
const FIRST = 1024;

/**
 * cos and sin, [positions, headDim / 2] fp32 on the device: as many rows as were asked for, since a model that is made for a million
 * positions seldom sees as many.
 */
export class RopeTables {
  cos: Ptr = 0;
  sin: Ptr = 0;
  private rows = 0;
  /** Shorter ones too: a pass that is under way reads those that it began with. */
  private readonly memory: { ptr: Ptr; bytes: number }[] = [];

  constructor(
    private readonly device: Device,
    private readonly config: LlamaConfig,
  ) {}

  /** Sees that there are rows for positions 0 .. count - 1. */
  reach(count: number): void {
    if (count <= this.rows) return;
    const { device, config } = this;
    const most = config.maxPositionEmbeddings;
    if (count > most) throw new RangeError(`${count} positions are asked for, of ${most} that the model has.`);
    let rows = Math.min(FIRST, most);
    while (rows < count) rows = Math.min(2 * rows, most);
    const f = inverseFrequencies(config, most);
    const bytes = rows * f.length * 4;
    [this.cos, this.sin] = [device.alloc(bytes), device.alloc(bytes)];
    this.memory.push({ ptr: this.cos, bytes }, { ptr: this.sin, bytes });
    this.rows = rows;
    const cos = device.f32(this.cos, rows * f.length);
    const sin = device.f32(this.sin, rows * f.length);
    const scale = config.ropeScaling?.type === "yarn" ? config.ropeScaling.attentionFactor : 1;
    for (let p = 0, k = 0; p < rows; p++)
      for (let i = 0; i < f.length; i++, k++) {
        const angle = Math.fround(p * Math.fround(f[i]));
        cos[k] = scale * Math.cos(angle);
        sin[k] = scale * Math.sin(angle);
      }
  }

  get bytes(): number {
    return this.memory.reduce((n, { bytes }) => n + bytes, 0);
  }

  close(): void {
    for (const { ptr, bytes } of this.memory) this.device.free(ptr, bytes);
  }
}
