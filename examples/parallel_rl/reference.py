#!/usr/bin/env python3
"""Records PyTorch's losses for this example: see ../common/reference.py."""
import pathlib
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.reference import dump, finish, read_safetensors

ENVIRONMENTS, TIME, SIZE, DISCOUNT, CURIOSITY, RATE, WARM, ALL, CLIP = 64, 16, 4, 0.99, 0.002, 2e-3, 100, 1000, 0.5
FIELDS = ("before", "f4", SIZE), ("after", "f4", SIZE), ("action", "i8", 1), *((name, "f4", 1) for name in (
    "behaviour", "reward", "alive", "goes_on"))

with tempfile.TemporaryDirectory() as folder:
    dump("parallel_rl", folder)
    folder = pathlib.Path(folder)
    p = {k: v.requires_grad_() for k, v in read_safetensors(folder / "parallel_rl.safetensors").items()
         if k.endswith((".weight", ".bias"))}
    step = np.dtype([(name, dtype, (TIME, ENVIRONMENTS, width)) for name, dtype, width in FIELDS])
    batches = [{name: torch.from_numpy(batch[name].copy()) for name, _, _ in FIELDS}
               for batch in np.fromfile(folder / "parallel_rl.x", step)]


def network(x, name):
    for i in range(3):
        x = x @ p[f"{name}.{i}.weight"] + p[f"{name}.{i}.bias"]
        x = torch.tanh(x) if i < 2 else x
    return x


def loss(x):
    value, after = network(torch.cat((x["before"], x["after"])), "value").split(TIME)
    logs = torch.log_softmax(network(x["before"], "policy"), 2)
    chosen = logs.gather(2, x["action"])
    with torch.no_grad():
        ratio = (chosen - x["behaviour"]).exp().clamp(max=1)
        change = ratio * (x["reward"] + DISCOUNT * x["alive"] * after - value)
        kept, last, corrections = DISCOUNT * x["goes_on"] * ratio, 0, []
        for t in reversed(range(TIME)):
            last = change[t] + kept[t] * last
            corrections.insert(0, last)
        corrections = torch.stack(corrections)
        target = value + corrections
    entropy = -(logs.exp() * logs).sum(2, keepdim=True)
    return (0.5 * (value - target) ** 2 - corrections * chosen - CURIOSITY * entropy).mean()


def steps():
    optimizer = torch.optim.Adam(p.values(), RATE)
    for t in range(ALL):
        value = loss(batches[t % len(batches)])
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), CLIP)
        optimizer.param_groups[0]["lr"] = RATE * min((t + 1) / WARM, 1) * (1 - max(t - WARM, 0) / (ALL - WARM))
        optimizer.step()
        yield value.item()
    yield from steps()


finish(__file__, "parallel_rl", "parallel_rl", steps(), ("--workers", "1"))
