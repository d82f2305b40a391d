// Tokenizer speed: training a byte-level BPE and encoding with it, beside Hugging Face tokenizers in Rust (--python) and
// @huggingface/tokenizers in JavaScript, in turns (peers/player.mjs). Figures are medians over the rounds. "same" says whether merges
// and ids agree.
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { statements } from "../scripts/atlas/english.mjs";
import { COMMON, checkCounts, median, Player, UsageError } from "./peers/player.mjs";

export { UsageError };

const HELP = `npm run bench -- tokenizer [options]
  --python PYTHON     a Python with tokenizers to compare with; without it only Lyceum and the npm package are measured
  --json              one JSON object a line instead of the table
  --only NAME         train or encode
  --text FILE         text to use, cut into documents of 2,000 characters; default: made English, always the same
  --megabytes N       how much of it (20)
  --vocab-size N      16384
  --pretokenizer P    gpt2, llama3 (default) or qwen
  --rounds N          turns of each contestant (3)
  --threads N         threads of ours and of Rust's (all cores)`;

export default async function main(args) {
  const { values: o } = parseArgs({
    args,
    options: {
      ...COMMON,
      text: { type: "string" },
      megabytes: { type: "string", default: "20" },
      "vocab-size": { type: "string", default: "16384" },
      pretokenizer: { type: "string", default: "llama3" },
      rounds: { type: "string", default: "3" },
      worker: { type: "string" },
    },
  });
  if (o.help) return console.log(HELP);
  checkCounts(o, "megabytes", "vocab-size", "rounds", "threads");
  if (!["gpt2", "llama3", "qwen", "han"].includes(o.pretokenizer))
    throw new UsageError(`--pretokenizer must be gpt2, llama3 or qwen, not "${o.pretokenizer}".`);
  const names = ["train", "encode"].filter((n) => !o.only || n === o.only);
  if (names.length === 0) throw new UsageError(`There is no measurement "${o.only}". Known: train, encode.`);
  if (o.worker) return work(JSON.parse(o.worker));

  const dir = mkdtempSync(join(tmpdir(), "lyceum-bench-"));
  try {
    const rows = await measureAll(o, names, dir);
    if (!o.json) table(rows);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

async function measureAll(o, names, dir) {
  const documents = documentsOf(o);
  const bytes = documents.reduce((n, d) => n + Buffer.byteLength(d), 0);
  const { trainBpe } = await import("../dist/tokenizer/train.js");
  const vocabSize = Number(o["vocab-size"]);
  trainBpe(documents, { vocabSize, pretokenizer: o.pretokenizer }).save(dir);
  const file = join(dir, "documents.json");
  writeFileSync(file, JSON.stringify(documents));
  const self = fileURLToPath(import.meta.url);
  const rust = fileURLToPath(new URL("peers/hf_tokenizer.py", import.meta.url));
  const worker = (kind) => {
    const setup = { kind, file, dir, vocabSize, pretokenizer: o.pretokenizer, threads: Number(o.threads) };
    return [process.execPath, [self, "--worker", JSON.stringify(setup)]];
  };
  const rows = [];
  for (const name of names) {
    const players = [new Player("ours", ...worker("ours"))];
    if (o.python) {
      const env = { RAYON_NUM_THREADS: o.threads, TOKENIZERS_PARALLELISM: "true" };
      const args = [rust, file, join(dir, "tokenizer.json"), o["vocab-size"]];
      players.push(new Player("rust", o.python, args, { needs: "tokenizers", env }));
    }
    if (name === "encode") players.push(new Player("npm", ...worker("npm")));
    try {
      const row = await measure(name, players, Number(o.rounds), bytes);
      rows.push(row);
      if (o.json) console.log(JSON.stringify(row));
    } finally {
      for (const player of players) player.close();
    }
  }
  return rows;
}

/** All contestants in turns, after one turn to warm up. */
async function measure(name, players, rounds, bytes) {
  const turns = new Map(players.map((p) => [p.name, []]));
  for (let round = 0; round <= rounds; round++)
    for (const player of players) {
      const turn = await player.turn(name);
      const speed = (turn.bytes ?? bytes) / 1e6;
      process.stderr.write(`${name} round ${round} ${player.name}: ${(speed / turn.seconds).toFixed(2)} MB/s\n`);
      const { digest, peakRss } = turn;
      if (round) turns.get(player.name).push({ speed: speed / turn.seconds, core: speed / turn.cpu, digest, peakRss });
    }
  const of = (player, key) => median(turns.get(player).map((t) => t[key]));
  const peers = players.slice(1).map((p) => p.name);
  const peer = peers[0];
  const list = (key, digits) => Object.fromEntries(peers.map((p) => [p, Number(of(p, key).toFixed(digits))]));
  const compare = (key) => ({
    ours: Number(of("ours", key).toFixed(2)),
    peer: peer ? list(key, 2)[peer] : null,
    ratio: peer ? Number((of("ours", key) / of(peer, key)).toFixed(2)) : null,
  });
  const digests = (p) => turns.get(p).map((t) => t.digest);
  return {
    name: `tokenizer/${name}`,
    ...compare("speed"),
    unit: "MB/s",
    peers: list("speed", 2),
    // What it costs, whoever else uses the machine.
    processor: { ...compare("core"), unit: "MB per processor second", peers: list("core", 2) },
    peakMemory: { ours: Math.round(of("ours", "peakRss") / 2 ** 20), unit: "MiB", peers: memory(peers, turns) },
    same: new Set([...digests("ours"), ...(peers.includes("rust") ? digests("rust") : [])]).size === 1,
  };
}
const memory = (peers, turns) =>
  Object.fromEntries(peers.map((p) => [p, Math.round(median(turns.get(p).map((t) => t.peakRss)) / 2 ** 20)]));
/** Our side, and the npm package's, in a process of their own. */
async function work({ kind, file, dir, vocabSize, pretokenizer, threads }) {
  let documents = JSON.parse(readFileSync(file, "utf8"));
  const hash = () => createHash("sha256");
  let does;
  if (kind === "npm") {
    const { Tokenizer } = await import("@huggingface/tokenizers");
    const read = (name) => JSON.parse(readFileSync(join(dir, name), "utf8"));
    const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
    documents = documents.slice(0, 1000); // some 2 MB: it is a matter of seconds
    does = { encode: [() => documents.map((d) => tokenizer.encode(d, { add_special_tokens: false }).ids), () => null] };
  } else {
    const { openCpu } = await import("../dist/device/cpu.js");
    const { Tokenizer } = await import("../dist/tokenizer/tokenizer.js");
    const { trainBpe } = await import("../dist/tokenizer/train.js");
    openCpu({ threads });
    const tokenizer = Tokenizer.load(dir);
    const merges = (t) => t.json.model.merges.map((m) => m.join(" ")).join("\n");
    does = {
      train: [() => trainBpe(documents, { vocabSize, pretokenizer }), (t) => hash().update(merges(t)).digest("hex")],
      encode: [
        () => tokenizer.encodeBatch(documents),
        (all) => all.reduce((h, ids) => h.update(new Uint8Array(ids.buffer)), hash()).digest("hex"),
      ],
    };
  }
  const bytes = documents.reduce((n, d) => n + Buffer.byteLength(d), 0);
  for await (const line of createInterface({ input: process.stdin })) {
    const [run, digest] = does[line];
    const [start, cpuStart] = [process.hrtime.bigint(), process.cpuUsage()];
    const result = run();
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    const { user, system } = process.cpuUsage(cpuStart);
    const peakRss = process.resourceUsage().maxRSS * 1024;
    console.log(JSON.stringify({ seconds, cpu: (user + system) / 1e6, bytes, peakRss, digest: digest(result) }));
  }
}

/** Documents of about 2,000 characters. */
function documentsOf(o) {
  const size = Number(o.megabytes) * 1e6;
  if (!o.text) return madeEnglish(size);
  let text;
  try {
    text = readFileSync(o.text, "utf8");
  } catch (error) {
    throw new UsageError(`${o.text} cannot be read: ${error.message}.`);
  }
  const documents = [];
  // A character may be two UTF-16 units: documents end where one begins.
  for (let at = 0, bytes = 0; at < text.length && bytes < size; ) {
    let to = at + 2000;
    if ((text.charCodeAt(to) & 0xfc00) === 0xdc00) to++;
    documents.push(text.slice(at, to));
    bytes += Buffer.byteLength(documents.at(-1));
    at = to;
  }
  return documents;
}

/** The atlas's sentences about made-up places, between sentences of words that are as unequal in frequency as a language's. */
function madeEnglish(size) {
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const pick = (list) => list[Math.floor(random() * list.length)];
  const [onsets, vowels, codas] = [
    "b c d f g h l m n p r s t v w st tr ch sh th br pl qu",
    "a e i o u ea ou ai",
    "n r s t l d m ng ck st nd",
  ].map((list) => list.split(" "));
  const syllable = () => pick(onsets) + pick(vowels) + (random() < 0.5 ? pick(codas) : "");
  const common =
    "the of and a to in is that it was for on are as with his they at be this from have or by one had not but what all were when".split(
      " ",
    );
  const lexicon = [
    ...common,
    ...Array.from({ length: 60_000 }, (_, i) =>
      Array.from({ length: 1 + Math.floor(random() * (i < 2000 ? 2 : 4)) }, syllable).join(""),
    ),
  ];
  // Zipf's law: the r-th most frequent word has a share of about 1 / r.
  const word = () => lexicon[Math.min(lexicon.length - 1, Math.floor(lexicon.length ** random()) - 1)];
  const capital = (w) => w[0].toUpperCase() + w.slice(1);
  const forms = Object.values(statements).flat();
  const sentence = () => {
    if (random() < 0.2) return pick(forms).replace(/\{\w+\}/g, () => capital(word()));
    const words = Array.from({ length: 5 + Math.floor(random() * 20) }, () =>
      random() < 0.02 ? String(Math.floor(random() * 3000)) : word(),
    );
    const text = words.map((w, i) => (i && random() < 0.08 ? `${w},` : w)).join(" ");
    return `${capital(text.replace(/,$/, ""))}${pick([".", ".", ".", ".", "?", "!"])}`;
  };
  const documents = [];
  for (let bytes = 0; bytes < size; ) {
    let text = "";
    while (text.length < 2000) text += sentence() + (random() < 0.15 ? "\n\n" : " ");
    documents.push(text);
    bytes += Buffer.byteLength(text);
  }
  return documents;
}

function table(rows) {
  for (const r of rows) {
    const peers = Object.entries(r.peers).map(([p, v]) => `${p} ${v}`);
    const ratio = r.ratio === null ? "" : `, ${r.ratio}x (${r.processor.ratio}x by processor time)`;
    console.log(
      `${r.name}: ours ${r.ours} ${r.unit}${peers.map((p) => `, ${p}`).join("")}${ratio}${r.same ? "" : ", NOT the same result"}`,
    );
  }
}

if (process.argv.includes("--worker")) await main(process.argv.slice(2));
