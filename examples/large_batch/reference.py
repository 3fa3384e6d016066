#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py. One rank with the whole batch; LARS and LAMB are spelled
out. Learning rates are a hundredth, of the small batch a thousandth, so that rounding does not part two programs in 100 steps."""
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import dump, finish, read_safetensors

SIDE, TRAIN = 12, 4096
METHODS = {  # name: batch, epochs, rate, warmup, decay, factor of the rate
    "small": (16, 1, 0.3, 0, 5e-4, 0.001), "lars": (512, 13, 0.9, 16, 5e-3, 0.01),
    "lamb": (512, 13, 0.06, 16, 0.01, 0.01)}
TRUST, MOMENTUM = 0.02, 0.9


def norm(p, x, name):
    return F.batch_norm(x, None, None, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], True)


def resnet(p, x):
    x = torch.relu(norm(p, F.conv2d(x, p["conv.weight"], padding=1), "conv"))
    for block in range(1, 4):
        name, stride = f"block{block}", 2 if block > 1 else 1
        y = torch.relu(norm(p, F.conv2d(x, p[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.conv1"))
        y = norm(p, F.conv2d(y, p[f"{name}.conv2.weight"], padding=1), f"{name}.conv2")
        if block > 1:
            x = norm(p, F.conv2d(x, p[f"{name}.conv3.weight"], stride=stride), f"{name}.conv3")
        x = torch.relu(x + y)
    return x.mean((2, 3)) @ p["fc.weight"] + p["fc.bias"]


def ratio(a, b):
    return a / b if a > 0 and b > 0 else torch.ones(())


def update(name, p, state, t, rate, decay):
    for key, w in p.items():
        g = w.grad
        m, v = state.setdefault(key, (torch.zeros_like(w), torch.zeros_like(w)))
        if name == "lamb":  # You and others, 2020
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            step = m / (1 - 0.9 ** (t + 1)) / (v.sqrt() / math.sqrt(1 - 0.999 ** (t + 1)) + 1e-6) + decay * w
            w -= rate * ratio(w.norm(), step.norm()) * step
        elif name == "lars":  # You and others, 2017
            local = ratio(TRUST * w.norm(), g.norm() + decay * w.norm())
            m.mul_(MOMENTUM).add_(rate * local * (g + decay * w))
            w -= m
        else:
            m.mul_(MOMENTUM).add_(g + decay * w)
            w -= rate * m


def steps(name, p, x, y):
    batch, epochs, rate, warmup, decay, factor = METHODS[name]
    state, t, last = {}, 0, epochs * TRAIN // batch - warmup
    while True:
        for i in range(0, TRAIN, batch):
            now = factor * rate * min((t + 1) / warmup if warmup else 1, 1) * (1 + math.cos(math.pi * min(max(t - warmup, 0) / last, 1))) / 2
            loss = F.cross_entropy(resnet(p, x[i:i + batch]), y[i:i + batch])
            for w in p.values():
                w.grad = None
            loss.backward()
            with torch.no_grad():
                update(name, p, state, t, now, decay)
            t += 1
            yield loss.item()


with tempfile.TemporaryDirectory() as folder:
    dump("large_batch", folder)
    for method, (*_, factor) in METHODS.items():
        name = f"large_batch-{method}"
        x = torch.from_numpy(np.fromfile(f"{folder}/{name}.x", np.float32)).reshape(-1, 1, SIDE, SIDE)
        y = torch.from_numpy(np.fromfile(f"{folder}/{name}.y", np.int64))
        state = read_safetensors(pathlib.Path(folder) / f"{name}.safetensors")
        p = {k: v.requires_grad_() for k, v in state.items() if k.endswith((".weight", ".bias"))}
        finish(__file__, "large_batch", name, steps(method, p, x, y), ("--method", method, "--rate", str(factor)))
