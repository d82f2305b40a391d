/** `lyceum profile`: runs some steps of a stage on a device that times every kernel, and says where the time went. */
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { openCpu, watchKernels } from "../device/cpu.js";
import { peakFlops } from "../device/peak.js";
import { type KernelEvent, peakBandwidth, profiled } from "../device/profile.js";
import { type ConfigSource, check, overridden, readYaml } from "../run/config.js";
import { UserError } from "../run/errors.js";
import { RunFolder } from "../run/folder.js";
import { STAGES } from "../stages/registry.js";
import { whole } from "./flags.js";
import { locate } from "./stage.js";
import { coveredStage, stageOf } from "./stage-of.js";

export interface ProfileFlags {
  steps: string;
  stage?: string;
  set?: string[];
  trace?: string;
  json?: boolean;
}

/** Steps before the measured ones, and one after them: evaluation comes with the last step, and is not to be measured. */
const WARM_UP = 2;
const CLOSING = 1;

/** What one kernel, or one shape of a product, did in the measured steps; times in seconds a step. */
interface Row {
  kernel: string;
  calls: number;
  seconds: number;
  share: number;
  gflops: number;
  gbytes: number;
  /** The least time that arithmetic or memory allow, over the time taken. */
  roofline: number;
}

export async function command(file: string, flags: ProfileFlags): Promise<void> {
  const steps = whole("--steps", flags.steps, 1);
  const source = readYaml(file);
  const name = await stageIn(overridden(source, flags.set ?? []), flags.stage);
  const overrides = [
    ...(flags.set ?? []),
    `steps=${steps + WARM_UP + CLOSING}`,
    "evalEvery=0",
    "saveEvery=0",
    "logEvery=1000000",
  ];
  const given = overridden(source, overrides);
  const value = locate(given.value, dirname(file));
  const { schema, run } = STAGES[name];
  const config = check(schema, { ...given, value }) as { precision: "bf16" | "fp32"; threads: number };
  if (flags.trace) appendFileSync(flags.trace, ""); // whether it can be written is better known before

  const plain = openCpu({ threads: config.threads });
  const peaks = { flops: peakFlops(plain, config.precision), bandwidth: peakBandwidth(plain) };
  let events: KernelEvent[] = [];
  watchKernels((device) => profiled(device, (event) => events.push(event)));
  const dir = mkdtempSync(join(tmpdir(), "lyceum-profile-"));
  const folder = RunFolder.open(dir, config, { keepCheckpoints: 1 });
  // The events since the last step are this one's, but for those after it was done: the peak may be measured again, and evaluation comes then.
  const kept: KernelEvent[] = [];
  let seconds = 0;
  let tokens = 0;
  folder.onStep = (step, values, done) => {
    const took = values.seconds as number;
    if (step > WARM_UP && step <= WARM_UP + steps) {
      for (const e of events) if (e.start < done) kept.push(e);
      seconds += took;
      tokens += took * (values.tokensPerSecond as number);
    }
    events = [];
  };
  try {
    await run(config, folder);
  } finally {
    watchKernels((device) => device);
    folder.close();
    rmSync(dir, { recursive: true, force: true });
  }
  const rows = summary(kept, (e) => e.kernel, steps, seconds / steps, peaks);
  const products = kept.filter((e) => e.shape !== undefined);
  const inKernels = rows.reduce((n, r) => n + r.seconds, 0);
  const result = {
    steps,
    secondsPerStep: seconds / steps,
    tokensPerSecond: tokens / seconds,
    outsideKernels: Math.max(0, seconds / steps - inKernels),
    peakGflops: peaks.flops / 1e9,
    peakGbytes: peaks.bandwidth / 1e9,
    kernels: rows,
    products: summary(products, shapesOf(products), steps, seconds / steps, peaks),
  };
  console.log(flags.json ? JSON.stringify(result) : table(result));
  if (flags.trace) writeFileSync(flags.trace, JSON.stringify({ traceEvents: kept.map(traceEvent) }));
}

/** The stages that train in steps. */
const COVERED = { stages: ["pretrain", "sft", "reward", "dpo", "ppo", "grpo"], says: "profile measures steps of" };

/** What --stage says, or the file. */
async function stageIn({ file, value }: ConfigSource, wanted: string | undefined): Promise<string> {
  const settings = value as Record<string, unknown>;
  if (settings.stages !== undefined)
    throw new UserError(
      `${file} is a recipe of several stages; profile measures one stage: put its settings in a file of their own.`,
      2,
    );
  return wanted === undefined
    ? stageOf(file, settings, COVERED)
    : coveredStage(wanted, `--stage is "${wanted}"`, COVERED);
}

