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

BATCH, DISCOUNT, FOLLOW, RATE, ALL = 64, 0.99, 0.005, 1e-3, 50000

with tempfile.TemporaryDirectory() as folder:
    dump("dqn", folder)
    folder = pathlib.Path(folder)
    state = read_safetensors(folder / "dqn.safetensors")
    replay = read_safetensors(folder / "dqn.after.safetensors")
    rows = torch.from_numpy(np.fromfile(folder / "dqn.rows", np.int64)).reshape(-1, BATCH)


def values(name, x):
    for i in range(3):
        x = x @ state[f"{name}.{i}.weight"] + state[f"{name}.{i}.bias"]
        x = torch.relu(x) if i < 2 else x
    return x


online = {k: v.requires_grad_() for k, v in state.items() if k.startswith("online.") and k.endswith(("weight", "bias"))}


def steps():
    optimizer = torch.optim.Adam(online.values(), RATE)
    for t in range(ALL):
        before, action, reward, after, alive = (replay[f"replay.{name}"][rows[t % len(rows)]]
                                                for name in ("before", "action", "reward", "after", "alive"))
        with torch.no_grad():
            best = values("online", after).argmax(1, keepdim=True)
            wanted = reward + DISCOUNT * alive * values("target", after).gather(1, best)
        loss = F.huber_loss(values("online", before).gather(1, action), wanted)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in online.items():
                target = state[name.replace("online", "target")]
                target += FOLLOW * (p - target)
        optimizer.param_groups[0]["lr"] = RATE * (1 - t / ALL)
        optimizer.step()
        yield loss.item()


finish(__file__, "dqn", "dqn", steps())
