// Several processes: what each mode holds and sends (measured, and as its formula says), what it costs in speed, weak
// scaling, the pipeline's bubble, and training under offload. Runs the built program under mpirun, one thread a process.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const HELP = `npm run bench -- parallel [options]
  --json        one JSON object a line instead of the tables
  --only NAME   modes, scaling, bubble or offload
  --steps N     steps of a run (8); the first three are not counted
  --rounds N    runs of each side of a comparison, in turns (3)`;

export class UsageError extends Error {}

const lyceum = fileURLToPath(new URL("../dist/cli/main.js", import.meta.url));
const text = fileURLToPath(new URL("../recipes/atlas/pretrain.jsonl", import.meta.url));
const SIZES = {
  d256: { hiddenSize: 256, intermediateSize: 704, numLayers: 4, numHeads: 4, vocab: 2048, context: 128, batch: 16 },
  d768: { hiddenSize: 768, intermediateSize: 2048, numLayers: 12, numHeads: 12, vocab: 4096, context: 256, batch: 2 },
};
const median = (x) => [...x].sort((a, b) => a - b)[Math.floor(x.length / 2)];

/** One run; what its last rows say. `settings` as after --set. */
function train(dir, size, ranks, settings, steps) {
  const { vocab, context, batch, ...model } = SIZES[size];
  const config = {
    seed: 1,
    model,
    tokenizer: { vocabSize: vocab },
    data: { train: [text], contextLength: context },
    batchSize: batch * ranks,
    steps,
    threads: 1,
    evalEvery: 0,
    saveEvery: 0,
    parallel: { checkEvery: 0 },
  };
  writeFileSync(`${dir}/config.yaml`, JSON.stringify(config));
  const out = `${dir}/run`;
  rmSync(out, { recursive: true, force: true });
  const args = ["pretrain", `${dir}/config.yaml`, "--out", out, ...(settings.length > 0 ? ["--set", ...settings] : [])];
  const r = spawnSync(
    "mpirun",
    ["--oversubscribe", "--bind-to", "none", "-np", ranks, process.execPath, lyceum, ...args],
    {
      encoding: "utf8",
      env: { ...process.env, OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" },
    },
  );
  if (r.status !== 0) throw new Error(r.stderr);
  const rows = readFileSync(`${out}/metrics.jsonl`, "utf8")
    .trim()
    .split("\n")
    .map((row) => JSON.parse(row))
    .slice(3);
  return {
    tokensPerSecond: median(rows.map((row) => row.tokensPerSecond)),
    seconds: median(rows.map((row) => row.seconds)),
    held: rows.at(-1).modelStateBytes?.[0],
    sent: rows.at(-1).bytesSent?.[0],
    peakMemoryMiB: rows.at(-1).peakMemoryMiB,
    parameters: Number(/([\d.]+)M parameters/.exec(r.stderr)[1]) * 1e6,
  };
}

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      json: { type: "boolean", default: false },
      only: { type: "string" },
      steps: { type: "string", default: "8" },
      rounds: { type: "string", default: "3" },
      help: { type: "boolean", default: false },
    },
  });
  if (o.help) return console.log(HELP);
  for (const key of ["steps", "rounds"])
    if (!/^[1-9]\d*$/.test(o[key])) throw new UsageError(`--${key} must be a whole number above 0, not "${o[key]}".`);
  const parts = { modes, scaling, bubble, offload };
  if (o.only && !(o.only in parts))
    throw new UsageError(`There is no part "${o.only}". Known: ${Object.keys(parts).join(", ")}.`);
  if (spawnSync("mpirun", ["--version"]).status !== 0) throw new UsageError("mpirun was not found: install Open MPI.");
  const dir = mkdtempSync(`${tmpdir()}/lyceum-bench-`);
  const say = (row, line) => console.log(o.json ? JSON.stringify(row) : line);
  if (!o.json) console.log(`${cpus()[0].model}, ${cpus().length} cores, one thread a process`);
  for (const [name, part] of Object.entries(parts))
    if (!o.only || o.only === name) part(dir, { steps: Number(o.steps) + 3, rounds: Number(o.rounds) }, say);
  rmSync(dir, { recursive: true });
}

/** Bytes held and sent by a process, beside the formulas of docs/parallel.md. */
function modes(dir, { steps }, say) {
  say(
    {},
    `\n${"mode".padEnd(22)} ${"held MB".padStart(9)} ${"formula".padStart(9)} ${"sent MB".padStart(9)} ${"formula".padStart(9)} ${"tokens/s".padStart(9)}`,
  );
  const { context, batch, hiddenSize: d, numLayers: L } = SIZES.d256;
  const list = [
    ["data parallel", 2, []],
    ["ZeRO-1", 2, ["parallel.zero=1"]],
    ["ZeRO-2", 2, ["parallel.zero=2"]],
    ["ZeRO-3", 2, ["parallel.zero=3"]],
    ["tensor parallel", 2, ["parallel.tensor=2"]],
    ["pipeline", 2, ["parallel.pipeline=2", "gradientAccumulation=4"]],
  ];
  for (const [name, N, settings] of list) {
    const r = train(dir, "d256", N, settings, steps);
    const P = r.parameters;
    const share = (N - 1) / N;
    const tokens = context * batch * N;
    const perLayer = (P - SIZES.d256.vocab * d) / L;
    const held = {
      "ZeRO-1": 4 * P + (12 * P) / N,
      "ZeRO-2": 2 * P + (14 * P) / N,
      "ZeRO-3": (16 * P) / N,
      "tensor parallel": (16 * P) / N,
    };
    const sent = {
      "data parallel": 4 * P * share,
      "ZeRO-1": 4 * P * share,
      "ZeRO-2": 4 * P * share,
      // Layers are gathered twice; the embedding once, and the last layer is still there when the backward pass begins.
      "ZeRO-3": (4 * P + 2 * perLayer * (L - 1)) * share,
      // Two sums forward and two backward a layer, one for the embedding, one for the output matrix's backward pass; and log p.
      "tensor parallel": (4 * L + 2) * 2 * share * tokens * d * 2 + tokens * 8 * (N - 1),
      // One process sends activations up or their gradients down, for every micro-batch; both ends share the embedding.
      pipeline: 4 * tokens * d * 2 + 2 * share * SIZES.d256.vocab * d * 2,
    };
    const formula = held[name] ?? (name === "pipeline" ? 16 * (P / 2 + (SIZES.d256.vocab * d) / 2) : 16 * P);
    const mb = (x) => (x / 1e6).toFixed(2).padStart(9);
    say(
      {
        name: `parallel ${name}`,
        held: r.held,
        heldFormula: formula,
        sent: r.sent,
        sentFormula: sent[name],
        tokensPerSecond: r.tokensPerSecond,
      },
      `${name.padEnd(22)} ${mb(r.held)} ${mb(formula)} ${mb(r.sent)} ${mb(sent[name])} ${String(r.tokensPerSecond).padStart(9)}`,
    );
  }
}

/** Twice the processes, twice the batch: tokens/s a process beside one process alone, in turns. */
function scaling(dir, { steps, rounds }, say) {
  const [one, two] = [[], []];
  for (let i = 0; i < rounds; i++) {
    one.push(train(dir, "d768", 1, [], steps).tokensPerSecond);
    two.push(train(dir, "d768", 2, [], steps).tokensPerSecond);
  }
  const [ours, peer] = [median(two) / 2, median(one)];
  say(
    { name: "weak scaling d768", ours, peer, ratio: ours / peer, unit: "tokens/s a process" },
    `\nweak scaling at d768, 2 processes against 1: ${median(two)} against ${median(one)} tokens/s: ${((100 * ours) / peer).toFixed(1)}% efficiency`,
  );
}

/** t(m) = (m + p - 1) t: the share of a step in which a stage waits, from the slope of t over the micro-batches. */
function bubble(dir, { steps }, say) {
  const p = 2;
  const seconds = new Map(
    [1, 2, 4, 8].map((m) => [
      m,
      train(dir, "d256", p, ["parallel.pipeline=2", `gradientAccumulation=${m}`], steps).seconds,
    ]),
  );
  const slope = (seconds.get(8) - seconds.get(4)) / 4;
  say({}, "");
  for (const [m, s] of seconds) {
    const waits = 1 - (m * slope) / s;
    const theory = (p - 1) / (m + p - 1);
    say(
      { name: `bubble m=${m}`, ours: waits, peer: theory, ratio: waits / theory, unit: "share of a step" },
      `pipeline of ${p}, ${m} micro-batches: ${(1000 * s).toFixed(0)} ms a step, bubble ${(100 * waits).toFixed(0)}%, in theory ${(100 * theory).toFixed(0)}%`,
    );
  }
}

/** The state in files: peak memory of a process, and the slow-down. */
function offload(dir, { steps, rounds }, say) {
  const [here, disk] = [[], []];
  for (let i = 0; i < rounds; i++) {
    here.push(train(dir, "d768", 1, [], steps));
    disk.push(train(dir, "d768", 1, ["parallel.zero=3", "parallel.offload=disk"], steps));
  }
  const of = (list, key) => median(list.map((r) => r[key]));
  say(
    {
      name: "offload d768",
      ours: of(disk, "seconds"),
      peer: of(here, "seconds"),
      ratio: of(disk, "seconds") / of(here, "seconds"),
      unit: "seconds a step",
      memoryMiB: [of(here, "peakMemoryMiB"), of(disk, "peakMemoryMiB")],
    },
    `\noffload at d768: ${of(here, "peakMemoryMiB")} MiB at peak in memory, ${of(disk, "peakMemoryMiB")} MiB with the state on disk (mapped pages that the system may drop count); a step takes ${(of(disk, "seconds") / of(here, "seconds")).toFixed(2)} times as long`,
  );
}
