/** The alignment commands as a user meets them: from preferences to aligned models, killed at any moment and resumed. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { killAndResume } from "./kill.js";

const bin = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const dir = mkdtempSync(join(tmpdir(), "lyceum-align-cli-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }), 60_000);

const lyceum = (...args: string[]) => {
  const r = spawnSync(process.execPath, [bin, ...args], {
    cwd: dir,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" },
  });
  return { code: r.status, out: r.stdout, err: r.stderr };
};
const jsonl = (name: string, records: object[]): void =>
  writeFileSync(join(dir, name), records.map((r) => JSON.stringify(r)).join("\n"));
const yaml = (name: string, config: object): void => writeFileSync(join(dir, `${name}.yaml`), JSON.stringify(config));
const train = (...args: string[]): void => {
  const r = lyceum(...args);
  expect(r.err).not.toContain("error:");
  expect(r.code).toBe(0);
};

const animals = ["cat", "dog", "owl", "fox"];
beforeAll(() => {
  jsonl(
    "text.jsonl",
    Array.from({ length: 40 }, (_, i) => ({ id: `${i}`, text: `I see the ${animals[i % 4]} and ${i}.` })),
  );
  jsonl(
    "sft.jsonl",
    Array.from({ length: 32 }, (_, i) => ({ instruction: `What is ${i % 8}?`, output: animals[(i * 7) % 4] })),
  );
  jsonl(
    "prompts.jsonl",
    Array.from({ length: 8 }, (_, i) => ({ prompt: `What is ${i}?` })),
  );
  jsonl(
    "pairs.jsonl",
    Array.from({ length: 12 }, (_, i) => ({ prompt: `What is ${i}?`, chosen: "owl", rejected: `cat${i}` })),
  );
  writeFileSync(join(dir, "judge.mjs"), 'export default (prompt, reply) => (reply.includes("owl") ? 1 : 0);\n');
  const quiet = { threads: 2, evalEvery: 0, saveEvery: 0 };
  yaml("base", {
    ...quiet,
    data: { train: ["text.jsonl"], validationShare: 0, contextLength: 32 },
    model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4 },
    tokenizer: { vocabSize: 300 },
    batchSize: 4,
    steps: 20,
  });
  yaml("sft", { ...quiet, from: "runs/base/model", data: { train: ["sft.jsonl"], contextLength: 64 }, steps: 30 });
  const data = { train: ["pairs.jsonl"], validationShare: 0.2, contextLength: 64 };
  const often = { threads: 2, from: "runs/sft/model", saveEvery: 2, evalEvery: 5, steps: 30 };
  const asked = { prompts: ["prompts.jsonl"], maxTokens: 6, missingEosPenalty: 0 };
  yaml("reward", { ...often, data, batchSize: 4 });
  yaml("dpo", { ...often, data, batchSize: 4, loss: "kto" });
  yaml("ppo", { ...often, ...asked, steps: 12, reward: "runs/reward/model", batchSize: 8, minibatchSize: 4 });
  yaml("grpo", { ...often, ...asked, steps: 12, reward: "judge.mjs", batchSize: 2, groupSize: 4 });
  train("pretrain", "base.yaml");
  train("sft", "sft.yaml");
  train("reward", "reward.yaml");
}, 60_000);

test.each(["reward", "dpo", "ppo", "grpo"])(
  "%s: killed at any moment and resumed, it ends with the same bytes",
  (stage) => killAndResume(stage, `${stage}.yaml`, dir),
  120_000,
);

test("what the commands say: sizes of the four models, samples with scores, the reward model's numbers", () => {
  const ppo = lyceum("ppo", "ppo.yaml", "--out", "told-ppo", "--set", "steps=1");
  expect(ppo.err).toMatch(/models: actor \d+ MiB|models: actor .*, critic .*, ref .*, reward .* in all/);
  expect(ppo.err).toMatch(/What is \d\? -> .* {2}\[-?\d+\.\d\d\]/);
  expect(readdirSync(join(dir, "told-ppo/samples"))).toEqual(["000001.txt"]);
  const lora = lyceum("ppo", "ppo.yaml", "--out", "told-lora", "--set", "steps=1", "lora.rank=2");
  expect(lora.err).toContain("ref none of its own");
  const reward = lyceum("reward", "reward.yaml", "--out", "told-reward", "--set", "steps=1");
  expect(reward.err).toMatch(/held-out prompts: loss .*accuracy .*margin .*calibrationError .*lengthCorrelation/);
  const score = lyceum("score", "runs/reward/model", "--file", "pairs.jsonl", "--json");
  const rows = JSON.parse(score.out) as { line: number; rewards: number[] }[];
  expect(rows.map((r) => r.line)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
  for (const { rewards } of rows) expect(rewards.every(Number.isFinite)).toBe(true);
}, 60_000);

test.each([
  ["reward", ["data.contextLength=9999"], /data.contextLength is 9999, but the model was made for 512 positions/],
  ["dpo", ["data.contextLength=9999"], /data.contextLength is 9999/],
  ["dpo", ["from=runs/reward/model"], /runs\/reward\/model is a reward model: it scores replies/],
  ["ppo", ["from=runs/reward/model"], /is a reward model/],
  ["ppo", ["maxTokens=512"], /maxTokens is 512; the context of runs\/sft\/model is 512/],
  ["ppo", ["maxTokens=509"], /prompts.jsonl:1: the prompt of \d+ tokens leaves no room for a reply of 509/],
  [
    "ppo",
    ["reward=runs/reward"],
    /neither a model folder nor a .js or .mjs module. Did you mean runs\/reward\/model\?/,
  ],
  ["ppo", ["reward=runs/sft/model"], /is a language model, not a reward model/],
  ["grpo", ["groupSize=1"], /groupSize is 1; it must be at least 2/],
  ["dpo", ["beta=0"], /beta is 0; it must be more than 0/],
])(
  "%s %s is refused",
  (stage, set, message) => {
    const r = lyceum(stage, `${stage}.yaml`, "--out", `refused-${stage}`, "--set", ...set);
    rmSync(join(dir, `refused-${stage}`), { recursive: true, force: true });
    expect(r.err).toMatch(message);
    expect(r.err).not.toMatch(/\n\s+at .*:\d+:\d+/);
    expect([1, 2]).toContain(r.code);
  },
  30_000,
);

test.each([
  ["await new Promise(() => {}); export default () => 1", /cannot be loaded: its promise never settles/],
  ["throw null; export default 1", /cannot be loaded: null/],
  ["Promise.reject(new Error('beside')); export default () => 1", /cannot be loaded: beside/],
  ["export default () => new Promise(() => {})", /failed on the prompt of .*: its promise never settles/],
  ["export default () => ({ then() {} })", /failed on the prompt of .*: its promise never settles/],
  ["export default () => { throw Object.create(null) }", /failed on the prompt of .*: \[Object: null prototype\] \{\}/],
  ["export default () => Object.create(null)", /gave \[Object: null prototype\] \{\} for a reply/],
  ["export default () => ({ toString() { throw 5 } })", /gave \{ toString: \[Function: toString\] \} for a reply/],
  ["export default () => '3'", /gave '3' for a reply/],
  [
    "export default () => { setTimeout(() => { throw new Error('later') }); return new Promise((r) => setTimeout(r, 99, 1)) }",
    /failed on the prompt of .*: later/,
  ],
  ["export default () => { Promise.reject(new Error('beside')); return 1 }", /failed on the prompt of .*: beside/],
])(
  "a reward module that is no good is told by its name: %s",
  (code, message) => {
    writeFileSync(join(dir, "odd.mjs"), `${code};\n`);
    const r = lyceum("grpo", "grpo.yaml", "--out", "odd", "--set", "reward=odd.mjs", "steps=1");
    rmSync(join(dir, "odd"), { recursive: true, force: true });
    expect(r.err).toMatch(new RegExp(`error: odd\\.mjs ${message.source}`));
    expect(r.err).not.toMatch(/\n\s+at .*:\d+|a bug in Lyceum/);
    expect(r.code).toBe(1);
  },
  30_000,
);

test("a reward that fails loses nothing: the steps before it are saved, and a mended module goes on", () => {
  const failing = (after: number): string =>
    `let calls = 0;\nexport default (prompt, reply) => {\n  if (++calls > ${after}) throw new Error("quota");\n  return reply.length % 3;\n};\n`;
  for (const [stage, set] of [
    ["grpo", ["steps=4"]],
    ["ppo", ["steps=4", "critic=runs/reward/model"]],
  ] as const) {
    const module = join(dir, `${stage}-quota.mjs`);
    const args = [
      stage,
      `${stage}.yaml`,
      "--out",
      `quota-${stage}`,
      "--set",
      `reward=${stage}-quota.mjs`,
      "saveEvery=0",
      ...set,
    ];
    writeFileSync(module, failing(20)); // eight replies a step
    const failed = lyceum(...args);
    expect(failed.code).toBe(1);
    expect(failed.err).toMatch(
      /-quota\.mjs failed on the prompt of prompts\.jsonl:\d: quota\. Step 2 is saved: .*--resume/,
    );
    expect(readdirSync(join(dir, `quota-${stage}/checkpoints`))).toEqual(["000002"]);
    writeFileSync(module, failing(1000));
    const mended = lyceum(...args, "--resume");
    expect(mended.err).toMatch(/since the run began: .*-quota\.mjs has changed/);
    expect(mended.err).toMatch(/going on after step 2 of 4/);
    expect(mended.code).toBe(0);
  }
}, 60_000);

test("rewards that never come, and a module that is no JavaScript, are told", () => {
  writeFileSync(join(dir, "never.mjs"), "export default () => new Promise(() => {});\n");
  writeFileSync(join(dir, "typo.mjs"), "// a comment\nexport default () => { let x = ; };\n");
  const said = (module: string): string => {
    const r = lyceum("grpo", "grpo.yaml", "--out", `run-${module}`, "--set", `reward=${module}`);
    expect(r.code).toBe(1);
    return r.err;
  };
  expect(said("never.mjs")).toMatch(/never\.mjs failed on the prompt of .*: its promise never settles/);
  expect(said("typo.mjs")).toMatch(/error: typo\.mjs:2 cannot be loaded: Unexpected token/);
}, 60_000);

test("data that has changed since the run began is refused, and put back it goes on", () => {
  const args = ["reward", "reward.yaml", "--out", "changed", "--set"];
  expect(lyceum(...args, "steps=2").code).toBe(0);
  const text = readFileSync(join(dir, "pairs.jsonl"), "utf8");
  writeFileSync(join(dir, "pairs.jsonl"), text.replace("owl", "cow"));
  const refused = lyceum(...args, "steps=3", "--resume");
  expect(refused.err).toMatch(/pairs\.jsonl \(data\.train\.0\) is not what the run in changed began with/);
  expect(refused.code).toBe(2);
  writeFileSync(join(dir, "pairs.jsonl"), text);
  expect(lyceum(...args, "steps=3", "--resume").code).toBe(0);
}, 60_000);
