// Loaded before `corpus build` (node --import) in corpus.test.ts: rank $KILL_RANK dies by SIGKILL when it comes to the
// $KILL_AFTER-th step of its units ("unit"), or exchange of bands ("all-to-all"). The program knows nothing of it.
import { BuildFolder } from "../../dist/corpus/folder.js";
import { openCpu } from "../../dist/device/cpu.js";
import { openWorld } from "../../dist/parallel/grid.js";
import { launched } from "../../dist/parallel/mpi.js";

const { KILL_AT, KILL_RANK, KILL_AFTER } = process.env;
if (launched()) {
  const world = openWorld(openCpu({ threads: 1 })); // the program's own: there is one
  const before = (object, method, place) => {
    const original = object[method];
    let calls = 0;
    object[method] = function (...args) {
      if (place === KILL_AT && world.rank === Number(KILL_RANK) && ++calls === Number(KILL_AFTER)) {
        process.stderr.write(`killed in ${place}\n`);
        process.kill(process.pid, "SIGKILL");
        for (;;);
      }
      return original.apply(this, args);
    };
  };
  before(BuildFolder.prototype, "commit", "unit");
  before(world, "allToAll", "all-to-all");
}
