/** The `lyceum` command as a user meets it: a process, its exit code, what it prints. Runs the built program (dist/). */
import { spawn, spawnSync } from "node:child_process";
import {
  accessSync,
  closeSync,
  constants,
  cpSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openModel, samplingOf } from "../../src/cli/generate.js";
import { hasMpi } from "../parallel/ranks.js";
import { killAndResume } from "./kill.js";

const bin = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const dir = mkdtempSync(join(tmpdir(), "lyceum-cli-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const lyceum = (args: string[], input = "") => {
  const r = spawnSync(process.execPath, [bin, ...args], {
    cwd: dir,
    input,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" },
  });
  return { code: r.status, out: r.stdout, err: r.stderr };
};
const complaint = (args: string[], code = 2): string => {
  const r = lyceum(args);
  expect(r.err).not.toMatch(/\n\s+at .*:\d+:\d+/); // no stack trace
  expect(r.code).toBe(code);
  return r.err;
};

const YAML = `
threads: 2
data: { train: [text.jsonl], contextLength: 32 }
model: { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4 }
tokenizer: { vocabSize: 300 }
batchSize: 4
steps: 60
saveEvery: 4
evalEvery: 30
`;
beforeAll(() => {
  const text = (i: number): string =>
    JSON.stringify({ id: String(i), text: `Sentence ${i % 7} is about the number ${i}.` });
  writeFileSync(join(dir, "text.jsonl"), `${Array.from({ length: 90 }, (_, i) => text(i)).join("\n")}\n{"broken\n`);
  writeFileSync(
    join(dir, "sft.jsonl"),
    Array.from({ length: 12 }, (_, i) => JSON.stringify({ instruction: `Say ${i}`, output: `It is ${i}.` })).join("\n"),
  );
  writeFileSync(join(dir, "p.yaml"), YAML);
  writeFileSync(
    join(dir, "s.yaml"),
    "from: runs/p/model\nthreads: 2\ndata: {train: [sft.jsonl], contextLength: 64}\nbatchSize: 2\nsteps: 3\n",
  );
});

test("the built program may be executed: npx sets that only when it meets a folder for the first time", () => {
  accessSync(bin, constants.X_OK);
});

test("help lists the commands; --version; an unknown command names the nearest", () => {
  const help = lyceum(["--help"]);
  expect(help.code).toBe(0);
  for (const command of ["run", "pretrain", "sft", "generate", "chat", "logprobs", "tokenizer"])
    expect(help.out).toContain(`  ${command}`);
  expect(lyceum(["--version"]).out).toMatch(/^\d+\.\d+\.\d+/);
  expect(lyceum(["pretrian"]).err).toMatch(/Did you mean pretrain/);
});

test("text to base model to tuned model to chat, by its commands", () => {
  const trained = lyceum(["pretrain", "p.yaml"]);
  expect(trained.code).toBe(0);
  expect(trained.out.trim()).toBe("runs/p/model");
  expect(trained.err).toMatch(/1 records set aside .*text.jsonl:91: not JSON/);
  expect(trained.err).toMatch(/done: 60 steps, loss .* tokens\/s, peak memory \d+ MiB/);

  const shown = lyceum(["sft", "s.yaml", "--show-mask", "1"]);
  expect(shown.out).toContain("### Response:\n⟦It is");
  expect(lyceum(["sft", "s.yaml"]).code).toBe(0);

  const generated = lyceum([
    "generate",
    "runs/p/model",
    "--prompt",
    "Sentence",
    "--greedy",
    "--max-tokens",
    "5",
    "--json",
  ]);
  const reply = JSON.parse(generated.out) as { text: string; ids: number[]; finish: string };
  expect(reply.ids.length).toBeGreaterThan(0);
  expect(lyceum(["generate", "runs/p/model", "--prompt", "Sentence", "--greedy", "--max-tokens", "5"]).out).toBe(
    `Sentence${reply.text}\n`,
  );

  const chat = lyceum(["chat", "runs/s/model", "--greedy", "--max-tokens", "4"], "Say 3\n/reset\n/nonsense\n/exit\n");
  expect(chat.code).toBe(0);
  expect(chat.out).toContain("There is no command /nonsense");
  const long = lyceum(
    ["chat", "runs/s/model", "--greedy", "--max-tokens", "4"],
    `Say 3\n${"word ".repeat(2000)}\nSay 4\n`,
  );
  expect(long.code).toBe(0);
  expect(long.out.split("\n")).toHaveLength(4);
  expect(long.out.split("\n")[1]).toMatch(
    /^\(with this message there are \d+ tokens, .* no room for a reply: it is left out\)$/,
  );

  const probabilities = JSON.parse(lyceum(["logprobs", "runs/p/model", "--ids", "1,2,3", "--json"]).out) as (
    | number
    | null
  )[];
  expect(probabilities[0]).toBeNull();
  expect(probabilities[2]).toBeLessThan(0);
}, 60_000);

test(
  "killed at any moment, a run that is resumed ends with the same bytes",
  () => killAndResume("pretrain", "p.yaml", dir),
  180_000,
);

/** Asks a run to stop when it has done some steps, and lets it go on to its end from where it was saved. */
async function stopAndResume(name: string, signal: NodeJS.Signals, launcher: string[]): Promise<void> {
  const command = [bin, ...launcher, "pretrain", "p.yaml", "--out", name, "--set", "saveEvery=0", "evalEvery=0"];
  const child = spawn(process.execPath, [...command, "steps=100000"], { cwd: dir });
  let said = "";
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (d) => {
      said += d;
    });
  const ended = new Promise((done) => child.on("close", done));
  while (!said.includes("step 10/") && child.exitCode === null) await sleep(20);
  child.kill(signal);
  expect(await ended, said).toBe(130);
  const step = Number(/Stopped and saved at step (\d+) of 100000.*--resume/.exec(said)?.[1]);
  expect(said.match(/Stopped and saved/g)).toHaveLength(1);
  expect(readdirSync(join(dir, name, "checkpoints"))).toEqual([String(step).padStart(6, "0")]);
  expect(existsSync(join(dir, name, "run.lock"))).toBe(false);
  const more = lyceum([...command.slice(1), `steps=${step + 1}`, "--resume"]);
  expect(more.err).toContain(`going on after step ${step} of ${step + 1}`);
  expect(more.code).toBe(0);
}

