/** Which stage a file is for, as `plan` and `profile` ask, which are not for one stage alone: by --stage, by the file's word, or by its keys. */
import type { z } from "zod";
import { nearest } from "../run/config.js";
import { UserError } from "../run/errors.js";
import type { Stage } from "../stages/registry.js";

type Json = Record<string, unknown>;

/** The stages that a command is for, and how messages begin that list them: "plan covers". */
export interface Coverage<S extends string> {
  stages: readonly S[];
  says: string;
}

/** `name`, which `told` says the origin of, as one of the command's stages. Throws UserError (exit code 2) when it is none. */
export async function coveredStage<S extends string>(name: string, told: string, c: Coverage<S>): Promise<S> {
  const found = c.stages.find((s) => s === name);
  if (found !== undefined) return found;
  const { STAGES } = await import("../stages/registry.js");
  // Who names a stage that there is did not mean one that is spelled much like it (grpo, ppo).
  const near = Object.hasOwn(STAGES, name) ? undefined : nearest(name, c.stages);
  const hint = near === undefined ? "" : ` Did you mean "${near}"?`;
  throw new UserError(`${told}; ${c.says} ${c.stages.join(", ")}.${hint}`, 2);
}

/** The stage of a file that holds one stage's settings. Throws UserError (exit code 2) where several are possible. */
export async function stageOf<S extends string>(file: string, settings: Json, c: Coverage<S>): Promise<S> {
  if (settings.sources !== undefined)
    throw new UserError(`${file} is the recipe of a corpus; ${c.says} ${c.stages.join(", ")}.`, 2);
  if (settings.stage !== undefined)
    return coveredStage(String(settings.stage), `stage in ${file} is "${settings.stage}"`, c);
  const { STAGES } = await import("../stages/registry.js");
  const fitting = stagesWithKeys(settings, STAGES);
  if (fitting.length === 1) return coveredStage(fitting[0], `${file} has the keys of the stage ${fitting[0]}`, c);
  const possible = c.stages.filter((s) => fitting.includes(s));
  if (possible.length === 1) return possible[0];
  const choice = possible.length > 0 ? possible : c.stages;
  const suits = fitting.length > 0 ? `, and its keys suit ${fitting.join(", ")}` : "";
  throw new UserError(
    `${file} does not say which stage it is for${suits}: give --stage ${choice.join(" or --stage ")}.`,
    2,
  );
}

/** The stages that know all keys, but for those that none knows (mistyped ones); of several, those that take the values as well. */
function stagesWithKeys(settings: Json, stages: Record<string, Stage>): string[] {
  const names = Object.keys(stages);
  const knows = (name: string, key: string): boolean => Object.hasOwn((stages[name].schema as z.ZodObject).shape, key);
  const keys = Object.keys(settings).filter((key) => names.some((name) => knows(name, key)));
  const fitting = names.filter((name) => keys.every((key) => knows(name, key)));
  if (fitting.length === 1) return fitting;
  const satisfied = fitting.filter((name) => stages[name].schema.safeParse(settings).success);
  return satisfied.length > 0 ? satisfied : fitting;
}
