/** Where units are worked on: in this thread (one worker), or in a pool of threads. */
import { UserError } from "../run/errors.js";
import { type JudgedMarker, type ReadMarker, type Task, Worker, type WorkerSetup } from "./unit.js";
import type { Answer } from "./worker.js";

export interface Pool {
  size: number;
  run(task: Task): Promise<{ read?: ReadMarker; judged: JudgedMarker }>;
  close(): Promise<void>;
}

export async function openPool(setup: WorkerSetup, workers: number): Promise<Pool> {
  if (workers <= 1) {
    const worker = new Worker(setup);
    return { size: 1, run: (task) => worker.run(task), close: async () => {} };
  }
  const { default: Tinypool } = await import("tinypool");
  const pool = new Tinypool({
    filename: new URL("./worker.js", import.meta.url).href,
    minThreads: workers,
    maxThreads: workers,
    workerData: setup,
  });
  const run: Pool["run"] = async (task) => {
    const answer: Answer = await pool.run(task);
    if ("failed" in answer) throw new UserError(answer.failed.message, answer.failed.exitCode);
    return answer.done;
  };
  return { size: workers, run, close: () => pool.destroy() };
}
