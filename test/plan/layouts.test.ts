/** Which layout is chosen, and what is said of the others. */
import { expect, test } from "vitest";
import { makeCluster } from "../../src/plan/cluster.js";
import { workload } from "../../src/plan/layout.js";
import { plan, USABLE } from "../../src/plan/layouts.js";
import { namedShape } from "../../src/plan/shape.js";

const row = (p: ReturnType<typeof plan>, name: string) => p.planned.find((x) => x.strategy === name)!;

test("7.5B on 64 devices of 80 GB: DDP does not fit, sharding does, and the chosen one is the fastest that fits", () => {
  const c = makeCluster({ devices: 64 });
  const p = plan(workload({ shape: namedShape("7.5B")! }), c);
  expect(row(p, "ddp").fits).toBe(false);
  expect(row(p, "ddp").why).toMatch(/needs 12\d\.\d GB and 75\.2 GB can be used.*optimizer \(90\.0 GB\)/);
  expect(row(p, "zero1").fits && row(p, "zero3").fits).toBe(true);
  const fitting = p.planned.filter((x) => x.fits);
  expect(p.chosen).toBeDefined();
  for (const x of fitting) {
    expect(x.memory.total).toBeLessThanOrEqual(USABLE * c.memory);
    expect(x.time.seconds).toBeGreaterThanOrEqual(p.chosen!.time.seconds * 0.998);
    expect(x.layout.data * x.layout.tensor * x.layout.pipeline).toBe(64);
  }
});

test("1T on 512 devices fits only with tensor and pipeline parallelism, or in main memory", () => {
  const p = plan(workload({ shape: namedShape("1008B")!, globalBatch: 512 }), makeCluster({ devices: 512 }));
  expect(p.planned.filter((x) => x.fits).map((x) => x.strategy)).toContain("3d-zero1");
  for (const name of ["ddp", "zero1", "zero2"]) expect(row(p, name).fits, name).toBe(false);
});

test("70B on one device: nothing fits, and every strategy says why", () => {
  const p = plan(workload({ shape: namedShape("70B")!, globalBatch: 8 }), makeCluster({ devices: 1 }));
  expect(p.chosen).toBeUndefined();
  expect(row(p, "ddp").why).toContain("the largest part is optimizer");
  expect(p.impossible.map((x) => x.strategy)).toContain("3d");
  for (const x of p.impossible) expect(x.why).toBe("one device has nobody to share with");
});

test("with little memory activations are recomputed; with much they are kept", () => {
  const w = workload({ shape: namedShape("7B")!, globalBatch: 64, contextLength: 4096 });
  const small = plan(w, makeCluster({ devices: 8, memoryGB: 24 }));
  const large = plan(w, makeCluster({ devices: 8, memoryGB: 640 }));
  expect(row(small, "zero3").layout.recompute).toBe(true);
  expect(row(large, "zero3").layout.recompute).toBe(false);
  // The notes' order: ZeRO-1 wastes least, ZeRO-3 most. (DDP updates all parameters on every device.)
  const speed = (name: string): number => row(large, name).time.tokensPerSecond;
  expect(large.chosen!.strategy).toBe("zero1");
  expect(speed("zero1")).toBeGreaterThan(speed("zero3"));
  expect(speed("zero3")).toBeGreaterThan(speed("zero3-offload"));
});

test("a batch smaller than the replicas is refused with the number that would do", () => {
  const p = plan(workload({ shape: namedShape("7B")!, globalBatch: 4 }), makeCluster({ devices: 64 }));
  expect(p.impossible.find((x) => x.strategy === "zero1")!.why).toBe(
    "64 replicas need a batch of 64 sequences at least; it has 4",
  );
});

test("every device with offload has its share of main memory, or it does not fit", () => {
  const w = workload({ shape: namedShape("13B")!, globalBatch: 8 });
  const with64 = plan(w, makeCluster({ devices: 1, hostMemoryGB: 64 }));
  expect(row(with64, "zero2-offload").fits).toBe(false);
  expect(row(with64, "zero2-offload").why).toMatch(/needs 182\.2 GB of main memory/);
  expect(row(plan(w, makeCluster({ devices: 1 })), "zero2-offload").fits).toBe(true);
});
