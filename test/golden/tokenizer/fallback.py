"""A tokenizer with byte fallback, as Llama 2, TinyLlama and Mistral 7B have: trained by SentencePiece, converted by Transformers' rules,
and what Hugging Face `tokenizers` makes of texts with it. Run after make.py, from the repository's root, with a Python that has
`sentencepiece`, `protobuf`, `transformers` and `tokenizers`:

    python test/golden/tokenizer/fallback.py

Writes beside itself: llama2.json (tokenizer.json) and fallback.json (texts, ids, decoded texts; the same for changes to the file).
"""
import io
import json
import pathlib
import random

import sentencepiece
import tokenizers
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from make import HERE, fuzz, results, write
from patterns import TEMPLATE, added, changed, with_added

MARK = "\u2581"
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODERS = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
PREPEND = {"type": "Prepend", "prepend": MARK}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}


def special(token):
    return {"content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def trained(docs):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(d.replace("\0", "") for d in docs),
        model_writer=model,
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=True,
        character_coverage=0.98,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model.getvalue())
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    around = json.loads(json.dumps(TEMPLATE).replace("<|im_start|>", "<s>").replace("<|endoftext|>", "</s>"))
    around["special_tokens"]["</s>"]["ids"] = [2]
    around["single"].pop()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **special(t)} for i, t in enumerate(["<unk>", "<s>", "</s>"])],
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
        "pre_tokenizer": None,
        "post_processor": around,
        "decoder": {"type": "Sequence", "decoders": [*DECODERS, STRIP]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(merge) for merge in generate_merges(vocab)],
        },
    }


def metaspace(scheme, split=False):
    return [["normalizer", None], ["pre_tokenizer", {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}]]


CHAT = ["<|im_start|>", "<|im_end|>"]
VARIANTS = [
    ("as it is", []),
    ("Metaspace, first", metaspace("first")),
    ("Metaspace, always", metaspace("always")),
    ("Metaspace, never", [*metaspace("never"), ["decoder", {"type": "Sequence", "decoders": DECODERS}]]),
    ("Metaspace, words split", metaspace("first", True)),
    ("Metaspace of before prepend_scheme", [["normalizer", None], ["pre_tokenizer", {"type": "Metaspace", "replacement": MARK, "add_prefix_space": True}]]),
    ("nothing before a text", [["normalizer", REPLACE], ["decoder", {"type": "Sequence", "decoders": DECODERS}]]),
    ("NFKC", [["normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}, PREPEND, REPLACE]}]]),
    ("tokens of a chat", with_added(*(added(t, special=True) for t in CHAT), added("<mask>", lstrip=True))),
    ("tokens of a chat, Metaspace", [*metaspace("first"), *with_added(*(added(t, special=True) for t in CHAT))]),
    ("tokens sought in normalized text", with_added(*(added(t, normalized=True) for t in [*CHAT, "the"]))),
    ("words in the vocabulary first", [*metaspace("first", True), ["model.ignore_merges", True]]),
    ("merges as strings", [["stringMerges", True]]),
]

if __name__ == "__main__":
    docs = json.loads((HERE / "corpus.json").read_text(encoding="utf8"))
    rng = random.Random(2)
    texts = fuzz(rng, 150)
    own = [MARK, f"a{MARK}b", f"{MARK}{MARK} a", "<s>", "</s>", "a<s> b</s>  c", "<unk>x", "<0x41>", "<0x0A>", " ", "   ", "\n", "a  b   c", "[INST] Hi [/INST] Yes </s>"]
    texts = [*own, *texts]
    base = trained(docs)
    write("llama2.json", base)
    ids = [[rng.randrange(1000) for _ in range(12)] + [3 + 0xE4, 3 + 0xB8] * (n % 3) for n in range(80)]
    variants = []
    for name, change in VARIANTS:
        tokenizer = Tokenizer.from_str(json.dumps(changed(json.loads(json.dumps(base)), change)))
        around = tokenizer.encode("a", add_special_tokens=True).ids
        variants.append({"name": name, "change": change, "around": around, **results(tokenizer, texts)})
        if name in ("as it is", "Metaspace, never"):
            variants[-1]["random"] = [[tokenizer.decode(i, skip_special_tokens=skip) for skip in (False, True)] for i in ids]
    write("fallback.json", {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__, "texts": texts, "ids": ids, "variants": variants})
