// Runs a list of stages one after the other, on as many ranks as were started: most of the time of a small run is the
// start of its processes. argv[2]: a JSON file with [{ stage, file, out, resume, set }]. Before each, rank 0 writes a line.
import { readFileSync } from "node:fs";
import { command } from "../../dist/cli/stage.js";
import { launched } from "../../dist/parallel/mpi.js";

const first = (launched()?.rank ?? 0) === 0;
for (const [i, { stage, file, ...flags }] of JSON.parse(readFileSync(process.argv[2], "utf8")).entries()) {
  if (first) process.stderr.write(`=== job ${i}\n`);
  try {
    await command(stage, file, flags);
  } catch (error) {
    // What all ranks refuse. An error of one rank alone leaves the others waiting, and ends in their time limit.
    if (first) process.stderr.write(`error: ${error.message}\n${error.name === "UserError" ? "" : error.stack}\n`);
  }
}
