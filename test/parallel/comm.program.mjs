// What every rank does in comm.test.ts.
import { readFileSync, writeFileSync } from "node:fs";

import { openCpu } from "../../dist/device/cpu.js";
import { BF16, F32 } from "../../dist/device/device.js";
import { mpiWorld, ranksOnThisHost } from "../../dist/parallel/mpi.js";
import { openMpi } from "../../dist/parallel/mpi-library.js";

const device = openCpu({ threads: 1 });
const comm = mpiWorld(device);
const { rank, size } = comm;
const scenario = process.argv[2];
const report = (value) => writeFileSync(`${process.env.RESULTS}/${rank}.json`, JSON.stringify(value));
const bits = (at, n) => Buffer.from(device.bytes(at, n)).toString("hex");
const noise = (n, seed, dtype) => {
  const at = device.alloc(n * 4);
  device.randomNormal(at, n, seed, 0, 0, 1, dtype);
  return at;
};
const pause = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

if (scenario === "collectives") {
  const n = 1001; // no multiple of anything
  const result = { rank, size };
  for (const [name, dtype] of [
    ["f32", F32],
    ["bf16", BF16],
  ]) {
    const x = noise(n, rank, dtype);
    comm.allReduce(x, n, dtype);
    result[`allReduce ${name}`] = bits(x, n * (dtype === F32 ? 4 : 2));
    const piece = 64;
    const y = noise(piece * size, 100 + rank, dtype);
    const own = device.alloc(piece * 4);
    device.fill(own, 1, piece, dtype);
    const pending = comm.startReduceScatter(y, piece, dtype, own, true);
    while (!pending.test());
    result[`reduceScatter ${name}`] = bits(own, piece * (dtype === F32 ? 4 : 2));
  }
  // Three sums at once, one of a length that does not divide, waited for in another order on every rank.
  const lengths = [1001, 64 * size, 333];
  const sums = lengths.map((n, k) => {
    const x = noise(n, 200 + 10 * k + rank, BF16);
    return { x, n, pending: comm.startAllReduce(x, n, BF16) };
  });
  const other = device.alloc(8);
  device.bytes(other, 8).fill(rank + 1);
  const sent = comm.startBroadcast(other, 8, 0);
  for (let i = 0; i < 3; i++) {
    const { pending } = sums[(i + rank) % 3];
    if (rank % 2) pending.wait();
    else while (!pending.test());
  }
  while (!sent.test());
  result.sums = sums.map(({ x, n }) => bits(x, n * 2));
  result.startBroadcast = bits(other, 8);
  const z = device.alloc(size * 7);
  device.bytes(z + rank * 7, 7).fill(rank + 1);
  comm.allGather(z + rank * 7, 7, z);
  result.allGather = bits(z, size * 7);
  const b = device.alloc(5);
  device.bytes(b, 5).fill(rank);
  comm.broadcast(b, 5, size - 1);
  result.broadcast = bits(b, 5);
  const from = (rank + size - 1) % size;
  const s = device.alloc(16);
  device.bytes(s, 16).fill(rank);
  const sending = comm.startSend(s, 8, (rank + 1) % size, 7);
  comm.recv(s + 8, 8, from, 7);
  sending.wait();
  result.ring = bits(s + 8, 8);
  const half = comm.split(rank % 2, -rank);
  result.half = [half.rank, half.size, half.gatherNumbers([rank]).flat()];
  result.texts = comm.gatherText(`${"é".repeat(rank)}from ${rank}`);
  // A piece of another size for each, and none for some.
  const pieces = Array.from({ length: size }, (_, r) => new Uint8Array(r === 0 ? 0 : 3 * rank + r).fill(16 * rank + r));
  const got = comm.allToAll(pieces);
  result.allToAll = got.map((piece) => [piece.length, ...new Set(piece)]);
  report(result);
} else if (scenario === "bands") {
  // Signatures of 40 units, of which many are the same in a band; in rounds of a few records.
  const { BuildFolder } = await import("../../dist/corpus/folder.js");
  const { shareBands } = await import("../../dist/corpus/bands.js");
  const { folder, units, options, round } = JSON.parse(process.argv[3]);
  const sentBefore = comm.bytesSent;
  const { documents, buckets } = shareBands(new BuildFolder(folder), units, options, comm, round).among(
    Array.from({ length: 1000 }, (_, i) => i).filter((i) => i % 5 > 0),
  );
  report({ rank, documents, of: [...buckets.of], sent: comm.bytesSent - sentBefore });
} else if (scenario === "bytes") {
  const x = noise(1024 * size, rank, F32);
  const before = comm.bytesSent;
  comm.allReduce(x, 1024 * size, F32);
  const sent = comm.bytesSent - before;
  let blocks = 0;
  const { alloc } = device;
  device.alloc = (bytes) => {
    blocks++;
    return alloc(bytes);
  };
  for (let n = 600; n < 900; n += 3) comm.allReduce(x, n, F32);
  for (let n = 600; n < 900; n += 3) comm.gatherText("x".repeat(n));
  report({ rank, sent, blocks });
} else if (scenario === "cores") {
  const cores = /^Cpus_allowed_list:.*/m.exec(readFileSync("/proc/self/status", "latin1"))[0];
  report({ cores, share: ranksOnThisHost(device) });
} else if (scenario === "crossed") {
  // Rank 0 wants the sum before it sends; rank 1 asks for the message before it looks after the sum.
  const x = noise(100, rank, F32);
  const sum = comm.startAllReduce(x, 100, F32);
  const at = device.alloc(8);
  if (rank === 0) {
    sum.wait();
    comm.send(x, 8, 1, 3);
  } else {
    comm.recv(at, 8, 0, 3);
    sum.wait();
  }
  report({ same: rank === 0 || bits(at, 8) === bits(x, 8) });
} else if (scenario === "missing") {
  if (rank === 1) pause(20_000);
  comm.barrier();
} else if (scenario === "late") {
  // Rank 0 comes late once, and all others say that they wait. Then rank 3 does not come: rank 1 waits for it, 0 for 1.
  // Rank 1 begins only when the others have almost waited for as long as they may.
  const rows = comm.split(rank >> 1, rank);
  const columns = comm.split(rank % 2, rank);
  if (rank === 0) pause(2500);
  comm.barrier();
  if (rank === 3) pause(20_000);
  if (rank === 1) pause(7600);
  if (rank % 2) columns.barrier();
  rows.gatherNumbers([rank]);
} else if (scenario === "slow") {
  // Rank 1 waits for rank 0 again and again, and says so; rank 0 never waits.
  for (let i = 0; i < 8; i++) {
    if (rank === 0) pause(250);
    comm.barrier();
  }
  const { call, world, byte, statusIgnore } = openMpi(device);
  const at = device.alloc(64);
  const flag = device.i32(at, 1);
  let unread = 0;
  for (; rank === 0; unread++) {
    call.iprobe(1, 32000, world, at, statusIgnore);
    if (flag[0] === 0) break;
    call.irecv(at + 8, 1, byte, 1, 32000, world, at + 32);
    do call.test(at + 32, at, statusIgnore);
    while (flag[0] === 0);
  }
  report({ unread });
} else if (scenario === "split") {
  if (rank === 1) pause(20_000);
  comm.split(0, rank);
} else if (scenario === "fails") {
  if (rank === 1) process.exit(1);
  comm.barrier();
} else if (scenario === "throws") {
  if (rank === 1) setImmediate(() => nothing.there);
  else comm.barrier();
}
