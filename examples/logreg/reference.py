#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record


def linear(p, x):
    return x @ p["fc.weight"] + p["fc.bias"]


def nesterov(rate):
    return lambda p: torch.optim.SGD(p, rate, momentum=0.9, nesterov=True)


record("logreg", "logreg-linear", "f4", "f4", lambda p, x: linear(p, x)[:, 0], F.mse_loss, nesterov(0.1), 512, __file__)
record("logreg", "logreg-logistic", "f4", "f4", lambda p, x: linear(p, x)[:, 0], F.binary_cross_entropy_with_logits,
       nesterov(1), 512, __file__)
record("logreg", "logreg-digits", "u1", "i8", lambda p, x: linear(p, x / 16), F.cross_entropy,
       lambda p: torch.optim.Adam(p, 1e-2), 64, __file__)
