/** `lyceum tokenizer train | encode`. */
import { existsSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { type Rejected, readDocuments } from "../corpus/read.js";
import { type Comm, sumNumbers } from "../parallel/comm.js";
import { launched } from "../parallel/mpi.js";
import { UserError } from "../run/errors.js";
import type { Pretokenizer } from "../tokenizer/pretokenize.js";
import { PRETOKENIZERS } from "../tokenizer/pretokenize.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { trainBpeOn, trainBpeTogether } from "../tokenizer/train.js";

interface TrainFlags {
  vocabSize: string;
  out: string;
  pretokenizer: string;
  special: string[];
}

/** Ids have 21 bits in the engine's table. */
const MOST_TOKENS = 2 ** 21;

export async function train(files: string[], flags: TrainFlags): Promise<void> {
  if (!PRETOKENIZERS.some((name) => name === flags.pretokenizer))
    throw new UserError(`--pretokenizer is "${flags.pretokenizer}"; it must be one of ${PRETOKENIZERS.join(", ")}.`, 2);
  if (!/^\d+$/.test(flags.vocabSize))
    throw new UserError(`--vocab-size is "${flags.vocabSize}"; it must be a whole number.`, 2);
  if (Number(flags.vocabSize) >= MOST_TOKENS)
    throw new UserError(`--vocab-size is "${flags.vocabSize}"; it must be less than ${MOST_TOKENS}.`, 2);
  if (existsSync(`${flags.out}/tokenizer.json`))
    throw new UserError(
      `${flags.out} has a tokenizer.json, perhaps a model's own. Name another folder with --out, or delete it.`,
      2,
    );
  const world = await join();
  const rejected: Rejected[] = [];
  let documents = 0;
  const texts = async function* () {
    for await (const { text } of readDocuments(files, rejected, "the command's files", world)) {
      documents++;
      yield text;
    }
    const aside = world ? everyones(world, rejected) : rejected;
    for (const r of aside.slice(0, MOST_TOLD)) console.error(`set aside: ${r.file}:${r.line}: ${r.reason}`);
    if (aside.length > MOST_TOLD) console.error(`... and ${aside.length - MOST_TOLD} records more`);
  };
  const options = {
    vocabSize: Number(flags.vocabSize),
    pretokenizer: flags.pretokenizer as Pretokenizer,
    specialTokens: flags.special,
  };
  const tokenizer = world ? await trainBpeTogether(texts(), options, world) : await trainBpeOn(texts(), options);
  if (world) [documents] = sumNumbers(world, [documents]);
  if (!tokenizer) return;
  tokenizer.save(flags.out);
  const fewer = tokenizer.vocabSize < options.vocabSize;
  console.log(
    `${flags.out}: ${tokenizer.vocabSize} tokens from ${documents} documents${fewer ? "; no more pairs stand in them twice" : ""}`,
  );
}

/** Records set aside that are told one by one. */
const MOST_TOLD = 20;

/** Under mpirun: all processes of the job, which share a host's cores. Each counts the words of its share of the documents. */
async function join(): Promise<Comm | undefined> {
  if (!launched()) return undefined;
  const { openCpu } = await import("../device/cpu.js");
  const { openWorld, threadsPerRank } = await import("../parallel/grid.js");
  const device = openCpu({ threads: 1 });
  const world = openWorld(device);
  openCpu({ threads: threadsPerRank(device, availableParallelism()) });
  if (world.rank > 0) console.error = console.log = () => {}; // the first one speaks for all
  return world;
}

function everyones(world: Comm, rejected: readonly Rejected[]): Rejected[] {
  world.barrier(true); // one has more to read than another
  return world.gatherText(JSON.stringify(rejected)).flatMap((text) => JSON.parse(text) as Rejected[]);
}

/** Tokens that the tokenizer puts around a text (bos, say) are added, as Hugging Face's `encode` does. */
export function encode(dir: string, flags: { json?: boolean; specialTokens: boolean }): void {
  const text = readFileSync(0, "utf8");
  const ids = Array.from(Tokenizer.load(dir).encode(text, { addSpecialTokens: flags.specialTokens }));
  console.log(flags.json ? JSON.stringify(ids) : ids.join(" "));
}
