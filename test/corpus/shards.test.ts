/** Token shards whose files are damaged: each is named, with what mends it. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, test } from "vitest";
import { readManifest, Shards, writeShards } from "../../src/corpus/shards.js";
import { openCpu } from "../../src/device/cpu.js";
import { systemMessage, UserError } from "../../src/run/errors.js";
import { trainBpe } from "../../src/tokenizer/train.js";

const root = mkdtempSync(join(tmpdir(), "lyceum-shards-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const tokenizer = trainBpe(["a b c"], { vocabSize: 257 });
const dir = join(root, "train");
beforeEach(async () => {
  rmSync(dir, { recursive: true, force: true });
  const source = { file: "x", line: 1 };
  const documents = ["ab", "c"].map((text) => ({ id: text, text, source, dataset: "", metadata: {} }));
  await writeShards(documents, tokenizer, dir);
});
const manifest = (): Record<string, unknown> => JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8"));

const wrong: [what: string, file: string, damage: (path: string) => void, why: string][] = [
  ["cut short", "manifest.json", (path) => truncateSync(path, 20), "it is not JSON, or was cut short"],
  ["empty", "manifest.json", (path) => writeFileSync(path, ""), "it is not JSON"],
  ["a list", "manifest.json", (path) => writeFileSync(path, "[]"), ""],
  ["null", "manifest.json", (path) => writeFileSync(path, "null"), ""],
  ...Object.entries({
    tokens: "5",
    documents: 1.5,
    bytes: -1,
    dtype: "int8",
    vocabSize: null,
    tokenizer: 3,
  }).map(([key, value]): (typeof wrong)[number] => [
    `${key} ${value}`,
    "manifest.json",
    (path) => writeFileSync(path, JSON.stringify({ ...manifest(), [key]: value })),
    `${key}: `,
  ]),
  ["more documents", "documents.bin", (path) => writeFileSync(path, Buffer.alloc(12)), "it has 12 bytes, but"],
  ["half a number", "documents.bin", (path) => truncateSync(path, 7), "it has 7 bytes, but its manifest promises 8"],
  ["no documents", "documents.bin", (path) => truncateSync(path, 0), "it has 0 bytes"],
  [
    "other lengths",
    "documents.bin",
    (path) => writeFileSync(path, Uint32Array.of(3, 3)),
    "its documents have 6 tokens",
  ],
  ["missing", "documents.bin", (path) => rmSync(path), "it has 0 bytes"],
  ["missing", "tokens.bin", (path) => rmSync(path), "it has 0 bytes"],
  ["empty", "tokens.bin", (path) => truncateSync(path, 0), "it has 0 bytes"],
  ["fewer tokens", "tokens.bin", (path) => truncateSync(path, 4), "it has 4 bytes, but its manifest promises 10"],
];
test.each(wrong)("%s: %s", (_, file, damage, why) => {
  damage(`${dir}/${file}`);
  const open = () => new Shards(openCpu(), dir, tokenizer);
  expect(open).toThrow(UserError);
  expect(open).toThrow(`${dir}/${file}: ${why}`);
  expect(open).toThrow(`the shards are damaged. Delete ${dir} and start again`);
});

test("a folder in the place of the manifest", () => {
  rmSync(`${dir}/manifest.json`);
  mkdirSync(`${dir}/manifest.json`);
  let told: string | undefined;
  try {
    readManifest(dir);
  } catch (error) {
    told = systemMessage(error);
  }
  expect(told).toBe(`${dir}/manifest.json is a folder, where a file is meant.`);
});
