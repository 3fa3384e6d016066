"""Small ONNX models and what goes into them."""

import os
import pathlib
import unittest

import numpy as np

import quern

try:
    from onnx import TensorProto, helper, numpy_helper  # noqa: F401
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")

QUERN = pathlib.Path(os.environ.get("QUERN_BUILD_DIR", "build/release")) / "quern"


def floats(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def info(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), opset=20):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


def sequence(name, shape=None, optional=False, sequence=True):
    """Of floats."""
    of = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
    of = helper.make_sequence_type_proto(of) if sequence else of
    return helper.make_value_info(name, helper.make_optional_type_proto(of) if optional else of)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], **attributes)


def ints(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def number(name, value, dtype=TensorProto.INT64):
    return helper.make_tensor(name, dtype, [], [value])


class Checked(unittest.TestCase):
    def check(self, text, calls, want, **options):
        m = quern.compile(text, **options)
        self.assertIsInstance(m, quern.Model)
        slow = quern.compile(text, target="interp", **options)
        for call in calls:
            for got, one in zip(m(list(call)), want(*call), strict=True):
                np.testing.assert_array_equal(got, one)
                self.assertEqual(got.dtype, one.dtype)
            for got, one in zip(slow(list(call)), want(*call), strict=True):
                np.testing.assert_array_equal(got, one)
        return m
