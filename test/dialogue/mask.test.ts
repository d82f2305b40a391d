import fc from "fast-check";
import { expect, test } from "vitest";
import { CONSTRUCTIONS, DialogueEncoder, type Sample } from "../../src/dialogue/mask.js";
import { Renderer } from "../../src/dialogue/rendering.js";
import { showMask } from "../../src/dialogue/show.js";
import { type Message, TEMPLATE_NAMES, TEMPLATES, templateOf } from "../../src/dialogue/templates.js";
import { type AddedToken, specialToken } from "../../src/tokenizer/added.js";
import { changed, fromJson } from "../tokenizer/golden.js";
import { fallback, fallbackWith, golden, tokenizerWith } from "./golden.js";

const user = (content: string): Message => ({ role: "user", content });
const bot = (content: string): Message => ({ role: "assistant", content });
const one = (samples: Sample[] | { rejected: string }): Sample => {
  expect(samples).toHaveLength(1);
  return (samples as Sample[])[0];
};
const numbers = (text: string): number[] => text.split(" ").map(Number);
const LONG = 100_000;

/**
 * Golden conversations whose ids are those of Transformers: not 5, where people typed special tokens, and not 6, where a
 * reply begins with line breaks that a plain tokenizer would merge with the prompt's.
 */
const plainBorder = [0, 1, 2, 3, 4];

test.each(Object.keys(golden.templates))("%s: ids are those of apply_chat_template", (name) => {
  const tokenizer = tokenizerWith(name);
  const encoder = new DialogueEncoder(tokenizer);
  for (const i of plainBorder) {
    const messages = golden.conversations[i];
    const { ids, promptIds, refused } = golden.templates[name].made[i];
    if (refused) {
      const reason = `The messages are refused by the tokenizer's chat template: ${refused}`;
      expect(encoder.samples(messages, "all", LONG)).toEqual({ rejected: reason });
      expect(() => encoder.prompt(messages)).toThrow(refused);
      continue;
    }
    if (name === "thinking" && i === 4) continue; // a text that the template takes apart: see below
    expect(Array.from(encoder.prompt(messages)), `prompt ${i}`).toEqual(numbers(promptIds));
    if (messages.at(-1)?.role !== "assistant") continue;
    const { ids: own } = one(encoder.samples(messages, "last", LONG));
    // What the template writes after the last reply, a line break, is no part of a sample.
    const whole = numbers(ids);
    expect(Array.from(own), `sample ${i}`).toEqual(whole.slice(0, own.length));
    expect(whole.length - own.length).toBeLessThanOrEqual(1);
  }
});

test("added tokens have the ids under which the tokenizer knows them, whatever the file says", () => {
  const json = structuredClone(tokenizerWith("chatml").json) as { added_tokens: AddedToken[] };
  json.added_tokens.push(specialToken(9999, "<|to|>"), specialToken(9998, "<|from|>")); // out of order, and beyond a gap
  const tokenizer = fromJson(json);
  Object.assign(tokenizer.config, {
    chat_template: "{% for m in messages %}<|from|>{{ m.content }}<|to|>{% endfor %}",
    eos_token: "<|to|>",
  });
  const { ids } = one(new DialogueEncoder(tokenizer).samples([user("a"), bot("b")], "last", LONG));
  expect([...ids]).toEqual([...tokenizer.encode("<|from|>a<|to|><|from|>b<|to|>")]);
  expect(ids.at(-1)).toBe(tokenizer.eosId);
});

test.each(
  (["prepend", "first"] as const).flatMap((kind) =>
    Object.keys(fallback[kind].templates).map((name) => [kind, name] as const),
  ),
)("byte fallback, %s, %s: ids are those of apply_chat_template", (kind, name) => {
  const encoder = new DialogueEncoder(fallbackWith(kind, name));
  for (const i of plainBorder) {
    const messages = golden.conversations[i];
    const { ids, promptIds } = fallback[kind].templates[name].made[i];
    expect(Array.from(encoder.prompt(messages)), `prompt ${i}`).toEqual(numbers(promptIds));
    if (messages.at(-1)?.role !== "assistant") continue;
    const { ids: own } = one(encoder.samples(messages, "last", LONG));
    expect(Array.from(own), `sample ${i}`).toEqual(numbers(ids).slice(0, own.length));
  }
});

