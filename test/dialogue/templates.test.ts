import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { DialogueEncoder, type Sample } from "../../src/dialogue/mask.js";
import { showMask } from "../../src/dialogue/show.js";
import { installTemplate, type Message, TEMPLATE_NAMES, TEMPLATES, templateOf } from "../../src/dialogue/templates.js";
import type { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { trainBpe } from "../../src/tokenizer/train.js";

const golden = JSON.parse(readFileSync(new URL("../golden/templates/golden.json", import.meta.url), "utf8")) as {
  conversations: Message[][];
  templates: Record<string, { jinja: string; texts: [string, string][] }>;
};
const tokenizer = (template: string): Tokenizer => {
  const t = trainBpe(["### Instruction:\nWhat is it? It is a test. ### Response:\n今天天气真好"], {
    vocabSize: 300,
    specialTokens: ["<|endoftext|>"],
  });
  installTemplate(t, template);
  return t;
};
const user = (content: string): Message => ({ role: "user", content });
const bot = (content: string): Message => ({ role: "assistant", content });
const one = (samples: Sample[] | { rejected: string }): Sample => {
  expect(Array.isArray(samples)).toBe(true);
  return (samples as Sample[])[0];
};

test.each(TEMPLATE_NAMES)("%s renders as in Transformers", (name) => {
  expect(TEMPLATES[name].jinja).toBe(golden.templates[name].jinja);
  const template = templateOf(tokenizer(name));
  golden.conversations.forEach((messages, i) => {
    const [plain, prompt] = golden.templates[name].texts[i];
    expect(template.render(messages, false)).toBe(plain);
    expect(template.render(messages, true)).toBe(prompt);
  });
});

test("the notes' own example, token for token what the notes print", () => {
  const t = tokenizer("notes");
  const messages = [{ ...user("将下列文本翻译成英文："), input: "今天天气真好" }, bot("Today is a nice day！")];
  const sample = one(new DialogueEncoder(t).samples(messages, "all", 1000));
  expect(t.decode(sample.ids)).toBe(
    "### Instruction:\n将下列文本翻译成英文：今天天气真好\n\n### Response:\nToday is a nice day！<|end|>",
  );
  expect(showMask(sample, t, false)).toBe(
    "### Instruction:\n将下列文本翻译成英文：今天天气真好\n\n### Response:\n⟦Today is a nice day！<|end|>⟧",
  );
});

test.each(TEMPLATE_NAMES)("%s: the three constructions of the notes", (name) => {
  const t = tokenizer(name);
  const encoder = new DialogueEncoder(t);
  const messages = [user("a?"), bot("one"), user("b?"), bot("two"), user("c?"), bot("three")];
  const end = TEMPLATES[name].endOfTurn;
  const trained = (s: Sample): string => t.decode(s.ids.filter((_, i) => s.trainable[i] === 1));
  expect(trained(one(encoder.samples(messages, "all", 1000)))).toBe(`one${end}two${end}three${end}`);
  expect(trained(one(encoder.samples(messages, "last", 1000)))).toBe(`three${end}`);
  const split = encoder.samples(messages, "split", 1000) as Sample[];
  expect(split.map(trained)).toEqual([`one${end}`, `two${end}`, `three${end}`]);
  const all = one(encoder.samples(messages, "all", 1000));
  for (const s of split) expect(Array.from(all.ids.subarray(0, s.ids.length))).toEqual(Array.from(s.ids));
});

test.each(TEMPLATE_NAMES)("%s: generation sees the tokens that training saw before the reply", (name) => {
  const t = tokenizer(name);
  const encoder = new DialogueEncoder(t);
  const messages = [
    { role: "system", content: "Short." } as Message,
    user("What is it?"),
    bot(" It is"),
    user("And?"),
    bot("that"),
  ];
  const sample = one(encoder.samples(messages, "last", 1000));
  const prompt = encoder.prompt(messages.slice(0, -1));
  expect(Array.from(sample.ids.subarray(0, prompt.length))).toEqual(Array.from(prompt));
  expect(sample.trainable.indexOf(1)).toBe(prompt.length);
  expect(sample.trainable.at(-1)).toBe(1);
});

test.each(TEMPLATE_NAMES)("%s: special tokens that a person typed stay plain text", (name) => {
  const t = tokenizer(name);
  const { endOfTurn } = TEMPLATES[name];
  const id = t.tokenToId(endOfTurn)!;
  const messages = [user(`ignore ${endOfTurn} this`), bot(`I said ${endOfTurn} it`)];
  const { ids } = one(new DialogueEncoder(t).samples(messages, "all", 1000));
  // ChatML ends the user's turn with it as well.
  expect(ids.filter((i) => i === id)).toHaveLength(name === "chatml" ? 2 : 1);
  expect(t.decode(ids)).toBe(templateOf(t).render(messages, false).replace(/\n$/, ""));
});

test("a sample cut by the context, and one whose reply is cut away", () => {
  const encoder = new DialogueEncoder(tokenizer("notes"));
  const messages = [user("What is it? ".repeat(20)), bot("It is a test.")];
  const whole = one(encoder.samples(messages, "all", 1000));
  const first = whole.trainable.indexOf(1);
  expect(one(encoder.samples(messages, "all", first + 2)).ids).toHaveLength(first + 2);
  expect(encoder.samples(messages, "all", first)).toEqual({
    rejected: `no token of a reply is within the first ${first} tokens`,
  });
});

test("templates that come with other models: contents trimmed, bos in front", () => {
  const t = tokenizer("chatml");
  t.addSpecialTokens(["<s>"]);
  t.config.bos_token = "<s>";
  t.config.chat_template =
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  const encoder = new DialogueEncoder(t);
  const sample = one(encoder.samples([user("  hi "), bot(" yes ")], "all", 100));
  expect(showMask(sample, t, false)).toBe("<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>⟧");
  // Trimmed contents are still known to be a person's.
  const { ids } = one(encoder.samples([user(" <|im_end|> "), bot("x")], "all", 100));
  expect(ids.filter((i) => i === t.eosId)).toHaveLength(2);
});

test("what cannot work is said: no template, the same token for end and padding, a reply without an end", () => {
  const t = trainBpe(["abc"], { vocabSize: 260, specialTokens: ["<|endoftext|>"] });
  expect(() => templateOf(t)).toThrow(/no chat template.*base model/);
  t.config.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}";
  expect(() => new DialogueEncoder(t).samples([user("a"), bot("b")], "all", 10)).toThrow(
    /A reply does not end with <|endoftext|>, the eos_token/,
  );
  t.config.pad_token = "<|endoftext|>";
  expect(() => new DialogueEncoder(t).samples([user("a"), bot("b")], "all", 10)).toThrow(/must differ/);
  expect(() => installTemplate(t, "chatlm")).toThrow(/notes, alpaca, chatml/);
});
