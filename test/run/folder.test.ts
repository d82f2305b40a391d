import { spawn, spawnSync } from "node:child_process";
import { EventEmitter } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test, vi } from "vitest";
import { systemMessage } from "../../src/run/errors.js";
import { RunFolder } from "../../src/run/folder.js";
import { takeLock } from "../../src/run/lock.js";
import { crc32c } from "../../src/run/metrics.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-run-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const namespace = existsSync("/proc/self/ns/pid") ? readlinkSync("/proc/self/ns/pid") : "";
const lockModule = new URL("../../dist/run/lock.js", import.meta.url).href;
let made = 0;
const fresh = (): string => join(root, `run${made++}`);
const open = (dir: string, resume = false) => RunFolder.open(dir, { steps: 3 }, { resume, keepCheckpoints: 2 });

test("a checkpoint exists when it is whole; the last two are kept", () => {
  const run = open(fresh());
  for (const step of [1, 2, 3]) run.checkpoint(step, (d) => writeFileSync(`${d}/weights`, String(step)));
  expect(() =>
    run.checkpoint(4, () => {
      throw new Error("the disk is full");
    }),
  ).toThrow("the disk is full");
  expect(readdirSync(`${run.dir}/checkpoints`).filter((n) => !n.startsWith("."))).toEqual(["000002", "000003"]);
  run.close();
  const again = open(run.dir, true);
  expect(again.startStep).toBe(3);
  expect(readdirSync(`${run.dir}/checkpoints`)).toEqual(["000002", "000003"]); // the half-written one is gone
  again.close();
});

test("a folder with a run in it is not written over", () => {
  const dir = fresh();
  const run = open(dir);
  run.metrics.write(1, { loss: 1 });
  run.close();
  expect(() => open(dir)).toThrow(/already holds a run.*--resume/);
  const other = fresh();
  mkdirSync(other);
  writeFileSync(`${other}/thesis.txt`, "");
  expect(() => open(other)).toThrow(/not empty and is not a run/);
});

test("two processes never write one run; the lock of a dead one is taken over", () => {
  const dir = fresh();
  const run = open(dir);
  const lock = JSON.parse(readFileSync(`${dir}/run.lock`, "utf8"));
  expect(lock).toMatchObject({ pid: process.pid, started: expect.any(String), host: hostname() });
  expect(() => open(dir, true)).toThrow(/is being written by process/);
  run.close();
  // Of one that is dead; whose number another process has now; that was killed while it wrote.
  const stale = [
    { ...lock, pid: 2 ** 22 + 1 },
    { ...lock, started: "1" },
  ].map((l) => JSON.stringify(l));
  const damaged = ["{", "123", "null", '{"pid":1}', '{"pid":1,"host":3}', '{"pid":"1","host":"a","started":"1"}'];
  for (const text of [...stale, ...damaged]) {
    writeFileSync(`${dir}/run.lock`, text);
    open(dir, true).close();
  }
  expect(existsSync(`${dir}/run.lock`)).toBe(false);
});

test.runIf(existsSync("/proc/self/stat"))(
  "a run waits for a process that is just ending, also where nobody asks how it ended, and names one that goes on",
  () => {
    const dir = fresh();
    open(dir).close();
    const locked = (seconds: number): number => {
      const script = `sleep ${seconds} >/dev/null 2>&1 & echo $!; cat /proc/$!/stat`;
      const [pid, stat] = spawnSync("sh", ["-c", script], { encoding: "utf8" }).stdout.split("\n");
      const started = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
      writeFileSync(`${dir}/run.lock`, JSON.stringify({ pid: Number(pid), started, host: hostname(), namespace }));
      return Number(pid);
    };
    locked(1);
    open(dir, true).close();
    const lasting = locked(60);
    expect(() => open(dir, true)).toThrow(`${dir} is being written by process ${lasting} on ${hostname()}`);
    process.kill(lasting);
  },
  20_000,
);

