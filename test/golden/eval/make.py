"""Golden numbers of src/stages/eval, made with PyTorch and Transformers: python make.py (writes beside this file).

(torch 2.13, transformers 5.18, tokenizers 0.23.) A tiny Llama with random weights and a byte-level BPE of its own. Every
log-probability is computed in the plainest way: one forward pass for each scored token, in float64, from the stored fp32
weights; no batching, no windows shared between tokens.
"""
import json
import math
import pathlib
import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
CONTEXT = 64
random.seed(0)
torch.manual_seed(0)
torch.set_num_threads(1)

words = "the owl sees a fox and runs to its house in winter when snow is on old trees by northern river".split()
lines = [" ".join(random.choice(words) for _ in range(12)).capitalize() + "." for _ in range(200)]
tok = Tokenizer(models.BPE())
tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
tok.decoder = decoders.ByteLevel()
tok.train_from_iterator(lines, trainers.BpeTrainer(
    vocab_size=300, special_tokens=["<|endoftext|>", "<|end|>", "<|pad|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|endoftext|>", pad_token="<|pad|>")
TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + ('<|end|>' if m.role == 'assistant' else '\n') }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=CONTEXT, tie_word_embeddings=True, initializer_range=0.3, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id)).eval()
with torch.no_grad():  # what is far back must weigh in the numbers
    for name, weight in model.named_parameters():
        if "self_attn" in name: weight *= 3
model.save_pretrained(HERE / "model")
tokenizer.save_pretrained(HERE / "model")
model = model.double()


@torch.no_grad()
def next_log_probs(ids):
    return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)


def token_log_prob(ids, t):
    """log p(ids[t]) given the tokens of its window: the first window is the first CONTEXT tokens, each later one begins half
    a context before the half context of tokens that it scores."""
    half = CONTEXT // 2
    begin = 0 if t < CONTEXT else t - (t - CONTEXT) % half - half
    return float(next_log_probs(ids[begin:t])[ids[t]])


start = tokenizer.eos_token_id
texts = ["The owl sees a fox.", lines[0], " ".join(lines[1:4]), "雪の上の狐 and 🦊, ünïcode", "x <|end|> y", " ".join(lines[4:18])]
perplexity = []
for text in texts:
    tok.encode_special_tokens = True  # a special token's text is text
    ids = [start, *tok.encode(text).ids]
    tok.encode_special_tokens = False
    logps = [token_log_prob(ids, t) for t in range(1, len(ids))]
    perplexity.append(dict(text=text, tokens=len(logps), bytes=len(text.encode()), nll=-sum(logps)))
assert max(p["tokens"] for p in perplexity) > 4 * CONTEXT  # several windows

def continuation(before, after):
    ids = [*before, *after]
    return sum(float(next_log_probs(ids[:t])[ids[t]]) for t in range(len(before), len(ids)))

choices = []
for question, options, gap in [
    ("The owl sees", ["a fox", "the northern river", "snow"], " "),
    ("In winter the owl ", ["runs", "is on its house"], " "),
    ("狐は", ["雪", "the owl"], None),
]:
    whole = question.rstrip()
    base = []
    chat = []
    for option in options:
        joint = whole + ((" " if option.isascii() and whole.isascii() else "") if gap is None else gap) + option
        before = tok.encode(whole).ids
        after = tok.encode(joint).ids
        assert after[:len(before)] == before  # no token reaches over the border
        base.append(continuation(before, after[len(before):]))
        prompt = tokenizer.apply_chat_template([dict(role="user", content=question)], chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False)
        chat.append(continuation(tok.encode(prompt).ids, tok.encode(option).ids))
    choices.append(dict(question=question, choices=options, base=base, chat=chat))

replies = []
for question in ["Where is the fox?", "What does the owl see?"]:
    prompt = tokenizer.apply_chat_template([dict(role="user", content=question)], chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False)
    ids = tok.encode(prompt).ids
    new = []
    for _ in range(6):
        new.append(int(next_log_probs([*ids, *new]).argmax()))
        if new[-1] in (tok.token_to_id("<|end|>"), start): break
    replies.append(dict(question=question, ids=new, reply=tokenizer.decode(new, skip_special_tokens=True)))

total = sum(p["nll"] for p in perplexity)
tokens = sum(p["tokens"] for p in perplexity)
size = sum(p["bytes"] for p in perplexity)
summary = dict(tokens=tokens, bytes=size, loss=total / tokens, perplexity=math.exp(total / tokens), bitsPerByte=total / math.log(2) / size)
(HERE / "golden.json").write_text(json.dumps(dict(template=TEMPLATE, perplexity=perplexity, summary=summary, choices=choices, replies=replies), indent=1, ensure_ascii=False) + "\n")
