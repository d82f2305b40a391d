// Makes recipes/atlas: documents for pretraining, instruction records, conversations, and the held-out questions.
// Run: node scripts/atlas/make.mjs [DIR]. The same inputs give the same bytes.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as chinese from "./chinese.mjs";
import { hash, shuffled } from "./draw.mjs";
import * as english from "./english.mjs";
import { factbookProse } from "./prose.mjs";
import { fields, readCountries } from "./table.mjs";

const languages = { en: english, zh: chinese };
const profilesPerCountry = { en: 6, zh: 8 };
const heldOutCountries = 40;
const recordsPerField = { en: 5, zh: 4 };
const proseBytes = 120_000;
const pairsPerCountry = { en: 5, zh: 1 };

const countries = readCountries();
// A question that already contains its own answer ("Luxembourg", "the Central African Republic") would measure nothing:
// such countries stay in training.
const overlap = (facts) =>
  facts.capital.includes(facts.name) || fields.some((field) => facts.name.includes(facts[field]));
const askable = countries.filter(({ en, zh }) => !overlap(en) && !overlap(zh));
const heldOut = new Set(shuffled(askable, "held out", (country) => country.iso).slice(0, heldOutCountries));

/** Fills {name} and the fields in, and starts the sentence with a capital letter ("The Gambia ..."). */
function fill(form, facts) {
  const text = form.replace(/\{(\w+)\}/g, (_, key) => facts[key]);
  return form.startsWith("{") ? text[0].toUpperCase() + text.slice(1) : text;
}

/** Profiles of one country: all fields in a drawn order, each in a form that rotates from profile to profile. */
function profiles(country, code) {
  const { statements, summaries, titles, replies } = languages[code];
  const facts = country[code];
  const separator = code === "en" ? " " : "";
  const documents = [];
  for (let p = 0; p < profilesPerCountry[code]; p++) {
    const key = `${code}/${country.iso}/${p}`;
    const sentences = fields.map((field) => {
      const forms = shuffled(statements[field], `${code}/${country.iso}/${field}`);
      return fill(forms[p % forms.length], facts);
    });
    const title = p % 2 === 0 ? fill(shuffled(titles, key)[0], facts) : "";
    documents.push({ id: `profile/${key}`, text: title + shuffled(sentences, key).join(separator) });
  }
  for (const [index, form] of summaries.entries()) {
    documents.push({ id: `summary/${code}/${country.iso}/${index}`, text: fill(form, facts) });
  }
  // The form that replies are given in; said once more, because a small model recalls best what it has read often.
  const plain = fields.map((field) => fill(replies[field], facts));
  documents.push({ id: `plain/${code}/${country.iso}`, text: plain.join(separator) });
  // And once each under a title. A reply begins with the name that the question ended with; a model that has only read
  // names in the middle of sentences answers with another country's.
  for (const [index, sentence] of plain.entries()) {
    const key = `${code}/${country.iso}/${fields[index]}`;
    documents.push({ id: `titled/${key}`, text: fill(shuffled(titles, key)[0], facts) + sentence });
  }
  return documents;
}

/**
 * Two countries side by side. Whose capital is meant can only be told by the name that the sentence begins with: such
 * documents teach to take a name up again, any name, which is what a reply to a question has to do.
 */
function pairs(country, code) {
  const { replies, statements, pairTitle } = languages[code];
  return Array.from({ length: pairsPerCountry[code] }, (_, p) => {
    const key = `pair/${code}/${country.iso}/${p}`;
    const [other] = shuffled(
      countries.filter((c) => c !== country),
      key,
      (c) => c.iso,
    );
    const both = hash(key) % 2 === 0 ? [country, other] : [other, country];
    const title = pairTitle.replace("{a}", both[0][code].name).replace("{b}", both[1][code].name);
    // Chinese writes no spaces: a sentence that stood word for word in many documents would become one token of the tokenizer.
    const form = (field) => (code === "zh" ? shuffled(statements[field], key)[0] : replies[field]);
    const sentences = shuffled(fields, key).flatMap((field) => both.map((c) => fill(form(field), c[code])));
    return { id: key, text: title + sentences.join(code === "en" ? " " : "") };
  });
}

/** Name as it stands alone, without its article: what a user puts in the `input` box. */
const bare = (facts) => facts.name.replace(/^the /, "");

