/** `lyceum tokenizer train | encode`. */
import { existsSync, readFileSync } from "node:fs";
import { type Rejected, readDocuments } from "../corpus/read.js";
import { type Comm, sumNumbers } from "../parallel/comm.js";
import { UserError } from "../run/errors.js";
import type { Pretokenizer } from "../tokenizer/pretokenize.js";
import { PRETOKENIZERS } from "../tokenizer/pretokenize.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { trainBpeOn, trainBpeTogether } from "../tokenizer/train.js";
import { whole } from "./flags.js";
import { joinWorld } from "./world.js";

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
  const vocabSize = whole("--vocab-size", flags.vocabSize, 1, Number.MAX_SAFE_INTEGER);
  if (vocabSize >= MOST_TOKENS)
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
    if (aside.length > MOST_TOLD) console.error(`... and ${aside.length - MOST_TOLD} more records`);
  };
  const options = {
    vocabSize,
    pretokenizer: flags.pretokenizer as Pretokenizer,
    specialTokens: flags.special,
  };
  const tokenizer = world ? await trainBpeTogether(texts(), options, world) : await trainBpeOn(texts(), options);
  if (world) [documents] = sumNumbers(world, [documents]);
  if (!tokenizer) return;
  tokenizer.save(flags.out);
  const fewer = tokenizer.vocabSize < options.vocabSize;
  console.log(
    `${flags.out}: ${tokenizer.vocabSize} tokens from ${documents} documents${fewer ? "; no further pair of tokens occurs twice in them" : ""}`,
  );
}

/** Records set aside that are listed one by one. */
const MOST_TOLD = 20;

/** Under mpirun each process counts the words of its share of the documents, on its share of the cores. */
async function join(): Promise<Comm | undefined> {
  const world = await joinWorld();
  if (!world) return undefined;
  const { openCpu } = await import("../device/cpu.js");
  openCpu({ threads: world.threads });
  return world.comm;
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
