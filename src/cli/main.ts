#!/usr/bin/env node
/** The `lyceum` command. Each command's file is imported only when it runs, so that --help answers at once. */
import { Command, InvalidArgumentError } from "commander";
import { VERSION } from "../run/version.js";
import type { StageFlags } from "./stage.js";

const program = new Command("lyceum")
  .description("Raises a language model from raw text to a chat model, on one machine, without Python.")
  .version(VERSION)
  .showSuggestionAfterError()
  .enablePositionalOptions()
  // Commands take this over: they must be made after it. 2: what was typed is not understood.
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2));

/** What --out names. An empty name is a variable of the shell that is not set, and would be the root of the file system. */
function named(path: string): string {
  if (path.trim() === "") throw new InvalidArgumentError("It is empty.");
  return path;
}

/** A training stage: its file in cli/ exports command(config, flags). */
function stage(
  name: string,
  description: string,
  load: () => Promise<{ command: (file: string, flags: StageFlags) => Promise<void> }>,
) {
  return program
    .command(name)
    .description(description)
    .argument("<config>", "YAML file")
    .option("--out <dir>", "run folder (default: runs/ and the name of the YAML file)", named)
    .option("--resume", "go on after the last checkpoint of the run folder")
    .option("--set <key=value...>", "override settings of the YAML file")
    .action(async (file, flags) => (await load()).command(file, flags));
}
stage("run", "a whole recipe: its stages, one after the other", () => import("./run.js"));
/** Stages that have no options of their own. */
const plain = (name: string, description: string): Command =>
  stage(name, description, async () => {
    const { command } = await import("./stage.js");
    return { command: (file, flags) => command(name, file, flags) };
  });
plain("pretrain", "raw text to a base model");
stage("sft", "a base model to one that follows instructions", () => import("./sft.js"))
  .option("--from-base <dir>", "the base model's folder, in place of the YAML file's `from`")
  .option("--show-mask [n]", "print the first records with their trained tokens marked, and do nothing else");
plain("reward", "preferences to a reward model");
plain("prefer", "preferences from a model's own replies and a judge");
plain("ppo", "align with a reward model, by reinforcement learning");
plain("grpo", "the same without a critic, with groups of replies");
plain("dpo", "align with preferences directly");
program
  .command("score")
  .description("rewards of the replies in a preference file")
  .argument("<model>", "reward model folder")
  .requiredOption("--file <prefs>", "JSONL with prompt, chosen and rejected, or completions and ranking")
  .option("--precision <precision>", "fp32 or bf16", "fp32")
  .option("--json", "print a JSON array: for each record its rewards, best reply first")
  .action(async (model, options) => (await import("./score.js")).command(model, options));
program
  .command("eval")
  .description("models side by side: perplexity, exact match, multiple choice, reward, win rate")
  .argument("<models...>", "model folders")
  .requiredOption(
    "--tasks <file>",
    "records of {text}, {question, answers}, {question, choices, answer}, {prompt}, or a benchmark as the Hub has it; may be repeated",
    (file: string, before: string[] | undefined) => [...(before ?? []), file],
  )
  .option("--reward <source>", "who scores replies to {prompt}: .mjs module (prompt, reply) => number, or reward model")
  .option("--against <model>", "model folder that the win rate is held against; needs --reward")
  .option("--max-tokens <n>", "tokens of a reply at most", "64")
  .option("--batch-size <n>", "replies written at once", "32")
  .option("--temperature <t>", "0 is greedy", "0")
  .option("--seed <n>", "of sampled replies", "0")
  .option("--context <n>", "tokens of a window for perplexity at most (default: the model's context, 2048 at most)")
  .option("--samples <n>", "replies shown side by side", "4")
  .option("--precision <precision>", "fp32 or bf16 (default: as each model was saved)")
  .option("--threads <n>", "0: all cores", "0")
  .option("--json", "print a JSON object: {models: [{model, tasks}], samples}")
  .action(async (models, flags) => (await import("./eval.js")).command(models, flags));

