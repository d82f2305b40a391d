// Greedy decoding of one reply by llama.cpp, through node-llama-cpp: a line in, {batch, prompt, tokens}, a line out, {seconds}.
//   node llama_decode.mjs FOLDER_WITH_NODE_LLAMA_CPP MODEL.gguf THREADS
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, modelPath, threads] = process.argv.slice(2);
const found = createRequire(`${folder}/`).resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(found).href);
const llama = await getLlama({
  gpu: false,
  build: "never",
  logLevel: LlamaLogLevel.error,
  maxThreads: Number(threads),
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 1024, threads: Number(threads) });
const sequence = context.getSequence();
const V = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
for await (const line of createInterface({ input: process.stdin })) {
  const { prompt, tokens } = JSON.parse(line);
  const ids = Array.from({ length: prompt }, () => Math.floor(Math.random() * V));
  await sequence.clearHistory();
  const start = process.hrtime.bigint();
  let made = 0;
  for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) if (++made === tokens) break;
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  if (made !== tokens) throw new Error(`a reply ended after ${made} tokens`);
  console.log(JSON.stringify({ seconds }));
}
process.exit(0);
