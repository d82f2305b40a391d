/**
 * Training on several ranks against one process: the same losses and parameters, in every mode. Runs the built program
 * (dist/) under mpirun, one engine thread a rank.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { expect, test } from "vitest";
import { openSafetensors } from "../../src/run/safetensors.js";
import { hasMpi, program, runRanks } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-parallel-`);
const lyceum = program("../../dist/cli/main.js");

// Documents of a few made words: small, and with enough order in them that the loss falls.
const words = ["sun", "moon", "star", "rise", "set", "shine", "bright", "dark", "over", "under", "sea", "hill"];
const documents = Array.from({ length: 160 }, (_, i) =>
  Array.from({ length: 12 + (i % 9) }, (_, j) => words[(i * 7 + j * (1 + (i % 5))) % words.length]).join(" "),
);
writeFileSync(`${root}/text.jsonl`, documents.map((text) => `${JSON.stringify({ text })}\n`).join(""));
writeFileSync(
  `${root}/pretrain.yaml`,
  `seed: 3
model: { hiddenSize: 32, intermediateSize: 64, numLayers: 4, numHeads: 4, numKvHeads: 2 }
tokenizer: { vocabSize: 300 }
data: { train: [text.jsonl], contextLength: 32 }
batchSize: 8
steps: 10
precision: fp32
threads: 1
evalEvery: 0
samples: { prompts: ["sun"], maxTokens: 4 }
`,
);

let runs = 0;
interface Result {
  dir: string;
  stderr: string;
  status: number | null;
  rows: Record<string, unknown>[];
}
/** Trains; `settings` as after --set. One rank runs without mpirun. */
function train(ranks: number, settings: string[], options: { resume?: string; stage?: string } = {}): Result {
  const dir = options.resume ?? `${root}/run${++runs}`;
  const stage = options.stage ?? "pretrain";
  const args = [stage, `${root}/${stage}.yaml`, "--out", dir];
  if (options.resume) args.push("--resume");
  if (settings.length > 0) args.push("--set", ...settings);
  const { status, stderr } = runRanks(ranks, lyceum, args, { LYCEUM_MPI_TIMEOUT: "20" });
  const path = `${dir}/metrics.jsonl`;
  const rows =
    status === 0
      ? readFileSync(path, "utf8")
          .trim()
          .split("\n")
          .map((row) => JSON.parse(row))
      : [];
  return { dir, stderr, status, rows };
}

function tensors(dir: string): Map<string, Float32Array> {
  const file = openSafetensors(dir);
  const all = new Map<string, Float32Array>();
  for (const name of file.names()) {
    const bytes = new Uint8Array(file.info(name).bytes);
    file.readInto(name, bytes);
    all.set(name, new Float32Array(bytes.buffer));
  }
  file.close();
  return all;
}
/** Largest relative distance of a tensor (norm of the difference over the norm). */
function distance(a: Map<string, Float32Array>, b: Map<string, Float32Array>): number {
  expect([...a.keys()].sort()).toEqual([...b.keys()].sort());
  let worst = 0;
  for (const [name, x] of a) {
    const y = b.get(name)!;
    expect(x.length, name).toBe(y.length);
    let [difference, norm] = [0, 0];
    x.forEach((v, i) => {
      difference += (v - y[i]) ** 2;
      norm += v * v;
    });
    worst = Math.max(worst, Math.sqrt(difference / norm));
  }
  return worst;
}
const losses = (r: Result): number[] => r.rows.map((row) => row.loss as number);

const alone = hasMpi ? train(1, []) : undefined;
const untied = "model.tieWordEmbeddings=false";
const aloneUntied = hasMpi ? train(1, [untied]) : undefined;