test("byte fallback: a reply behind a token that takes the white space after it is what generation goes on with", () => {
  const flags = { single_word: false, lstrip: false, normalized: false, special: true };
  const tokenizer = fromJson(
    changed("llama2", [["added_tokens+", [{ content: "<|assistant|>", rstrip: true, ...flags }]]]),
  );
  const jinja =
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";
  Object.assign(tokenizer.config, { chat_template: jinja, eos_token: "</s>" });
  const encoder = new DialogueEncoder(tokenizer);
  const sample = one(encoder.samples([user("Hi"), bot("Hello!")], "last", LONG));
  const prompt = encoder.prompt([user("Hi")]);
  const said = tokenizer.encode("Hello!", { before: tokenizer.endOf(prompt) });
  expect([...sample.ids]).toEqual([...prompt, ...said, 2]);
  expect([...sample.ids]).toEqual([...tokenizer.encode("<|user|>\nHi</s><|assistant|>\nHello!</s>")]);
});

test("{% generation %}: the mask is that of return_assistant_tokens_mask", () => {
  const encoder = new DialogueEncoder(tokenizerWith("marked"));
  for (const i of plainBorder) {
    const { ids, mask = "" } = golden.templates.marked.made[i];
    const sample = one(encoder.samples(golden.conversations[i], "all", LONG));
    expect(Array.from(sample.ids), `ids ${i}`).toEqual(numbers(ids).slice(0, sample.ids.length));
    expect(Array.from(sample.trainable), `mask ${i}`).toEqual(numbers(mask).slice(0, sample.ids.length));
    expect(numbers(mask).slice(sample.ids.length)).not.toContain(1);
  }
});

test("{% generation %} gives the spans that chatml has without it", () => {
  const [marked, chatml] = ["marked", "chatml"].map((name) => new DialogueEncoder(tokenizerWith(name)));
  for (const i of [0, 1, 2, 4, 5, 6])
    for (const construction of CONSTRUCTIONS)
      expect(marked.samples(golden.conversations[i], construction, LONG)).toEqual(
        chatml.samples(golden.conversations[i], construction, LONG),
      );
});

test("where a merge would reach over the beginning of a reply, training and chat cut, Transformers does not", () => {
  const tokenizer = tokenizerWith("notes");
  const encoder = new DialogueEncoder(tokenizer);
  const messages = golden.conversations[6]; // its first reply begins with line breaks, as the prompt ends with one
  const sample = one(encoder.samples(messages, "all", LONG));
  expect(Array.from(sample.ids)).not.toEqual(numbers(golden.templates.notes.made[6].ids));
  expect(tokenizer.decode(sample.ids)).toBe(golden.templates.notes.made[6].text);
  expect(sample.trainable.indexOf(1)).toBe(encoder.prompt(messages.slice(0, 1)).length);
});

test("the notes' own example, token for token what the notes print", () => {
  const t = tokenizerWith("notes");
  const messages = [{ ...user("将下列文本翻译成英文："), input: "今天天气真好" }, bot("Today is a nice day！")];
  const sample = one(new DialogueEncoder(t).samples(messages, "all", LONG));
  expect(showMask(sample, t, false)).toBe(
    "### Instruction:\n将下列文本翻译成英文：今天天气真好\n\n### Response:\n⟦Today is a nice day！<|end|>⟧",
  );
});

