// Loaded before the program (node --import) in failure.test.ts: rank $KILL_RANK dies by SIGKILL at a named place, in the
// middle of step $KILL_STEP. The program knows nothing of it.
import { Llama } from "../../dist/nn/llama.js";
import { launched } from "../../dist/parallel/mpi.js";
import { ZeroKeeper } from "../../dist/parallel/zero.js";
import { SharedWriter } from "../../dist/run/safetensors.js";
import { ParameterSet } from "../../dist/tensor/parameters.js";
import { Tape } from "../../dist/tensor/tensor.js";

const { KILL_AT, KILL_RANK, KILL_STEP } = process.env;
let step = 1;
if (launched()?.rank === Number(KILL_RANK)) {
  const before = (type, method, act) => {
    const original = type.prototype[method];
    type.prototype[method] = function (...args) {
      act(...args);
      return original.apply(this, args);
    };
  };
  const at = (place, condition = true) => {
    if (place !== KILL_AT || step !== Number(KILL_STEP) || !condition) return;
    process.stderr.write(`killed in ${place}\n`);
    process.kill(process.pid, "SIGKILL");
    for (;;);
  };
  before(ParameterSet, "clearGrads", () => step++);
  before(Llama, "layer", (tape, _h, index) => at("forward", tape.recording && index === 1));
  before(Tape, "accumulate", () => at("backward"));
  // A reduction is under way: this rank has sent its part of one unit and dies before the next.
  let reductions = 0;
  before(ZeroKeeper, "reduce", () => at("all-reduce", step === Number(KILL_STEP) && ++reductions > 1));
  let offers = 0;
  const save = SharedWriter.prototype.offer;
  SharedWriter.prototype.offer = function (name, data) {
    // The checkpoint after step n is written when the gradients of n are cleared; half of its tensors are there.
    if (KILL_AT === "checkpoint" && step === Number(KILL_STEP) + 1 && ++offers > 8) {
      process.stderr.write("killed in checkpoint\n");
      process.kill(process.pid, "SIGKILL");
      for (;;);
    }
    return save.call(this, name, data);
  };
}
