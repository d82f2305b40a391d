/** A worker thread of the pool: one Worker for all its tasks. */
import Tinypool from "tinypool";
import { type Task, Worker, type WorkerSetup } from "./unit.js";

let worker: Worker | undefined;

export default async function run(task: Task): Promise<Awaited<ReturnType<Worker["run"]>>> {
  worker ??= new Worker(Tinypool.workerData as WorkerSetup);
  return worker.run(task);
}
