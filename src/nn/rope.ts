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

/** cos and sin tables [positions, headDim / 2] fp32 on the device. */
export function ropeTables(device: Device, c: LlamaConfig, positions: number): { cos: Ptr; sin: Ptr; bytes: number } {
  const f = inverseFrequencies(c, positions);
  const bytes = positions * f.length * 4;
  const cos = device.alloc(bytes);
  const sin = device.alloc(bytes);
  const cosTable = device.f32(cos, positions * f.length);
  const sinTable = device.f32(sin, positions * f.length);
  const scale = c.ropeScaling?.type === "yarn" ? c.ropeScaling.attentionFactor : 1;
  for (let p = 0, k = 0; p < positions; p++)
    for (let i = 0; i < f.length; i++, k++) {
      const angle = Math.fround(p * Math.fround(f[i]));
      cosTable[k] = scale * Math.cos(angle);
      sinTable[k] = scale * Math.sin(angle);
    }
  return { cos, sin, bytes };
}