/** Options of the commands that sample. */
function sampling(command: Command): Command {
  return command
    .option("--max-tokens <n>", "tokens of a reply at most", "256")
    .option("--greedy", "always the most probable token")
    .option("--temperature <t>", "0 is greedy (default: 0.8)")
    .option("--top-k <k>", "only the k most probable tokens; 0: off", "0")
    .option("--top-p <p>", "only the most probable tokens that sum to p; 1: off", "0.95")
    .option("--min-p <p>", "only tokens with this share of the best one's probability; 0: off", "0")
    .option("--repetition-penalty <r>", "1: off", "1")
    .option("--seed <n>", "the same seed gives the same reply", "0")
    .option("--precision <precision>", "fp32 or bf16 (default: as the model was saved)")
    .option(
      "--int8",
      "read the weights in int8: 1.3 to 2.2 times as fast as bf16 for one reply; costs half as much memory again, and logits that are off by about 3% of their spread, so that a greedy text now and then takes another word",
    )
    .option("--threads <n>", "0: all cores", "0");
}
sampling(program.command("generate").description("continue a text"))
  .argument("<model>", "model folder")
  .requiredOption("--prompt <text...>", "one or several texts to continue")
  .option("--json", "print a JSON object (with several prompts, an array)")
  .action(async (model, options) => (await import("./generate.js")).command(model, options));
sampling(program.command("chat").description("talk to a model that was fine-tuned"))
  .argument("<model>", "model folder")
  .option("--system <text>", "system message")
  .action(async (model, options) => (await import("./chat.js")).command(model, options));

program
  .command("export")
  .description("a model as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio)")
  .argument("<model>", "model folder")
  .requiredOption("--out <file>", "the file to write, NAME.gguf")
  .option("--type <type>", "of matrices: bf16, f16, f32 or q8_0 (default: as the model was saved)")
  .action(async (model, options) => (await import("./export.js")).command(model, options));

program
  .command("logprobs")
  .description("log p of each token of a sequence under a model")
  .argument("<model>", "model folder (config.json, model.safetensors)")
  .requiredOption("--ids <list>", "token ids, separated by commas")
  .option("--precision <precision>", "fp32 or bf16", "fp32")
  .option("--json", "print a JSON array; the first entry is null")
  .action(async (model, options) => (await import("./logprobs.js")).logprobs(model, options));

program
  .command("instruct")
  .description("grow instruction records from a few seeds, with a teacher model (self-instruct)")
  .argument("<seeds>", "file or folder of records: instruction, input, output and type")
  .requiredOption(
    "--teacher <source>",
    "a model's folder, or the address of an OpenAI-compatible service (http://host/v1)",
  )
  .requiredOption("--out <file>", "JSONL that records are added to, one by one", named)
  .option("--model <name>", "the model's name, for a service; its key is read from OPENAI_API_KEY")
  .option("--count <n>", "records in the file at the end", "100")
  .option("--resume", "go on with a file that is there")
  .option("--seed <n>", "of what is shown and asked", "1")
  .option("--tasks <n>", "tasks that a prompt asks for", "8")
  .option("--examples <n>", "tasks that a prompt shows", "4")
  .option("--batch-size <n>", "prompts asked at once", "4")
  .option("--similarity <s>", "an instruction is a copy above this ROUGE-L", "0.7")
  .option("--temperature <t>", "of the teacher", "1")
  .option("--max-tokens <n>", "of an answer", "3072")
  .option("--per-minute <n>", "requests to a service at most", "60")
  .option("--timeout <seconds>", "for an answer of a service", "120")
  .option("--json", "print the summary as a JSON object")
  .action(async (seeds, flags) => (await import("./instruct.js")).command(seeds, flags));
program
  .command("profile")
  .description("where the time of a training step goes: every kernel beside what the processor could do")
  .argument("<config>", "YAML file of a training stage")
  .option("--steps <n>", "steps that are measured, after two that are not", "10")
  .option("--stage <stage>", "pretrain, sft, reward, dpo, ppo or grpo (default: what the YAML file says, or its keys)")
  .option("--set <key=value...>", "override settings of the YAML file")
  .option("--trace <file>", "write every call as a Chrome trace (chrome://tracing, Perfetto)")
  .option("--json", "print a JSON object")
  .action(async (file, flags) => (await import("./profile.js")).command(file, flags));
program
  .command("report")
  .description("write the page of a training run again: curves, samples, settings (report.html)")
  .argument("<run>", "folder of a run")
  .action(async (run) => (await import("./report.js")).command(run));
program
  .command("schema")
  .description("JSON Schema of a configuration file, for editors and programs")
  .argument("[name]", "recipe, a stage (pretrain, sft, ...), corpus or cluster", "recipe")
  .option("--out <dir>", "write all of them there", named)
  .action(async (name, flags) => (await import("./schema.js")).command(name, flags));