/**
 * How a product is listed: shapes that differ in the number of tokens only are one, from the least to the most. (Where samples are packed, or replies are as
 * long as they come, every step has other numbers.) Tokens are a product's rows; in the gradient of a matrix they are its inner dimension.
 */
function shapesOf(products: readonly KernelEvent[]): (event: KernelEvent) => string {
  const parts = (e: KernelEvent): [string, number, string] => {
    const [, rows, columns, inner, form] = (e.shape as string).match(/^(\d+)x(\d+)x(\d+)(.*)$/) as string[];
    return form.startsWith(" t")
      ? [`${rows}x${columns}x`, Number(inner), form]
      : ["", Number(rows), `x${columns}x${inner}${form}`];
  };
  const tokens = new Map<string, [number, number]>();
  for (const e of products) {
    const [before, n, after] = parts(e);
    const [least, most] = tokens.get(before + after) ?? [n, n];
    tokens.set(before + after, [Math.min(least, n), Math.max(most, n)]);
  }
  return (e) => {
    const [before, , after] = parts(e);
    const [least, most] = tokens.get(before + after) as [number, number];
    return `${before}${least === most ? least : `${least}-${most}`}${after}`;
  };
}

function summary(
  events: readonly KernelEvent[],
  by: (event: KernelEvent) => string,
  steps: number,
  perStep: number,
  peaks: { flops: number; bandwidth: number },
): Row[] {
  const byKernel = new Map<string, KernelEvent[]>();
  for (const e of events) {
    const list = byKernel.get(by(e));
    if (list) list.push(e);
    else byKernel.set(by(e), [e]);
  }
  return [...byKernel]
    .map(([kernel, all]) => {
      const sum = (f: (e: KernelEvent) => number): number => all.reduce((n, e) => n + f(e), 0);
      const seconds = sum((e) => e.duration) / 1000;
      const least = sum((e) => Math.max(e.flops / peaks.flops, e.bytes / peaks.bandwidth));
      return {
        kernel,
        calls: all.length / steps,
        seconds: seconds / steps,
        share: seconds / steps / perStep,
        gflops: sum((e) => e.flops) / seconds / 1e9,
        gbytes: sum((e) => e.bytes) / seconds / 1e9,
        roofline: least / seconds,
      };
    })
    .sort((a, b) => b.seconds - a.seconds);
}

const traceEvent = (e: KernelEvent): object => ({
  name: e.kernel,
  ph: "X",
  ts: e.start * 1000,
  dur: e.duration * 1000,
  pid: 1,
  tid: 1,
  args: { ...(e.shape && { shape: e.shape }), gflops: e.flops / e.duration / 1e6, gbytes: e.bytes / e.duration / 1e6 },
});

function table(r: {
  secondsPerStep: number;
  tokensPerSecond: number;
  outsideKernels: number;
  peakGflops: number;
  peakGbytes: number;
  kernels: Row[];
  products: Row[];
}): string {
  const ms = (s: number): string => (s * 1000).toFixed(2).padStart(9);
  const percent = (x: number): string => `${(100 * x).toFixed(1)}%`.padStart(8);
  const number = (x: number): string => x.toFixed(1).padStart(9);
  const line = (k: Row): string =>
    `${k.kernel.padEnd(24)}${String(Math.round(k.calls)).padStart(6)}${ms(k.seconds)}${percent(k.share)}${number(k.gflops)}${number(k.gbytes)}${percent(k.roofline)}`;
  return [
    `a step takes ${(r.secondsPerStep * 1000).toFixed(1)} ms (${Math.round(r.tokensPerSecond)} tokens/s); this processor reaches ${r.peakGflops.toFixed(0)} GFLOP/s and ${r.peakGbytes.toFixed(1)} GB/s at best (of roof: how near a kernel comes to what these allow)`,
    "",
    `${"kernel".padEnd(24)}${"calls".padStart(6)}${"ms".padStart(9)}${"share".padStart(8)}${"GFLOP/s".padStart(9)}${"GB/s".padStart(9)}${"of roof".padStart(8)}`,
    ...r.kernels.map(line),
    `${"outside kernels".padEnd(24)}${"".padStart(6)}${ms(r.outsideKernels)}${percent(r.outsideKernels / r.secondsPerStep)}`,
    "",
    "matmul by shape: rows x columns x inner; t: that operand is stored transposed",
    ...r.products.map(line),
  ].join("\n");
}
