/**
 * What is kept of a model that a stage trains: checkpoints to go on from, and what it ends with. With adapters (LoRA) a checkpoint holds
 * these, and the model it ends with has them merged.
 */
import { saveLlama } from "../nn/folder.js";
import type { Llama } from "../nn/llama.js";
import { loadAdapter, mergeLora, saveAdapter } from "../nn/lora.js";
import type { Trainer } from "../optim/trainer.js";
import type { RunFolder } from "../run/folder.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

export interface Trained {
  run: RunFolder;
  model: Llama;
  trainer: Trainer;
  tokenizer: Tokenizer;
}

/** Goes on from the checkpoint `dir`. A model without adapters was loaded from there. */
export function goOn({ model, trainer }: Pick<Trained, "model" | "trainer">, dir: string): void {
  if (model.lora) loadAdapter(model, dir);
  trainer.load(dir);
}

export function saveCheckpoint({ run, model, trainer, tokenizer }: Trained, dir: string): void {
  if (model.lora) saveAdapter(model, dir);
  else saveLlama(model, dir);
  if (run.first) tokenizer.save(dir);
  trainer.save(dir);
}

/** `more`: what config.json says beside the model's shape, asked for with the weights that are saved. */
export function saveResult(
  { run, model, trainer, tokenizer }: Trained,
  more: () => Record<string, number> = () => ({}),
): void {
  mergeLora(model);
  trainer.results(run, (dir) => {
    saveLlama(model, dir, more());
    if (run.first) tokenizer.save(dir);
  });
}
