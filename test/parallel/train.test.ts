/**
 * Training on several ranks against one process: the same losses and parameters, in every mode. Runs the built program
 * (dist/) under mpirun, one engine thread a rank; runs on as many ranks share one start (see stage.program.mjs).
 */
import { cpSync, mkdirSync, mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { beforeAll, describe, expect, test } from "vitest";
import { expectSame, hasMpi, type Job, metrics, program, runJobs, runRanks, tensors } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-parallel-`);
const file = `${root}/pretrain.yaml`;

// Documents of a few made words: small, and with enough order in them that the loss falls.
const words = ["sun", "moon", "star", "rise", "set", "shine", "bright", "dark", "over", "under", "sea", "hill"];
const documents = Array.from({ length: 160 }, (_, i) =>
  Array.from({ length: 12 + (i % 9) }, (_, j) => words[(i * 7 + j * (1 + (i % 5))) % words.length]).join(" "),
);
writeFileSync(`${root}/text.jsonl`, documents.map((text) => `${JSON.stringify({ text })}\n`).join(""));
writeFileSync(
  file,
  `seed: 3
model: { hiddenSize: 32, intermediateSize: 64, numLayers: 4, numHeads: 4, numKvHeads: 2 }
tokenizer: { vocabSize: 300 }
data: { train: [text.jsonl], validation: [text.jsonl], contextLength: 32 }
evalBatches: 2
batchSize: 8
steps: 10
precision: fp32
threads: 1
evalEvery: 0
samples: { prompts: ["sun"], maxTokens: 4 }
`,
);

const jobs: Job[] = [];
const later: Job[] = [];
/** Registers a run; `set` as after --set. Runs that resume come after all others. */
function train(ranks: number, set: string[], resume?: string): Job {
  const list = resume === undefined ? jobs : later;
  const out = resume ?? `${root}/run${jobs.length}`;
  const job = { ranks, stage: "pretrain", file, out, ...(resume !== undefined && { resume: true }), set };
  list.push(job);
  return job;
}

const untied = "model.tieWordEmbeddings=false";
const odd = ["data.contextLength=33", "batchSize=1"];
const [qwen2, qwen3] = [["model.modelType=qwen2", "tokenizer.pretokenizer=qwen"], ["model.modelType=qwen3"]];
const alone = train(1, []);
/** Runs with one of these settings are held against one process that has it too. */
const others = new Map([[untied], odd, qwen2, qwen3].map((set) => [set[0], train(1, set)]));

const micro = ["batchSize=2", "gradientAccumulation=4"];
const half = ["batchSize=4", "gradientAccumulation=2"];
const modes: [string, Job, Job][] = (
  [
    ["data parallel", 2, []],
    ["data parallel on 4", 4, []],
    ["ZeRO-1", 2, ["parallel.zero=1"]],
    ["ZeRO-2", 2, ["parallel.zero=2"]],
    ["ZeRO-3", 2, ["parallel.zero=3"]],
    ["ZeRO-3 on 4", 4, ["parallel.zero=3"]],
    ["ZeRO-3 with recomputation", 2, ["parallel.zero=3", "recompute=true"]],
    ["ZeRO-2 with accumulation", 2, ["parallel.zero=2", ...micro]],
    ["tensor", 2, ["parallel.tensor=2"]],
    ["tensor, untied", 2, ["parallel.tensor=2", untied]],
    ["tensor with sequence", 2, ["parallel.tensor=2", "parallel.sequence=true"]],
    ["tensor with sequence, an odd number of tokens", 2, ["parallel.tensor=2", "parallel.sequence=true", ...odd]],
    ["tensor with sequence and recomputation", 2, ["parallel.tensor=2", "parallel.sequence=true", "recompute=true"]],
    ["pipeline", 2, ["parallel.pipeline=2", ...micro]],
    ["pipeline, GPipe", 2, ["parallel.pipeline=2", "parallel.schedule=gpipe", ...micro]],
    ["pipeline of 4", 4, ["parallel.pipeline=4", ...micro]],
    ["pipeline, untied", 2, ["parallel.pipeline=2", untied]],
    ["data x tensor", 4, ["parallel.data=2", "parallel.tensor=2"]],
    ["data x tensor with sequence, ZeRO-3", 4, ["parallel.tensor=2", "parallel.sequence=true", "parallel.zero=3"]],
    ["pipeline x tensor", 4, ["parallel.pipeline=2", "parallel.tensor=2", ...half]],
    [
      "pipeline x tensor with sequence",
      4,
      ["parallel.pipeline=2", "parallel.tensor=2", "parallel.sequence=true", ...half],
    ],
    ["ZeRO-2 x tensor", 4, ["parallel.tensor=2", "parallel.zero=2"]],
    ["ZeRO-3 x pipeline", 4, ["parallel.pipeline=2", "parallel.zero=3", ...half]],
    ["data x tensor x pipeline, ZeRO-1", 8, ["parallel.tensor=2", "parallel.pipeline=2", "parallel.zero=1", ...half]],
    ["offload of one process", 1, ["parallel.zero=3", "parallel.offload=disk"]],
    ["ZeRO-1 with offload", 2, ["parallel.zero=1", "parallel.offload=disk"]],
    ["ZeRO-3 with offload", 2, ["parallel.zero=3", "parallel.offload=disk"]],
    ["Qwen2, ZeRO-2 with accumulation", 2, ["parallel.zero=2", ...qwen2, ...micro]],
    ["Qwen2, tensor", 2, ["parallel.tensor=2", ...qwen2]],
    [
      "Qwen2, data x tensor with sequence, ZeRO-3",
      4,
      ["parallel.tensor=2", "parallel.sequence=true", "parallel.zero=3", ...qwen2],
    ],
    ["Qwen3, tensor", 2, ["parallel.tensor=2", ...qwen3]],
    [
      "Qwen3, pipeline x tensor with sequence",
      4,
      ["parallel.pipeline=2", "parallel.tensor=2", "parallel.sequence=true", ...qwen3, ...half],
    ],
    [
      "Qwen3, ZeRO-3 x pipeline with recomputation",
      4,
      ["parallel.zero=3", "parallel.pipeline=2", "recompute=true", ...qwen3],
    ],
  ] as [string, number, string[]][]
).map(([name, ranks, set]) => {
  const reference = [...others].find(([setting]) => set.includes(setting))?.[1] ?? alone;
  return [name, train(ranks, set), reference];
});
const mode = (name: string): Job => modes.find(([n]) => n === name)![1];

const bf16 = [0, 1, 2, 3].map((stage) => train(2, ["precision=bf16", `parallel.zero=${stage}`]));
const bf16Micro = [0, 1, 2, 3].map((stage) => train(2, ["precision=bf16", `parallel.zero=${stage}`, ...micro]));

/** An output matrix of its own, 64 micro-batches, one step. */
const pipelined = ["1f1b", "gpipe"].map((schedule) =>
  train(2, [
    "precision=bf16",
    untied,
    "steps=1",
    "batchSize=1",
    "gradientAccumulation=64",
    "parallel.pipeline=2",
    `parallel.schedule=${schedule}`,
  ]),
);

// Two percent is what the padding of units and the vectors may add; so these models are not the tiniest.
const L = 4;
const [d, f] = [128, 256];
const tokens = 8 * 32;
const sized = ["precision=bf16", `model.hiddenSize=${d}`, `model.intermediateSize=${f}`, "steps=2"];
const heldBy = [0, 1, 2, 3].map((stage) => train(4, [...sized, `parallel.zero=${stage}`]));
const sentBy: Record<string, Job> = {
  tensor: train(2, [...sized, "parallel.tensor=2"]),
  sequence: train(2, [...sized, "parallel.tensor=2", "parallel.sequence=true"]),
  pipeline: train(2, [...sized, "parallel.pipeline=2", "batchSize=2", "gradientAccumulation=4"]),
};

// A checkpoint of one layout, and the layout that goes on from it: once with no step left to do, once with one.
const moves = (
  [
    [2, ["parallel.zero=3"], 1, []],
    [1, [], 2, ["parallel.zero=3"]],
    [4, ["parallel.zero=1", "parallel.tensor=2"], 1, []],
    [2, ["parallel.pipeline=2"], 4, ["parallel.zero=2", "parallel.tensor=2"]],
    [2, ["parallel.tensor=2", "parallel.sequence=true"], 2, ["parallel.pipeline=2"]],
    [2, ["parallel.zero=2", "parallel.offload=disk"], 4, ["parallel.zero=3"]],
    [2, ["parallel.tensor=2", ...qwen2], 1, qwen2],
    [2, ["parallel.zero=1", ...qwen3], 2, ["parallel.tensor=2", ...qwen3]],
  ] as [number, string[], number, string[]][]
).map(([ranks, set, thenRanks, thenSet]) => {
  const first = train(ranks, ["saveEvery=5", "steps=5", ...set]);
  const again = train(thenRanks, ["saveEvery=5", "steps=5", ...thenSet], first.out);
  return { first, again, more: train(thenRanks, ["saveEvery=5", "steps=6", ...thenSet], first.out) };
});
const halfway = train(2, ["saveEvery=5", "parallel.zero=3", "keepCheckpoints=9"]);
const resumed = train(1, [], `${root}/resumed`);
const fewer = train(2, ["parallel.zero=2"], `${root}/fewer`);
const refused = {
  share: train(3, []),
  grid: train(2, ["parallel.data=3"]),
  sequence: train(2, ["parallel.sequence=true"]),
  heads: train(4, ["parallel.tensor=4"]),
  layers: train(2, ["parallel.pipeline=2", "model.numLayers=1"]),
  pretokenizer: train(1, qwen2.slice(0, 1)),
};

describe.runIf(hasMpi)("on several ranks", () => {
  const before = new Map<Job, Map<string, Float32Array>>();
  const afterAgain = new Map<Job, Map<string, Float32Array>>();
  beforeAll(() => {
    const env = { LYCEUM_MPI_TIMEOUT: "60" };
    runJobs(jobs, env);
    for (const { first } of moves) before.set(first, tensors(`${first.out}/checkpoints/000005`));
    // As if the job had died after step 5: the later checkpoint and the result are gone.
    for (const dir of [resumed.out, fewer.out]) {
      mkdirSync(`${dir}/checkpoints`, { recursive: true });
      for (const name of ["checkpoints/000005", "data", "config.yaml", "metrics.jsonl"])
        cpSync(`${halfway.out}/${name}`, `${dir}/${name}`, { recursive: true });
    }
    runJobs(
      later.filter((job) => !moves.some(({ more }) => more === job)),
      env,
    );
    for (const { first } of moves) afterAgain.set(first, tensors(`${first.out}/model`));
    runJobs(
      moves.map(({ more }) => more),
      env,
    );
  }, 600_000);

  test.each(modes)("%s equals one process", (_, run, reference) => expectSame(run, reference));

  test("data parallelism and all stages of ZeRO end with the same bits, in bf16 too", () => {
    const fp32 = ["data parallel", "ZeRO-1", "ZeRO-2", "ZeRO-3"].map(mode);
    for (const runs of [fp32, bf16]) {
      const [plain, ...zero] = runs.map((run) => tensors(`${run.out}/model`));
      for (const model of zero) for (const [name, x] of plain) expect(model.get(name)).toEqual(x);
    }
  });

  test("with accumulation in bf16 stages that reduce once have the same bits, and so have those that reduce each micro-batch", () => {
    const [zero0, zero1, zero2, zero3] = bf16Micro.map((run) => tensors(`${run.out}/model`));
    expect(zero1).toEqual(zero0);
    expect(zero3).toEqual(zero2);
    const exact = metrics(alone.out);
    for (const run of bf16Micro)
      for (const [i, { loss, gradNorm }] of metrics(run.out).entries()) {
        expect(Math.abs((loss as number) / (exact[i].loss as number) - 1)).toBeLessThan(0.002);
        expect(Math.abs((gradNorm as number) / (exact[i].gradNorm as number) - 1)).toBeLessThan(0.02);
      }
  });

  test("in bf16 both schedules of a pipeline add up the same gradients, the output matrix's among them", () => {
    const [oneByOne, allForward] = pipelined.map((run) => metrics(run.out)[0]);
    expect(allForward.gradNorm).toBe(oneByOne.gradNorm);
    expect(allForward.loss).toBe(oneByOne.loss);
  });

  /** What rank 0 and the others hold, or sent in the second step. */
  const numbers = (run: Job, key: "modelStateBytes" | "bytesSent"): number[] => metrics(run.out)[1][key] as number[];
  const parameters = (run: Job): number =>
    [...tensors(`${run.out}/model`).values()].reduce((n, x) => n + x.length * 2, 0); // bf16: two in a float's bytes

  test("bytes held and sent are those of the ZeRO paper", () => {
    const N = 4;
    for (const [stage, run] of heldBy.entries()) {
      const P = parameters(run);
      const formula = [16 * P, 4 * P + (12 * P) / N, 2 * P + (14 * P) / N, (16 * P) / N][stage];
      expect(numbers(run, "modelStateBytes")).toHaveLength(N);
      for (const bytes of numbers(run, "modelStateBytes")) expect(Math.abs(bytes / formula - 1)).toBeLessThan(0.02);
      // A reduce-scatter and an all-gather of 2 bytes a parameter; with stage 3 parameters are gathered forward and backward.
      const share = (N - 1) / N;
      const layers = [...tensors(`${run.out}/model`)].filter(([name, x]) => name.includes(".layers.") && x.length > 64);
      const again = stage === 3 ? layers.slice(0, -7).reduce((n, [, x]) => n + 4 * x.length, 0) * share : 0;
      for (const bytes of numbers(run, "bytesSent"))
        expect(Math.abs(bytes / (4 * P * share + again) - 1), `stage ${stage}`).toBeLessThan(0.02);
    }
  });

  test("bytes sent by tensor, sequence and pipeline parallelism are those of docs/parallel.md", () => {
    const share = 1 / 2;
    const hidden = 2 * tokens * d;
    const logits = 8 * tokens;
    const formulas = {
      tensor: (4 * L + 2) * 2 * share * hidden + logits,
      sequence: (10 * L + 4) * share * hidden + logits,
      // Up or down; and the sum of the tied embedding's two gradients.
      pipeline: hidden + 2 * share * 2 * 300 * d,
    };
    for (const [name, formula] of Object.entries(formulas))
      for (const bytes of numbers(sentBy[name], "bytesSent"))
        expect(Math.abs(bytes / formula - 1), `${name}: ${bytes}, ${formula}`).toBeLessThan(0.02);
  });

  test.each(moves)("a checkpoint of $first.set goes on with $again.set", ({ first, again, more }) => {
    expect(first.stderr).not.toMatch(/error|did not run/);
    // No step was left to do: the model that is written is what was loaded, to the bit.
    expect(again.stderr).not.toMatch(/error|did not run/);
    expect(afterAgain.get(first)).toEqual(before.get(first));
    expect(readdirSync(`${first.out}/checkpoints`)[0]).toBe("000005");
    expect(more.stderr).toMatch(/going on after step 5 of 6/);
    expect(metrics(first.out)).toHaveLength(6);
  });

  test("half a run on some processes and half on others ends where one process ends", () => {
    expectSame(resumed, alone);
    expectSame(fewer, alone);
  });

  test("mistakes are told, once", () => {
    expect(refused.share.stderr).toMatch(/batchSize is 8, which does not divide among 3 data-parallel processes/);
    expect(refused.grid.stderr).toMatch(/data 3 x tensor 1 x pipeline 1 is 3 processes, but 2 were started.*-np 3/);
    expect(refused.sequence.stderr).toMatch(/parallel\.sequence shares out norms .* but parallel\.tensor is 1/);
    expect(refused.heads.stderr).toMatch(/parallel\.tensor is 4, but the model has 4 heads and 2 key-value heads/);
    expect(refused.pretokenizer.stderr).toMatch(/modelType is qwen2, and tokenizer\.pretokenizer .*Set it to qwen/);
    expect(refused.layers.stderr).toMatch(/parallel\.pipeline is 2, but the model has only 1 layers/);
    const lyceum = program("../../dist/cli/main.js");
    const unknown = runRanks(2, lyceum, ["pretrain", file, "--out", `${root}/refused`, "--set", "parallel.zero=4"]);
    expect(unknown.status).not.toBe(0);
    expect(unknown.stderr.match(/parallel\.zero is 4/g)).toHaveLength(1);
  });
});
