"""What PyTorch makes of an example: the losses of its first steps, from the same data and initial parameters.

Each example's reference.py says the model; its results lie in the repository beside it. It needs torch and NumPy, and
the built program: QUERN_EXAMPLES is the folder with it (build/release/examples). With --bench it times steps instead.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from torch.nn import functional as F

STEPS = 100
TYPES = {"F32": np.float32, "I64": np.int64}
PARAMETERS = ".weight", ".bias", ".weight_ih", ".weight_hh", ".bias_ih", ".bias_hh"


def lenet(p, x):
    """The logits of n digits of 8x8 pixels, as examples/cnn has it."""
    h = x.reshape(-1, 1, 8, 8)
    for layer in "conv1", "conv2":
        h = F.max_pool2d(torch.relu(F.conv2d(h, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=2)), 2)
    h = h.flatten(1)
    for layer in "fc1", "fc2":
        h = torch.relu(h @ p[f"{layer}.weight"] + p[f"{layer}.bias"])
    return h @ p["fc3.weight"] + p["fc3.bias"]


def read_safetensors(path):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    return {name: torch.from_numpy(np.frombuffer(data, TYPES[t["dtype"]], offset=8 + n + t["data_offsets"][0],
                                                 count=int(np.prod(t["shape"], dtype=int))).reshape(t["shape"]).copy())
            for name, t in header.items() if name != "__metadata__" and t["dtype"] in TYPES}


def run_program(program, *options):
    root = pathlib.Path(__file__).resolve().parents[2]
    programs = pathlib.Path(os.environ.get("QUERN_EXAMPLES", root / "build" / "release" / "examples"))
    return subprocess.run([programs / program, *options], check=True, stdout=subprocess.PIPE, text=True).stdout


def dump(program, folder, seed=1, options=()):
    """Lets the program write what it starts from."""
    run_program(program, "--seed", str(seed), "--dump", folder, *options)


def bench(program, name, step, options=()):
    """Prints a line of a table: microseconds of a step of the program and of PyTorch, by turns, one thread each; medians."""
    torch.set_num_threads(1)
    ours, theirs = [], []
    step()
    for _ in range(3):
        start, n = time.perf_counter(), 0
        while n < 5 or time.perf_counter() - start < 0.5:
            step()
            n += 1
        theirs.append((time.perf_counter() - start) / n * 1e6)
        with tempfile.TemporaryDirectory() as folder:
            text = run_program(program, "--out", folder, "--threads", "1", "--epochs", "3", *options)
        ours += [float(v) for v in re.findall(rf"^{name}: epoch .*, ([\d.]+) us a step$", text, re.M)]
    ours, theirs = np.median(ours), np.median(theirs)
    print(f"| {name} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} |", flush=True)


def finish(here, program, name, steps, options=()):
    """steps: an iterator that makes a step and gives its loss. Writes NAME.losses.txt; with --bench on the command line, times
    the steps beside the program's."""
    if "--bench" in sys.argv:
        bench(program, name, lambda: next(steps), options)
        return None
    losses = [next(steps) for _ in range(STEPS)]
    path = pathlib.Path(here).with_name(f"{name}.losses.txt")
    path.write_text("".join(f"{v:.9g}\n" for v in losses))
    print(path, losses[0], losses[-1])
    return path


def learn(x, y, p, forward, loss, opt, batch, epochs):
    steps = epochs * -(-len(y) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: max(1 - step / steps, 0) if steps else 1)
    while True:
        for i in range(0, len(y), batch):
            value = loss(forward(p, x[i:i + batch]), y[i:i + batch])
            opt.zero_grad()
            value.backward()
            opt.step()
            schedule.step()
            yield value.item()


def record(program, name, x_type, y_type, forward, loss, optimizer, batch, here, seed=1, targets=1, options=(), epochs=0):
    """Writes NAME.losses.txt. forward(parameters, x) is the prediction; arrays come as they lie, in one axis a sample, which
    has so many targets. epochs: in as many, the learning rate falls to 0 in a line."""
    with tempfile.TemporaryDirectory() as folder:
        dump(program, folder, seed, options)
        folder = pathlib.Path(folder)
        x = torch.from_numpy(np.fromfile(folder / f"{name}.x", x_type))
        y = torch.from_numpy(np.fromfile(folder / f"{name}.y", y_type))
        y = y.reshape(-1, targets) if targets > 1 else y
        state = read_safetensors(folder / f"{name}.safetensors")
    p = {k: v.requires_grad_() for k, v in state.items() if k.endswith(PARAMETERS)}
    steps = learn(x.reshape(len(y), -1), y, p, forward, loss, optimizer(p.values()), batch, epochs)
    finish(here, program, name, steps, options)