/** Losses and parameters equal those of one process to 1e-5. */
function expectSame(run: Result, reference: Result | undefined): void {
  expect(run.stderr).not.toMatch(/error/);
  expect(run.status).toBe(0);
  const expected = losses(reference!);
  expect(run.rows).toHaveLength(10);
  for (const [i, loss] of losses(run).entries())
    expect(Math.abs(loss / expected[i] - 1), `step ${i + 1}`).toBeLessThan(1e-5);
  expect(distance(tensors(`${run.dir}/model`), tensors(`${reference!.dir}/model`))).toBeLessThan(1e-5);
}

test.runIf(hasMpi).each([
  ["data parallel", 2, []],
  ["data parallel on 4", 4, []],
  ["ZeRO-1", 2, ["parallel.zero=1"]],
  ["ZeRO-2", 2, ["parallel.zero=2"]],
  ["ZeRO-3", 2, ["parallel.zero=3"]],
  ["ZeRO-3 on 4", 4, ["parallel.zero=3"]],
  ["ZeRO-3 with recomputation", 2, ["parallel.zero=3", "recompute=true"]],
  ["ZeRO-2 with accumulation", 2, ["parallel.zero=2", "batchSize=2", "gradientAccumulation=4"]],
  ["tensor parallel", 2, ["parallel.tensor=2"]],
  ["tensor parallel, untied", 2, ["parallel.tensor=2", untied]],
  ["pipeline", 2, ["parallel.pipeline=2", "batchSize=2", "gradientAccumulation=4"]],
  [
    "pipeline of 4, GPipe",
    4,
    ["parallel.pipeline=4", "parallel.schedule=gpipe", "batchSize=2", "gradientAccumulation=4"],
  ],
  ["pipeline, untied", 2, ["parallel.pipeline=2", untied]],
  ["data x tensor", 4, ["parallel.tensor=2"]],
  ["pipeline x tensor", 4, ["parallel.pipeline=2", "parallel.tensor=2", "batchSize=4", "gradientAccumulation=2"]],
  ["ZeRO-2 x tensor", 4, ["parallel.tensor=2", "parallel.zero=2"]],
  ["ZeRO-3 x pipeline", 4, ["parallel.pipeline=2", "parallel.zero=3", "batchSize=4", "gradientAccumulation=2"]],
  ["offload of one process", 1, ["parallel.zero=3", "parallel.offload=disk"]],
  ["ZeRO-3 with offload", 2, ["parallel.zero=3", "parallel.offload=disk"]],
] as [string, number, string[]][])("%s equals one process", (_, ranks, settings) => {
  expectSame(train(ranks, settings), settings.includes(untied) ? aloneUntied : alone);
});

test.runIf(hasMpi)("data parallelism and all stages of ZeRO end with the same bits, in bf16 too", () => {
  for (const precision of ["fp32", "bf16"]) {
    const [plain, ...zero] = [0, 1, 2, 3].map((stage) =>
      tensors(`${train(2, [`precision=${precision}`, `parallel.zero=${stage}`]).dir}/model`),
    );
    for (const model of zero) for (const [name, x] of plain) expect(model.get(name)).toEqual(x);
  }
});

test.runIf(hasMpi)("bytes held and sent are those of the ZeRO paper", () => {
  const ranks = 4;
  // Two percent is what the padding of units and the vectors may add; so the model is not the tiniest.
  const size = ["precision=bf16", "model.hiddenSize=128", "model.intermediateSize=256", "steps=2"];
  for (const stage of [0, 1, 2, 3]) {
    const { rows, dir } = train(ranks, [...size, `parallel.zero=${stage}`]);
    const P = [...tensors(`${dir}/model`).values()].reduce((n, x) => n + x.length * 2, 0); // bf16: two in a float's bytes
    const formula = [16 * P, 4 * P + (12 * P) / ranks, 2 * P + (14 * P) / ranks, (16 * P) / ranks][stage];
    const { modelStateBytes, bytesSent } = rows[1] as { modelStateBytes: number[]; bytesSent: number[] };
    expect(modelStateBytes).toHaveLength(ranks);
    for (const bytes of modelStateBytes) expect(Math.abs(bytes / formula - 1)).toBeLessThan(0.02);
    // A reduce-scatter and an all-gather of 2 bytes a parameter; with stage 3 parameters are gathered forward and backward.
    const share = (ranks - 1) / ranks;
    const once = 2 * P * share;
    const layers = [...tensors(`${dir}/model`)].filter(([name, x]) => name.includes(".layers.") && x.length > 64);
    const again = stage === 3 ? layers.slice(0, -7).reduce((n, [, x]) => n + 4 * x.length, 0) * share : 0;
    for (const bytes of bytesSent)
      expect(Math.abs(bytes / (2 * once + again) - 1), `stage ${stage}`).toBeLessThan(0.03);
  }
});

