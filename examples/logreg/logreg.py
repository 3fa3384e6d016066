#!/usr/bin/env python3
"""Softmax regression on handwritten digits, in Python.

    PYTHONPATH=../../python python logreg.py
"""
import pathlib

import numpy as np

import quern

digits = np.load(pathlib.Path(__file__).parents[1] / "digits" / "digits.npz")
x, y = digits["x"].astype(np.float32) / 16, digits["y"]
t = quern.train(b"""graph @main(%x: f32[batch, 64], %w: f32[64, 10] param = splat 0) -> (logits: f32[batch, 10]) {
  %0 = dot_general %x, %w {x_contract = [1], y_contract = [0], x_batch = [], y_batch = []} : f32[batch, 10]
  return %0
}""", loss="cross_entropy", optimizer="adam", learning_rate=1e-2)
t.fit(x[:1437], y[:1437], epochs=40, batch=64)
print(f"{100 * t.evaluate([x[1437:]], y[1437:])[1] / 360:.2f} % of the test digits right")
