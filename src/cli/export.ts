/** `lyceum export MODEL --out FILE.gguf`. */
import { type ExportType, exportGguf } from "../export/model.js";
import { UserError } from "../run/errors.js";
import { mebibytes } from "../run/progress.js";

export function command(dir: string, flags: { out: string; type?: string }): void {
  const { out, type } = flags;
  if (!out.endsWith(".gguf")) throw new UserError(`--out is "${out}"; the file's name must end in .gguf.`, 2);
  const made = exportGguf(dir, out, type as ExportType | undefined);
  console.log(
    `${out}: ${made.type}, ${made.bytes < 2 ** 21 ? `${Math.ceil(made.bytes / 1024)} KiB` : mebibytes(made.bytes)}`,
  );
}
