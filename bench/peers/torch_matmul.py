"""PyTorch's side of bench/matmul.mjs: for every line {transA, transB, M, N, K} the seconds that one torch.matmul takes."""
import argparse
import json
import sys
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
parser.add_argument("--threads", type=int, required=True)
a = parser.parse_args()
torch.set_num_threads(a.threads)
dtype = torch.bfloat16 if a.precision == "bf16" else torch.float32
for line in sys.stdin:
    s = json.loads(line)
    A = torch.randn(*((s["K"], s["M"]) if s["transA"] else (s["M"], s["K"])), dtype=dtype)
    B = torch.randn(*((s["N"], s["K"]) if s["transB"] else (s["K"], s["N"])), dtype=dtype)
    A, B = A.T if s["transA"] else A, B.T if s["transB"] else B
    C = torch.empty(s["M"], s["N"], dtype=dtype)
    torch.matmul(A, B, out=C)
    start, count, seconds = time.perf_counter(), 0, 0.0
    while seconds < 0.1:
        torch.matmul(A, B, out=C)
        count += 1
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds / count}), flush=True)
