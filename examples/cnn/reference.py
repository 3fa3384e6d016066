#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import lenet, record


record("cnn", "cnn", "u1", "i8", lambda p, x: lenet(p, x / 16), F.cross_entropy, lambda p: torch.optim.Adam(p, 1e-3), 32, __file__)
