/** Operations and bytes of kernels, counted by hand, and events in the order of the calls. */
import { expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import { BF16, F32 } from "../../src/device/device.js";
import { COSTS, type KernelEvent, profiled } from "../../src/device/profile.js";

const plain = currentCpu();
const events: KernelEvent[] = [];
const device = profiled(plain, (event) => events.push(event));
const at = plain.alloc(1 << 20);
const last = (): KernelEvent => events.at(-1)!;

test("a product: 2 M N K operations; both operands read, the result written", () => {
  // 2 x 3 x 4 in bf16, result in fp32, added to what is there
  device.matmul(0, 1, 2, 3, 4, 1, at, BF16, 4, at + 4096, BF16, 4, 1, at + 8192, F32, 3, 0, 1, 0, 0, 0);
  expect(last()).toMatchObject({ kernel: "matmul", flops: 48, bytes: 2 * 4 * 2 + 4 * 3 * 2 + 2 * 3 * 4 * 2 });
  expect(last().shape).toBe("2x3x4 nt");
});

test("attention: two products over the pairs that causality leaves", () => {
  plain.i32(at, 3).set([0, 3, 5]); // sequences of 3 and 2: 6 + 3 pairs
  device.attentionForward(at + 4096, at, at + 16384, at + 16384, at + 8192, at + 12288, at, 2, 5, 2, 1, 8, 0.5, F32);
  expect(last().flops).toBe(2 * 2 * 9 * 2 * 8);
  expect(last().bytes).toBe((5 * (2 + 2) * 8 + 5 * 2 * 8) * 4);
});

test("attention with a cache: every new row looks at what is cached, at those before it and at itself", () => {
  plain.i32(at, 2).set([3, 0]);
  // Two new rows each: 4 + 5 and 1 + 2 pairs for two heads of 8; queries and results, then 5 + 2 rows of one key-value head.
  const cost = COSTS.attentionCached([0, 16, 0, 0, 0, at, 2, 2, 16, 2, 1, 8, 1, F32], plain);
  expect(cost).toEqual({ flops: 4 * 12 * 2 * 8, bytes: (2 * 4 * 2 * 8 + 2 * 7 * 8) * 4 });
});

test("AdamW moves 28 bytes a parameter in fp32, 26 in bf16 with half of a master beside it, and 8 for an average", () => {
  for (const [dtype, low, ema, bytes] of [
    [F32, 0, 0, 28],
    [BF16, at + 20480, 0, 26],
    [BF16, at + 20480, at + 24576, 34],
  ] as const) {
    // biome-ignore format: one call
    device.adamw(10, at, low, at + 4096, at + 8192, ema, at + 12288, dtype, 1e-3, 0.9, 0.95, 1e-8, 0, 1, 1, 1, 0.9);
    expect(last().bytes).toBe(10 * bytes);
  }
});

test("log p and its gradients: logits, and a product of the same size for each that is asked for", () => {
  const flops = (dhidden: number, dW: number): number =>
    COSTS.logprobForwardBackward([0, 0, 0, 0, 0, 0, dhidden, dW, 7, 8, 9, 1, F32], plain).flops;
  expect([flops(64, 64), flops(64, 0), flops(0, 0)]).toEqual([3, 2, 1].map((n) => n * 2 * 7 * 8 * 9));
});

test("events carry the time of the call, and results come through", () => {
  plain.fill(at, 2, 100, F32);
  const before = performance.now();
  expect(device.sumSquares(at, 100, F32)).toBe(400);
  expect(last().start).toBeGreaterThanOrEqual(before);
  expect(last().duration).toBeGreaterThan(0);
});

test("the table names methods of the device, and no others", () => {
  for (const name of Object.keys(COSTS)) expect(typeof Reflect.get(plain, name), name).toBe("function");
});

test("a kernel of the device that is not in the table is none of a model's", () => {
  // A new kernel has to be put into one of the two lists, or its time would be reckoned as JavaScript's.
  const others =
    /^(alloc|free|mapFile|unmapFile|mapState|adviseState|bytes|bf12Bytes|bf12Rows|f32|i32|u16|init|isa|isaList|cpuName|threads)$/;
  const kernels = Object.keys(plain).filter((name) => !others.test(name) && !/^(bpe|minhash|suffix)[A-Z]/.test(name));
  expect(kernels.filter((name) => !(name in COSTS))).toEqual([]);
});
