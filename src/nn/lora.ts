/**
 * LoRA (Hu et al. 2021): y = x W^T + (alpha / rank) (x A^T) B^T with W frozen, A[rank, in] normal, B[out, rank] zero.
 * An adapter sits on a whole stored matrix: on "qkv" it adapts queries, keys and values together.
 *
 * The base model has never seen the tokens that a chat template adds: their rows begin as the mean of the others (or as what lies in unused ones).
 * With the matrices frozen it could not learn to write them, and no reply would end. So these rows of the table and of the output matrix are trained too.
 */
import type { Device } from "../device/device.js";
import { UserError } from "../run/errors.js";
import { openSafetensors, SharedWriter } from "../run/safetensors.js";
import type { LORA_TARGETS } from "../run/settings.js";
import { ParameterSet, type ParameterSpec } from "../tensor/parameters.js";
import { dtypeOf } from "../tensor/tensor.js";
import { inMatrix, type LoraAdapter } from "./adapter.js";
import type { Llama } from "./llama.js";

export type LoraTarget = (typeof LORA_TARGETS)[number];
export interface LoraConfig {
  rank: number;
  alpha: number;
  targets: readonly LoraTarget[];
}

const NEW_ROWS = ".new_rows";
const PATTERNS: Record<LoraTarget, RegExp> = {
  qkv: /q_proj/,
  o_proj: /o_proj/,
  gate_up: /gate_proj/,
  down_proj: /down_proj/,
};

/**
 * Puts adapters beside the chosen matrices and freezes the model. `tokens`: ids that are new to the model, from .. to - 1, whose rows are
 * trained too.
 */
export function attachLora(model: Llama, config: LoraConfig, seed: number, tokens = { from: 0, to: 0 }): void {
  if (model.grid.tensor.size * model.grid.pipeline.size > 1)
    throw new UserError(
      "Adapters (lora) sit on whole matrices: they can be trained with parallel.data and parallel.zero, not with parallel.tensor or parallel.pipeline.",
      2,
    );
  const chosen = model.parameters.parameters.filter(
    (p) => p.shape.length === 2 && config.targets.some((t) => PATTERNS[t].test(p.name)),
  );
  const specs: ParameterSpec[] = chosen.flatMap((p): ParameterSpec[] => [
    {
      shape: [config.rank, p.shape[1]],
      parts: [{ name: `${p.name}.lora_A`, rows: config.rank }],
      init: "normal",
      unit: "adapters",
    },
    {
      shape: [p.shape[0], config.rank],
      parts: [{ name: `${p.name}.lora_B`, rows: p.shape[0] }],
      init: "zeros",
      unit: "adapters",
    },
  ]);
  const { from, to } = tokens;
  const matrices = to > from && model.head === "lm" ? new Set([model.embeddings!, model.outputMatrix!]) : [];
  for (const { name, shape } of matrices)
    specs.push({
      shape: [to - from, shape[1]],
      parts: [{ name: `${name}${NEW_ROWS}`, rows: to - from }],
      init: "zeros",
      unit: "new tokens",
    });
  const parameters = new ParameterSet(
    model.device as Device,
    dtypeOf(model.precision),
    specs,
    true,
    model.grid.keeper("adapters"),
  );
  parameters.storage.writer = model.grid.writer;
  parameters.initialize(seed, 1 / Math.sqrt(model.config.hiddenSize));
  for (const p of model.parameters.parameters) p.requiresGrad = false;
  const factors = new Map(
    chosen.map((p, i) => [p, { A: parameters.parameters[2 * i], B: parameters.parameters[2 * i + 1] }]),
  );
  const trained = parameters.parameters.slice(2 * chosen.length);
  const rows = new Map([...matrices].map((matrix, i) => [matrix, { from, trained: trained[i] }]));
  if (rows.size > 0) copyNewRows(model, parameters, rows, "from the model");
  model.lora = { scale: config.alpha / config.rank, parameters, factors, rows };
}

