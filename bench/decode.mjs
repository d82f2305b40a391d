// Speed of generation: greedy decoding with a KV cache, beside Transformers doing the same in bf16 with the same weights, and for one
// reply beside llama.cpp with the same weights, exported: in bf16, and in Q8_0 beside int8.
//
// Contestants take turns (peers/player.mjs). A turn continues random prompts by a fixed number of tokens, the pass over the
// prompts included. Figures are medians over the rounds, in new tokens a second of the whole batch.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { COMMON, checkCounts, median, Player, UsageError } from "./peers/player.mjs";

export { UsageError };

/** Random weights: how fast a model decodes does not depend on what it has learned. */
const MODEL = { hidden: 768, intermediate: 2048, layers: 12, vocab: 8192, context: 1024 };
const CASES = [
  { name: "b1", batch: 1, tokens: 128, int8: false },
  { name: "b32", batch: 32, tokens: 128, int8: false },
  { name: "b1-int8", batch: 1, tokens: 128, int8: true },
];
const HELP = `npm run bench -- decode [options]
  --python PYTHON   a Python with torch and transformers to compare with; without it only Lyceum is measured
  --llama-cpp DIR   a folder in which node-llama-cpp is installed, to compare with
  --json            one JSON object a line instead of the table
  --only NAME       one case: ${CASES.map((c) => c.name).join(", ")}
  --tokens N        new tokens of each row (128)
  --prompt N        tokens of each prompt (8)
  --rounds N        turns of each contestant (5)
  --threads N       threads of each contestant (all cores)`;

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      ...COMMON,
      tokens: { type: "string" },
      prompt: { type: "string", default: "8" },
      rounds: { type: "string", default: "5" },
      make: { type: "string" },
      worker: { type: "string" },
      int8: { type: "boolean", default: false },
      "llama-cpp": { type: "string" },
    },
  });
  if (o.help) return console.log(HELP);
  checkCounts(o, "tokens", "prompt", "rounds", "threads");
  if (o.make) return makeModel(o.make);
  if (o.worker) return work(o.worker, o.int8, Number(o.threads));
  const chosen = CASES.filter((c) => !o.only || c.name === o.only);
  if (chosen.length === 0)
    throw new UsageError(`There is no case "${o.only}". Known: ${CASES.map((c) => c.name).join(", ")}.`);
  if (Math.max(...chosen.map((c) => Number(o.tokens ?? c.tokens))) + Number(o.prompt) > MODEL.context)
    throw new UsageError(`--prompt and --tokens together may be ${MODEL.context} at most.`);

  const dir = mkdtempSync(join(tmpdir(), "lyceum-bench-"));
  try {
    // In a process of its own, so that this one, which waits, has no threads of the engine's.
    const made = spawnSync(process.execPath, [self, "--make", dir], { encoding: "utf8" });
    if (made.status !== 0) throw new UsageError(`The model could not be made: ${made.stderr.trim()}`);
    const rows = [];
    for (const one of chosen) {
      for (const row of await measure(one, dir, o)) {
        rows.push(row);
        if (o.json) console.log(JSON.stringify(row));
      }
    }
    if (!o.json) table(rows);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

const self = fileURLToPath(import.meta.url);

/** One case: all contestants in turns. */
async function measure(one, dir, o) {
  const tokens = Number(o.tokens ?? one.tokens);
  const turn = { batch: one.batch, prompt: Number(o.prompt), tokens };
  const ours = [self, "--threads", o.threads, ...(one.int8 ? ["--int8"] : []), "--worker", dir];
  const players = [["ours", process.execPath, ours]];
  const script = fileURLToPath(new URL("peers/hf_decode.py", import.meta.url));
  if (o.python)
    players.push([
      "transformers",
      o.python,
      [script, "--threads", o.threads, "--model", dir],
      { needs: "torch and transformers" },
    ]);
  const llama = o["llama-cpp"] && resolve(o["llama-cpp"]);
  if (llama && one.batch === 1) {
    const { exportGguf } = await import("../dist/export/model.js");
    const file = join(dir, `${one.name}.gguf`);
    exportGguf(dir, file, one.int8 ? "q8_0" : "bf16");
    const peer = fileURLToPath(new URL("peers/llama_decode.mjs", import.meta.url));
    // Its threads spin while they wait, and node-llama-cpp needs a core for itself: with one less it may be faster, and the faster one counts.
    for (const threads of new Set([Number(o.threads), Math.max(1, Number(o.threads) - 1)]))
      players.push([
        `llama.cpp, ${threads} threads`,
        process.execPath,
        [peer, llama, file, String(threads)],
        { needs: "node-llama-cpp", where: llama },
      ]);
  }
  const started = [];
  try {
    for (const contestant of players) {
      const player = new Player(...contestant);
      started.push(player);
      await player.turn(JSON.stringify({ ...turn, tokens: 4 })); // warms up
    }
    const speeds = new Map(started.map((p) => [p.name, []]));
    for (let round = 0; round < Number(o.rounds); round++)
      for (const player of started) {
        const { seconds } = await player.turn(JSON.stringify(turn));
        const speed = (one.batch * tokens) / seconds;
        speeds.get(player.name).push(speed);
        process.stderr.write(`${one.name} round ${round + 1} ${player.name}: ${speed.toFixed(1)} tokens/s\n`);
      }
    const ours = median(speeds.get("ours"));
    const row = (name, peer) => ({
      name: `decode/${name}`,
      ours: rounded(ours),
      peer: peer === undefined ? null : rounded(peer),
      ratio: peer === undefined ? null : Number((ours / peer).toFixed(3)),
      unit: "tokens/s",
    });
    const best = (kind) => {
      const medians = started.filter((p) => p.name.startsWith(kind)).map((p) => median(speeds.get(p.name)));
      return medians.length > 0 ? Math.max(...medians) : undefined;
    };
    const [transformers, cpp] = [best("transformers"), best("llama.cpp")];
    return [row(one.name, transformers), ...(cpp === undefined ? [] : [row(`${one.name}-llama.cpp`, cpp)])];
  } finally {
    for (const player of started) player.close();
  }
}

const rounded = (x) => Number(x.toFixed(1));

/** A Hugging Face folder that both sides load. */
async function makeModel(dir) {
  const { openCpu } = await import("../dist/device/cpu.js");
  const { Llama } = await import("../dist/nn/llama.js");
  const { parseLlamaConfig } = await import("../dist/nn/config.js");
  const { saveLlama } = await import("../dist/nn/folder.js");
  const config = parseLlamaConfig(
    {
      vocab_size: MODEL.vocab,
      hidden_size: MODEL.hidden,
      intermediate_size: MODEL.intermediate,
      num_hidden_layers: MODEL.layers,
      num_attention_heads: MODEL.hidden / 64,
      max_position_embeddings: MODEL.context,
      tie_word_embeddings: true,
    },
    "bench",
  );
  const model = new Llama(openCpu(), config, "bf16", { trainable: false });
  model.parameters.initialize(1, 0.02);
  saveLlama(model, dir);
  // No text is read: the bytes are tokens enough for a file of llama.cpp's, which must have some.
  const { ALPHABET } = await import("../dist/tokenizer/bytes.js");
  const { Tokenizer } = await import("../dist/tokenizer/tokenizer.js");
  Tokenizer.fromParts(ALPHABET, [], "llama3", []).save(dir);
}

/** Our side, in its own process. */
async function work(dir, int8, threads) {
  const { openCpu } = await import("../dist/device/cpu.js");
  const { loadLlama } = await import("../dist/nn/folder.js");
  const { generate } = await import("../dist/generate/generate.js");
  const { Int8Weights, PackedWeights } = await import("../dist/generate/weights.js");
  const model = loadLlama(openCpu({ threads }), dir, "bf16", { trainable: false });
  // As `lyceum chat` loads a model.
  const weights = int8 ? new Int8Weights(model) : PackedWeights.worthwhile(model, 1, Number.POSITIVE_INFINITY);
  const V = model.config.vocabSize;
  for await (const line of createInterface({ input: process.stdin })) {
    const { batch, prompt, tokens } = JSON.parse(line);
    const row = () => Int32Array.from({ length: prompt }, () => Math.floor(Math.random() * V));
    const prompts = Array.from({ length: batch }, row);
    const start = process.hrtime.bigint();
    const replies = generate(model, prompts, { maxTokens: tokens, temperature: 0, ...(weights && { weights }) });
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    if (replies.some((r) => r.ids.length !== tokens)) throw new Error("a reply ended early");
    console.log(JSON.stringify({ seconds }));
  }
}

function table(rows) {
  const columns = ["case", "ours tokens/s", "peer", "ratio"];
  const cells = rows.map((r) => [r.name, r.ours, r.peer ?? "-", r.ratio ?? "-"]);
  const widths = columns.map((c, i) => Math.max(c.length, ...cells.map((row) => String(row[i]).length)));
  for (const row of [columns, ...cells]) console.log(row.map((c, i) => String(c).padStart(widths[i])).join("  "));
}

if (process.argv.includes("--worker") || process.argv.includes("--make")) await main(process.argv.slice(2));
