"""PyTorch's side of bench/train.mjs: the same Llama, written as well as one can for a CPU.

One matrix for query, key and value, one for gate and up, scaled_dot_product_attention, fused AdamW, gradients set to
None. For every line "N" on stdin it runs N training steps and answers with one line of JSON.
"""
import argparse
import json
import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-6)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.heads = width // 64
        self.input_norm, self.mlp_norm = Norm(width), Norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x, cos, sin):
        B, T, D = x.shape
        q, k, v = self.qkv(self.input_norm(x)).view(B, T, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.embedding = nn.Embedding(m["vocab"], m["hidden"])
        self.layers = nn.ModuleList(Layer(m["hidden"], m["intermediate"]) for _ in range(m["layers"]))
        self.norm = Norm(m["hidden"])
        angles = torch.outer(torch.arange(m["context"]).float(), 10000 ** (-torch.arange(0, 64, 2) / 64)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["fp32", "bf16", "fp32-compile", "bf16-compile"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--model", type=json.loads, required=True)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    model = Llama(a.model)
    forward = torch.compile(model) if a.mode.endswith("compile") else model
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    shape = (a.model["batch"], a.model["context"] + 1)
    for line in sys.stdin:
        rows = torch.randint(0, a.model["vocab"], shape)
        ids, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        start = time.perf_counter()
        for _ in range(int(line)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.mode.startswith("bf16")):
                loss = forward(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = usage if sys.platform == "darwin" else usage * 1024  # bytes on macOS, KiB elsewhere
        print(json.dumps({"seconds": seconds, "peakRss": peak, "loss": loss.item()}), flush=True)


main()
