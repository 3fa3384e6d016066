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

NOISE, WARM = 16, 200
POINTS, DIGITS = 4, 8  # samples that a critic sees together
with tempfile.TemporaryDirectory() as name:
    dump("gan", name)
    folder = pathlib.Path(name)
    files = {part: (read_safetensors(folder / f"{part}.safetensors"), np.fromfile(folder / f"{part}.batches", np.float32))
             for part in ("gan-ring", "gan-digits")}


def linear(p, name, x):
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def generate_point(p, z):
    return linear(p, "generator.3", torch.relu(linear(p, "generator.2", torch.relu(linear(p, "generator.1", z)))))


def judge_point(p, x):
    for name in "critic.1", "critic.2":
        x = F.leaky_relu(linear(p, name, x.reshape(-1, 2 * POINTS) if name == "critic.1" else x), 0.2)
    return linear(p, "critic.3", x)


def generate_digit(p, z):
    z = linear(p, "generator.1", z).reshape(-1, 64, 2, 2)
    for name, norm in ("generator.2", "generator.norm1"), ("generator.3", "generator.norm2"):
        z = F.gelu(F.batch_norm(z, p[f"{norm}.running_mean"], p[f"{norm}.running_var"], p[f"{norm}.weight"],
                                    p[f"{norm}.bias"], training=True))
        z = F.conv_transpose2d(z, p[f"{name}.weight"], p[f"{name}.bias"], stride=2, padding=1)
    return torch.tanh(z).flatten(1)


def judge_digit(p, x):
    x = x.reshape(-1, 1, 8, 8)
    for name in "critic.1", "critic.2":
        x = F.gelu(F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=2, padding=1))
    return linear(p, "critic.3", x.reshape(-1, DIGITS * 64 * 4))


def play(part, batch, width, steps, rate, generate, judge):
    p, batches = files[part]
    batches = torch.from_numpy(batches).reshape(-1, batch * (width + 2 * NOISE))
    players = []
    for name in "critic", "generator":
        mine = [v.requires_grad_() for k, v in p.items() if k.startswith(f"{name}.") and k.endswith((".weight", ".bias"))]
        players.append((mine, torch.optim.Adam(mine, rate, (0.5, 0.999))))
    for step in range(steps):
        x, *z = batches[step % len(batches)].split([batch * width, batch * NOISE, batch * NOISE])
        x, z = x.reshape(batch, width), [v.reshape(batch, NOISE) for v in z]
        total = 0
        for critic, (mine, optimizer) in zip((True, False), players):
            if critic:
                with torch.no_grad():
                    made = generate(p, z[0])
                logits = judge(p, torch.cat([x, made])).reshape(2, -1) * torch.tensor([[1.0], [-1.0]])
            else:
                logits = judge(p, generate(p, z[1]))
            loss = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
            for v, gradient in zip(mine, torch.autograd.grad(loss, mine)):
                v.grad = gradient
            optimizer.param_groups[0]["lr"] = rate * ((step + 1) / WARM if step < WARM else 1 - (step - WARM) / (steps - WARM))
            optimizer.step()
            total += loss.item()
        yield total


finish(__file__, "gan", "gan-ring", play("gan-ring", 128, 2, 250 * 40, 1e-3, generate_point, judge_point))
finish(__file__, "gan", "gan-digits", play("gan-digits", 64, 64, 100 * 60, 2e-3, generate_digit, judge_digit))
