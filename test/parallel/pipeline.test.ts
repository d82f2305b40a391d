/** The order in which a stage takes its micro-batches. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { F32 } from "../../src/device/device.js";
import { done, single } from "../../src/parallel/comm.js";
import { type Action, inFlight, Pipe, schedule } from "../../src/parallel/pipeline.js";
import { Tape } from "../../src/tensor/tensor.js";

const brief = (actions: readonly Action[]): string => actions.map((a) => `${a.pass[0]}${a.microBatch}`).join(" ");

test("1F1B as in Narayanan et al. 2021, figure 4: four stages, eight micro-batches", () => {
  expect(brief(schedule("1f1b", 3, 4, 8))).toBe("f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 f5 b5 f6 b6 f7 b7");
  expect(brief(schedule("1f1b", 0, 4, 8))).toBe("f0 f1 f2 f3 b0 f4 b1 f5 b2 f6 b3 f7 b4 b5 b6 b7");
  expect(brief(schedule("gpipe", 1, 4, 3))).toBe("f0 f1 f2 b0 b1 b2");
  expect(brief(schedule("gpipe", 0, 1, 3))).toBe("f0 b0 f1 b1 f2 b2");
});

/** Runs all stages against each other: a forward pass needs the stage before, a backward pass the stage after. Steps taken. */
function simulate(kind: "1f1b" | "gpipe", stages: number, m: number): number {
  const left = Array.from({ length: stages }, (_, stage) => schedule(kind, stage, stages, m));
  const done = new Set<string>();
  for (let time = 1; ; time++) {
    const now: string[] = [];
    for (const [stage, actions] of left.entries()) {
      const [next] = actions;
      if (!next) continue;
      const before = next.pass === "forward" ? stage - 1 : stage + 1;
      const ready = before < 0 || before >= stages || done.has(`${next.pass} ${next.microBatch} ${before}`);
      const own = next.pass === "forward" || done.has(`forward ${next.microBatch} ${stage}`);
      if (!ready || !own) continue;
      now.push(`${next.pass} ${next.microBatch} ${stage}`);
      actions.shift();
    }
    if (now.length === 0) throw new Error("the stages wait for each other");
    for (const action of now) done.add(action);
    if (left.every((actions) => actions.length === 0)) return time;
  }
}

test("no stage waits for ever, every pass is done, and the bubble is (p - 1) / (m + p - 1)", () => {
  const places = fc.record({
    kind: fc.constantFrom("1f1b" as const, "gpipe" as const),
    stages: fc.integer({ min: 1, max: 6 }),
    m: fc.integer({ min: 1, max: 12 }),
  });
  fc.assert(
    fc.property(places, ({ kind, stages, m }) => {
      for (let stage = 0; stage < stages; stage++) {
        const actions = schedule(kind, stage, stages, m);
        expect(actions.filter((a) => a.pass === "forward").map((a) => a.microBatch)).toEqual([...Array(m).keys()]);
        expect(actions.filter((a) => a.pass === "backward").map((a) => a.microBatch)).toEqual([...Array(m).keys()]);
        let [held, most] = [0, 0];
        for (const a of actions) {
          held += a.pass === "forward" ? 1 : -1;
          most = Math.max(most, held);
        }
        expect(most).toBe(inFlight(kind, stage, stages, m));
      }
      // With passes of equal length, 2 m of 2 (m + p - 1) steps are work.
      expect(simulate(kind, stages, m)).toBe(2 * (m + stages - 1));
    }),
  );
});

test("batches of many lengths pass through a few blocks of memory", () => {
  const device = currentCpu();
  let blocks = 0;
  const alloc = (bytes: number): number => {
    blocks++;
    return device.alloc(bytes);
  };
  const pipe = new Pipe({ ...device, alloc }, { ...single(device), size: 2, startSend: () => done });
  const tape = new Tape(device, false);
  for (let n = 100; n < 200; n++) pipe.handOn(tape, tape.tensor(F32, [n, 32]));
  expect(blocks).toBeLessThan(5);
  tape.close();
});