/** Copies the rows of new tokens, wherever the two sets keep their values. */
function copyNewRows(
  model: Llama,
  parameters: ParameterSet,
  rows: LoraAdapter["rows"],
  way: "from the model" | "into the model",
): void {
  const into = way === "into the model";
  const unit = parameters.unit("new tokens");
  parameters.keeper.open(unit);
  for (const [matrix, r] of rows) {
    const { keeper, units } = model.parameters;
    const of = units.find((u) => u.parameters.includes(matrix))!;
    keeper.open(of);
    const { own, copy } = inMatrix(matrix, r);
    if (into) copy.set(own);
    else own.set(copy);
    keeper.close(of, into);
  }
  parameters.keeper.close(unit, !into);
}

/** Adds every adapter into its matrix (W += scale B A), puts rows of new tokens there, and removes the adapters: the export is a plain model. */
export function mergeLora(model: Llama): void {
  const { lora, device } = model;
  if (!lora) return;
  const { keeper, units } = model.parameters;
  lora.parameters.keeper.hold(true);
  for (const unit of units) {
    keeper.open(unit);
    for (const W of unit.parameters) {
      const factors = lora.factors.get(W);
      if (!factors) continue;
      const { A, B } = factors;
      const [out, inner] = W.shape;
      const rank = A.shape[0];
      // biome-ignore format: one product
      device.matmul(0, 0, out, inner, rank, lora.scale, B.ptr, B.dtype, rank, A.ptr, A.dtype, inner, 1, W.ptr, W.dtype, inner, 0, 1, 0, 0, 0);
    }
    keeper.close(unit, true);
  }
  if (lora.rows.size > 0) copyNewRows(model, lora.parameters, lora.rows, "into the model");
  lora.parameters.close();
  model.lora = undefined;
  for (const p of model.parameters.parameters) p.requiresGrad = p.trainable;
}

/** What a file calls the type of the adapters' numbers. */
const typeIn = ({ precision }: Llama): string => (precision === "bf16" ? "BF16" : "F32");

/** The adapters as adapter.safetensors, under the names of the parameters they sit on. */
export function saveAdapter(model: Llama, dir: string): void {
  const { parameters } = model.lora!;
  const { storage } = parameters;
  const dtype = typeIn(model);
  const list = [...parameters.tensors()].map(({ name, shape }) => ({ name, dtype, shape }));
  const file = new SharedWriter(`${dir}/adapter.safetensors`, [list], storage.writer);
  for (const t of parameters.named()) {
    const data = storage.whole(t, t.ptr, dtype === "BF16" ? 2 : 4);
    file.offer(t.name, () => data);
  }
  file.finish();
}

export function loadAdapter(model: Llama, dir: string): void {
  const path = `${dir}/adapter.safetensors`;
  const file = openSafetensors(path);
  try {
    const names = new Set(file.names());
    const own = typeIn(model);
    for (const t of model.lora!.parameters.named(true)) {
      if (!names.has(t.name))
        throw new UserError(
          `${path} has no ${t.name}: ${t.name.endsWith(NEW_ROWS) ? "this run was begun by an earlier version, which did not train rows of new tokens. Finish it with that version, or start a new run" : "the checkpoint is damaged or of another run"}.`,
        );
      // What the file says decides how many bytes are read, and the tensor how many there is room for.
      const { dtype, shape, bytes } = file.info(t.name);
      if (dtype !== own || shape.join() !== t.shape.join())
        throw new UserError(
          `${path}: the tensor ${t.name} has shape [${shape}] and type ${dtype}, this run's has [${t.shape}] and ${own}: the checkpoint is damaged or of another run.`,
        );
      file.readInto(t.name, model.device.bytes(t.ptr, bytes));
    }
  } finally {
    file.close();
  }
}

/** What `body` finds when the adapters are taken off: the frozen model itself. */
export function withoutLora<T>(model: Llama, body: () => T): T {
  const { lora } = model;
  model.lora = undefined;
  try {
    return body();
  } finally {
    model.lora = lora;
  }
}
