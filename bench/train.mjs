// Training speed and memory: forward, backward and an AdamW step in bf16, beside PyTorch doing the same.
//
// Contestants take turns (peers/player.mjs). Figures are medians over the rounds; peak memory is the process's largest resident set.
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { COMMON, checkCounts, median, Player, UsageError } from "./peers/player.mjs";

export { UsageError };

/** Heads of 64, as many key-value heads, intermediate 8/3 d in multiples of 64, tied. `steps`: about three seconds. */
const MODELS = [
  { name: "d256", hidden: 256, intermediate: 704, layers: 4, vocab: 2048, context: 128, batch: 32, steps: 8 },
  { name: "d384", hidden: 384, intermediate: 1024, layers: 6, vocab: 4096, context: 256, batch: 16, steps: 4 },
  { name: "d768", hidden: 768, intermediate: 2048, layers: 12, vocab: 8192, context: 512, batch: 4, steps: 2 },
];
const HELP = `npm run bench -- train [options]
  --python PYTHON   a Python with torch to compare with; without it only Lyceum is measured
  --json            one JSON object a line instead of the table
  --only NAME       one model: ${MODELS.map((m) => m.name).join(", ")}
  --steps N         training steps per turn
  --rounds N        turns of each contestant (5)
  --threads N       threads of each contestant (all cores)
  --precision P     ours in bf16 (default) or fp32
  --compile         PyTorch also under torch.compile (needs a C++ compiler; slow to start)`;

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      ...COMMON,
      steps: { type: "string" },
      rounds: { type: "string", default: "5" },
      precision: { type: "string", default: "bf16" },
      compile: { type: "boolean", default: false },
      worker: { type: "string" },
    },
  });
  if (o.help) return console.log(HELP);
  checkCounts(o, "steps", "rounds", "threads");
  if (!["bf16", "fp32"].includes(o.precision))
    throw new UsageError(`--precision must be bf16 or fp32, not "${o.precision}".`);
  const chosen = MODELS.filter((m) => !o.only || m.name === o.only);
  if (chosen.length === 0)
    throw new UsageError(`There is no model "${o.only}". Known: ${MODELS.map((m) => m.name).join(", ")}.`);
  if (o.worker) return work(JSON.parse(o.worker), o.precision, Number(o.threads));

  const modes = o.python ? ["fp32", "bf16", ...(o.compile ? ["fp32-compile", "bf16-compile"] : [])] : [];
  const rows = [];
  for (const model of chosen) {
    const row = await measure(model, o, modes);
    rows.push(row);
    if (o.json) console.log(JSON.stringify(row));
  }
  if (!o.json) table(rows, modes);
}

/** One model: all contestants in turns. */
async function measure(model, o, modes) {
  const steps = Number(o.steps ?? model.steps);
  const shape = JSON.stringify(model);
  const self = [fileURLToPath(import.meta.url), "--precision", o.precision, "--threads", o.threads, "--worker", shape];
  const torch = fileURLToPath(new URL("peers/torch_train.py", import.meta.url));
  const players = [["ours", process.execPath, self]];
  for (const mode of modes)
    players.push([
      mode,
      o.python,
      [torch, "--mode", mode, "--threads", o.threads, "--model", shape],
      { needs: "torch" },
    ]);
  const started = [];
  try {
    // Warmed up one after the other: the first steps find memory, compile, and must not disturb a measured turn.
    for (const contestant of players) {
      const player = new Player(...contestant);
      started.push(player);
      await player.turn(2);
    }
    const speeds = new Map(started.map((p) => [p.name, []]));
    const memory = {};
    for (let round = 0; round < Number(o.rounds); round++)
      for (const player of started) {
        const { seconds, peakRss } = await player.turn(steps);
        const speed = (steps * model.batch * model.context) / seconds;
        speeds.get(player.name).push(speed);
        memory[player.name] = Math.round(peakRss / 2 ** 20);
        process.stderr.write(`${model.name} round ${round + 1} ${player.name}: ${speed.toFixed(0)} tokens/s\n`);
      }
    const peers = Object.fromEntries(modes.map((m) => [m, Math.round(median(speeds.get(m)))]));
    const ours = median(speeds.get("ours"));
    const peer = [...modes].sort((a, b) => peers[b] - peers[a])[0]; // PyTorch at its best
    return {
      name: `train/${model.name}`,
      ours: Math.round(ours),
      peer: peer ? peers[peer] : null,
      ratio: peer ? Number((ours / peers[peer]).toFixed(3)) : null,
      unit: "tokens/s",
      peers,
      peakMemory: { ours: memory.ours, peer: peer ? memory[peer] : null, unit: "MiB", peers: pick(memory, modes) },
    };
  } finally {
    for (const player of started) player.close();
  }
}

const pick = (object, keys) => Object.fromEntries(keys.map((k) => [k, object[k]]));
/** Our side, in its own process. */
async function work(shape, precision, threads) {
  const { openCpu } = await import("../dist/device/cpu.js");
  const { Llama, packSequences } = await import("../dist/nn/llama.js");
  const { AdamW } = await import("../dist/optim/adamw.js");
  const { Tape } = await import("../dist/tensor/tensor.js");
  const { parseLlamaConfig } = await import("../dist/nn/config.js");
  const device = openCpu({ threads });
  const config = parseLlamaConfig(
    {
      vocab_size: shape.vocab,
      hidden_size: shape.hidden,
      intermediate_size: shape.intermediate,
      num_hidden_layers: shape.layers,
      num_attention_heads: shape.hidden / 64,
      max_position_embeddings: shape.context,
      tie_word_embeddings: true,
    },
    "bench",
  );
  const model = new Llama(device, config, precision);
  model.parameters.initialize(1, 0.02);
  const optimizer = new AdamW(model.trainable, { betas: [0.9, 0.95], eps: 1e-8, weightDecay: 0.1, gradClip: 0 });
  const tape = new Tape(device);
  const tokens = shape.batch * shape.context;
  const weights = new Float32Array(tokens).fill(1 / tokens);
  const row = () => Int32Array.from({ length: shape.context + 1 }, () => Math.floor(Math.random() * shape.vocab));
  for await (const line of createInterface({ input: process.stdin })) {
    const rows = Array.from({ length: shape.batch }, row);
    const batch = packSequences(rows.map((r) => r.subarray(0, -1)));
    const targets = Int32Array.from(rows.flatMap((r) => [...r.subarray(1)]));
    let loss = 0;
    const start = process.hrtime.bigint();
    for (let step = 0; step < Number(line); step++) {
      const result = model.loss(tape, batch, targets, weights);
      tape.backward(result.logp);
      tape.reset();
      optimizer.update(1e-4, 0);
      loss = result.loss;
    }
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    console.log(JSON.stringify({ seconds, peakRss: process.resourceUsage().maxRSS * 1024, loss }));
  }
}

function table(rows, modes) {
  const columns = [
    "model",
    "ours tokens/s",
    ...modes.map((m) => `torch ${m}`),
    "ratio",
    "ours MiB",
    ...modes.map((m) => `${m} MiB`),
  ];
  const cells = rows.map((r) => [
    r.name,
    r.ours,
    ...modes.map((m) => r.peers[m]),
    r.ratio ?? "-",
    r.peakMemory.ours,
    ...modes.map((m) => r.peakMemory.peers[m]),
  ]);
  const widths = columns.map((c, i) => Math.max(c.length, ...cells.map((row) => String(row[i]).length)));
  for (const row of [columns, ...cells]) console.log(row.map((c, i) => String(c).padStart(widths[i])).join("  "));
}

if (process.argv.includes("--worker")) await main(process.argv.slice(2));