test.each(TEMPLATE_NAMES)("%s: the three constructions of the notes", (name) => {
  const t = tokenizerWith(name);
  const encoder = new DialogueEncoder(t);
  const messages = [user("a?"), bot("one"), user("b?"), bot("two"), user("c?"), bot("three")];
  const end = TEMPLATES[name].endOfTurn;
  const trained = (s: Sample): string => t.decode(s.ids.filter((_, i) => s.trainable[i] === 1));
  const all = one(encoder.samples(messages, "all", LONG));
  expect(trained(all)).toBe(`one${end}two${end}three${end}`);
  const last = one(encoder.samples(messages, "last", LONG));
  expect(trained(last)).toBe(`three${end}`);
  expect(last.ids).toEqual(all.ids);
  const split = encoder.samples(messages, "split", LONG) as Sample[];
  expect(split.map(trained)).toEqual([`one${end}`, `two${end}`, `three${end}`]);
  for (const s of split) expect(all.ids.slice(0, s.ids.length)).toEqual(s.ids);
});

test.each(["notes", "chatml", "marked"])("%s: a reply of weight 0 is read, and not learned", (name) => {
  const t = tokenizerWith(name);
  const encoder = new DialogueEncoder(t);
  const turns = (weights: readonly number[]): Message[] =>
    weights.flatMap((w, i) => [user(`q${i}`), { ...bot(`a${i}`), ...(w === 0 && { weight: 0 as const }) }]);
  const trained = (s: Sample): string =>
    t.decode(
      s.ids.filter((_, i) => s.trainable[i] === 1),
      { skipSpecialTokens: true },
    );
  const whole = one(encoder.samples(turns([1, 1, 1, 1]), "all", LONG));
  for (const [weights, learned] of [
    [[0, 1, 1, 1], "a1a2a3"],
    [[1, 0, 0, 1], "a0a3"],
    [[0, 0, 1, 1], "a2a3"],
    [[1, 1, 0, 0], "a0a1"],
    [[0, 1, 0, 0], "a1"],
  ] as const) {
    const sample = one(encoder.samples(turns(weights), "all", LONG));
    expect(trained(sample)).toBe(learned);
    expect([...sample.ids]).toEqual([...whole.ids.slice(0, sample.ids.length)]);
    const split = encoder.samples(turns(weights), "split", LONG) as Sample[];
    expect(split.map(trained).join("")).toBe(learned);
  }
  expect(encoder.samples(turns([0, 0]), "all", LONG)).toEqual({ rejected: "there is no reply in it" });
});

/** Conversations of anything that people write, with and without a system message and inputs. */
const text = fc.oneof(
  fc.string({ unit: "binary", minLength: 1, maxLength: 8 }),
  fc.stringMatching(/^[ab \n<>|]{1,6}$/),
  fc.constantFrom("<|end|>", "<|im_end|>\n", "<think>", "\n\n### Response:\n", "\uE0F00\uE0F1", "\uE0F2", "{{ x }}"),
);
const conversation = fc
  .tuple(fc.option(text), fc.array(fc.tuple(text, fc.option(text), text), { minLength: 1, maxLength: 4 }))
  .map(([system, turns]): Message[] => [
    ...(system === null ? [] : [{ role: "system" as const, content: system }]),
    ...turns.flatMap(([content, input, reply]) => [
      input === null ? user(content) : { ...user(content), input },
      bot(reply),
    ]),
  ]);

test.each(TEMPLATE_NAMES)(
  "%s: any conversation is its rendering, its replies are trained, chat sees the same",
  (name) => {
    const t = tokenizerWith(name);
    const encoder = new DialogueEncoder(t);
    const end = t.eosId!;
    fc.assert(
      fc.property(conversation, (messages) => {
        const sample = one(encoder.samples(messages, "all", LONG));
        expect(t.decode(sample.ids)).toBe(templateOf(t).render(messages, false).replace(/\n$/, ""));
        // The template's end-of-turn tokens and no others: those that people typed are text.
        const replies = messages.filter((m) => m.role === "assistant").length;
        const ends = sample.ids.filter((id) => id === end).length;
        expect(ends).toBe(name === "chatml" ? messages.length : replies);
        expect(sample.ids.filter((id, i) => id === end && sample.trainable[i] === 1)).toHaveLength(replies);
        messages.forEach((m, i) => {
          if (m.role !== "assistant") return;
          const prompt = encoder.prompt(messages.slice(0, i));
          expect(sample.ids.slice(0, prompt.length)).toEqual(prompt);
          let stop = prompt.length;
          while (sample.trainable[stop] === 1) stop++;
          expect(t.decode(sample.ids.slice(prompt.length, stop))).toBe(m.content + TEMPLATES[name].endOfTurn);
        });
      }),
      { numRuns: 60 },
    );
  },
);

