#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py. The last number is the loss with running statistics."""
import os
import pathlib
import sys
import tempfile

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import dump, finish, read_safetensors

BATCH, SIDE = 4, 64
RATES = {"resnet18": 2e-5, "resnet50": 1e-5}
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def norm(p, x, name, training):
    mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if training:  # the running variance takes the biased one, as ONNX does; F.batch_norm's takes the other
        with torch.no_grad():
            mean += 0.1 * (x.mean((0, 2, 3)) - mean)
            variance += 0.1 * (x.var((0, 2, 3), unbiased=False) - variance)
        mean = variance = None
    return F.batch_norm(x, mean, variance, p[f"{name}.weight"], p[f"{name}.bias"], training)


def resnet(name, p, x, training):
    deep = name == "resnet50"
    x = torch.relu(norm(p, F.conv2d(x, p["conv1.weight"], stride=2, padding=3), "bn1", training))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, n in enumerate(BLOCKS[name]):
        for i in range(n):
            block, stride, y = f"layer{stage + 1}.{i}", 2 if stage and not i else 1, x
            for k, kernel in enumerate((1, 3, 1) if deep else (3, 3)):
                y = F.conv2d(y, p[f"{block}.conv{k + 1}.weight"], stride=stride if k == deep else 1, padding=kernel // 2)
                y = norm(p, y, f"{block}.bn{k + 1}", training)
                y = y if k == 1 + deep else torch.relu(y)
            if f"{block}.downsample.0.weight" in p:
                x = F.conv2d(x, p[f"{block}.downsample.0.weight"], stride=stride)
                x = norm(p, x, f"{block}.downsample.1", training)
            x = torch.relu(x + y)
    return x.mean((2, 3)) @ p["fc.weight"] + p["fc.bias"]


def steps(name, p, x, y):
    learnt = [v.requires_grad_() for k, v in p.items() if "running" not in k]
    optimizer = torch.optim.SGD(learnt, RATES[name], 0.9)
    while True:
        for i in range(0, len(y), BATCH):
            loss = F.cross_entropy(resnet(name, p, x[i:i + BATCH], True), y[i:i + BATCH])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


with tempfile.TemporaryDirectory() as folder:
    dump("resnet", folder)
    for name in BLOCKS:
        x = torch.from_numpy(np.fromfile(f"{folder}/{name}.x", np.float32)).reshape(-1, 3, SIDE, SIDE)
        y = torch.from_numpy(np.fromfile(f"{folder}/{name}.y", np.int64))
        p = {k: v for k, v in read_safetensors(pathlib.Path(folder) / f"{name}.safetensors").items() if "velocity" not in k}
        path = finish(__file__, "resnet", name, steps(name, p, x, y))
        with torch.no_grad(), open(path or os.devnull, "a") as file:
            print(f"{F.cross_entropy(resnet(name, p, x, False), y).item():.9g}", file=file)
