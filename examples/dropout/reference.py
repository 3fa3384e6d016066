#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py. Its masks are ours: Philox 4x32-10 in NumPy."""
import pathlib
import sys

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record

SEED = 1


def philox(counter, key):
    """Ten rounds: four words a column of counter u64[4, n]."""
    low = np.uint64(0xffffffff)
    c, k = counter, list(key)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xd2511f53), c[2] * np.uint64(0xcd9e8d57)
        c = [b >> np.uint64(32) ^ c[1] ^ np.uint64(k[0]), b & low, a >> np.uint64(32) ^ c[3] ^ np.uint64(k[1]), a & low]
        k = [k[0] + 0x9e3779b9 & 0xffffffff, k[1] + 0xbb67ae85 & 0xffffffff]
    return np.stack(c)


def kept(number, step, shape, ratio):
    """Where the dropout of that number in the graph keeps what it gets: as ir/ops.def says."""
    n = int(np.prod(shape))
    counter = np.zeros((4, -(-n // 4)), np.uint64)
    counter[0] = np.arange(counter.shape[1])
    counter[1], counter[2] = step, number
    uniform = (philox(counter, (SEED, 0)).T.reshape(-1)[:n] >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy((uniform >= np.float32(ratio)).reshape(shape))


def model(variant):
    step = 0

    def forward(p, x):
        nonlocal step
        numbers = iter(range(9))

        def dropout(h, ratio):
            mask = kept(next(numbers), step, h.shape, ratio)
            return torch.where(mask, h / (1 - ratio), torch.zeros(()))

        def noisy(h, deviation):
            return h + deviation * (dropout(torch.ones_like(h), 0.5) - 1)

        def layer(h, name, ratio):
            w = p[f"{name}.weight"]
            return h @ (dropout(w, ratio) if variant == "weights" and ratio else w) + p[f"{name}.bias"]

        h = x / 16
        h = noisy(h, 0.5) if variant == "noise" else h
        h = torch.relu(layer(h, "fc1", 0.5))
        h = dropout(h, 0.5) if variant == "activations" else h
        h = torch.relu(layer(h, "fc2", 0.5))
        h = dropout(h, 0.5) if variant == "activations" else h
        h = noisy(h, 1) if variant == "noise" else h
        step += 1
        return layer(h, "fc3", 0)
    return forward


for variant in "none", "activations", "weights", "noise":
    record("dropout", f"dropout-{variant}", "u1", "i8", model(variant), F.cross_entropy, lambda p: torch.optim.Adam(p, 1e-3), 20,
           __file__, seed=SEED)
