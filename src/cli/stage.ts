/** `lyceum pretrain | sft | ...`: one stage, from a YAML file. */

import { existsSync } from "node:fs";
import { basename, dirname, extname } from "node:path";
import { applyOverrides, check, readYaml } from "../run/config.js";
import { RunFolder } from "../run/folder.js";

export interface StageFlags {
  out?: string;
  resume?: boolean;
  set?: string[];
}

/** Keys whose values are files or folders; they are looked for beside the YAML file first, then from the current folder. */
const PATHS = new Set([
  "train",
  "validation",
  "from",
  "tokenizer",
  "file",
  "reward",
  "critic",
  "prompts",
  "models",
  "reference",
]);

export function locate(value: unknown, beside: string, key = ""): unknown {
  if (typeof value === "string" && PATHS.has(key)) {
    const near = `${beside}/${value}`;
    return !value.startsWith("/") && beside !== "." && existsSync(near) ? near : value;
  }
  if (Array.isArray(value)) return value.map((v) => locate(v, beside, key));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, locate(v, beside, k)]));
}

/** Runs a stage by its name. Prints where its result is. */
export async function command(name: string, file: string, flags: StageFlags): Promise<void> {
  const { STAGES } = await import("../stages/registry.js");
  const { schema, run } = STAGES[name];
  const source = readYaml(file);
  const value = locate(applyOverrides(source.value, flags.set ?? []), dirname(file));
  const config = check(schema, { ...source, value }) as { keepCheckpoints?: number };
  const dir = flags.out ?? `runs/${basename(file, extname(file))}`;
  const folder = RunFolder.open(dir, config, { resume: flags.resume, keepCheckpoints: config.keepCheckpoints ?? 1 });
  try {
    await run(config as never, folder);
  } finally {
    folder.close();
  }
  console.log(name === "prefer" ? `${dir}/preferences.jsonl` : `${dir}/model`);
}