test.runIf(hasMpi)("a checkpoint of any layout goes on in any other", { timeout: 400_000 }, () => {
  const half = ["saveEvery=5"];
  for (const [first, then] of [
    [
      [2, ["parallel.zero=3"]],
      [1, []],
    ],
    [
      [1, []],
      [2, ["parallel.zero=3"]],
    ],
    [
      [4, ["parallel.zero=1", "parallel.tensor=2"]],
      [1, []],
    ],
    [
      [2, ["parallel.pipeline=2"]],
      [2, ["parallel.zero=2", "parallel.tensor=2"]],
    ],
  ] as [[number, string[]], [number, string[]]][]) {
    const run = train(first[0], [...half, ...first[1], "steps=5"]);
    expect(run.status).toBe(0);
    expect(readdirSync(`${run.dir}/checkpoints`)).toEqual(["000005"]);
    const before = tensors(`${run.dir}/checkpoints/000005`);
    // No step is left to do: the model that is written is what was loaded, to the bit.
    const again = train(then[0], [...half, ...then[1], "steps=5"], { resume: run.dir });
    expect(again.status).toBe(0);
    expect(tensors(`${run.dir}/model`)).toEqual(before);
    const more = train(then[0], [...half, ...then[1], "steps=6"], { resume: run.dir });
    expect(more.stderr).toMatch(/going on after step 5 of 6/);
    expect(more.rows).toHaveLength(6);
  }
});

test.runIf(hasMpi)("half a run on two processes and half on one end where one process ends", () => {
  const killed = train(2, ["saveEvery=5", "parallel.zero=3", "keepCheckpoints=9"]);
  expect(killed.status).toBe(0);
  // As if the job had died after step 5: the later checkpoint and the result are gone.
  const dir = `${root}/resumed`;
  mkdirSync(dir);
  const copy = (name: string): void => {
    const from = `${killed.dir}/${name}`;
    const to = `${dir}/${name}`;
    mkdirSync(to, { recursive: true });
    for (const entry of readdirSync(from, { withFileTypes: true }))
      if (entry.isDirectory()) copy(`${name}/${entry.name}`);
      else writeFileSync(`${to}/${entry.name}`, readFileSync(`${from}/${entry.name}`));
  };
  copy("checkpoints/000005");
  copy("data");
  writeFileSync(`${dir}/config.yaml`, readFileSync(`${killed.dir}/config.yaml`));
  writeFileSync(`${dir}/metrics.jsonl`, readFileSync(`${killed.dir}/metrics.jsonl`));
  expectSame(train(1, [], { resume: dir }), alone);
});

test.runIf(hasMpi)("mistakes are told", () => {
  const odd = train(3, []);
  expect(odd.status).not.toBe(0);
  expect(odd.stderr).toMatch(/batchSize is 8, which does not divide among 3 data-parallel processes/);
  const grid = train(2, ["parallel.data=3"]);
  expect(grid.stderr).toMatch(/data 3 x tensor 1 x pipeline 1 is 3 processes, but 2 were started.*mpirun -np 3/);
  const unknown = train(2, ["parallel.zero=4"]);
  expect(unknown.stderr.match(/parallel\.zero is 4/g)).toHaveLength(1); // said once, not by every process
});