test("Ctrl-C saves after the step, and tells how to go on", () => stopAndResume("stopped", "SIGINT", []), 60_000);
test("so does a terminal that is closed", () => stopAndResume("hung-up", "SIGHUP", []), 60_000);

/** Runs a command whose output goes to a pipe that nobody reads any more. */
const unheard = (args: string[]): number | null => {
  const command = [process.execPath, bin, ...args].map((word) => `'${word}'`).join(" ");
  const script = `{ ${command}; echo $? >&3; } 2>&1 3>code | true`;
  spawnSync("sh", ["-c", script], { cwd: dir, encoding: "utf8", input: "Say 3\n".repeat(50) });
  return Number(readFileSync(join(dir, "code"), "utf8"));
};

test("output that nobody reads ends no training, and ends what only prints without a word", () => {
  expect(unheard(["pretrain", "p.yaml", "--out", "unheard", "--set", "steps=4", "logEvery=1"])).toBe(0);
  expect(readdirSync(join(dir, "unheard/checkpoints"))).toEqual(["000004"]);
  expect(existsSync(join(dir, "unheard/run.lock"))).toBe(false);
  expect(unheard(["generate", "runs/p/model", "--prompt", "Say", "--max-tokens", "4"])).toBe(0);
  expect(unheard(["chat", "runs/s/model", "--greedy", "--max-tokens", "4"])).toBe(0);
}, 60_000);

test.runIf(existsSync("/dev/full"))("output that has no room is told", () => {
  const full = openSync("/dev/full", "w");
  for (const args of [["schema"], ["generate", "runs/p/model", "--prompt", "Say", "--max-tokens", "2"]]) {
    const r = spawnSync(process.execPath, [bin, ...args], {
      cwd: dir,
      encoding: "utf8",
      stdio: ["ignore", full, "pipe"],
    });
    expect(r.stderr).toMatch(/^error: standard output could not be written: ENOSPC[^\n]*\n$/);
    expect(r.status).toBe(1);
  }
  closeSync(full);
});

