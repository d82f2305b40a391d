// Several processes: what each mode holds and sends (measured, and as its formula says), what it costs in speed, weak
// scaling, the pipeline's bubble, and training under offload. Runs the built program under mpirun, one thread a process.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { UsageError } from "./peers/player.mjs";

const HELP = `npm run bench -- parallel [options]
  --json        one JSON object a line instead of the tables
  --only NAME   modes, scaling, bubble, offload or limit
  --steps N     steps of a run (8); the first three are not counted
  --rounds N    runs of each side of a comparison, in turns (3)`;

export { UsageError };

const lyceum = fileURLToPath(new URL("../dist/cli/main.js", import.meta.url));
const text = fileURLToPath(new URL("../recipes/atlas/pretrain.jsonl", import.meta.url));
const SIZES = {
  d256: { hiddenSize: 256, intermediateSize: 704, numLayers: 4, numHeads: 4, vocab: 2048, context: 128, batch: 16 },
  d768: { hiddenSize: 768, intermediateSize: 2048, numLayers: 12, numHeads: 12, vocab: 4096, context: 512, batch: 4 },
};
const median = (x) => [...x].sort((a, b) => a - b)[Math.floor(x.length / 2)];

const env = { ...process.env, OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" };

/** What a run is started with: the command, and its run folder. `settings` as after --set. */
function prepare(dir, size, ranks, settings, steps, name = "run") {
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
    evalBatches: 1,
    saveEvery: 0,
    parallel: { checkEvery: 0 },
  };
  writeFileSync(`${dir}/${name}.yaml`, JSON.stringify(config));
  const out = `${dir}/${name}`;
  rmSync(out, { recursive: true, force: true });
  const args = ["pretrain", `${dir}/${name}.yaml`, "--out", out];
  if (settings.length > 0) args.push("--set", ...settings);
  return {
    out,
    command: ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", ranks, process.execPath, lyceum, ...args],
  };
}

/** What the last rows of a run say. */
function result(out, stderr) {
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
    loss: rows.at(-1).loss,
    parameters: Number(/([\d.]+)M parameters/.exec(stderr)[1]) * 1e6,
  };
}

/** One run. */
function train(dir, size, ranks, settings, steps) {
  const { out, command } = prepare(dir, size, ranks, settings, steps);
  const r = spawnSync(command[0], command.slice(1), { encoding: "utf8", env });
  if (r.status !== 0) throw new Error(r.stderr);
  return result(out, r.stderr);
}

/** The same run several times at once, as processes that know nothing of each other. */
async function apart(dir, size, count, steps) {
  const runs = Array.from({ length: count }, (_, i) => prepare(dir, size, 1, [], steps, `run${i}`));
  return Promise.all(
    runs.map(
      ({ out, command }) =>
        new Promise((resolve, reject) => {
          const child = spawn(command[0], command.slice(1), { env, stdio: ["ignore", "ignore", "pipe"] });
          let stderr = "";
          child.stderr.on("data", (data) => {
            stderr += data;
          });
          child.on("exit", (code) => (code === 0 ? resolve(result(out, stderr)) : reject(new Error(stderr))));
        }),
    ),
  );
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
  const parts = { modes, scaling, bubble, offload, limit };
  if (o.only && !(o.only in parts))
    throw new UsageError(`There is no part "${o.only}". Known: ${Object.keys(parts).join(", ")}.`);
  if (spawnSync("mpirun", ["--version"]).status !== 0) throw new UsageError("mpirun was not found: install Open MPI.");
  const dir = mkdtempSync(`${tmpdir()}/lyceum-bench-`);
  const say = (row, line) => console.log(o.json ? JSON.stringify(row) : line);
  if (!o.json) console.log(`${cpus()[0].model}, ${cpus().length} cores, one thread a process`);
  for (const [name, part] of Object.entries(parts))
    if (!o.only || o.only === name) await part(dir, { steps: Number(o.steps) + 3, rounds: Number(o.rounds) }, say);
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
    ["ZeRO-1 on 4", 4, ["parallel.zero=1"]],
    ["ZeRO-2 on 4", 4, ["parallel.zero=2"]],
    ["ZeRO-3 on 4", 4, ["parallel.zero=3"]],
    ["tensor parallel", 2, ["parallel.tensor=2"]],
    ["tensor and sequence", 2, ["parallel.tensor=2", "parallel.sequence=true"]],
    ["pipeline", 2, ["parallel.pipeline=2", "gradientAccumulation=4"]],
    ["data x tensor", 4, ["parallel.tensor=2"]],
  ];
  for (const [name, N, settings] of list) {
    const r = train(dir, "d256", N, settings, steps);
    const P = r.parameters;
    const share = (N - 1) / N;
    const tokens = context * batch * N;
    const perLayer = (P - SIZES.d256.vocab * d) / L;
    const vocabulary = SIZES.d256.vocab * d;
    const kind = name.replace(" on 4", "");
    const hidden = tokens * d * 2;
    // Two sums forward and two backward a layer, one for the embedding, one for the output matrix's backward pass; and log p.
    const tensor = (n) => (4 * L + 2) * 2 * (1 / 2) * n * d * 2 + n * 8;
    const held = {
      "ZeRO-1": 4 * P + (12 * P) / N,
      "ZeRO-2": 2 * P + (14 * P) / N,
      "ZeRO-3": (16 * P) / N,
      "tensor parallel": (16 * P) / N,
      "tensor and sequence": (16 * P) / N,
      "data x tensor": (16 * P) / 2,
      pipeline: 16 * (P / 2 + vocabulary / 2), // the first and the last process have the table of a tied embedding
    };
    const sent = {
      "data parallel": 4 * P * share,
      "ZeRO-1": 4 * P * share,
      "ZeRO-2": 4 * P * share,
      // Layers are gathered twice; the embedding once, and the last layer is still there when the backward pass begins.
      "ZeRO-3": (4 * P + 2 * perLayer * (L - 1)) * share,
      "tensor parallel": tensor(tokens),
      // Gathered before each of two products forward and twice backward, scattered as often after them; four at the ends.
      "tensor and sequence": (10 * L + 4) * share * hidden + tokens * 8,
      "data x tensor": tensor(tokens / 2) + (4 * P * (1 / 2)) / 2,
      // One process sends activations up or their gradients down, for every micro-batch; both ends share the embedding.
      pipeline: 4 * hidden + 2 * share * vocabulary * 2,
    };
    const formula = held[kind] ?? 16 * P;
    const mb = (x) => (x / 1e6).toFixed(2).padStart(9);
    say(
      {
        name: `parallel ${name}`,
        held: r.held,
        heldFormula: formula,
        sent: r.sent,
        sentFormula: sent[kind],
        tokensPerSecond: r.tokensPerSecond,
      },
      `${name.padEnd(22)} ${mb(r.held)} ${mb(formula)} ${mb(r.sent)} ${mb(sent[kind])} ${String(r.tokensPerSecond).padStart(9)}`,
    );
  }
}

