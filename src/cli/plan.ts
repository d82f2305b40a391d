/** `lyceum plan`: memory, time and cost of a training run on a described cluster, before it starts. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { type ClusterSettings, makeCluster, readCluster } from "../plan/cluster.js";
import { simulateGrid } from "../plan/grid.js";
import { writesReplies } from "../plan/layout.js";
import { plan } from "../plan/layouts.js";
import { reportSvg } from "../plan/picture.js";
import { reportJson, reportTable } from "../plan/report.js";
import { UserError } from "../run/errors.js";
import { readSubject, type Subject } from "./plan-config.js";

export interface PlanFlags {
  model: string;
  stage?: string;
  set?: string[];
  cluster?: string;
  device?: string;
  devices?: string;
  devicesPerNode?: string;
  memory?: string;
  tflops?: string;
  intra?: string;
  inter?: string;
  price?: string;
  context?: string;
  batch?: string;
  tokens?: string;
  reply?: string;
  attention?: string;
  logits?: string;
  residentReference?: boolean;
  calibrate?: boolean;
  simulate?: string;
  json?: boolean;
  svg?: string;
}

/** Beyond these a plan takes minutes, and then longer than anyone waits. */
const MOST_DEVICES = 1_000_000;
const MOST_SIMULATED = 10_000;

export async function command(flags: PlanFlags): Promise<void> {
  const subject = await readSubject(flags.model, flags.stage, flags.set ?? []);
  if (flags.calibrate) {
    const { calibrated } = await import("./plan-machine.js");
    return calibrated(described(subject, flags, 1), subject.config, flags);
  }
  const cluster = makeCluster(clusterSettings(flags));
  const most = flags.simulate === undefined ? MOST_DEVICES : MOST_SIMULATED;
  if (cluster.devices > most)
    throw new UserError(
      `The cluster has ${cluster.devices} devices; ${flags.simulate === undefined ? "plans are made for" : "--simulate is for"} ${most} at most.`,
      2,
    );
  const w = described(subject, flags, cluster.devices);
  const tokens = flags.tokens === undefined ? budget(subject) : number("--tokens", flags.tokens);
  const planned = plan(w, cluster);
  const jitter = flags.simulate === undefined ? undefined : share("--simulate", flags.simulate);
  const { chosen } = planned;
  const simulated = jitter !== undefined && chosen ? simulateGrid(w, chosen.layout, cluster, jitter) : undefined;
  const report = { workload: w, cluster, plan: planned, tokens, simulated };
  if (flags.svg) {
    try {
      mkdirSync(dirname(flags.svg), { recursive: true });
      writeFileSync(flags.svg, reportSvg(report));
    } catch (error) {
      throw new UserError(`--svg ${flags.svg} cannot be written: ${(error as Error).message}.`);
    }
  }
  console.log(flags.json ? JSON.stringify(reportJson(report), null, 2) : reportTable(report));
  if (flags.svg) console.error(`picture: ${flags.svg}`);
}

/** The file's description, with flags over it. */
function clusterSettings(f: PlanFlags): ClusterSettings {
  if (f.cluster && f.device)
    throw new UserError(
      `--cluster ${f.cluster} describes a device, and --device ${f.device} is another: leave one out. The key \`device\` of the file says which device its numbers start from.`,
      2,
    );
  const some = {
    device: f.device,
    devices: whole("--devices", f.devices),
    devicesPerNode: whole("--devices-per-node", f.devicesPerNode),
    memoryGB: maybe("--memory", f.memory),
    tflops: maybe("--tflops", f.tflops),
    intraBandwidthGBps: maybe("--intra", f.intra),
    interBandwidthGBps: maybe("--inter", f.inter),
    pricePerHour: maybe("--price", f.price),
  };
  const given = Object.fromEntries(Object.entries(some).filter(([, v]) => v !== undefined));
  return { ...(f.cluster ? readCluster(f.cluster) : {}), ...given };
}

/** The subject's own workload, with flags over it. A name or a bare model has a batch of 512 sequences, or one for each device. */
function described({ workload: w, config }: Subject, f: PlanFlags, devices: number) {
  const contextLength = whole("--context", f.context) ?? w.contextLength;
  const replyLength =
    whole("--reply", f.reply) ?? (f.context && !config ? Math.floor(contextLength / 2) : w.replyLength);
  if (writesReplies(w) && replyLength >= contextLength)
    throw new UserError(
      `--reply ${replyLength} must be less than the context of ${contextLength} tokens: the context holds the prompt too.`,
      2,
    );
  return {
    ...w,
    contextLength,
    replyLength,
    globalBatch: whole("--batch", f.batch) ?? (config ? w.globalBatch : Math.ceil(512 / devices) * devices),
    attention: oneOf("--attention", f.attention, ["blocked", "full"] as const) ?? w.attention,
    logits: oneOf("--logits", f.logits, ["chunked", "full"] as const) ?? w.logits,
    residentReference: f.residentReference ?? w.residentReference,
  };
}

/** Without a number of tokens: what the YAML file's steps come to, or for pretraining 20 a parameter (Hoffmann et al. 2022). */
function budget({ workload: w, config }: Subject): number | undefined {
  const steps = config?.steps as number | undefined;
  if (steps) return steps * w.globalBatch * w.contextLength;
  return w.stage === "pretrain" && !config ? 20 * w.shape.parameters : undefined;
}

function number(flag: string, text: string): number {
  const match = /^(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMBGT]?)$/i.exec(text.trim());
  const value = match
    ? Number(match[1]) * { "": 1, K: 1e3, M: 1e6, B: 1e9, G: 1e9, T: 1e12 }[match[2].toUpperCase()]!
    : 0;
  if (!(value > 0))
    throw new UserError(`${flag} is "${text}"; it must be a number above 0, such as 512, 300B or 1T.`, 2);
  return value;
}
const maybe = (flag: string, text: string | undefined): number | undefined =>
  text === undefined ? undefined : number(flag, text);
function whole(flag: string, text: string | undefined): number | undefined {
  const value = maybe(flag, text);
  if (value !== undefined && !Number.isInteger(value))
    throw new UserError(`${flag} is "${text}"; it must be a whole number.`, 2);
  return value;
}
function share(flag: string, text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !(value >= 0 && value <= 1))
    throw new UserError(`${flag} is "${text}"; it must be a share from 0 to 1, such as 0.03.`, 2);
  return value;
}
function oneOf<T extends string>(flag: string, text: string | undefined, options: readonly T[]): T | undefined {
  if (text === undefined) return undefined;
  const found = options.find((o) => o === text);
  if (!found) throw new UserError(`${flag} is "${text}"; it must be ${options.join(" or ")}.`, 2);
  return found;
}
