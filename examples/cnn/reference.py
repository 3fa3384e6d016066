#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record


def lenet(p, x):
    h = (x / 16).reshape(-1, 1, 8, 8)
    for layer in "conv1", "conv2":
        h = F.max_pool2d(torch.relu(F.conv2d(h, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=2)), 2)
    h = h.flatten(1)
    for layer in "fc1", "fc2":
        h = torch.relu(h @ p[f"{layer}.weight"] + p[f"{layer}.bias"])
    return h @ p["fc3.weight"] + p["fc3.bias"]


record("cnn", "cnn", "u1", "i8", lenet, F.cross_entropy, lambda p: torch.optim.Adam(p, 1e-3), 32, __file__)
