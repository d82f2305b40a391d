/** `lyceum plan --calibrate`: memory and time of a run of Lyceum's on this machine, from its kernels as they are measured here. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openCpu } from "../device/cpu.js";
import { MODEL_TYPES, parseLlamaConfig } from "../nn/config.js";
import type { Workload } from "../plan/layout.js";
import { type MachinePrediction, predict } from "../plan/machine.js";
import type { RehearsedRun } from "../plan/rehearsal.js";
import { toYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { duration, mebibytes } from "../run/progress.js";

type Json = Record<string, unknown>;
interface Flags {
  model: string;
  json?: boolean;
}

export async function calibrated(w: Workload, config: Json | undefined, flags: Flags): Promise<void> {
  const run = rehearsedRun(w, config);
  const device = openCpu({ threads: (config?.threads as number | undefined) ?? 0 });
  const tiny: RehearsedRun = { ...run, batchSize: 1, gradientAccumulation: 1, model: smallest(run.model) };
  const small = predict(device, tiny);
  const measured =
    config && w.stage === "pretrain" && config.model ? programMemory(config, flags.model, small) : undefined;
  const program = measured ?? process.memoryUsage.rss();
  const p = predict(device, run);
  const total = program + p.memory.total;
  const steps = config?.steps as number | undefined;
  const machine = { cpu: device.cpuName, isa: device.isa, threads: device.threads };
  if (flags.json) {
    const { total: _, ...memory } = p.memory;
    const rest = { kernels: p.kernels, peakFlops: p.peakFlops, memoryBandwidth: p.memoryBandwidth };
    const times = { stepSeconds: p.stepSeconds, tokensPerSecond: p.tokensPerSecond, utilisation: p.utilisation };
    console.log(JSON.stringify({ machine, model: w.shape, program, ...memory, total, ...times, ...rest }, null, 2));
    return;
  }
  const rows: [string, number, string][] = [
    [
      "program",
      program,
      measured
        ? "measured: this configuration with the smallest model, for one step"
        : "of this process, without any data",
    ],
    ["parameters", p.memory.parameters, ""],
    ["optimizer", p.memory.optimizer, ""],
    [
      "activations",
      p.memory.activations,
      "the most that steps and evaluation ever use; gradients lie in the same memory",
    ],
    ["buffers", p.memory.buffers + p.memory.scratch, "rotary tables; scratch memory of the kernels, measured"],
    ["total", total, "peak memory"],
  ];
  console.log(
    [
      `${w.stage} of ${w.shape.name}: ${(p.parameters / 1e6).toFixed(2)}M parameters, steps of ${w.globalBatch} x ${w.contextLength} tokens, ${w.precision}`,
      `on ${machine.cpu}, ${machine.isa}, ${machine.threads} threads: ${(p.peakFlops / 1e9).toFixed(0)} GFLOP/s, ${(p.memoryBandwidth / 1e9).toFixed(1)} GB/s`,
      "",
      ...rows.map(([name, bytes, note]) => `  ${name.padEnd(12)}${mebibytes(bytes).padStart(10)}  ${note}`.trimEnd()),
      "",
      `  step        ${p.stepSeconds.toPrecision(3)} s, ${Math.round(p.tokensPerSecond)} tokens/s${steps ? `; ${steps} steps take ${duration(steps * p.stepSeconds)}` : ""}`,
      ...p.kernels
        .slice(0, 6)
        .map(
          (k) =>
            `  ${" ".repeat(12)}${k.kernel.padEnd(24)}${`${((100 * k.seconds) / p.stepSeconds).toFixed(1)}%`.padStart(6)}  ${k.calls} calls`,
        ),
    ].join("\n"),
  );
}

function rehearsedRun(w: Workload, config: Json | undefined): RehearsedRun {
  const s = w.shape;
  if (s.mlp !== "swiglu")
    throw new UserError(
      `--calibrate: Lyceum trains Llama shapes, and ${s.name} has a GPT's. Give a YAML file or a Llama config.json.`,
      2,
    );
  if (!["pretrain", "sft"].includes(w.stage))
    throw new UserError(`--calibrate predicts pretrain and sft, not ${w.stage}.`, 2);
  const parallel = config?.parallel as { data?: number; tensor?: number; pipeline?: number } | undefined;
  if (parallel && (parallel.data ?? 1) * (parallel.tensor ?? 1) * (parallel.pipeline ?? 1) > 1)
    throw new UserError(
      "--calibrate predicts one process: set parallel.data, parallel.tensor and parallel.pipeline to 1.",
      2,
    );
  if (config?.lora) throw new UserError("--calibrate does not know LoRA; leave `lora` out.", 2);
  const settings = config?.model as { maxPositionEmbeddings?: number } | undefined;
  const accumulation = (config?.gradientAccumulation as number | undefined) ?? 1;
  const model = parseLlamaConfig(
    {
      // A kind of model that can be planned for and not trained here counts as a Llama of the same sizes.
      ...(MODEL_TYPES.some((type) => type === s.modelType) && { model_type: s.modelType, sliding_window: null }),
      vocab_size: s.vocabSize,
      hidden_size: s.hiddenSize,
      intermediate_size: s.intermediateSize,
      num_hidden_layers: s.numLayers,
      num_attention_heads: s.numHeads,
      num_key_value_heads: s.numKvHeads,
      head_dim: s.headDim,
      tie_word_embeddings: s.tied,
      max_position_embeddings: settings?.maxPositionEmbeddings ?? Math.max(512, w.contextLength),
    },
    s.name,
  );
  return {
    model,
    precision: w.precision,
    batchSize: Math.max(1, Math.round(w.globalBatch / accumulation)),
    contextLength: w.contextLength,
    gradientAccumulation: accumulation,
    recompute: (config?.recompute as boolean | undefined) ?? false,
  };
}

const smallest = (m: RehearsedRun["model"]): RehearsedRun["model"] => ({
  ...m,
  hiddenSize: 16,
  intermediateSize: 16,
  numLayers: 1,
  numHeads: 1,
  numKvHeads: 1,
  headDim: 16,
});

/** Peak memory of the same run with next to no model: what the program, its libraries and its data take. */
function programMemory(config: Json, file: string, small: MachinePrediction): number {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-plan-"));
  const shape = { hiddenSize: 16, intermediateSize: 16, numLayers: 1, numHeads: 1, numKvHeads: 1, headDim: 16 };
  const set = [
    ...Object.entries(shape).map(([key, value]) => `model.${key}=${value}`),
    ...["batchSize=1", "gradientAccumulation=1", "steps=1", "samples.prompts=[]"],
  ];
  try {
    const main = fileURLToPath(new URL("./main.js", import.meta.url));
    // The stage as it was read: of a recipe it is a part, and --set has changed it.
    writeFileSync(`${dir}/pretrain.yaml`, toYaml(config));
    const args = [main, "pretrain", `${dir}/pretrain.yaml`, "--out", `${dir}/run`, ...set.flatMap((s) => ["--set", s])];
    const child = spawnSync(process.execPath, args, { encoding: "utf8" });
    const peak = /peak memory (\d+) MiB/.exec(child.stderr ?? "");
    if (!peak)
      throw new UserError(
        `--calibrate runs ${file} with the smallest model for one step, and that failed:\n${(child.stderr || String(child.error)).trim()}`,
      );
    return Number(peak[1]) * 2 ** 20 - (small.memory.total - small.memory.scratch);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
