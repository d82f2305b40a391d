/** The collectives, on 2 and 4 ranks under mpirun, against sums made here; and what happens when a rank does not come. */
import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { BF16, type DType, F32 } from "../../src/device/device.js";
import { single } from "../../src/parallel/comm.js";
import { launched } from "../../src/parallel/mpi.js";
import { hasMpi, program, runRanks } from "./ranks.js";

const device = currentCpu();
const bits = (at: number, n: number): string => Buffer.from(device.bytes(at, n)).toString("hex");

/** The sum of every rank's noise in fp32, in the order of the ranks, rounded once: what the contract promises to the bit. */
function expected(n: number, seeds: number[], dtype: DType, start = 0): { at: number; bytes: number } {
  const x = device.alloc(n * 4);
  const total = new Float32Array(n).fill(start);
  const values = device.alloc(n * 4);
  const sum = new Float32Array(n);
  for (const [k, seed] of seeds.entries()) {
    device.randomNormal(x, n, seed, 0, 0, 1, dtype);
    device.cast(x, dtype, values, F32, n);
    for (const [i, v] of device.f32(values, n).entries()) sum[i] = k === 0 ? v : sum[i] + v;
  }
  for (let i = 0; i < n; i++) total[i] = sum[i] + start;
  device.f32(values, n).set(total);
  device.cast(values, F32, x, dtype, n);
  return { at: x, bytes: n * (dtype === F32 ? 4 : 2) };
}

test.runIf(hasMpi).each([2, 4])("collectives on %i ranks: sums are the same bits everywhere", (size) => {
  const { stderr, results } = runRanks(size, program("comm.program.mjs"), ["collectives"]);
  expect(stderr).toBe("");
  const ranks = Array.from({ length: size }, (_, r) => r);
  expect(results.map((r) => r.rank)).toEqual(ranks);
  for (const [name, dtype] of [
    ["f32", F32],
    ["bf16", BF16],
  ] as const) {
    const sum = expected(1001, ranks, dtype);
    const pieces = expected(
      64 * size,
      ranks.map((r) => 100 + r),
      dtype,
      1,
    );
    for (const r of results) {
      expect(r[`allReduce ${name}`]).toBe(bits(sum.at, sum.bytes));
      const width = pieces.bytes / size;
      expect(r[`reduceScatter ${name}`]).toBe(bits(pieces.at + r.rank * width, width));
    }
  }
  const sums = [1001, 64 * size, 333].map((n, k) => {
    const sum = expected(
      n,
      ranks.map((r) => 200 + 10 * k + r),
      BF16,
    );
    return bits(sum.at, sum.bytes);
  });
  for (const r of results) {
    expect(r.sums).toEqual(sums);
    expect(r.startBroadcast).toBe("01".repeat(8));
    expect(r.allGather).toBe(ranks.map((k) => `0${k + 1}`.repeat(7)).join(""));
    expect(r.broadcast).toBe(`0${size - 1}`.repeat(5));
    expect(r.ring).toBe(`0${(r.rank + size - 1) % size}`.repeat(8));
    const half = ranks.filter((k) => k % 2 === r.rank % 2).reverse();
    expect(r.half).toEqual([half.indexOf(r.rank), half.length, half]);
    expect(r.allToAll).toEqual(
      ranks.map((k) => (3 * k + r.rank > 0 && r.rank > 0 ? [3 * k + r.rank, 16 * k + r.rank] : [0])),
    );
    expect(r.texts).toEqual(ranks.map((k) => `${"é".repeat(k)}from ${k}`));
  }
});

test.runIf(hasMpi)("an all-reduce sends 2 (N-1)/N of its bytes from every rank", () => {
  const { results } = runRanks(4, program("comm.program.mjs"), ["bytes"]);
  expect(results.map((r) => r.sent)).toEqual(Array(4).fill(((2 * 3) / 4) * 4 * 1024 * 4));
});

test.runIf(hasMpi)("messages of many lengths pass through a few blocks of memory", () => {
  const { results } = runRanks(2, program("comm.program.mjs"), ["bytes"]);
  for (const { blocks } of results) expect(blocks).toBeLessThan(10);
});

const told = hasMpi && existsSync("/proc/self/status");
test.runIf(told).each(["none", "core:overload-allowed"])(
  "ranks share the cores that they may use, not those of others: bound to %s",
  (policy) => {
    const env = { OMPI_MCA_hwloc_base_binding_policy: policy };
    const { results } = runRanks(2, program("comm.program.mjs"), ["cores"], env);
    expect(results).toHaveLength(2);
    for (const { cores, share } of results) expect(share).toBe(results.filter((r) => r.cores === cores).length);
  },
);

