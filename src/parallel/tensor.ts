/**
 * Tensor parallelism (Megatron-LM; Shoeybi et al. 2019, section 3). Processes share each layer: of attention everyone
 * has some heads, of the feed-forward network some of its inner width: query, key, value, gate and up are column-parallel
 * (rows of the stored W[out, in]), output projection and down row-parallel (its columns). What leaves such a pair of matrices is a partial sum, so a layer needs two sums over the processes forward (after
 * attention, after the feed-forward network) and two backward (before them). The vocabulary is shared out too: of the
 * embedding and of the output matrix everyone has some rows, and log p is put together from every part's log-sum-exp, so
 * that logits are never gathered.
 */
import { F32 } from "../device/device.js";
import type { Parameter, Tape, Tensor } from "../tensor/tensor.js";
import type { Comm } from "./comm.js";

/** Rows or columns of a matrix that process `rank` of `size` has: from .. to - 1. */
export function part(count: number, rank: number, size: number): { from: number; to: number } {
  return { from: Math.floor((count * rank) / size), to: Math.floor((count * (rank + 1)) / size) };
}

/** x as it is; its gradient is the sum over all processes (the paper's f). Before a column-parallel matrix. */
export function sumBackward(tape: Tape, x: Tensor, comm: Comm): Tensor {
  if (comm.size === 1 || !tape.recording) return x;
  const y = tape.share(x);
  y.requiresGrad = x.requiresGrad;
  y.madeAgain = x.madeAgain;
  return tape.record(y, (dy) => {
    comm.allReduce(dy.ptr, dy.size, dy.dtype);
    tape.accumulate(x, tape.share(dy));
  });
}

/** residual + the sum of x over all processes, in x's memory; gradients pass as they are (the paper's g). */
export function sumForward(tape: Tape, x: Tensor, residual: Tensor, comm: Comm): Tensor {
  comm.allReduce(x.ptr, x.size, x.dtype);
  tape.device.add(x.ptr, residual.ptr, x.ptr, x.size, x.dtype);
  if (!tape.recording) return x;
  const y = tape.share(x);
  y.requiresGrad = x.requiresGrad || residual.requiresGrad;
  return tape.record(y, (dy) => {
    tape.accumulate(x, tape.share(dy));
    tape.accumulate(residual, tape.share(dy));
  });
}

/**
 * Rows for ids[N] of a table of which this process has rows `from` and on: [N, D]; their sum over the processes is what
 * an embedding gives.
 */
export function partialEmbedding(tape: Tape, table: Parameter, ids: Int32Array, from: number): Tensor {
  const { device } = tape;
  const [rows, D] = table.shape;
  const dt = table.dtype;
  const here = Int32Array.from(ids.keys()).filter((i) => ids[i] >= from && ids[i] < from + rows);
  const y = tape.tensor(dt, [ids.length, D], table.requiresGrad);
  device.fill(y.ptr, 0, y.size, dt);
  const at = tape.upload(here);
  const local = tape.upload(Int32Array.from(here, (i) => ids[i] - from));
  const picked = tape.tensor(dt, [here.length, D]);
  device.embeddingForward(local, table.ptr, picked.ptr, here.length, D, dt);
  device.addRows(picked.ptr, at, y.ptr, here.length, D, dt);
  return tape.record(
    y,
    (dy) => {
      if (!table.requiresGrad) return;
      device.copyRows(dy.ptr, at, picked.ptr, here.length, D, dt);
      device.embeddingBackward(local, picked.ptr, table.gradForAccumulation(tape.arena), here.length, D, rows, dt);
    },
    [picked],
  );
}

/** As ops.tokenLogProb, with W[V / size, D] holding rows `from` and on of the output matrix. Every process gets all of log p. */
export function sharedLogProb(
  tape: Tape,
  hidden: Tensor,
  W: Parameter,
  targets: Int32Array,
  from: number,
  invTemperature: number,
  comm: Comm,
): Tensor {
  const { device } = tape;
  const [N, D] = hidden.shape;
  const V = W.shape[0];
  const dt = hidden.dtype;
  // Where the target is another process's, the kernel is told a row that does not exist: no logit here is the target's.
  const local = targets.map((t) => (t < 0 ? -1 : t >= from && t < from + V ? t - from : V));
  const at = tape.upload(local);
  const logp = tape.tensor(F32, [N], hidden.requiresGrad || W.requiresGrad);
  const lse = tape.tensor(F32, [N]);
  // Of each process: log-sum-exp over its rows, and the target's logit (-inf where it is another's).
  const own = tape.tensor(F32, [2, N]);
  const all = tape.tensor(F32, [comm.size, 2, N]);
  device.logprobForward(hidden.ptr, W.ptr, at, logp.ptr, lse.ptr, 0, N, D, V, invTemperature, dt);
  const [logps, sums, mine] = [device.f32(logp.ptr, N), device.f32(lse.ptr, N), device.f32(own.ptr, 2 * N)];
  for (let i = 0; i < N; i++) {
    mine[i] = sums[i];
    mine[N + i] = local[i] >= 0 && local[i] < V ? logps[i] + sums[i] : Number.NEGATIVE_INFINITY;
  }
  comm.allGather(own.ptr, 8 * N, all.ptr);
  const parts = device.f32(all.ptr, comm.size * 2 * N);
  for (let i = 0; i < N; i++) {
    let max = Number.NEGATIVE_INFINITY;
    let logit = Number.NEGATIVE_INFINITY;
    for (let r = 0; r < comm.size; r++) {
      max = Math.max(max, parts[2 * r * N + i]);
      logit = Math.max(logit, parts[(2 * r + 1) * N + i]);
    }
    let sum = 0;
    for (let r = 0; r < comm.size; r++) sum += Math.exp(parts[2 * r * N + i] - max);
    sums[i] = targets[i] < 0 ? 0 : max + Math.log(sum);
    logps[i] = targets[i] < 0 ? 0 : logit - sums[i];
  }
  own.storage.release();
  all.storage.release();
  const backward = (g: Tensor): void => {
    const dh = hidden.requiresGrad ? tape.tensor(dt, hidden.shape) : undefined;
    const dW = W.requiresGrad ? W.gradForAccumulation(tape.arena) : 0;
    // biome-ignore format: one call
    device.logprobBackward(hidden.ptr, W.ptr, at, lse.ptr, g.ptr, dh?.ptr ?? 0, dW, N, D, V, invTemperature, dt);
    if (dh) tape.accumulate(hidden, dh);
  };
  return tape.record(logp, backward, [lse]);
}

/** Columns of y[N, count] that the processes have, side by side in every one of them: [N, total] fp32. */
export function gatherColumns(tape: Tape, y: Tensor, total: number, comm: Comm): Tensor {
  const { device } = tape;
  const [N] = y.shape;
  const widest = Math.ceil(total / comm.size);
  const own = tape.tensor(F32, [N * widest]);
  device.bytes(own.ptr, y.size * 4).set(device.bytes(y.ptr, y.size * 4));
  const all = tape.tensor(F32, [comm.size, N * widest]);
  comm.allGather(own.ptr, N * widest * 4, all.ptr);
  const result = tape.tensor(F32, [N, total]);
  const [from, to] = [device.f32(all.ptr, all.size), device.f32(result.ptr, result.size)];
  for (let r = 0; r < comm.size; r++) {
    const columns = part(total, r, comm.size);
    const width = columns.to - columns.from;
    for (let i = 0; i < N; i++) {
      const at = r * N * widest + i * width;
      to.set(from.subarray(at, at + width), i * total + columns.from);
    }
  }
  return result;
}
