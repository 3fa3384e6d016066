#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import record

ROWS, WORDS, VOCABULARY, WIDTH, HOPS, BATCH, EPOCHS = 13, 6, 64, 40, 3, 32, 30

IS_WORD = (torch.arange(VOCABULARY) > 0).float()[:, None]
WORD, PART = torch.arange(1, WORDS + 1)[:, None] / WORDS, torch.arange(1, WIDTH + 1) / WIDTH
POSITION = 1 - WORD - PART * (1 - 2 * WORD)


def forward(p, x):
    x = x.reshape(-1, ROWS, WORDS)
    tables = [p[f"words{k}.weight"] * IS_WORD for k in range(HOPS + 1)]
    u = (tables[0][x[:, 0]] * POSITION).sum(1)
    memory = [(tables[k][x[:, 1:]] * POSITION).sum(2) + p[f"times{k}.weight"] for k in range(HOPS + 1)]
    for hop in range(HOPS):
        weights = torch.softmax(memory[hop] @ u[:, :, None], 1)
        u = u + (weights * memory[hop + 1]).sum(1)
        if hop < HOPS - 1:
            u = torch.cat((torch.relu(u[:, :WIDTH // 2]), u[:, WIDTH // 2:]), 1)
    return u @ tables[HOPS].T


record("memnet", "memnet", "i8", "i8", forward, F.cross_entropy, lambda p: torch.optim.Adam(p, 5e-3), BATCH, __file__,
       epochs=EPOCHS)
