// Matrix products of a training step, beside torch.matmul (oneDNN, MKL) on the same shapes in bf16 and fp32, in turns
// (peers/player.mjs). N tokens; Q K V, output, gate-up, down and logits, each forward, to its input and to its weight.
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { COMMON, checkCounts, median, Player, UsageError } from "./peers/player.mjs";

export { UsageError };

const MODELS = {
  d256: { tokens: 4096, hidden: 256, inner: 704, vocab: 2048 },
  d384: { tokens: 4096, hidden: 384, inner: 1024, vocab: 4096 },
  d768: { tokens: 2048, hidden: 768, inner: 2048, vocab: 8192 },
};
const HELP = `npm run bench -- matmul [options]
  --python PYTHON   a Python with torch to compare with; without it only Lyceum is measured
  --json            one JSON object a line instead of the table
  --only NAME       one model: ${Object.keys(MODELS).join(", ")}
  --precision P     bf16 (default) or fp32
  --rounds N        turns of each contestant (5)
  --threads N       threads of each contestant (all cores)`;

/** C[M,N] = op(A) op(B) as PyTorch and Lyceum both see it: x W^T forward, dy W to the input, dy^T x to the weight. */
function shapes({ tokens, hidden: d, inner, vocab }) {
  const matrices = { qkv: [3 * d, d], output: [d, d], "gate-up": [2 * inner, d], down: [d, inner], logits: [vocab, d] };
  return Object.entries(matrices).flatMap(([name, [out, width]]) => [
    { name: `${name}/forward`, transA: 0, transB: 1, M: tokens, N: out, K: width },
    { name: `${name}/to-input`, transA: 0, transB: 0, M: tokens, N: width, K: out },
    { name: `${name}/to-weight`, transA: 1, transB: 0, M: out, N: width, K: tokens },
  ]);
}

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      ...COMMON,
      precision: { type: "string", default: "bf16" },
      rounds: { type: "string", default: "5" },
      worker: { type: "boolean", default: false },
    },
  });
  if (o.help) return console.log(HELP);
  checkCounts(o, "rounds", "threads");
  if (!["bf16", "fp32"].includes(o.precision))
    throw new UsageError(`--precision must be bf16 or fp32, not "${o.precision}".`);
  const chosen = Object.keys(MODELS).filter((m) => !o.only || m === o.only);
  if (chosen.length === 0)
    throw new UsageError(`There is no model "${o.only}". Known: ${Object.keys(MODELS).join(", ")}.`);
  if (o.worker) return work(o.precision, Number(o.threads));

  const self = [fileURLToPath(import.meta.url), "--worker", "--precision", o.precision, "--threads", o.threads];
  const torch = fileURLToPath(new URL("peers/torch_matmul.py", import.meta.url));
  const players = [new Player("ours", process.execPath, self)];
  if (o.python)
    players.push(
      new Player("torch", o.python, [torch, "--precision", o.precision, "--threads", o.threads], { needs: "torch" }),
    );
  const rows = [];
  try {
    for (const model of chosen)
      for (const shape of shapes(MODELS[model])) {
        const row = await measure(model, shape, players, Number(o.rounds));
        rows.push(row);
        if (o.json) console.log(JSON.stringify(row));
      }
  } finally {
    for (const player of players) player.close();
  }
  if (!o.json) table(rows);
}

async function measure(model, shape, players, rounds) {
  const turns = new Map(players.map((p) => [p.name, []]));
  for (
    let round = 0;
    round <= rounds;
    round++ // the first warms up
  )
    for (const player of players) {
      const { seconds } = await player.turn(JSON.stringify(shape));
      if (round) turns.get(player.name).push((2 * shape.M * shape.N * shape.K) / seconds / 1e9);
    }
  const ours = median(turns.get("ours"));
  const peer = turns.has("torch") ? median(turns.get("torch")) : null;
  return {
    name: `matmul/${model}/${shape.name}`,
    ours: Math.round(ours),
    peer: peer && Math.round(peer),
    ratio: peer && Number((ours / peer).toFixed(3)),
    unit: "GFLOP/s",
    shape: [shape.M, shape.N, shape.K],
  };
}

/** Seconds of one product; what a turn measures lasts about a tenth of a second. */
async function work(precision, threads) {
  const { openCpu } = await import("../dist/device/cpu.js");
  const { BF16, F32 } = await import("../dist/device/device.js");
  const device = openCpu({ threads });
  const dt = precision === "bf16" ? BF16 : F32;
  const size = dt === BF16 ? 2 : 4;
  for await (const line of createInterface({ input: process.stdin })) {
    const { transA, transB, M, N, K } = JSON.parse(line);
    const [a, b, c] = [M * K, K * N, M * N].map((n) => ({ ptr: device.alloc(n * size), bytes: n * size, n }));
    for (const [stream, x] of [a, b].entries()) device.randomNormal(x.ptr, x.n, 1n, BigInt(stream), 0, 1, dt);
    const [lda, ldb] = [transA ? M : K, transB ? K : N];
    const run = () =>
      device.matmul(transA, transB, M, N, K, 1, a.ptr, dt, lda, b.ptr, dt, ldb, 0, c.ptr, dt, N, 0, 1, 0, 0, 0);
    run();
    const start = process.hrtime.bigint();
    let [count, seconds] = [0, 0];
    while (seconds < 0.1) {
      run();
      count++;
      seconds = Number(process.hrtime.bigint() - start) / 1e9;
    }
    for (const x of [a, b, c]) device.free(x.ptr, x.bytes);
    console.log(JSON.stringify({ seconds: seconds / count }));
  }
}

function table(rows) {
  for (const r of rows)
    console.log(
      `${r.name.padEnd(32)} ${r.shape.join(" x ").padStart(20)} ${String(r.ours).padStart(7)} ${String(r.peer ?? "-").padStart(7)} GFLOP/s  ${r.ratio ?? ""}`,
    );
}

if (process.argv.includes("--worker")) await main(process.argv.slice(2));