test.runIf(hasMpi)(
  "asked to stop, all processes of a job save after the same step",
  () => stopAndResume("stopped2", "SIGTERM", ["launch", "-n", "2", "--"]),
  60_000,
);

test("a user's mistakes: what, where, what to do; exit code 2 for configuration, 1 for failure", () => {
  writeFileSync(join(dir, "bad.yaml"), `${YAML}optimizer: {learningrate: 1}\n`);
  expect(complaint(["pretrain", "bad.yaml"])).toMatch(
    /bad.yaml:10:13: there is no key "optimizer.learningrate". Did you mean "learningRate"\?/,
  );
  expect(complaint(["pretrain", "none.yaml"])).toContain("none.yaml does not exist");
  expect(complaint(["pretrain", "p.yaml"])).toMatch(/runs\/p already holds a run \(checkpoint at step 60\).*--resume/);
  expect(complaint(["pretrain", "p.yaml", "--out", "x1", "--set", "data.train=[gone.txt]"])).toContain(
    "gone.txt does not exist",
  );
  expect(complaint(["pretrain", "p.yaml", "--out", "x2", "--set", "model.numHeads=5"])).toContain(
    "model.numHeads is 5; it must be such that hiddenSize (32) divided by it is whole and even",
  );
  expect(complaint(["pretrain", "p.yaml", "--out", "x2", "--set", "model.numKvHeads=3"])).toContain(
    "model.numKvHeads is 3; it must be a divisor of numHeads (4)",
  );
  expect(complaint(["pretrain", "p.yaml", "--out", "x2", "--set", "model.headDim=7"])).toContain("must be even");
  expect(complaint(["pretrain", "p.yaml", "--out", "x2", "--set", "model.maxPositionEmbeddings=8"])).toMatch(
    /data.contextLength is \d+; it must be at most model.maxPositionEmbeddings/,
  );
  expect(complaint(["sft", "s.yaml", "--out", "x3", "--set", "from=nowhere"])).toMatch(
    /^error: --set from=nowhere: from: nowhere does not exist\./,
  );
  expect(complaint(["sft", "s.yaml", "--from-base", "runs/p"])).toMatch(
    /^error: --from-base runs\/p: from: runs\/p is not a model folder.* mean runs\/p\/model\?/,
  );
  expect(complaint(["sft", "s.yaml", "--from-base", "runs/p/model", "--set", "from=x"])).toMatch(/leave one out/);
  for (const command of [["chat"], ["generate", "--prompt", "x"], ["logprobs", "--ids", "1"], ["score", "--file", "x"]])
    expect(complaint([command[0], "runs/p", ...command.slice(1)])).toMatch(
      /^error: runs\/p is not a model folder.*\/model\?/,
    );
  expect(complaint(["tokenizer", "encode", "nowhere"])).toContain("nowhere does not exist");
  expect(complaint(["chat", "runs/p/model"], 1)).toMatch(/base model/);
  expect(complaint(["generate", "nowhere", "--prompt", "x"])).toMatch(/nowhere is not a model folder/);
  expect(complaint(["generate", "runs/p/model", "--prompt", "x", "--top-p", "2"])).toContain(
    '--top-p is "2"; it must be a number from 0 to 1',
  );
  expect(complaint(["logprobs", "runs/p/model", "--ids", "1,x"])).toContain("entry 2 is not a token id");
  expect(complaint(["generate", "runs/p/model", "--prompt", "x", "--greedy", "--temperature", "1"])).toMatch(
    /--greedy has no temperature, and --temperature is 1/,
  );
  const teacher = ["instruct", "sft.jsonl", "--teacher", "runs/s/model", "--out", "grown.jsonl"];
  expect(complaint([...teacher, "--model", "foo"])).toMatch(/--model foo is the name that a service has/);
  expect(complaint(["corpus", "train-classifier", "--good", "no", "--crawled", "no", "--out", "no/c.bin"], 1)).toBe(
    "error: no does not exist.\n",
  );
  writeFileSync(join(dir, "program.html"), "\x7fELF\0\0\0\x01");
  expect(complaint(["corpus", "extract", "program.html"], 1)).toMatch(/program.html: not text: it holds NULs/);
  writeFileSync(join(dir, "corpus.yaml"), "sources: [{ name: a, files: [text.jsonl] }]\n");
  for (const command of ["run", "pretrain"])
    expect(complaint([command, "corpus.yaml"])).toMatch(/is the recipe of a corpus: lyceum corpus build corpus.yaml/);
  // Never the root of the file system: here the file that is missing would be told first.
  expect(complaint(["pretrain", "none.yaml", "--out", ""])).toContain(
    "'--out <dir>' argument '' is invalid. It is empty.",
  );
  expect(complaint(["tokenizer", "train", "text.jsonl", "--vocab-size", "2097152", "--out", "x4"])).toContain(
    "it must be less than 2097152",
  );
  writeFileSync(join(dir, "r.yaml"), "stages:\n  - stage: pretrian\n");
  expect(complaint(["run", "r.yaml"])).toMatch(/r.yaml:2:5: stages.0.stage is "pretrian"; did you mean "pretrain"/);
}, 60_000);

