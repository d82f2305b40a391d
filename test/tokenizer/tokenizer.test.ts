import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Tokenizer as Peer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { trainBpe } from "../../src/tokenizer/train.js";

const text =
  readFileSync(fileURLToPath(new URL("../../native/lyceum.h", import.meta.url)), "utf8") +
  "北京是中国的首都。".repeat(20);

test.each(["gpt2", "llama3", "qwen"] as const)(
  "%s: any text comes back, and ids equal Hugging Face's",
  (pretokenizer) => {
    const tokenizer = trainBpe([text], { vocabSize: 600, pretokenizer });
    expect(tokenizer.vocabSize).toBe(600);
    const dir = mkdtempSync(join(tmpdir(), "lyceum-"));
    tokenizer.save(dir);
    const again = Tokenizer.load(dir);
    rmSync(dir, { recursive: true });
    const peer = new Peer(again.json as never, again.config as never);
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 60 }), (s) => {
        const ids = again.encode(s);
        expect(again.decode(ids)).toBe(s);
        expect(Array.from(ids)).toEqual(Array.from(peer.encode(s, { add_special_tokens: false }).ids));
      }),
      { numRuns: 300 },
    );
    const stream = again.stream();
    const sample = "héllo 你好 👩‍👩‍👧";
    expect([...again.encode(sample)].map((id) => stream.push(id)).join("") + stream.end()).toBe(sample);
  },
);
