/** Reading, writing and applying tokenizers: any text comes back, what cannot be read is refused with a reason. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Tokenizer as Peer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { UserError } from "../../src/run/errors.js";
import { ALPHABET } from "../../src/tokenizer/bytes.js";
import { Tokenizer } from "../../src/tokenizer/tokenizer.js";
import { trainBpe } from "../../src/tokenizer/train.js";
import { changed, fromJson, golden, type Json } from "./golden.js";

const dir = mkdtempSync(join(tmpdir(), "lyceum-"));
afterAll(() => rmSync(dir, { recursive: true }));
const { texts } = golden<{ texts: string[] }>("texts.json");
const SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"];

test.each(["gpt2", "llama3", "qwen", "han"] as const)(
  "%s: saved and loaded, any text comes back, with the peer's ids",
  (name) => {
    const trained = trainBpe(golden<string[]>("corpus.json").slice(0, 200), { vocabSize: 600, pretokenizer: name });
    trained.save(dir);
    const tokenizer = Tokenizer.load(dir);
    expect(tokenizer.vocabSize).toBe(600);
    expect(tokenizer.fingerprint).toBe(trained.fingerprint);
    const peer = new Peer(tokenizer.json as never, tokenizer.config as never);
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 60 }), (s) => {
        const ids = tokenizer.encode(s);
        expect(tokenizer.decode(ids)).toBe(s);
        expect(Array.from(ids)).toEqual(Array.from(peer.encode(s, { add_special_tokens: false }).ids));
      }),
      { numRuns: 200 },
    );
  },
);

describe("text", () => {
  const tokenizer = fromJson(golden("llama3.json"));
  const bytes = trainBpe(["ab"], { vocabSize: 257 });

  test("a stream never splits a character, wherever the tokens end", () => {
    for (const t of [tokenizer, bytes])
      for (const text of texts) {
        const stream = t.stream({ skipSpecialTokens: false });
        let said = "";
        for (const id of t.encode(text)) {
          said += stream.push(id);
          if (!text.startsWith(said)) expect.fail(`${JSON.stringify(said)} of ${JSON.stringify(text)}`);
        }
        expect(said + stream.end()).toBe(text);
      }
  });

  test("a stream says a character as soon as its last byte is there, and U+FFFD for half a one", () => {
    const ids = [...bytes.encode("é👩")];
    expect(ids.length).toBe(6);
    const stream = bytes.stream();
    expect(ids.map((id) => stream.push(id))).toEqual(["", "é", "", "", "", "👩"]);
    expect(stream.end()).toBe("");
    for (const id of ids.slice(0, 5)) stream.push(id);
    expect(stream.end()).toBe("\ufffd");
  });

  test("a byte order mark is text", () => {
    expect(tokenizer.decode(tokenizer.encode("\ufeffa\ufeff"))).toBe("\ufeffa\ufeff");
  });

  test("half of a surrogate pair is read as U+FFFD, alone and beside a whole one", () => {
    for (const [text, read] of [
      ["a\ud800b", "a\ufffdb"],
      ["\udc00\ud83d", "\ufffd\ufffd"],
      ["\ud83d\ud83d\ude42", "\ufffd🙂"],
      [" \udfff<pad>", " \ufffd<pad>"],
    ]) {
      expect(tokenizer.encode(text)).toEqual(tokenizer.encode(read));
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(read);
      const many = tokenizer.encodeBatch(Array.from({ length: 8000 }, () => text));
      expect(many[7999]).toEqual(tokenizer.encode(read));
    }
  });

  test("special tokens are text where they are not allowed", () => {
    for (const text of texts) {
      const ids = tokenizer.encode(text, { allowSpecial: false });
      expect(ids.some((id) => id < SPECIAL.length)).toBe(false);
      expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(text);
    }
  });

  test("ids that stand for nothing decode to nothing", () => {
    expect(tokenizer.decode([1_000_000, -1, ...tokenizer.encode("ok"), 1.5])).toBe("ok");
  });

  test("white space that a token took belongs to the next one only where Hugging Face gives it away", () => {
    // As tokenizers 0.23.2 does, of which the second may look odd.
    const ids = (lstrip: boolean): number[] => {
      const flags = { single_word: false, normalized: false, special: false };
      const added_tokens = [
        { ...flags, id: 0, content: "<a>", lstrip: false, rstrip: true },
        { ...flags, id: 0, content: " ", lstrip, rstrip: false },
      ];
      const t = fromJson({ ...(golden("llama3.json") as Json), added_tokens });
      const names = new Map([
        [t.tokenToId("<a>"), 1],
        [t.tokenToId(" "), 2],
      ]);
      return Array.from(t.encode("<a> !"), (id) => names.get(id) ?? 0);
    };
    expect(ids(true)).toEqual([1, 0]);
    expect(ids(false)).toEqual([1, 2, 0]);
  });

  test("tokens can be added, and are found from then on", () => {
    const t = fromJson(golden("qwen.json"));
    const size = t.vocabSize;
    expect(t.addSpecialTokens(["<tool>", "<pad>", "<tool>", "<用户>"])).toEqual([size, 3, size, size + 1]);
    expect(Array.from(t.encode("<用户><tool>"))).toEqual([size + 1, size]);
    expect(t.decode([size, size + 1])).toBe("<tool><用户>");
    const again = fromJson(t.json);
    expect(again.fingerprint).toBe(t.fingerprint);
    expect(Array.from(again.encode("<用户><tool>"))).toEqual([size + 1, size]);
    expect([again.vocabSize, again.idToToken(size), again.tokenToId("<用户>")]).toEqual([size + 2, "<tool>", size + 1]);
  });
});

describe("refused", () => {
  const refused = (json: unknown): string => {
    try {
      fromJson(json);
    } catch (error) {
      expect(error).toBeInstanceOf(UserError);
      return (error as Error).message;
    }
    return "nothing";
  };
  const split = (pattern: Json, more: Json = {}): Json => ({
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern, behavior: "Isolated", ...more },
      { type: "ByteLevel", add_prefix_space: false, use_regex: false },
    ],
  });
  test.each<[string, unknown, RegExp]>([
    ["model", { type: "Unigram", vocab: [] }, /model must be BPE, and here it is "Unigram"/],
    ["model", { type: "WordPiece", vocab: {} }, /"WordPiece"/],
    ["model", undefined, /there is none/],
    ["model.byte_fallback", true, /a pre-tokenizer is ByteLevel and the model's byte_fallback is true/],
    ["model.end_of_word_suffix", "</w>", /end_of_word_suffix is "<\/w>"/],
    ["model.dropout", 0.1, /dropout is 0.1/],
    ["model.merges", [["Ġ", "nope"]], /merge 1, \["Ġ","nope"\], does not name two tokens/],
    ["model.merges", ["a b c"], /merge 1, "a b c"/],
    ["pre_tokenizer", null, /no pre-tokenizer is ByteLevel and the model has no byte_fallback/],
    ["pre_tokenizer", { type: "Metaspace", replacement: "▁" }, /no pre-tokenizer is ByteLevel/],
    ["pre_tokenizer", { type: "Metaspace" }, /the replacement of pre_tokenizer \(Metaspace\) is undefined/],
    [
      "pre_tokenizer",
      { type: "Sequence", pretokenizers: [{ type: "ByteLevel" }, { type: "Digits" }] },
      /Digits stands after/,
    ],
    [
      "pre_tokenizer",
      { type: "Sequence", pretokenizers: [{ type: "BertPreTokenizer" }, { type: "ByteLevel" }] },
      /"BertPreTokenizer" is not implemented/,
    ],
    ["pre_tokenizer", split({ Regex: "a" }, { behavior: "MergedWithNext" }), /behavior "MergedWithNext"/],
    ["pre_tokenizer", split({ Regex: "(a" }), /expression \(a has a group without its end/],
    ["pre_tokenizer", split({ Regex: "\\p{Nonsense}" }), /property "Nonsense"/],
    ["pre_tokenizer", split({ Regex: "[[:alpha:]]" }), /"\[:name:\]"/],
    ["pre_tokenizer", split({ Regex: "(?m:.)" }), /the group "\(\?m:"/],
    ["normalizer", { type: "Lowercase" }, /normalizer "Lowercase" is not implemented/],
    ["normalizer", { type: "Replace", pattern: " " }, /damaged: the content of normalizer \(Replace\) is undefined/],
    ["normalizer", { type: "Replace", pattern: " ", content: "" }, /the pattern of normalizer \(Replace\) is " "/],
    ["normalizer", { type: "Prepend" }, /damaged: the prepend of normalizer \(Prepend\) is undefined/],
    ["post_processor", { type: "Strange" }, /post-processor "Strange"/],
    ["model.vocab", undefined, /damaged: model.vocab is not a table/],
    ["model.vocab.!", "x", /damaged: the token "!" has the id "x"/],
    ["model.vocab.!", 4e8, /damaged: the token "!" has the id 400000000/],
    ["model.merges", 3, /damaged: model.merges is not a list/],
    ["model.merges", [["a", "b"], 5], /damaged: merge 2 is 5/],
    ["added_tokens", [{ id: 3, content: 5 }], /damaged: an added token is/],
    ["normalizer", "NFC", /damaged: normalizer is "NFC"/],
    [
      "normalizer",
      { type: "Sequence" },
      /damaged: the normalizers of normalizer \(Sequence\) is undefined, and not a list/,
    ],
    ["normalizer", { type: "Sequence", normalizers: [null] }, /damaged: normalizer.normalizers\[0\] is null/],
    ["pre_tokenizer", { type: "Sequence" }, /the pretokenizers of pre_tokenizer \(Sequence\) is undefined/],
    ["pre_tokenizer", split("a" as never), /the pattern of pre_tokenizer.pretokenizers\[0\] \(Split\) is "a"/],
    ["pre_tokenizer", split(undefined as never), /\(Split\) is undefined, and not a Regex or a String/],
    ["post_processor", { type: "Sequence" }, /the processors of post_processor/],
    ["post_processor", { type: "TemplateProcessing" }, /the single of post_processor \(TemplateProcessing\)/],
    ["post_processor", { type: "TemplateProcessing", single: [] }, /the special_tokens of post_processor/],
    ["post_processor", { type: "BertProcessing", cls: ["[CLS]", 1] }, /the sep of post_processor/],
  ])("%s %j", (path, value, message) => {
    const said = refused(changed("llama3", [[path, value]]));
    expect(said).toMatch(message);
    expect(said).toMatch(/tokenizer\.json: /);
  });

  test("a folder without a tokenizer, a file that is no JSON", () => {
    const empty = join(dir, "empty");
    mkdirSync(empty);
    expect(() => Tokenizer.load(empty)).toThrow(/has no tokenizer.json in it\.$/);
    writeFileSync(join(empty, "tokenizer.model"), "");
    expect(() => Tokenizer.load(empty)).toThrow(/has no tokenizer.json in it\. Its tokenizer.model is SentencePiece's/);
    expect(() => Tokenizer.load(join(empty, "none"))).toThrow(/does not exist/);
    writeFileSync(join(empty, "tokenizer.json"), "{");
    expect(() => Tokenizer.load(empty)).toThrow(/tokenizer.json is not JSON/);
    writeFileSync(join(empty, "tokenizer.json"), JSON.stringify(golden("llama3.json")));
    writeFileSync(join(empty, "tokenizer_config.json"), "null");
    writeFileSync(join(empty, "chat_template.jinja"), "x");
    expect(() => Tokenizer.load(empty)).toThrow(/tokenizer_config.json holds no JSON object/);
  });

  test("a chat template that is neither a text nor a list of them with names", () => {
    const odd = join(dir, "odd");
    fromJson(golden("llama3.json") as Json).save(odd);
    const load = (chat_template: unknown): Tokenizer => {
      writeFileSync(join(odd, "tokenizer_config.json"), JSON.stringify({ chat_template }));
      return Tokenizer.load(odd);
    };
    for (const template of [5, true, {}, [null], ["x"], [{ name: "default" }], [{ name: 1, template: "" }]])
      expect(() => load(template), JSON.stringify(template)).toThrow(
        /odd\/tokenizer_config\.json: chat_template must be a text, or a list/,
      );
    const named = [{ name: "default", template: "x" }];
    expect([undefined, null, "x", named].map((t) => load(t).chatTemplate)).toEqual([undefined, undefined, "x", named]);
    load("x");
    writeFileSync(join(odd, "tokenizer_config.json"), '{"chat_template": 5}');
    writeFileSync(join(odd, "chat_template.jinja"), "y");
    expect(Tokenizer.load(odd).chatTemplate).toBe("y");
  });
});

test("between documents stands a base model's eos, and of a chat model the usual token, where it has one", () => {
  const tokenizer = Tokenizer.fromParts([...ALPHABET], [], "qwen", ["<|im_end|>", "<|endoftext|>"]);
  const [turn, text] = ["<|im_end|>", "<|endoftext|>"].map((t) => tokenizer.tokenToId(t));
  expect(tokenizer.separatorId).toBe(turn);
  tokenizer.config.chat_template = "{{ messages }}";
  expect(tokenizer.eosId).toBe(turn);
  expect(tokenizer.separatorId).toBe(text);
  const bare = Tokenizer.fromParts([...ALPHABET], [], "qwen", ["<|end|>"]);
  bare.config.chat_template = "{{ messages }}";
  expect(bare.separatorId).toBe(bare.eosId);
});
