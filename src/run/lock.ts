/**
 * One process writes a folder. The lock is a file in it that says which; that of a process which is gone is taken over.
 * Whether a process of this host is there, the kernel knows. One on another host, or in another container, is known by its
 * beat: while it lives, its lock is touched every few seconds.
 *
 * The beat has a thread of its own, which costs about 10 MiB in the process that holds the lock. Without one, the lock could only be
 * touched between steps, and nothing bounds those: a large batch, a tokenizer's training, an evaluation or a judge's replies are each one call
 * that may take longer than a quarter of an hour. And a job that is started again on another host would wait as long, not 90 seconds.
 */
import { randomUUID } from "node:crypto";
import {
  closeSync,
  fstatSync,
  linkSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { basename, dirname } from "node:path";
import { Worker } from "node:worker_threads";
import { naming, UserError } from "./errors.js";

/** Milliseconds for the owner to end: mpirun returns a moment before the last of its processes. */
const PATIENCE = 3000;
/** Milliseconds between two beats, and without one until an owner elsewhere is taken for gone. */
const BEAT = 10_000;
const SILENCE = 90_000;

/**
 * Takes the lock `path`; its folder is there. Returns what gives it back. Throws a UserError where another process holds it. Of a
 * process elsewhere it waits for a beat, for `silence` milliseconds at most; its own has one every `every`.
 */
export function takeLock(path: string, silence = SILENCE, every = BEAT): () => void {
  take(path, silence);
  sweep(path);
  const beat = startBeat(path, every);
  return () => {
    void beat?.terminate();
    giveBack(path);
  };
}

/**
 * Whether this process still has a lock that it took. One that stood still for longer than the silence (a paused container, a
 * machine that slept) was taken for gone, and knows nothing of it.
 */
export const holdsLock = (path: string): boolean => look(path)?.text === ownText;

/**
 * In a thread of its own: a step, or a checkpoint on a slow disk, keeps the main thread for minutes. It touches the file that it has read
 * its own text from, and never that of the next owner. Where no thread can be had the lock still holds on this host.
 */
function startBeat(path: string, every: number): Worker | undefined {
  try {
    const beat = new Worker(
      `const { path, text, every } = require("node:worker_threads").workerData;
       const { closeSync, futimesSync, openSync, readFileSync } = require("node:fs");
       const touch = () => {
         const fd = openSync(path, "r");
         try {
           if (readFileSync(fd, "utf8") === text) futimesSync(fd, new Date(), new Date());
         } finally {
           closeSync(fd);
         }
       };
       setInterval(() => {
         try {
           touch();
         } catch {} // the file is gone, or its disk does not answer
       }, every);`,
      { eval: true, workerData: { path, text: ownText, every }, execArgv: [] },
    );
    beat.on("error", () => {}); // or it would end the run
    beat.unref();
    return beat;
  } catch {
    return undefined;
  }
}

function giveBack(path: string): void {
  if (holdsLock(path)) rmSync(path, { force: true });
}

function take(path: string, silence: number): void {
  const until = Date.now() + PATIENCE;
  for (;;) {
    if (create(path, ownText)) return;
    const there = look(path);
    if (!there) continue; // given back just now
    const owner = ownerOf(there);
    if (owner === undefined) remove(path, there, silence);
    else if (isElsewhere(owner)) {
      if (!silent(path, there, silence)) throw taken(path, owner);
      remove(path, there, silence);
    } else if (!runs(owner)) remove(path, there, silence);
    else if (owner.pid === process.pid || Date.now() > until) throw taken(path, owner);
    else pause(50);
  }
}

const taken = (path: string, { pid, host }: Owner): UserError =>
  new UserError(
    `${dirname(path)} is being written by process ${pid} on ${host}. Wait for it, or name another folder with --out. (If that process is gone, delete ${path}.)`,
  );

/** Makes the file with its text at once: nobody ever reads a part of it. False where it is there. */
function create(path: string, text: string): boolean {
  const own = `${path}.${randomUUID()}`;
  writeFileSync(own, text);
  try {
    linkSync(own, path);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST" || code === "ENOENT") return false; // ENOENT: swept away by who has the lock now
    if (!["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK"].includes(code ?? "")) throw error;
  } finally {
    rmSync(own, { force: true });
  }
  try {
    writeFileSync(path, text, { flag: "wx" }); // a file system without links
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    return false;
  }
}

/** Removes what processes left that were killed while they tried to have the lock. */
function sweep(path: string): void {
  const beginning = `${basename(path)}.`;
  for (const name of readdirSync(dirname(path)))
    if (name.startsWith(beginning) && name.length === beginning.length + randomUUID().length)
      rmSync(`${dirname(path)}/${name}`, { force: true });
}

/** Removes the lock of a process that is gone. Who holds the lock's own lock does that, so that nobody removes what another has just taken. */
function remove(path: string, gone: Seen, silence: number): void {
  take(`${path}.over`, silence);
  const there = look(path);
  if (there && there.text === gone.text && there.beat === gone.beat) rmSync(path, { force: true });
  giveBack(`${path}.over`);
}

/** Whether a lock stays as it is for so long. No clock is compared: hosts differ in theirs. */
function silent(path: string, seen: Seen, silence: number): boolean {
  const { host } = ownerOf(seen) as Owner;
  console.error(
    `${path} is of a process on ${host}; waiting ${Math.ceil(silence / 1000)} s at most for a sign of it (if it is gone, deleting that file is quicker)`,
  );
  for (const until = Date.now() + silence; Date.now() < until; pause(Math.min(1000, silence / 10))) {
    const now = look(path);
    if (!now) return true;
    if (now.text !== seen.text || now.beat !== seen.beat) return false;
  }
  return true;
}

interface Owner {
  pid: number;
  started: string;
  host: string;
  namespace?: string;
  boot?: string;
}
/** A lock as it was read, and when it was touched last. */
interface Seen {
  text: string;
  beat: number;
}
function look(path: string): Seen | undefined {
  let fd: number;
  try {
    fd = openSync(path, "r"); // over NFS, opening a file is what asks for its newest state
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    return { text: naming(path, () => readFileSync(fd, "utf8")), beat: fstatSync(fd).mtimeMs };
  } finally {
    closeSync(fd);
  }
}
/** Undefined where the owner was killed while it wrote, and of a file that is damaged. */
function ownerOf({ text }: Seen): Owner | undefined {
  try {
    const owner = JSON.parse(text) as Owner;
    const whole = Number.isInteger(owner.pid) && typeof owner.host === "string" && typeof owner.started === "string";
    return whole && owner.pid > 0 ? owner : undefined;
  } catch {
    return undefined;
  }
}

function pause(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

/** What `read` finds in /proc; empty where that does not exist. */
function fromProc(read: () => string): string {
  try {
    return read();
  } catch {
    return "";
  }
}
/** Containers on one host have the same host name and other process numbers. */
const namespace = fromProc(() => readlinkSync("/proc/self/ns/pid"));
/** Of two hosts with one name the namespaces may have one number too: the first is the same on every Linux. */
const boot = fromProc(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
/** What this process writes into a lock. */
const ownText = JSON.stringify({ pid: process.pid, started: began(process.pid), host: hostname(), namespace, boot });

/** Whether this kernel knows nothing of a process. */
const isElsewhere = (owner: Owner): boolean =>
  owner.host !== hostname() || (owner.namespace ?? namespace) !== namespace || (owner.boot ?? boot) !== boot;

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
