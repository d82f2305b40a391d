/** The built program, for tests that need a process or threads: compiled once beside the sources, so that it is never an old one. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, symlinkSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

export function buildProgram(): string {
  const out = `${root}.cache/corpus-test`;
  mkdirSync(out, { recursive: true });
  // Types are checked elsewhere: the compiler also writes what has an error in its types.
  spawnSync(process.execPath, [
    `${root}node_modules/typescript/bin/tsc`,
    "-p",
    `${root}tsconfig.build.json`,
    "--outDir",
    `${out}/dist`,
  ]);
  for (const beside of ["native", "package.json"])
    if (!existsSync(`${out}/${beside}`)) symlinkSync(`${root}${beside}`, `${out}/${beside}`);
  return `${out}/dist/cli/main.js`;
}
