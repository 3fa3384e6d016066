#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys
import tempfile

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import dump, finish, read_safetensors

TIME, BATCH, SEEN, FIELDS, HIDDEN, RATE, EPOCHS = 64, 16, 6, 13, 64, 3e-3, 16
HEADS = "end", "key", "row", "action"

with tempfile.TemporaryDirectory() as folder:
    dump("npi", folder)
    folder = pathlib.Path(folder)
    p = {k: v.requires_grad_() for k, v in read_safetensors(folder / "npi.safetensors").items()
         if v.is_floating_point() and not k.startswith("adam")}
    rows = torch.from_numpy(np.fromfile(folder / "npi.x", np.int64)).reshape(-1, TIME, FIELDS)


def linear(x, name):
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def loss(steps):
    seen, program, fresh, right, counts = steps.split((SEEN, 1, 1, len(HEADS), 1), -1)
    s = torch.relu(p["encoder.seen.weight"][seen].sum(2))
    x = torch.cat((torch.relu(linear(s, "encoder.state")), p["programs.embedding.weight"][program.squeeze(2)]), 2)
    cell = [p[f"core.{part}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    h = c = torch.zeros(len(steps), HIDDEN)
    states = []
    for t in range(TIME):
        h, c = torch.lstm_cell(x[:, t], (h * (1 - fresh[:, t]), c * (1 - fresh[:, t])), *cell)
        states.append(h)
    h, weight, total = torch.stack(states, 1), counts.squeeze(2), 0
    for i, head in enumerate(HEADS):
        logits = linear(h, head)
        logits = logits @ p["programs.keys"] if head == "key" else logits
        wrong = F.cross_entropy(logits.flatten(0, 1), right[..., i].flatten(), reduction="none")
        total += wrong * weight.flatten() if i == 0 else wrong * (weight * (1 - right[..., 0])).flatten()
    return total.mean()


def steps():
    optimizer, n = torch.optim.Adam(p.values(), RATE), 0
    while True:
        for i in range(0, len(rows), BATCH):
            value = loss(rows[i:i + BATCH])
            optimizer.zero_grad()
            value.backward()
            optimizer.param_groups[0]["lr"] = RATE * max(1 - n / (EPOCHS * len(rows) // BATCH), 0)
            optimizer.step()
            n += 1
            yield value.item()


finish(__file__, "npi", "npi", steps())
