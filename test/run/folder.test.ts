import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { RunFolder } from "../../src/run/folder.js";
import { crc32c } from "../../src/run/metrics.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-run-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
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
  expect(() => open(dir, true)).toThrow(/is being written by process/);
  run.close();
  writeFileSync(
    `${dir}/run.lock`,
    JSON.stringify({ pid: 2 ** 22 + 1, started: "1", host: (JSON.parse(lockOf()) as { host: string }).host }),
  );
  open(dir, true).close();
  writeFileSync(`${dir}/run.lock`, "{");
  open(dir, true).close();
  expect(existsSync(`${dir}/run.lock`)).toBe(false);
});
function lockOf(): string {
  const run = open(fresh());
  const text = readFileSync(`${run.dir}/run.lock`, "utf8");
  run.close();
  return text;
}

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
