/** Gradients in float64, written out: compared with finite differences once (gradients.test.ts), and then with kernels everywhere. */
import type { Shape } from "./reference.js";

/** Log sum exp of each row's scaled scores [H, N], and d(loss)/d(qkv) for d(loss)/d(y) = dy[N, H D] (FlashAttention, Dao et al. 2022, app. B). */
export function attentionGradient(
  qkv: Float64Array,
  dy: Float64Array,
  cu: readonly number[],
  { H, KV, D }: Shape,
): { lse: Float64Array; dqkv: Float64Array } {
  const width = (H + 2 * KV) * D;
  const N = cu[cu.length - 1];
  const scale = 1 / Math.sqrt(D);
  const lse = new Float64Array(H * N);
  const dqkv = new Float64Array(N * width);
  for (let s = 0; s + 1 < cu.length; s++)
    for (let h = 0; h < H; h++) {
      const group = Math.floor(h / (H / KV));
      const [kAt, vAt] = [(H + group) * D, (H + KV + group) * D];
      for (let i = cu[s]; i < cu[s + 1]; i++) {
        const q = i * width + h * D;
        const g = (i * H + h) * D;
        const seen = i - cu[s] + 1;
        const score = new Float64Array(seen);
        const dp = new Float64Array(seen);
        for (let j = 0; j < seen; j++) {
          const row = (cu[s] + j) * width;
          for (let d = 0; d < D; d++) {
            score[j] += qkv[q + d] * qkv[row + kAt + d] * scale;
            dp[j] += dy[g + d] * qkv[row + vAt + d];
          }
        }
        const max = Math.max(...score);
        lse[h * N + i] = max + Math.log(score.reduce((sum, x) => sum + Math.exp(x - max), 0));
        const p = score.map((x) => Math.exp(x - lse[h * N + i]));
        const mean = p.reduce((sum, x, j) => sum + x * dp[j], 0);
        for (let j = 0; j < seen; j++) {
          const row = (cu[s] + j) * width;
          const ds = p[j] * (dp[j] - mean) * scale;
          for (let d = 0; d < D; d++) {
            dqkv[q + d] += ds * qkv[row + kAt + d];
            dqkv[row + kAt + d] += ds * qkv[q + d];
            dqkv[row + vAt + d] += p[j] * dy[g + d];
          }
        }
      }
    }
  return { lse, dqkv };
}

/**
 * For loss = sum_i g[i] log p(target[i]), or sum_i g[i] entropy[i] of the rows that are not skipped: d(loss)/d(hidden)
 * and d(loss)/dW; and log sum exp of each row.
 */
export function logprobGradient(
  hidden: Float64Array,
  W: Float64Array,
  target: readonly number[],
  g: Float64Array,
  D: number,
  invTemperature: number,
  of: "log p" | "entropy" = "log p",
): { lse: Float64Array; dhidden: Float64Array; dW: Float64Array } {
  const V = W.length / D;
  const lse = new Float64Array(target.length);
  const dhidden = new Float64Array(hidden.length);
  const dW = new Float64Array(W.length);
  target.forEach((t, i) => {
    if (t < 0) return;
    const logits = new Float64Array(V);
    for (let v = 0; v < V; v++)
      for (let d = 0; d < D; d++) logits[v] += hidden[i * D + d] * W[v * D + d] * invTemperature;
    const max = Math.max(...logits);
    lse[i] = max + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - max), 0));
    const p = logits.map((x) => Math.exp(x - lse[i]));
    const entropy = p.reduce((sum, x, v) => sum - x * (logits[v] - lse[i]), 0);
    for (let v = 0; v < V; v++) {
      const slope = of === "log p" ? (v === t ? 1 : 0) - p[v] : -p[v] * (logits[v] - lse[i] + entropy);
      const dlogit = g[i] * slope * invTemperature;
      for (let d = 0; d < D; d++) {
        dhidden[i * D + d] += dlogit * W[v * D + d];
        dW[v * D + d] += dlogit * hidden[i * D + d];
      }
    }
  });
  return { lse, dhidden, dW };
}
