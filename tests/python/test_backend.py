"""The onnx.backend interface, and ONNX models in Python: names, known inputs, bfloat16, refusals."""

import os
import tempfile
import unittest

import numpy as np

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    raise unittest.SkipTest("the onnx package is missing")

import quern
import quern.backend


def model_of(nodes, inputs, outputs, initializers=(), opset=18):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


class Backend(unittest.TestCase):
    def test_run_node(self):
        x = np.array([[-1, 2], [3, -4]], np.float32)
        y, = quern.backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [x])
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        values, indices = quern.backend.run_node(
            helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=1), [x, np.array([1], np.int64)])
        np.testing.assert_array_equal(values, [[2], [3]])
        np.testing.assert_array_equal(indices, [[1], [0]])

    def test_prepare(self):
        w = np.arange(6, dtype=np.float32).reshape(3, 2)
        model = model_of([helper.make_node("Gemm", ["x", "w"], ["y"])], [value("x", TensorProto.FLOAT, ["n", 3])],
                         [value("y", TensorProto.FLOAT, ["n", 2])], [numpy_helper.from_array(w, "w")])
        rep = quern.backend.prepare(model)
        x = np.ones((4, 3), np.float32)
        np.testing.assert_allclose(rep.run([x])[0], x @ w)
        np.testing.assert_allclose(quern.backend.run_model(model, [x], target="interp")[0], x @ w)

    def test_devices(self):
        self.assertTrue(quern.backend.supports_device("CPU"))
        self.assertFalse(quern.backend.supports_device("TPU:1"))
        with self.assertRaises(quern.UnsupportedError):
            quern.backend.prepare(onnx.ModelProto(), "TPU:1")


class Models(unittest.TestCase):
    def test_proto_and_path(self):
        model = model_of([helper.make_node("Neg", ["x"], ["y"])], [value("x", TensorProto.DOUBLE, [2])],
                         [value("y", TensorProto.DOUBLE, [2])])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "neg.onnx")
            onnx.save(model, path)
            for source in (model, path, model.SerializeToString()):
                np.testing.assert_array_equal(quern.compile(source)([np.array([1.0, -2.0])])[0], [-1, 2])

    def test_inputs_that_have_to_be_known(self):
        model = model_of([helper.make_node("Reshape", ["x", "shape"], ["y"])],
                         [value("x", TensorProto.FLOAT, [2, 6]), value("shape", TensorProto.INT64, [2])],
                         [value("y", TensorProto.FLOAT, None)])
        m = quern.compile(model)
        x = np.arange(12, dtype=np.float32).reshape(2, 6)
        for shape in ([3, 4], [4, -1], [3, 4]):
            np.testing.assert_array_equal(m([x, np.array(shape)])[0], x.reshape(shape))
        np.testing.assert_array_equal(m({"x": x, "shape": np.array([12, 1])})[0], x.reshape(12, 1))
        s = m.bind([x, np.array([6, 2])])
        s.run()
        self.assertEqual(s.outputs[0].shape, (6, 2))
        with self.assertRaises(quern.Error):
            m([x, np.array([5, 5])])
        with self.assertRaises(quern.ArgumentError):
            m([x])

    def test_bfloat16(self):
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            self.skipTest("ml_dtypes is missing")
        model = model_of([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", TensorProto.BFLOAT16, [3])],
                         [value("y", TensorProto.BFLOAT16, [3])])
        y, = quern.compile(model)([np.array([1, 2.5, -3], bfloat16)])
        self.assertEqual(y.dtype, bfloat16)
        np.testing.assert_array_equal(y.astype(np.float32), [2, 5, -6])

    def test_refuses(self):
        strange = model_of([helper.make_node("Frobnicate", ["x"], ["y"], name="first"),
                            helper.make_node("Twiddle", ["y"], ["z"], name="second")],
                           [value("x", TensorProto.FLOAT, [2])], [value("z", TensorProto.FLOAT, [2])])
        with self.assertRaises(quern.UnsupportedError) as caught:
            quern.compile(strange)
        for name in ("first", "Frobnicate", "second", "Twiddle"):  # all that is wrong at once
            self.assertIn(name, str(caught.exception))
        text = model_of([helper.make_node("StringConcat", ["x", "x"], ["y"])], [value("x", TensorProto.STRING, [2])],
                        [value("y", TensorProto.STRING, [2])])
        with self.assertRaises(quern.UnsupportedError):
            quern.compile(text)
        whole = strange.SerializeToString()
        for length in range(1, len(whole), 7):
            with self.assertRaises(quern.Error):
                quern.compile(whole[:length])


if __name__ == "__main__":
    unittest.main()
