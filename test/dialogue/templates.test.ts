import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { installTemplate, type Message, TEMPLATE_NAMES, TEMPLATES, templateOf } from "../../src/dialogue/templates.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { trainBpe } from "../../src/tokenizer/train.js";
import { golden, tokenizerWith } from "./golden.js";

const user = (content: string): Message => ({ role: "user", content });
const base = (): Tokenizer => trainBpe(["abc"], { vocabSize: 260, specialTokens: ["<|endoftext|>"] });

test.each(Object.keys(golden.templates))("%s renders as in Transformers", (name) => {
  const { made } = golden.templates[name];
  const template = templateOf(tokenizerWith(name));
  golden.conversations.forEach((messages, i) => {
    const { text, prompt, refused } = made[i];
    if (refused)
      expect(() => template.render(messages, false)).toThrow(`refused by the tokenizer's chat template: ${refused}`);
    else {
      expect(template.render(messages, false)).toBe(text);
      expect(template.render(messages, true)).toBe(prompt);
    }
  });
});

test("the golden renderings are of the templates as they are", () => {
  for (const name of TEMPLATE_NAMES) expect(TEMPLATES[name].jinja).toBe(golden.templates[name].jinja);
});

test("alpaca is as Stanford published it", () => {
  const template = templateOf(tokenizerWith("alpaca"));
  const preamble = "Below is an instruction that describes a task";
  const write = "Write a response that appropriately completes the request.";
  expect(template.render([user("Add.")], true)).toBe(
    `${preamble}. ${write}\n\n### Instruction:\nAdd.\n\n### Response:`,
  );
  expect(template.render([{ ...user("Add."), input: "1, 2" }], true)).toBe(
    `${preamble}, paired with an input that provides further context. ${write}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:`,
  );
});

test.each(TEMPLATE_NAMES)(
  "%s is installed in a base tokenizer: new ids at the end, eos, pad and chat_template",
  (name) => {
    const t = base();
    const before = t.vocabSize;
    installTemplate(t, name);
    expect(t.vocabSize).toBe(before + TEMPLATES[name].specialTokens.length);
    expect(t.eosId).toBe(t.tokenToId(TEMPLATES[name].endOfTurn));
    expect(t.eosId).not.toBe(t.padId);
    expect(t.encode(TEMPLATES[name].specialTokens.join(""))).toHaveLength(TEMPLATES[name].specialTokens.length);
    const size = t.vocabSize;
    installTemplate(t, name);
    expect(t.vocabSize).toBe(size);
    expect(templateOf(t)).toMatchObject({ name: `the chat template ${name}`, endOfTurn: TEMPLATES[name].endOfTurn });
  },
);

test("a tokenizer's own template: from a list of them, and with the tokens it names", () => {
  const t = tokenizerWith("chatml");
  t.config.chat_template = [
    { name: "tool_use", template: "tools" },
    { name: "default", template: "{{ bos_token }}{{ messages[0].content }}{{ unk_token is defined }}" },
  ];
  t.config.bos_token = { content: "<s>", lstrip: false };
  expect(templateOf(t).render([user("hi")], true)).toBe("<s>hifalse");
  t.config.unk_token = "<unk>";
  expect(templateOf(t).render([user("hi")], true)).toBe("<s>hitrue");
  t.config.chat_template = [{ name: "rag", template: "" }];
  expect(() => templateOf(t)).toThrow(/chat templates \(rag\), but none that is named "default"/);
});

test("the template of a folder: in tokenizer_config.json, or in a file of its own; what is saved is what is loaded", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-templates-"));
  try {
    tokenizerWith("notes").save(dir);
    expect(templateOf(Tokenizer.load(dir)).name).toBe("the chat template notes");
    writeFileSync(join(dir, "chat_template.jinja"), TEMPLATES.chatml.jinja);
    const t = Tokenizer.load(dir);
    expect(templateOf(t).name).toBe("the chat template chatml");
    installTemplate(t, "alpaca");
    t.save(dir);
    expect(templateOf(Tokenizer.load(dir)).name).toBe("the chat template alpaca");
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});

test("what cannot work is said: no template, no end, no Jinja, no such name", () => {
  const t = base();
  expect(() => templateOf(t)).toThrow(/no chat template.*base model.*lyceum sft.*puts one in\.$/);
  t.config.chat_template = "{% for m in messages %}";
  expect(() => templateOf(t)).toThrow(/no valid Jinja in the tokenizer's chat template/);
  t.config.eos_token = null;
  expect(() => templateOf(t)).toThrow(/no eos_token/);
});