test.each(TEMPLATE_NAMES)("%s: the renderer prints what Jinja prints", (name) => {
  const template = templateOf(tokenizerWith(name));
  expect(template.verbatim).toBe(true);
  const renderer = new Renderer(template, () => false);
  const texts = fc.oneof(text, fc.constant(""));
  const anything = fc.array(
    fc.record(
      { role: fc.constantFrom("system", "user", "assistant"), content: texts, input: texts },
      { requiredKeys: ["role", "content"] },
    ),
    { minLength: 1, maxLength: 6 },
  );
  fc.assert(
    fc.property(anything, fc.boolean(), (messages, addGenerationPrompt) => {
      const printed = template.render(messages, addGenerationPrompt);
      expect(renderer.text(messages, addGenerationPrompt)).toBe(printed);
      const { text: own, people, opaque } = renderer.render(messages, addGenerationPrompt);
      expect([own, opaque]).toEqual([printed, false]);
      const said = messages
        .flatMap((m) => [m.content, m.role === "user" ? (m.input ?? "") : ""])
        .filter((t) => t !== "");
      expect(people.map((p) => own.slice(p.start, p.end))).toEqual(said);
    }),
  );
});

test("added words that are no control tokens are read whoever wrote them", () => {
  const t = tokenizerWith("notes");
  const { ids } = one(new DialogueEncoder(t).samples([user("a <think>"), bot("<think>b</think>")], "all", LONG));
  expect(ids.filter((id) => id === t.tokenToId("<think>"))).toHaveLength(2);
});

test("a turn that changes when another follows: split and last work, all says why not", () => {
  const t = tokenizerWith("thinking");
  const encoder = new DialogueEncoder(t);
  const messages = golden.conversations[2];
  expect(() => encoder.samples(messages, "all", LONG)).toThrow(
    /place in the text is not certain: the tokenizer's chat template writes turns differently.*or data.construction split/,
  );
  const shown = (encoder.samples(messages, "split", LONG) as Sample[]).map((s) => showMask(s, t, false));
  const turn = (role: string, text: string): string => `<|im_start|>${role}\n${text}<|im_end|>\n`;
  const head = `${turn("system", "Be brief.")}${turn("user", "One?")}<|im_start|>assistant\n`;
  const thought = "<think>\n\n</think>\n\n";
  expect(shown).toEqual([
    `${head}⟦${thought}1<|im_end|>⟧`,
    `${head}1<|im_end|>\n${turn("user", "Two?in words")}<|im_start|>assistant\n⟦${thought}two<|im_end|>⟧`,
  ]);
  expect(showMask(one(encoder.samples(messages, "last", LONG)), t, false)).toBe(shown[1]);
  // What comes before a choice that is weighed as a reply.
  expect(encoder.beforeReply([user("One?")])).toBe(thought);
  expect(new DialogueEncoder(tokenizerWith("chatml")).beforeReply([user("One?")])).toBe("");
});

test("contents that a template takes apart: its text is taken as it is, unless somebody typed a special token", () => {
  const t = tokenizerWith("thinking");
  const encoder = new DialogueEncoder(t);
  const thoughtful = [user("é or é?"), bot("<think>hm</think>\n\nboth")];
  expect(showMask(one(encoder.samples(thoughtful, "all", LONG)), t, false)).toBe(
    "<|im_start|>user\né or é?<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nboth<|im_end|>⟧",
  );
  const smuggled = [user("<|im_end|>"), ...thoughtful.slice(1)];
  const reason = /holds the text of a special token, and the tokenizer's chat template changes messages/;
  expect(encoder.samples(smuggled, "all", LONG)).toEqual({ rejected: expect.stringMatching(reason) });
  expect(() => encoder.prompt([...smuggled, user("And?")])).toThrow(reason);
});

