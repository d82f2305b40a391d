/** What the processes of a grid tell each other. */
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { type Comm, single } from "../../src/parallel/comm.js";
import { Grid } from "../../src/parallel/grid.js";
import { parallelSchema } from "../../src/run/settings.js";

const device = currentCpu();
/** Two processes; what the other one says is made of what this one does. */
function pair(answer: (text: string) => string): Comm {
  const comm: Comm = {
    ...single(device),
    size: 2,
    split: () => comm,
    gatherText: (text) => [text, answer(text)],
  };
  return comm;
}

test("numbers that are not finite are the same after they were sent", () => {
  const grid = Grid.of(
    device,
    pair((text) => text),
    parallelSchema.parse({ data: 2 }),
    "",
  );
  const own = [
    Number.NaN,
    1.5,
    [Number.NEGATIVE_INFINITY],
    { text: "NaN", score: Number.POSITIVE_INFINITY, none: null },
  ];
  expect(grid.everyone(own)).toEqual([...own, ...own]);
});

test("a difference of two configurations is named, however long they are", () => {
  const train = Array.from({ length: 10_000 }, (_, i) => `a file of many, number ${i}`);
  const world = pair((text) =>
    text.startsWith("{") ? text.replace('"batchSize":4', '"batchSize":8') : `other ${text}`,
  );
  expect(() => Grid.agree(world, "configuration", { batchSize: 4, train })).toThrow(
    /rank 0 on \S+ has batchSize 4, rank 1 on \S+ has batchSize 8\./,
  );
});