test.runIf(hasMpi)("a sum goes on while its rank waits for something else", () => {
  const run = runRanks(2, program("comm.program.mjs"), ["crossed"], { LYCEUM_MPI_TIMEOUT: "20" });
  expect(run.stderr).toBe("");
  expect(run.results).toEqual([{ same: true }, { same: true }]);
});

test.runIf(hasMpi)("a rank that never comes is named, and the job ends", () => {
  const began = performance.now();
  const run = runRanks(3, program("comm.program.mjs"), ["missing"], { LYCEUM_MPI_TIMEOUT: "3" });
  expect(performance.now() - began).toBeLessThan(19_000);
  expect(run.status).not.toBe(0);
  expect(run.stderr).toMatch(/rank [02] on \S+ has waited 3 s in a barrier .* for: rank 1 on \S+\. The job ends\./);
});

test.runIf(hasMpi)("not one that was late before, nor one that waits itself, in whichever group", () => {
  const run = runRanks(4, program("comm.program.mjs"), ["late"], { LYCEUM_MPI_TIMEOUT: "8" });
  expect(run.status).not.toBe(0);
  const said = run.stderr.match(/has waited .*/g)!;
  expect(said).not.toHaveLength(0);
  for (const text of said) expect(text).toMatch(/among ranks \d, \d\) for: rank 3 on \S+\. The job ends\./);
});

test.runIf(hasMpi)("a rank that all others wait for reads what they say of it", () => {
  const { results } = runRanks(2, program("comm.program.mjs"), ["slow"], { LYCEUM_MPI_TIMEOUT: "0.4" });
  expect(results).toHaveLength(2);
  expect(results[0].unread).toBeLessThan(11); // of 16
});

test.runIf(hasMpi)("a rank that does not come to a split is named", () => {
  const run = runRanks(2, program("comm.program.mjs"), ["split"], { LYCEUM_MPI_TIMEOUT: "2" });
  expect(run.status).not.toBe(0);
  expect(run.stderr).toMatch(/rank 0 on \S+ has waited 2 s in a barrier .* for: rank 1 on/);
});

test.runIf(hasMpi)("processes that MPI does not know of each other do not each do the whole job", () => {
  const env = { OMPI_COMM_WORLD_RANK: "0", OMPI_COMM_WORLD_SIZE: "2" };
  const { status, stderr } = runRanks(0, program("comm.program.mjs"), ["fails"], env);
  expect(status).not.toBe(0);
  expect(stderr).toMatch(/2 processes were started, but MPI \(.*\) finds 1: .* srun --mpi=pmix/);
});

test.runIf(hasMpi)("a rank that ends with an error ends the job", () => {
  const run = runRanks(2, program("comm.program.mjs"), ["fails"]);
  expect(run.status).not.toBe(0);
});

test.runIf(hasMpi)("an error that nobody caught is told before the job ends", () => {
  const run = runRanks(2, program("comm.program.mjs"), ["throws"]);
  expect(run.status).not.toBe(0);
  expect(run.stderr).toContain("ReferenceError: nothing is not defined");
});

test("one process alone: collectives are what they were", () => {
  const comm = single(device);
  const x = device.alloc(64 * 4);
  device.randomNormal(x, 64, 3, 0, 0, 1, F32);
  const before = bits(x, 256);
  comm.allReduce(x, 64, F32);
  comm.startAllReduce(x, 64, F32).wait();
  comm.startBroadcast(x, 256, 0).wait();
  expect(bits(x, 256)).toBe(before);
  const out = device.alloc(64 * 4);
  device.fill(out, 1, 64, F32);
  comm.reduceScatter(x, 64, F32, out, true);
  expect(device.f32(out, 64)[5]).toBe(Math.fround(device.f32(x, 64)[5] + 1));
  comm.allGather(x, 256, out);
  expect(bits(out, 256)).toBe(before);
  expect(comm.gatherText("a")).toEqual(["a"]);
  expect(comm.allToAll([Uint8Array.of(1, 2)])).toEqual([Uint8Array.of(1, 2)]);
});

test("a launcher is known by its environment", () => {
  expect(launched({})).toBeUndefined();
  expect(launched({ OMPI_COMM_WORLD_RANK: "1", OMPI_COMM_WORLD_SIZE: "4" })).toEqual({ rank: 1, size: 4 });
  expect(launched({ PMI_RANK: "0", PMI_SIZE: "2" })).toEqual({ rank: 0, size: 2 });
  const shell = { SLURM_PROCID: "0", SLURM_STEP_NUM_TASKS: "1" };
  expect(launched(shell)).toBeUndefined();
  expect(launched({ ...shell, PMI_RANK: "1", PMI_SIZE: "2" })).toEqual({ rank: 1, size: 2 });
});
