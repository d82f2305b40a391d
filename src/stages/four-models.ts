/**
 * The four models of PPO (notes 4.2.3) as one thing that is loaded, measured, saved and closed. Actor and critic are trained, each
 * with an optimizer and a schedule of its own; reference and reward model are frozen: no gradients, no optimizer state. With
 * LoRA the reference is the actor without its adapters.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import type { Device } from "../device/device.js";
import { loadLlama, saveLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { attachLora, withoutLora } from "../nn/lora.js";
import { Trainer } from "../optim/trainer.js";
import type { Grid } from "../parallel/grid.js";
import { UserError } from "../run/errors.js";
import type { RunFolder } from "../run/folder.js";
import { isRewardModule } from "../run/named.js";
import { mebibytes } from "../run/progress.js";
import { holding } from "../tensor/parameters.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import { goOn, saveCheckpoint, saveResult, type Trained } from "./checkpoint.js";
import { checkReads, type Judge, openJudge, type Policy, rewardMean } from "./judge.js";
import type { PpoConfig } from "./ppo-config.js";

/** What a resumed run must know besides weights and optimizer states. */
export interface PpoState {
  klCoef: number;
  /** Mean reward of the model that the critic began as, which its values are above and scores are told without; 0 for a critic that began otherwise. */
  criticMean: number;
}

export class FourModels {
  private constructor(
    readonly actor: Llama,
    readonly critic: Llama,
    /** Undefined with LoRA. */
    private readonly frozen: Llama | undefined,
    /** The reward model, or a function. */
    readonly judge: Judge,
    readonly actorTrainer: Trainer,
    readonly criticTrainer: Trainer,
    readonly state: PpoState,
    private readonly tokenizer: Tokenizer,
  ) {}

  /** `updates`: of the whole run, for the schedules. `resumed`: the folder of a checkpoint. What is opened is closed with the run. */
  static async open(
    device: Device,
    grid: Grid,
    config: PpoConfig,
    policy: Policy,
    updates: number,
    run: RunFolder,
    resumed?: string,
  ): Promise<FourModels> {
    const { from, precision, seed, lora, recompute } = config;
    const judge = run.own(await openJudge(config.reward, device, precision, policy, grid));
    if (config.critic) checkReads("critic", config.critic, policy);
    const actor = run.own(loadLlama(device, resumed && !lora ? resumed : from, precision, { grid }));
    if (lora) attachLora(actor, lora, seed);
    const frozen = lora
      ? undefined
      : run.own(loadLlama(device, from, precision, { trainable: false, grid, name: "ref" }));
    // A critic that starts as the reward model knows at once what a finished reply is worth. A function has no weights to
    // start from: then it is the SFT model, with a head that begins by expecting nothing.
    const isModule = isRewardModule(config.reward);
    const start = config.critic ?? (isModule ? from : config.reward);
    const critic = run.own(
      loadLlama(device, resumed ? `${resumed}/critic` : start, precision, { head: "scalar", seed, grid }),
    );
    const beginsAtZero = config.criticHeadZero || (isModule && !config.critic);
    if (!resumed && beginsAtZero)
      for (const t of critic.parameters.named(true))
        if (t.name.startsWith("score")) device.fill(t.ptr, 0, t.size, critic.parameters.dtype);
    actor.recompute = critic.recompute = recompute;

    const state: PpoState = resumed
      ? readState(resumed)
      : { klCoef: config.klCoef, criticMean: beginsAtZero ? 0 : rewardMean(start) };
    const { checkEvery } = config.parallel;
    const actorTrainer = run.own(
      new Trainer(actor.trainable, config.optimizer, config.schedule, updates, {
        memory: grid.stateMemory("actor"),
        checkEvery,
      }),
    );
    const criticTrainer = run.own(
      new Trainer(critic.trainable, config.criticOptimizer, config.criticSchedule, updates, {
        memory: grid.stateMemory("critic"),
        checkEvery,
      }),
    );
    if (resumed) {
      goOn({ model: actor, trainer: actorTrainer }, resumed);
      criticTrainer.load(resumed, "critic-optimizer");
    }
    return new FourModels(actor, critic, frozen, judge, actorTrainer, criticTrainer, state, policy.tokenizer);
  }

  /** What the reference is asked for. */
  withReference<T>(ask: (reference: Llama) => T): T {
    return this.frozen ? ask(this.frozen) : withoutLora(this.actor, () => ask(this.actor));
  }

  /** While `work` runs, weights that lie elsewhere (ZeRO-3, offload) are here. */
  holding<T>(work: () => Promise<T>): Promise<T> {
    return holding(
      [this.actor, this.critic, this.frozen].flatMap((m) => m?.parameters ?? []),
      work,
    );
  }

  /** Their sizes: trained parameters count 16 bytes, as in the notes, frozen ones 2 (in fp32: 16 and 4). */
  memory(): string {
    const width = this.actor.precision === "bf16" ? 2 : 4;
    const trained = (m: Llama): number => m.parameters.count * width + m.trainable.count * (16 - width);
    const bytes = {
      actor: trained(this.actor),
      critic: trained(this.critic),
      ref: (this.frozen?.parameters.count ?? 0) * width,
      reward: this.judge.bytes,
    };
    const list = Object.entries(bytes).map(([name, n]) => `${name} ${n > 0 ? mebibytes(n) : "none of its own"}`);
    return `models: ${list.join(", ")}; ${mebibytes(Object.values(bytes).reduce((a, b) => a + b, 0))} in all`;
  }

  stateBytes(): number {
    return this.actorTrainer.stateBytes() + this.criticTrainer.stateBytes();
  }

  save(dir: string, run: RunFolder): void {
    saveCheckpoint(this.trained(run), dir);
    saveLlama(this.critic, `${dir}/critic`);
    this.criticTrainer.save(dir, "critic-optimizer");
    if (run.first) writeFileSync(`${dir}/state.json`, JSON.stringify(this.state));
  }

  /** The aligned model is the actor. */
  result(run: RunFolder): void {
    saveResult(this.trained(run));
  }

  private trained(run: RunFolder): Trained {
    return { run, model: this.actor, trainer: this.actorTrainer, tokenizer: this.tokenizer };
  }
}

function readState(dir: string): PpoState {
  const path = `${dir}/state.json`;
  if (!existsSync(path))
    throw new UserError(
      `${path} is missing: the checkpoint is not whole. Remove its folder, and --resume takes the one before.`,
    );
  const { klCoef, criticMean = 0 } = JSON.parse(readFileSync(path, "utf8")) as Partial<PpoState> & { klCoef: number };
  return { klCoef, criticMean };
}
