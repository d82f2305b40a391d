/** The optimizer's part of a checkpoint: optimizer.safetensors with master (bf16 mode), m and v as flat fp32 buffers, and the step. */
import { BF16, F32 } from "../device/device.js";
import { UserError } from "../run/errors.js";
import { openSafetensors, writeSafetensors } from "../run/safetensors.js";
import type { AdamW } from "./adamw.js";

const buffers = (o: AdamW) =>
  Object.entries({ m: o.m, v: o.v, ...(o.parameters.dtype === BF16 && { master: o.master }) });

export function saveOptimizer(o: AdamW, path: string): void {
  const { device, length } = o.parameters;
  const entries = buffers(o).map(([name, ptr]) => {
    return { name, dtype: "F32", shape: [length], data: device.bytes(ptr, length * 4) } as const;
  });
  writeSafetensors(path, entries, { step: String(o.step) });
}

/** Restores the state, and in bf16 mode the parameters too, as the rounded master weights. Throws when it belongs to another model. */
export function loadOptimizer(o: AdamW, path: string, step: number): void {
  const { device, length, dtype, ptr } = o.parameters;
  const file = openSafetensors(path);
  try {
    for (const [name, to] of buffers(o)) {
      const info = file.info(name);
      if (info.shape[0] !== length)
        throw new UserError(
          `${path} belongs to a model with ${info.shape[0]} parameters, this one has ${length}. Resume with the configuration that the run began with.`,
        );
      file.readInto(name, device.bytes(to, length * 4));
    }
    if (dtype === BF16) device.cast(o.master, F32, ptr, BF16, length);
    o.step = step;
  } finally {
    file.close();
  }
}
