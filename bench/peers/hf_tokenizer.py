"""Hugging Face tokenizers (Rust) for bench/tokenizer.mjs: does what each line of standard input asks, answers with JSON.

Arguments: file of documents (a JSON array), tokenizer.json to encode with and to take the pre-tokenizer from, vocabulary size.
"""
import array
import gc
import hashlib
import json
import resource
import sys
import time

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

documents_file, tokenizer_file, vocab_size = sys.argv[1:]
documents = json.load(open(documents_file, encoding="utf8"))
tokenizer = Tokenizer.from_file(tokenizer_file)


def train():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=int(vocab_size),
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    return trained


def digest_merges(trained):
    merges = json.loads(trained.to_str())["model"]["merges"]
    return hashlib.sha256("\n".join(" ".join(m) for m in merges).encode()).hexdigest()


def encode():
    # Without offsets, which ours does not compute either: the faster of the two ways.
    return tokenizer.encode_batch_fast(documents, add_special_tokens=False)


def digest_ids(encoded):
    h = hashlib.sha256()
    for e in encoded:
        h.update(array.array("I", e.ids).tobytes())
    return h.hexdigest()


WORK = {"train": (train, digest_merges), "encode": (encode, digest_ids)}
for line in sys.stdin:
    work, digest = WORK[line.strip()]
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peakRss": memory, "digest": digest(result)}), flush=True)
    del result
