"""Models whose results need inputs of some size, such as images no smaller than windows."""

import unittest

import numpy as np

import quern

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")


def model(nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(*i) for i in inputs],
                              [helper.make_empty_tensor_value_info(o) for o in outputs],
                              [numpy_helper.from_array(v, k) for k, v in constants])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


class Smallest(unittest.TestCase):
    def setUp(self):
        rng = np.random.default_rng(0)
        self.weights = [("v", rng.normal(size=(4, 1, 5, 5)).astype(np.float32)), ("w", rng.normal(size=(3, 4, 3, 3)).astype(np.float32))]
        self.rng = rng
        nodes = [helper.make_node("Conv", ["x", "v"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
                 helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3], strides=[2, 2]), helper.make_node("Conv", ["c", "w"], ["d"]),
                 helper.make_node("Sigmoid", ["d"], ["e"]), helper.make_node("AveragePool", ["e"], ["y"], kernel_shape=[2, 2])]
        self.text = model(nodes, [("x", TensorProto.FLOAT, ["n", 1, "h", "w_"])], ["y"], self.weights)

    def test_sizes(self):
        """Buffers of n (h' - 2) (w' - 2) elements lie beside each other; from the smallest size on."""
        compiled, interpreted = (quern.compile(self.text, target=t) for t in ("cpu", "interp"))
        for n, h, w in ((1, 11, 11), (3, 13, 30), (2, 64, 13), (0, 20, 20)):
            x = self.rng.normal(size=(n, 1, h, w)).astype(np.float32)
            got, want = compiled([x])[0], interpreted([x])[0]
            self.assertEqual(got.shape, want.shape)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    def test_too_small(self):
        for target in ("cpu", "interp"):
            m = quern.compile(self.text, target=target)
            for h, w in ((10, 30), (30, 10), (3, 3)):
                with self.assertRaisesRegex(quern.ArgumentError, "compiled for 11 to"):
                    m([np.zeros((1, 1, h, w), np.float32)])

    def test_ranges(self):
        x = self.rng.normal(size=(1, 1, 12, 40)).astype(np.float32)
        np.testing.assert_array_equal(quern.compile(self.text, dims={"h": (1, 16)})([x])[0], quern.compile(self.text)([x])[0])
        with self.assertRaisesRegex(quern.ModelError, "the window of 3 along spatial axis 0 does not fit"):
            quern.compile(self.text, dims={"h": (1, 10)})

    def test_branches(self):
        """What is in a branch asks for nothing: it may not be taken."""
        empty = helper.make_empty_tensor_value_info
        large = helper.make_graph([helper.make_node("Conv", ["x", "v"], ["a"]), helper.make_node("GlobalMaxPool", ["a"], ["l"])], "l", [],
                                  [empty("l")])
        small = helper.make_graph([helper.make_node("GlobalMaxPool", ["x"], ["b"]), helper.make_node("Concat", ["b"] * 4, ["s"], axis=1)], "s",
                                  [], [empty("s")])
        node = helper.make_node("If", ["is_large"], ["y"], then_branch=large, else_branch=small)
        m = quern.compile(model([node], [("is_large", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, ["n", 1, "h", "h"])], ["y"],
                                self.weights[:1]))
        x = self.rng.normal(size=(2, 1, 3, 3)).astype(np.float32)
        np.testing.assert_array_equal(m([np.array(False), x])[0][:, 1, 0, 0], x.max((1, 2, 3)))
        self.assertEqual(m([np.array(True), np.ones((2, 1, 9, 9), np.float32)])[0].shape, (2, 4, 1, 1))


if __name__ == "__main__":
    unittest.main()