program
  .command("launch")
  .description("run a command on several processes, with mpirun: lyceum launch -n 4 -- pretrain config.yaml")
  .requiredOption("-n <n>", "processes")
  .option("--hosts <hosts>", "where they run, such as node1:8,node2:8 (default: here)")
  .option("--hostfile <file>", "the same from a file")
  .argument("<command...>", "a command of lyceum and its arguments, best after --")
  .passThroughOptions() // what follows the command's name is the command's
  .action(async (args, flags) => (await import("./launch.js")).command(args, flags));
program
  .command("plan")
  .description("memory, time and cost of a training run on a described cluster, before it starts")
  .requiredOption(
    "--model <model>",
    "a size (7B, 7.5B, 13B, 70B), a Hugging Face config.json, or a YAML file of a stage or recipe",
  )
  .option(
    "--stage <stage>",
    "pretrain, sft, reward, dpo, ppo or grpo (default: what the YAML file says, or its keys; of a size, pretrain)",
  )
  .option("--set <key=value...>", "override settings of the YAML file")
  .option("--cluster <file>", "YAML that describes the cluster")
  .option("--device <name>", "a100-80, a100-40, h100 or v100-32 (default: a100-80)")
  .option("--devices <n>", "how many (default: one node)")
  .option("--devices-per-node <n>", "how many share a node")
  .option("--memory <GB>", "memory of a device")
  .option("--tflops <n>", "peak of a device in dense bf16")
  .option("--intra <GB/s>", "bandwidth of a device within its node, one way")
  .option("--inter <GB/s>", "bandwidth of a device between nodes, one way")
  .option("--price <n>", "of a device for an hour")
  .option("--context <n>", "tokens of a sequence (default: the YAML file's, or 2048)")
  .option("--batch <n>", "sequences of a step (default: the YAML file's, or 512, made a multiple of the devices)")
  .option("--reply <n>", "tokens of a reply in PPO (default: the YAML file's, or half the context)")
  .option("--tokens <n>", "of the whole run, such as 300B (default for pretraining: 20 a parameter)")
  .option("--attention <kind>", "blocked (as flash attention) or full (scores are kept)", "blocked")
  .option("--logits <kind>", "chunked or full", "chunked")
  .option("--resident-reference", "DPO: the reference stays in memory")
  .option(
    "--simulate <share>",
    "simulate the chosen layout with devices whose speed varies by this share, such as 0.03",
  )
  .option("--calibrate", "measure this machine, and predict a run of Lyceum on it")
  .option("--svg <file>", "write a picture")
  .option("--json", "print a JSON object")
  .action(async (options) => (await import("./plan.js")).command(options));

const tokenizer = program.command("tokenizer").description("train a byte-level BPE tokenizer, or use one");
tokenizer
  .command("train")
  .description("tokenizer.json from the texts of files")
  .argument("<files...>", "text (.txt, .md) or JSONL with a text field (.jsonl, .jsonl.gz)")
  .requiredOption("--vocab-size <n>", "number of tokens, special ones included")
  .requiredOption("--out <dir>", "folder for tokenizer.json", named)
  .option("--pretokenizer <kind>", "gpt2, llama3, qwen, or han: llama3 with every Chinese character a word", "llama3")
  .option("--special <tokens...>", "special tokens; the first ends a document", ["<|endoftext|>"])
  .action(async (files, options) => (await import("./tokenizer.js")).train(files, options));
tokenizer
  .command("encode")
  .argument("<dir>", "folder with tokenizer.json")
  .option("--json", "print a JSON array")
  .option("--no-special-tokens", "without the tokens that the tokenizer puts around a text (bos, say)")
  .description("ids of the text on standard input")
  .action(async (dir, options) => (await import("./tokenizer.js")).encode(dir, options));

const corpus = program
  .command("corpus")
  .description("from a web crawl to a clean corpus, with a reason for every decision");
corpus
  .command("build")
  .description("read, filter, deduplicate and tokenize, as a recipe says")
  .argument("<recipe>", "YAML file")
  .option("--out <dir>", "folder (default: runs/ and the recipe's name); an unfinished build there goes on", named)
  .option("--workers <n>", "threads (default: as many as the processor runs)")
  .option("--set <key=value...>", "override settings of the recipe")
  .option("--against <files...>", "data sets whose documents, and near copies of them, must not be kept")
  .option("--json", "print the funnel as JSON")
  .action(async (file, flags) => (await import("./corpus-build.js")).command(file, flags));
corpus
  .command("why")
  .description("every rule's value and threshold for a document; its twin, if it has one")
  .argument("<dir>", "folder of a build")
  .argument("<id>", "id or URL of a document")
  .option("--json", "print a JSON object")
  .action(async (dir, id, options) => (await import("./corpus-ask.js")).whyCommand(dir, id, options));
