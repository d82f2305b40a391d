// Alignment: a reward-model step and a DPO step beside TRL's trainers, and PPO beside a plain PyTorch + Transformers loop,
// on the same model, data and batch. Each contestant is a fresh process, in turns; figures are medians over all counted steps.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { COMMON, checkCounts, median, UsageError } from "./peers/player.mjs";

export { UsageError };

const HELP = `npm run bench -- align [options]
  --python PYTHON   a Python with torch, transformers and trl to compare with; without it only Lyceum is measured
  --json            one JSON object a line instead of the table
  --only NAME       reward, dpo or ppo
  --steps N         steps of a turn (8); the first two are not counted
  --rounds N        turns of each contestant (2)
  --threads N       threads of each contestant (all cores)`;

const lyceum = fileURLToPath(new URL("../dist/cli/main.js", import.meta.url));
const atlas = (name) => fileURLToPath(new URL(`../recipes/atlas/${name}`, import.meta.url));
const script = fileURLToPath(new URL("./peers/torch_align.py", import.meta.url));
const MODEL = { hiddenSize: 256, intermediateSize: 704, numLayers: 4, numHeads: 4 };
const BATCH = { reward: 16, dpo: 16, ppo: 32 };
const MINIBATCH = 16;
const MAX_TOKENS = 32;

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      ...COMMON,
      steps: { type: "string", default: "8" },
      rounds: { type: "string", default: "2" },
    },
  });
  if (o.help) return console.log(HELP);
  checkCounts(o, "steps", "rounds", "threads");
  const names = Object.keys(BATCH).filter((name) => !o.only || name === o.only);
  if (names.length === 0)
    throw new UsageError(`There is no part "${o.only}". Known: ${Object.keys(BATCH).join(", ")}.`);
  const dir = mkdtempSync(`${tmpdir()}/lyceum-bench-`);
  try {
    prepare(dir, Number(o.threads));
    for (const name of names) {
      const row = measure(dir, name, o);
      console.log(o.json ? JSON.stringify(row) : describe(row));
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** A stage of ours in `dir`; its rows of metrics. */
function stage(dir, name, out, config) {
  writeFileSync(`${dir}/${out}.yaml`, JSON.stringify({ logEvery: 1000, evalEvery: 0, saveEvery: 0, ...config }));
  rmSync(`${dir}/${out}`, { recursive: true, force: true });
  execFileSync(process.execPath, [lyceum, name, `${dir}/${out}.yaml`, "--out", `${dir}/${out}`], { stdio: "pipe" });
  return readFileSync(`${dir}/${out}/metrics.jsonl`, "utf8")
    .trim()
    .split("\n")
    .map((row) => JSON.parse(row));
}

/** A model that knows a little (replies should end), a reward model, and preferences made of other countries' answers. */
function prepare(dir, threads) {
  const records = readFileSync(atlas("sft.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((row) => JSON.parse(row));
  const asked = records.filter((r) => r.input === "");
  writeFileSync(
    `${dir}/prefs.jsonl`,
    asked
      .map((r, i) => ({ prompt: r.instruction, chosen: r.output, rejected: asked[(i * 7 + 1) % asked.length].output }))
      .filter((r) => r.chosen !== r.rejected)
      .slice(0, 1024)
      .map((r) => `${JSON.stringify(r)}\n`)
      .join(""),
  );
  stage(dir, "pretrain", "base", {
    threads,
    model: MODEL,
    tokenizer: { vocabSize: 2048 },
    data: { train: [atlas("pretrain.jsonl")], contextLength: 128 },
    steps: 60,
  });
  stage(dir, "sft", "sft", {
    threads,
    from: `${dir}/base/model`,
    data: { train: [atlas("sft.jsonl")], contextLength: 128 },
    steps: 60,
  });
  stage(dir, "reward", "judge", {
    threads,
    from: `${dir}/sft/model`,
    data: { train: [`${dir}/prefs.jsonl`], contextLength: 128 },
    steps: 1,
  });
}

function measure(dir, name, o) {
  const steps = Number(o.steps) + 2;
  const threads = Number(o.threads);
  const config = {
    reward: {
      data: { train: [`${dir}/prefs.jsonl`], validationShare: 0, contextLength: 128 },
      batchSize: BATCH.reward,
    },
    dpo: { data: { train: [`${dir}/prefs.jsonl`], validationShare: 0, contextLength: 128 }, batchSize: BATCH.dpo },
    ppo: {
      reward: `${dir}/judge/model`,
      prompts: [`${dir}/prefs.jsonl`],
      maxTokens: MAX_TOKENS,
      batchSize: BATCH.ppo,
      minibatchSize: MINIBATCH,
      klLimit: 0,
      optimizer: { learningRate: 1e-6 },
      criticOptimizer: { learningRate: 1e-6 },
      samples: { count: 0 },
    },
  }[name];
  const contestants = ["ours", ...(o.python ? ["bf16", "fp32"] : [])];
  const seconds = new Map(contestants.map((c) => [c, []]));
  const memory = {};
  let tokens = [];
  for (let round = 0; round < Number(o.rounds); round++)
    for (const who of contestants) {
      if (who === "ours") {
        const rows = stage(dir, name, "ours", { threads, from: `${dir}/sft/model`, steps, ...config }).slice(2);
        seconds.get(who).push(...rows.map((row) => row.seconds));
        tokens = rows.map((row) => row.seconds * row.tokensPerSecond);
        memory[who] = rows.at(-1).peakMemoryMiB;
      } else {
        const job = {
          what: name,
          model: `${dir}/sft/model`,
          reward: `${dir}/judge/model`,
          file: `${dir}/prefs.jsonl`,
          batch: BATCH[name],
          minibatch: MINIBATCH,
          steps,
          maxTokens: MAX_TOKENS,
          threads,
          precision: who,
        };
        const out = execFileSync(o.python, [script, JSON.stringify(job)], {
          encoding: "utf8",
          stdio: ["ignore", "pipe", "pipe"],
        });
        const result = JSON.parse(out.trim().split("\n").at(-1));
        seconds.get(who).push(...result.seconds.slice(2));
        memory[who] = Math.round(result.peakRss / 2 ** 20);
      }
      process.stderr.write(`${name} round ${round + 1} ${who}: ${median(seconds.get(who)).toFixed(3)} s a step\n`);
    }
  // Tokens of a step as our tokenizer counts them: without padding, and the same for both.
  const amount = name === "ppo" ? BATCH.ppo : tokens.reduce((a, b) => a + b, 0) / tokens.length;
  const speed = (who) => amount / median(seconds.get(who));
  const peers = Object.fromEntries(contestants.slice(1).map((who) => [who, Number(speed(who).toFixed(1))]));
  const best = Object.keys(peers).sort((a, b) => peers[b] - peers[a])[0];
  return {
    name: `align/${name}`,
    ours: Number(speed("ours").toFixed(1)),
    peer: best ? peers[best] : null,
    ratio: best ? Number((speed("ours") / speed(best)).toFixed(2)) : null,
    unit: name === "ppo" ? "samples/s" : "tokens/s",
    peers,
    peakMemory: { ours: memory.ours, peer: best ? memory[best] : null, unit: "MiB" },
  };
}

const describe = (r) =>
  `${r.name.padEnd(14)} ${r.ours} ${r.unit}` +
  (r.peer
    ? `, ${r.name === "align/ppo" ? "PyTorch" : "TRL"} ${r.peer} (${Object.entries(r.peers)
        .map(([k, v]) => `${k} ${v}`)
        .join(", ")}): ${r.ratio}x`
    : "") +
  `; peak memory ${r.peakMemory.ours} MiB${r.peakMemory.peer ? ` against ${r.peakMemory.peer} MiB` : ""}`;
