/** The page of a run: what it holds, and that nothing of what people wrote gets out of its place. */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { RunFolder } from "../../src/run/folder.js";
import { reportOf, thinned, writeReport } from "../../src/run/report.js";
import { shown, ticksOf } from "../../src/run/report-page.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-report-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test("curves, figures, samples, settings and records set aside, on one page that fetches nothing", () => {
  const run = join(dir, "one");
  mkdirSync(join(run, "samples"), { recursive: true });
  const rows = Array.from({ length: 1000 }, (_, i) => ({
    step: i + 1,
    loss: 4 / (i + 1),
    learningRate: 1e-3,
    ...((i + 1) % 250 === 0 && { validationLoss: 1, perplexity: Math.E, bitsPerByte: 0.5 }),
    tokensPerSecond: 1000,
    seconds: 0.5,
    mfu: 0.25,
    peakMemoryMiB: 64,
  }));
  writeFileSync(`${run}/metrics.jsonl`, `${rows.map((r) => JSON.stringify(r)).join("\n")}\n{"step":10`);
  writeFileSync(`${run}/config.yaml`, "# lyceum\nstage: pretrain\nsteps: 2000\n");
  writeFileSync(`${run}/samples/000000.txt`, "<script>alert(1)</script> & 中文\n");
  writeFileSync(`${run}/rejected.jsonl`, `${JSON.stringify({ file: "<a>", line: 3, reason: 'not "JSON"' })}\n`);
  const page = reportOf(run);
  expect(page).toContain("1,000 of 2,000 steps");
  for (const [name, value] of [
    ["loss", "4e-3"],
    ["validation loss", "1"],
    ["tokens", "500,000"],
    ["MFU, percent", "25"],
  ])
    expect(page).toContain(`<dt>${name}</dt><dd>${value}</dd>`);
  expect(page.match(/<figcaption>[^<]*/g)).toEqual(
    ["loss", "learningRate", "tokensPerSecond", "bitsPerByte"].map((t) => `<figcaption>${t}`),
  );
  expect(page).toContain("&lt;script&gt;alert(1)&lt;/script&gt; &amp; 中文");
  expect(page).toContain("&lt;a&gt;:3</td><td>not &quot;JSON&quot;");
  expect(page).not.toMatch(/<script|https?:|NaN|Infinity|undefined/);
  expect(page).toContain("stage: pretrain");
});

test("a run of one step, and numbers that do not change", () => {
  const run = join(dir, "two");
  mkdirSync(run);
  writeFileSync(`${run}/metrics.jsonl`, '{"step":1,"loss":0,"gradNorm":null,"seconds":0,"tokensPerSecond":0}\n');
  const page = reportOf(run, 1);
  expect(page).toContain("1 steps, finished");
  expect(page).not.toMatch(/NaN|Infinity|undefined/);
});

test("rows that are damaged are left out, counted, and end nothing", () => {
  const run = join(dir, "damaged");
  mkdirSync(run);
  const row = (step: number): string =>
    JSON.stringify({ step, loss: 4 / step, seconds: 1, note: "x", perRank: [1, null] });
  const damaged = [
    "no JSON",
    "null",
    "5",
    '"x"',
    "[1]",
    "{}",
    '{"step":"3"}',
    '{"step":1.5}',
    '{"step":1e999}',
    '{"step":2,"loss":1e999}',
    '{"step":2,"loss":{}}',
    '{"step":2,"seconds":[[1]]}',
  ];
  writeFileSync(`${run}/metrics.jsonl`, [damaged[0], row(1), ...damaged.slice(1), row(2), '{"step":3,"lo'].join("\n"));
  const aside = ["null", "no JSON", "7", "{}", '{"file":3,"line":1,"reason":"r"}', '{"file":"a","reason":"r"}'];
  writeFileSync(
    `${run}/rejected.jsonl`,
    [...aside, JSON.stringify({ file: "a.jsonl", line: 3, reason: "why" }), ""].join("\n"),
  );
  writeFileSync(`${run}/config.yaml`, "steps: [1]\n");
  const page = reportOf(run);
  expect(page).toContain("2 steps, finished");
  expect(page).toContain("<dt>seconds of steps</dt><dd>2</dd>");
  expect(page).toContain("<dt>damaged rows of metrics.jsonl, left out</dt><dd>12</dd>");
  expect(page).toContain("<dt>damaged rows of rejected.jsonl, left out</dt><dd>6</dd>");
  expect(page).toContain("a.jsonl:3</td><td>why");
  expect(page).not.toMatch(/NaN|Infinity|undefined/);
});

test("a page that cannot be written is told of, and does not end the run", () => {
  const run = RunFolder.open(join(dir, "unwritten"), { steps: 1 }, { keepCheckpoints: 1 });
  run.metrics.write(1, { loss: 1 });
  run.close();
  mkdirSync(`${run.dir}/rejected.jsonl`);
  const told = vi.spyOn(console, "error").mockImplementation(() => {});
  writeReport(run, 1);
  expect(told.mock.calls.join()).toBe(
    `no report: ${run.dir}/rejected.jsonl is a folder, where a file is meant. When that is mended, lyceum report ${run.dir} writes it.`,
  );
  told.mockRestore();
  expect(existsSync(`${run.dir}/report.html`)).toBe(false);
});

test("thinning keeps every value within a band, and the order", () => {
  const points = Array.from({ length: 1234 }, (_, i): [number, number] => [i + 1, Math.sin(i)]);
  const few = thinned(points, 100);
  expect(few).toHaveLength(100);
  expect(few[0].step).toBe(1);
  expect(few[99].step).toBe(1234);
  expect(Math.max(...few.map((p) => p.high))).toBe(Math.max(...points.map(([, v]) => v)));
  expect(few.every((p) => p.low <= p.mean && p.mean <= p.high)).toBe(true);
  expect(thinned([[7, 2]], 100)).toEqual([{ step: 7, mean: 2, low: 2, high: 2 }]);
});

test("ticks are round and cover the range; numbers are short", () => {
  for (const [low, high] of [
    [0, 1],
    [0.13, 9.4],
    [-3, 7],
    [5, 5],
    [0, 0],
    [1e-9, 3e-4],
    [199, 201],
  ]) {
    const ticks = ticksOf(low, high);
    expect(ticks[0]).toBeLessThanOrEqual(low + 1e-12);
    expect(ticks[ticks.length - 1]).toBeGreaterThanOrEqual(high - 1e-12);
    expect(ticks.length).toBeGreaterThan(1);
    expect(ticks.length).toBeLessThanOrEqual(7);
  }
  expect([12345.6, 0.02134, 2e-4, 1, 0, -0.005].map(shown)).toEqual(["12,346", "0.02134", "2e-4", "1", "0", "-5e-3"]);
});
