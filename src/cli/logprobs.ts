/** `lyceum logprobs`: log p of token i given those before it. */
import { openCpu } from "../device/cpu.js";
import { loadLlama } from "../nn/folder.js";
import { packSequences } from "../nn/llama.js";
import { UserError } from "../run/errors.js";
import { Tape } from "../tensor/tensor.js";
import { precision } from "./flags.js";

export function logprobs(dir: string, options: { ids: string; precision: string; json?: boolean }): void {
  const kind = precision(options.precision);
  const ids = options.ids.split(",").map((s) => (/^\s*\d+\s*$/.test(s) ? Number(s) : Number.NaN));
  const bad = ids.findIndex((id) => Number.isNaN(id));
  if (bad >= 0)
    throw new UserError(`--ids: entry ${bad + 1} is not a token id. Give whole numbers separated by commas.`, 2);
  const model = loadLlama(openCpu(), dir, kind, { trainable: false });
  const large = ids.find((id) => id >= model.config.vocabSize);
  if (large !== undefined)
    throw new UserError(`--ids: ${large} is beyond the model's vocabulary of ${model.config.vocabSize}.`, 2);
  if (ids.length > model.config.maxPositionEmbeddings)
    throw new UserError(
      `--ids: ${ids.length} tokens are more than the model's context of ${model.config.maxPositionEmbeddings}.`,
      2,
    );
  const targets = Int32Array.from(ids, (_, i) => ids[i + 1] ?? -1);
  const logp = model.logProbs(new Tape(model.device, false), packSequences([ids]), targets).toArray();
  const result = ids.map((_, i) => (i === 0 ? null : logp[i - 1]));
  console.log(options.json ? JSON.stringify(result) : result.map((p, i) => `${ids[i]}\t${p ?? ""}`).join("\n"));
}
