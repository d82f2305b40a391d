/**
 * The differentiable operations, at the grain of a transformer. Each runs one or two kernels of the Device and tells
 * the tape how its gradient goes back. N is the number of tokens of the step, all sequences end to end.
 */
import { F32, type Ptr } from "../device/device.js";
import type { Parameter, Tape, Tensor } from "./tensor.js";

/** Rows `from` and on of a frozen matrix that are trained: `trained`[n, D] has them, and the matrix a copy, which forward passes read. */
export interface TrainedRows {
  from: number;
  trained: Parameter;
}

/** Rows of `table`[V, D] for ids[N]: [N, D]. */
export function embedding(tape: Tape, table: Parameter, ids: Int32Array, rows?: TrainedRows): Tensor {
  const { device } = tape;
  const [V, D] = table.shape;
  const N = ids.length;
  const dt = table.dtype;
  const y = tape.tensor(dt, [N, D], table.requiresGrad || rows !== undefined);
  const at = tape.upload(ids);
  device.embeddingForward(at, table.ptr, y.ptr, N, D, dt);
  return tape.record(y, (dy) => {
    if (table.requiresGrad) device.embeddingBackward(at, dy.ptr, table.gradForAccumulation(tape.arena), N, D, V, dt);
    if (!rows) return;
    const { from, trained } = rows;
    const here = Int32Array.from(ids.keys()).filter((i) => ids[i] >= from && ids[i] < from + trained.shape[0]);
    if (here.length === 0) return;
    const picked = tape.tensor(dt, [here.length, D]);
    device.copyRows(dy.ptr, tape.upload(here), picked.ptr, here.length, D, dt);
    const local = tape.upload(here.map((i) => ids[i] - from));
    // biome-ignore format: one call
    device.embeddingBackward(local, picked.ptr, trained.gradForAccumulation(tape.arena), here.length, D, trained.shape[0], dt);
    picked.storage.release();
  });
}

/** alpha * x W^T (+ residual): x[N, in], W[out, in], residual[N, out] added before the one rounding. */
export function linear(tape: Tape, x: Tensor, W: Parameter, residual?: Tensor, alpha = 1): Tensor {
  const { device } = tape;
  const [N, K] = x.shape;
  const [M] = W.shape;
  const dt = x.dtype;
  const y = tape.tensor(dt, [N, M], x.requiresGrad || W.requiresGrad || (residual?.requiresGrad ?? false));
  device.matmul(0, 1, N, M, K, alpha, x.ptr, dt, K, W.ptr, dt, K, 0, y.ptr, dt, M, residual?.ptr ?? 0, 1, 0, 0, 0);
  return tape.record(y, (dy) => {
    const dx = linearBackward(tape, x, W, dy, alpha);
    if (dx) tape.accumulate(x, dx);
    if (residual?.requiresGrad) tape.accumulate(residual, tape.share(dy));
  });
}

/** For y = alpha * x W^T: adds to W's gradient, as soon as x is there, and returns x's gradient when it is asked for. */
export function linearBackward(tape: Tape, x: Tensor, W: Parameter, dy: Tensor, alpha = 1): Tensor | undefined {
  const { device } = tape;
  const [N, K] = x.shape;
  const [M] = W.shape;
  const dt = x.dtype;
  if (W.requiresGrad) {
    dy.storage.retain();
    x.storage.whenMade(() => {
      // biome-ignore format: one product
      device.matmul(1, 0, M, K, N, alpha, dy.ptr, dt, M, x.ptr, dt, K, W.gradBeta(tape.arena), W.gradPtr, dt, K, 0, 1, 0, 0, 0);
      dy.storage.release();
    });
  }
  if (!x.requiresGrad) return undefined;
  const dx = tape.tensor(dt, [N, K]);
  device.matmul(0, 0, N, K, M, alpha, dy.ptr, dt, M, W.ptr, dt, K, 0, dx.ptr, dt, K, 0, 1, 0, 0, 0);
  return dx;
}

/** RMSNorm (Zhang & Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight, per row of x[N, D]. */
export function rmsNorm(tape: Tape, x: Tensor, weight: Parameter, eps: number): Tensor {
  const { device } = tape;
  const [N, D] = x.shape;
  const dt = x.dtype;
  const y = tape.tensor(dt, x.shape, x.requiresGrad || weight.requiresGrad);
  const rstd = tape.tensor(F32, [N]);
  device.rmsnormForward(x.ptr, 0, weight.ptr, 0, y.ptr, rstd.ptr, N, D, eps, dt);
  y.madeAgain = true;
  const backward = (dy: Tensor): void => {
    const dx = tape.tensor(dt, x.shape);
    const extra = x.grad; // what reached x by the residual path is added in the same pass
    const dweight = weight.requiresGrad ? weight.gradForAccumulation(tape.arena) : 0;
    tape.makeAgain(y, dy, (again) => {
      // biome-ignore format: one call
      device.rmsnormBackward(dy.ptr, x.ptr, weight.ptr, rstd.ptr, extra?.ptr ?? 0, dx.ptr, dweight, again, N, D, dt);
    });
    extra?.storage.release();
    x.grad = undefined;
    tape.accumulate(x, dx);
  };
  return tape.record(y, backward, [rstd]);
}