test("trimmed contents stay a person's; a token that takes spaces takes those of a person too, as in Transformers", () => {
  const trimmed = tokenizerWith("trimmed");
  const sample = one(new DialogueEncoder(trimmed).samples([user("  </s> "), bot(" yes ")], "all", LONG));
  expect(showMask(sample, trimmed, false)).toBe("<s>[INST] </s> [/INST]⟦ yes </s>⟧");
  expect(sample.ids.filter((id) => id === trimmed.eosId)).toHaveLength(1);
  const taking = tokenizerWith("chatml");
  taking.config.chat_template = TEMPLATES.chatml.jinja.replaceAll("<|im_start|>user\\n", "<|turn|>");
  const { ids } = one(new DialogueEncoder(taking).samples([user(" \n hi"), bot("x")], "all", LONG));
  expect(Array.from(ids.slice(0, 3))).toEqual([taking.tokenToId("<|turn|>"), ...taking.encode("hi")]);
});

test("cut at maxLength: told how much, rejected when no reply is left", () => {
  const t = tokenizerWith("notes");
  const encoder = new DialogueEncoder(t);
  const messages = [user("a?"), bot("one two"), user("b?".repeat(40)), bot("three")];
  const whole = one(encoder.samples(messages, "all", LONG));
  const first = whole.trainable.indexOf(1);
  expect(whole.cut).toBeUndefined();
  const cut = one(encoder.samples(messages, "all", first + 2));
  expect(cut).toEqual({
    ids: whole.ids.slice(0, first + 2),
    trainable: whole.trainable.slice(0, first + 2),
    cut: whole.ids.length - first - 2,
  });
  expect(encoder.samples(messages, "all", first)).toEqual({
    rejected: `no token of a reply is within the first ${first} tokens`,
  });
  // The last reply lies beyond: of the two samples of split the first is left, and tells what is lost.
  const split = one(encoder.samples(messages, "split", first + 20));
  expect([split.ids.length, split.cut]).toEqual([
    (encoder.samples(messages.slice(0, 2), "all", LONG) as Sample[])[0].ids.length,
    whole.ids.length - first - 20,
  ]);
  expect(encoder.samples(messages, "last", first + 20)).toEqual({ rejected: expect.stringContaining("no token") });
  expect(encoder.samples([user("a?")], "all", LONG)).toEqual({ rejected: "there is no reply in it" });
});

test("a token that ends replies and also pads is trained like any other: nothing is padded", () => {
  const t = tokenizerWith("chatml");
  const encode = () => new DialogueEncoder(t).samples([user("a"), bot("b")], "all", LONG);
  const whole = encode();
  t.config.pad_token = t.config.eos_token;
  expect(encode()).toEqual(whole);
});

test("templates that cannot be trained with are errors: no end, an end that is another token, markers around nothing", () => {
  const t = tokenizerWith("chatml");
  const samples = (template: string) => {
    t.config.chat_template = template;
    return () => new DialogueEncoder(t).samples([user("a"), bot("b")], "all", LONG);
  };
  const noEnd = /A reply does not end with <\|im_end\|>, the eos_token, in the tokenizer's chat template/;
  expect(samples("{% for m in messages %}{{ m.content }}{% endfor %}")).toThrow(noEnd);
  expect(samples("{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}")).toThrow(noEnd);
  expect(
    samples("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}.<|im_end|>{% endfor %}"),
  ).toThrow(noEnd);
  expect(
    samples(
      "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}{% endif %}",
    ),
  ).toThrow(/No reply is within {% generation %}/);
  // The last reply comes first: no prompt is the beginning of its conversation.
  expect(samples("{{ messages[-1].content + '<|im_end|>' + messages[0].content }}")).toThrow(/is not certain/);
  t.config.chat_template = TEMPLATES.chatml.jinja;
  expect(new DialogueEncoder(t).prompt([user("Hi")])).toEqual(
    Int32Array.from(numbers(golden.templates.chatml.made[0].promptIds).slice(0, 13)),
  );
});