/** Programs of their own that take a lock at once, and hold it for half a second: what each says. */
async function together(path: string, n: number): Promise<string[]> {
  const program = `
    import { existsSync } from "node:fs";
    import { takeLock } from ${JSON.stringify(lockModule)};
    process.stdout.write("ready ");
    while (!existsSync(${JSON.stringify(`${path}.go`)}));
    try {
      const release = takeLock(${JSON.stringify(path)});
      const began = Date.now();
      while (Date.now() - began < 500);
      console.log("held", began, Date.now());
      release();
    } catch (error) {
      console.log(error.message);
    }`;
  const children = Array.from({ length: n }, () =>
    spawn(process.execPath, ["--input-type=module", "-e", program], { stdio: ["ignore", "pipe", "inherit"] }),
  );
  const said = children.map(() => "");
  const ended = children.map((child, i) => {
    child.stdout.on("data", (d) => {
      said[i] += d;
    });
    return new Promise((done) => child.on("close", done));
  });
  while (!said.every((text) => text.startsWith("ready"))) await sleep(10);
  writeFileSync(`${path}.go`, "");
  await Promise.all(ended);
  return said.map((text) => text.slice("ready ".length).trim());
}

test("of several that start at once over the lock of a dead process, one has it at a time", async () => {
  const dir = fresh();
  mkdirSync(dir);
  writeFileSync(`${dir}/run.lock`, JSON.stringify({ pid: 2 ** 22 + 1, started: "1", host: hostname(), namespace }));
  const times = (await together(`${dir}/run.lock`, 4))
    .filter((text) => text.startsWith("held"))
    .map((text) => text.split(" ").slice(1).map(Number))
    .sort(([a], [b]) => a - b);
  expect(times.length).toBeGreaterThan(0);
  for (const [i, [began]] of times.slice(1).entries()) expect(began).toBeGreaterThanOrEqual(times[i][1]);
  expect(readdirSync(dir).filter((n) => n !== "run.lock.go")).toEqual([]);
}, 30_000);

test("a lock of another host, or of another container, is taken over when it is touched no more", async () => {
  const dir = fresh();
  mkdirSync(dir);
  const path = `${dir}/run.lock`;
  const lock = { pid: process.pid, started: "1", host: hostname(), namespace };
  for (const elsewhere of [{ host: "another" }, { namespace: "pid:[1]" }, { boot: "another" }]) {
    writeFileSync(path, JSON.stringify({ ...lock, ...elsewhere }));
    const child = spawn("sh", ["-c", `sleep 0.3; touch ${path}`]);
    expect(() => takeLock(path, 3000)).toThrow(/is being written by process/);
    await new Promise((done) => child.on("close", done));
    takeLock(path, 200)();
    expect(readdirSync(dir)).toEqual([]);
  }
});

