/** What a program that imports `lyceum` can use: models, tokenizers, generation and the stages themselves. */
export { type CpuOptions, openCpu } from "./device/cpu.js";
export type { Device } from "./device/device.js";
export { DialogueEncoder } from "./dialogue/mask.js";
export type { Message } from "./dialogue/templates.js";
export { type ExportType, exportGguf } from "./export/model.js";
export { type Generated, type GenerateOptions, generate, generateAsync } from "./generate/generate.js";
export { type Loaded, loadForGeneration } from "./generate/loaded.js";
export { Int8Weights, PackedWeights } from "./generate/weights.js";
export type { LlamaConfig } from "./nn/config.js";
export { loadLlama, saveLlama } from "./nn/folder.js";
export { Llama, packSequences, type TokenBatch } from "./nn/llama.js";
export { NonFiniteError, UserError } from "./run/errors.js";
export { RunFolder } from "./run/folder.js";
export { STAGES, type Stage } from "./stages/registry.js";
export { Tape, Tensor } from "./tensor/tensor.js";
export { Tokenizer } from "./tokenizer/tokenizer.js";
export { type TrainOptions, trainBpe } from "./tokenizer/train.js";
