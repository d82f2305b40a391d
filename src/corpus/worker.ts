/** A worker thread of the pool: one Worker for all its tasks. */
import Tinypool from "tinypool";
import { UserError } from "../run/errors.js";
import { type Task, Worker, type WorkerSetup } from "./unit.js";

let worker: Worker | undefined;

/** What crosses to the main thread: an error of a class of ours would arrive there as a plain one. */
export type Answer = { done: Awaited<ReturnType<Worker["run"]>> } | { failed: { message: string; exitCode: number } };

export default async function run(task: Task): Promise<Answer> {
  try {
    worker ??= new Worker(Tinypool.workerData as WorkerSetup);
    return { done: await worker.run(task) };
  } catch (error) {
    if (error instanceof UserError) return { failed: { message: error.message, exitCode: error.exitCode } };
    throw error;
  }
}
