"""Tokenizers trained by Hugging Face `tokenizers` and what they make of texts. From the repository's root:

    python test/golden/tokenizer/make.py

Writes beside itself: corpus.json (documents), gpt2.json, llama3.json, qwen.json (tokenizer.json as trained on it),
trained.json (merges of other trainings), texts.json (texts, their ids and how the ids decode) and variants.json (changes
to a tokenizer.json, and what the changed tokenizer gives).
"""
import json
import pathlib
import random

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from patterns import PATTERNS, VARIANTS, changed

HERE = pathlib.Path(__file__).parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
PIECES = (
    ["a", "B", " ", "  ", "    ", "\n", "\r\n", "\r", "\t", "\0", "\x1f", "\x7f", "\x85", "\xa0", "\u3000", "\u2028"]
    + ["\ufeff", "\u200b", "\u200d", "'s", "'S", "'\u017f", "'LL", "'re", "'VE", "'x", "'", "don't", "IT'S"]
    + ["é", "e\u0301", "ß", "Ångström", "a\u0323\u0307", "中", "国人民", "，", "日本語", "한국어", "\u1100\u1161\u11a8"]
    + ["العربية", "עברית", "ไทย", "हिन्दी", "़", "ქართული", "🙂", "👩‍👩‍👧", "🇨🇳", "👍🏽", "\ufe0f"]
    + ["0", "7", "23", "456", "7890", "12345678", "٣٤", "½", "Ⅷ", "²", "१२३", "𝟘", "𝐀", "𐐷", "\U00020000"]
    + ["!", "...", "—", "?!", "://", "#$%", "{}", "<", "|", "<|", "|>", "_", "ǅ", "ﬁ", "ﷺ", "\ufffd", "\U0010ffff"]
    + ["x" * 50, "中" * 30, "-" * 17, " " * 33, " .\n\n", "\n\n\n", " \n ", "the", " the capital", "Hello", "word's"]
    + ["<mask>", "  <mask> ", "x<mask>", "[strip]", "\n[strip]\t", "ﬃx", "naïve", "cafe\u0301"]
    + SPECIAL
)


def documents(rng):
    """About 100 KB: the atlas, and made-up text in many scripts with runs, numbers and white space."""
    rows = [json.loads(r)["text"] for r in (HERE / "../../../recipes/atlas/pretrain.jsonl").open(encoding="utf8")]
    docs, size = [], 0
    while size < 60_000:
        docs.append(rng.choice(rows))
        size += len(docs[-1].encode())
    plain = [p for p in PIECES if p not in SPECIAL]
    while size < 100_000:
        docs.append("".join(rng.choice(plain) for _ in range(rng.randrange(5, 60))))
        size += len(docs[-1].encode())
    return docs


def fuzz(rng, count):
    texts = ["", " ", "a", " a", "\n", *SPECIAL, " ".join(SPECIAL), "".join(SPECIAL)]
    while len(texts) < count:
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 14)))
        if rng.random() < 0.3:
            points = (rng.choice([0x250, 0x3000, 0xD800, 0x110000]) for _ in range(rng.randrange(1, 8)))
            text += "".join(chr(c) for c in (rng.randrange(p) for p in points) if not 0xD800 <= c <= 0xDFFF)
        texts.append(text)
    return texts


def train(docs, name, size, minimum=2, special=tuple(SPECIAL)):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "gpt2")
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    tokenizer.pre_tokenizer = byte_level if name == "gpt2" else pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        docs,
        trainers.BpeTrainer(
            vocab_size=size, min_frequency=minimum, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def results(tokenizer, texts):
    """Ids, and the decoded text where it is not the text itself."""
    encoded = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    differs = {}
    for i, (text, ids) in enumerate(zip(texts, encoded)):
        decoded = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        if decoded != [text, text]:
            differs[i] = decoded
    return {"ids": encoded, "decoded": differs}


def write(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf8")


if __name__ == "__main__":
    rng = random.Random(1)
    docs = documents(rng)
    texts = fuzz(rng, 400)
    write("corpus.json", docs)
    golden = {"tokenizers": tokenizers.__version__, "texts": texts}
    for name in PATTERNS:
        tokenizer = train(docs, name, 1000)
        tokenizer.save(str(HERE / f"{name}.json"), pretty=False)
        golden[name] = results(tokenizer, texts)
    write("texts.json", golden)

    runs = ["a" * n + "b" * (n % 7) + "-" * (3 * n) + "ab" * n for n in range(1, 40)]
    trained = []
    for name, corpus, size, minimum, special in [
        ("llama3", "runs", 300, 2, ["<s>"]),
        ("gpt2", "runs", 420, 1, ["<s>", "</s>"]),
        ("llama3", "documents", 600, 50, ["<s>"]),
        ("qwen", "documents", 2000, 1, ["the", "<s>", "Ġc", "a"]),
    ]:
        made = json.loads(train(runs if corpus == "runs" else docs, name, size, minimum, special).to_str())["model"]
        options = {"pretokenizer": name, "vocabSize": size, "minFrequency": minimum, "specialTokens": special}
        vocab = sorted(made["vocab"], key=made["vocab"].get)
        trained.append({"corpus": corpus, "options": options, "vocab": vocab, "merges": made["merges"]})
    write("trained.json", {"runs": runs, "trained": trained})

    few = texts[:150]
    variants = []
    for name, base, change, *own in VARIANTS:
        text = json.dumps(changed(json.loads((HERE / f"{base}.json").read_text(encoding="utf8")), change))
        tokenizer = Tokenizer.from_str(text)
        around = tokenizer.encode("a", add_special_tokens=True).ids
        made = {"name": name, "base": base, "change": change, "around": around, **results(tokenizer, own[0] if own else few)}
        variants.append({**made, "texts": own[0]} if own else made)
    write("variants.json", variants)
