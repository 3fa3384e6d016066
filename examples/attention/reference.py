#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record

LENGTH, CONTEXT, HEADS, LAYERS, BATCH, GPT_BATCH = 10, 64, 4, 2, 64, 8


def linear(p, x, name):
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def norm(p, x, name):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def attention(p, x, memory, heads, causal, name):
    q, k, v = (linear(p, of, f"{name}.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
               for of, part in ((x, "q"), (memory, "k"), (memory, "v")))
    return linear(p, F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2), f"{name}.o")


def reverser(p, tokens):
    memory = p["encoder.symbol.weight"][tokens[:, :LENGTH]] + p["encoder.place.weight"]
    h = p["decoder.symbol.weight"][tokens[:, LENGTH:]] + p["decoder.place.weight"]
    h = norm(p, h + attention(p, h, h, 2, True, "self"), "norm1")
    h = norm(p, h + attention(p, h, memory, 1, False, "cross"), "norm2")
    return linear(p, h, "out")


def gpt(p, x):
    x = p["characters.weight"][x] + p["places.weight"]
    for i in range(LAYERS):
        h = norm(p, x, f"block{i}.norm1")
        x = x + attention(p, h, h, HEADS, True, f"block{i}")
        x = x + linear(p, F.gelu(linear(p, norm(p, x, f"block{i}.norm2"), f"block{i}.up")), f"block{i}.down")
    return linear(p, norm(p, x, "norm"), "head")


def loss(logits, target):
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


class Clipped(torch.optim.Adam):
    def step(self):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1)
        super().step()


record("attention", "attention-reverse", "i8", "i8", reverser, loss, lambda p: torch.optim.Adam(p, 3e-3), BATCH, __file__,
       targets=LENGTH)
record("attention", "attention-gpt", "i8", "i8", gpt, loss, lambda p: Clipped(p, 5e-3), GPT_BATCH, __file__, targets=CONTEXT)
