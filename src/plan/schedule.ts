/**
 * Pipeline schedules: in which order a stage works on its micro-batches. GPipe (Huang et al. 2019), 1F1B (PipeDream-Flush,
 * Narayanan et al. 2021, section 2.2.1) and its interleaved form, where a device holds several chunks of layers (2.2.2).
 */

export type Schedule = "gpipe" | "1f1b";

export interface Work {
  backward: boolean;
  micro: number;
  /** Which of the device's chunks of layers; 0 unless the schedule is interleaved. */
  chunk: number;
}

/** The work of `stage` of `stages`, in order. `chunks` > 1: interleaved 1F1B, for which micro must be a multiple of stages. */
export function workOrder(schedule: Schedule, stage: number, stages: number, micro: number, chunks = 1): Work[] {
  const forward = (k: number): Work => ({ backward: false, ...place(k, stages, chunks, false) });
  const backward = (k: number): Work => ({ backward: true, ...place(k, stages, chunks, true) });
  const total = micro * chunks;
  if (schedule === "gpipe")
    return [
      ...Array.from({ length: total }, (_, k) => forward(k)),
      ...Array.from({ length: total }, (_, k) => backward(k)),
    ];
  // How far forward passes run ahead of backward passes: until the first backward can have come back to this stage.
  const ahead = chunks === 1 ? stages - 1 - stage : 2 * (stages - 1 - stage) + (chunks - 1) * stages;
  const warmUp = Math.min(ahead, total);
  const order = Array.from({ length: warmUp }, (_, k) => forward(k));
  for (let k = warmUp; k < total; k++) order.push(forward(k), backward(k - warmUp));
  for (let k = total - warmUp; k < total; k++) order.push(backward(k));
  return order;
}

/** Interleaved: `stages` micro-batches pass through chunk 0, then the same through chunk 1, and so on; backward from the last chunk. */
function place(k: number, stages: number, chunks: number, backward: boolean): { micro: number; chunk: number } {
  if (chunks === 1) return { micro: k, chunk: 0 };
  const group = Math.floor(k / (stages * chunks));
  const within = k % (stages * chunks);
  const chunk = Math.floor(within / stages);
  return { micro: group * stages + (within % stages), chunk: backward ? chunks - 1 - chunk : chunk };
}