/** x[N, M] + bias[M], in the place of x: the product that made it does not need its own result to go backward. */
export function addBias(tape: Tape, x: Tensor, bias: Parameter): Tensor {
  const { device } = tape;
  const [N, M] = x.shape;
  const dt = x.dtype;
  device.addBias(x.ptr, bias.ptr, N, M, dt);
  if (!tape.recording || !(x.requiresGrad || bias.requiresGrad)) return x;
  const y = tape.share(x);
  y.requiresGrad = true;
  return tape.record(y, (dy) => {
    if (bias.requiresGrad) device.biasBackward(dy.ptr, bias.gradForAccumulation(tape.arena), N, M, dt);
    tape.accumulate(x, tape.share(dy));
  });
}

/** RMSNorm of each head of queries and of keys (Qwen3; Henry et al. 2020), each kind with one weight[D]; values stay: qkv[N, (H + 2 KV) D]. */
export function headNorm(
  tape: Tape,
  qkv: Tensor,
  query: Parameter,
  key: Parameter,
  { numHeads: H, numKvHeads: KV, headDim: D }: AttentionShape,
  eps: number,
): Tensor {
  const { device } = tape;
  const N = qkv.shape[0];
  const dt = qkv.dtype;
  const y = tape.tensor(dt, qkv.shape, qkv.requiresGrad || query.requiresGrad);
  const rstd = tape.tensor(F32, [N, H + KV]);
  device.headNormForward(qkv.ptr, query.ptr, key.ptr, y.ptr, rstd.ptr, N, H, KV, D, eps, dt);
  const backward = (dy: Tensor): void => {
    const dx = dy.storage.refs === 1 ? tape.share(dy) : tape.tensor(dt, qkv.shape);
    const [dq, dk] = [query, key].map((w) => (w.requiresGrad ? w.gradForAccumulation(tape.arena) : 0));
    // biome-ignore format: one call
    device.headNormBackward(dy.ptr, qkv.ptr, query.ptr, key.ptr, rstd.ptr, dx.ptr, dq, dk, N, H, KV, D, dt);
    tape.accumulate(qkv, dx);
  };
  return tape.record(y, backward, [rstd]);
}

/** Where each sequence of the step begins and ends, and which rotary angle each token has. On the device. */
export interface Layout {
  /** cu[nseq + 1] i32: sequence s is rows cu[s] .. cu[s+1]-1. */
  cu: Ptr;
  nseq: number;
  /** positions[N] i32 within their sequence. */
  positions: Ptr;
}

export interface AttentionShape {
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  /** cos, sin tables [maxPositions, headDim / 2] fp32. */
  cos: Ptr;
  sin: Ptr;
}

/**
 * Rotary embedding (RoFormer, Su et al. 2021, halves paired as in Hugging Face), then causal grouped-query attention within each
 * sequence: qkv[N, (H + 2 KV) D] -> [N, H D]. qkv is rotated in place: the product that made it does not need its own result
 * to go backward.
 */
export function attention(tape: Tape, qkv: Tensor, layout: Layout, a: AttentionShape): Tensor {
  const { device } = tape;
  const { numHeads: H, numKvHeads: KV, headDim: D, cos, sin } = a;
  const { cu, nseq, positions } = layout;
  const N = qkv.shape[0];
  const dt = qkv.dtype;
  const scale = 1 / Math.sqrt(D);
  const y = tape.tensor(dt, [N, H * D], qkv.requiresGrad);
  const lse = tape.tensor(F32, [H, N]);
  // biome-ignore format: one call
  device.attentionForward(qkv.ptr, positions, cos, sin, y.ptr, lse.ptr, cu, nseq, N, H, KV, D, scale, dt);
  const backward = (dy: Tensor): void => {
    const dqkv = tape.tensor(dt, qkv.shape);
    // biome-ignore format: one call
    device.attentionBackward(dy.ptr, qkv.ptr, positions, cos, sin, y.ptr, lse.ptr, dqkv.ptr, cu, nseq, N, H, KV, D, scale, dt);
    tape.accumulate(qkv, dqkv);
  };
  return tape.record(y, backward, [lse]);
}

/**
 * SwiGLU (Shazeer 2020): gu[N, 2F] holds gate and up side by side; silu(gate) * up: [N, F]. Backward puts the gradient in the place
 * of gu, which nothing needs after that.
 */