/**
 * Twice the processes, twice the batch: tokens/s a process beside one process alone, in turns. And beside two processes
 * that do not talk to each other: what two lose because they share a machine is no cost of talking.
 */
async function scaling(dir, { steps, rounds }, say) {
  const [one, two, separate] = [[], [], []];
  for (let i = 0; i < rounds; i++) {
    one.push(train(dir, "d768", 1, [], steps).tokensPerSecond);
    two.push(train(dir, "d768", 2, [], steps).tokensPerSecond);
    const both = await apart(dir, "d768", 2, steps);
    separate.push(both[0].tokensPerSecond + both[1].tokensPerSecond);
  }
  const [ours, peer, talkless] = [median(two) / 2, median(one), median(separate) / 2];
  say(
    { name: "weak scaling d768", ours, peer, ratio: ours / peer, apart: talkless, unit: "tokens/s a process" },
    `\nweak scaling at d768, tokens/s a process: 1 process ${peer.toFixed(0)}; 2 processes ${ours.toFixed(0)}: ${((100 * ours) / peer).toFixed(1)}% efficiency; ` +
      `2 that do not talk ${talkless.toFixed(0)}: ${((100 * ours) / talkless).toFixed(1)}% of these`,
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

/** Training under a limit of memory that the model's state alone exceeds: a memory cgroup, where one may be made. */
function limit(dir, { steps }, say) {
  const place = ["/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"];
  const [root, file, peakFile] = existsSync(place[0]) ? place : ["/sys/fs/cgroup", "memory.max", "memory.peak"];
  const group = `${root}/lyceum-bench-${process.pid}`;
  try {
    mkdirSync(group);
  } catch {
    return say({ name: "limit", skipped: true }, "\nlimit: no memory cgroup can be made here (run as root)");
  }
  const bytes = 560 * 2 ** 20;
  writeFileSync(`${group}/${file}`, String(bytes));
  const run = (settings) => {
    const { out, command } = prepare(dir, "d768", 1, ["model.numLayers=6", "batchSize=1", ...settings], steps);
    const [, , , , , , node, ...args] = command; // without mpirun: one process
    const inside = ["-c", `echo $$ > ${group}/cgroup.procs; exec "$0" "$@"`, node, ...args];
    const r = spawnSync("sh", inside, { encoding: "utf8", env });
    return r.status === 0 ? result(out, r.stderr) : undefined;
  };
  const here = run([]);
  writeFileSync(`${group}/${peakFile}`, "0");
  const disk = run(["parallel.zero=3", "parallel.offload=disk"]);
  const state = disk ? 16 * disk.parameters : 0;
  const peak = Number(readFileSync(`${group}/${peakFile}`, "utf8"));
  const mb = (x) => (x / 1e6).toFixed(0);
  say(
    { name: "limit", limit: bytes, state, peak, inMemory: here !== undefined, onDisk: disk !== undefined },
    `\na limit of ${mb(bytes)} MB, model states of ${mb(state)} MB: in memory ${here ? "trains" : "killed by the limit"}; ` +
      `on disk ${disk ? `trains, ${disk.seconds.toFixed(2)} s a step, loss ${disk.loss.toFixed(3)}` : "fails"} (peak ${mb(peak)} MB, pages of files included)`,
  );
  rmdirSync(group);
}
