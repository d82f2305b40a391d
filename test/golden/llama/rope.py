"""Rotary frequencies as Transformers computes them, for src/nn/rope.ts.

    python rope.py            (made with transformers 5.18; writes rope.json beside this file)

For each configuration: config.json's fields, the positions asked for, inverse frequencies and the factor of cos and sin.
"""
import json
import pathlib

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SHAPE = dict(vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=256)
CASES = [
    (dict(max_position_embeddings=1024), YARN, 1024),
    (dict(max_position_embeddings=1024), {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 0.75}, 1024),
    (dict(max_position_embeddings=1024), {**YARN, "truncate": False, "rope_theta": 5e5}, 1024),
    (dict(max_position_embeddings=4096, head_dim=128), {**YARN, "factor": 16.0, "mscale": 0.7, "mscale_all_dim": 1.2}, 4096),
    (dict(max_position_embeddings=64), {**YARN, "factor": 1.0, "original_max_position_embeddings": 4}, 64),
    (dict(max_position_embeddings=1024), dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128), 1024),
    (dict(max_position_embeddings=1024), dict(rope_type="linear", rope_theta=1e4, factor=3.0), 1024),
    (dict(max_position_embeddings=128), dict(rope_type="dynamic", rope_theta=1e4, factor=2.0), 300),
]

out = []
for shape, rope, positions in CASES:
    config = LlamaConfig(**SHAPE, **shape, rope_parameters=rope)
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=positions)
    out.append({"config": {**SHAPE, **shape, "rope_parameters": rope}, "positions": positions, "frequencies": [float(f"{x:.8g}") for x in frequencies.double().tolist()], "factor": float(factor)})
pathlib.Path(__file__).with_name("rope.json").write_text(json.dumps(out) + "\n", encoding="utf8")
