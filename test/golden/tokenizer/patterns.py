"""The pre-tokenizers' expressions, and the changes to a tokenizer.json that variants.json is made of.

A change is a list of [path, value]: the path leads through objects to what is set. Some are computed: "stringMerges"
writes the merges as strings, "vocab+" adds tokens, "without" takes tokens out of the vocabulary together with the merges that name them.
"""

# Unified and compatibility ideographs.
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "han": rf"[{HAN}]|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}{HAN}]?(?:(?![{HAN}])\p{{L}})+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}{HAN}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}


def split(expression, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return [["pre_tokenizer", {"type": "Sequence", "pretokenizers": list(steps)}]]


def added(content, **flags):
    token = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {**token, **flags}


def with_added(*tokens):
    return [["added_tokens+", list(tokens)]]


# What tiktoken's cl100k and o200k, DeepSeek's and SmolLM's files hold.
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    split(r"\p{N}{1,3}"),
    split("[一-龥぀-ゟ゠-ヿ]+"),
    split(
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
]
BOS = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
EOS = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": BOS["id"], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": EOS["id"], "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {BOS["id"]: BOS, EOS["id"]: EOS},
}
ROBERTA = {"type": "RobertaProcessing", "sep": ["<pad>", 3], "cls": ["<|im_start|>", 1], "trim_offsets": True, "add_prefix_space": False}

# Merges as no training orders them: "ab" "a" goes before any other "a" "b".
UNORDERED = [["vocab+", ["ab", "aba", "ba"]], ["model.merges", [["ab", "a"], ["a", "b"], ["b", "a"]]]]
RUNS = ["ab" * n + "c" * (n % 2) + "ba" * (n % 5) + "aab" * (n % 3) for n in range(1, 60)]

# Name, base, change; and texts of its own.
VARIANTS = [
    ("merges as strings", "llama3", [["stringMerges", True]]),
    ("ignore_merges", "llama3", [["model.ignore_merges", True], ["model.merges", []]]),
    ("ignore_merges beside merges", "gpt2", [["model.ignore_merges", True]]),
    ("add_prefix_space", "gpt2", [["pre_tokenizer.add_prefix_space", True]]),
    ("add_prefix_space after a split", "llama3", sequence(split(PATTERNS["llama3"]), {**BYTES, "add_prefix_space": True})),
    ("ByteLevel alone, no expression", "gpt2", [["pre_tokenizer.use_regex", False]]),
    ("NFC", "qwen", [["normalizer", {"type": "NFC"}]]),
    ("NFKC in a sequence", "llama3", [["normalizer", {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "NFKC"}]}]]),
    ("digits, then GPT-2", "gpt2", sequence({"type": "Digits", "individual_digits": True}, GPT2)),
    ("runs of digits, then GPT-2", "gpt2", sequence({"type": "Digits", "individual_digits": False}, GPT2)),
    ("cl100k", "llama3", sequence(split(CL100K), BYTES)),
    ("cl100k, what does not match removed", "llama3", sequence(split(r"\p{L}+|\s", "Removed", True), BYTES)),
    ("white space removed", "llama3", sequence(split(r"\s+", "Removed"), BYTES)),
    ("o200k", "llama3", sequence(split(O200K), BYTES)),
    ("DeepSeek", "llama3", sequence(*DEEPSEEK, BYTES)),
    ("split at a string", "llama3", sequence({**split(""), "pattern": {"String": "a?."}}, split("e"), BYTES)),
    ("lines, words, any case", "llama3", sequence(split(r"^\w.*?$|(?i:[g-i]el+o)|\w\W|(?>x+)x|[^\S\n]{2,}|\h\H"), BYTES)),
    ("bytes without a token", "llama3", [["without", ["Ã", "a", "ä"]]]),
    ("bytes without a token, unk_token", "llama3", [["without", ["Ã", "a", "ä"]], ["model.unk_token", "<pad>"]]),
    (
        "bytes without a token, unk_token fused",
        "llama3",
        [["without", ["ä", "¸", "Ń"]], ["model.unk_token", "<pad>"], ["model.fuse_unk", True]],
    ),
    ("added: plain", "llama3", with_added(added("<mask>"), added("the"), added("<|"), added("[strip]"))),
    ("added: lstrip", "llama3", with_added(added("<mask>", lstrip=True), added("[strip]", lstrip=True, special=True))),
    ("added: rstrip", "qwen", with_added(added("<mask>", rstrip=True), added("[strip]", rstrip=True))),
    (
        "added: both strips, and white space itself",
        "gpt2",
        with_added(added("<mask>", lstrip=True, rstrip=True), added("[strip]", lstrip=True, rstrip=True), added("  "), added("\n")),
    ),
    ("added: single word", "llama3", with_added(added("<mask>", single_word=True), added("the", single_word=True), added("x", single_word=True))),
    (
        "added: normalized",
        "qwen",
        [["normalizer", {"type": "NFKC"}], *with_added(added("ﬁ", normalized=True), added("é", normalized=True), added("cafe\u0301"))],
    ),
    ("TemplateProcessing", "llama3", [["post_processor", TEMPLATE]]),
    ("TemplateProcessing in a sequence", "llama3", [["post_processor", {"type": "Sequence", "processors": [GPT2, TEMPLATE]}]]),
    ("RobertaProcessing", "gpt2", [["post_processor", ROBERTA]]),
    ("a merge that makes one of lower rank", "llama3", UNORDERED, RUNS),
    ("a merge that makes one of lower rank, GPT-2", "gpt2", UNORDERED, RUNS),
]


def changed(tokenizer, change):
    """The same in TypeScript: test/tokenizer/golden.ts."""
    model = tokenizer["model"]
    for path, value in change:
        if path == "stringMerges":
            model["merges"] = [" ".join(m) for m in model["merges"]]
        elif path == "without":
            gone = set(value)
            named = lambda token: any(c in gone for c in token)
            model["vocab"] = {t: i for t, i in model["vocab"].items() if i < 4 or not named(t)}
            model["merges"] = [m for m in model["merges"] if not named(m[0]) and not named(m[1])]
        elif path == "vocab+":
            for token in value:
                model["vocab"].setdefault(token, max(model["vocab"].values()) + 1)
        elif path == "added_tokens+":
            start = max(model["vocab"].values()) + 1
            for i, token in enumerate(value):
                known = model["vocab"].get(token["content"])
                tokenizer["added_tokens"].append({"id": start + i if known is None else known, **token})
        else:
            *parents, last = path.split(".")
            at = tokenizer
            for key in parents:
                at = at[key]
            at[last] = value
    return tokenizer
