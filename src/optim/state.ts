/**
 * The optimizer's part of a checkpoint: m, v and, where they are, master weights and averaged weights, each as fp32 under its parameter's
 * name and in that parameter's whole shape. So the file does not depend on how many processes wrote it, or on how the state was
 * shared out among them: any number of them can go on from it.
 */
import type { Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";
import { openSafetensors, SharedWriter } from "../run/safetensors.js";
import { type Piece, takePart } from "../tensor/parameters.js";
import type { AdamW } from "./adamw.js";

type Kind = "m" | "v" | "master" | "ema";
const kinds = (o: AdamW): Kind[] => [
  "m",
  "v",
  ...(o.low ? (["master"] as const) : []),
  ...(o.ema ? (["ema"] as const) : []),
];

/** Where a kind's fp32 numbers of a piece lie; of master weights, of which only the lower halves do, those. */
function place(o: AdamW, kind: Kind, { at, length }: Piece): { ptr: Ptr; bytes: number } {
  return kind === "master" ? { ptr: o.low + at * 2, bytes: length * 2 } : { ptr: o[kind] + at * 4, bytes: length * 4 };
}

/** With several processes all must call it; each writes a share. */
export function saveOptimizer(o: AdamW, path: string): void {
  o.mustBeOpen();
  const { device, keeper, storage } = o.parameters;
  const tensors = [...o.parameters.tensors()];
  const stages = storage
    .stages()
    .map((list) =>
      list.flatMap(({ name, whole }) =>
        kinds(o).map((kind) => ({ name: `${kind}.${name}`, dtype: "F32", shape: whole })),
      ),
    );
  const file = new SharedWriter(path, stages, storage.writer, { step: String(o.step) });
  for (const piece of keeper.mine()) {
    const joined = device.alloc(piece.length * 4);
    for (const kind of kinds(o)) {
      const { ptr, bytes } = place(o, kind, piece);
      if (kind === "master") device.joinMaster(piece.values, ptr, joined, piece.length);
      const whole = keeper.gather(piece.unit, kind === "master" ? joined : ptr, 4);
      for (const t of tensors.filter((t) => t.unit === piece.unit)) {
        const data = storage.whole(t, whole + t.inUnit * 4, 4);
        file.offer(`${kind}.${t.name}`, () => data);
      }
      o.memory.behind(ptr, bytes);
    }
    device.free(joined, piece.length * 4);
  }
  file.finish();
}

/** Restores the state, and in bf16 mode the parameters too, as the rounded master weights. Throws when it belongs to another model. */
export function loadOptimizer(o: AdamW, path: string): void {
  o.mustBeOpen();
  const { device, keeper } = o.parameters;
  const file = openSafetensors(path);
  try {
    const { step: said } = file.metadata();
    const step = /^\d+$/.test(said) ? Number(said) : Number.NaN;
    if (!Number.isSafeInteger(step))
      throw new UserError(
        `${path} does not say how many updates have been made: its step is ${JSON.stringify(said) ?? "not there"}, and must be a whole number. The checkpoint is damaged.`,
      );
    const known = new Set(file.names());
    const tensors = [...o.parameters.tensors()];
    for (const piece of keeper.mine()) {
      const { unit, from, length } = piece;
      const whole = device.alloc(unit.length * 4);
      for (const kind of kinds(o)) {
        for (const t of tensors.filter((t) => t.unit === unit)) {
          const name = `${kind}.${t.name}`;
          const info = known.has(name) ? file.info(name) : undefined;
          if (info?.shape.join() !== t.whole.join())
            throw new UserError(
              `${path} belongs to another model: it has ${info ? `${name} of shape [${info.shape}]` : `no ${name}`}, this model's is [${t.whole}]. Resume with the configuration that the run began with.`,
            );
          if (info.dtype !== "F32")
            throw new UserError(
              `${path}: the tensor ${name} is of type ${info.dtype}, and an optimizer's are F32: the checkpoint is damaged.`,
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
        const own = whole + from * 4;
        const { ptr, bytes } = place(o, kind, piece);
        if (kind === "master") device.splitMaster(own, piece.values, ptr, length);
        else device.bytes(ptr, bytes).set(device.bytes(own, bytes));
        o.memory.behind(ptr, bytes);
      }
      device.free(whole, unit.length * 4);
    }
    keeper.updated();
    o.step = step;
  } finally {
    file.close();
  }
}
