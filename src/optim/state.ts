/**
 * The optimizer's part of a checkpoint: m, v and, where they are, master weights and averaged weights, each under its parameter's name and
 * in that parameter's whole shape. So the file does not depend on how many processes wrote it, or on how the state was
 * shared out among them: any number of them can go on from it.
 */
import { BF16, type Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";
import { openSafetensors, SharedWriter } from "../run/safetensors.js";
import { takePart } from "../tensor/parameters.js";
import type { AdamW } from "./adamw.js";

const buffers = (o: AdamW): [string, Ptr][] => [
  ["m", o.m],
  ["v", o.v],
  ...(o.parameters.dtype === BF16 ? ([["master", o.master]] as [string, Ptr][]) : []),
  ...(o.ema ? ([["ema", o.ema]] as [string, Ptr][]) : []),
];

/** With several processes all must call it; each writes a share. */
export function saveOptimizer(o: AdamW, path: string): void {
  const { keeper, storage } = o.parameters;
  const tensors = [...o.parameters.tensors()];
  const stages = storage
    .stages()
    .map((list) =>
      list.flatMap(({ name, whole }) =>
        buffers(o).map(([kind]) => ({ name: `${kind}.${name}`, dtype: "F32", shape: whole })),
      ),
    );
  const file = new SharedWriter(path, stages, storage.writer, { step: String(o.step) });
  for (const piece of keeper.mine()) {
    for (const [kind, state] of buffers(o)) {
      const whole = keeper.gather(piece.unit, state + piece.at * 4, 4);
      for (const t of tensors.filter((t) => t.unit === piece.unit)) {
        const data = storage.whole(t, whole + t.inUnit * 4, 4);
        file.offer(`${kind}.${t.name}`, () => data);
      }
      o.memory.behind(state + piece.at * 4, piece.length * 4);
    }
  }
  file.finish();
}

/** Restores the state, and in bf16 mode the parameters too, as the rounded master weights. Throws when it belongs to another model. */
export function loadOptimizer(o: AdamW, path: string, step: number): void {
  const { device, keeper } = o.parameters;
  const file = openSafetensors(path);
  try {
    const known = new Set(file.names());
    const tensors = [...o.parameters.tensors()];
    for (const piece of keeper.mine()) {
      const { unit } = piece;
      for (const [kind, state] of buffers(o)) {
        const own = state + piece.at * 4;
        const whole = piece.length === unit.length ? own : device.alloc(unit.length * 4);
        for (const t of tensors.filter((t) => t.unit === unit)) {
          const name = `${kind}.${t.name}`;
          const shape = known.has(name) ? file.info(name).shape : undefined;
          if (shape?.join() !== t.whole.join())
            throw new UserError(
              `${path} belongs to another model: it has ${shape ? `${name} of shape [${shape}]` : `no ${name}`}, this model's is [${t.whole}]. Resume with the configuration that the run began with.`,
            );
          const to = whole + t.inUnit * 4;
          if (!t.cut) file.readInto(name, device.bytes(to, t.size * 4));
          else {
            const bytes = t.whole.reduce((a, b) => a * b, 4);
            const all = device.alloc(bytes);
            file.readInto(name, device.bytes(all, bytes));
            takePart(device, all, to, t.shape, t.cut, 4);
            device.free(all, bytes);
          }
        }
        if (whole !== own) {
          device.bytes(own, piece.length * 4).set(device.bytes(whole + piece.from * 4, piece.length * 4));
          device.free(whole, unit.length * 4);
        }
        o.memory.behind(own, piece.length * 4);
      }
    }
    o.restoreParameters();
    o.step = step;
  } finally {
    file.close();
  }
}
