#!/usr/bin/env python3
"""Sentence embeddings: one compilation for every batch size and sentence length, compared with PyTorch's.

    python export.py minilm.onnx && python embed.py minilm.onnx [--target cpu|interp]
"""
import argparse
import time

import numpy as np
import torch

import export
import quern

SENTENCES = [
    "A graph compiler lowers a model to machine code.",
    "Quern grinds graphs.",
    "The cat sat on the mat, and because nobody came to move it, it stayed there for the whole of the long afternoon.",
    "Rain.",
]

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--target", default="cpu")
args = parser.parse_args()

# The position table has 512 rows: ONNX has no way to say so, and sentences of any length would not fit together.
model = quern.compile(args.model, target=args.target, dims={"batch": (1, 64), "length": (2, 512)})
tokenizer, reference = export.tokenizer(), export.Embedder()
worst = 1.0
for batch in [[s] for s in SENTENCES] + [SENTENCES[:2], SENTENCES]:
    tokens = tokenizer(batch, padding=True, return_tensors="np")
    ids, mask = tokens["input_ids"].astype(np.int64), tokens["attention_mask"].astype(np.int64)
    start = time.perf_counter()
    (got,) = model([ids, mask])
    milliseconds = 1e3 * (time.perf_counter() - start)
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    cosine = float((got * expected).sum(1).min())
    worst = min(worst, cosine)
    print(f"{ids.shape[0]} x {ids.shape[1]:3d} tokens  {milliseconds:7.2f} ms  cosine with PyTorch's {cosine:.7f}")
similar = got @ got.T
print("similarities of the four sentences:\n", similar.round(3))
assert worst >= 0.99999, worst
