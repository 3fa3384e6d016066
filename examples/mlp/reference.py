#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record


def mlp(p, x):
    h = torch.tanh(x @ p["fc1.weight"] + p["fc1.bias"])
    h = torch.tanh(h @ p["fc2.weight"] + p["fc2.bias"])
    return h @ p["fc3.weight"] + p["fc3.bias"]


record("mlp", "mlp", "f4", "i8", mlp, F.cross_entropy, lambda p: torch.optim.Adam(p, 3e-3), 50, __file__)
