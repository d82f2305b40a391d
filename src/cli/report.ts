/** `lyceum report RUN`: the page of a run, written again from its files (a run that was killed has one of its last checkpoint). */
import { existsSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { UserError } from "../run/errors.js";
import { reportOf } from "../run/report.js";

export function command(dir: string): void {
  if (!existsSync(`${dir}/metrics.jsonl`))
    throw new UserError(
      `${dir} is not the folder of a training run: there is no metrics.jsonl in it.${stagesOf(dir)}`,
      2,
    );
  writeFileSync(`${dir}/report.html`, reportOf(dir));
  console.log(`${dir}/report.html`);
}

/** Of a recipe's folder, where its stages are. */
function stagesOf(dir: string): string {
  const names =
    existsSync(dir) && statSync(dir).isDirectory()
      ? readdirSync(dir).filter((name) => existsSync(`${dir}/${name}/metrics.jsonl`))
      : [];
  return names.length > 0 ? ` These are: ${names.map((name) => `${dir}/${name}`).join(", ")}.` : "";
}
