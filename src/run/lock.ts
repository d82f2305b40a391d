/** One process writes a folder. The lock is a file in it that says which; that of a process which is gone is taken over. */
import { closeSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { UserError } from "./errors.js";

/** Milliseconds for the owner to end: mpirun returns a moment before the last of its processes. */
const PATIENCE = 3000;

/** Takes the lock `path`; its folder is there. Returns what gives it back. Throws a UserError where another process holds it. */
export function takeLock(path: string): () => void {
  const until = Date.now() + PATIENCE;
  for (;;) {
    try {
      const fd = openSync(path, "wx");
      writeSync(fd, JSON.stringify({ pid: process.pid, started: began(process.pid), host: hostname() }));
      closeSync(fd);
      return () => rmSync(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const owner = ownerOf(path);
    if (!owner || (owner.host === hostname() && !runs(owner))) rmSync(path, { force: true });
    else if (owner.pid === process.pid || owner.host !== hostname() || Date.now() > until)
      throw new UserError(
        `${dirname(path)} is being written by process ${owner.pid} on ${owner.host}. Wait for it, or name another folder with --out. (If that process is gone, delete ${path}.)`,
      );
    else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
  }
}

interface Owner {
  pid: number;
  started: string;
  host: string;
}
/** Undefined where the owner was killed while it wrote. */
function ownerOf(path: string): Owner | undefined {
  try {
    const owner = JSON.parse(readFileSync(path, "utf8")) as Owner;
    return owner.pid > 0 ? owner : undefined;
  } catch {
    return undefined;
  }
}
function runs({ pid, started }: Owner): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
  }
  return began(pid) === started; // the number may have gone to another process
}
/**
 * When a process began, in the kernel's ticks; empty where /proc does not exist. Undefined of one that has ended and stays in the
 * table because its parent never asks for it: in a container often for ever.
 */
function began(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return "ZX".includes(fields[0]) ? undefined : fields[19];
  } catch {
    return "";
  }
}
