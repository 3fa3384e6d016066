#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record


def model(cell):
    def forward(p, x):
        h = F.embedding(x.long(), p["embedding.weight"])
        weights = [p[f"cell.{part}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        zeros = torch.zeros(1, len(x), weights[1].shape[1])
        states = (zeros, zeros) if cell == "lstm" else zeros
        h = getattr(torch, cell)(h, states, weights, True, 1, 0.0, False, False, True)[0]
        return h @ p["out.weight"] + p["out.bias"]
    return forward


def loss(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def adam(rate):
    return lambda p: torch.optim.Adam(p, rate)


for cell in "lstm", "gru":
    for part, time, rate, batch, epochs in ("source", 32, 2e-2, 64, 5), ("text", 64, 1e-2, 16, 16):
        record("lstm", f"{cell}-{part}", "u1", "i8", model(cell), loss, adam(rate), batch, __file__, targets=time,
               options=("--cell", cell), epochs=epochs)