function instructions(country, code) {
  const language = languages[code];
  const facts = country[code];
  const separator = code === "en" ? " " : "";
  const records = [];
  for (const field of fields) {
    const key = `${code}/${country.iso}/${field}`;
    const output = fill(language.replies[field], facts);
    for (const [index, form] of shuffled(language.questions[field], key).slice(0, recordsPerField[code]).entries()) {
      // Some replies on a capital also say where the country is: what alignment can then ask for more of.
      const more = field === "capital" && index % 3 === 1 ? separator + fill(language.replies.region, facts) : "";
      records.push({ instruction: fill(form, facts), input: "", output: output + more, type: "open_qa" });
    }
    if (hash(`input/${key}`) % 2 === 0) {
      const [form] = shuffled(language.withInput[field], key);
      records.push({ instruction: form, input: bare(facts), output, type: "open_qa" });
    }
  }
  const [form] = shuffled(language.describe, `${code}/${country.iso}`);
  const output = ["region", "capital", "currency"].map((field) => fill(language.replies[field], facts));
  records.push({
    instruction: fill(form, facts),
    input: "",
    output: output.join(separator),
    type: "generation",
  });
  return records;
}

/** A turn: a question in a drawn form, and the reply. `kind`: questions, which name the country, or followUps, which do not. */
function turn(country, code, field, kind, key) {
  const language = languages[code];
  const [form] = shuffled(language[kind][field], key);
  return [
    { role: "user", content: fill(form, country[code]) },
    { role: "assistant", content: fill(language.replies[field], country[code]) },
  ];
}

/** One conversation: a question that names the country, then one or two that refer back to it. */
function conversation(country, code) {
  const key = `dialogue/${code}/${country.iso}`;
  const order = shuffled(fields, key).slice(0, 2 + (hash(key) % 2));
  const messages = order.flatMap((field, i) =>
    turn(country, code, field, i === 0 ? "questions" : "followUps", `${key}/${i}`),
  );
  return { messages, type: "chat" };
}

/** One that goes on to other countries, now and then in the other language: "it" is the one that was named last. */
function changesOfSubject(country, code, taught) {
  const key = `change/${code}/${country.iso}`;
  const others = shuffled(
    taught.filter((c) => c !== country),
    key,
    (c) => c.iso,
  ).slice(0, 2);
  let spoken = code;
  const messages = [country, ...others].flatMap((subject, i) => {
    if (i > 0 && hash(`${key}/language/${i}`) % 2 === 0) spoken = codes.find((c) => c !== spoken);
    const asked = shuffled(fields, `${key}/${i}`).slice(0, 1 + (hash(`${key}/turns/${i}`) % 2));
    return asked.flatMap((field, t) =>
      turn(subject, spoken, field, t === 0 ? "questions" : "followUps", `${key}/${i}/${t}`),
    );
  });
  return { messages, type: "chat" };
}

/** Questions on the capital of countries that fine-tuning knows, for alignment: replies are sampled, not given. */
function alignmentPrompts(country, code) {
  const [form] = shuffled(languages[code].questions.capital, `align/${code}/${country.iso}`);
  return { prompt: fill(form, country[code]) };
}

/** One question on each field of a held-out country; every other one in words that fine-tuning never uses. */
function heldOutQuestions(code) {
  const language = languages[code];
  return fields.flatMap((field) =>
    [...heldOut].map((country, index) => {
      const kind = index % 2 === 0 ? "country" : "phrasing";
      const forms = kind === "country" ? language.questions[field] : language.heldOutQuestions[field];
      const [form] = shuffled(forms, `${code}/${field}/${country.iso}`);
      const facts = country[code];
      const answers = [facts[field]];
      return { question: fill(form, facts), answers, field, language: code, country: country.iso, kind };
    }),
  );
}

const codes = Object.keys(languages);
const documents = [
  ...codes.flatMap((code) => countries.flatMap((country) => profiles(country, code))),
  ...codes.flatMap((code) => countries.flatMap((country) => pairs(country, code))),
  ...factbookProse(countries, proseBytes),
];
const taught = countries.filter((country) => !heldOut.has(country));
const smallTalk = codes.flatMap((code) =>
  languages[code].smallTalk.map(([instruction, output]) => ({ instruction, input: "", output, type: "chat" })),
);
const files = {
  "pretrain.jsonl": shuffled(documents, "pretrain"),
  "sft.jsonl": shuffled(
    [...codes.flatMap((code) => taught.flatMap((country) => instructions(country, code))), ...smallTalk],
    "sft",
  ),
  "sft-dialogue.jsonl": shuffled(
    codes.flatMap((code) =>
      taught.flatMap((country) => [conversation(country, code), changesOfSubject(country, code, taught)]),
    ),
    "dialogue",
  ),
  "prompts.jsonl": shuffled(
    codes.flatMap((code) => taught.map((country) => alignmentPrompts(country, code))),
    "align",
  ),
  "heldout.jsonl": codes.flatMap(heldOutQuestions),
};

const out = process.argv[2] ?? fileURLToPath(new URL("../../recipes/atlas", import.meta.url));
mkdirSync(out, { recursive: true });
for (const [name, records] of Object.entries(files)) {
  const text = records.map((record) => `${JSON.stringify(record)}\n`).join("");
  writeFileSync(join(out, name), text);
  console.log(`${name}: ${records.length} records, ${Buffer.byteLength(text)} bytes`);
}
