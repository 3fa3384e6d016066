"""Models of one operator of com.microsoft, and what they compute, compiled and interpreted."""

import unittest

import numpy as np

import quern

try:
    import onnx  # noqa: F401
    from onnx import helper, numpy_helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")

MICROSOFT = "com.microsoft"


def model(op, inputs, constants, attributes, n_outputs=1, dims=None, domain=MICROSOFT):
    """One node: `inputs` are arrays to be given, `constants` initializers and, as "order", the names of the node's inputs. `n_outputs`
    may be a list of those that are wanted. `dims` names dimensions of inputs: {"x": {0: "batch"}}."""
    wanted = n_outputs if isinstance(n_outputs, list) else range(n_outputs)
    outputs = [f"y{i}" if i in wanted else "" for i in range(max(wanted) + 1)]
    node = helper.make_node(op, constants["order"], outputs, domain=domain, **attributes)
    shape = lambda k, v: [(dims or {}).get(k, {}).get(i, n) for i, n in enumerate(v.shape)]
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), shape(k, v)) for k, v in inputs.items()],
        [helper.make_empty_tensor_value_info(y) for y in outputs if y],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k != "order"])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]).SerializeToString()


def run(op, inputs, constants, n_outputs=1, dims=None, domain=MICROSOFT, **attributes):
    """Outputs of machine code, after the interpreter's were the same but for one step of a byte, or 1e-5."""
    text = model(op, inputs, constants, attributes, n_outputs, dims, domain)
    got, want = ([np.array(y) for y in quern.compile(text, target=t)(list(inputs.values()))] for t in ("cpu", "interp"))
    for g, w in zip(got, want):
        assert g.dtype == w.dtype and g.shape == w.shape
        if g.dtype.kind == "f":
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5 * max(1, np.abs(w).max(initial=0)))
        else:
            assert np.abs(g.astype(int) - w.astype(int)).max() <= 1
    return want if n_outputs != 1 else want[0]


def pack_bits(q, bits):
    """Numbers of a few bits in bytes, along the last axis, the first in the lowest bits."""
    per = 8 // bits
    q = np.concatenate([q, np.zeros((*q.shape[:-1], -q.shape[-1] % per), np.uint8)], -1)
    parts = q.reshape(*q.shape[:-1], -1, per)
    return sum(parts[..., i].astype(np.uint8) << (i * bits) for i in range(per)).astype(np.uint8)


class Mistakes(unittest.TestCase):
    """What a model says wrong, and what would do."""

    def refuse(self, text, op, inputs, constants, n_outputs=1, **attributes):
        with self.assertRaises(quern.Error) as e:
            quern.compile(model(op, inputs, constants, attributes, n_outputs))
        self.assertIn(text, str(e.exception))
        self.assertIn(f"com.microsoft.{op}", str(e.exception))
