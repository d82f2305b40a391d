// `npm run bench -- NAME ...`: runs bench/NAME.mjs, or lists what there is.
import { existsSync, readdirSync } from "node:fs";

const here = new URL(".", import.meta.url);
const names = readdirSync(here)
  .filter((f) => f.endsWith(".mjs") && f !== "main.mjs")
  .map((f) => f.slice(0, -4))
  .sort();
const [name, ...rest] = process.argv.slice(2);

/** Says what is wrong and ends; 2 is the exit code for usage. */
function refuse(message) {
  console.error(message);
  process.exit(2);
}

if (!name || !names.includes(name))
  refuse(
    `${name ? `There is no benchmark "${name}".` : "Which benchmark?"} There are:\n${names.map((n) => `  npm run bench -- ${n}`).join("\n")}\nEach takes --help.`,
  );
if (!existsSync(new URL("../dist/nn/llama.js", here))) refuse('Lyceum is not built. Run "npm run build" first.');

const { default: main, UsageError } = await import(`./${name}.mjs`);
try {
  await main(rest);
} catch (error) {
  if (error.code?.startsWith("ERR_PARSE_ARGS") || (UsageError && error instanceof UsageError)) refuse(error.message);
  throw error;
}
