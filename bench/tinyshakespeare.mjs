// Whether training learns as well as PyTorch's: nanoGPT's CPU budget on characters of tinyshakespeare.
//
// 4 layers, 4 heads, 128 wide, SwiGLU 344, tied, context 64, batch 12, 2000 steps, lr 1e-3 -> 1e-4 by cosine after 100
// steps of warm-up, betas 0.9 / 0.99, decay 0.1, clip 1: about 800,000 parameters. The figure is the loss over the
// whole validation text (its last tenth), in windows that do not overlap. PyTorch, same budget, seeds 1, 2, 3:
// 1.674, 1.683, 1.661; mean 1.672.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { UsageError } from "./peers/player.mjs";

const PEER = 1.672;
const CONTEXT = 64;
const BATCH = 12;
const HELP = `npm run bench -- tinyshakespeare --data FILE [options]
  --data FILE       tinyshakespeare's input.txt, or another text of about 1 MB (the peer's figure is for the former)
  --seeds 1,2,3     one run each
  --steps N         2000
  --precision P     bf16 (default) or fp32
  --threads N       all cores
  --json            one JSON object`;

export { UsageError };

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      data: { type: "string" },
      seeds: { type: "string", default: "1,2,3" },
      steps: { type: "string", default: "2000" },
      precision: { type: "string", default: "bf16" },
      threads: { type: "string", default: "0" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (o.help) return console.log(HELP);
  if (!o.data) throw new UsageError(`--data FILE is missing.\n${HELP}`);
  if (!/^\d+(,\d+)*$/.test(o.seeds))
    throw new UsageError(`--seeds must be whole numbers with commas, not "${o.seeds}".`);
  if (!/^[1-9]\d*$/.test(o.steps)) throw new UsageError(`--steps must be a whole number above 0, not "${o.steps}".`);
  if (!/^\d+$/.test(o.threads)) throw new UsageError(`--threads must be a whole number, not "${o.threads}".`);
  if (!["bf16", "fp32"].includes(o.precision))
    throw new UsageError(`--precision must be bf16 or fp32, not "${o.precision}".`);
  const { train, validation, vocabulary } = readCharacters(o.data);

  const { openCpu } = await import("../dist/device/cpu.js");
  const device = openCpu({ threads: Number(o.threads) });
  const losses = [];
  for (const seed of o.seeds.split(",").map(Number)) {
    const started = performance.now();
    const loss = await run({
      device,
      train,
      validation,
      vocabulary,
      seed,
      steps: Number(o.steps),
      precision: o.precision,
    });
    losses.push(loss);
    const seconds = ((performance.now() - started) / 1000).toFixed(0);
    if (!o.json) console.log(`seed ${seed}: validation loss ${loss.toFixed(4)} (${seconds} s)`);
  }
  const ours = losses.reduce((a, b) => a + b, 0) / losses.length;
  if (o.json)
    console.log(
      JSON.stringify({
        name: "tinyshakespeare",
        ours,
        peer: PEER,
        difference: ours - PEER,
        unit: "nats/character",
        losses,
      }),
    );
  else console.log(`mean ${ours.toFixed(4)}, PyTorch ${PEER}, difference ${(ours - PEER).toFixed(4)}`);
}

/** Characters as tokens, in the order of their code points; the first nine tenths train. */
function readCharacters(path) {
  let text;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new UsageError(`${path} cannot be read: ${error.message}.`);
  }
  const characters = [...text];
  if (characters.length < 20 * (CONTEXT + 1))
    throw new UsageError(`${path} holds only ${characters.length} characters.`);
  const id = new Map([...new Set(characters)].sort().map((c, i) => [c, i]));
  const ids = Int32Array.from(characters, (c) => id.get(c));
  const border = Math.floor(ids.length * 0.9);
  return { train: ids.subarray(0, border), validation: ids.subarray(border), vocabulary: id.size };
}

/** Trains one model; the validation loss at the end, in nats a character. */
async function run({ device, train, validation, vocabulary, seed, steps, precision }) {
  const { Llama } = await import("../dist/nn/llama.js");
  const { parseLlamaConfig } = await import("../dist/nn/config.js");
  const { AdamW } = await import("../dist/optim/adamw.js");
  const { learningRate } = await import("../dist/optim/schedule.js");
  const { Tape } = await import("../dist/tensor/tensor.js");
  const shape = {
    vocab_size: vocabulary,
    hidden_size: 128,
    intermediate_size: 344,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    max_position_embeddings: CONTEXT,
    tie_word_embeddings: true,
  };
  const model = new Llama(device, parseLlamaConfig(shape, "bench"), precision);
  model.parameters.initialize(seed, 0.02);
  const optimizer = new AdamW(model.trainable, { betas: [0.9, 0.99], eps: 1e-8, weightDecay: 0.1, gradClip: 1 });
  const schedule = {
    kind: "cosine",
    warmupSteps: Math.min(100, Math.floor(steps / 2)),
    minLearningRate: 1e-4,
    decayShare: 0,
  };
  const tape = new Tape(device);
  const N = BATCH * CONTEXT;
  const weights = new Float32Array(N).fill(1 / N);
  const draws = device.alloc(BATCH * 4);
  for (let step = 1; step <= steps; step++) {
    // Streams above the parameters' own, so that data and initial weights are independent draws of one seed.
    device.randomUniform(draws, BATCH, seed, 1_000_000 + step);
    const starts = Array.from(device.f32(draws, BATCH), (u) => Math.floor(u * (train.length - CONTEXT)));
    const { batch, targets } = windows(train, starts);
    const { logp } = model.loss(tape, batch, targets, weights);
    tape.backward(logp);
    tape.reset();
    optimizer.update(learningRate(1e-3, step, steps, schedule), optimizer.gradNorm());
  }
  device.free(draws, BATCH * 4);
  const loss = evaluate(model, new Tape(device, false, tape.arena), validation);
  tape.arena.close();
  optimizer.close();
  model.close();
  return loss;
}

/** Mean of -log p over the whole text, in windows that do not overlap. */
function evaluate(model, tape, ids) {
  const starts = Array.from({ length: Math.floor((ids.length - 1) / CONTEXT) }, (_, i) => i * CONTEXT);
  let sum = 0;
  for (let at = 0; at < starts.length; at += 64) {
    const { batch, targets } = windows(ids, starts.slice(at, at + 64));
    for (const x of model.logProbs(tape, batch, targets).toArray()) sum -= x;
    tape.reset();
  }
  return sum / (starts.length * CONTEXT);
}

/** Windows of CONTEXT tokens from each start, as sequences that see themselves only, and their next tokens. */
function windows(source, starts) {
  const N = starts.length * CONTEXT;
  const ids = new Int32Array(N);
  const targets = new Int32Array(N);
  starts.forEach((start, s) => {
    ids.set(source.subarray(start, start + CONTEXT), s * CONTEXT);
    targets.set(source.subarray(start + 1, start + CONTEXT + 1), s * CONTEXT);
  });
  return {
    batch: {
      ids,
      positions: Int32Array.from(ids, (_, i) => i % CONTEXT),
      cuSeqlens: Int32Array.from({ length: starts.length + 1 }, (_, s) => s * CONTEXT),
    },
    targets,
  };
}
