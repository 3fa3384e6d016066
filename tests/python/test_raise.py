"""What PyTorch's two exporters write: the composites are found in it, and results equal PyTorch's."""

import io
import math
import os
import re
import subprocess
import tempfile
import unittest
import warnings

import numpy as np

try:
    import onnx  # noqa: F401
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    raise unittest.SkipTest("the torch or onnx package is missing")

import quern

QUERN = os.path.join(os.path.dirname(os.environ["QUERN_LIBRARY"]), "quern")
PASSES = "simplify,fold,simplify,cse,dce,raise,simplify,dce"
SCALE = 1 / math.sqrt(8)


class Fn(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def heads(queries=13, keys=17, groups=3):
    return torch.randn(2, 3, queries, 8), torch.randn(2, groups, keys, 8), torch.randn(2, groups, keys, 8)


def square():
    return heads(13, 13)


def eager(scores, v):
    return torch.softmax(scores, -1) @ v


def scores_of(q, k):
    return q @ k.transpose(-1, -2) * SCALE


def repeat(x):
    b, g, t, d = x.shape
    return x[:, :, None].expand(b, g, 3, t, d).reshape(b, 3 * g, t, d)


def norm():
    layer = nn.LayerNorm(9)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


LOWEST = torch.finfo(torch.float32).min
sdpa = F.scaled_dot_product_attention
# name: module, inputs, what must be found, what must be gone
CASES = {
    "attention": (Fn(lambda s, q, k, v: eager(scores_of(q, k), v)), heads(), "= attention", "softmax|dot_general"),
    "scaled before": (Fn(lambda s, q, k, v: eager(q / math.sqrt(8) @ k.transpose(-1, -2), v)), heads(),
                      "= attention", "softmax|dot_general"),
    "sdpa": (Fn(lambda s, q, k, v: sdpa(q, k, v)), heads(), "= attention", "softmax|dot_general"),
    "sdpa causal": (Fn(lambda s, q, k, v: sdpa(q, k, v, is_causal=True)), square(), "causal = true", "softmax|dot_general"),
    "sdpa mask": (Fn(lambda s, q, k, v, m: sdpa(q, k, v, attn_mask=m)), (*heads(), torch.randn(2, 1, 13, 17)),
                  "= attention", "softmax|dot_general"),
    "sdpa bool mask": (Fn(lambda s, q, k, v, m: sdpa(q, k, v, attn_mask=m)),
                       (*heads(), torch.rand(2, 1, 13, 17) > 0.3), "= attention", "softmax|dot_general"),
    "grouped heads": (Fn(lambda s, q, k, v: eager(scores_of(q, repeat(k)), repeat(v))), heads(groups=1),
                      "= attention %q, %k, %v|= attention", "softmax|dot_general"),
    "lower triangle, where": (
        Fn(lambda s, q, k, v: eager(torch.where(s.t[:13, :13], scores_of(q, k), torch.tensor(LOWEST)), v),
           t=torch.tril(torch.ones(32, 32, dtype=torch.bool))), square(), "causal = true", "softmax|dot_general"),
    "upper triangle, masked_fill": (
        Fn(lambda s, q, k, v: eager(scores_of(q, k).masked_fill(torch.ones(13, 13).triu(1).bool(), -math.inf), v)),
        square(), "causal = true", "softmax|dot_general"),
    "additive triangle behind a cache": (
        Fn(lambda s, q, k, v: eager(scores_of(q, k) + torch.full((13, 17), -math.inf).triu(5), v)), heads(),
        "causal = true", "softmax|dot_general"),
    "not causal": (
        Fn(lambda s, q, k, v: eager(scores_of(q, k).masked_fill(torch.ones(13, 13).triu(2).bool(), -math.inf), v)),
        square(), "= attention", "causal"),
    "multi-head": (Fn(lambda s, x: s.m(x, x, x, need_weights=False)[0], m=nn.MultiheadAttention(24, 3, batch_first=True)),
                   (torch.randn(2, 13, 24),), "= attention", "softmax"),
    "weights wanted": (Fn(lambda s, x: s.m(x, x, x)[1], m=nn.MultiheadAttention(24, 3, batch_first=True)),
                       (torch.randn(2, 13, 24),), "softmax", "= attention"),
    "gelu": (nn.GELU(), (torch.randn(2, 9),), "= gelu", "erf"),
    "gelu tanh": (nn.GELU(approximate="tanh"), (torch.randn(2, 9),), "= gelu .*approximate", "tanh %"),
    "gelu by hand": (
        Fn(lambda s, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))),
        (torch.randn(2, 9),), "= gelu .*approximate", "tanh %"),
    "silu": (nn.SiLU(), (torch.randn(2, 9),), "= silu", "logistic"),
    "layer norm": (norm(), (torch.randn(2, 5, 9),), "= layer_norm", "reduce"),
    "rms norm": (Fn(lambda s, x: s.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
                    w=nn.Parameter(torch.randn(9))), (torch.randn(2, 5, 9),), "= rms_norm", "reduce"),
    "cross-entropy": (Fn(lambda s, x, y: F.cross_entropy(x, y, reduction="none")),
                      (torch.randn(5, 9), torch.randint(0, 9, (5,))), "= cross_entropy", "gather"),
}


def export(module, inputs, dynamo, opset):
    """The model's bytes, or None where this exporter can't."""
    stream = io.BytesIO()
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            more = {"external_data": False, "verbose": False} if dynamo else {}
            torch.onnx.export(module, inputs, path, dynamo=dynamo, opset_version=opset, **more)
            with open(path, "rb") as file:
                stream.write(file.read())
    except Exception:  # torch.onnx has errors of many kinds
        return None
    return stream.getvalue()


class Exports(unittest.TestCase):
    def check(self, dynamo, opset):
        done = 0
        for name, (module, inputs, found, gone) in CASES.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                model = export(module.eval(), inputs, dynamo, opset)
                if model is None:
                    continue
                done += 1
                path = os.path.join(folder, "model.onnx")
                with open(path, "wb") as file:
                    file.write(model)
                text = subprocess.run([QUERN, "opt", path, "--passes=" + PASSES, "--no-data", "--verify-each"],
                                      check=True, capture_output=True, text=True).stdout
                text = re.sub(r" loc\(.*\)", "", text)
                self.assertRegex(text, found)
                self.assertNotRegex(text, gone)
                with torch.no_grad():
                    expected = module(*inputs).numpy()
                result, = quern.compile(model)([x.numpy() for x in inputs])
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
        self.assertGreater(done, len(CASES) // 3)

    def test_dynamo(self):
        self.check(True, 18)

    def test_torchscript(self):
        self.check(False, 17)

    def test_torchscript_older(self):
        self.check(False, 13)


warnings.filterwarnings("ignore")
torch.manual_seed(0)
if __name__ == "__main__":
    unittest.main()