export function swiglu(tape: Tape, gu: Tensor): Tensor {
  const { device } = tape;
  const [N, F2] = gu.shape;
  const y = tape.tensor(gu.dtype, [N, F2 / 2], gu.requiresGrad);
  device.swigluForward(gu.ptr, y.ptr, N, F2 / 2, gu.dtype);
  y.madeAgain = true;
  return tape.record(y, (dy) => {
    const dgu = tape.share(gu);
    tape.makeAgain(y, dy, (again) => {
      device.swigluBackward(dy.ptr, gu.ptr, dgu.ptr, again, N, F2 / 2, gu.dtype);
    });
    tape.accumulate(gu, dgu);
  });
}

/** Rows of x[N, D] by number, as a tensor of their own: [rows.length, D]. */
export function pickRows(tape: Tape, x: Tensor, rows: Int32Array): Tensor {
  const D = x.shape[1];
  const at = tape.upload(rows);
  const y = tape.tensor(x.dtype, [rows.length, D], x.requiresGrad);
  tape.device.copyRows(x.ptr, at, y.ptr, rows.length, D, x.dtype);
  return tape.record(y, (dy) => {
    const dx = tape.tensor(x.dtype, x.shape);
    tape.device.fill(dx.ptr, 0, x.size, x.dtype);
    tape.device.addRows(dy.ptr, at, dx.ptr, rows.length, D, x.dtype);
    tape.accumulate(x, dx);
  });
}

/** The other way round, for one number a row: y[rows[i]] = x[i], 0 elsewhere; x[rows.length] fp32 -> [N]. */
export function spreadRows(tape: Tape, x: Tensor, rows: Int32Array, N: number): Tensor {
  const at = tape.upload(rows);
  const y = tape.tensor(F32, [N], x.requiresGrad);
  tape.device.fill(y.ptr, 0, N, F32);
  tape.device.addRows(x.ptr, at, y.ptr, rows.length, 1, F32);
  return tape.record(y, (dy) => {
    const dx = tape.tensor(F32, x.shape);
    tape.device.copyRows(dy.ptr, at, dx.ptr, rows.length, 1, F32);
    tape.accumulate(x, dx);
  });
}

/** x[N, D] . w[1, D] for every row, in fp32 whatever the storage type: [N]. The head of reward and value models. */
export function scalarHead(tape: Tape, x: Tensor, w: Parameter): Tensor {
  const { device } = tape;
  const [N, D] = x.shape;
  const dt = x.dtype;
  const y = tape.tensor(F32, [N], x.requiresGrad || w.requiresGrad);
  device.matmul(0, 1, N, 1, D, 1, x.ptr, dt, D, w.ptr, dt, D, 0, y.ptr, F32, 1, 0, 1, 0, 0, 0);
  return tape.record(y, (dy) => {
    if (w.requiresGrad)
      // biome-ignore format: one product
      device.matmul(1, 0, 1, D, N, 1, dy.ptr, F32, 1, x.ptr, dt, D, w.gradBeta(tape.arena), w.gradPtr, dt, D, 0, 1, 0, 0, 0);
    if (!x.requiresGrad) return;
    const dx = tape.tensor(dt, x.shape);
    device.matmul(0, 0, N, D, 1, 1, dy.ptr, F32, 1, w.ptr, dt, D, 0, dx.ptr, dt, D, 0, 1, 0, 0, 0);
    tape.accumulate(x, dx);
  });
}

/** Adds to the gradient of some rows of an output matrix: with lse known, it asks for no others. `g`: of log p, [N] fp32. */
function gradientOfRows(
  tape: Tape,
  hidden: Tensor,
  { from, trained }: TrainedRows,
  targets: Ptr,
  lse: Tensor,
  g: Ptr,
  invTemperature: number,
): void {
  const { device } = tape;
  const [N, D] = hidden.shape;
  const [n] = trained.shape;
  // A target elsewhere is told as a row that does not exist.
  const local = device.i32(targets, N).map((t) => (t < 0 ? -1 : t >= from && t < from + n ? t - from : n));
  const dRows = trained.gradForAccumulation(tape.arena);
  // biome-ignore format: one call
  device.logprobBackward(hidden.ptr, trained.ptr, tape.upload(local), lse.ptr, g, 0, dRows, N, D, n, invTemperature, hidden.dtype);
}

