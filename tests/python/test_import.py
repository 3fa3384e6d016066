"""What imported models leave to the call: dimensions that operators need to know."""

import unittest

import numpy as np

import quern

try:
    from onnx import TensorProto, helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")


def floats(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def info(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), opset=20):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


def correlated(x, w):
    """Conv without padding, by windows."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w)


class Dimensions(unittest.TestCase):
    def setUp(self):
        self.conv = model([helper.make_node("Conv", ["x", "w"], ["y"])],
                          [info("x", ["n", 2, "h", "h"]), info("w", [3, 2, "k", "k"])], [info("y", None)])

    def test_kernel(self):
        m = quern.compile(self.conv)
        for n, h, k in ((1, 7, 3), (2, 9, 2), (1, 7, 3)):
            x, w = floats(n, 2, h, h), floats(3, 2, k, k)
            np.testing.assert_allclose(m([x, w])[0], correlated(x, w), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(m({"w": w, "x": x})[0], correlated(x, w), rtol=1e-5, atol=1e-5)
        self.assertEqual(len(m._models), 2)  # one per kernel, for images of any size

    def test_said_to_be(self):
        m = quern.compile(self.conv, dims={"k": (1, 3)})
        x = floats(1, 2, 8, 8)
        np.testing.assert_allclose(m([x, floats(3, 2, 3, 3)])[0], correlated(x, floats(3, 2, 3, 3)), rtol=1e-5, atol=1e-5)
        with self.assertRaisesRegex(quern.OutOfRangeError, "dimension k is 4, and was said to be 1 to 3"):
            m([x, floats(3, 2, 4, 4)])
        with self.assertRaisesRegex(quern.ArgumentError, "input 'w' is missing"):
            m({"x": x})
        with self.assertRaisesRegex(quern.ArgumentError, "input 'w' has 1 dimensions, and the model needs its 3th"):
            m([x, floats(3)])
        self.assertIsInstance(quern.compile(self.conv, dims={"k": 2}), quern.Model)

    def test_message(self):
        with self.assertRaisesRegex(quern.UnsupportedError, "the kernel's extents must be constant .*; it would do to fix k"):
            quern.text(self.conv)

    def test_contents_of_shapes(self):
        """Numbers computed from dimensions in a way that no expression says."""
        nodes = [helper.make_node("Shape", ["x"], ["s"], start=0, end=1), helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
                 helper.make_node("Sqrt", ["f"], ["r"]), helper.make_node("Cast", ["r"], ["i"], to=TensorProto.INT64),
                 helper.make_node("Concat", ["i", "rest"], ["to"], axis=0), helper.make_node("Reshape", ["x", "to"], ["y"])]
        rest = helper.make_tensor("rest", TensorProto.INT64, [1], [-1])
        m = quern.compile(model(nodes, [info("x", ["n", "m"])], [info("y", None)], [rest]))
        for n in (16, 9):
            x = floats(n, 4)
            np.testing.assert_array_equal(m(x)[0], x.reshape(int(n ** .5), -1))

    def test_fitting_only_when_known(self):
        """Once an extent has to be known anyway, what else does not fit as a symbol is known too."""
        m = quern.compile(model([helper.make_node("RNN", ["x", "w", "r"], ["", "y"])],
                                [info("x", ["t", "b", "i"]), info("w", [1, "g", "i"]), info("r", [1, "g", "h"])], [info("y", None)]))
        x, w, r = floats(3, 2, 4), floats(1, 5, 4), floats(1, 5, 5)
        h = np.zeros((2, 5), np.float32)
        for step in x:
            h = np.tanh(step @ w[0].T + h @ r[0].T)
        np.testing.assert_allclose(m([x, w, r])[0][0], h, rtol=1e-4, atol=1e-5)
        with self.assertRaisesRegex(quern.ModelError, "the weights do not fit 1 gates of hidden size 6"):
            m([x, w, floats(1, 5, 6)])

    def test_mistakes_stay(self):
        """What no dimension would change is refused at once."""
        with self.assertRaises(quern.UnsupportedError):
            quern.compile(model([helper.make_node("NoSuch", ["x"], ["y"])], [info("x", ["n"])], [info("y", None)]))
        with self.assertRaises(quern.ModelError):
            quern.compile(model([helper.make_node("MatMul", ["x", "x"], ["y"])], [info("x", ["n", 3, 4])], [info("y", None)]))


if __name__ == "__main__":
    unittest.main()
