// Builds the CPU engine: every native/*.c, once per instruction set, into native/build/lyceum-ISA.so.
// Run by `npm install`, so it uses nothing but Node. LYCEUM_ISA_BUILD=avx2 builds only that one, and portable, which is always opened.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const V3 = ["-march=x86-64-v3"];
const V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"];
const TARGETS = {
  x64: {
    portable: [],
    avx2: V3,
    avx512: V4,
    avx512bf16: [...V4, "-mavx512bf16", "-mavx512vnni"],
    amx: [...V4, "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mprfchw"],
  },
  arm64: { portable: [], neon: ["-O3"] },
}[process.arch] ?? { portable: [] };

const cc = [process.env.CC, "cc", "gcc", "clang"].find((c) => c && spawnSync(c, ["--version"]).status === 0);
if (!cc) {
  console.error(
    "Lyceum's CPU engine needs a C compiler and none was found: install the package gcc (Debian, Ubuntu: apt-get install gcc libc6-dev; Fedora: dnf install gcc; macOS: xcode-select --install), then run npm install again.",
  );
  process.exit(1);
}

const files = [...readdirSync(here), ...readdirSync(`${here}text`).map((f) => `text/${f}`)].sort();
const sources = files.filter((f) => f.endsWith(".c"));
const inputs = files.filter((f) => /\.(c|h|mjs)$/.test(f));
const newest = Math.max(...inputs.map((f) => statSync(here + f).mtimeMs));
const FLAGS = [
  ..."-O3 -std=gnu11 -fPIC -shared -Wall -Wextra -fno-math-errno -fno-trapping-math -ffp-contract=fast".split(" "),
  // The pool's threads live in the library's code: it must stay mapped when its last handle goes.
  ...(process.platform === "linux" ? ["-Wl,-z,nodelete"] : []),
  // Reductions may be reordered (that is what vectorises them); NaN and infinity keep their meaning.
  ..."-fassociative-math -fno-signed-zeros -freciprocal-math".split(" "),
];
mkdirSync(`${here}build`, { recursive: true });

const library = (isa) => `${here}build/lyceum-${isa}.so`;
const isNew = (isa) => existsSync(library(isa)) && statSync(library(isa)).mtimeMs > newest;

/** Undefined when the library is built, else why it is not. */
function build(isa, flags) {
  if (isNew(isa)) return undefined;
  if (spawnSync(cc, [...flags, "-x", "c", "-fsyntax-only", "/dev/null"]).status !== 0) return `${cc} does not offer it`;
  const partial = `${library(isa)}.${process.pid}`;
  const define = [`-DLY_ISA_NAME="${isa}"`, `-DLY_ISA_${isa.toUpperCase()}=1`];
  const args = [...FLAGS, ...flags, ...define, ...sources.map((s) => here + s), "-o", partial, "-lm", "-lpthread"];
  return new Promise((done) => {
    let said = "";
    const child = spawn(cc, args);
    child.stderr.on("data", (d) => {
      said += d;
    });
    child.on("close", (code) => {
      if (said) console.error(said.trim());
      if (code !== 0) done(`${cc} ended with ${code}; its messages stand above`);
      else if (!existsSync(partial)) done(`${cc} made no file`);
      else done(renameSync(partial, library(isa)));
    });
  });
}

const only = (process.env.LYCEUM_ISA_BUILD || undefined)?.split(",");
const unknown = only?.find((isa) => !Object.keys(TARGETS).includes(isa));
if (unknown !== undefined) {
  console.error(
    `LYCEUM_ISA_BUILD names "${unknown}"; for this processor there are ${Object.keys(TARGETS).join(", ")}.`,
  );
  process.exit(2);
}
const wanted = (isa) => isa === "portable" || !only || only.includes(isa);
const queue = Object.entries(TARGETS).filter(([isa]) => wanted(isa));
const built = new Set();
const failed = new Map();
const worker = async () => {
  for (let job = queue.shift(); job; job = queue.shift()) {
    const why = await build(...job);
    if (why) failed.set(job[0], why);
    else built.add(job[0]);
  }
};
await Promise.all([worker(), worker()]);
// One of older sources does not stay: it would be opened with the new header.
for (const isa of Object.keys(TARGETS)) if (!built.has(isa) && !isNew(isa)) rmSync(library(isa), { force: true });
if (failed.has("portable")) {
  console.error(`The CPU engine could not be built: ${failed.get("portable")}.`);
  process.exit(1);
}
for (const [isa, why] of failed) console.error(`Left out: ${isa} (${why}).`);