/** log p(target[i] | hidden[i]): [N] fp32; a target below 0 gives 0 and no gradient. The full logits never exist. */
export function tokenLogProb(
  tape: Tape,
  hidden: Tensor,
  W: Parameter,
  targets: Ptr,
  invTemperature = 1,
  rows?: TrainedRows,
): Tensor {
  const { device } = tape;
  const [N, D] = hidden.shape;
  const V = W.shape[0];
  const dt = hidden.dtype;
  const logp = tape.tensor(F32, [N], hidden.requiresGrad || W.requiresGrad || rows !== undefined);
  const lse = tape.tensor(F32, [N]);
  device.logprobForward(hidden.ptr, W.ptr, targets, logp.ptr, lse.ptr, 0, N, D, V, invTemperature, dt);
  const backward = (g: Tensor): void => {
    const dh = hidden.requiresGrad ? tape.tensor(dt, hidden.shape) : undefined;
    const dW = W.requiresGrad ? W.gradForAccumulation(tape.arena) : 0;
    // biome-ignore format: one call
    device.logprobBackward(hidden.ptr, W.ptr, targets, lse.ptr, g.ptr, dh?.ptr ?? 0, dW, N, D, V, invTemperature, dt);
    if (rows) gradientOfRows(tape, hidden, rows, targets, lse, g.ptr, invTemperature);
    if (dh) tape.accumulate(hidden, dh);
  };
  return tape.record(logp, backward, [lse]);
}

/** Entropy (nats) of softmax(hidden W^T * invTemperature) per row: [N] fp32; rows with a target below 0 are skipped. */
export function tokenEntropy(
  tape: Tape,
  hidden: Tensor,
  W: Parameter,
  targets: Ptr,
  invTemperature = 1,
  rows?: TrainedRows,
): Tensor {
  const { device } = tape;
  const [N, D] = hidden.shape;
  const V = W.shape[0];
  const dt = hidden.dtype;
  const entropy = tape.tensor(F32, [N], hidden.requiresGrad || W.requiresGrad || rows !== undefined);
  const lse = tape.tensor(F32, [N]);
  device.logprobForward(hidden.ptr, W.ptr, targets, 0, lse.ptr, entropy.ptr, N, D, V, invTemperature, dt);
  const backward = (g: Tensor): void => {
    const dh = hidden.requiresGrad ? tape.tensor(dt, hidden.shape) : undefined;
    const dW = W.requiresGrad ? W.gradForAccumulation(tape.arena) : 0;
    // biome-ignore format: one call
    device.entropyBackward(hidden.ptr, W.ptr, targets, lse.ptr, entropy.ptr, g.ptr, dh?.ptr ?? 0, dW, N, D, V, invTemperature, dt);
    if (rows) {
      const { trained } = rows; // with lse and entropy known, it asks for no other row
      const dRows = trained.gradForAccumulation(tape.arena);
      // biome-ignore format: one call
      device.entropyBackward(hidden.ptr, trained.ptr, targets, lse.ptr, entropy.ptr, g.ptr, 0, dRows, N, D, trained.shape[0], invTemperature, dt);
    }
    if (dh) tape.accumulate(hidden, dh);
  };
  return tape.record(entropy, backward, [lse]);
}

/** Cross entropy from log p that is there already: the gradient of -sum_i weights[i] * logp[i], whatever seed backward has. */
export function weighted(tape: Tape, logp: Tensor, weights: Float32Array): Tensor {
  if (!tape.recording) return logp;
  const y = tape.share(logp);
  y.requiresGrad = true;
  return tape.record(y, () => {
    const g = tape.tensor(F32, logp.shape);
    tape.device.f32(g.ptr, g.size).set(weights.map((w) => -w));
    tape.accumulate(logp, g);
  });
}

/**
 * Weighted cross entropy: loss = - sum_i weights[i] log p(target[i] | hidden[i]). Because the weights are known before
 * the forward pass, gradients are computed in the same pass over the chunks of logits, which are made only once.
 * Returns log p per token ([N] fp32, for the metrics); `backward` on it takes no seed.
 */
export function crossEntropy(
  tape: Tape,
  hidden: Tensor,
  W: Parameter,
  targets: Ptr,
  weights: Float32Array,
  rows?: TrainedRows,
): Tensor {
  if (!tape.recording) return tokenLogProb(tape, hidden, W, targets);
  const [N, D] = hidden.shape;
  const dt = hidden.dtype;
  const logp = tape.tensor(F32, [N], true);
  const dh = hidden.requiresGrad ? tape.tensor(dt, hidden.shape) : undefined;
  const g = tape.upload(weights.map((w) => -w));
  const dW = W.requiresGrad ? W.gradForAccumulation(tape.arena) : 0;
  const lse = rows && tape.tensor(F32, [N]);
  // biome-ignore format: one call
  tape.device.logprobForwardBackward(hidden.ptr, W.ptr, targets, g, logp.ptr, lse?.ptr ?? 0, dh?.ptr ?? 0, dW, N, D, W.shape[0], 1, dt);
  if (rows) gradientOfRows(tape, hidden, rows, targets, lse!, g, 1);
  lse?.storage.release();
  return tape.record(logp, () => {
    if (dh) tape.accumulate(hidden, dh);
  });
}
