#!/usr/bin/env python3
"""Makes the files of this example: the data, the untrained model, PyTorch's losses on it, and the trained model.

    python make.py          needs scikit-learn, torch, onnx; the results lie in the repository

digits.npz          x: uint8 [1797, 64], 8x8 images with values 0 to 16; y: int64 [1797]; the first 1437 are for training
untrained.onnx      MLP 64-128-64-10, symbolic batch
losses.json         of PyTorch's first 100 Adam steps (learning rate 1e-3) and SGD steps (1e-1), batches of 64 in order
digits.onnx         the same MLP after 40 epochs of Adam; and its accuracy on the 360 images it has not seen
"""
import json

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import nn

TRAIN, BATCH = 1437, 64


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def export(m, path):
    program = torch.onnx.export(m, (torch.zeros(2, 64),), input_names=["image"], output_names=["logits"], opset_version=18,
                      dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), dynamo=True, verbose=False)
    proto = program.model_proto
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del item.metadata_props[:]  # where on this machine each node came from
    onnx.save(proto, path)


def batches(x, y):
    while True:
        for i in range(0, TRAIN - BATCH + 1, BATCH):
            yield x[i:i + BATCH], y[i:i + BATCH]


def losses(optimizer, steps):
    m, source, out = model(), batches(x, y), []
    opt = optimizer(m.parameters())
    for _ in range(steps):
        xs, ys = next(source)
        loss = nn.functional.cross_entropy(m(xs), ys)
        opt.zero_grad()
        loss.backward()
        opt.step()
        out.append(float(loss.detach()))
    return m, out


digits = load_digits()
images, labels = digits.data.astype(np.uint8), digits.target.astype(np.int64)
order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order], labels[order]
np.savez_compressed("digits.npz", x=images, y=labels)
x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)

export(model(), "untrained.onnx")
first = {"adam": losses(lambda p: torch.optim.Adam(p, 1e-3), 100)[1], "sgd": losses(lambda p: torch.optim.SGD(p, 1e-1), 100)[1]}
json.dump({k: [round(v, 7) for v in vs] for k, vs in first.items()}, open("losses.json", "w"))
trained, _ = losses(lambda p: torch.optim.Adam(p, 1e-3), 40 * (TRAIN // BATCH))
export(trained, "digits.onnx")
print("test accuracy", float((trained(x[TRAIN:]).argmax(1) == y[TRAIN:]).float().mean()))
