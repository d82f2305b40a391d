"""Golden numbers for the Llama of src/nn and its relatives, made with PyTorch and Transformers.

    python make.py [VARIANT ...]           (made with torch 2.13, transformers 5.18; writes beside this file)

For each variant: a Hugging Face folder written by save_pretrained, config.v4.json (the same config in Transformers 4
spelling) and golden.json. Everything is computed in fp32, eager attention, one thread, fixed seeds. The weights are
larger than an initialisation would be, so that every part of the model weighs in the numbers; not so large that the
rounding of bf16 grows beyond the 2e-2 of the tests (PyTorch in bf16 is within 1e-2 in the logits here).

Summaries, so that the files stay small: `dot(x)` = sum_i x[i] cos(i) over the flattened tensor, in float64. It moves
when any entry moves or two change places.
"""
import json
import math
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SHAPE = dict(hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
# name: config (a Llama's, where it does not say another model_type), storage type of the weights on disk, shard size
VARIANTS = {
    "mha-untied": (dict(vocab_size=97, num_key_value_heads=4, tie_word_embeddings=False, rope_parameters=PLAIN), torch.float32, "5GB"),
    "gqa-tied": (dict(vocab_size=128, num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5,
                      rope_parameters={"rope_type": "default", "rope_theta": 1e6}), torch.bfloat16, "100KB"),
    "head-dim-llama3": (dict(vocab_size=101, num_key_value_heads=1, head_dim=32, tie_word_embeddings=False, rope_parameters=LLAMA3), torch.bfloat16, "5GB"),
    "linear-3-layers": (dict(vocab_size=97, num_key_value_heads=2, num_hidden_layers=3, tie_word_embeddings=True,
                             rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}), torch.bfloat16, "5GB"),
    "qwen2-tied": (dict(model_type="qwen2", vocab_size=97, num_key_value_heads=2, tie_word_embeddings=True, sliding_window=64, use_sliding_window=False,
                        rope_parameters={"rope_type": "default", "rope_theta": 1e6}), torch.bfloat16, "5GB"),
    "qwen3-untied": (dict(model_type="qwen3", vocab_size=101, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
                          rope_parameters={"rope_type": "default", "rope_theta": 1e6}), torch.bfloat16, "5GB"),
    "mistral": (dict(model_type="mistral", vocab_size=97, num_key_value_heads=2, tie_word_embeddings=False, sliding_window=100,
                     rope_parameters=PLAIN), torch.bfloat16, "5GB"),
}
# No batch holds token 0, the padding: Transformers keeps its row of the embedding out of the gradient.
# Sequences of input tokens; each has its next tokens as targets, -1 where the loss does not look.
CASES = {"single": [1], "pair": [17, 17], "long": [65], "packed": [5, 12]}


def numbers(t):
    return [float(f"{x:.8g}") for x in t.detach().double().flatten().tolist()]


def dot(t):
    x = t.detach().double().flatten()
    return float(x @ torch.cos(torch.arange(x.numel(), dtype=torch.float64)))


def summary(t):
    flat = t.detach().flatten()
    at = torch.linspace(0, flat.numel() - 1, 6).long()
    return {"norm": float(flat.double().norm()), "dot": dot(flat), "at": at.tolist(), "values": numbers(flat[at])}


def draw_model(config, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".bias"):
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
            elif p.ndim == 1:
                p.copy_(1 + 0.25 * torch.randn(p.shape, generator=generator))
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.15 if "embed" in name else 0.7 / math.sqrt(p.shape[1])))
            p.copy_(p.to(dtype).float())  # what the file will hold
    return model


