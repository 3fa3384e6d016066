#!/usr/bin/env python3
"""Trains the digit classifier: forward, backward and update are one compiled function.

    PYTHONPATH=../../python python train.py [--optimizer adam|sgd] [--epochs 40] [--threads N]
"""
import argparse
import json
import pathlib

import numpy as np

import quern

HERE = pathlib.Path(__file__).parent
TRAIN, BATCH = 1437, 64


def load():
    with np.load(HERE / "digits.npz") as z:
        return z["x"].astype(np.float32) / 16, z["y"]


def train(optimizer="adam", epochs=40, report=lambda epoch, loss: None, **options):
    """The trainer after `epochs`, and the loss of each step."""
    x, y = load()
    rate = {"adam": 1e-3, "sgd": 1e-1}[optimizer]
    trainer = quern.train(HERE / "untrained.onnx", loss="cross_entropy", optimizer=optimizer, learning_rate=rate, **options)
    losses = []
    for epoch in range(epochs):
        for i in range(0, TRAIN - BATCH + 1, BATCH):
            losses.append(trainer.step([x[i:i + BATCH]], y[i:i + BATCH]))
        report(epoch, losses[-1])
    return trainer, losses


def accuracy(trainer):
    """On the digits that training has not seen: a forward pass with the trained parameters."""
    x, y = load()
    p = list(trainer.parameters.values())
    h = x[TRAIN:]
    for i in range(0, len(p), 2):  # weight [out, in], bias
        h = h @ p[i].T + p[i + 1]
        h = np.maximum(h, 0) if i + 2 < len(p) else h
    return float((h.argmax(1) == y[TRAIN:]).mean())


def expected_losses(optimizer):
    """PyTorch's first 100."""
    return json.loads((HERE / "losses.json").read_text())[optimizer]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer", default="adam", choices=["adam", "sgd"])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--target", default="cpu")
    args = parser.parse_args()
    trainer, losses = train(args.optimizer, args.epochs, lambda epoch, loss: print(f"epoch {epoch:2d}  loss {loss:.5f}"),
                            threads=args.threads, target=args.target)
    theirs = expected_losses(args.optimizer)
    print("largest relative difference of the first losses to PyTorch's:",
          max(abs(a / b - 1) for a, b in zip(losses, theirs)))
    print("test accuracy", accuracy(trainer))