test("files of the user's that do not fit are told, not read past their end", () => {
  const other = join(dir, "other");
  expect(lyceum(["tokenizer", "train", "text.jsonl", "--vocab-size", "310", "--out", other]).code).toBe(0);
  const grown = JSON.parse(readFileSync(join(other, "tokenizer.json"), "utf8"));
  grown.added_tokens.push({ ...grown.added_tokens[0], id: 900, content: "<|extra|>" });
  for (let id = 0; id < 200; id++) grown.added_tokens.push({ ...grown.added_tokens[0], id, content: `<|${id}|>` });
  writeFileSync(join(other, "tokenizer.json"), JSON.stringify(grown));
  writeFileSync(join(dir, "f.yaml"), "from: runs/p/model\ndata: {train: text.jsonl, contextLength: 16}\nsteps: 1\n");
  expect(complaint(["pretrain", "f.yaml", "--out", "v1", "--set", "tokenizer=other"])).toMatch(
    /The tokenizer has \d+ tokens, but the model runs\/p\/model only \d+: it is another model's/,
  );
  const mixed = join(dir, "mixed");
  cpSync(join(dir, "runs/p/model"), mixed, { recursive: true });
  cpSync(join(other, "tokenizer.json"), join(mixed, "tokenizer.json"));
  expect(complaint(["sft", "s.yaml", "--from-base", "mixed", "--out", "v2"], 1)).toMatch(/do not belong together/);
  // A tokenizer is not written over a model's; one that was put there by hand is found out by its size.
  expect(complaint(["tokenizer", "train", "text.jsonl", "--vocab-size", "270", "--out", "mixed"])).toMatch(
    /mixed has a tokenizer.json, perhaps a model's own/,
  );
  expect(complaint(["generate", "mixed", "--prompt", "<|150|>", "--max-tokens", "2"], 1)).toMatch(/own tokenizer/);
  const larger = JSON.parse(readFileSync(join(dir, "runs/p/model/tokenizer.json"), "utf8"));
  const { vocab } = larger.model as { vocab: Record<string, number> };
  for (let i = 0, known = Object.keys(vocab).length; i < 9; i++) vocab[`zz${i}`] = known + i;
  cpSync(join(dir, "runs/p/model"), join(dir, "larger"), { recursive: true });
  writeFileSync(join(dir, "larger/tokenizer.json"), JSON.stringify(larger));
  expect(complaint(["generate", "larger", "--prompt", "x"], 1)).toMatch(/is not the model's own tokenizer/);
  for (const broken of ["{", "null"]) {
    writeFileSync(join(mixed, "generation_config.json"), broken);
    expect(complaint(["generate", "mixed", "--prompt", "x"], 1)).toMatch(/generation_config.json holds no JSON object/);
  }
  writeFileSync(join(dir, "v3"), "a file");
  expect(complaint(["pretrain", "p.yaml", "--out", "v3"])).toMatch(/v3 is a file; a run needs a folder/);
  expect(complaint(["tokenizer", "train", "text.jsonl", "--vocab-size", "300", "--out", "v3"], 1)).toMatch(
    /v3 is there/,
  );
  expect(complaint(["pretrain", "."])).toMatch(/is a folder, where a file is meant/);
}, 60_000);

test("what is not understood on the command line ends with 2", () => {
  for (const args of [["pretrain"], ["pretrain", "p.yaml", "--nonsense"], ["nonsense"], ["generate", "runs/p/model"]])
    complaint(args);
  expect(lyceum(["pretrain", "--help"]).code).toBe(0);
});

test("encode adds what the tokenizer puts around a text, as Hugging Face does, unless told not to", () => {
  const file = join(dir, "around/tokenizer.json");
  cpSync(join(dir, "runs/p/model"), join(dir, "around"), { recursive: true });
  const json = JSON.parse(readFileSync(file, "utf8"));
  const post = {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<|endoftext|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  };
  json.post_processor = {
    ...post,
    pair: [],
    special_tokens: { "<|endoftext|>": { id: "<|endoftext|>", ids: [0], tokens: ["<|endoftext|>"] } },
  };
  writeFileSync(file, JSON.stringify(json));
  const encode = (...more: string[]) =>
    JSON.parse(lyceum(["tokenizer", "encode", "around", "--json", ...more], "Say").out) as number[];
  expect(encode()).toEqual([0, ...encode("--no-special-tokens")]);
});

test("numbers of generate and chat are checked", () => {
  const flags = { maxTokens: "8", temperature: "1", topK: "0", topP: "1", minP: "0", repetitionPenalty: "1" };
  const good = { ...flags, seed: "0", threads: "0" };
  expect(samplingOf(good)).toMatchObject({ maxTokens: 8, topK: 0, seed: 0 });
  for (const [key, flag, ...values] of [
    ["maxTokens", "max-tokens", "0", "2.5", "Infinity", "-1", ""],
    ["topK", "top-k", "1.5", "1000000000000", "-1"],
    ["seed", "seed", "1e30", "99999999999999999999", "x"],
  ] as const)
    for (const value of values)
      expect(() => samplingOf({ ...good, [key]: value })).toThrow(`--${flag} is "${value}"; it must be a whole number`);
  for (const threads of ["abc", "-4"]) expect(() => openModel("none", { ...good, threads })).toThrow(/--threads is/);
  expect(() => samplingOf({ ...good, temperature: "Infinity" })).toThrow(/--temperature is "Infinity"/);
});

test("a recipe's stages are reached by their names; a finished run has its page", () => {
  writeFileSync(
    join(dir, "two.yaml"),
    `name: two\nstages:\n  - stage: pretrain\n${YAML.replace(/^(?=.)/gm, "    ")}  - stage: sft\n    from: pretrain\n    data: { train: sft.jsonl, contextLength: 64 }\n    steps: 9\n`,
  );
  expect(complaint(["run", "two.yaml", "--set", "sft.stpes=2"])).toContain(
    '--set sft.stpes=2: there is no key "stpes"',
  );
  expect(lyceum(["run", "two.yaml", "--set", "pretrain.steps=3", "sft.steps=2"]).code).toBe(0);
  expect(readFileSync(join(dir, "runs/two/sft/config.yaml"), "utf8")).toMatch(/stage: sft[\s\S]*steps: 2/);
  const planned = lyceum(["plan", "--model", "two.yaml", "--set", "pretrain.steps=3", "--calibrate"]);
  expect(planned.out).toMatch(/program +\d+ MiB {2}measured: this configuration with the smallest model/);
  // What is done is passed over, where it was done with these settings.
  const again = ["run", "two.yaml", "--resume", "--set", "sft.steps=2"];
  const done = lyceum([...again, "pretrain.steps=3", "pretrain.threads=1", "pretrain.saveEvery=7"]);
  expect(done.err).toMatch(/pretrain: done already\n.*sft: done already/);
  expect(complaint([...again, "pretrain.steps=3", "pretrain.model.hiddenSize=64"])).toMatch(
    /runs\/two\/pretrain holds a run in which model.hiddenSize was 32; now it is 64/,
  );
  expect(complaint([...again, "pretrain.steps=5"])).toMatch(
    /runs\/two\/pretrain is done, but steps was 3, now it is 5; and runs\/two\/sft was made after it/,
  );
  const more = lyceum(["run", "two.yaml", "--resume", "--set", "pretrain.steps=3", "sft.steps=4"]);
  expect(more.err).toContain("going on after step 2 of 4");
  expect(more.code).toBe(0);
  const alone = spawnSync(process.execPath, [bin, "run", "two.yaml"], {
    cwd: dir,
    encoding: "utf8",
    env: { ...process.env, OMPI_COMM_WORLD_RANK: "0", OMPI_COMM_WORLD_SIZE: "2" },
  });
  expect(alone.stderr).toMatch(/A recipe runs in one process; 2 were started/);
  expect(alone.status).toBe(2);
  expect(complaint(["report", "runs/two"])).toMatch(/These are: runs\/two\/pretrain, runs\/two\/sft\./);
  const page = join(dir, "runs/two/sft/report.html");
  expect(readFileSync(page, "utf8")).toContain("4 steps, finished");
  rmSync(page);
  expect(lyceum(["report", "runs/two/sft"]).out).toBe("runs/two/sft/report.html\n");
  expect(existsSync(page)).toBe(true);
  expect(complaint(["report", "."])).toMatch(/not the folder of a training run/);
}, 60_000);

test("what a recipe's stages name is looked for before the first one runs", () => {
  const recipe = (from: string, train: string, models: string): string => {
    const text = `stages:
  - { stage: pretrain, model: { hiddenSize: 32, intermediateSize: 64, numLayers: 1, numHeads: 4 }, tokenizer: { vocabSize: 300 }, data: { train: text.jsonl, contextLength: 32 }, steps: 1, samples: { prompts: [Sentence] } }
  - { stage: sft, from: ${from}, data: { train: ${train}, contextLength: 64 }, steps: 1 }
  - stage: evaluate
    models: ${models}
    file: asked.jsonl
`;
    writeFileSync(join(dir, "named.yaml"), text);
    return complaint(["run", "named.yaml"]);
  };
  writeFileSync(join(dir, "asked.jsonl"), '{"question":"Say 3","answers":["It is 3."]}\n');
  expect(recipe("pretrian", "sft.jsonl", "[pretrain, sft]")).toMatch(
    /^error: named.yaml:3:19: from: pretrian does not exist\. .*Did you mean the stage "pretrain"\?\n$/,
  );
  expect(recipe("pretrain", "none.jsonl", "[pretrain]")).toMatch(
    /named.yaml:3:43: data.train: none.jsonl does not exist/,
  );
  expect(recipe("pretrain", "sft.jsonl", "[pretrain, sfft]")).toMatch(
    /named.yaml:5:5: models: sfft does not exist\. .*the stage "sft"\?/,
  );
  expect(recipe("runs/p", "sft.jsonl", "[sft]")).toMatch(/from: runs\/p is not a model folder.*mean runs\/p\/model\?/);
  expect(existsSync(join(dir, "runs/named"))).toBe(false);
}, 60_000);

test("what a recipe's later stages cannot do is told before the first one runs", () => {
  writeFileSync(join(dir, "no-default.mjs"), "export const reward = () => 1;\n");
  writeFileSync(join(dir, "ask.jsonl"), '{"prompt":"Say 3"}\n');
  const recipe = (model: string, sft: string, grpo: string): string => {
    const text = `stages:
  - { stage: pretrain, model: { hiddenSize: 32, intermediateSize: 64, numLayers: 1, numHeads: 4${model} }, tokenizer: { vocabSize: 300 }, data: { train: text.jsonl, contextLength: 32 }, steps: 1 }
  - { stage: sft, from: pretrain, data: { train: sft.jsonl, contextLength: ${sft} }, steps: 1 }
  - { stage: grpo, from: sft, reward: no-default.mjs, prompts: [ask.jsonl], ${grpo} }
`;
    writeFileSync(join(dir, "later.yaml"), text);
    return complaint(["run", "later.yaml"]);
  };
  expect(recipe("", "1024", "steps: 1")).toMatch(
    /^error: later\.yaml:3:\d+: data\.contextLength is 1024, but the model was made for 512 positions/,
  );
  expect(recipe(", maxPositionEmbeddings: 64", "65", "steps: 1")).toMatch(/contextLength is 65, .* 64 positions/);
  expect(recipe("", "64", "maxTokens: 600")).toMatch(/later\.yaml:4:\d+: maxTokens is 600; the model's context is 512/);
  expect(recipe("", "64", "steps: 1")).toMatch(/no-default\.mjs has no default export that is a function/);
  expect(existsSync(join(dir, "runs/later"))).toBe(false);
}, 60_000);

test("a run goes on, begins anew, or is refused, and says which", () => {
  const p = (...args: string[]) => ["pretrain", "p.yaml", ...args];
  const anew = lyceum(p("--out", "mistyped", "--resume", "--set", "steps=2", "epochs=3", "schedule.warmupSteps=9"));
  expect(anew.err).toMatch(
    /^mistyped holds no checkpoint to go on from: the run begins anew\nepochs is not used: steps is 2\n/,
  );
  expect(anew.err).toMatch(/schedule.warmupSteps is 9, of 2 steps: the learning rate never comes to 0.001\n/);
  expect(anew.code).toBe(0);
  const settings = readFileSync(join(dir, "mistyped/config.yaml"), "utf8");
  expect(complaint(p("--out", "mistyped", "--resume", "--set", "steps=1"))).toMatch(
    /mistyped has done 2 steps, and now it is to have 1/,
  );
  expect(readFileSync(join(dir, "mistyped/config.yaml"), "utf8")).toBe(settings);
  // What a run has begun with it needs no more.
  cpSync(join(dir, "text.jsonl"), join(dir, "moved.jsonl"));
  const moved = (steps: number, ...more: string[]) =>
    lyceum(p("--out", "moved", ...more, "--set", "data.train=moved.jsonl", `steps=${steps}`));
  expect(moved(1).code).toBe(0);
  rmSync(join(dir, "moved.jsonl"));
  expect(moved(2, "--resume")).toMatchObject({ code: 0, err: expect.stringContaining("going on after step 1 of 2") });
}, 60_000);

test("launch starts what shares its work, and nothing else", () => {
  const launch = (...args: string[]) => complaint(["launch", "-n", "2", ...args]);
  for (const command of [
    ["report", "runs/p"],
    ["plan", "--model", "7B"],
    ["corpus", "report", "x"],
    ["tokenizer", "encode", "x"],
  ])
    expect(launch("--", ...command)).toMatch(/is none of these: start it without launch/);
  expect(launch("--hostfile", "nohosts", "--", "pretrain", "p.yaml")).toMatch(/--hostfile nohosts does not exist/);
});

test("Ctrl-C in a corpus build tells that the same command goes on", async () => {
  const text = JSON.stringify({ text: "A harbour is quiet when the ice of winter comes. ".repeat(9) });
  writeFileSync(join(dir, "crawl.jsonl"), `${text}\n`.repeat(9000));
  const recipe = "sources: [{ name: a, files: crawl.jsonl }]\nheuristics: {}\nunit: { records: 50 }\n";
  writeFileSync(join(dir, "crawl.yaml"), recipe);
  const child = spawn(process.execPath, [bin, "corpus", "build", "crawl.yaml"], { cwd: dir });
  let said = "";
  child.stderr.on("data", (d) => {
    said += d;
  });
  const ended = new Promise((done) => child.on("close", done));
  const units = join(dir, "runs/crawl/units");
  while ((!existsSync(units) || readdirSync(units).length === 0) && child.exitCode === null) await sleep(10);
  child.kill("SIGINT");
  expect(await ended, said).toBe(130);
  expect(said).toBe("error: Stopped. The same command goes on with what is left to do.\n");
  expect(lyceum(["corpus", "build", "crawl.yaml"]).err).toMatch(/units taken from earlier/);
}, 60_000);
