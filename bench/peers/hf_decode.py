"""Transformers' side of bench/decode.mjs: greedy generation with a KV cache, in bf16.

Stays as a process. For every line {"batch": B, "prompt": P, "tokens": N} on stdin it continues B random prompts of P
tokens by exactly N and answers with one line of JSON.
"""
import argparse
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16).eval()
    vocab = model.config.vocab_size
    for line in sys.stdin:
        work = json.loads(line)
        ids = torch.randint(0, vocab, (work["batch"], work["prompt"]))
        mask = torch.ones_like(ids)
        n = work["tokens"]
        with torch.inference_mode():
            start = time.perf_counter()
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, min_new_tokens=n, max_new_tokens=n, use_cache=True, pad_token_id=0
            )
            seconds = time.perf_counter() - start
        assert out.shape[1] == work["prompt"] + n
        print(json.dumps({"seconds": seconds}), flush=True)


main()
