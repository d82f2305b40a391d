/**
 * Sequence parallelism (Korthikanti et al. 2022, section 4.2.2): between the matrices that tensor-parallel processes
 * share, everyone keeps only its rows of the hidden states, so norms, residuals and what they keep for the backward pass
 * are divided too. The sum after a row-parallel matrix becomes a reduce-scatter over tokens, and an all-gather stands
 * before the next column-parallel one: together the bytes of the all-reduce that they replace. What is gathered is not
 * kept: the backward pass gathers it once more.
 *
 * Of N tokens each of T processes has R = ceil(N / T) rows; where that is more than there are, the last ones are zeros.
 */
import { linearBackward } from "../tensor/ops.js";
import { type Parameter, type Tape, Tensor } from "../tensor/tensor.js";
import type { Comm } from "./comm.js";

/** Rows of N that each process has, padding included. */
export const rowsEach = (N: number, comm: Comm): number => Math.ceil(N / comm.size);

/** All N rows of x[R, D], of which every process has its own: [N, D]. The caller releases it. */
function gathered(tape: Tape, x: Tensor, N: number, comm: Comm): Tensor {
  const [R, D] = x.shape;
  const all = tape.tensor(x.dtype, [R * comm.size, D]);
  comm.allGather(x.ptr, x.bytes, all.ptr);
  return new Tensor(x.device, all.storage, x.dtype, [N, D]);
}

/** This process's rows of the sum of y[N, D] over the processes, written to out[R, D]. */
function sumOfRows(tape: Tape, y: Tensor, out: Tensor, comm: Comm): void {
  const { device } = tape;
  const [R, D] = out.shape;
  if (R * comm.size === y.shape[0]) {
    comm.reduceScatter(y.ptr, R * D, y.dtype, out.ptr);
    return;
  }
  const padded = tape.tensor(y.dtype, [R * comm.size, D]);
  device.bytes(padded.ptr, y.bytes).set(device.bytes(y.ptr, y.bytes));
  device.fill(padded.ptr + y.bytes, 0, padded.size - y.size, y.dtype);
  comm.reduceScatter(padded.ptr, R * D, y.dtype, out.ptr);
  padded.storage.release();
}

/** The rows of this process of the sum of y[N, D]: [R, D]. Backward: the gradient of all rows, gathered. y is not kept. */
export function scatterRows(tape: Tape, y: Tensor, comm: Comm): Tensor {
  const [N, D] = y.shape;
  const out = tape.tensor(y.dtype, [rowsEach(N, comm), D], y.requiresGrad);
  sumOfRows(tape, y, out, comm);
  return tape.record(out, (dy) => tape.accumulate(y, gathered(tape, dy, N, comm)));
}

/**
 * All rows of x[R, D]: [N, D]. Backward: each process has a part of every row's gradient, and they are summed; or, with
 * `whole`, everyone has computed the same and whole gradient, and takes its rows.
 */
export function gatherRows(tape: Tape, x: Tensor, N: number, comm: Comm, whole: boolean): Tensor {
  const { device } = tape;
  const y = gathered(tape, x, N, comm);
  y.requiresGrad = x.requiresGrad && tape.recording;
  return tape.record(y, (dy) => {
    const dx = tape.tensor(x.dtype, x.shape);
    if (!whole) sumOfRows(tape, dy, dx, comm);
    else {
      const from = comm.rank * dx.bytes;
      const own = Math.max(0, Math.min(dx.bytes, dy.bytes - from));
      device.fill(dx.ptr, 0, dx.size, dx.dtype);
      if (own > 0) device.bytes(dx.ptr, own).set(device.bytes(dy.ptr + from, own));
    }
    tape.accumulate(x, dx);
  });
}

/** All rows of x[R, in] times W[out / T, in]^T: [N, out / T]. */
export function gatheredLinear(tape: Tape, x: Tensor, W: Parameter, N: number, comm: Comm): Tensor {
  const [M, K] = W.shape;
  const dt = x.dtype;
  const y = tape.tensor(dt, [N, M], x.requiresGrad || W.requiresGrad);
  const all = gathered(tape, x, N, comm);
  tape.device.matmul(0, 1, N, M, K, 1, all.ptr, dt, K, W.ptr, dt, K, 0, y.ptr, dt, M, 0, 1, 0, 0, 0);
  all.storage.release();
  return tape.record(y, (dy) => {
    const again = gathered(tape, x, N, comm);
    again.requiresGrad = x.requiresGrad;
    const part = linearBackward(tape, again, W, dy);
    again.storage.release();
    if (!part) return;
    const dx = tape.tensor(dt, x.shape);
    sumOfRows(tape, part, dx, comm);
    part.storage.release();
    tape.accumulate(x, dx);
  });
}

/** residual[R, out] + this process's rows of the sum over the processes of x[N, in / T] W[out, in / T]^T: [R, out]. */
export function scatteredLinear(tape: Tape, x: Tensor, W: Parameter, residual: Tensor, comm: Comm): Tensor {
  const { device } = tape;
  const [N, K] = x.shape;
  const [M] = W.shape;
  const dt = x.dtype;
  const y = tape.tensor(dt, residual.shape, x.requiresGrad || W.requiresGrad || residual.requiresGrad);
  const part = tape.tensor(dt, [N, M]);
  device.matmul(0, 1, N, M, K, 1, x.ptr, dt, K, W.ptr, dt, K, 0, part.ptr, dt, M, 0, 1, 0, 0, 0);
  sumOfRows(tape, part, y, comm);
  part.storage.release();
  device.add(y.ptr, residual.ptr, y.ptr, y.size, dt);
  return tape.record(y, (dy) => {
    const all = gathered(tape, dy, N, comm);
    const dx = linearBackward(tape, x, W, all);
    all.storage.release();
    if (dx) tape.accumulate(x, dx);
    tape.accumulate(residual, tape.share(dy));
  });
}
