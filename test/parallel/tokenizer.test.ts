/** A tokenizer that several processes train has the bytes of one that one process trains. */
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { beforeAll, describe, expect, test } from "vitest";
import { currentCpu } from "../../src/device/cpu.js";
import type { Comm } from "../../src/parallel/comm.js";
import { ALPHABET } from "../../src/tokenizer/bytes.js";
import { NativeTrainer } from "../../src/tokenizer/native.js";
import { hasMpi, program, runRanks } from "./ranks.js";

const root = mkdtempSync(`${tmpdir()}/lyceum-tokenizer-ranks-`);
const lyceum = program("../../dist/cli/main.js");
const syllables = "har bour qui et win ter 天 地 玄 é ü anti dis establish ment 12 3456 \t \n ' don't".split(" ");
/** Words of every length, some longer than 15 bytes, some in one file only. */
const text = (n: number): string =>
  Array.from({ length: 200 }, (_, i) =>
    Array.from(
      { length: 1 + ((i * n) % 6) },
      (_, j) => syllables[(i * i + j * j * i + n * n * (j + 1)) % syllables.length],
    ).join(""),
  ).join(" ");
const lines = (from: number, to: number): string =>
  Array.from({ length: to - from }, (_, i) => `${JSON.stringify({ text: text(from + i) })}\n`).join("");

beforeAll(() => {
  mkdirSync(`${root}/many`);
  for (let f = 0; f < 7; f++) writeFileSync(`${root}/many/${f}.jsonl`, `${lines(f * 11, f * 11 + 11)}not JSON\n`);
  writeFileSync(`${root}/one.jsonl`, `${lines(0, 77)}not JSON\n`);
  writeFileSync(
    `${root}/p.yaml`,
    `model: { hiddenSize: 32, intermediateSize: 64, numLayers: 1, numHeads: 2 }
tokenizer: { vocabSize: 500 }
data: { train: [one.jsonl], contextLength: 32, validationShare: 0 }
batchSize: 3
steps: 1
threads: 1
`,
  );
});

describe.runIf(hasMpi)("several processes", () => {
  const train = (ranks: number, input: string): string => {
    const out = `${root}/${ranks} ${input}`;
    const args = ["tokenizer", "train", `${root}/${input}`, "--vocab-size", "600", "--out", out];
    const { status, stdout, stderr } = runRanks(ranks, lyceum, args);
    expect(status, stderr).toBe(0);
    expect(stdout).toContain(`600 tokens from 77 documents`);
    expect(stderr.match(/set aside/g)).toHaveLength(input === "many" ? 7 : 1);
    return readFileSync(`${out}/tokenizer.json`, "utf8");
  };

  test("tokenizer train: from many files, and from fewer than there are processes", () => {
    const one = train(0, "many");
    expect(train(0, "one.jsonl")).toBe(one);
    for (const ranks of [2, 3]) for (const input of ["many", "one.jsonl"]) expect(train(ranks, input)).toBe(one);
    expect(train(8, "many")).toBe(one);
  });

  test("pretrain", () => {
    const tokenizer = (ranks: number): string => {
      const { status, stderr } = runRanks(ranks, lyceum, ["pretrain", `${root}/p.yaml`, "--out", `${root}/p${ranks}`]);
      expect(status, stderr).toBe(0);
      return readFileSync(`${root}/p${ranks}/model/tokenizer.json`, "utf8");
    };
    expect(tokenizer(3)).toBe(tokenizer(0));
  });

  test("mistakes are told once", () => {
    const missing = ["tokenizer", "train", `${root}/gone.jsonl`, "--vocab-size", "600", "--out", `${root}/nothing`];
    const told = runRanks(2, lyceum, missing);
    expect(told.status).not.toBe(0);
    expect(told.stderr.match(/gone.jsonl does not exist/g)).toHaveLength(1);
    writeFileSync(`${root}/nothing.jsonl`, "not JSON\n");
    const args = ["tokenizer", "train", `${root}/nothing.jsonl`, "--vocab-size", "600", "--out", `${root}/nothing`];
    const { status, stderr } = runRanks(2, lyceum, args);
    expect(status).not.toBe(0);
    expect(stderr.match(/There is no text to train a tokenizer on/g)).toHaveLength(1);
  });
});

test("counts that were handed on are as good as counted: words of all lengths, and none", () => {
  const device = currentCpu();
  const messages: Uint8Array[] = [];
  const peer = (rank: number) =>
    ({
      rank,
      size: 2,
      send: (at: number, bytes: number) => messages.push(device.bytes(at, bytes).slice()),
      recv: (at: number, bytes: number) => device.bytes(at, bytes).set(messages.shift()!),
    }) as unknown as Comm;
  const texts = Array.from({ length: 40 }, (_, i) => text(i));
  const merged = (first: readonly string[], second: readonly string[]) => {
    const [to, from] = [NativeTrainer.open("llama3")!, NativeTrainer.open("llama3")!];
    for (const text of first) to.add(text);
    for (const text of second) from.add(text);
    from.collect(peer(1));
    to.collect(peer(0));
    expect(messages).toEqual([]);
    const found = [to.words, to.merge(ALPHABET, 500, 2)];
    for (const trainer of [to, from]) trainer.close();
    return found;
  };
  const expected = merged(texts, []);
  expect(merged([], texts)).toEqual(expected);
  expect(merged(texts.slice(0, 11), texts.slice(11))).toEqual(expected);
});
