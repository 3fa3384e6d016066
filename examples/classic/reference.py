#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys
import tempfile

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import dump, finish, learn, lenet, read_safetensors

folder = tempfile.TemporaryDirectory()
dump("classic", folder.name)
root = pathlib.Path(folder.name)
x = torch.from_numpy(np.fromfile(root / "classic-mlp.x", np.uint8)).reshape(-1, 64) / 16
y = torch.from_numpy(np.fromfile(root / "classic-mlp.y", np.int64))
target = F.one_hot(y, 10).float()
states = {part: read_safetensors(root / f"classic-{part}.safetensors")
          for part in ("kernel", "trees", "mixture", "mlp", "lenet")}


def solve(share=1.0, width=0.8):
    matrix = torch.exp(-width * ((x * x).sum(1)[:, None] - 2 * x @ x.T + (x * x).sum(1)))
    w, r, p = torch.zeros_like(target), target.clone(), target.clone()
    while True:
        moved, before = matrix @ p + share * p, (r * r).sum(0)
        length = before / ((p * moved).sum(0) + 1e-30)
        w, r = w + length * p, r - length * moved
        p = r + (r * r).sum(0) / (before + 1e-30) * p
        off = r + share * w
        yield ((off * off + share * w * (target - off)).mean() * 10).item()


def boost(depth=4, steps=50, share=2, rate=0.05):
    leaves, parts = 1 << depth, ("tree.split.weight", "tree.split.bias", "tree.leaf")
    ways = torch.zeros(2 * leaves - 2, leaves)
    for leaf in range(leaves):
        node = leaf + leaves
        while node > 1:
            ways[(leaves - 1 if node % 2 else 0) + node // 2 - 1, leaf] = 1
            node //= 2
    fresh = torch.from_numpy(np.fromfile(root / "classic-trees.fresh", np.float32))
    start = [states["trees"][name] for name in parts]
    shapes = [v.shape for v in start]
    scores = torch.zeros_like(target)
    while True:
        part = [v.clone().requires_grad_() for v in start]
        optimizer = torch.optim.Adam(part, rate)

        def tree():
            z = x @ part[0] + part[1]
            return torch.exp(torch.cat([F.logsigmoid(-z), F.logsigmoid(z)], 1) @ ways) @ part[2]

        missed = target - scores.softmax(1)
        for _ in range(steps):
            loss = F.mse_loss(tree(), missed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
        scores = scores + share * tree().detach()
        start = [v.reshape(shape) for v, shape in zip(fresh.split([shape.numel() for shape in shapes]), shapes)]


def mixture(p, x):
    mean, variance = p["mean.weight"], p["spread.weight"].exp() + 1
    x = 16 * x
    far = x * x @ (1 / variance) - 2 * x @ (mean / variance) + (mean * mean / variance + (2 * np.pi * variance).log()).sum(0)
    return (p["share.weight"].log_softmax(1) - far / 2).reshape(len(x), 10, -1).logsumexp(2)


def perceptron(p, x):
    return torch.relu(x @ p["fc1.weight"] + p["fc1.bias"]) @ p["fc2.weight"] + p["fc2.bias"]


def fit(part, forward, loss, rate, batch, epochs=0):
    p = {k: v.requires_grad_() for k, v in states[part].items() if k.endswith((".weight", ".bias"))}
    return learn(x, y, p, forward, loss, torch.optim.Adam(p.values(), rate), batch, epochs)


finish(__file__, "classic", "classic-kernel", solve())
finish(__file__, "classic", "classic-trees", boost())
finish(__file__, "classic", "classic-mixture",
       fit("mixture", mixture, lambda scores, y: -scores.gather(1, y[:, None]).mean(), 0.05, 64, 40))
finish(__file__, "classic", "classic-mlp", fit("mlp", perceptron, F.cross_entropy, 1e-3, 32))
finish(__file__, "classic", "classic-lenet", fit("lenet", lenet, F.cross_entropy, 1e-3, 32))