def logits_of(model, sequences, name):
    """[tokens, V]. `packed`: all sequences in one row, positions reset, block-diagonal causal mask."""
    if name != "packed":
        return model(torch.stack(sequences)).logits.flatten(0, 1)
    ids = torch.cat(sequences)[None]
    document = torch.cat([torch.full((len(s),), i) for i, s in enumerate(sequences)])
    positions = torch.cat([torch.arange(len(s)) for s in sequences])[None]
    sees = (document[:, None] == document[None, :]) & torch.ones(len(document), len(document)).tril().bool()
    mask = torch.where(sees, 0.0, torch.finfo(torch.float32).min)[None, None]
    return model(ids, attention_mask=mask, position_ids=positions).logits[0]


def golden(model, vocab, generator):
    cases = {}
    for name, lengths in CASES.items():
        rows = [torch.randint(1, vocab, (n + 1,), generator=generator) for n in lengths]
        inputs, targets = [r[:-1] for r in rows], [r[1:].clone() for r in rows]
        if name == "packed":
            targets[1][:3] = -1
        model.zero_grad(set_to_none=True)
        logits = logits_of(model, inputs, name)
        if name == "packed":
            alone = torch.cat([model(s[None]).logits[0] for s in inputs])
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
        target = torch.cat(targets)
        loss = F.cross_entropy(logits, target, ignore_index=-1)
        loss.backward()
        logp = torch.log_softmax(logits, -1).gather(1, target.clamp(min=0)[:, None])[:, 0] * (target >= 0)
        ends = torch.tensor(lengths).cumsum(0) - 1
        cases[name] = {
            "inputs": [s.tolist() for s in inputs],
            "targets": [t.tolist() for t in targets],
            "lastLogits": [numbers(row) for row in logits[ends]],
            "logitDots": [float(f"{dot(row):.8g}") for row in logits],
            "logProbs": numbers(logp),
            "loss": loss.item(),
            "grads": {n: summary(p.grad) for n, p in model.named_parameters()},
        }
    return cases


def train(model, vocab, generator, eps):
    """20 AdamW steps, clipped at 1, weight decay on matrices only; four batches in turn, so the loss has something to learn.
    Adam does not feel the scale of its gradients, so a wrong clip shows only where eps is as large as they are."""
    steps, warmup, peak, lowest = 20, 5, 1e-3, 1e-4
    batches = [torch.randint(1, vocab, (4, 17), generator=generator) for _ in range(4)]
    rates = [peak * s / warmup if s <= warmup else
             lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * (s - warmup) / (steps - warmup))) for s in range(1, steps + 1)]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
         {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}], betas=(0.9, 0.95), eps=eps)
    losses, norms = [], []
    for step, rate in enumerate(rates):
        rows = batches[step % len(batches)]
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        losses.append(loss.item())
        optimizer.step()
    return {
        "betas": [0.9, 0.95], "eps": eps, "weightDecay": 0.1, "gradClip": 1.0,
        "schedule": {"peak": peak, "warmupSteps": warmup, "minLearningRate": lowest}, "learningRates": rates,
        "batches": [b.tolist() for b in batches], "losses": losses, "gradNorms": norms,
        "weights": {n: summary(p) for n, p in model.named_parameters()},
    }


def version4(config):
    """The same config as Transformers 4 would have written it."""
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    return config


for seed, (name, (extra, dtype, shard)) in enumerate(VARIANTS.items()):
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        continue
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config = AutoConfig.for_model(**({"model_type": "llama"} | SHAPE | extra), attn_implementation="eager", bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = draw_model(config, dtype, 100 + seed)
    generator = torch.Generator().manual_seed(200 + seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    # Loaded again, not cast back: .to(bfloat16) has rounded the rotary frequencies too.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.v4.json").write_text(json.dumps(version4(written), indent=2) + "\n")
    out = {"cases": golden(model, config.vocab_size, generator)}
    if name in ("mha-untied", "gqa-tied"):
        out["training"] = train(model, config.vocab_size, generator, eps=1e-8 if name == "mha-untied" else 1e-2)
        print(name, "loss", out["training"]["losses"][0], "->", out["training"]["losses"][-1])
    (folder / "golden.json").write_text(json.dumps(out) + "\n")