corpus
  .command("what-if")
  .description("what other thresholds would keep, without reading the input again")
  .argument("<dir>", "folder of a build")
  .requiredOption("--rule <name=value...>", "such as gopher.minWords=100; off switches a rule off")
  .option("--json", "print a JSON object")
  .action(async (dir, options) => (await import("./corpus-ask.js")).whatIfCommand(dir, options));
corpus
  .command("report")
  .description("write report.html of a build again")
  .argument("<dir>", "folder of a build")
  .action(async (dir) => (await import("./corpus-ask.js")).reportCommand(dir));
corpus
  .command("dedup")
  .description("pairs of near duplicates in files, by MinHash, each verified by its true Jaccard similarity")
  .argument("<files...>", "JSONL, Parquet, WARC, HTML or text")
  .option("--threshold <t>", "least similarity of a pair", "0.8")
  .option("--shingle <n>", "words of a shingle (characters in scripts without spaces)", "5")
  .option("--bands <n>", "bands of the MinHash (default: by the threshold)")
  .option("--rows <n>", "rows of a band (default: by the threshold)")
  .option("--json", "print a JSON array of {a, b, similarity}")
  .action(async (files, options) => (await import("./corpus-dedup.js")).command(files, options));
corpus
  .command("train-classifier")
  .description("a quality classifier: good texts against crawled ones")
  .requiredOption("--good <files...>", "texts as they should be")
  .requiredOption("--crawled <files...>", "texts as they are on the web")
  .requiredOption("--out <file>", "model, in fastText's format (.bin)", named)
  .option("--epochs <n>", "passes over the texts", "5")
  .option("--seed <n>", "of the split and the first weights", "1")
  .option("--json", "print the report as a JSON object")
  .action(async (flags) => (await import("./corpus-classifier.js")).command(flags));
corpus
  .command("extract")
  .description("title, main text and language of HTML pages")
  .argument("<files...>", "HTML files; - reads standard input")
  .option("--json", "print a JSON object a page: title, text, language")
  .option("--mode <mode>", "fast (own block scoring) or readability (Mozilla's)", "fast")
  .action(async (files, options) => (await import("./corpus.js")).extract(files, options));

/**
 * Who reads what is printed may go away (a pipe to head, a terminal that is closed), and the file that it goes to may be full. Work that
 * leaves files goes on without a word; a command that only prints is done.
 */
const WORKS =
  /^(run|pretrain|sft|reward|prefer|ppo|grpo|dpo|instruct|profile|launch|tokenizer train|corpus (build|train-classifier))$/;
let works = false;
program.hook("preAction", (_, command) => {
  const { parent } = command;
  works = WORKS.test(parent && parent !== program ? `${parent.name()} ${command.name()}` : command.name());
});
process.stderr.on("error", () => {});
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  const gone = error.code === "EPIPE" || error.code === "EIO";
  if (gone && works) return;
  if (gone) process.exit(0);
  if (!process.exitCode) process.stderr.write(`error: standard output could not be written: ${error.message}.\n`);
  process.exitCode = 1;
  if (!works) process.exit();
});

try {
  await program.parseAsync();
} catch (error) {
  const system = (await import("../run/errors.js")).systemMessage(error);
  const known =
    error instanceof Error &&
    (system !== undefined || ["UserError", "NonFiniteError", "EngineError"].includes(error.name));
  const agreed = [2, 130].includes((error as { exitCode?: number }).exitCode ?? 1);
  // Under mpirun every process meets the same mistake, or stops as all do: the first one tells, which ends the others.
  const rank = Number(process.env.OMPI_COMM_WORLD_RANK ?? process.env.PMI_RANK ?? process.env.SLURM_PROCID ?? 0);
  if (rank > 0 && agreed) await new Promise((resolve) => setTimeout(resolve, 5000));
  const who = rank > 0 ? `rank ${rank} on ${(await import("node:os")).hostname()}: ` : "";
  process.stderr.write(
    known
      ? `error: ${who}${system ?? error.message}\n`
      : `error: ${who}${error}\nThis is a bug in Lyceum. LYCEUM_DEBUG=1 prints where.\n`,
  );
  if ((!known || system !== undefined) && process.env.LYCEUM_DEBUG) process.stderr.write(`${(error as Error).stack}\n`);
  process.exitCode = (error as { exitCode?: number }).exitCode ?? 1;
}
