// Trains a tokenizer on corpus.json and writes it, with the ids of texts.json: node ours.mjs PRETOKENIZER DIR.
import { readFileSync, writeFileSync } from "node:fs";
import { trainBpe } from "../../../dist/tokenizer/train.js";

const [pretokenizer, dir] = process.argv.slice(2);
const read = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url), "utf8"));
const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"];
const tokenizer = trainBpe(read("corpus.json"), { vocabSize: 1000, pretokenizer, specialTokens });
tokenizer.addSpecialTokens(["<|更多|>"]);
tokenizer.save(dir);
const { texts } = read("texts.json");
texts.push("<|更多|> 你好");
const ids = texts.map((t) => Array.from(tokenizer.encode(t)));
writeFileSync(`${dir}/ids.json`, JSON.stringify({ texts, ids, decoded: ids.map((i) => tokenizer.decode(i)) }));