test("a run that stood still until another took its folder saves nothing more there", async () => {
  const run = open(fresh());
  const path = `${run.dir}/run.lock`;
  const others = readFileSync(path, "utf8").replace(/"host":"[^"]*"/, '"host":"another"');
  const late = (): unknown => run.checkpoint(2, () => writeFileSync(path, others)); // while it writes
  expect(late).toThrow(/run.lock is no longer this process's.*--resume/);
  expect(() => run.checkpoint(3, (d) => writeFileSync(`${d}/weights`, ""))).toThrow(/no longer/);
  expect(() => run.result("model", (d) => writeFileSync(`${d}/weights`, ""))).toThrow(/no longer/);
  run.close();
  expect(readdirSync(`${run.dir}/checkpoints`).filter((n) => !n.startsWith("."))).toEqual([]);
  expect(existsSync(`${run.dir}/model`)).toBe(false);
  expect(readFileSync(path, "utf8")).toBe(others);
});

test("the beat touches a lock that is its own, and never the next owner's", async () => {
  const path = fresh();
  const release = takeLock(path, undefined, 5);
  const touched = (): boolean => statSync(path).mtimeMs > 1000;
  utimesSync(path, 1, 1);
  while (!touched()) await sleep(5);
  writeFileSync(path, "another's");
  await sleep(20); // the beat that had read the file before
  utimesSync(path, 1, 1);
  await sleep(50);
  expect(touched()).toBe(false);
  release();
  expect(readFileSync(path, "utf8")).toBe("another's");
});

test("where no thread can be had, or it fails, the lock is held without a beat", async () => {
  let started: EventEmitter | undefined;
  class Refused {
    constructor() {
      throw new Error("Access to this API has been restricted");
    }
  }
  class Failing extends EventEmitter {
    unref = (): void => {};
    terminate = (): void => {};
    constructor() {
      super();
      started = this;
    }
  }
  for (const Worker of [Refused, Failing]) {
    vi.resetModules();
    vi.doMock("node:worker_threads", () => ({ Worker }));
    const path = fresh();
    const release = (await import("../../src/run/lock.js")).takeLock(path);
    started?.emit("error", new Error("process.chdir() is not supported in workers")); // throws where nobody listens
    expect(existsSync(path)).toBe(true);
    release();
    expect(existsSync(path)).toBe(false);
  }
  vi.doUnmock("node:worker_threads");
  vi.resetModules();
  expect(started).toBeDefined();
});

test("another start that waited for the lock does not take a finished run for one that has failed", () => {
  const dir = fresh();
  open(dir).close(); // ended before its first step
  // While the other waits for the lock, this run comes to its end.
  const path = `${dir}/run.lock`;
  const script = `sleep 0.5; mkdir ${dir}/checkpoints/000003; rm ${path}; sleep 5`;
  const { stdout } = spawnSync("sh", ["-c", `sh -c '${script}' >/dev/null 2>&1 & echo $!; cat /proc/$!/stat`], {
    encoding: "utf8",
  });
  const [pid, stat] = stdout.split("\n");
  const started = stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  writeFileSync(path, JSON.stringify({ pid: Number(pid), started, host: hostname(), namespace }));
  expect(() => open(dir)).toThrow(/already holds a run .checkpoint at step 3./);
  expect(existsSync(`${dir}/checkpoints/000003`)).toBe(true);
  expect(existsSync(path)).toBe(false);
  process.kill(Number(pid));
});

test("what a process left that was killed while it tried to have the lock goes when another has it", () => {
  const path = join(root, "swept.lock");
  const left = `${path}.0b0a3f6e-1c1d-4c2e-9d53-0f6a0c8d2b11`;
  for (const name of [left, `${path}.notes`]) writeFileSync(name, "");
  takeLock(path)();
  expect([left, `${path}.notes`].map((name) => existsSync(name))).toEqual([false, true]);
});

test("a result takes the place of an older one whole, and nothing of it is left", () => {
  const run = open(fresh());
  run.result("model", (d) => writeFileSync(`${d}/old`, ""));
  expect(() =>
    run.result("model", () => {
      throw new Error("the disk is full");
    }),
  ).toThrow("the disk is full");
  expect(readdirSync(`${run.dir}/model`)).toEqual(["old"]);
  run.result("model", (d) => writeFileSync(`${d}/new`, ""));
  expect(readdirSync(`${run.dir}/model`)).toEqual(["new"]);
  expect(readdirSync(run.dir).filter((n) => n.startsWith("."))).toEqual([]);
  run.close();
});

test.runIf(existsSync("/proc/self"))("a folder where none can be made is refused", () => {
  expect(() => open("/proc/none/such")).toThrow(/cannot be made/);
});

test("on resume, metrics after the checkpoint are dropped, a torn last line too", () => {
  const dir = fresh();
  const run = open(dir);
  for (const step of [1, 2, 3]) run.metrics.write(step, { loss: 1 / step, bad: Number.NaN });
  run.checkpoint(2, (d) => writeFileSync(`${d}/x`, ""));
  run.close();
  writeFileSync(`${dir}/metrics.jsonl`, `${readFileSync(`${dir}/metrics.jsonl`, "utf8")}{"step":`);
  open(dir, true).close();
  const rows = readFileSync(`${dir}/metrics.jsonl`, "utf8")
    .trim()
    .split("\n")
    .map((r) => JSON.parse(r));
  expect(rows.map((r) => r.step)).toEqual([1, 2]);
  expect(rows[0].bad).toBeNull();
  // Where there is nothing to drop nothing is written: on a full disk, all of it could be lost.
  utimesSync(`${dir}/metrics.jsonl`, 1, 1);
  open(dir, true).close();
  expect(statSync(`${dir}/metrics.jsonl`).mtimeMs).toBe(1000);
  truncateSync(`${dir}/metrics.jsonl`, statSync(`${dir}/metrics.jsonl`).size - 1);
  const again = open(dir, true);
  again.metrics.write(3, { loss: 1 });
  again.close();
  expect(readFileSync(`${dir}/metrics.jsonl`, "utf8").trim().split("\n")).toHaveLength(3);
});

test("on resume, metrics in which some bytes are damaged are cut where their rows end", () => {
  const dir = fresh();
  const run = open(dir);
  for (const step of [1, 2, 3, 4]) run.metrics.write(step, { loss: 1 / step });
  run.checkpoint(2, (d) => writeFileSync(`${d}/x`, ""));
  run.close();
  const file = `${dir}/metrics.jsonl`;
  const bytes = readFileSync(file);
  bytes.fill(0xff, 2, 12); // no letter of UTF-8: each is read as one that takes three bytes
  writeFileSync(file, bytes);
  open(dir, true).close();
  const end = bytes.indexOf("\n", bytes.indexOf('"step":2')) + 1;
  expect(readFileSync(file)).toEqual(bytes.subarray(0, end));
});

test("a lock, or metrics, in whose place a folder is: it is named", () => {
  for (const name of ["run.lock", "metrics.jsonl"]) {
    const dir = fresh();
    const run = open(dir);
    run.checkpoint(1, (d) => writeFileSync(`${d}/x`, ""));
    run.close();
    mkdirSync(`${dir}/${name}`);
    let told: string | undefined;
    try {
      open(dir, true);
    } catch (error) {
      told = systemMessage(error);
    }
    expect(told).toBe(`${dir}/${name} is a folder, where a file is meant.`);
  }
});

test("a checkpoint that has lost its contents is named, and which one is before it", () => {
  const dir = fresh();
  const run = open(dir);
  run.checkpoint(6, (d) => writeFileSync(`${d}/x`, ""));
  run.close();
  const path = `${dir}/checkpoints/000009`;
  mkdirSync(path);
  expect(() => open(dir, true)).toThrow(
    `The checkpoint ${path} is damaged: it is an empty folder. Delete it; --resume then goes on from the one before, of step 6.`,
  );
  rmSync(path, { recursive: true });
  writeFileSync(path, "");
  rmSync(`${dir}/checkpoints/000006`, { recursive: true });
  expect(() => open(dir, true)).toThrow(
    /is a file, where a folder is meant.*has none to go on from, and begins with step 1/,
  );
  expect(existsSync(`${dir}/run.lock`)).toBe(false);
});

test("TensorBoard's event files: records with right checksums, the scalars inside", () => {
  expect(crc32c(Buffer.from("123456789"))).toBe(0xe3069283); // the check value of CRC-32C
  const run = open(fresh());
  run.metrics.write(300, { loss: 2.5 });
  run.close();
  const file = readFileSync(`${run.dir}/${readdirSync(run.dir).find((n) => n.startsWith("events."))}`);
  const masked = (data: Buffer): number => {
    const c = crc32c(data);
    return (((c >>> 15) | (c << 17)) + 0xa282ead8) >>> 0;
  };
  const records: Buffer[] = [];
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    expect(file.readUInt32LE(at + 8)).toBe(masked(file.subarray(at, at + 8)));
    const data = file.subarray(at + 12, at + 12 + length);
    expect(file.readUInt32LE(at + 12 + length)).toBe(masked(data));
    records.push(data);
    at += 16 + length;
  }
  expect(records[0].includes("brain.Event:2")).toBe(true);
  const start = records[1];
  // Step 1 (field 2), and a SessionLog (field 7) that says START: what older files have from here on is void.
  expect([...start.subarray(9)]).toEqual([0x10, 1, 0x3a, 2, 0x08, 1]);
  const event = records[2];
  expect([event[9], event[10], event[11]]).toEqual([0x10, 0xac, 0x02]); // field 2, varint 300
  const tag = event.indexOf("loss");
  expect(event[tag + 4]).toBe(0x15); // field 2, fixed32
  expect(event.readFloatLE(tag + 5)).toBe(2.5);
});
