/** `lyceum tokenizer train | encode`. */
import { readFileSync } from "node:fs";
import { type Rejected, readDocuments } from "../corpus/read.js";
import { launched } from "../parallel/mpi.js";
import { UserError } from "../run/errors.js";
import type { Pretokenizer } from "../tokenizer/pretokenize.js";
import { PRETOKENIZERS } from "../tokenizer/pretokenize.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { trainBpeOn } from "../tokenizer/train.js";

interface TrainFlags {
  vocabSize: string;
  out: string;
  pretokenizer: string;
  special: string[];
}

export async function train(files: string[], flags: TrainFlags): Promise<void> {
  if (!PRETOKENIZERS.some((name) => name === flags.pretokenizer))
    throw new UserError(`--pretokenizer is "${flags.pretokenizer}"; it must be one of ${PRETOKENIZERS.join(", ")}.`, 2);
  if (!/^\d+$/.test(flags.vocabSize))
    throw new UserError(`--vocab-size is "${flags.vocabSize}"; it must be a whole number.`, 2);
  // Counting words and merging pairs is one process's work, on all its cores: of several, the first does it.
  const job = launched();
  if (job && job.rank > 0) return;
  if (job && job.size > 1) console.error(`one of the ${job.size} processes trains, on all its cores`);
  const rejected: Rejected[] = [];
  let documents = 0;
  const texts = async function* () {
    for await (const { text } of readDocuments(files, rejected, "the files of the command")) {
      documents++;
      yield text;
    }
    for (const r of rejected) console.error(`set aside: ${r.file}:${r.line}: ${r.reason}`);
  };
  const tokenizer = await trainBpeOn(texts(), {
    vocabSize: Number(flags.vocabSize),
    pretokenizer: flags.pretokenizer as Pretokenizer,
    specialTokens: flags.special,
  });
  tokenizer.save(flags.out);
  console.log(`${flags.out}: ${tokenizer.vocabSize} tokens from ${documents} documents`);
}

/** Tokens that the tokenizer puts around a text (bos, say) are added, as Hugging Face's `encode` does. */
export function encode(dir: string, flags: { json?: boolean; specialTokens: boolean }): void {
  const text = readFileSync(0, "utf8");
  const ids = Array.from(Tokenizer.load(dir).encode(text, { addSpecialTokens: flags.specialTokens }));
  console.log(flags.json ? JSON.stringify(ids) : ids.join(" "));
}
