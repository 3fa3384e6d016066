"""What PyTorch makes of an example: the losses of its first steps, from the same data and initial parameters.

Each example's reference.py says the model; its results lie in the repository beside it. It needs torch and NumPy, and
the built program: QUERN_EXAMPLES is the folder with it (build/release/examples).
"""
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import torch

STEPS = 100
TYPES = {"F32": np.float32, "I64": np.int64}
PARAMETERS = ".weight", ".bias", ".weight_ih", ".weight_hh", ".bias_ih", ".bias_hh"


def read_safetensors(path):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    return {name: torch.from_numpy(np.frombuffer(data, TYPES[t["dtype"]], offset=8 + n + t["data_offsets"][0],
                                                 count=int(np.prod(t["shape"], dtype=int))).reshape(t["shape"]).copy())
            for name, t in header.items() if name != "__metadata__" and t["dtype"] in TYPES}


def dump(program, folder, seed=1, options=()):
    """Lets the program write what it starts from."""
    root = pathlib.Path(__file__).resolve().parents[2]
    programs = pathlib.Path(os.environ.get("QUERN_EXAMPLES", root / "build" / "release" / "examples"))
    subprocess.run([programs / program, "--seed", str(seed), "--dump", folder, *options], check=True,
                   stdout=subprocess.DEVNULL)


def write_losses(here, name, losses):
    path = pathlib.Path(here).with_name(f"{name}.losses.txt")
    path.write_text("".join(f"{v:.9g}\n" for v in losses[:STEPS]))
    print(path, losses[0], losses[:STEPS][-1])


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
    x, opt, losses = x.reshape(len(y), -1), optimizer(p.values()), []
    steps = epochs * -(-len(y) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 - step / steps if steps else 1)
    while len(losses) < STEPS:
        for i in range(0, len(y), batch):
            value = loss(forward(p, x[i:i + batch]), y[i:i + batch])
            opt.zero_grad()
            value.backward()
            opt.step()
            schedule.step()
            losses.append(value.item())
    write_losses(here, name, losses)
